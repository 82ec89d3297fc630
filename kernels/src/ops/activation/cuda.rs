use super::{Activation, NAME, SOURCE};
use crate::driver::Launch;
use crate::ops::launch;
use crate::{Cuda, Result, Tensor, args};

/// As the kernels number them.
fn number(kind: Activation) -> i32 {
    match kind {
        Activation::Identity => 0,
        Activation::Elu => 1,
        Activation::Silu => 2,
        Activation::Gelu => 3,
        Activation::GeluTanh => 4,
        Activation::Tanh => 5,
        Activation::Sigmoid => 6,
        Activation::Relu => 7,
        Activation::LeakyRelu => 8,
        Activation::Mish => 9,
        Activation::Softsign => 10,
    }
}

pub fn forward(gpu: &Cuda, kind: Activation, y: &mut Tensor, x: &Tensor) -> Result<()> {
    let kernel = gpu.kernel(&SOURCE, &launch::kernel_name(NAME, "activation", x)?)?;
    let n = x.elements();
    // SAFETY: the parameters of activation_*; n elements each.
    unsafe { kernel.launch(launch::elements(NAME, n, x.dtype().bytes())?, args![y, x, n as u64, number(kind)]) }
}

pub fn gate(gpu: &Cuda, kind: Activation, y: &mut Tensor, x: &Tensor) -> Result<()> {
    let kernel = gpu.kernel(&SOURCE, &launch::kernel_name(NAME, "activation_gate", x)?)?;
    let (rows, half, lanes) = (y.shape().rows(), y.shape().last_dim(), 16 / y.dtype().bytes());
    let vector = half.is_multiple_of(lanes);
    let parts = half.div_ceil(launch::THREADS * if vector { lanes } else { 1 });
    let grid = [launch::index(NAME, rows)? as u32, launch::grid_y(NAME, parts)?, 1];
    let launch = Launch { grid, block: [launch::THREADS as u32, 1, 1], shared_bytes: 0, cooperative: false };
    // SAFETY: the parameters of activation_gate_*; a block for each row of x, of twice the width of those of y, and each part of it.
    unsafe { kernel.launch(launch, args![y, x, launch::index(NAME, half)?, number(kind), vector as i32]) }
}

pub fn backward(gpu: &Cuda, kind: Activation, dx: &mut Tensor, dy: &Tensor, x: &Tensor) -> Result<()> {
    let kernel = gpu.kernel(&SOURCE, &launch::kernel_name(NAME, "activation_backward", x)?)?;
    let n = x.elements();
    // SAFETY: the parameters of activation_backward_*; n elements each.
    unsafe { kernel.launch(launch::elements(NAME, n, x.dtype().bytes())?, args![dx, dy, x, n as u64, number(kind)]) }
}

pub fn leaky_relu(gpu: &Cuda, y: &mut Tensor, x: &Tensor, slope: f64) -> Result<()> {
    let kernel = gpu.kernel(&SOURCE, &launch::kernel_name(NAME, "leaky_relu", x)?)?;
    let n = x.elements();
    // SAFETY: the parameters of leaky_relu_*; n elements each.
    unsafe { kernel.launch(launch::elements(NAME, n, x.dtype().bytes())?, args![y, x, n as u64, slope as f32]) }
}

pub fn leaky_relu_backward(gpu: &Cuda, dx: &mut Tensor, dy: &Tensor, y: &Tensor, slope: f64) -> Result<()> {
    let kernel = gpu.kernel(&SOURCE, &launch::kernel_name(NAME, "leaky_relu_backward", y)?)?;
    let n = y.elements();
    // SAFETY: the parameters of leaky_relu_backward_*; n elements each.
    unsafe { kernel.launch(launch::elements(NAME, n, y.dtype().bytes())?, args![dx, dy, y, n as u64, slope as f32]) }
}
