//! Launch shapes and argument packing.

use super::{COSINE_EPSILON, Metric, NAME, SOURCE};
use crate::device::Arg;
use crate::driver::Launch;
use crate::ops::launch::check_f32;
use crate::{Cuda, DType, Error, Result, Tensor, args};

/// Rows that one block of `rvq_nearest_*` or `rvq_normalize` owns, and codewords it looks at together.
const TILE: usize = 64;
/// Most rows of a launch of `rvq_search`, and codewords that one of its blocks takes at a time.
const STREAMING_ROWS: usize = 32;
const STREAMING_CODEWORDS: usize = 32;
/// Codebooks in one argument list.
pub(super) const STAGES_A_LAUNCH: usize = 8;
/// Shared memory that every architecture gives without asking, less the tile of `rvq_search`.
const RESIDUAL_BYTES: usize = (48 - 5) * 1024;

pub fn nearest(gpu: &Cuda, x: &Tensor, codebook: &Tensor, metric: Metric, codes: Column) -> Result<()> {
    match metric {
        Metric::Euclidean => assign(gpu, "rvq_nearest_euclidean_f32", codes, None, x, codebook),
        Metric::Cosine => assign(gpu, "rvq_nearest_cosine_f32", codes, None, &normalise(gpu, x)?, &normalise(gpu, codebook)?),
    }
}

pub fn stage(gpu: &Cuda, x: &Tensor, codebook: &Tensor) -> Result<(Tensor, Tensor)> {
    let (codes, residual) = (Tensor::empty(&x.device(), DType::I32, [x.shape()[0]])?, x.empty_like()?);
    assign(gpu, "rvq_nearest_euclidean_f32", (&codes, 0), Some(&residual), x, codebook)?;
    Ok((codes, residual))
}

/// Codes `[N, S]`, and a column of theirs.
pub type Column<'a> = (&'a Tensor, usize);

/// Fills a column of codes, and the residual if there is one.
fn assign(gpu: &Cuda, kernel: &str, codes: Column, residual: Option<&Tensor>, x: &Tensor, codebook: &Tensor) -> Result<()> {
    check_f32(NAME, x)?;
    let (n, k, d) = (x.shape()[0], codebook.shape()[0], codebook.shape()[1]);
    let (column, stride) = (codes.0.device_ptr() + 4 * codes.1 as u64, codes.0.elements() / n.max(1));
    let args = args![column, stride as i32, residual, x, codebook, n as i32, k as i32, d as i32];
    // SAFETY: codes [n, stride] with the column inside, residual and x [n, d], codebook [k, d]; the kernel checks its bounds.
    unsafe { gpu.kernel(&SOURCE, kernel)?.launch(launch(n.div_ceil(TILE), 256), args) }
}

fn normalise(gpu: &Cuda, x: &Tensor) -> Result<Tensor> {
    check_f32(NAME, x)?;
    let (n, d) = (x.shape()[0], x.shape()[1]);
    let y = x.empty_like()?;
    let args = args![&y, x, COSINE_EPSILON as f32, n as i32, d as i32];
    // SAFETY: x and y are [n, d].
    unsafe { gpu.kernel(&SOURCE, "rvq_normalize_f32")?.launch(launch(n.div_ceil(TILE), 256), args)? };
    Ok(y)
}

/// Whether all stages of `n` rows of width `d` are searched together.
pub(super) fn streams(n: usize, d: usize) -> bool {
    n <= STREAMING_ROWS && n.saturating_mul(d) <= RESIDUAL_BYTES / 4
}

/// Fills a column of codes, and those after it, for each codebook; returns what is left of `x`.
pub fn search(gpu: &Cuda, x: &Tensor, codebooks: &[&Tensor], (codes, first): Column) -> Result<Tensor> {
    check_f32(NAME, x)?;
    let n = x.shape()[0];
    let mut residual = x.copy()?;
    if n == 0 {
        return Ok(residual);
    }
    if streams(n, x.shape()[1]) {
        for (i, codebooks) in codebooks.chunks(STAGES_A_LAUNCH).enumerate() {
            let next = x.empty_like()?;
            search_streaming(gpu, (codes, first + i * STAGES_A_LAUNCH), &next, &residual, codebooks)?;
            residual = next;
        }
    } else {
        for (s, codebook) in codebooks.iter().enumerate() {
            let next = x.empty_like()?;
            assign(gpu, "rvq_nearest_euclidean_f32", (codes, first + s), Some(&next), &residual, codebook)?;
            residual = next;
        }
    }
    Ok(residual)
}

