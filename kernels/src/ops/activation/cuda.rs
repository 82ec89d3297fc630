use super::{Activation, NAME, SOURCE};
use crate::ops::launch;
use crate::{Cuda, Result, Tensor, args};

/// As the kernels number them.
fn number(kind: Activation) -> i32 {
    match kind {
        Activation::Elu => 0,
        Activation::Silu => 1,
        Activation::Gelu => 2,
        Activation::GeluTanh => 3,
        Activation::Tanh => 4,
    }
}

pub fn forward(gpu: &Cuda, kind: Activation, y: &mut Tensor, x: &Tensor) -> Result<()> {
    let kernel = gpu.kernel(&SOURCE, &launch::kernel_name(NAME, "activation", x)?)?;
    let n = x.elements();
    // SAFETY: the parameters of activation_*; n elements each.
    unsafe { kernel.launch(launch::elements(NAME, n, x.dtype().bytes())?, args![y, x, n as u64, number(kind)]) }
}

pub fn backward(gpu: &Cuda, kind: Activation, dx: &mut Tensor, dy: &Tensor, x: &Tensor) -> Result<()> {
    let kernel = gpu.kernel(&SOURCE, &launch::kernel_name(NAME, "activation_backward", x)?)?;
    let n = x.elements();
    // SAFETY: the parameters of activation_backward_*; n elements each.
    unsafe { kernel.launch(launch::elements(NAME, n, x.dtype().bytes())?, args![dx, dy, x, n as u64, number(kind)]) }
}
