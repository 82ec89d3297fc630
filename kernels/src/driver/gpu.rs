//! A real GPU through the CUDA driver.
//!
//! `libcuda` is loaded at run time, and everything here is the plain driver API (cudarc's `sys` level): one context, one
//! non-default stream, no per-allocation events, nothing that a driver for CUDA 12.0 lacks. cudarc panics on a missing library
//! or symbol; [`open`] looks first, so that it never comes to that.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, RwLock};

use cudarc::driver::sys;
use sys::CUdevice_attribute_enum as DeviceAttribute;
use sys::CUfunction_attribute_enum as FunctionAttribute;

use super::cache::Cache;
use super::nvrtc::{self, Nvrtc};
use super::{Arch, DevicePtr, Driver, EventId, FunctionId, GraphId, Launch, Limits, Source, TILE_BYTES, TensorMap, Tiles};
use crate::{DType, Error, Result};

/// The driver API version whose symbols are used.
const OLDEST_DRIVER: i32 = 12000;
const OLDEST_ARCH: u32 = 75;
/// The first driver that captures dependent launches into graphs, and the first architecture that has them.
const DEPENDENTS_DRIVER: i32 = 12030;
const DEPENDENTS_ARCH: Arch = Arch(90);
/// Page-locked memory through which small uploads go, so that they need not wait for the device.
const STAGING_BYTES: usize = 4 << 20;

/// Opens GPU number `ordinal`.
///
/// # Errors
/// [`Error::Unavailable`], with what to do about it, if there is no driver, no such device, no NVRTC, or any of them is too old.
pub fn open(ordinal: usize) -> Result<Box<dyn Driver>> {
    let driver_version = initialise(ordinal)?;
    Ok(Box::new(Gpu::open(ordinal, driver_version)?))
}

/// One GPU as the driver describes it.
#[derive(Clone, Debug)]
pub struct Description {
    pub name: String,
    pub arch: Arch,
    pub memory_bytes: usize,
}

/// The driver's CUDA version (12090 is 12.9) and the devices it shows. Makes no context.
pub fn describe() -> Result<(i32, Vec<Description>)> {
    let version = initialise(0)?;
    let devices = (0..count()?).map(|ordinal| describe_device(device(ordinal)?)).collect::<Result<_>>()?;
    Ok((version, devices))
}

fn unavailable(ordinal: usize, why: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Unavailable { device: format!("cuda:{ordinal}"), why: why.into(), hint: Some(hint.into()) }
}

/// Loads the driver, checks its age and starts it. Only after this may any other symbol be called.
fn initialise(ordinal: usize) -> Result<i32> {
    const INSTALL: &str = "install the NVIDIA driver (nvidia-smi must work); give a container its GPUs (--gpus all); or use --device cpu";
    // SAFETY: probing loads the library, nothing more; the two symbols are looked up before they are called.
    unsafe {
        if !sys::is_culib_present() {
            return Err(unavailable(ordinal, "libcuda.so is not on this machine", INSTALL));
        }
        for symbol in ["cuInit\0", "cuDriverGetVersion\0"] {
            if sys::culib().get::<unsafe extern "C" fn()>(symbol.as_bytes()).is_err() {
                return Err(unavailable(ordinal, "libcuda.so is not a CUDA driver", INSTALL));
            }
        }
        let mut version = 0;
        if sys::cuDriverGetVersion(&mut version) as u32 != 0 || version < OLDEST_DRIVER {
            let why = format!("the driver is for CUDA {}, and 12.0 is needed", dotted(version));
            return Err(unavailable(ordinal, why, "update the NVIDIA driver to 525 or newer; or use --device cpu"));
        }
        let status = sys::cuInit(0);
        if status as u32 != 0 {
            return Err(unavailable(ordinal, explain(status), INSTALL));
        }
        Ok(version)
    }
}

