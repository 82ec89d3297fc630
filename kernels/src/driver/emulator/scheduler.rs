//! Runs the threads of a launch: warp by warp, each as far as it gets before another one is looked at.
//!
//! That order is legal and merciless: a warp that does not wait where it should runs far ahead of the others. The order among
//! warps and lanes is the [`Schedule`](super::Schedule); results that change with it are races.

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Schedule;
use super::abi::{Kernel, Meeting, Runtime, WHY_BYTES};
use super::calls::{RUNTIME, thread_main};
use super::checker::{Checker, Who};
use super::fiber::{self, Context, Stacks};
use super::hopper::{BulkCopy, Products};
use super::memory::Memory;
use super::shared::Shared;
use super::signals;
use crate::case::SplitMix;
use crate::driver::Launch;

/// What a kernel did wrong, and who did it as far as it is known.
#[derive(Debug)]
pub(super) struct Fault {
    pub block: Option<[u32; 3]>,
    pub thread: Option<[u32; 3]>,
    pub what: String,
}

/// A fault of whichever thread is running.
pub(super) fn plain(what: String) -> Fault {
    Fault { block: None, thread: None, what }
}

/// One launch.
pub(super) struct Job<'a> {
    pub kernel: &'a Kernel,
    /// Binds the kernel's library to the calling host thread.
    pub bind: unsafe extern "C" fn(*const Runtime) -> *mut *mut Thread,
    pub args: *mut *mut c_void,
    /// Values of the arguments that may be device addresses.
    pub pointers: Vec<u64>,
    pub launch: Launch,
    /// Whether it is one of its source's `dependents`.
    pub dependent: bool,
    pub shared_limit: usize,
    pub schedule: Schedule,
    pub memory: &'a Memory,
    /// Where the kernel's library lies.
    pub image: std::ops::Range<usize>,
    /// Set for a checked launch, which runs on one host thread.
    pub checker: *mut Checker,
}

// SAFETY: `args` and what it points to are only read while the launch runs, and outlive it; a checker is used by one thread.
unsafe impl Sync for Job<'_> {}

/// Where a thread is in a kernel's text.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Site {
    pub file: *const c_char,
    pub line: c_int,
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // SAFETY: a string literal of the kernel's library, which is never unloaded.
        let file = unsafe { CStr::from_ptr(self.file) }.to_string_lossy();
        write!(f, "{file}:{}", self.line)
    }
}

/// What keeps a thread from running on.
#[derive(Clone, Copy)]
pub(super) enum Wait {
    Nothing,
    Meeting {
        what: *const c_char,
        site: Site,
        mask: u32,
        args: *mut c_void,
        work: Option<Meeting>,
    },
    Barrier {
        operation: c_int,
        value: c_int,
        site: Site,
    },
    /// Spins on memory that somebody else will write.
    Spin,
    Exited,
}

pub(super) struct PendingCopy {
    pub group: u32,
    pub dst: *mut u8,
    pub src: *const u8,
    pub bytes: usize,
    pub valid: usize,
}

