//! Runs `.cu` text on the CPU, unchanged, and catches what a GPU would let pass.
//!
//! The text is compiled by the system's C++ compiler at run time and cached like a cubin. One fiber is one CUDA thread; blocks
//! are spread over host threads; warps run greedily, in the order of a [`Schedule`]. Checked are:
//!
//! - reads of what nobody wrote: device memory, static and dynamic shared memory and the destinations of unfinished `cp.async`
//!   are NaN, which reaches the output;
//! - writes next to device allocations and to shared variables (guard regions), indices outside arrays of known extent;
//! - on sm_90 copies of tiles and products of four warps, each made as late as it may be, and barriers in shared memory that are
//!   not initialised or have too many arrivals; not the fences between what threads write themselves and what copies and products read;
//! - divergent barriers, dead-locks, shuffles from outside the mask, `ldmatrix` and `cp.async` on misplaced addresses;
//! - kernels that may start before the kernel before has ended, and do not wait for it; in a checked build also what they access before;
//! - crashes: wild addresses, stack overflow, and on x86-64 misaligned vectors and integer division by zero (Linux);
//! - launches over the architecture's limits;
//! - races, by comparing the results of several schedules bit by bit.
//!
//! Each ends in [`Error::Fault`], and the process goes on. Waiting loops must call `__nanosleep`, or they never end.
//!
//! That is fast enough to run all day, and misses what leaves no trace in a result. A *checked* build ([`Emulator::checked`]) sees
//! every access before it happens: two threads at the same byte that nothing orders, a byte that nothing has written, an address
//! outside what it belongs to, a vector at no multiple of its size - exactly, under any schedule, with the lines of both sides. It
//! also counts what the accesses of each warp would cost a GPU: sectors of global memory, bank conflicts in shared memory
//! ([`Trace`]). And [`Mutants`] make kernels wrong on purpose, to see who notices. Nothing here measures time.
//!
//! A result agrees with a GPU's within tolerances, not bit by bit: the GPU fuses multiply-adds and its `mma` truncates.

mod abi;
mod calls;
mod checker;
mod compile;
mod fiber;
mod hopper;
mod memory;
mod mutants;
mod scheduler;
mod shared;
mod shared_text;
mod signals;

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use self::abi::Kernel;
use self::checker::Checker;
pub use self::checker::{Global, SECTOR, SharedTraffic, Trace, Traffic};
use self::compile::Library;
use self::memory::Memory;
pub use self::mutants::{Altered, Mutants};
use self::scheduler::{Fault, Job};
use super::{Arch, DevicePtr, Driver, EventId, FunctionId, GraphId, Launch, Limits, Source, TensorMap, Tiles, occupancy};
use crate::{Error, Result};

/// The order in which runnable blocks, warps and lanes take their turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Schedule {
    #[default]
    Ascending,
    Descending,
    /// By a generator with this seed; the same seed repeats the same order within each block.
    Random(u64),
}

impl Schedule {
    /// Results must be equal, bit for bit, under all of these.
    pub const ALL: [Schedule; 3] = [Schedule::Ascending, Schedule::Descending, Schedule::Random(1)];

    fn seed(self) -> u64 {
        match self {
            Schedule::Random(seed) => seed,
            _ => 0,
        }
    }

