//! A device on which nothing runs: memory is zeros, and launches are noted down. So one learns what an operation would launch, and
//! how, on any architecture, without a GPU, a compiler, or the time.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Arch, DevicePtr, Driver, EventId, FunctionId, GraphId, Launch, Limits, Source, TensorMap, Tiles, occupancy};
use crate::{Device, Error, Result};

/// One launch that did not happen.
#[derive(Clone, Debug)]
pub struct Noted {
    pub source: &'static Source,
    pub kernel: String,
    pub launch: Launch,
}

/// What a dry device was asked to launch.
#[derive(Clone, Default)]
pub struct Notes(Arc<Mutex<Vec<Noted>>>);

impl Notes {
    /// The launches since the last time.
    pub fn take(&self) -> Vec<Noted> {
        std::mem::take(&mut lock(&self.0))
    }
}

/// A dry device of this architecture. It has few processors, as the emulator has, so that small cases launch what large ones would.
pub fn open(arch: Arch) -> (Device, Notes) {
    open_with(arch, |_| {})
}

/// As [`open`], with other limits.
pub fn open_with(arch: Arch, change: impl FnOnce(&mut Limits)) -> (Device, Notes) {
    let mut limits = Limits {
        max_threads_per_block: 1024,
        max_shared_bytes: arch.shared_bytes_per_block(),
        max_grid: [i32::MAX as u32, 65535, 65535],
        multiprocessors: 4,
        l2_bytes: 4 << 20,
        cooperative: true,
    };
    change(&mut limits);
    let notes = Notes::default();
    (Device::on(Box::new(Dry { arch, limits, notes: notes.clone(), state: Mutex::default() })), notes)
}

struct Dry {
    arch: Arch,
    limits: Limits,
    notes: Notes,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By address. Zeroed memory that nobody writes to costs address space alone.
    memory: BTreeMap<DevicePtr, Vec<u8>>,
    functions: Vec<(&'static Source, String)>,
}

impl State {
    fn bytes(&mut self, ptr: DevicePtr, count: usize) -> Option<&mut [u8]> {
        let (base, block) = self.memory.range_mut(..=ptr).next_back()?;
        let start = usize::try_from(ptr - base).ok()?;
        block.get_mut(start..start.checked_add(count)?)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Dry {
    fn refuse(&self, what: impl Into<String>) -> Error {
        Error::Driver { device: self.name(), what: what.into() }
    }

    fn on_bytes(&self, ptr: DevicePtr, count: usize, work: impl FnOnce(&mut [u8])) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        lock(&self.state).bytes(ptr, count).map(work).ok_or_else(|| self.refuse("outside of any allocation"))
    }
}

impl Driver for Dry {
    fn name(&self) -> String {
        format!("dry sm_{}", self.arch.0)
    }

    fn arch(&self) -> Arch {
        self.arch
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        let block = vec![0; bytes.max(1)];
        let ptr = block.as_ptr() as DevicePtr;
        lock(&self.state).memory.insert(ptr, block);
        Ok(ptr)
    }

    fn free(&self, ptr: DevicePtr) {
        lock(&self.state).memory.remove(&ptr);
    }

    fn copy_in(&self, dst: DevicePtr, src: &[u8]) -> Result<()> {
        self.on_bytes(dst, src.len(), |bytes| bytes.copy_from_slice(src))
    }

    fn copy_out(&self, dst: &mut [u8], src: DevicePtr) -> Result<()> {
        let count = dst.len();
        self.on_bytes(src, count, |bytes| dst.copy_from_slice(bytes))
    }

    fn copy(&self, dst: DevicePtr, src: DevicePtr, bytes: usize) -> Result<()> {
        let mut copied = vec![0; bytes];
        self.copy_out(&mut copied, src)?;
        self.copy_in(dst, &copied)
    }

    fn fill(&self, dst: DevicePtr, byte: u8, count: usize) -> Result<()> {
        self.on_bytes(dst, count, |bytes| bytes.fill(byte))
    }