/// One CUDA thread. The first fields are those that kernels read (`swara::Thread` in runtime.h).
#[repr(C)]
pub(super) struct Thread {
    pub index: [u32; 3],
    pub block_index: [u32; 3],
    pub block_dim: [u32; 3],
    pub grid_dim: [u32; 3],
    pub lane: u32,
    pub shared: (usize, usize),
    pub block: *mut Block,
    pub number: usize,
    pub context: Context,
    pub wait: Wait,
    pub barrier_result: c_int,
    pub copies: VecDeque<PendingCopy>,
    pub group: u32,
    pub products: Products,
    /// For the kernels before, or it need not.
    pub waited: bool,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Warp {
    pub runnable: u32,
    pub spinning: u32,
    pub meeting: u32,
    pub live: u32,
}

pub(super) struct Block {
    pub worker: *mut Worker,
    /// Its place among the worker's blocks.
    pub slot: usize,
    pub index: [u32; 3],
    /// Number of its first stack.
    pub first_stack: usize,
    pub threads: Vec<Thread>,
    pub warps: Vec<Warp>,
    pub live: usize,
    pub at_barrier: usize,
    pub shared: Shared,
    /// Copies on their way, which report to a barrier in shared memory.
    pub bulk: Vec<BulkCopy>,
}

/// One host thread's share of a launch.
pub(super) struct Worker {
    pub job: *const Job<'static>,
    pub current: *mut *mut Thread,
    pub context: Context,
    /// Taken only when the worker is dropped.
    pub stacks: Option<Stacks>,
    pub blocks: Vec<Block>,
    pub rng: SplitMix,
    pub fault: Option<Fault>,
    pub watch: signals::Watch,
    /// Counts everything that is not spinning.
    pub moves: u64,
}

/// Stacks of earlier launches, whose pages are already there.
static SPARE_STACKS: Mutex<Vec<Stacks>> = Mutex::new(Vec::new());

/// Runs the whole launch and returns the first fault.
pub(super) fn run(job: &Job, host_threads: usize) -> Result<(), Fault> {
    let blocks = job.launch.grid.iter().map(|&n| n as u64).product::<u64>();
    if job.launch.cooperative {
        return Worker::new(job, (0..blocks).collect()).and_then(|mut worker| worker.run());
    }
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let first_fault = Mutex::new(None);
    let work = || {
        let mut worker: Option<Box<Worker>> = None;
        while !failed.load(Ordering::Relaxed) {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            if turn >= blocks {
                break;
            }
            let block = job.schedule.block(turn, blocks);
            let outcome = match &mut worker {
                Some(worker) => worker.run_block(coordinates(block, job.launch.grid)),
                None => Worker::new(job, vec![block]).and_then(|made| worker.insert(made).run()),
            };
            if let Err(fault) = outcome {
                failed.store(true, Ordering::Relaxed);
                first_fault.lock().unwrap_or_else(|p| p.into_inner()).get_or_insert(fault);
            }
        }
    };
    // Not the shared thread pool: a thread that waits there takes up other work, which may want this device.
    const WORTH_A_THREAD: u64 = 256;
    let threads = job.launch.block.iter().map(|&n| n as u64).product::<u64>() * blocks;
    let helpers = (host_threads as u64 - 1).min(blocks - 1).min(threads / WORTH_A_THREAD);
    std::thread::scope(|scope| {
        for _ in 0..helpers {
            // If the system has no thread left, this one does it all.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    first_fault.into_inner().unwrap_or_else(|p| p.into_inner()).map_or(Ok(()), Err)
}

fn linear([x, y, z]: [u32; 3], extent: [u32; 3]) -> u32 {
    x + extent[0] * (y + extent[1] * z)
}

fn coordinates(linear: u64, extent: [u32; 3]) -> [u32; 3] {
    let [x, y, _] = extent.map(u64::from);
    [(linear % x) as u32, (linear / x % y) as u32, (linear / x / y) as u32]
}

impl Worker {
    /// A worker that holds `blocks` at the same time. Boxed, because its blocks know its address.
    fn new(job: &Job, blocks: Vec<u64>) -> Result<Box<Worker>, Fault> {
        let threads = job.launch.block.iter().product::<u32>() as usize;
        let needed = threads * blocks.len();
        let spare = {
            let mut spares = SPARE_STACKS.lock().unwrap_or_else(|p| p.into_inner());
            let fits = spares.iter().position(|s| s.count() >= needed);
            fits.map(|at| spares.swap_remove(at))
        };
        let stacks = spare.or_else(|| Stacks::new(needed)).ok_or_else(|| plain(format!("no address space for {needed} stacks")))?;
        let mut worker = Box::new(Worker {
            job: (job as *const Job).cast(),
            current: std::ptr::null_mut(),
            context: 0,
            stacks: Some(stacks),
            blocks: Vec::new(),
            rng: SplitMix(0),
            fault: None,
            watch: signals::Watch::default(),
            moves: 0,
        });
        let owner: *mut Worker = &mut *worker;
        for (i, &linear) in blocks.iter().enumerate() {
            worker.blocks.push(Block {
                worker: owner,
                slot: i,
                index: coordinates(linear, job.launch.grid),
                first_stack: i * threads,
                threads: (0..threads).map(|t| Thread::new(t, job.launch)).collect(),
                warps: vec![Warp::default(); threads.div_ceil(32)],
                live: 0,
                at_barrier: 0,
                shared: Shared::new(job.launch.shared_bytes as usize, job.shared_limit),
                bulk: Vec::new(),
            });
        }
        Ok(worker)
    }

    /// Runs one block, on a worker that holds one.
    fn run_block(&mut self, index: [u32; 3]) -> Result<(), Fault> {
        self.blocks[0].index = index;
        self.run()
    }

    fn job(&self) -> &Job<'static> {
        // SAFETY: `run` keeps the job alive for as long as its workers.
        unsafe { &*self.job }
    }

    /// The launch's checker, if there is one.
    ///
    /// # Safety
    /// `this` must be a live worker, and no other reference to the checker may be in use.
    pub unsafe fn checker<'a>(this: *const Worker) -> Option<&'a mut Checker> {
        // SAFETY: job and checker outlive the worker.
        unsafe { (*(*this).job).checker.as_mut() }
    }

    pub fn holds_stack(&self, address: usize) -> bool {
        self.stacks.as_ref().is_some_and(|stacks| stacks.contains(address))
    }

    /// Whether a kernel may touch `address` though it is not CUDA's memory: constants, its own record, the pointer to that, and
    /// the table of calls.
    pub fn knows(&self, block: &Block, address: usize) -> bool {
        let within = |start: usize, bytes: usize| address.wrapping_sub(start) < bytes;
        self.job().image.contains(&address)
            || within(block.threads.as_ptr() as usize, size_of_val(&block.threads[..]))
            || address == self.current as usize
            || within(&raw const RUNTIME as usize, size_of::<Runtime>())
    }

    /// Runs the blocks it holds from beginning to end.
    fn run(&mut self) -> Result<(), Fault> {
        // SAFETY: the library is loaded; it keeps the pointer to a static.
        self.current = unsafe { (self.job().bind)(&RUNTIME) };
        let seed =
            self.blocks.iter().fold(0u64, |h, b| b.index.iter().fold(h, |h, &i| h.wrapping_mul(0x100_0003).wrapping_add(i as u64 + 1)));
        self.rng = SplitMix(self.job().schedule.seed() ^ seed);
        let grid = self.job().launch.grid;
        // SAFETY: nothing runs yet.
        let checker = unsafe { Worker::checker(self) };
        for block in &mut self.blocks {
            self.stacks.iter_mut().for_each(|stacks| block.reset(stacks));
        }
        if let Some(checker) = checker {
            for block in &self.blocks {
                checker.enter(block.slot, linear(block.index, grid), block.threads.len(), block.shared.range());
            }
        }
        let finished = {
            let _watching = signals::watch(&raw mut self.watch);
            self.rounds()
        };
        let stacks = self.stacks.as_ref();
        let caught = self.watch.take(|address| stacks.is_some_and(|s| s.guards(address))).map(plain);
        if let Some(mut fault) = self.fault.take().or(caught) {
            // SAFETY: the slot belongs to this host thread; whoever ran last is who faulted.
            let culprit = unsafe { &**self.current };
            fault.block.get_or_insert(culprit.block_index);
            fault.thread.get_or_insert(culprit.index);
            return Err(fault);
        }
        finished?;
        self.check_guards()
    }

    /// Lets every warp run in turn until all threads have exited or none can go on.
    fn rounds(&mut self) -> Result<(), Fault> {
        const SPIN_ROUNDS: u32 = 1000;
        const SPIN_TIME: Duration = Duration::from_secs(1);
        let mut order: Vec<(usize, usize)> =
            self.blocks.iter().enumerate().flat_map(|(b, block)| (0..block.warps.len()).map(move |w| (b, w))).collect();
        if self.job().schedule == Schedule::Descending {
            order.reverse();
        }
        let mut spins = 0;
        // Whether nothing moved in a round that left warps out: the next one takes all.
        let mut late = false;
        let mut spinning_since = None;
        while self.blocks.iter().any(|b| b.live > 0) {
            let mut taken = order.len();
            if matches!(self.job().schedule, Schedule::Random(_)) {
                for i in (1..order.len()).rev() {
                    order.swap(i, (self.rng.next() % (i as u64 + 1)) as usize);
                }
                // Some warps come late.
                if !late {
                    taken = 1 + (self.rng.next() % order.len() as u64) as usize;
                }
            }
            let before = self.moves;
            let mut ran = false;
            for &(b, w) in &order[..taken] {
                let warp = &mut self.blocks[b].warps[w];
                warp.runnable |= std::mem::take(&mut warp.spinning);
                if warp.runnable != 0 {
                    ran = true;
                    self.enter(b, w);
                    if self.fault.is_some() || self.watch.caught() {
                        return Ok(()); // `run` reports it
                    }
                }
            }
            late = taken < order.len() && self.moves == before;
            if late {
                continue; // it may have been their turn
            }
            if !ran {
                return Err(self.deadlock("dead-lock"));
            }
            if self.moves != before {
                (spins, spinning_since) = (0, None);
                continue;
            }
            // Blocks on other host threads may still write what these wait for.
            spins += 1;
            if spins > SPIN_ROUNDS {
                std::thread::yield_now();
                if spinning_since.get_or_insert_with(Instant::now).elapsed() > SPIN_TIME {
                    return Err(self.deadlock("dead-lock: every thread that could run spins"));
                }
            }
        }
        Ok(())
    }

    /// Switches to one lane of the warp; returns when none of its lanes can run.
    fn enter(&mut self, block: usize, warp: usize) {
        let runnable = self.blocks[block].warps[warp].runnable;
        let lane = self.pick(runnable);
        let thread: *mut Thread = &mut self.blocks[block].threads[32 * warp + lane];
        // SAFETY: the thread's context was prepared by `reset` or saved by `leave`; no Rust borrow is held across the switch.
        unsafe {
            *self.current = thread;
            let to = (*thread).context;
            self.watch.scheduler = &raw const self.context;
            fiber::switch(&raw mut self.context, to);
            self.watch.scheduler = std::ptr::null();
            if let Some(checker) = Worker::checker(self) {
                checker.paused(block, warp);
            }
        }
    }

    pub fn pick(&mut self, runnable: u32) -> usize {
        let lane = match self.job().schedule {
            Schedule::Ascending => runnable.trailing_zeros(),
            Schedule::Descending => 31 - runnable.leading_zeros(),
            Schedule::Random(_) => {
                let turn = (self.rng.next() % 32) as u32;
                (runnable.rotate_right(turn).trailing_zeros() + turn) % 32
            }
        };
        lane as usize
    }

    /// Says who waits for whom: for the first thread that is stuck in a meeting, else for the first at a barrier.
    fn deadlock(&self, what: &str) -> Fault {
        let stuck = |t: &&Thread| !matches!(t.wait, Wait::Exited);
        let all = || self.blocks.iter().flat_map(|b| &b.threads).filter(stuck);
        let first =
            all().find(|t| matches!(t.wait, Wait::Meeting { .. })).or_else(|| all().find(|t| matches!(t.wait, Wait::Barrier { .. })));
        let Some(thread) = first.or_else(|| all().next()) else { return Fault { block: None, thread: None, what: what.to_owned() } };
        // SAFETY: blocks outlive their threads.
        let block = unsafe { &*thread.block };
        let absent = match thread.wait {
            Wait::Meeting { site, mask, .. } => {
                let base = thread.number & !31;
                let lanes = (0..32).filter(|lane| mask >> lane & 1 == 1).filter_map(|lane| block.threads.get(base + lane));
                lanes.filter(stuck).find(|t| !matches!(t.wait, Wait::Meeting { site: s, mask: m, .. } if s == site && m == mask))
            }
            Wait::Barrier { .. } => block.threads.iter().filter(stuck).find(|t| !matches!(t.wait, Wait::Barrier { .. })),
            _ => None,
        };
        let absent = absent.map_or(String::new(), |t| format!("; thread {:?} {}", t.index, t.wait));
        Fault { block: Some(thread.block_index), thread: Some(thread.index), what: format!("{what}: {}{absent}", thread.wait) }
    }

    /// Guards of shared memory and of the allocations that the kernel was given.
    fn check_guards(&mut self) -> Result<(), Fault> {
        for block in &mut self.blocks {
            if let Some(what) = block.shared.check() {
                return Err(Fault { block: Some(block.index), thread: None, what });
            }
        }
        let job = self.job();
        let block = (self.blocks.len() == 1).then(|| self.blocks[0].index);
        let damaged = job.pointers.iter().find_map(|&p| job.memory.check_at(p).err());
        damaged.map_or(Ok(()), |what| Err(Fault { block, thread: None, what }))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        const KEPT: usize = 8;
        let mut spares = SPARE_STACKS.lock().unwrap_or_else(|p| p.into_inner());
        if spares.len() < KEPT {
            spares.extend(self.stacks.take().filter(|s| s.count() <= 1024));
        }
    }
}

impl std::fmt::Display for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            // SAFETY: a string literal of the kernel's library, which is never unloaded.
            Wait::Meeting { what, site, mask, .. } => {
                let what = unsafe { CStr::from_ptr(what) }.to_string_lossy();
                write!(f, "waits in {what} at {site} for mask {mask:#010x}")
            }
            Wait::Barrier { site, .. } => write!(f, "waits in __syncthreads at {site}"),
            Wait::Spin => f.write_str("spins"),
            Wait::Exited => f.write_str("has exited"),
            Wait::Nothing => f.write_str("can run"),
        }
    }
}

