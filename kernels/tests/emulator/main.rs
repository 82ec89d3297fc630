//! The emulator: what CUDA text means on it, and that each of its checks can fail.

mod checked;
mod hopper;
mod language;
mod matrix;
mod must_fail;

use swara_kernels::device::Arg;
use swara_kernels::driver::emulator::{Emulator, Options, Schedule};
use swara_kernels::driver::{Arch, Launch, Source};
use swara_kernels::{Device, Element, Result, Tensor};

fn emulator(arch: u32, schedule: Schedule) -> Device {
    let options = Options { arch: Arch(arch), schedule, host_threads: Some(2) };
    Device::on(Box::new(Emulator::new(options).expect("these tests need a C++ compiler")))
}

fn shape(blocks: u32, threads: u32) -> Launch {
    Launch { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes: 0, cooperative: false }
}

fn launch(device: &Device, source: &'static Source, kernel: &str, launch: Launch, args: &mut [Arg]) -> Result<()> {
    let Device::Cuda(cuda) = device else { panic!("not a CUDA device") };
    // SAFETY: each test passes what its kernel takes; the emulator survives what the kernel does with it.
    unsafe { cuda.kernel(source, kernel)?.launch(launch, args) }
}

fn upload<T: Element>(device: &Device, values: &[T]) -> Tensor {
    Tensor::from_slice(device, values, [values.len()]).unwrap()
}

/// Values without a pattern that a wrong index could reproduce, exact in bf16.
fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 + i / 7 * 11) % 61) as f32 / 8.0 - 3.75).collect()
}
