use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::driver::{DevicePtr, FunctionId};
use crate::driver::{Driver, EventId, GraphId, Launch, Source, TensorMap};
use crate::span::timeline;
use crate::{Error, Result, Tensor};

/// Where a tensor lives and where its operations run. Cheap to clone; equal if it is the same device.
#[derive(Clone)]
pub enum Device {
    Cpu,
    Cuda(Cuda),
}

impl Device {
    /// `auto`, `cpu`, `cuda`, `cuda:1`, `emulator`, `emulator:sm_75`.
    ///
    /// `auto` is CUDA if it is usable and the CPU otherwise; the caller reports which it became.
    pub fn open(spec: &str) -> Result<Device> {
        let unknown = || Error::argument("device", format!("unknown device {spec:?}; expected auto, cpu, cuda[:N] or emulator[:sm_XX]"));
        let (kind, detail) = spec.split_once(':').map_or((spec, None), |(k, d)| (k, Some(d)));
        match (kind, detail) {
            ("auto", None) => Ok(crate::driver::gpu::open(0).map(Device::on).unwrap_or(Device::Cpu)),
            ("cpu", None) => Ok(Device::Cpu),
            ("cuda", ordinal) => {
                let ordinal = ordinal.unwrap_or("0").parse().map_err(|_| unknown())?;
                crate::driver::gpu::open(ordinal).map(Device::on)
            }
            ("emulator", arch) => crate::driver::emulator::open(arch).map(|emulator| Device::on(Box::new(emulator))),
            _ => Err(unknown()),
        }
    }

    pub fn on(driver: Box<dyn Driver>) -> Device {
        Device::Cuda(Cuda {
            inner: Arc::new(Inner { driver, pool: Mutex::default(), launches: AtomicU64::new(0), kernels: AtomicU64::new(0) }),
        })
    }

    pub fn name(&self) -> String {
        match self {
            Device::Cpu => "cpu".to_owned(),
            Device::Cuda(cuda) => cuda.driver().name(),
        }
    }

    /// Runs `work`, a step of many short operations, on the CPU with all threads at hand: [`crate::cpu::team`].
    pub fn step<R>(&self, work: impl FnOnce() -> R) -> R {
        match self {
            Device::Cpu => crate::cpu::team::team(work),
            Device::Cuda(_) => work(),
        }
    }

    /// As [`Driver::dependent_launches`]. Neither run nor timed on a GPU yet.
    ///
    /// # Errors
    /// [`Error::Driver`] that says why, if they are wanted and not to be had.
    pub fn dependent_launches(&self, wanted: bool) -> Result<()> {
        match self {
            Device::Cpu if wanted => Err(Error::Driver { device: self.name(), what: "there are no launches".into() }),
            Device::Cpu => Ok(()),
            Device::Cuda(cuda) => cuda.driver().dependent_launches(wanted),
        }
    }

    /// Waits until all queued work has run. The CPU has no queue.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(cuda) => cuda.driver().synchronize(),
        }
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Device::Cpu, Device::Cpu) => true,
            (Device::Cuda(a), Device::Cuda(b)) => a.driver_is(b),
            _ => false,
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// A CUDA device: a driver and the memory pool in front of it.
#[derive(Clone)]
pub struct Cuda {
    inner: Arc<Inner>,
}

struct Inner {
    driver: Box<dyn Driver>,
    pool: Mutex<Pool>,
    launches: AtomicU64,
    kernels: AtomicU64,
}

/// Freed blocks by size, handed out again in stream order. While a graph is captured, what it allocates stays its own:
/// replays write to those addresses, so nobody else may have them.
#[derive(Default)]
struct Pool {
    free: HashMap<usize, Vec<DevicePtr>>,
    capture: Option<CaptureBlocks>,
    /// Bytes of all blocks, free or not.
    reserved: usize,
}

#[derive(Default)]
struct CaptureBlocks {
    owned: HashMap<DevicePtr, usize>,
    free: HashMap<usize, Vec<DevicePtr>>,
}

impl Cuda {
    pub fn driver(&self) -> &dyn Driver {
        &*self.inner.driver
    }

