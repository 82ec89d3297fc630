use super::Norm;
use crate::driver::Launch;
use crate::ops::launch::{THREADS, index, kernel_name};
use crate::ops::reduce;
use crate::{Cuda, DType, Error, Result, Tensor, args};

/// The launch bounds of norm.cuh.
const MAX_THREADS: usize = 512;

/// Elements in a vector of a row, and in a thread's registers: those of norm.cuh.
fn values(channels: usize, dtype: DType) -> (usize, usize) {
    let lanes = 16 / dtype.bytes();
    if channels.is_multiple_of(lanes) { (lanes, 16) } else { (1, 8) }
}

/// Whether a row is longer than its threads' registers, and read again.
pub fn is_long(channels: usize, dtype: DType) -> bool {
    channels > values(channels, dtype).1 * MAX_THREADS
}

struct Rows {
    launch: Launch,
    rows: u64,
    channels: i32,
    rows_per_block: i32,
    vector: i32,
}

/// Threads of a row, rows side by side, and how many rows a block takes of at most `max_blocks`: at least `least` a thread.
fn division(rows: usize, channels: usize, dtype: DType, least: usize, max_blocks: usize) -> (usize, usize, usize) {
    let width = channels.div_ceil(values(channels, dtype).1).next_multiple_of(32).clamp(32, MAX_THREADS);
    let height = (THREADS / width).clamp(1, rows.max(1));
    (width, height, height * rows.div_ceil(height * max_blocks).max(least))
}

impl Rows {
    fn new(norm: &Norm, x: &Tensor, least: usize, max_blocks: usize, weight_shared: bool) -> Result<Rows> {
        let (rows, channels) = (x.shape().rows(), x.shape().last_dim());
        let (width, height, rows_per_block) = division(rows, channels, x.dtype(), least, max_blocks);
        // `column_pitch` floats for each element of a vector, for sums over columns, or of all vectors, for the weight.
        let (n, all) = values(channels, x.dtype());
        let shared_bytes = (if weight_shared { all } else { n } * (width * height + 32 / n) * 4) as u32;
        let blocks = if channels == 0 { 0 } else { rows.div_ceil(rows_per_block) };
        let grid = [index(norm.name, blocks)? as u32, 1, 1];
        let launch = Launch { grid, block: [width as u32, height as u32, 1], shared_bytes, cooperative: false };
        let int = |n| index(norm.name, n);
        Ok(Rows { launch, rows: rows as u64, channels: int(channels)?, rows_per_block: int(rows_per_block)?, vector: (n > 1) as i32 })
    }
}

/// Rows of one block of [`backward`], whose sums are one row of a workspace.
const LEAST_ROWS: usize = 8;
const MAX_SUMS: usize = 512;

/// How many rows of sums [`backward`] writes, for its cost.
pub fn partial_rows(rows: usize, channels: usize, dtype: DType) -> usize {
    rows.div_ceil(division(rows, channels, dtype, LEAST_ROWS, MAX_SUMS).2)
}

/// `added`: where `x + residual` goes, and the residual.
#[allow(clippy::too_many_arguments)]
pub fn forward(
    norm: &Norm,
    gpu: &Cuda,
    y: &mut Tensor,
    added: Option<(&mut Tensor, &Tensor)>,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    epsilon: f64,
) -> Result<()> {
    const MAX_BLOCKS: usize = 1024;
    let Rows { launch, rows, channels, rows_per_block, vector } = Rows::new(norm, x, 1, MAX_BLOCKS, false)?;
    let kernel = gpu.kernel(norm.source, &kernel_name(norm.name, norm.name, x)?)?;
    let (sum, residual) = added.map(|(sum, residual)| (&*sum, residual)).unzip();
    let args = args![y, sum, x, residual, weight, bias, epsilon as f32, rows, channels, rows_per_block, vector];
    // SAFETY: the forward parameters of NORM_KERNELS; `Rows` covers exactly the rows and channels of x, which all tensors have.
    unsafe { kernel.launch(launch, args) }
}

/// Writes `dx`; returns the gradients of the weight and, if centred, of the bias.
pub fn backward(norm: &Norm, gpu: &Cuda, dx: &mut Tensor, dy: &Tensor, x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Vec<Tensor>> {
    let width = x.shape().last_dim();
    if is_long(width, x.dtype()) {
        let most = values(width, x.dtype()).1 * MAX_THREADS;
        return Err(Error::shape(norm.name, "x", format!("at most {most} channels for gradients on CUDA"), x.shape()));
    }
    let Rows { launch, rows, channels, rows_per_block, vector } = Rows::new(norm, x, LEAST_ROWS, MAX_SUMS, true)?;
    let partial = || Tensor::empty(&x.device(), DType::F32, [launch.grid[0] as usize, width]);
    let (dweight, dbias) = (partial()?, norm.centred.then(partial).transpose()?);
    let kernel = gpu.kernel(norm.source, &kernel_name(norm.name, &format!("{}_backward", norm.name), x)?)?;
    let args = args![dx, &dweight, dbias.as_ref(), dy, x, weight, epsilon as f32, rows, channels, rows_per_block, vector];
    // SAFETY: the backward parameters of NORM_KERNELS; a row of sums a block.
    unsafe { kernel.launch(launch, args)? };
    [Some(dweight), dbias].into_iter().flatten().map(|partial| reduce::cuda::finish_rows(gpu, partial)).collect()
}