    fn function(&self, source: &'static Source, kernel: &str) -> Result<FunctionId> {
        let mut state = lock(&self.state);
        if let Some(known) = state.functions.iter().position(|(s, k)| std::ptr::eq(*s, source) && k == kernel) {
            return Ok(FunctionId(known));
        }
        if !source.kernels()?.iter().any(|known| known == kernel) {
            return Err(self.refuse(format!("{} has no kernel {kernel}", source.path)));
        }
        state.functions.push((source, kernel.to_owned()));
        Ok(FunctionId(state.functions.len() - 1))
    }

    /// Of kernels with any registers.
    fn resident_blocks(&self, _: FunctionId, threads: u32, shared_bytes: u32) -> Result<u32> {
        Ok(occupancy::occupancy(self.arch, 0, threads, shared_bytes).map_or(0, |occupancy| occupancy.blocks))
    }

    fn tensor_map(&self, _: &Tiles) -> Result<TensorMap> {
        Ok(TensorMap::default())
    }

    unsafe fn launch(&self, function: FunctionId, launch: Launch, _: &mut [*mut c_void]) -> Result<()> {
        let (source, kernel) = match lock(&self.state).functions.get(function.0) {
            Some((source, kernel)) => (*source, kernel.clone()),
            None => return Err(self.refuse("launch of an unknown function")),
        };
        lock(&self.notes.0).push(Noted { source, kernel, launch });
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn record_event(&self) -> Result<EventId> {
        Ok(EventId(0))
    }

    fn elapsed_ms(&self, _: EventId, _: EventId) -> Result<f32> {
        Err(self.refuse("nothing takes time here"))
    }

    fn free_event(&self, _: EventId) {}

    fn begin_capture(&self) -> Result<()> {
        Err(self.refuse("there is nothing to capture"))
    }

    fn end_capture(&self) -> Result<GraphId> {
        Err(self.refuse("there is nothing to capture"))
    }

    fn replay(&self, _: GraphId) -> Result<()> {
        Err(self.refuse("there is nothing to replay"))
    }

    fn free_graph(&self, _: GraphId) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::elementwise;
    use crate::{DType, Tensor};

    #[test]
    fn launches_are_noted_and_nothing_is_computed() {
        let (device, notes) = open(Arch(80));
        let x = Tensor::from_slice(&device, &[1.0f32; 1000], [1000]).unwrap();
        let y = elementwise::add(&x, &x).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [0.0; 1000]);
        assert_eq!(x.copy().unwrap().to_vec::<f32>().unwrap(), [1.0; 1000]);
        let noted = notes.take();
        assert_eq!((noted.len(), noted[0].kernel.as_str(), noted[0].launch.block), (1, "binary_f32", [256, 1, 1]));
        assert!(notes.take().is_empty());
        assert_eq!(Tensor::zeros(&device, DType::F32, [0]).unwrap().to_vec::<f32>().unwrap(), []);
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let (device, _) = open(Arch(80));
        let Device::Cuda(cuda) = &device else { unreachable!() };
        static SOURCE: Source = Source { path: "k.cu", text: "extern \"C\" __global__ void k() {}", archs: &[80] };
        assert!(cuda.kernel(&SOURCE, "k").is_ok() && cuda.kernel(&SOURCE, "l").is_err());
        let driver = cuda.driver();
        let ptr = driver.alloc(16).unwrap();
        assert!(driver.copy_in(ptr + 8, &[0; 8]).is_ok());
        assert!(driver.copy_in(ptr + 8, &[0; 9]).is_err() && driver.copy_in(1, &[0]).is_err() && driver.copy_in(u64::MAX, &[0]).is_err());
        // SAFETY: nothing is launched.
        assert!(
            unsafe { driver.launch(FunctionId(7), Launch { grid: [1; 3], block: [1; 3], shared_bytes: 0, cooperative: false }, &mut []) }
                .is_err()
        );
    }
}