    /// What the host has queued so far: kernels by themselves, and graphs.
    pub fn launches(&self) -> u64 {
        self.inner.launches.load(Ordering::Relaxed)
    }

    /// Kernels queued so far, by themselves or in graphs.
    pub fn kernels(&self) -> u64 {
        self.inner.kernels.load(Ordering::Relaxed)
    }

    /// Device memory that was taken so far, which is also the most that there was: what is freed is kept for later.
    pub fn reserved_bytes(&self) -> usize {
        self.lock().reserved
    }

    pub(crate) fn driver_is(&self, other: &Cuda) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    pub(crate) fn allocate(&self, bytes: usize) -> Result<DeviceBuffer> {
        let used = bytes;
        let bytes = bytes.max(1).next_multiple_of(256);
        let mut pool = self.lock();
        let recycled = pool.capture.as_mut().and_then(|capture| capture.free.get_mut(&bytes)?.pop());
        // What was freed before is nobody's: a graph may have it as well.
        let recycled = recycled.or_else(|| pool.free.get_mut(&bytes)?.pop());
        let ptr = match recycled {
            Some(ptr) => ptr,
            None => {
                let ptr = self.driver().alloc(bytes)?;
                pool.reserved += bytes;
                ptr
            }
        };
        if let Some(capture) = &mut pool.capture {
            capture.owned.insert(ptr, bytes);
        }
        drop(pool);
        self.driver().lend(ptr, used);
        Ok(DeviceBuffer { ptr, bytes, cuda: self.clone() })
    }

