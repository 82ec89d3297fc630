use super::{NAME, SOURCE, Update};
use crate::driver::Launch;
use crate::ops::launch::{self, kernel_name};
use crate::{Cuda, Result, Tensor, args};

pub fn step(
    gpu: &Cuda,
    param: &mut Tensor,
    grad: &Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    u: Update,
    grad_scale: Option<&Tensor>,
) -> Result<()> {
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "adamw", param)?)?;
    let n = param.elements();
    let moments = [u.beta1, 1.0 - u.beta1, u.beta2, 1.0 - u.beta2].map(|v| v as f32);
    let [beta1, new1, beta2, new2] = moments;
    let [keep, rate, correction, eps] = [u.keep, u.rate, u.correction, u.eps].map(|v| v as f32);
    let args = args![param, grad, m, v, grad_scale, n as u64, keep, beta1, new1, beta2, new2, rate, correction, eps];
    // SAFETY: the parameters of adamw_f32, the only type that `check_dtype` lets through on CUDA; n elements each.
    unsafe { kernel.launch(launch::elements(NAME, n, 4)?, args) }
}

pub fn clip_scale(gpu: &Cuda, scale: &mut Tensor, total: &Tensor, max_norm: f64) -> Result<()> {
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "clip_scale", total)?)?;
    let one = Launch { grid: [1, 1, 1], block: [1, 1, 1], shared_bytes: 0, cooperative: false };
    // SAFETY: the parameters of clip_scale_f32; one element each.
    unsafe { kernel.launch(one, args![scale, total, max_norm as f32]) }
}

pub fn ema(gpu: &Cuda, shadow: &mut Tensor, param: &Tensor, decay: f64) -> Result<()> {
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "ema", shadow)?)?;
    let n = shadow.elements();
    // SAFETY: the parameters of ema_f32; n elements each.
    unsafe { kernel.launch(launch::elements(NAME, n, 4)?, args![shadow, param, n as u64, decay as f32, (1.0 - decay) as f32]) }
}