    /// The block that runs in turn `turn` of `blocks`.
    fn block(self, turn: u64, blocks: u64) -> u64 {
        match self {
            Schedule::Ascending => turn,
            Schedule::Descending => blocks - 1 - turn,
            Schedule::Random(seed) => {
                // Multiplying by a number without a common divisor visits every block once.
                let mut rng = crate::case::SplitMix(seed);
                let coprime = |&step: &u64| gcd(step, blocks) == 1;
                let step = (0..64).map(|_| rng.next() % blocks + 1).find(coprime).unwrap_or(1);
                ((turn as u128 * step as u128 + rng.next() as u128) % blocks as u128) as u64
            }
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl FromStr for Schedule {
    type Err = Error;
    fn from_str(text: &str) -> Result<Schedule> {
        match text.split_once(':') {
            None if text == "ascending" => Ok(Schedule::Ascending),
            None if text == "descending" => Ok(Schedule::Descending),
            Some(("random", seed)) if seed.parse::<u64>().is_ok() => Ok(Schedule::Random(seed.parse().unwrap_or_default())),
            _ => Err(Error::argument("emulator", format!("unknown schedule {text:?}; expected ascending, descending or random:SEED"))),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Schedule::Ascending => f.write_str("ascending"),
            Schedule::Descending => f.write_str("descending"),
            Schedule::Random(seed) => write!(f, "random:{seed}"),
        }
    }
}

/// What an emulator is to be.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whose code path and limits it takes.
    pub arch: Arch,
    pub schedule: Schedule,
    /// Host threads that run blocks; `None`: as many as the thread pool has.
    pub host_threads: Option<usize>,
}

impl Default for Options {
    fn default() -> Options {
        Options { arch: Arch(90), schedule: Schedule::default(), host_threads: None }
    }
}

/// The emulator of `arch` (`sm_75` ... `sm_120`; `None`: sm_90) under the schedule of `$SWARA_EMULATOR_SCHEDULE`.
///
/// # Errors
/// [`Error::Argument`] for an unknown architecture or schedule, [`Error::Unavailable`] without a C++ compiler.
pub fn open(arch: Option<&str>) -> Result<Emulator> {
    let mut options = Options::default();
    if let Some(name) = arch {
        options.arch = parse_arch(name)?;
    }
    if let Some(schedule) = std::env::var_os("SWARA_EMULATOR_SCHEDULE").filter(|v| !v.is_empty()) {
        options.schedule = schedule.to_string_lossy().parse()?;
    }
    Emulator::new(options)
}

fn parse_arch(name: &str) -> Result<Arch> {
    let number = name.strip_prefix("sm_").and_then(|n| n.trim_end_matches('a').parse().ok());
    number.filter(|n| super::source::ALL_ARCHS.contains(n)).map(Arch).ok_or_else(|| {
        Error::argument("emulator", format!("unknown architecture {name:?}; expected one of sm_{:?}", super::source::ALL_ARCHS))
    })
}

/// The compiler that [`open`] would use, in words.
///
/// # Errors
/// [`Error::Unavailable`] if there is none.
pub fn compiler() -> Result<String> {
    compile::compiler().map(|c| c.describe())
}

/// A CUDA device made of host threads. Every call completes before it returns.
pub struct Emulator {
    options: Options,
    checked: bool,
    mutants: Option<Arc<Mutants>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    memory: Memory,
    checker: Option<Box<Checker>>,
    functions: Vec<&'static Kernel>,
    /// Which of them are `dependents` of their source.
    dependents: Vec<bool>,
    function_ids: HashMap<(*const Source, String), FunctionId>,
    libraries: Vec<&'static Library>,
    events: Slots<Instant>,
    graphs: Slots<Vec<Operation>>,
    recording: Option<Recording>,
    /// Damage that was found where no error could be returned.
    pending: Option<String>,
    last_kernel: String,
}

// SAFETY: what the pointers point to - sources, libraries - is never freed; graphs own their arguments.
unsafe impl Send for State {}

#[derive(Default)]
struct Recording {
    operations: Vec<Operation>,
    lent: Vec<DevicePtr>,
}

/// Room for arguments, aligned as any of them.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Slot([u8; 64]);

/// One step of a graph.
enum Operation {
    Launch {
        function: FunctionId,
        launch: Launch,
        args: Vec<Slot>,
        starts: Vec<usize>,
    },
    Copy {
        dst: DevicePtr,
        src: DevicePtr,
        bytes: usize,
    },
    Fill {
        dst: DevicePtr,
        byte: u8,
        bytes: usize,
    },
    /// Its contents are anyone's guess from here on.
    Lend {
        ptr: DevicePtr,
        bytes: usize,
    },
}

impl State {
    fn watch(&mut self, tell: impl FnOnce(&mut Checker)) {
        if let Some(checker) = &mut self.checker {
            tell(checker);
        }
    }
}

/// Values by number; freed numbers are used again.
struct Slots<T>(Vec<Option<T>>);

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots(Vec::new())
    }
}

impl<T> Slots<T> {
    fn insert(&mut self, value: T) -> usize {
        match self.0.iter().position(Option::is_none) {
            Some(free) => {
                self.0[free] = Some(value);
                free
            }
            None => {
                self.0.push(Some(value));
                self.0.len() - 1
            }
        }
    }

    fn get(&self, id: usize) -> Option<&T> {
        self.0.get(id)?.as_ref()
    }

