use super::{Loss, NAME, SOURCE};
use crate::ops::{launch, reduce};
use crate::{Cuda, DType, Result, Tensor, args};

/// As the kernels number them; the floor; what a term counts where `x` is the larger; what the derivative of one term brings beside `1 / n`.
fn parameters(loss: Loss) -> (i32, f32, f32, f64) {
    match loss {
        Loss::L1 => (0, 0.0, 1.0, 1.0),
        Loss::Mse => (1, 0.0, 1.0, 2.0),
        Loss::LogL1 { floor, added } => (2, floor as f32, added as f32, std::f64::consts::LOG10_E),
        Loss::LogMse { floor } => (3, floor as f32, 1.0, 2.0 * std::f64::consts::LOG10_E),
    }
}

pub fn forward(gpu: &Cuda, loss: Loss, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let n = x.elements();
    let (kind, floor, added, _) = parameters(loss);
    let per_block = reduce::cuda::per_block(n);
    let grid = launch::blocks(NAME, n.div_ceil(per_block))?;
    let partial = Tensor::empty(&x.device(), DType::F32, [grid.grid[0] as usize])?;
    let kernel = gpu.kernel(&SOURCE, &launch::kernel_name(NAME, "loss", x)?)?;
    let args = args![&partial, x, y, n as u64, per_block as u64, kind, floor, added];
    // SAFETY: the parameters of loss_f32, the only type that `check` lets through on CUDA; a partial sum a block.
    unsafe { kernel.launch(grid, args)? };
    reduce::cuda::finish(gpu, &partial, 1.0 / n as f64)
}

pub fn backward(gpu: &Cuda, loss: Loss, dx: &mut Tensor, x: &Tensor, y: &Tensor, factor: f64) -> Result<()> {
    let n = x.elements();
    let (kind, floor, added, derivative) = parameters(loss);
    let kernel = gpu.kernel(&SOURCE, &launch::kernel_name(NAME, "loss_backward", x)?)?;
    let args = args![dx, x, y, n as u64, kind, floor, added, (factor * derivative) as f32];
    // SAFETY: the parameters of loss_backward_f32; n elements each.
    unsafe { kernel.launch(launch::elements(NAME, n, 4)?, args) }
}
