//! Launch shapes that memory-bound kernels share; `vec.cuh` and `block.cuh` are their device side.

use crate::driver::Launch;
use crate::{DType, Error, Result, Tensor};

pub const THREADS: usize = 256;
/// Shared memory that `block.cuh` may use for columns: N floats a thread, N at most 8, and its distance between them.
const COLUMN_SUM_BYTES: usize = (THREADS + 32 / 8) * 8 * 4;

/// Kernels of one type carry it in their name; f32, bf16 and f16 are there.
pub fn kernel_name(op: &'static str, name: &str, x: &Tensor) -> Result<String> {
    match x.dtype() {
        DType::F32 | DType::BF16 | DType::F16 => Ok(format!("{name}_{}", x.dtype())),
        found => Err(Error::dtype(op, "input", "f32, bf16 or f16 on CUDA", found)),
    }
}

/// For `for_elements`: one 16-byte vector of `bytes`-wide elements a thread.
pub fn elements(op: &'static str, n: usize, bytes: usize) -> Result<Launch> {
    blocks(op, n.div_ceil(THREADS * (16 / bytes)))
}

/// For kernels with one element a thread.
pub fn threads(op: &'static str, n: usize) -> Result<Launch> {
    blocks(op, n.div_ceil(THREADS))
}

/// `n` one-dimensional blocks.
pub fn blocks(op: &'static str, n: usize) -> Result<Launch> {
    Ok(Launch { grid: [index(op, n)? as u32, 1, 1], block: [THREADS as u32, 1, 1], shared_bytes: 0, cooperative: false })
}

/// Kernels count channels, blocks and rows of a block in 32 bits.
pub fn index(op: &'static str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::argument(op, format!("an extent of {n} exceeds 32 bits")))
}

/// What kernels of one type and 32-bit indices take: f32, fewer than 2^31 elements.
pub fn check_f32(op: &'static str, x: &Tensor) -> Result<()> {
    if x.dtype() != DType::F32 {
        return Err(Error::dtype(op, "input", "f32 on CUDA", x.dtype()));
    }
    if x.elements() > i32::MAX as usize {
        return Err(Error::shape(op, "input", "fewer than 2^31 elements", x.shape()));
    }
    Ok(())
}

/// How `Columns` divides a matrix.
pub struct Columns {
    pub launch: Launch,
    pub rows_per_block: i32,
    pub channels: i32,
    /// Whether a thread takes 16 bytes of channels.
    pub vector: bool,
}

impl Columns {
    /// Blocks of rows; there are this many partial sums of each channel.
    pub fn row_blocks(&self) -> usize {
        self.launch.grid[0] as usize
    }

    pub fn new(op: &'static str, rows: usize, channels: usize, dtype: DType) -> Result<Columns> {
        let Division { vector, runs, width, height, rows_per_block } = Division::new(rows, channels, dtype);
        let grid = [index(op, rows.div_ceil(rows_per_block))? as u32, grid_y(op, runs.div_ceil(width))?, 1];
        let launch = Launch { grid, block: [width as u32, height as u32, 1], shared_bytes: COLUMN_SUM_BYTES as u32, cooperative: false };
        Ok(Columns { launch, rows_per_block: index(op, rows_per_block)?, channels: index(op, channels)?, vector })
    }

    /// One scalar column a thread, all rows in one block: sums the partial sums of `row_blocks` blocks.
    pub fn reduce(op: &'static str, channels: usize, row_blocks: usize) -> Result<Launch> {
        let width = channels.clamp(1, 32);
        let height = (THREADS / width).min(row_blocks.max(1));
        let grid = [1, grid_y(op, channels.div_ceil(width))?, 1];
        Ok(Launch { grid, block: [width as u32, height as u32, 1], shared_bytes: COLUMN_SUM_BYTES as u32, cooperative: false })
    }
}

/// Threads of a block along channels (a run of them each) and rows, and its rows.
struct Division {
    vector: bool,
    runs: usize,
    width: usize,
    height: usize,
    rows_per_block: usize,
}

impl Division {
    /// Shape alone decides, so sums are the same on every device: blocks short enough to fill a large GPU, long enough that
    /// their partial sums weigh nothing.
    fn new(rows: usize, channels: usize, dtype: DType) -> Division {
        const MIN_ROWS_PER_THREAD: usize = 4;
        const MAX_ROW_BLOCKS: usize = 1024;
        let lanes = 16 / dtype.bytes();
        let vector = channels.is_multiple_of(lanes);
        let runs = if vector { channels / lanes } else { channels };
        let width = runs.clamp(1, THREADS);
        let height = THREADS / width;
        let rows_per_block = height * rows.div_ceil(height * MAX_ROW_BLOCKS).max(MIN_ROWS_PER_THREAD);
        Division { vector, runs, width, height, rows_per_block }
    }
}

/// [`Columns::row_blocks`], for costs.
pub fn partial_rows(rows: usize, channels: usize, dtype: DType) -> usize {
    rows.div_ceil(Division::new(rows, channels, dtype).rows_per_block)
}

/// Blocks along the second axis.
pub fn grid_y(op: &'static str, n: usize) -> Result<u32> {
    match u16::try_from(n) {
        Ok(n) => Ok(n as u32),
        Err(_) => Err(Error::argument(op, format!("{n} blocks exceed the grid's second axis"))),
    }
}
