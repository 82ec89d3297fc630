//! What the machine can do at most, measured here and now: the denominators of every share.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde::Serialize;
use swara_kernels::cpu::vectorised;
use swara_kernels::device::Event;
use swara_kernels::driver::source::{ALL_ARCHS, Source};
use swara_kernels::driver::{Arch, Launch};
use swara_kernels::{Cuda, DType, Device, Tensor, args};

use crate::timing::{Limit, repeat};

type Result<T, E = swara_kernels::Error> = std::result::Result<T, E>;

static CEILING: Source = Source { path: "../../benches/src/ceiling.cu", text: include_str!("ceiling.cu"), archs: ALL_ARCHS };

/// Bytes and operations a second.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ceilings {
    /// Reading, on the CPU; reading and writing, by a copy, on a GPU.
    pub bytes: f64,
    /// Fused multiply-adds in f32, two operations each.
    pub f32_flops: f64,
    /// `mma.sync` on 16-bit inputs; where there is none, that of f32.
    pub f16_flops: f64,
    pub bf16_flops: f64,
    /// A library's matrix product in f32, on the CPU.
    pub sgemm_flops: Option<f64>,
    /// Largest share by which two measurements differ: more than a few percent mean a busy or throttled machine.
    pub drift: f64,
}

impl Ceilings {
    pub fn flops(&self, dtype: DType) -> f64 {
        match dtype {
            DType::BF16 => self.bf16_flops,
            DType::F16 => self.f16_flops,
            _ => self.f32_flops,
        }
    }

    /// The least time a run of this cost can take, in seconds.
    pub fn floor(&self, bytes: usize, flops: usize, dtype: DType) -> f64 {
        (bytes as f64 / self.bytes).max(flops as f64 / self.flops(dtype))
    }
}

const LIMIT: Limit = Limit { least: 10, uncertainty: 0.01, time: Duration::from_millis(500) };

/// Runs `work` between two measurements of `device`; of each ceiling the higher counts.
pub fn around<T, E: From<swara_kernels::Error>>(device: &Device, work: impl FnOnce() -> Result<T, E>) -> Result<(T, Ceilings), E> {
    let before = measure(device)?;
    let done = work()?;
    let after = measure(device)?;
    let mut drift: f64 = 0.0;
    let mut high = |a: f64, b: f64| {
        drift = drift.max((a - b).abs() / a.max(b));
        a.max(b)
    };
    let mut ceilings = Ceilings {
        bytes: high(before.bytes, after.bytes),
        f32_flops: high(before.f32_flops, after.f32_flops),
        f16_flops: high(before.f16_flops, after.f16_flops),
        bf16_flops: high(before.bf16_flops, after.bf16_flops),
        sgemm_flops: before.sgemm_flops.zip(after.sgemm_flops).map(|(a, b)| a.max(b)),
        drift: 0.0,
    };
    ceilings.drift = drift;
    Ok((done, ceilings))
}

/// A second or two.
fn measure(device: &Device) -> Result<Ceilings> {
    match device {
        Device::Cpu => {
            let f32_flops = cpu_flops();
            Ok(Ceilings {
                bytes: cpu_read()?,
                f32_flops,
                f16_flops: f32_flops,
                bf16_flops: f32_flops,
                sgemm_flops: Some(cpu_sgemm()),
                drift: 0.0,
            })
        }
        Device::Cuda(cuda) => {
            let f32_flops = cuda_flops(cuda, device, "fma_f32", 8 * 2)?;
            // 16 x 8 x 16 multiply-adds a warp.
            let mma = 8 * 2 * 16 * 8 * 16 / 32;
            let f16_flops = cuda_flops(cuda, device, "mma_f16", mma)?;
            let bf16 = cuda.driver().arch() >= Arch(80);
            let bf16_flops = if bf16 { cuda_flops(cuda, device, "mma_bf16", mma)? } else { f32_flops };
            Ok(Ceilings { bytes: cuda_copy(cuda, device)?, f32_flops, f16_flops, bf16_flops, sgemm_flops: None, drift: 0.0 })
        }
    }
}

/// The best sample: a ceiling is what the machine can do, not what it usually does.
fn best(mut sample: impl FnMut() -> f64) -> f64 {
    match repeat(LIMIT, || Ok::<f64, std::convert::Infallible>(sample())) {
        Ok(samples) => samples.quantile(0.0),
        Err(never) => match never {},
    }
}

