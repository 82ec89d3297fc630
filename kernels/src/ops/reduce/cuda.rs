use super::{NAME, SOURCE, Term};
use crate::ops::launch::{self, Columns, kernel_name};
use crate::{Cuda, DType, Device, Result, Tensor, args};

/// One block's run of elements: alone decided by how many there are.
pub fn per_block(n: usize) -> usize {
    const MIN: usize = 256 * 16;
    const MAX_BLOCKS: usize = 1024;
    n.div_ceil(MAX_BLOCKS).next_multiple_of(MIN).max(MIN)
}

pub fn total(gpu: &Cuda, x: &Tensor, term: Term, factor: f64) -> Result<Tensor> {
    let n = x.elements();
    let per_block = per_block(n);
    let grid = launch::blocks(NAME, n.div_ceil(per_block))?;
    let partial = Tensor::empty(&Device::Cuda(gpu.clone()), DType::F32, [grid.grid[0] as usize])?;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "sum", x)?)?;
    let args = args![&partial, x, n as u64, per_block as u64, (term == Term::Square) as i32];
    // SAFETY: the parameters of sum_*; a partial sum a block.
    unsafe { kernel.launch(grid, args)? };
    finish(gpu, &partial, factor)
}

/// `factor` times the sum of `partial`, f32 of any length that one block can walk.
pub fn finish(gpu: &Cuda, partial: &Tensor, factor: f64) -> Result<Tensor> {
    let y = Tensor::empty(&Device::Cuda(gpu.clone()), DType::F32, [1])?;
    let kernel = gpu.kernel(&SOURCE, "finish_sum")?;
    let args = args![&y, partial, launch::index(NAME, partial.elements())?, factor as f32];
    // SAFETY: the parameters of finish_sum.
    unsafe { kernel.launch(launch::blocks(NAME, 1)?, args)? };
    Ok(y)
}

pub fn sum_rows(gpu: &Cuda, x: &Tensor) -> Result<Tensor> {
    let (rows, channels) = (x.shape().rows(), x.shape().last_dim());
    let columns = Columns::new(NAME, rows, channels, x.dtype())?;
    let row_blocks = columns.row_blocks();
    let partial = Tensor::empty(&x.device(), DType::F32, [row_blocks, channels])?;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "sum_rows", x)?)?;
    let args = args![&partial, x, rows as u64, columns.channels, columns.rows_per_block, columns.vector as i32];
    // SAFETY: the parameters of sum_rows_*; partial has a row a block of rows.
    unsafe { kernel.launch(columns.launch, args)? };
    finish_rows(gpu, partial)
}

/// The sum of the rows of `partial [blocks, C]`, f32, in order.
pub fn finish_rows(gpu: &Cuda, partial: Tensor) -> Result<Tensor> {
    let (blocks, channels) = (partial.shape().rows(), partial.shape().last_dim());
    if blocks == 1 {
        return partial.reshape([channels]);
    }
    let y = Tensor::empty(&partial.device(), DType::F32, [channels])?;
    let kernel = gpu.kernel(&SOURCE, "sum_rows_f32")?;
    let args = args![&y, &partial, blocks as u64, launch::index(NAME, channels)?, launch::index(NAME, blocks)?, 0];
    // SAFETY: the parameters of sum_rows_f32; one block takes all rows of its channels.
    unsafe { kernel.launch(Columns::reduce(NAME, channels, blocks)?, args)? };
    Ok(y)
}
