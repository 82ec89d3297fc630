//! Codebooks that learn by averages instead of by gradient: cluster statistics, their exponential moving average, and the
//! pieces of k-means.
//!
//! ```text
//! statistics   counts_k = |{i : code_i = k}|,  sums_k = sum of x_i with code_i = k
//! ema_update   usage = decay usage + (1 - decay) counts,  sum = decay sum + (1 - decay) sums
//! embedding    e_k = sum_k / max(usage_k, epsilon)
//! replace_rows usage_k = value, sum_k = value sample    for expired or empty clusters
//! ```
//! The rules are Mimi's (moshi, `quantization/core_vq.py`). A k-means iteration is [`kmeans_step`], [`replace_rows`] with
//! value 1 for the clusters whose count is 0, and [`embedding`]. Random picks come from the host as row numbers, so a run
//! is the same on every device.

use crate::case::{Case, Check, Cost, Fill, Input, Op};
use crate::driver::Source;
use crate::driver::source::ALL_ARCHS;
use crate::ops::adamw;
use crate::ops::rvq_search::{self, Metric};
use crate::tolerance::{ROUNDOFF, Tolerance};
use crate::{DType, Device, Error, Result, Tensor, dispatch_real, span};

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

pub static SOURCE: Source = Source { path: "ops/codebook/codebook.cu", text: include_str!("codebook.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases };

const NAME: &str = "codebook";

/// Counts `[k]` and sums `[k, D]` of the rows of `x [N, D]` by their `codes [N]`, added in the order of the rows.
///
/// A code that is not below `k` is an error on the CPU and counts for nothing on CUDA.
pub fn statistics(x: &Tensor, codes: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
    let _span = span::op("codebook.statistics");
    let n = codes.elements();
    if codes.shape().len() != 1 || codes.dtype() != DType::I32 {
        return Err(Error::argument(NAME, format!("codes are {codes:?}, expected i32[N]")));
    }
    check(x, "x", "[N, D] for codes [N]", x.shape().len() == 2 && x.shape()[0] == n, &codes.device(), x.dtype())?;
    if k.checked_mul(x.shape()[1].max(1)).is_none_or(|elements| elements > i32::MAX as usize) {
        return Err(Error::argument(NAME, format!("{k} clusters of width {} exceed 2^31 elements", x.shape()[1])));
    }
    match x.device() {
        Device::Cpu => {
            if let Some(code) = codes.as_slice::<i32>()?.iter().find(|&&c| c < 0 || c as usize >= k) {
                return Err(Error::argument(NAME, format!("code {code} is not below {k}")));
            }
            dispatch_real!(NAME, x.dtype(), T => cpu::statistics::<T>(x, codes, k))
        }
        Device::Cuda(gpu) => cuda::statistics(&gpu, x, codes, k),
    }
}

/// Moves `usage [K]` and `sum [K, D]` towards `counts` and `sums` by `1 - decay`.
pub fn ema_update(usage: &mut Tensor, sum: &mut Tensor, counts: &Tensor, sums: &Tensor, decay: f64) -> Result<()> {
    let _span = span::op("codebook.ema_update");
    check_state(usage, sum)?;
    check(counts, "counts", "the shape of usage", counts.shape() == usage.shape(), &usage.device(), usage.dtype())?;
    check(sums, "sums", "the shape of sum", sums.shape() == sum.shape(), &usage.device(), usage.dtype())?;
    adamw::ema(usage, counts, decay)?;
    adamw::ema(sum, sums, decay)
}

/// Codewords `[K, D]`: `sum [K, D] / max(usage [K], epsilon)`.
pub fn embedding(usage: &Tensor, sum: &Tensor, epsilon: f64) -> Result<Tensor> {
    let _span = span::op("codebook.embedding");
    check_state(usage, sum)?;
    match usage.device() {
        Device::Cpu => dispatch_real!(NAME, usage.dtype(), T => cpu::embedding::<T>(usage, sum, epsilon)),
        Device::Cuda(gpu) => cuda::embedding(&gpu, usage, sum, epsilon),
    }
}

/// Restarts the clusters `rows [M]` (i32, each at most once) at `samples [M, D]`, as if each had been used `value` times.
///
/// Reads `rows` on the host, so it waits for the device.
pub fn replace_rows(sum: &mut Tensor, usage: &mut Tensor, rows: &Tensor, samples: &Tensor, value: f64) -> Result<()> {
    let _span = span::op("codebook.replace_rows");
    check_state(usage, sum)?;
    let (m, k, d) = (rows.elements(), sum.shape()[0], sum.shape()[1]);
    check(rows, "rows", "[M]", rows.shape().len() == 1, &usage.device(), DType::I32)?;
    check(samples, "samples", "[M, D]", samples.shape()[..] == [m, d], &usage.device(), usage.dtype())?;
    let indices = rows.to_vec::<i32>()?;
    let mut seen = vec![false; k];
    for &row in &indices {
        match usize::try_from(row).ok().and_then(|row| seen.get_mut(row)) {
            Some(seen) if !*seen => *seen = true,
            Some(_) => return Err(Error::argument(NAME, format!("row {row} is replaced twice"))),
            None => return Err(Error::argument(NAME, format!("row {row} is not below {k}"))),
        }
    }
    match usage.device() {
        Device::Cpu => dispatch_real!(NAME, usage.dtype(), T => cpu::replace_rows::<T>(sum, usage, &indices, samples, value)),
        Device::Cuda(gpu) => cuda::replace_rows(&gpu, sum, usage, rows, samples, value),
    }
}

/// Counts and sums of the rows of `x [N, D]` by their nearest of `means [K, D]`: one iteration of k-means up to the division.
pub fn kmeans_step(x: &Tensor, means: &Tensor) -> Result<(Tensor, Tensor)> {
    let _span = span::op("codebook.kmeans_step");
    let codes = rvq_search::nearest(x, means, Metric::Euclidean)?;
    statistics(x, &codes, means.shape()[0])
}

fn check(t: &Tensor, operand: &'static str, expected: &str, shape_fits: bool, device: &Device, dtype: DType) -> Result<()> {
    if !shape_fits {
        return Err(Error::shape(NAME, operand, expected, t.shape()));
    }
    if t.dtype() != dtype {
        return Err(Error::dtype(NAME, operand, dtype.name(), t.dtype()));
    }
    if t.device() != *device {
        return Err(Error::DeviceMismatch { op: NAME, operand });
    }
    Ok(())
}

fn check_state(usage: &Tensor, sum: &Tensor) -> Result<()> {
    check(usage, "usage", "[K]", usage.shape().len() == 1, &usage.device(), usage.dtype())?;
    let fits = sum.shape().len() == 2 && sum.shape()[0] == usage.elements() && usage.elements().max(sum.elements()) <= i32::MAX as usize;
    check(sum, "sum", "[K, D] for usage [K]", fits, &usage.device(), usage.dtype())
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, k, d) in [(1, 1, 1), (31, 33, 8), (127, 16, 33), (500, 65, 5), (3, 119, 130), (1000, 200, 128)] {
        cases.push(statistics_case(n, k, d, false));
        cases.push(update_case(k, d));
        cases.push(replace_case(k, d));
    }
    cases.push(statistics_case(65536, 1024, 128, true));
    cases.push(unused_case());
    cases
}

fn statistics_case(n: usize, k: usize, d: usize, bench: bool) -> Case {
    Case {
        label: format!("statistics {n}x{d} of {k}"),
        dtype: DType::F32,
        inputs: vec![Input::normal("x", [n, d]), Input::new("codes", [n], Fill::Below(k)).integer(DType::I32)],
        // No cluster has four times its share of the rows.
        outputs: vec![("counts", Check::Exact), ("sums", Check::Within(Tolerance::accumulate(4 * n.div_ceil(k))))],
        run: Box::new(move |t| {
            let (counts, sums) = statistics(&t[0], &t[1], k)?;
            Ok(vec![counts, sums])
        }),
        cost: Cost { bytes: 4 * (n * d + n + k * d + k), flops: n * d },
        bench,
    }
}

fn update_case(k: usize, d: usize) -> Case {
    let (usage, sum) = (|| Fill::Uniform(1.0, 30.0), || Fill::Uniform(-1.0, 1.0));
    Case {
        label: format!("ema and embedding {k}x{d}"),
        dtype: DType::F32,
        inputs: vec![
            Input::new("usage", [k], usage()),
            Input::new("sum", [k, d], sum()),
            Input::new("counts", [k], usage()),
            Input::new("sums", [k, d], sum()),
        ],
        outputs: vec![
            // Constants, products, sum; then a division of two of those. Usage is at least 1.
            ("usage", Check::Within(Tolerance::roundings(3))),
            ("sum", Check::Within(Tolerance::roundings(1).plus(2.0 * ROUNDOFF))),
            ("embedding", Check::Within(Tolerance::roundings(1 + 3 + 1).plus(2.0 * ROUNDOFF))),
        ],
        run: Box::new(move |t| {
            let (mut usage, mut sum) = (t[0].copy()?, t[1].copy()?);
            ema_update(&mut usage, &mut sum, &t[2], &t[3], 0.99)?;
            let embedding = embedding(&usage, &sum, 1e-5)?;
            Ok(vec![usage, sum, embedding])
        }),
        cost: Cost { bytes: 4 * (3 * k * d + 3 * k) + 4 * (2 * k * d + k), flops: 4 * k * (d + 1) },
        bench: false,
    }
}

/// Codewords that nothing uses any more: what is left of their sum is divided by epsilon, not by 0.
fn unused_case() -> Case {
    let usage = Fill::Values(vec![0.0, 2.0, 1e-7]);
    Case {
        label: "embedding of the unused".into(),
        dtype: DType::F32,
        inputs: vec![Input::new("usage", [9], usage), Input::new("sum", [9, 5], Fill::Values(vec![0.0, 1.5, -2.0, 0.25]))],
        outputs: vec![("embedding", Check::Within(Tolerance::roundings(2)))],
        run: Box::new(|t| Ok(vec![embedding(&t[0], &t[1], 1e-5)?])),
        cost: Cost { bytes: 4 * (9 + 2 * 45), flops: 45 },
        bench: false,
    }
}

fn replace_case(k: usize, d: usize) -> Case {
    let rows: Vec<f64> = (0..k).step_by(3).rev().map(|row| row as f64).collect();
    let m = rows.len();
    Case {
        label: format!("replace {m} of {k}x{d}"),
        dtype: DType::F32,
        inputs: vec![
            Input::normal("sum", [k, d]),
            Input::new("usage", [k], Fill::Uniform(0.0, 3.0)),
            Input::new("rows", [m], Fill::Values(rows)).integer(DType::I32),
            Input::normal("samples", [m, d]),
        ],
        outputs: vec![("sum", Check::Within(Tolerance::roundings(2))), ("usage", Check::Within(Tolerance::roundings(1)))],
        run: Box::new(move |t| {
            let (mut sum, mut usage) = (t[0].copy()?, t[1].copy()?);
            replace_rows(&mut sum, &mut usage, &t[2], &t[3], 0.7)?;
            Ok(vec![sum, usage])
        }),
        cost: Cost { bytes: 4 * m * (2 * d + 2), flops: m * d },
        bench: false,
    }
}