    /// Records the launches of `work` into a graph; nothing runs until [`Graph::replay`]. Tensors that `work` returns or
    /// drops keep their addresses for as long as the graph lives. Until `work` is done no other thread may use the device: what it
    /// launched would become part of the graph.
    pub fn capture<T, E: From<Error>>(&self, work: impl FnOnce() -> std::result::Result<T, E>) -> std::result::Result<(Graph, T), E> {
        {
            let mut pool = self.lock();
            if pool.capture.is_some() {
                return Err(Error::argument("capture", "a capture is already under way on this device").into());
            }
            pool.capture = Some(CaptureBlocks::default());
        }
        let before = self.kernels();
        let recorded = self.driver().begin_capture().map_err(E::from).and_then(|()| {
            let result = work();
            let graph = self.driver().end_capture();
            match (result, graph) {
                (Ok(value), Ok(id)) => Ok((id, value)),
                (Ok(_), Err(error)) => Err(error.into()),
                (Err(error), graph) => {
                    graph.into_iter().for_each(|id| self.driver().free_graph(id));
                    Err(error)
                }
            }
        });
        let kernels = self.kernels() - before;
        self.inner.kernels.fetch_sub(kernels, Ordering::Relaxed);
        self.inner.launches.fetch_sub(kernels, Ordering::Relaxed);
        let mut pool = self.lock();
        let blocks = pool.capture.take().unwrap_or_default().free;
        match recorded {
            Ok((id, value)) => {
                drop(pool);
                Ok((Graph { id, kernels, blocks, cuda: self.clone() }, value))
            }
            Err(error) => {
                // Nothing will write there.
                blocks.into_iter().for_each(|(bytes, list)| pool.free.entry(bytes).or_default().extend(list));
                Err(error)
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pool> {
        self.inner.pool.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Looks `kernel` up in `source`, compiling on first use.
    pub fn kernel(&self, source: &'static Source, kernel: &str) -> Result<Kernel<'_>> {
        let function = self.driver().function(source, kernel)?;
        Ok(Kernel { cuda: self, function, recorded: self.recording().then(|| kernel.into()) })
    }

    pub fn event(&self) -> Result<Event> {
        Ok(Event { id: self.driver().record_event()?, cuda: self.clone() })
    }

    /// Whether a timeline wants this launch: captured ones do not run yet.
    fn recording(&self) -> bool {
        timeline::recording() && self.lock().capture.is_none()
    }

    /// Runs `work` inside a window that profilers can be told to watch alone (`ncu --profile-from-start off`, `nsys profile
    /// --capture-range=cudaProfilerApi`), and waits for it.
    pub fn profiled<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.driver().synchronize()?;
        self.driver().profiler(true)?;
        let result = work();
        let waited = self.driver().synchronize();
        let closed = self.driver().profiler(false);
        let result = result?;
        waited.and(closed).map(|()| result)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let pool = self.pool.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        for ptr in pool.free.drain().flat_map(|(_, list)| list) {
            self.driver.free(ptr);
        }
    }
}

/// Owned device memory; goes back to the pool when dropped.
pub(crate) struct DeviceBuffer {
    pub(crate) ptr: DevicePtr,
    bytes: usize,
    pub(crate) cuda: Cuda,
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        let mut pool = self.cuda.lock();
        match &mut pool.capture {
            Some(capture) if capture.owned.contains_key(&self.ptr) => capture.free.entry(self.bytes).or_default().push(self.ptr),
            _ => pool.free.entry(self.bytes).or_default().push(self.ptr),
        }
    }
}

/// A recorded sequence of launches and the memory they write to.
pub struct Graph {
    id: GraphId,
    kernels: u64,
    blocks: HashMap<usize, Vec<DevicePtr>>,
    cuda: Cuda,
}

impl Graph {
    pub fn replay(&self) -> Result<()> {
        self.cuda.inner.launches.fetch_add(1, Ordering::Relaxed);
        self.cuda.inner.kernels.fetch_add(self.kernels, Ordering::Relaxed);
        self.cuda.driver().replay(self.id)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.cuda.driver().free_graph(self.id);
        let mut pool = self.cuda.lock();
        for (bytes, list) in self.blocks.drain() {
            pool.free.entry(bytes).or_default().extend(list);
        }
    }
}

/// A point in the stream.
pub struct Event {
    id: EventId,
    cuda: Cuda,
}

impl Event {
    /// Device time from `start` to `self`, in milliseconds.
    pub fn since_ms(&self, start: &Event) -> Result<f32> {
        self.cuda.driver().elapsed_ms(start.id, self.id)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.cuda.driver().free_event(self.id);
    }
}

/// A kernel ready to be launched.
pub struct Kernel<'a> {
    cuda: &'a Cuda,
    function: FunctionId,
    /// Its name, if a timeline wants it.
    recorded: Option<Box<str>>,
}

impl Kernel<'_> {
    /// Blocks of so many threads and bytes of dynamic shared memory that a multiprocessor holds at once.
    pub fn resident_blocks(&self, threads: u32, shared_bytes: u32) -> Result<u32> {
        self.cuda.driver().resident_blocks(self.function, threads, shared_bytes)
    }

    /// Queues the launch.
    ///
    /// # Safety
    /// `args` must match the kernel's parameter list in number, order and type, and the kernel must stay inside the tensors
    /// it is given.
    pub unsafe fn launch(&self, launch: Launch, args: &mut [Arg]) -> Result<()> {
        const MAX_ARGS: usize = 32;
        if args.len() > MAX_ARGS {
            return Err(Error::argument("launch", format!("{} arguments exceed {MAX_ARGS}", args.len())));
        }
        if launch.grid.contains(&0) {
            return Ok(()); // nothing to do for an empty tensor; the driver would refuse the launch
        }
        let mut pointers = [std::ptr::null_mut::<c_void>(); MAX_ARGS];
        for (pointer, arg) in pointers.iter_mut().zip(args.iter_mut()) {
            *pointer = arg.pointer();
        }
        let start = self.recorded.is_some().then(|| self.cuda.event()).transpose()?;
        self.cuda.inner.launches.fetch_add(1, Ordering::Relaxed);
        self.cuda.inner.kernels.fetch_add(1, Ordering::Relaxed);
        // SAFETY: forwarded from this function's own contract.
        unsafe { self.cuda.driver().launch(self.function, launch, &mut pointers[..args.len()])? };
        if let (Some(start), Some(name)) = (start, &self.recorded) {
            timeline::launched(self.cuda, name.clone(), launch, start, self.cuda.event()?);
        }
        Ok(())
    }
}

/// One kernel argument: a device pointer or a scalar, stored by value, a tensor map, or a struct.
#[derive(Clone, Copy)]
pub enum Arg<'a> {
    Bits(u64),
    Map(&'a TensorMap),
    /// A struct, as it lies in memory.
    Words(&'a [u64]),
}

impl Arg<'_> {
    /// Where the driver finds it; it is copied and not written to.
    fn pointer(&mut self) -> *mut c_void {
        match self {
            Arg::Bits(bits) => std::ptr::from_mut(bits).cast(),
            Arg::Map(map) => std::ptr::from_ref(*map).cast_mut().cast(),
            Arg::Words(words) => words.as_ptr().cast_mut().cast(),
        }
    }
}

impl<'a> From<&'a TensorMap> for Arg<'a> {
    fn from(map: &'a TensorMap) -> Self {
        Arg::Map(map)
    }
}
impl<'a> From<&'a [u64]> for Arg<'a> {
    fn from(words: &'a [u64]) -> Self {
        Arg::Words(words)
    }
}
impl From<&Tensor> for Arg<'_> {
    fn from(t: &Tensor) -> Self {
        Arg::Bits(t.device_ptr())
    }
}
impl From<&mut Tensor> for Arg<'_> {
    fn from(t: &mut Tensor) -> Self {
        Arg::Bits(t.device_ptr())
    }
}
impl From<Option<&Tensor>> for Arg<'_> {
    /// An absent tensor is the null pointer.
    fn from(t: Option<&Tensor>) -> Self {
        Arg::Bits(t.map_or(0, Tensor::device_ptr))
    }
}
impl From<i32> for Arg<'_> {
    fn from(v: i32) -> Self {
        Arg::Bits(v as u32 as u64)
    }
}
impl From<u32> for Arg<'_> {
    fn from(v: u32) -> Self {
        Arg::Bits(v as u64)
    }
}
impl From<f32> for Arg<'_> {
    fn from(v: f32) -> Self {
        Arg::Bits(v.to_bits() as u64)
    }
}
impl From<u64> for Arg<'_> {
    fn from(v: u64) -> Self {
        Arg::Bits(v)
    }
}

