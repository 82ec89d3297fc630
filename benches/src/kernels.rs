//! Every operation's large cases against the ceilings.

use std::time::{Duration, Instant};

use serde::Serialize;
use swara_kernels::case::{Case, Op};
use swara_kernels::ops::REGISTRY;
use swara_kernels::{Cuda, DType, Device, Result, Tensor};

use crate::ceilings::{self, Ceilings, device_seconds};
use crate::timing::{Limit, Samples, repeat};

/// One case. Times in microseconds, caches cold; `batch_us` is the time of one of many runs in a row, caches warm.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub op: &'static str,
    pub case: String,
    pub dtype: &'static str,
    pub device: String,
    pub median_us: f64,
    pub p10_us: f64,
    pub p90_us: f64,
    pub batch_us: f64,
    pub samples: usize,
    /// From the shape: what must be moved and computed at least.
    pub bytes: usize,
    pub flops: usize,
    pub gb_s: f64,
    pub gflop_s: f64,
    /// The least time that the measured ceilings allow, divided by the median.
    pub share_of_ceiling: f64,
}

/// What to time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selection<'a> {
    /// Names of operations; all if empty.
    pub ops: &'a [String],
    pub dtype: Option<DType>,
}

const LIMIT: Limit = Limit { least: 15, uncertainty: 0.01, time: Duration::from_secs(1) };
/// Runs in a row for the warm figure.
const BATCH: usize = 20;
/// Written between samples on the CPU: more than its caches hold.
const CPU_FLUSH: usize = 64 << 20;

/// Times the selected cases. `progress` is called before each with its operation, its number and how many there are.
pub fn run(device: &Device, selection: Selection, mut progress: impl FnMut(&str, usize, usize)) -> Result<(Vec<Row>, Ceilings)> {
    let chosen: Vec<(&Op, Case)> = REGISTRY
        .iter()
        .filter(|op| selection.ops.is_empty() || selection.ops.iter().any(|name| name == op.name))
        .flat_map(|op| (op.cases)().into_iter().map(move |case| (*op, case)))
        .filter(|(_, case)| case.bench && selection.dtype.is_none_or(|dtype| dtype == case.dtype))
        .filter(|(_, case)| *device != Device::Cpu || !matches!(case.dtype, DType::BF16 | DType::F16))
        .collect();
    let time = || -> Result<Vec<(Samples, f64)>> {
        let mut times = Vec::with_capacity(chosen.len());
        for (n, (op, case)) in chosen.iter().enumerate() {
            progress(op.name, n, chosen.len());
            let inputs = case.upload(device, &case.draw(1), false)?;
            (case.run)(&inputs)?; // compiles, fills pools, and fails before anything is timed
            times.push(match device {
                Device::Cpu => on_cpu(case, &inputs)?,
                Device::Cuda(cuda) => on_cuda(cuda, device, case, &inputs)?,
            });
        }
        Ok(times)
    };
    let (times, ceilings) = ceilings::around(device, time)?;
    let row = |((op, case), (cold, warm)): (&(&Op, Case), (Samples, f64))| {
        let (seconds, cost) = (cold.median(), case.cost);
        Row {
            op: op.name,
            case: case.label.clone(),
            dtype: case.dtype.name(),
            device: device.name(),
            median_us: seconds * 1e6,
            p10_us: cold.quantile(0.1) * 1e6,
            p90_us: cold.quantile(0.9) * 1e6,
            batch_us: warm * 1e6,
            samples: cold.len(),
            bytes: cost.bytes,
            flops: cost.flops,
            gb_s: cost.bytes as f64 / seconds * 1e-9,
            gflop_s: cost.flops as f64 / seconds * 1e-9,
            share_of_ceiling: ceilings.floor(cost.bytes, cost.flops, case.dtype) / seconds,
        }
    };
    Ok((chosen.iter().zip(times).map(row).collect(), ceilings))
}

/// Samples with cold caches, and the median of a run in a warm row.
fn on_cpu(case: &Case, inputs: &[Tensor]) -> Result<(Samples, f64)> {
    let mut flush = vec![0u8; CPU_FLUSH];
    let timed = || -> Result<f64> {
        let start = Instant::now();
        (case.run)(inputs)?;
        Ok(start.elapsed().as_secs_f64())
    };
    let cold = repeat(LIMIT, || {
        flush.iter_mut().step_by(64).for_each(|line| *line = line.wrapping_add(1));
        std::hint::black_box(&flush);
        timed()
    })?;
    Ok((cold, repeat(Limit { least: BATCH, ..LIMIT }, timed)?.median()))
}

/// Device time. The launches of a run are recorded once and replayed, so that it does not wait for the host; the flush
/// before it keeps the device busy while the host queues the rest.
fn on_cuda(cuda: &Cuda, device: &Device, case: &Case, inputs: &[Tensor]) -> Result<(Samples, f64)> {
    let (one, _outputs) = cuda.capture(|| (case.run)(inputs))?;
    let (row, ()) = cuda.capture(|| (0..BATCH).try_for_each(|_| (case.run)(inputs).map(drop)))?;
    let mut flush = Tensor::zeros(device, DType::U8, [(2 * cuda.driver().limits().l2_bytes).max(1 << 20)])?;
    let cold = repeat(LIMIT, || {
        flush.set_zero()?;
        device_seconds(cuda, || one.replay())
    })?;
    let warm = repeat(LIMIT, || {
        flush.set_zero()?;
        Ok::<f64, swara_kernels::Error>(device_seconds(cuda, || row.replay())? / BATCH as f64)
    })?;
    Ok((cold, warm.median()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_and_replayed_runs_are_timed_as_on_a_gpu() {
        let device = Device::open("emulator").expect("the emulator needs a C++ compiler");
        let Device::Cuda(cuda) = &device else { panic!("the emulator is a CUDA device") };
        for op in REGISTRY {
            let case = (op.cases)().into_iter().find(|case| !case.bench).unwrap();
            let inputs = case.upload(&device, &case.draw(1), false).unwrap();
            (case.run)(&inputs).unwrap();
            let (cold, warm) = on_cuda(cuda, &device, &case, &inputs).unwrap_or_else(|e| panic!("{}: {e}", op.name));
            assert!(cold.median() > 0.0 && warm > 0.0, "{}", op.name);
        }
    }
}