impl Thread {
    pub fn who(&self) -> Who {
        // SAFETY: blocks outlive their threads.
        Who { slot: unsafe { (*self.block).slot }, thread: self.number as u32 }
    }

    fn new(number: usize, launch: Launch) -> Thread {
        Thread {
            index: coordinates(number as u64, launch.block),
            block_index: [0; 3],
            block_dim: launch.block,
            grid_dim: launch.grid,
            lane: (number % 32) as u32,
            shared: (0, 0),
            block: std::ptr::null_mut(),
            number,
            context: 0,
            wait: Wait::Nothing,
            barrier_result: 0,
            copies: VecDeque::new(),
            group: 0,
            products: Products::default(),
            waited: true,
        }
    }
}

impl Block {
    fn reset(&mut self, stacks: &mut Stacks) {
        self.shared.reset();
        self.bulk.clear();
        let this: *mut Block = self;
        let range = self.shared.range();
        // SAFETY: the worker outlives its blocks, and the job its workers.
        let dependent = unsafe { (*(*self.worker).job).dependent };
        for thread in &mut self.threads {
            thread.block = this;
            thread.block_index = self.index;
            thread.shared = range;
            thread.wait = Wait::Nothing;
            thread.copies.clear();
            thread.group = 0;
            thread.products = Products::default();
            thread.waited = !dependent;
            let address: *mut Thread = thread;
            thread.context = stacks.prepare(self.first_stack + thread.number, thread_main, address as usize);
        }
        let threads = self.threads.len();
        for (i, warp) in self.warps.iter_mut().enumerate() {
            let lanes = (threads - 32 * i).min(32);
            let all = u32::MAX >> (32 - lanes);
            *warp = Warp { runnable: all, spinning: 0, meeting: 0, live: all };
        }
        (self.live, self.at_barrier) = (threads, 0);
    }