/// `args![y, x, n as i32]`: packs tensors and scalars for [`Kernel::launch`].
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &mut [$($crate::device::Arg::from($arg)),*] };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::elementwise;
    use crate::{DType, Tensor};

    /// The emulator, where there is one.
    fn emulator() -> Option<(Device, Cuda)> {
        match Device::open("emulator") {
            Ok(device @ Device::Cuda(_)) => {
                let Device::Cuda(cuda) = &device else { return None };
                let cuda = cuda.clone();
                Some((device, cuda))
            }
            other => {
                println!("skipped: the emulator, {other:?}");
                None
            }
        }
    }

    #[test]
    fn graphs_that_are_made_and_dropped_take_no_more_memory() {
        let Some((device, cuda)) = emulator() else { return };
        let x = Tensor::from_slice(&device, &[1f32, 2.0, 3.0], [3]).unwrap();
        let mut reserved = Vec::new();
        for _ in 0..4 {
            let (graph, y) = cuda.capture(|| elementwise::add(&x, &elementwise::add(&x, &x)?)).unwrap();
            graph.replay().unwrap();
            assert_eq!(y.to_vec::<f32>().unwrap(), [3.0, 6.0, 9.0]);
            reserved.push(cuda.reserved_bytes());
        }
        assert!(reserved[1..].iter().all(|bytes| *bytes == reserved[0]), "{reserved:?}");
    }

    #[test]
    fn a_capture_that_fails_leaves_nothing_behind() {
        let Some((device, cuda)) = emulator() else { return };
        let x = Tensor::from_slice(&device, &[1f32, 2.0, 3.0], [3]).unwrap();
        let wrong = Tensor::zeros(&device, DType::F32, [4]).unwrap();
        let mut reserved = Vec::new();
        for _ in 0..3 {
            let failed = cuda.capture(|| elementwise::add(&elementwise::add(&x, &x)?, &wrong));
            assert!(failed.is_err());
            reserved.push(cuda.reserved_bytes());
        }
        assert!(reserved[1..].iter().all(|bytes| *bytes == reserved[0]), "{reserved:?}");
        let (graph, y) = cuda.capture(|| elementwise::add(&x, &x)).unwrap();
        graph.replay().unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [2.0, 4.0, 6.0]);
    }
}
