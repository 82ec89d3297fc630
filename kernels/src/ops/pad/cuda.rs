use super::{Map, NAME, SOURCE};
use crate::driver::Launch;
use crate::ops::launch::{THREADS, blocks, index, kernel_name};
use crate::{Cuda, Result, Tensor, args};

/// Launches over the rows of each item of a tensor, and whether a thread has 16 bytes of a row.
fn over_rows(of: &Tensor) -> Result<(Launch, bool)> {
    let (items, rows, channels) = (of.shape()[0], of.shape()[1], of.shape()[2]);
    let lanes = 16 / of.dtype().bytes();
    let vector = channels.is_multiple_of(lanes);
    let runs = rows.saturating_mul(channels) / if vector { lanes } else { 1 };
    // So that a thread beyond the last run still counts in 32 bits.
    index(NAME, runs.saturating_add(THREADS))?;
    Ok((blocks(NAME, items.saturating_mul(runs.div_ceil(THREADS)))?, vector))
}

pub fn reflect(gpu: &Cuda, y: &mut Tensor, x: &Tensor, map: &Map) -> Result<()> {
    let (launch, vector) = over_rows(y)?;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "pad", x)?)?;
    let int = |n| index(NAME, n);
    let (rows, channels) = (int(map.padded)?, int(y.shape()[2])?);
    let args = args![y, x, rows, int(map.rows)?, int(map.reflected)?, map.left as i32, channels, vector as i32];
    // SAFETY: the parameters of pad_*; y has so many items and rows, x so many items and map.rows, which `Map` says that fit.
    unsafe { kernel.launch(launch, args) }
}

pub fn reflect_backward(gpu: &Cuda, dx: &mut Tensor, dy: &Tensor, map: &Map) -> Result<()> {
    let (launch, vector) = over_rows(dx)?;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "pad_backward", dy)?)?;
    let int = |n| index(NAME, n);
    let channels = int(dx.shape()[2])?;
    int(map.padded.saturating_mul(dx.shape()[2]))?;
    let args = args![dx, dy, int(map.padded)?, int(map.rows)?, int(map.reflected)?, map.left as i32, channels, vector as i32];
    // SAFETY: the parameters of pad_backward_*; as above, dx in place of x and dy of y.
    unsafe { kernel.launch(launch, args) }
}

/// `part` becomes the rows of `y` from `first` on.
pub fn put(gpu: &Cuda, y: &mut Tensor, part: &Tensor, first: usize) -> Result<()> {
    let (launch, vector) = over_rows(part)?;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "concat", part)?)?;
    let (rows, channels) = (y.shape()[1], part.shape()[2]);
    index(NAME, rows.saturating_mul(channels))?;
    let args = args![y, part, rows as i32, index(NAME, part.shape()[1])?, index(NAME, first)?, index(NAME, channels)?, vector as i32];
    // SAFETY: the parameters of concat_*; `concat` gave y the rows of all parts.
    unsafe { kernel.launch(launch, args) }
}
