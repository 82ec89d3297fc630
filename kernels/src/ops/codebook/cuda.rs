//! Launch shapes and argument packing.

use super::{NAME, SOURCE};
use crate::driver::Launch;
use crate::ops::launch::{THREADS, check_f32, threads};
use crate::{Cuda, DType, Error, Result, Tensor, args};

const MAX_GRID_Y: usize = 65535;

pub fn statistics(gpu: &Cuda, x: &Tensor, codes: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
    check_f32(NAME, x)?;
    let (n, d) = (x.shape()[0], x.shape()[1]);
    let counts = Tensor::empty(&x.device(), DType::F32, [k])?;
    let sums = Tensor::empty(&x.device(), DType::F32, [k, d])?;
    // Counts are wanted even of rows without columns.
    let columns = d.div_ceil(THREADS).max(1);
    if columns > MAX_GRID_Y {
        return Err(Error::shape(NAME, "x", format!("at most {} columns", MAX_GRID_Y * THREADS), x.shape()));
    }
    let launch = Launch { grid: [k as u32, columns as u32, 1], ..threads(NAME, 0)? };
    let args = args![&counts, &sums, x, codes, n as i32, d as i32];
    // SAFETY: counts [k], sums [k, d], x [n, d], codes [n]; grid.x is k.
    unsafe { gpu.kernel(&SOURCE, "codebook_statistics_f32")?.launch(launch, args)? };
    Ok((counts, sums))
}

pub fn embedding(gpu: &Cuda, usage: &Tensor, sum: &Tensor, epsilon: f64) -> Result<Tensor> {
    check_f32(NAME, sum)?;
    let out = sum.empty_like()?;
    let args = args![&out, usage, sum, epsilon as f32, sum.shape()[0] as i32, sum.shape()[1] as i32];
    // SAFETY: usage [k], sum and out [k, d].
    unsafe { gpu.kernel(&SOURCE, "codebook_embedding_f32")?.launch(threads(NAME, sum.elements())?, args)? };
    Ok(out)
}

pub fn replace_rows(gpu: &Cuda, sum: &mut Tensor, usage: &mut Tensor, rows: &Tensor, samples: &Tensor, value: f64) -> Result<()> {
    check_f32(NAME, sum)?;
    let (m, d) = (rows.elements(), sum.shape()[1]);
    let args = args![sum, usage, rows, samples, value as f32, m as i32, d as i32];
    let threads = threads(NAME, samples.elements() / if d.is_multiple_of(4) { 4 } else { 1 })?;
    // SAFETY: samples [m, d]; the rows were checked to be distinct and inside sum [k, d] and usage [k].
    unsafe { gpu.kernel(&SOURCE, "codebook_replace_f32")?.launch(threads, args) }
}