fn cpu_read() -> Result<f64> {
    let reading = Reading::new()?;
    let all = reading.0.as_slice()?;
    let mut pieces = all.chunks(all.len() / Reading::PIECES).cycle();
    Ok(1.0 / best(|| Reading::seconds_per_byte(pieces.next().unwrap_or_default())))
}

/// Memory beyond the caches of most CPUs, in large pages as weights are, to be read by all threads. When it goes, this thread keeps it
/// for the next.
pub struct Reading(Tensor);

impl Reading {
    /// A millisecond is found undisturbed where a longer time is not.
    const PIECES: usize = 8;
    /// What a thread reads before it asks for more, 1 MiB.
    const PART: usize = 1 << 18;
    /// What it holds.
    pub const MIB: f64 = 256.0;

    pub fn new() -> Result<Reading> {
        let mut values = Tensor::empty(&Device::Cpu, DType::F32, [64 << 20])?;
        values.as_mut_slice::<f32>()?.fill(1.0);
        Ok(Reading(values))
    }

    /// Seconds that a byte takes now, on average over all of them.
    pub fn now(&self) -> Result<f64> {
        Ok(Reading::seconds_per_byte(self.0.as_slice()?))
    }

    fn seconds_per_byte(values: &[f32]) -> f64 {
        let start = Instant::now();
        let sum: f32 = values.par_chunks(Reading::PART).map(read).sum();
        black_box(sum);
        start.elapsed().as_secs_f64() / size_of_val(values) as f64
    }
}

fn read(part: &[f32]) -> f32 {
    vectorised(
        #[inline(always)]
        || {
            let (blocks, _) = part.as_chunks::<64>();
            let mut sums = [0.0f32; 64];
            for block in blocks {
                for (sum, v) in sums.iter_mut().zip(block) {
                    *sum += v;
                }
            }
            sums.iter().sum()
        },
    )
}

/// Enough multiply-adds a thread to take a tenth of a millisecond.
const YARDSTICK_STEPS: usize = 1 << 12;

/// A fixed amount of arithmetic that needs no memory: how long it takes tells the clock, and who else is on the cores.
pub struct Yardstick(Option<CudaArithmetic>);

impl Yardstick {
    pub fn new(device: &Device) -> Result<Yardstick> {
        match device {
            Device::Cpu => Ok(Yardstick(None)),
            Device::Cuda(cuda) => CudaArithmetic::new(cuda, device, "fma_f32", 512).map(|work| Yardstick(Some(work))),
        }
    }

    /// How long it takes now.
    pub fn seconds(&self) -> Result<f64> {
        match &self.0 {
            None => Ok(cpu_arithmetic(YARDSTICK_STEPS)),
            Some(work) => work.seconds(),
        }
    }
}

fn cpu_flops() -> f64 {
    const STEPS: usize = 1 << 16;
    (2 * STEPS * LANES * rayon::current_num_threads()) as f64 / best(|| cpu_arithmetic(STEPS))
}

/// Enough chains to hide the latency of two units of 512 bits, few enough to stay in registers.
const LANES: usize = 16 * 10;

/// Seconds of `steps` multiply-adds in each of [`LANES`] on each thread.
fn cpu_arithmetic(steps: usize) -> f64 {
    let start = Instant::now();
    let sum: f32 = (0..rayon::current_num_threads())
        .into_par_iter()
        .map(|thread| {
            vectorised(
                #[inline(always)]
                || {
                    let (a, b) = (black_box(1.0 + thread as f32 * 1e-9), black_box(1e-9f32));
                    let mut x: [f32; LANES] = std::array::from_fn(|i| i as f32);
                    for _ in 0..steps {
                        for x in &mut x {
                            *x = x.mul_add(a, b);
                        }
                    }
                    x.iter().sum::<f32>()
                },
            )
        })
        .sum();
    black_box(sum);
    start.elapsed().as_secs_f64()
}