    fn remove(&mut self, id: usize) -> Option<T> {
        self.0.get_mut(id)?.take()
    }
}

impl Emulator {
    /// # Errors
    /// [`Error::Unavailable`] without a C++ compiler.
    pub fn new(options: Options) -> Result<Emulator> {
        compile::compiler()?;
        Ok(Emulator { options, checked: false, mutants: None, state: Mutex::default() })
    }

    /// One that watches every access. Finds races, reads of what was never written and accesses out of bounds exactly and at
    /// once, counts memory traffic, and is some ten times slower; runs on one host thread.
    ///
    /// # Errors
    /// As [`Emulator::new`].
    pub fn checked(options: Options) -> Result<(Emulator, Trace)> {
        let trace = Trace::default();
        let mut emulator = Emulator { checked: true, ..Emulator::new(options)? };
        emulator.state.get_mut().unwrap_or_else(|p| p.into_inner()).checker = Some(Box::new(Checker::new(trace.clone())));
        Ok((emulator, trace))
    }

    /// A checked one whose kernels have mistakes that can be chosen.
    ///
    /// # Errors
    /// As [`Emulator::new`].
    pub fn mutated(options: Options, mutants: Arc<Mutants>) -> Result<Emulator> {
        let (emulator, _) = Emulator::checked(options)?;
        Ok(Emulator { mutants: Some(mutants), ..emulator })
    }

