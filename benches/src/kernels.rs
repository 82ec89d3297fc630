//! Every operation's large cases against the ceilings.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use swara_kernels::case::{Case, Inputs};
use swara_kernels::device::Graph;
use swara_kernels::ops::REGISTRY;
use swara_kernels::{Cuda, DType, Device, Result, Tensor};

use crate::ceilings::{self, Ceilings, Yardstick, device_seconds};
use crate::datasheet;
use crate::timing::{Limit, Samples, Steady, repeat, repeat_steady};

/// One case. Times in microseconds, caches cold; `batch_us` is the time of one of many runs in a row, caches warm.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub op: String,
    pub case: String,
    pub dtype: String,
    pub device: String,
    pub median_us: f64,
    /// The median's 95 % confidence interval.
    pub median_low_us: f64,
    pub median_high_us: f64,
    pub p10_us: f64,
    pub p90_us: f64,
    pub batch_us: f64,
    /// Kept, and dropped because the machine was throttled or busy.
    pub samples: usize,
    pub throttled: usize,
    /// From the shape: what must be moved and computed at least.
    pub bytes: usize,
    pub flops: usize,
    pub gb_s: f64,
    pub gflop_s: f64,
    /// The least time that the measured ceilings allow, divided by the median.
    pub share_of_ceiling: f64,
    /// As `share_of_ceiling`, of what the data sheet of a known GPU promises.
    #[serde(default)]
    pub share_of_datasheet: Option<f64>,
    /// The ceilings of this run: bandwidth, arithmetic in this dtype, a library's matrix product, and by how much they moved.
    pub ceiling_gb_s: f64,
    pub ceiling_gflop_s: f64,
    #[serde(default)]
    pub sgemm_gflop_s: Option<f64>,
    pub drift: f64,
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

/// The cases that can be timed on `device`, each with its operation's name.
pub fn cases(device: &Device, selection: Selection) -> Vec<(&'static str, Case)> {
    REGISTRY
        .iter()
        .filter(|op| selection.ops.is_empty() || selection.ops.iter().any(|name| name == op.name))
        .flat_map(|op| (op.cases)().into_iter().map(|case| (op.name, case)))
        .filter(|(_, case)| case.bench && selection.dtype.is_none_or(|dtype| dtype == case.dtype))
        .filter(|(_, case)| *device != Device::Cpu || !matches!(case.dtype, DType::BF16 | DType::F16))
        .collect()
}

/// Times the selected cases. `progress` is called before each with its operation, its number and how many there are.
pub fn run(device: &Device, selection: Selection, mut progress: impl FnMut(&str, usize, usize)) -> Result<(Vec<Row>, Ceilings)> {
    let chosen = cases(device, selection);
    let time = || -> Result<Vec<Times>> {
        let yardstick = Yardstick::new(device)?;
        let mut times = Vec::with_capacity(chosen.len());
        for (n, (op, case)) in chosen.iter().enumerate() {
            progress(op, n, chosen.len());
            let mut stand = Stand::new(device, case)?;
            let (cold, throttled) =
                repeat_steady(LIMIT, || Ok::<_, swara_kernels::Error>(Steady { yardstick: yardstick.seconds()?, seconds: stand.cold()? }))?;
            times.push(Times { cold, throttled, warm: stand.warm()? });
        }
        Ok(times)
    };
    let (times, ceilings) = ceilings::around(device, time)?;
    let rows = chosen.iter().zip(times).map(|((op, case), times)| row(op, case, device, &times, &ceilings));
    Ok((rows.collect(), ceilings))
}

struct Times {
    cold: Samples,
    throttled: usize,
    warm: f64,
}

fn row(op: &str, case: &Case, device: &Device, Times { cold, throttled, warm }: &Times, ceilings: &Ceilings) -> Row {
    let (seconds, cost) = (cold.median(), case.cost);
    let (low, high) = cold.median_interval(1.96);
    Row {
        op: op.to_owned(),
        case: case.label.clone(),
        dtype: case.dtype.name().to_owned(),
        device: device.name(),
        median_us: seconds * 1e6,
        median_low_us: low * 1e6,
        median_high_us: high * 1e6,
        p10_us: cold.quantile(0.1) * 1e6,
        p90_us: cold.quantile(0.9) * 1e6,
        batch_us: warm * 1e6,
        samples: cold.len(),
        throttled: *throttled,
        bytes: cost.bytes,
        flops: cost.flops,
        gb_s: cost.bytes as f64 / seconds * 1e-9,
        gflop_s: cost.flops as f64 / seconds * 1e-9,
        share_of_ceiling: ceilings.floor(cost.bytes, cost.flops, case.dtype) / seconds,
        share_of_datasheet: datasheet::of(&device.name()).map(|peak| peak.floor(cost.bytes, cost.flops, case.dtype) / seconds),
        ceiling_gb_s: ceilings.bytes * 1e-9,
        ceiling_gflop_s: ceilings.flops(case.dtype) * 1e-9,
        sgemm_gflop_s: ceilings.sgemm_flops.map(|flops| flops * 1e-9),
        drift: ceilings.drift,
    }
}

