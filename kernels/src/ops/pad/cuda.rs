use super::{Map, NAME, SOURCE};
use crate::driver::Launch;
use crate::ops::launch::{THREADS, grid_y, index, kernel_name};
use crate::{Cuda, Result, Tensor, args};

pub fn reflect(gpu: &Cuda, y: &mut Tensor, x: &Tensor, map: &Map) -> Result<()> {
    let (items, rows, channels) = (y.shape()[0], y.shape()[1], y.shape()[2]);
    let lanes = 16 / x.dtype().bytes();
    let vector = channels.is_multiple_of(lanes);
    let runs = rows.saturating_mul(channels) / if vector { lanes } else { 1 };
    // So that a thread beyond the last run still counts in 32 bits.
    index(NAME, runs.saturating_add(THREADS))?;
    let grid = [runs.div_ceil(THREADS) as u32, grid_y(NAME, items)?, 1];
    let launch = Launch { grid, block: [THREADS as u32, 1, 1], shared_bytes: 0, cooperative: false };
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "pad", x)?)?;
    let int = |n| index(NAME, n);
    let args = args![y, x, int(rows)?, int(map.rows)?, int(map.reflected)?, map.left as i32, int(channels)?, vector as i32];
    // SAFETY: the parameters of pad_*; y has so many items and rows, x so many items and map.rows, which `Map` says that fit.
    unsafe { kernel.launch(launch, args) }
}