    pub fn options(&self) -> Options {
        self.options
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn refuse(&self, what: impl Into<String>) -> Error {
        Error::Driver { device: self.name(), what: what.into() }
    }

    fn host_threads(&self) -> usize {
        let threads = self.options.host_threads.unwrap_or_else(rayon::current_num_threads).max(1);
        if self.checked { 1 } else { threads }
    }

    /// Damage found since the last report.
    fn report(&self, state: &mut State) -> Result<()> {
        let found = state.pending.take().map_or_else(|| state.memory.check(), Err);
        found.map_err(|what| Error::Fault { kernel: state.last_kernel.clone(), block: None, thread: None, what })
    }

    fn not_while_recording(&self, state: &State, what: &str) -> Result<()> {
        if state.recording.is_some() { Err(self.refuse(format!("{what} while a graph is recorded"))) } else { Ok(()) }
    }

    fn holds(&self, state: &State, ptr: DevicePtr, bytes: usize) -> Result<()> {
        state.memory.holds(ptr, bytes).map_err(|what| self.refuse(what))
    }

    /// Whatever registers and static shared memory a GPU would give a block.
    fn resident(&self, threads: u32, shared_bytes: u32) -> u32 {
        occupancy::occupancy(self.options.arch, 0, threads, shared_bytes).map_or(0, |occupancy| occupancy.blocks)
    }

    fn check_limits(&self, kernel: &str, launch: Launch) -> Result<()> {
        let limits = self.limits();
        let threads = launch.block.iter().map(|&n| n as u64).product::<u64>();
        let blocks = launch.grid.iter().map(|&n| n as u128).product::<u128>();
        const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
        let resident = limits.multiprocessors as u128 * self.resident(threads as u32, launch.shared_bytes) as u128;
        let what = if threads == 0 || blocks == 0 {
            format!("launch of {:?} blocks of {:?} threads", launch.grid, launch.block)
        } else if threads > limits.max_threads_per_block as u64 {
            format!("launch with {threads} threads per block; the limit is {}", limits.max_threads_per_block)
        } else if (0..3).any(|i| launch.block[i] > MAX_BLOCK[i]) {
            format!("launch with block {:?}; the limit is {MAX_BLOCK:?}", launch.block)
        } else if (0..3).any(|i| launch.grid[i] > limits.max_grid[i]) {
            format!("launch with grid {:?}; the limit is {:?}", launch.grid, limits.max_grid)
        } else if launch.shared_bytes > limits.max_shared_bytes {
            format!("launch with {} bytes of shared memory; the limit is {}", launch.shared_bytes, limits.max_shared_bytes)
        } else if launch.cooperative && blocks > resident {
            format!("cooperative launch of {blocks} blocks; {resident} fit the device at once")
        } else {
            return Ok(());
        };
        Err(Error::Fault { kernel: kernel.to_owned(), block: None, thread: None, what })
    }

    fn run(&self, state: &mut State, function: FunctionId, launch: Launch, args: *mut *mut c_void) -> Result<()> {
        let kernel = state.functions[function.0];
        let library = state.libraries[function.0];
        let name = kernel_name(kernel);
        self.check_limits(&name, launch)?;
        let pointer = |(i, &size): (usize, &u32)| {
            // SAFETY: the caller vouches for one argument of this size at each place.
            (size == 8).then(|| unsafe { (*args.add(i)).cast::<u64>().read_unaligned() })
        };
        let pointers = kernel.sizes().iter().enumerate().filter_map(pointer).collect();
        if let Some(checker) = &mut state.checker {
            checker.begin(launch);
        }
        let job = Job {
            kernel,
            bind: library.bind,
            args,
            pointers,
            launch,
            dependent: state.dependents[function.0],
            shared_limit: self.limits().max_shared_bytes as usize,
            schedule: self.options.schedule,
            memory: &state.memory,
            image: library.image.clone(),
            checker: state.checker.as_deref_mut().map_or(std::ptr::null_mut(), std::ptr::from_mut),
        };
        let mutants = self.mutants.as_ref().zip(library.choose);
        let given = mutants.as_ref().map_or(0, |(mutants, (choose, _))| {
            let (chosen, given) = mutants.begin(&name);
            // SAFETY: the library's own function.
            unsafe { choose(chosen, &mut given.clone()) };
            given
        });
        let result = scheduler::run(&job, self.host_threads());
        if let Some((mutants, (choose, count))) = mutants {
            let mut left = 0;
            // SAFETY: as above; the flags live as long as the library, and nothing runs.
            let flags = unsafe { std::slice::from_raw_parts_mut(choose(0, &mut left), count) };
            mutants.end(&name, given - left, flags);
        }
        if let Some(checker) = &mut state.checker {
            checker.end(&name);
        }
        state.last_kernel = name;
        match result {
            Ok(()) => self.report(state),
            Err(Fault { block, thread, what }) => {
                let _ = state.memory.check(); // what it broke besides is not the next kernel's doing
                let what = state.checker.as_ref().map_or_else(|| what.clone(), |checker| checker.explain(&what));
                Err(Error::Fault { kernel: state.last_kernel.clone(), block, thread, what })
            }
        }
    }

    fn perform(&self, state: &mut State, operation: &mut Operation) -> Result<()> {
        match operation {
            Operation::Launch { function, launch, args, starts } => {
                let mut pointers: Vec<*mut c_void> = starts.iter().map(|&at| args[at..].as_mut_ptr().cast()).collect();
                self.run(state, *function, *launch, pointers.as_mut_ptr())
            }
            Operation::Copy { dst, src, bytes } => {
                self.holds(state, *dst, *bytes)?;
                self.holds(state, *src, *bytes)?;
                // SAFETY: both ranges lie inside allocations; they may overlap.
                unsafe { std::ptr::copy(*src as *const u8, *dst as *mut u8, *bytes) };
                state.watch(|checker| checker.copied(*dst, *src, *bytes));
                Ok(())
            }
            Operation::Fill { dst, byte, bytes } => {
                self.holds(state, *dst, *bytes)?;
                // SAFETY: the range lies inside an allocation.
                unsafe { (*dst as *mut u8).write_bytes(*byte, *bytes) };
                state.watch(|checker| checker.set_written(*dst, *bytes, true));
                Ok(())
            }
            Operation::Lend { ptr, bytes } => {
                // SAFETY: `bytes` of the allocation are in use, by nobody but the borrower.
                unsafe { (*ptr as *mut u8).write_bytes(memory::UNWRITTEN, *bytes) };
                state.watch(|checker| checker.set_written(*ptr, *bytes, false));
                Ok(())
            }
        }
    }

    fn perform_or_record(&self, mut operation: Operation) -> Result<()> {
        let state = &mut *self.lock();
        match &mut state.recording {
            Some(recording) => {
                recording.operations.push(operation);
                Ok(())
            }
            None => self.perform(state, &mut operation),
        }
    }
}

fn kernel_name(kernel: &Kernel) -> String {
    // SAFETY: a literal of the library, which is never unloaded.
    unsafe { std::ffi::CStr::from_ptr(kernel.name) }.to_string_lossy().into_owned()
}

impl Driver for Emulator {
    fn name(&self) -> String {
        let checked = if self.checked { ", checked" } else { "" };
        format!("emulator sm_{} ({}{checked})", self.options.arch.0, self.options.schedule)
    }