/// A case ready to be timed: inputs on the device, everything compiled, pools filled.
pub struct Stand<'a> {
    case: &'a Case,
    inputs: Inputs,
    clock: Clock,
}

#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
enum Clock {
    /// With what is written between samples.
    Cpu { flush: Vec<u8> },
    /// The launches of a run, and of [`BATCH`] runs, recorded once and replayed: a launch that the host is late with would be
    /// counted as device time otherwise.
    Cuda { cuda: Cuda, one: Graph, row: Option<Graph>, flush: Tensor, _outputs: Vec<Tensor> },
}

impl<'a> Stand<'a> {
    pub fn new(device: &Device, case: &'a Case) -> Result<Stand<'a>> {
        let inputs = case.upload(device, &case.draw(1), false)?;
        (case.run)(&inputs)?; // compiles, fills pools, and fails before anything is timed
        let clock = match device {
            Device::Cpu => Clock::Cpu { flush: vec![0; CPU_FLUSH] },
            Device::Cuda(cuda) => {
                let (one, outputs) = cuda.capture(|| (case.run)(&inputs))?;
                let flush = Tensor::zeros(device, DType::U8, [(2 * cuda.driver().limits().l2_bytes).max(1 << 20)])?;
                Clock::Cuda { cuda: cuda.clone(), one, row: None, flush, _outputs: outputs }
            }
        };
        Ok(Stand { case, inputs, clock })
    }

    /// Seconds of one run with cold caches.
    ///
    /// On a GPU between two events on the stream. The host queues flush, event, one graph and event, and the flush - twice the
    /// L2, at least as long as the queueing of a graph - keeps the device busy meanwhile: so the first event is not recorded
    /// before the work behind it is queued, which is what a blocking kernel is for.
    pub fn cold(&mut self) -> Result<f64> {
        match &mut self.clock {
            Clock::Cpu { flush } => {
                sweep(flush);
                timed(self.case, &self.inputs)
            }
            Clock::Cuda { cuda, one, flush, .. } => {
                flush.set_zero()?;
                device_seconds(cuda, || one.replay())
            }
        }
    }

    /// As [`cold`](Self::cold), but on the CPU the seconds that all threads together spent computing: what others do to this
    /// process - taking a core away, or both of two - does not count.
    pub fn work(&mut self) -> Result<f64> {
        match &mut self.clock {
            Clock::Cpu { flush } => {
                sweep(flush);
                let before = processor_seconds();
                let wall = timed(self.case, &self.inputs)?;
                Ok(before.zip(processor_seconds()).map_or(wall, |(before, after)| after - before))
            }
            Clock::Cuda { .. } => self.cold(),
        }
    }

    /// Median seconds of one of many runs in a row.
    fn warm(&mut self) -> Result<f64> {
        let limit = Limit { least: BATCH, ..LIMIT };
        match &mut self.clock {
            Clock::Cpu { .. } => Ok(repeat(limit, || timed(self.case, &self.inputs))?.median()),
            Clock::Cuda { cuda, row, flush, .. } => {
                let row = match row {
                    Some(row) => row,
                    None => row.insert(cuda.capture(|| (0..BATCH).try_for_each(|_| (self.case.run)(&self.inputs).map(drop)))?.0),
                };
                let warm = repeat(LIMIT, || {
                    flush.set_zero()?;
                    device_seconds(cuda, || row.replay())
                });
                Ok(warm?.median() / BATCH as f64)
            }
        }
    }
}

/// Leaves nothing else in the caches.
fn sweep(flush: &mut [u8]) {
    flush.iter_mut().step_by(64).for_each(|line| *line = line.wrapping_add(1));
    std::hint::black_box(flush);
}

/// What all threads of this process have computed so far, where the system says.
#[cfg(unix)]
fn processor_seconds() -> Option<f64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the struct that it is given.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    (status == 0).then_some(time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9)
}

#[cfg(not(unix))]
fn processor_seconds() -> Option<f64> {
    None
}

fn timed(case: &Case, inputs: &Inputs) -> Result<f64> {
    let start = Instant::now();
    (case.run)(inputs)?;
    Ok(start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_and_replayed_runs_are_timed_as_on_a_gpu() {
        let device = Device::open("emulator").expect("the emulator needs a C++ compiler");
        for op in REGISTRY {
            let case = (op.cases)().into_iter().find(|case| !case.bench).unwrap();
            let mut stand = Stand::new(&device, &case).unwrap();
            assert!(stand.cold().unwrap() > 0.0 && stand.warm().unwrap() > 0.0, "{}", op.name);
        }
    }
}