    /// Releases the barrier if every live thread has reached it. `Err` names a thread that waits at another one.
    pub fn complete_barrier(&mut self) -> Result<(), Fault> {
        if self.live == 0 || self.at_barrier < self.live {
            return Ok(());
        }
        // SAFETY: the worker outlives its blocks.
        if let Some(checker) = unsafe { Worker::checker(self.worker) } {
            checker.barrier(self.slot);
        }
        let mut first = None;
        let (mut count, mut all) = (0, true);
        for thread in &self.threads {
            let Wait::Barrier { operation, value, site } = thread.wait else { continue };
            let &mut (first_thread, first_operation, first_site) = first.get_or_insert((thread.index, operation, site));
            if (operation, site) != (first_operation, first_site) {
                let what =
                    format!("divergent barrier: waits in __syncthreads at {site}, thread {first_thread:?} in another one at {first_site}");
                return Err(Fault { block: Some(self.index), thread: Some(thread.index), what });
            }
            count += value;
            all &= value != 0;
        }
        for thread in &mut self.threads {
            if let Wait::Barrier { operation, .. } = thread.wait {
                thread.barrier_result = match operation {
                    1 => count,
                    2 => all as c_int,
                    _ => (count != 0) as c_int,
                };
                thread.wait = Wait::Nothing;
                self.warps[thread.number / 32].runnable |= 1 << (thread.number % 32);
            }
        }
        self.at_barrier = 0;
        Ok(())
    }