/// 12090 -> "12.9"
pub fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn count() -> Result<usize> {
    let mut count = 0;
    // SAFETY: plain out-parameter.
    check("cuda", "counting devices", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    Ok(count.max(0) as usize)
}

fn device(ordinal: usize) -> Result<sys::CUdevice> {
    let found = count()?;
    if ordinal >= found {
        let hint = format!("the driver shows {found} (CUDA_VISIBLE_DEVICES hides others)");
        return Err(unavailable(ordinal, "there is no such device", hint));
    }
    let mut device = 0;
    // SAFETY: plain out-parameter.
    check("cuda", "opening the device", unsafe { sys::cuDeviceGet(&mut device, ordinal as c_int) })?;
    Ok(device)
}

fn attribute(device: sys::CUdevice, attribute: DeviceAttribute) -> Result<u32> {
    let mut value = 0;
    // SAFETY: plain out-parameter.
    check("cuda", "asking the device", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
    Ok(value.max(0) as u32)
}

fn describe_device(device: sys::CUdevice) -> Result<Description> {
    let mut name = [0u8; 256];
    let mut memory_bytes = 0;
    // SAFETY: the buffer is as long as stated; the driver terminates the name.
    unsafe {
        check("cuda", "asking the device's name", sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int, device))?;
        check("cuda", "asking the device's memory", sys::cuDeviceTotalMem_v2(&mut memory_bytes, device))?;
    }
    let name = CStr::from_bytes_until_nul(&name).map_or("GPU".into(), |name| name.to_string_lossy().into_owned());
    let major = attribute(device, DeviceAttribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(device, DeviceAttribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(Description { name, arch: Arch(10 * major + minor), memory_bytes })
}

/// `CUDA_ERROR_X: what it means`. A newer driver may know statuses that the bindings do not, so the number is all that is looked at.
fn explain(status: sys::CUresult) -> String {
    let number = status as u32;
    let text = |ask: unsafe fn(sys::CUresult, *mut *const std::ffi::c_char) -> sys::CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: on success the driver gives a static, terminated string.
        unsafe { (ask(status, &mut text) as u32 == 0 && !text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned()) }
    };
    match (text(sys::cuGetErrorName), text(sys::cuGetErrorString)) {
        (Some(name), Some(meaning)) => format!("{name}: {meaning}"),
        _ => format!("CUDA error {number}"),
    }
}

/// The first NVRTC that knows this GPU, and whose cubins this driver takes: those of its own major version or an older one.
fn find_nvrtc(driver_version: i32, arch: Arch) -> Result<Nvrtc> {
    Nvrtc::find(|nvrtc| {
        let (major, minor) = nvrtc.version();
        if major > driver_version as u32 / 1000 {
            return Err(format!("is {major}.{minor}, newer than the driver's CUDA {}", dotted(driver_version)));
        }
        nvrtc.target(arch).map(drop).ok_or(format!("is {major}.{minor}, too old for sm_{}", arch.0))
    })
}

fn check(device: &str, what: &str, status: sys::CUresult) -> Result<()> {
    if status as u32 == 0 {
        return Ok(());
    }
    Err(Error::Driver { device: device.to_owned(), what: format!("{what}: {}", explain(status)) })
}

struct Gpu {
    name: String,
    arch: Arch,
    limits: Limits,
    nvrtc: Nvrtc,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    driver_version: i32,
    capturing: AtomicBool,
    /// Whether dependent launches are wanted.
    dependents: AtomicBool,
    /// Whether the last thing that was queued is a kernel that a dependent may follow.
    after_kernel: AtomicBool,
    modules: Mutex<HashMap<*const Source, Module>>,
    functions: RwLock<Vec<Function>>,
    events: Mutex<Table<sys::CUevent>>,
    graphs: Mutex<Table<sys::CUgraphExec>>,
    staging: Mutex<Staging>,
}

// SAFETY: the raw pointers are handles of the driver, which takes them from any thread in which their context is current (every
// method makes it so); what Rust mutates is behind locks.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

struct Module {
    handle: sys::CUmodule,
    functions: HashMap<String, FunctionId>,
}

struct Function {
    name: String,
    handle: sys::CUfunction,
    max_threads: u32,
    max_dynamic_shared: u32,
    /// Whether it is one of its source's `dependents`.
    dependent: bool,
}

struct Staging {
    base: *mut u8,
    used: usize,
}

impl Gpu {
    fn open(ordinal: usize, driver_version: i32) -> Result<Gpu> {
        let device = device(ordinal)?;
        let Description { name, arch, .. } = describe_device(device)?;
        if arch.0 < OLDEST_ARCH {
            let why = format!("{name} has compute capability {}.{}, and 7.5 is needed", arch.0 / 10, arch.0 % 10);
            return Err(unavailable(ordinal, why, "use a Turing or newer GPU, or --device cpu"));
        }
        let nvrtc = find_nvrtc(driver_version, arch)?;
        let limits = Limits {
            max_threads_per_block: attribute(device, DeviceAttribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            max_shared_bytes: attribute(device, DeviceAttribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            max_grid: [
                attribute(device, DeviceAttribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X)?,
                attribute(device, DeviceAttribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y)?,
                attribute(device, DeviceAttribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z)?,
            ],
            multiprocessors: attribute(device, DeviceAttribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            l2_bytes: attribute(device, DeviceAttribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
            cooperative: attribute(device, DeviceAttribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)? != 0,
        };
        let mut context = null_mut();
        // SAFETY: plain out-parameter; released in Drop.
        let status = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) };
        if status as u32 != 0 {
            return Err(unavailable(ordinal, explain(status), "another process may hold the GPU: see nvidia-smi"));
        }
        let mut gpu = Gpu {
            name,
            arch,
            limits,
            nvrtc,
            device,
            context,
            stream: null_mut(),
            driver_version,
            capturing: AtomicBool::new(false),
            dependents: AtomicBool::new(false),
            after_kernel: AtomicBool::new(false),
            modules: Mutex::default(),
            functions: RwLock::default(),
            events: Mutex::default(),
            graphs: Mutex::default(),
            staging: Mutex::new(Staging { base: null_mut(), used: 0 }),
        };
        gpu.enter()?;
        let mut staging = null_mut();
        // SAFETY: plain out-parameters; both are released in Drop. The stream does not wait for the legacy default stream.
        unsafe {
            let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
            check(&gpu.name, "making a stream", sys::cuStreamCreate(&mut gpu.stream, flags))?;
            gpu.check("allocating page-locked memory", sys::cuMemHostAlloc(&mut staging, STAGING_BYTES, 0))?;
        }
        lock(&gpu.staging).base = staging.cast();
        Ok(gpu)
    }

    fn check(&self, what: &str, status: sys::CUresult) -> Result<()> {
        check(&self.name, what, status)
    }

    fn refuse(&self, what: impl Into<String>) -> Error {
        Error::Driver { device: self.name.clone(), what: what.into() }
    }

    /// Makes the context current in the calling thread.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained until Drop.
        self.check("entering the context", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    /// As [`Gpu::enter`], for what cannot be part of a graph.
    fn enter_eagerly(&self, what: &str) -> Result<()> {
        if self.capturing.load(Ordering::Relaxed) {
            return Err(self.refuse(format!("{what} cannot be captured into a graph")));
        }
        self.enter()
    }

    /// Something else than a kernel is queued.
    fn no_kernel(&self) {
        self.after_kernel.store(false, Ordering::Relaxed);
    }

    fn wait(&self, what: &str) -> Result<()> {
        // SAFETY: the stream lives until Drop.
        self.check(what, unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    fn compile(&self, source: &Source) -> Result<Vec<u8>> {
        let arch = self.arch.0;
        let target = self.nvrtc.target(self.arch).ok_or_else(|| self.refuse(format!("NVRTC cannot compile for sm_{arch}")))?;
        let text = source.expanded()?;
        let build = || self.nvrtc.compile(source.path, &text, &target, &[]).map(|compiled| compiled.cubin);
        let label = source.path.rsplit('/').next().unwrap_or(source.path).trim_end_matches(".cu");
        let (options, identity) = (nvrtc::OPTIONS.join(" "), self.nvrtc.identity());
        let key = [source.path, &text, &options, &target, &identity].map(str::as_bytes);
        match Cache::open() {
            Ok(cache) => Ok(cache.entry(&format!("{label}-{target}"), "cubin", &key, build)?.bytes),
            Err(_) => build(), // works without a disk, only slower; `doctor` says what is wrong with it
        }
    }

    fn load(&self, source: &Source) -> Result<Module> {
        let cubin = self.compile(source)?;
        let mut handle = null_mut();
        // SAFETY: a cubin carries its own length; it was made by NVRTC or its hash was checked.
        self.check(&format!("loading {}", source.path), unsafe { sys::cuModuleLoadData(&mut handle, cubin.as_ptr().cast()) })?;
        Ok(Module { handle, functions: HashMap::new() })
    }

    fn look_up(&self, module: &Module, source: &Source, kernel: &str) -> Result<Function> {
        let refuse = || self.refuse(format!("{} has no kernel {kernel}", source.path));
        let symbol = CString::new(kernel).map_err(|_| refuse())?;
        let mut handle = null_mut();
        // SAFETY: the module is loaded until Drop.
        if unsafe { sys::cuModuleGetFunction(&mut handle, module.handle, symbol.as_ptr()) } as u32 != 0 {
            return Err(refuse());
        }
        let ask = |attribute| -> Result<u32> {
            let mut value = 0;
            // SAFETY: plain out-parameter.
            self.check(kernel, unsafe { sys::cuFuncGetAttribute(&mut value, attribute, handle) })?;
            Ok(value.max(0) as u32)
        };
        let max_threads = ask(FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
        let static_shared = ask(FunctionAttribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        let max_dynamic_shared = self.limits.max_shared_bytes.saturating_sub(static_shared);
        let opt_in = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: plain call. It permits, it does not reserve.
        self.check(kernel, unsafe { sys::cuFuncSetAttribute(handle, opt_in, max_dynamic_shared as c_int) })?;
        let dependent = source.dependents()?.iter().any(|dependent| dependent == kernel);
        Ok(Function { name: kernel.to_owned(), handle, max_threads, max_dynamic_shared, dependent })
    }

    /// The driver's own refusal is CUDA_ERROR_INVALID_VALUE, whatever was wrong.
    fn admit(&self, function: &Function, launch: &Launch) -> Result<()> {
        let threads = launch.block.iter().map(|&n| n as u64).product::<u64>();
        let why = if threads == 0 || threads > function.max_threads as u64 {
            format!("{threads} threads a block; it can have {}", function.max_threads)
        } else if launch.shared_bytes > function.max_dynamic_shared {
            format!("{} bytes of dynamic shared memory; it can have {}", launch.shared_bytes, function.max_dynamic_shared)
        } else if launch.grid.iter().zip(self.limits.max_grid).any(|(&n, max)| n > max) {
            format!("grid {:?}; the device takes {:?}", launch.grid, self.limits.max_grid)
        } else {
            return Ok(());
        };
        Err(self.refuse(format!("{} launched with {why}", function.name)))
    }
}

impl Driver for Gpu {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn arch(&self) -> Arch {
        self.arch
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    /// Plain `cuMemAlloc`: the pool in front of this driver makes allocation rare, and memory of a stream-ordered pool would
    /// belong to the graph if it were asked for during a capture.
    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        self.enter()?;
        let _relaxed = Relaxed::new();
        let mut ptr = 0;
        // SAFETY: plain out-parameter.
        let status = unsafe { sys::cuMemAlloc_v2(&mut ptr, bytes.max(1)) };
        if status as u32 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32 {
            let (mut free, mut total) = (0, 0);
            // SAFETY: plain out-parameters; on failure both stay 0.
            unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
            return Err(self.refuse(format!("out of memory: {bytes} bytes asked for, {free} of {total} free")));
        }
        self.check("allocating", status)?;
        Ok(ptr)
    }

    fn free(&self, ptr: DevicePtr) {
        if self.enter().is_ok() {
            let _relaxed = Relaxed::new();
            // SAFETY: given out by `alloc`; the driver waits for work that uses it.
            unsafe { sys::cuMemFree_v2(ptr) };
        }
    }

    /// Small uploads are copied to page-locked memory and queued; large ones are waited for, because the driver may read
    /// pageable memory after the call has returned.
    fn copy_in(&self, dst: DevicePtr, src: &[u8]) -> Result<()> {
        self.enter_eagerly("an upload")?;
        if src.is_empty() {
            return Ok(());
        }
        self.no_kernel();
        // SAFETY: the caller owns `dst`; `src` is not touched after the wait.
        let queue = |from: *const u8| unsafe { sys::cuMemcpyHtoDAsync_v2(dst, from.cast(), src.len(), self.stream) };
        if src.len() > STAGING_BYTES / 4 {
            self.check("uploading", queue(src.as_ptr()))?;
            return self.wait("uploading");
        }
        let mut staging = lock(&self.staging);
        if staging.used + src.len() > STAGING_BYTES {
            self.wait("waiting for uploads")?; // nothing reads the old contents any more
            staging.used = 0;
        }
        // SAFETY: in bounds by the test above; nobody else writes while the lock is held, and nothing that is queued reads
        // this part.
        let slot = unsafe {
            let slot = staging.base.add(staging.used);
            slot.copy_from_nonoverlapping(src.as_ptr(), src.len());
            slot
        };
        staging.used += src.len().next_multiple_of(64);
        self.check("uploading", queue(slot))
    }

    fn copy_out(&self, dst: &mut [u8], src: DevicePtr) -> Result<()> {
        self.enter_eagerly("a download")?;
        self.no_kernel();
        if !dst.is_empty() {
            // SAFETY: `dst` is borrowed until the wait is over.
            let status = unsafe { sys::cuMemcpyDtoHAsync_v2(dst.as_mut_ptr().cast(), src, dst.len(), self.stream) };
            self.check("downloading", status)?;
        }
        self.wait("downloading")
    }

    fn copy(&self, dst: DevicePtr, src: DevicePtr, bytes: usize) -> Result<()> {
        self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        self.no_kernel();
        // SAFETY: the caller owns both ranges.
        self.check("copying", unsafe { sys::cuMemcpyDtoDAsync_v2(dst, src, bytes, self.stream) })
    }

    fn fill(&self, dst: DevicePtr, byte: u8, bytes: usize) -> Result<()> {
        self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        self.no_kernel();
        // SAFETY: the caller owns the range.
        self.check("filling", unsafe { sys::cuMemsetD8Async(dst, byte, bytes, self.stream) })
    }

    fn function(&self, source: &'static Source, kernel: &str) -> Result<FunctionId> {
        let mut modules = lock(&self.modules);
        if let Some(id) = modules.get(&std::ptr::from_ref(source)).and_then(|module| module.functions.get(kernel)) {
            return Ok(*id);
        }
        self.enter()?;
        let _relaxed = Relaxed::new();
        let module = match modules.entry(source) {
            std::collections::hash_map::Entry::Occupied(slot) => slot.into_mut(),
            std::collections::hash_map::Entry::Vacant(slot) => slot.insert(self.load(source)?),
        };
        let function = self.look_up(module, source, kernel)?;
        let mut functions = self.functions.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        functions.push(function);
        let id = FunctionId(functions.len() - 1);
        module.functions.insert(kernel.to_owned(), id);
        Ok(id)
    }

    fn resident_blocks(&self, function: FunctionId, threads: u32, shared_bytes: u32) -> Result<u32> {
        self.enter()?;
        let functions = self.functions.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let function = functions.get(function.0).ok_or_else(|| self.refuse("occupancy of an unknown function"))?;
        let (mut blocks, threads) = (0, threads as c_int);
        // SAFETY: plain out-parameter.
        let status =
            unsafe { sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, function.handle, threads, shared_bytes as usize) };
        self.check(&function.name, status)?;
        Ok(blocks.max(0) as u32)
    }

    /// Asks the host alone: a launch that is captured may have maps.
    fn tensor_map(&self, tiles: &Tiles) -> Result<TensorMap> {
        // SAFETY: the library is loaded; the symbol is looked up before it is called.
        let known = unsafe { sys::culib().get::<unsafe extern "C" fn()>(b"cuTensorMapEncodeTiled\0").is_ok() };
        if !known || !tiles.fits() {
            return Err(self.refuse(format!("no tensor map of {tiles:?}")));
        }
        self.enter()?;
        let dtype = match tiles.dtype {
            DType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let bytes = tiles.dtype.bytes();
        let (extents, pitch) = ([tiles.columns as u64, tiles.rows as u64], [(tiles.columns * bytes) as u64]);
        let (tile, every) = ([(TILE_BYTES / bytes) as u32, tiles.tile_rows as u32], [1; 2]);
        let mut map = TensorMap::default();
        // SAFETY: the map is of the size and alignment of the driver's; the arrays have as many entries as a matrix wants.
        let status = unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                dtype,
                2,
                tiles.data as *mut c_void,
                extents.as_ptr(),
                pitch.as_ptr(),
                tile.as_ptr(),
                every.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        self.check("making a tensor map", status)?;
        Ok(map)
    }

    unsafe fn launch(&self, function: FunctionId, launch: Launch, args: &mut [*mut c_void]) -> Result<()> {
        self.enter()?;
        let functions = self.functions.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let function = functions.get(function.0).ok_or_else(|| self.refuse("launch of an unknown function"))?;
        self.admit(function, &launch)?;
        let (handle, [gx, gy, gz], [bx, by, bz]) = (function.handle, launch.grid, launch.block);
        let behind_kernel = self.after_kernel.swap(!launch.cooperative, Ordering::Relaxed);
        // A kernel with the attribute may start while the one before it runs, and that one while those before it do. It is safe because
        // every thread of such a kernel waits, before it first reads or writes global memory, until the kernel before has ended and its
        // writes are seen: so none ends before all that came before it, and whatever follows it follows those as well. Before the wait
        // there are prefetches into the L2 cache alone, which is coherent: they are right even of what a kernel in flight still writes.
        // The compile gate looks for all this in the machine code, and the emulator's checked builds at every access. In a graph the
        // attribute becomes an edge of the same meaning.
        let dependent = function.dependent && behind_kernel && !launch.cooperative && self.dependents.load(Ordering::Relaxed);
        // SAFETY: the caller vouches for the arguments; the driver copies them before it returns. `dependent_launches` has looked
        // up the symbol for launches with attributes.
        let status = unsafe {
            if launch.cooperative {
                sys::cuLaunchCooperativeKernel(handle, gx, gy, gz, bx, by, bz, launch.shared_bytes, self.stream, args.as_mut_ptr())
            } else if dependent {
                let mut attribute = sys::CUlaunchAttribute {
                    id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                    ..std::mem::zeroed()
                };
                attribute.value.programmaticStreamSerializationAllowed = 1;
                let config = sys::CUlaunchConfig {
                    gridDimX: gx,
                    gridDimY: gy,
                    gridDimZ: gz,
                    blockDimX: bx,
                    blockDimY: by,
                    blockDimZ: bz,
                    sharedMemBytes: launch.shared_bytes,
                    hStream: self.stream,
                    attrs: &mut attribute,
                    numAttrs: 1,
                };
                sys::cuLaunchKernelEx(&config, handle, args.as_mut_ptr(), null_mut())
            } else {
                sys::cuLaunchKernel(handle, gx, gy, gz, bx, by, bz, launch.shared_bytes, self.stream, args.as_mut_ptr(), null_mut())
            }
        };
        if status as u32 == 0 {
            return Ok(());
        }
        self.check(&format!("launching {} on grid {:?}, block {:?}", function.name, launch.grid, launch.block), status)
    }

    /// A driver that cannot capture the attribute gets none, in graphs or not.
    fn dependent_launches(&self, wanted: bool) -> Result<()> {
        // SAFETY: the library is loaded; the symbol is looked up before it is called.
        let known = || unsafe { sys::culib().get::<unsafe extern "C" fn()>(b"cuLaunchKernelEx\0").is_ok() };
        let arch = self.arch.0;
        if wanted && self.arch < DEPENDENTS_ARCH {
            return Err(self.refuse(format!("dependent launches need compute capability 9.0, this is {}.{}", arch / 10, arch % 10)));
        }
        if wanted && self.driver_version < DEPENDENTS_DRIVER {
            let (needed, found) = (dotted(DEPENDENTS_DRIVER), dotted(self.driver_version));
            return Err(self.refuse(format!("dependent launches need a driver for CUDA {needed}, this is for {found}")));
        }
        if wanted && !known() {
            return Err(self.refuse("the driver has no cuLaunchKernelEx"));
        }
        self.dependents.store(wanted, Ordering::Relaxed);
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        self.enter_eagerly("a wait")?;
        self.wait("running queued kernels")
    }

    fn record_event(&self) -> Result<EventId> {
        self.enter_eagerly("an event")?;
        self.no_kernel();
        let mut event = null_mut();
        // SAFETY: plain out-parameter; the stream lives until Drop.
        unsafe {
            self.check("making an event", sys::cuEventCreate(&mut event, 0))?;
            let recorded = self.check("recording an event", sys::cuEventRecord(event, self.stream));
            if recorded.is_err() {
                sys::cuEventDestroy_v2(event);
            }
            recorded?;
        }
        Ok(EventId(lock(&self.events).insert(event)))
    }

    fn elapsed_ms(&self, start: EventId, end: EventId) -> Result<f32> {
        self.enter_eagerly("a wait")?;
        let events = lock(&self.events);
        let get = |id: EventId| events.get(id.0).ok_or_else(|| self.refuse("an event that is gone"));
        let (start, end) = (get(start)?, get(end)?);
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive while the table is locked.
        unsafe {
            self.check("waiting for an event", sys::cuEventSynchronize(end))?;
            self.check("timing", sys::cuEventElapsedTime(&mut milliseconds, start, end))?;
        }
        Ok(milliseconds)
    }

    fn free_event(&self, event: EventId) {
        if let (Some(event), Ok(())) = (lock(&self.events).remove(event.0), self.enter()) {
            // SAFETY: taken out of the table, so destroyed once.
            unsafe { sys::cuEventDestroy_v2(event) };
        }
    }

    fn profiler(&self, open: bool) -> Result<()> {
        self.enter_eagerly("a profiler's window")?;
        let name = if open { "cuProfilerStart\0" } else { "cuProfilerStop\0" };
        // SAFETY: the library is loaded; the symbol is looked up before it is called.
        let status = unsafe {
            if sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()).is_err() {
                return Err(self.refuse("the driver has no profiler's window"));
            }
            if open { sys::cuProfilerStart() } else { sys::cuProfilerStop() }
        };
        self.check("the profiler's window", status)
    }

    fn begin_capture(&self) -> Result<()> {
        self.enter_eagerly("a capture")?;
        self.no_kernel();
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives until Drop.
        self.check("starting a capture", unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) })?;
        self.capturing.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId> {
        self.enter()?;
        self.capturing.store(false, Ordering::Relaxed);
        self.no_kernel();
        let (mut graph, mut executable) = (null_mut(), null_mut());
        // SAFETY: plain out-parameters; the graph is destroyed here, the executable in `free_graph` or Drop.
        unsafe {
            self.check("ending the capture", sys::cuStreamEndCapture(self.stream, &mut graph))?;
            let instantiated = sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
            sys::cuGraphDestroy(graph);
            self.check("instantiating the graph", instantiated)?;
        }
        // SAFETY: just instantiated.
        let uploaded = self.check("uploading the graph", unsafe { sys::cuGraphUpload(executable, self.stream) });
        if uploaded.is_err() {
            // SAFETY: in no table yet, so destroyed once; it never ran.
            unsafe { sys::cuGraphExecDestroy(executable) };
        }
        uploaded.map(|()| GraphId(lock(&self.graphs).insert(executable)))
    }

    fn replay(&self, graph: GraphId) -> Result<()> {
        self.enter()?;
        self.no_kernel();
        let graphs = lock(&self.graphs);
        let executable = graphs.get(graph.0).ok_or_else(|| self.refuse("a graph that is gone"))?;
        // SAFETY: the executable is alive while the table is locked, and `free_graph` waits for the stream.
        self.check("replaying a graph", unsafe { sys::cuGraphLaunch(executable, self.stream) })
    }

    fn free_graph(&self, graph: GraphId) {
        if let (Some(executable), Ok(())) = (lock(&self.graphs).remove(graph.0), self.enter()) {
            // SAFETY: taken out of the table, so destroyed once, and after its last run.
            unsafe {
                sys::cuStreamSynchronize(self.stream);
                sys::cuGraphExecDestroy(executable);
            }
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // A failure here has nobody left to tell: the process is ending, or the context is already lost.
        // SAFETY: every handle was made by this value, and nothing uses it any more.
        unsafe {
            sys::cuCtxSetCurrent(self.context);
            if !self.stream.is_null() {
                sys::cuStreamSynchronize(self.stream);
            }
            for event in lock(&self.events).drain() {
                sys::cuEventDestroy_v2(event);
            }
            for graph in lock(&self.graphs).drain() {
                sys::cuGraphExecDestroy(graph);
            }
            for module in lock(&self.modules).values() {
                sys::cuModuleUnload(module.handle);
            }
            let staging = lock(&self.staging).base;
            if !staging.is_null() {
                sys::cuMemFreeHost(staging.cast());
            }
            if !self.stream.is_null() {
                sys::cuStreamDestroy_v2(self.stream);
            }
            sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// Lets this thread allocate and load modules while a stream is being captured; neither becomes part of the graph.
struct Relaxed(sys::CUstreamCaptureMode);

impl Relaxed {
    fn new() -> Relaxed {
        let mut mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: exchanges the calling thread's mode for the one given.
        unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
        Relaxed(mode)
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut self.0) };
    }
}

/// Handles by number; a freed number is used again.
struct Table<T> {
    slots: Vec<Option<T>>,
    vacant: Vec<usize>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table { slots: Vec::new(), vacant: Vec::new() }
    }
}

impl<T: Copy> Table<T> {
    fn insert(&mut self, value: T) -> usize {
        let index = self.vacant.pop().unwrap_or(self.slots.len());
        if index == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[index] = Some(value);
        index
    }

    fn get(&self, index: usize) -> Option<T> {
        self.slots.get(index).copied().flatten()
    }

    fn remove(&mut self, index: usize) -> Option<T> {
        let value = self.slots.get_mut(index)?.take()?;
        self.vacant.push(index);
        Some(value)
    }

    fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.slots.drain(..).flatten()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_cannot_be_opened_is_an_error_with_a_hint() {
        // Number 4096 exists nowhere; on a machine without a driver the error is an earlier one.
        let Err(Error::Unavailable { device, why, hint }) = open(4096) else { panic!("opened") };
        assert_eq!(device, "cuda:4096");
        assert!(!why.is_empty() && hint.is_some(), "{why}");
    }

    #[test]
    fn table_numbers_are_used_again_and_stale_ones_are_refused() {
        let mut table = Table::default();
        let (a, b) = (table.insert('a'), table.insert('b'));
        assert_eq!((table.get(a), table.remove(a), table.remove(a), table.get(a)), (Some('a'), Some('a'), None, None));
        assert_eq!(table.insert('c'), a);
        assert_eq!(table.get(b), Some('b'));
        assert_eq!((table.get(99), table.remove(99)), (None, None));
        assert_eq!(table.drain().collect::<String>(), "cb");
    }
}