fn search_streaming(gpu: &Cuda, codes: Column, residual: &Tensor, x: &Tensor, codebooks: &[&Tensor]) -> Result<()> {
    let (n, d, stages) = (x.shape()[0], x.shape()[1], codebooks.len());
    // 64-bit keys [stages, n], then the word of the grid barrier.
    let scratch = Tensor::zeros(&x.device(), DType::I32, [2 * stages * n + 1])?;
    let barrier = scratch.device_ptr() + 8 * (stages * n) as u64;
    let column = codes.0.device_ptr() + 4 * codes.1 as u64;
    let mut args = vec![Arg::from(column), residual.into(), (&scratch).into(), barrier.into(), x.into()];
    push_codebooks(&mut args, codebooks);
    args.extend([n, d, stages, codes.0.shape()[1]].map(|v| Arg::from(v as i32)));
    let largest = codebooks.iter().map(|c| c.shape()[0]).max().unwrap_or(1);
    let blocks = largest.div_ceil(STREAMING_CODEWORDS).min(gpu.driver().limits().multiprocessors as usize).max(1);
    let launch = Launch { shared_bytes: x.bytes() as u32, cooperative: true, ..launch(blocks, 256) };
    // SAFETY: codes [n, code_stride] has the columns, residual and x are [n, d], codebook s is [k_s, d], the scratch holds the
    // keys and the barrier and is zero; there is no more than one block a multiprocessor, so all are resident.
    unsafe { gpu.kernel(&SOURCE, "rvq_search_f32")?.launch(launch, &mut args) }
}

/// Of a column of codes and those after it, one for each codebook; -1 is none if codes may be `absent`.
pub fn decode(gpu: &Cuda, (codes, first): Column, codebooks: &[&Tensor], absent: bool) -> Result<Tensor> {
    let (n, d) = (codes.shape()[0], codebooks[0].shape()[1]);
    let elements = if d.is_multiple_of(4) { 4 } else { 1 };
    let mut sum: Option<Tensor> = None;
    for (i, codebooks) in codebooks.chunks(STAGES_A_LAUNCH).enumerate() {
        let y = Tensor::empty(&codes.device(), DType::F32, [n, d])?;
        check_f32(NAME, &y)?;
        codebooks.iter().try_for_each(|c| check_f32(NAME, c))?;
        let column = codes.device_ptr() + 4 * (first + i * STAGES_A_LAUNCH) as u64;
        let mut args = vec![Arg::from(&y), sum.as_ref().into(), column.into()];
        push_codebooks(&mut args, codebooks);
        args.extend([n, d, codebooks.len(), codes.shape()[1], absent.into()].map(|v| Arg::from(v as i32)));
        // SAFETY: y and the running sum are [n, d], codes [n, code_stride] has the columns, codebook s is [k_s, d].
        unsafe { gpu.kernel(&SOURCE, "rvq_decode_f32")?.launch(launch((n * d).div_ceil(256 * elements), 256), &mut args)? };
        sum = Some(y);
    }
    sum.ok_or_else(|| Error::argument(NAME, "no codebooks"))
}

/// Eight pointers, then eight sizes; absent codebooks are null and empty.
fn push_codebooks(args: &mut Vec<Arg>, codebooks: &[&Tensor]) {
    let slots = || (0..STAGES_A_LAUNCH).map(|s| codebooks.get(s).copied());
    args.extend(slots().map(Arg::from));
    args.extend(slots().map(|c| Arg::from(c.map_or(0, |c| c.shape()[0] as i32))));
}

fn launch(blocks: usize, threads: u32) -> Launch {
    Launch { grid: [blocks as u32, 1, 1], block: [threads, 1, 1], shared_bytes: 0, cooperative: false }
}
