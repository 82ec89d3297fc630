use super::{NAME, SOURCE};
use crate::ops::launch;
use crate::{Cuda, Result, Tensor, args};

pub fn forward(gpu: &Cuda, y: &mut Tensor, x: &Tensor, limit: f64) -> Result<()> {
    let kernel = gpu.kernel(&SOURCE, &launch::kernel_name(NAME, "template", x)?)?;
    let n = x.elements();
    // SAFETY: the parameters of template_*; n elements each.
    unsafe { kernel.launch(launch::elements(NAME, n, x.dtype().bytes())?, args![y, x, n as u64, limit as f32]) }
}

pub fn backward(gpu: &Cuda, dx: &mut Tensor, dy: &Tensor, x: &Tensor, limit: f64) -> Result<()> {
    let kernel = gpu.kernel(&SOURCE, &launch::kernel_name(NAME, "template_backward", x)?)?;
    let n = x.elements();
    // SAFETY: the parameters of template_backward_*; n elements each.
    unsafe { kernel.launch(launch::elements(NAME, n, x.dtype().bytes())?, args![dx, dy, x, n as u64, limit as f32]) }
}