    fn arch(&self) -> Arch {
        self.options.arch
    }

    fn limits(&self) -> Limits {
        let shared_kilobytes = match self.options.arch.0 {
            75 => 64,
            80 | 87 => 163,
            90 | 100 => 227,
            _ => 99,
        };
        Limits {
            max_threads_per_block: 1024,
            max_shared_bytes: shared_kilobytes << 10,
            max_grid: [i32::MAX as u32, 65535, 65535],
            multiprocessors: 4,
            l2_bytes: 4 << 20,
            cooperative: true,
        }
    }

    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        let state = &mut *self.lock();
        let ptr = state.memory.alloc(bytes).ok_or_else(|| self.refuse(format!("out of memory: {bytes} bytes")))?;
        state.watch(|checker| checker.alloc(ptr, bytes));
        Ok(ptr)
    }

    fn lend(&self, ptr: DevicePtr, bytes: usize) {
        let state = &mut *self.lock();
        let mut keep_larger = false;
        if let Some(recording) = &mut state.recording {
            // In a graph one block may be lent several times, and each replay uses all of them.
            keep_larger = recording.lent.contains(&ptr);
            recording.lent.push(ptr);
            recording.operations.push(Operation::Lend { ptr, bytes });
        }
        let lent = state.memory.lend(ptr, bytes, keep_larger);
        if state.recording.is_none() && lent.is_ok() {
            // SAFETY: `bytes` of the allocation are in use now, by nobody but the borrower.
            unsafe { (ptr as *mut u8).write_bytes(memory::UNWRITTEN, bytes) };
        }
        state.watch(|checker| checker.lend(ptr, bytes, keep_larger));
        if let Err(what) = lent {
            state.pending.get_or_insert(what);
        }
    }

    fn free(&self, ptr: DevicePtr) {
        let state = &mut *self.lock();
        state.watch(|checker| checker.free(ptr));
        if let Err(what) = state.memory.free(ptr) {
            state.pending.get_or_insert(what);
        }
    }

    fn copy_in(&self, dst: DevicePtr, src: &[u8]) -> Result<()> {
        let state = &mut *self.lock();
        self.not_while_recording(state, "copy from the host")?;
        self.holds(state, dst, src.len())?;
        // SAFETY: the range lies inside an allocation, which no Rust reference covers.
        unsafe { (dst as *mut u8).copy_from(src.as_ptr(), src.len()) };
        state.watch(|checker| checker.set_written(dst, src.len(), true));
        Ok(())
    }

    fn copy_out(&self, dst: &mut [u8], src: DevicePtr) -> Result<()> {
        let state = &mut *self.lock();
        self.not_while_recording(state, "copy to the host")?;
        self.report(state)?;
        self.holds(state, src, dst.len())?;
        if let Some(what) = state.checker.as_mut().and_then(|checker| checker.unwritten(src, dst.len())) {
            return Err(Error::Fault { kernel: state.last_kernel.clone(), block: None, thread: None, what });
        }
        // SAFETY: as for `copy_in`.
        unsafe { dst.as_mut_ptr().copy_from(src as *const u8, dst.len()) };
        Ok(())
    }

    fn copy(&self, dst: DevicePtr, src: DevicePtr, bytes: usize) -> Result<()> {
        self.perform_or_record(Operation::Copy { dst, src, bytes })
    }

    fn fill(&self, dst: DevicePtr, byte: u8, bytes: usize) -> Result<()> {
        self.perform_or_record(Operation::Fill { dst, byte, bytes })
    }

    fn function(&self, source: &'static Source, kernel: &str) -> Result<FunctionId> {
        let key = (source as *const Source, kernel.to_owned());
        if let Some(&known) = self.lock().function_ids.get(&key) {
            return Ok(known);
        }
        let refuse = |log: String| Error::Compile { source_name: source.path.to_owned(), log };
        if !source.archs.contains(&self.options.arch.0) {
            return Err(refuse(format!("not for sm_{}", self.options.arch.0)));
        }
        let library = compile::load(source, self.options.arch, self.checked, self.mutants.as_deref())?; // slow, so not under the lock
        let absent = || format!("no kernel {kernel} for sm_{}; those that a macro makes are listed in `// kernels:`", self.options.arch.0);
        let found = library.kernel(kernel).ok_or_else(|| refuse(absent()))?;
        let dependent = source.dependents()?.iter().any(|dependent| dependent == kernel);
        let state = &mut *self.lock();
        let id = FunctionId(state.functions.len());
        state.functions.push(found);
        state.dependents.push(dependent);
        state.libraries.push(library);
        state.function_ids.insert(key, id);
        Ok(id)
    }