/// Operations a second of a square matrix product by the `gemm` library.
fn cpu_sgemm() -> f64 {
    // A millisecond, as above.
    const N: usize = 512;
    let value = |i: usize| (i % 13) as f32 * 0.25 - 1.5;
    let (a, b): (Vec<f32>, Vec<f32>) = ((0..N * N).map(value).collect(), (0..N * N).map(value).collect());
    let mut c = vec![0.0f32; N * N];
    let product = gemm_f32::gemm::f32::get_gemm_fn();
    let threads = gemm_common::Parallelism::Rayon(rayon::current_num_threads());
    let seconds = best(|| {
        let start = Instant::now();
        let (row, column) = (1, N as isize);
        let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
        // SAFETY: three column-major matrices of N x N, of which only `c` is written.
        unsafe { product(N, N, N, c, column, row, false, a, column, row, b, column, row, 0.0, 1.0, false, false, false, threads) };
        black_box(&c);
        start.elapsed().as_secs_f64()
    });
    (2 * N * N * N) as f64 / seconds
}

/// Device time of `work`, by events around it.
pub(crate) fn device_seconds(cuda: &Cuda, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start: Event = cuda.event()?;
    work()?;
    let end = cuda.event()?;
    cuda.driver().synchronize()?;
    Ok(f64::from(end.since_ms(&start)?) * 1e-3)
}

fn cuda_copy(cuda: &Cuda, device: &Device) -> Result<f64> {
    let bytes = (8 * cuda.driver().limits().l2_bytes).clamp(1 << 20, 1 << 30);
    let source = Tensor::zeros(device, DType::U8, [bytes])?;
    let samples = repeat(LIMIT, || device_seconds(cuda, || source.copy().map(drop)))?;
    Ok(2.0 * bytes as f64 / samples.quantile(0.0))
}

fn cuda_flops(cuda: &Cuda, device: &Device, kernel: &str, flops_a_step: usize) -> Result<f64> {
    let work = CudaArithmetic::new(cuda, device, kernel, 4096)?;
    let samples = repeat(LIMIT, || work.seconds())?;
    Ok(flops_a_step as f64 * f64::from(work.steps) * work.out.elements() as f64 / samples.quantile(0.0))
}

/// One of the kernels in `ceiling.cu`, on every multiprocessor.
struct CudaArithmetic {
    cuda: Cuda,
    kernel: String,
    steps: i32,
    blocks: u32,
    out: Tensor,
}

impl CudaArithmetic {
    const THREADS: u32 = 256;

    fn new(cuda: &Cuda, device: &Device, kernel: &str, steps: i32) -> Result<CudaArithmetic> {
        // On the emulator only that it runs.
        let emulated = cuda.driver().name().starts_with("emulator");
        let (steps, blocks) = if emulated { (2, 1) } else { (steps, 8 * cuda.driver().limits().multiprocessors) };
        let out = Tensor::empty(device, DType::F32, [Self::THREADS as usize * blocks as usize])?;
        Ok(CudaArithmetic { cuda: cuda.clone(), kernel: kernel.to_owned(), steps, blocks, out })
    }

    fn seconds(&self) -> Result<f64> {
        let function = self.cuda.kernel(&CEILING, &self.kernel)?;
        let launch = Launch { grid: [self.blocks, 1, 1], block: [Self::THREADS, 1, 1], shared_bytes: 0, cooperative: false };
        // SAFETY: the kernel takes a pointer and an int, and writes one float a thread.
        device_seconds(&self.cuda, || unsafe { function.launch(launch, args![&self.out, self.steps]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plausible(c: &Ceilings) {
        assert!([c.bytes, c.f32_flops, c.f16_flops, c.bf16_flops].iter().all(|v| v.is_finite() && *v > 0.0), "{c:?}");
        // A cost of either kind is bounded by its own ceiling, and the larger bound counts.
        assert_eq!(c.floor(8, 0, DType::F32), 8.0 / c.bytes);
        assert_eq!(c.floor(1, 1 << 40, DType::BF16), (1u64 << 40) as f64 / c.bf16_flops);
    }

    #[test]
    fn the_cpu_is_measured() {
        plausible(&measure(&Device::Cpu).unwrap());
    }

    #[test]
    fn the_kernels_that_measure_a_gpu_run_on_the_emulator() {
        for device in ["emulator", "emulator:sm_75"] {
            plausible(&measure(&Device::open(device).expect("the emulator needs a C++ compiler")).unwrap());
        }
    }
}
