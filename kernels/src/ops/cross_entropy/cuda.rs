use super::{CrossEntropy, NAME, SOURCE};
use crate::driver::Launch;
use crate::ops::launch::{THREADS, blocks, index, kernel_name};
use crate::{Cuda, DType, Result, Tensor, args};

/// A block a row, with a thread for four of its vectors: its size depends on their number alone, and so do its sums.
fn rows(logits: &Tensor) -> Result<Launch> {
    let vectors = logits.shape()[1].div_ceil(16 / logits.dtype().bytes());
    let threads = vectors.div_ceil(4).next_multiple_of(32).clamp(32, 1024);
    let grid = [index(NAME, logits.shape()[0])? as u32, 1, 1];
    Ok(Launch { grid, block: [threads as u32, 1, 1], shared_bytes: 0, cooperative: false })
}

pub fn forward(gpu: &Cuda, logits: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<CrossEntropy> {
    let device = logits.device();
    let (count, classes) = (logits.shape()[0] as i32, index(NAME, logits.shape()[1])?);
    // So that a thread beyond the last row still counts in 32 bits.
    index(NAME, logits.shape()[0].saturating_add(THREADS))?;
    let float = |n: usize| Tensor::empty(&device, DType::F32, [n]);
    let found = CrossEntropy { loss: float(1)?, log_sums: float(logits.shape()[0])?, weight: float(1)? };
    let terms = float(logits.shape()[0])?;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "cross_entropy", logits)?)?;
    // SAFETY: the parameters of cross_entropy_*; a block for each of the N rows of all, V long in logits.
    unsafe { kernel.launch(rows(logits)?, args![&terms, &found.log_sums, logits, targets, weights, classes])? };
    let kernel = gpu.kernel(&SOURCE, "cross_entropy_mean")?;
    // SAFETY: the parameters of cross_entropy_mean; one block walks the N rows.
    unsafe { kernel.launch(blocks(NAME, 1)?, args![&found.loss, &found.weight, &terms, targets, weights, count])? };
    Ok(found)
}

pub fn backward(
    gpu: &Cuda,
    dx: &mut Tensor,
    found: &CrossEntropy,
    logits: &Tensor,
    targets: &Tensor,
    weights: &Tensor,
    scale: f64,
) -> Result<()> {
    let classes = index(NAME, logits.shape()[1])?;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "cross_entropy_backward", logits)?)?;
    let args = args![dx, &found.log_sums, &found.weight, logits, targets, weights, scale as f32, classes];
    // SAFETY: the parameters of cross_entropy_backward_*; a block for each of the N rows of all, V long in dx and logits.
    unsafe { kernel.launch(rows(logits)?, args) }
}