    fn resident_blocks(&self, _: FunctionId, threads: u32, shared_bytes: u32) -> Result<u32> {
        Ok(self.resident(threads, shared_bytes))
    }

    /// `swara::Map` of ptx.cuh.
    fn tensor_map(&self, tiles: &Tiles) -> Result<TensorMap> {
        if self.options.arch != Arch(90) || !tiles.fits() {
            return Err(self.refuse(format!("no tensor map of {tiles:?}")));
        }
        let mut map = TensorMap::default();
        let words = [tiles.data, tiles.rows as u64, tiles.columns as u64, tiles.tile_rows as u64, tiles.dtype.bytes() as u64];
        map.0[..words.len()].copy_from_slice(&words);
        Ok(map)
    }

    unsafe fn launch(&self, function: FunctionId, launch: Launch, args: &mut [*mut c_void]) -> Result<()> {
        let state = &mut *self.lock();
        let Some(&kernel) = state.functions.get(function.0) else { return Err(self.refuse("launch of an unknown function")) };
        if kernel.sizes().len() != args.len() {
            let (name, expected) = (kernel_name(kernel), kernel.sizes().len());
            return Err(self.refuse(format!("launch of {name} with {} arguments; it has {expected} parameters", args.len())));
        }
        if state.recording.is_none() {
            return self.run(state, function, launch, args.as_mut_ptr());
        }
        self.check_limits(&kernel_name(kernel), launch)?;
        let mut copied: Vec<Slot> = Vec::new();
        let mut starts = Vec::new();
        for (&arg, &size) in args.iter().zip(kernel.sizes()) {
            starts.push(copied.len());
            copied.resize(copied.len() + (size as usize).div_ceil(size_of::<Slot>()), Slot([0; 64]));
            let place = copied[starts[starts.len() - 1]..].as_mut_ptr().cast::<u8>();
            // SAFETY: `size` bytes were just made room for; the caller vouches for as many at `arg`.
            unsafe { place.copy_from(arg.cast(), size as usize) };
        }
        if let Some(recording) = &mut state.recording {
            recording.operations.push(Operation::Launch { function, launch, args: copied, starts });
        }
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        let state = &mut *self.lock();
        self.not_while_recording(state, "synchronisation")?;
        self.report(state)
    }

    fn record_event(&self) -> Result<EventId> {
        Ok(EventId(self.lock().events.insert(Instant::now())))
    }

    fn elapsed_ms(&self, start: EventId, end: EventId) -> Result<f32> {
        let state = self.lock();
        match (state.events.get(start.0), state.events.get(end.0)) {
            (Some(start), Some(end)) => Ok(end.saturating_duration_since(*start).as_secs_f32() * 1e3),
            _ => Err(self.refuse("unknown event")),
        }
    }

    fn free_event(&self, event: EventId) {
        self.lock().events.remove(event.0);
    }

    fn begin_capture(&self) -> Result<()> {
        let state = &mut *self.lock();
        self.not_while_recording(state, "a second recording")?;
        state.recording = Some(Recording::default());
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId> {
        let state = &mut *self.lock();
        let recording = state.recording.take().ok_or_else(|| self.refuse("no graph is being recorded"))?;
        Ok(GraphId(state.graphs.insert(recording.operations)))
    }

    fn replay(&self, graph: GraphId) -> Result<()> {
        let state = &mut *self.lock();
        self.not_while_recording(state, "replay")?;
        let mut operations = state.graphs.remove(graph.0).ok_or_else(|| self.refuse("unknown graph"))?;
        let result = operations.iter_mut().try_for_each(|operation| self.perform(state, operation));
        state.graphs.0[graph.0] = Some(operations);
        result
    }

    fn free_graph(&self, graph: GraphId) {
        self.lock().graphs.remove(graph.0);
    }
}
