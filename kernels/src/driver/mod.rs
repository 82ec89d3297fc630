//! What CUDA work needs from whatever runs it: a GPU, or the emulator. Both take the same calls with the same arguments,
//! so launch shapes, argument packing, streaming state and graph logic are exercised on machines that have no GPU.

use std::ffi::c_void;

use crate::{DType, Error, Result, Tensor};

pub mod cache;
pub mod doctor;
pub mod dry;
pub mod emulator;
pub mod gpu;
pub mod nvrtc;
pub mod occupancy;
pub mod source;

pub use source::Source;

/// Address in device memory. On the emulator it is a host address inside an allocation with red zones.
pub type DevicePtr = u64;

/// Compute capability x 10, e.g. 75, 80, 90, 120.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Arch(pub u32);

impl Arch {
    /// bf16 arithmetic, tf32, `cp.async` and `mma.m16n8k16` exist from sm_80 on.
    pub fn has_ampere_features(self) -> bool {
        self.0 >= 80
    }
}

/// What a launch may ask for. Read from the device, never assumed.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_threads_per_block: u32,
    /// Largest dynamic + static shared memory of one block, after opting in.
    pub max_shared_bytes: u32,
    pub max_grid: [u32; 3],
    pub multiprocessors: u32,
    pub l2_bytes: usize,
    /// Whether there are cooperative launches.
    pub cooperative: bool,
}

/// Grid and block of one launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared_bytes: u32,
    /// All blocks must be resident at once, because they meet at a grid barrier.
    pub cooperative: bool,
}

/// A matrix whose rows follow each other in device memory, cut into tiles of `tile_rows` rows and [`TILE_BYTES`] across.
#[derive(Clone, Copy, Debug)]
pub struct Tiles {
    pub data: DevicePtr,
    pub dtype: DType,
    pub rows: usize,
    pub columns: usize,
    pub tile_rows: usize,
}

/// A tile's row: what the hardware's swizzle of 128 bytes spreads over all banks.
pub const TILE_BYTES: usize = 128;

/// [`Tiles`] as a kernel's `TensorMap`; only the driver that made it can read it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct TensorMap(pub(crate) [u64; 16]);

impl Tiles {
    /// Tiles of a matrix on this device, whose last axis is a row.
    pub fn of(matrix: &Tensor, tile_rows: usize) -> Tiles {
        let (rows, columns) = (matrix.shape().rows(), matrix.shape().last_dim());
        Tiles { data: matrix.device_ptr(), dtype: matrix.dtype(), rows, columns, tile_rows }
    }

    /// What the hardware asks for: 16-bit numbers, address and rows in whole pieces of 16 bytes, a tile of at most 256 rows.
    pub fn fits(&self) -> bool {
        let bytes = self.dtype.bytes();
        let aligned = self.data.is_multiple_of(16) && (self.columns * bytes).is_multiple_of(16);
        let extents = [self.rows, self.columns].iter().all(|n| (1..=u32::MAX as usize).contains(n));
        matches!(self.dtype, DType::BF16 | DType::F16) && aligned && extents && (1..=256).contains(&self.tile_rows)
    }
}

/// Handles into the driver's own tables; meaningless to another driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FunctionId(pub usize);
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventId(pub usize);
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphId(pub usize);

/// One device with one in-order stream. All work is asynchronous except `copy_out` and `synchronize`.
pub trait Driver: Send + Sync {
    /// Human-readable device name, e.g. `NVIDIA H200` or `emulator sm_90 (ascending)`.
    fn name(&self) -> String;
    fn arch(&self) -> Arch;
    fn limits(&self) -> Limits;

    fn alloc(&self, bytes: usize) -> Result<DevicePtr>;
    /// A pool hands an allocation out: `bytes` of it are in use from now on, with unspecified contents.
    fn lend(&self, _ptr: DevicePtr, _bytes: usize) {}
    /// Work already queued on `ptr` still completes first.
    fn free(&self, ptr: DevicePtr);
    fn copy_in(&self, dst: DevicePtr, src: &[u8]) -> Result<()>;
    /// Waits for all queued work, then copies.
    fn copy_out(&self, dst: &mut [u8], src: DevicePtr) -> Result<()>;
    fn copy(&self, dst: DevicePtr, src: DevicePtr, bytes: usize) -> Result<()>;
    fn fill(&self, dst: DevicePtr, byte: u8, bytes: usize) -> Result<()>;

    /// Compiles `source` if this driver has not yet, and looks `kernel` up in it.
    fn function(&self, source: &'static Source, kernel: &str) -> Result<FunctionId>;

    /// Blocks of so many threads and bytes of dynamic shared memory that a multiprocessor holds at once.
    fn resident_blocks(&self, function: FunctionId, threads: u32, shared_bytes: u32) -> Result<u32>;

    /// How copies of tiles find `tiles`, which must fit. From sm_90 on.
    fn tensor_map(&self, tiles: &Tiles) -> Result<TensorMap>;

    /// Queues one launch. Each element of `args` points at one argument of exactly the kernel's parameter type.
    ///
    /// # Safety
    /// `args` must match the kernel's parameter list in number, order and type, and every device pointer among them must be
    /// valid for what the kernel does with it until the launch has completed.
    unsafe fn launch(&self, function: FunctionId, launch: Launch, args: &mut [*mut c_void]) -> Result<()>;

    /// Whether kernels that can ([`Source::dependents`]) start, from here on, before the kernel before them has ended: programmatic
    /// dependent launch. What they compute is the same. An error says why there is no such thing.
    fn dependent_launches(&self, wanted: bool) -> Result<()> {
        let refused = || Error::Driver { device: self.name(), what: "no kernel starts before the one before has ended".into() };
        if wanted { Err(refused()) } else { Ok(()) }
    }

    fn synchronize(&self) -> Result<()>;

    /// Records a point in the stream; the pair gives elapsed device time in milliseconds.
    fn record_event(&self) -> Result<EventId>;
    fn elapsed_ms(&self, start: EventId, end: EventId) -> Result<f32>;
    fn free_event(&self, event: EventId);

    /// Opens or closes a profiler's window; without a profiler, nothing.
    fn profiler(&self, _open: bool) -> Result<()> {
        Ok(())
    }

    /// Between the two, launches and device-to-device copies are recorded rather than run.
    fn begin_capture(&self) -> Result<()>;
    fn end_capture(&self) -> Result<GraphId>;
    fn replay(&self, graph: GraphId) -> Result<()>;
    fn free_graph(&self, graph: GraphId);
}