    /// Holds the meeting that `lane` waits for, if everyone who is expected has come.
    pub fn complete_meeting(&mut self, warp: usize, lane: usize) -> Result<bool, Fault> {
        let base = 32 * warp;
        let Wait::Meeting { what, site, mask, work, .. } = self.threads[base + lane].wait else { return Ok(false) };
        let Warp { meeting, live, .. } = self.warps[warp];
        let expected = mask & live;
        if expected & !meeting != 0 {
            return Ok(false);
        }
        let mut lanes = [std::ptr::null_mut(); 32];
        for i in (0..32).filter(|i| expected >> i & 1 == 1) {
            match self.threads[base + i].wait {
                Wait::Meeting { site: s, mask: m, args, .. } if s == site && m == mask => lanes[i] = args,
                _ => return Ok(false),
            }
        }
        if let Some(work) = work {
            let mut why = [0 as c_char; WHY_BYTES];
            // SAFETY: each non-null entry points at the arguments of a suspended fiber of this kernel.
            let culprit = unsafe { work(lanes.as_mut_ptr(), expected, why.as_mut_ptr()) };
            if let Some(thread) = usize::try_from(culprit).ok().and_then(|i| self.threads.get(base + i)) {
                // SAFETY: `snprintf` terminated it; `what` is a literal of the library.
                let (what, why) = unsafe { (CStr::from_ptr(what).to_string_lossy(), CStr::from_ptr(why.as_ptr()).to_string_lossy()) };
                return Err(Fault { block: Some(self.index), thread: Some(thread.index), what: format!("{what} at {site} {why}") });
            }
        }
        // Other meetings exchange registers and order nothing.
        // SAFETY: the worker outlives its blocks.
        if let (None, Some(checker)) = (work, unsafe { Worker::checker(self.worker) }) {
            checker.sync_warp(self.slot, warp as u32, expected);
        }
        for i in (0..32).filter(|i| expected >> i & 1 == 1) {
            self.threads[base + i].wait = Wait::Nothing;
        }
        self.warps[warp].meeting &= !expected;
        self.warps[warp].runnable |= expected;
        Ok(true)
    }
}
