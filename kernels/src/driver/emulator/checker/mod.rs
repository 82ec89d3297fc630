//! Watches every access of a checked build: races, reads of what was never written and accesses out of bounds are found exactly,
//! whatever the schedule; and memory traffic is counted as a GPU would count it.
//!
//! Two accesses to the same byte, one of them a write, by threads that nothing orders, are a race even if both orders give the
//! same result. Approximate are only readers in several blocks, remembered as one; atomic operations of several blocks, of which
//! the last block's are remembered; `ld.acquire`, which forbids nobody to write later; barriers in shared memory, of which whoever
//! passes knows what was done before every arrival so far; counts of warps whose lanes take different paths by the same line; and
//! whatever the C++ compiler merges or repeats that a CUDA compiler would not.

mod order;
mod shadow;
mod traffic;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::driver::Launch;

use self::order::{Letters, Order};
use self::shadow::{Reach, Shadow, Stamp};
use self::traffic::{Event, Pending, Space};
pub use self::traffic::{Global, SECTOR, Shared as SharedTraffic, Traffic};

/// What the kernels of a checked emulator did to memory since the last [`Trace::take`], by their names.
#[derive(Clone, Default)]
pub struct Trace(Arc<Mutex<BTreeMap<String, Traffic>>>);

impl Trace {
    pub fn take(&self) -> BTreeMap<String, Traffic> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(|p| p.into_inner()))
    }
}

/// A place in a kernel's text, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Place(u32);

/// Stands for the place until [`Checker::explain`]: looking up lines takes more stack than a fiber has.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK}{}{MARK}", self.0)
    }
}

const MARK: char = '\u{1}';

/// How memory is accessed: `swara::How`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Read,
    Write,
    Atomic,
    Acquire,
    Release,
    MatrixRow,
    /// By a product of tiles: of no lane, and not through the banks that lanes share.
    Tile,
}

impl How {
    pub fn from_code(code: c_int) -> Option<How> {
        const CODES: [How; 7] = [How::Read, How::Write, How::Atomic, How::Acquire, How::Release, How::MatrixRow, How::Tile];
        CODES.get(usize::try_from(code).ok()?).copied()
    }

    fn writes(self) -> bool {
        matches!(self, How::Write | How::Atomic | How::Release)
    }

    fn reads(self) -> bool {
        matches!(self, How::Read | How::MatrixRow | How::Tile | How::Atomic | How::Acquire)
    }

    fn is_atomic(self) -> bool {
        matches!(self, How::Atomic | How::Acquire | How::Release)
    }
}

/// Which thread: the number of its block among those that the worker holds, and its own in the block.
#[derive(Clone, Copy)]
pub(super) struct Who {
    pub slot: usize,
    pub thread: u32,
}

/// How far a thread was: the barriers that its block had passed, and its own clock.
#[derive(Clone, Copy, Default)]
pub(super) struct Moment {
    block: u32,
    thread: u32,
    time: (u32, u32),
}

/// One block that is running.
struct Block {
    order: Order,
    shared: Shadow,
    warps: Vec<Pending>,
    /// Tiles, as offsets, that products have read since anybody wrote there: several warps read the same, each in its own time.
    tiles: Vec<(Range<usize>, Stamp)>,
}

pub(super) struct Checker {
    allocations: BTreeMap<u64, Shadow>,
    blocks: Vec<Block>,
    letters: Letters,
    /// Number of the launch.
    launch: u32,
    grid_blocks: usize,
    block_dim: [u32; 3],
    traffic: Traffic,
    sectors: [HashSet<u64>; 2],
    places: Places,
    trace: Trace,
}

#[derive(Default)]
struct Places {
    numbers: HashMap<(usize, c_int), Place>,
    list: Vec<(usize, c_int)>,
}

impl Places {
    fn number(&mut self, at: (usize, c_int)) -> Place {
        *self.numbers.entry(at).or_insert_with(|| {
            self.list.push(at);
            Place(self.list.len() as u32 - 1)
        })
    }

    /// The file and line that was given, or where the compiled code came from, innermost call first.
    fn describe(&self, place: Place) -> String {
        let (at, line) = self.list[place.0 as usize];
        if line >= 0 {
            // SAFETY: a string literal of the kernel's library, which is never unloaded.
            let file = unsafe { CStr::from_ptr(at as *const c_char) }.to_string_lossy();
            return format!("{file}:{line}");
        }
        let mut calls: Vec<String> = Vec::new();
        // The address is where the reporting call returns to.
        backtrace::resolve((at - 1) as *mut c_void, |symbol| {
            if let (Some(file), Some(line)) = (symbol.filename(), symbol.lineno()) {
                let file = file.to_string_lossy();
                let file = file.rsplit_once("/ops/").map_or(&*file, |(_, tail)| tail);
                let name = file.rsplit('/').next().unwrap_or(file);
                calls.push(format!("{name}:{line}"));
            }
        });
        match calls.split_first() {
            None => format!("{at:#x}"),
            Some((first, [])) => first.clone(),
            Some((first, callers)) => format!("{first} (from {})", callers[..callers.len().min(2)].join(", ")),
        }
    }
}

impl Checker {
    pub fn new(trace: Trace) -> Checker {
        Checker {
            allocations: BTreeMap::new(),
            blocks: Vec::new(),
            letters: Letters::default(),
            launch: 0,
            grid_blocks: 1,
            block_dim: [1; 3],
            traffic: Traffic::default(),
            sectors: Default::default(),
            places: Places::default(),
            trace,
        }
    }

    // ---- device memory

    pub fn alloc(&mut self, ptr: u64, capacity: usize) {
        self.allocations.insert(ptr, Shadow::new(ptr, capacity));
    }

    pub fn free(&mut self, ptr: u64) {
        self.allocations.remove(&ptr);
    }

    pub fn lend(&mut self, ptr: u64, bytes: usize, keep_larger: bool) {
        if let Some(shadow) = self.allocations.get_mut(&ptr) {
            let bytes = bytes.min(shadow.capacity());
            shadow.bytes = if keep_larger { bytes.max(shadow.bytes) } else { bytes };
        }
        self.set_written(ptr, bytes, false);
    }

    fn allocation(&mut self, address: u64) -> Option<&mut Shadow> {
        let (_, shadow) = self.allocations.range_mut(..=address).next_back()?;
        (address - shadow.start < shadow.capacity().max(1) as u64).then_some(shadow)
    }

    pub fn set_written(&mut self, ptr: u64, bytes: usize, written: bool) {
        if let Some(shadow) = self.allocation(ptr) {
            shadow.set_written((ptr - shadow.start) as usize, bytes, written);
        }
    }

    pub fn copied(&mut self, dst: u64, src: u64, bytes: usize) {
        let Some(shadow) = self.allocation(src) else { return };
        let written = shadow.written((src - shadow.start) as usize, bytes).to_vec();
        for (i, written) in written.into_iter().enumerate() {
            self.set_written(dst + i as u64, 1, written);
        }
    }

    /// The first of `bytes` at `ptr` that nothing has written.
    pub fn unwritten(&mut self, ptr: u64, bytes: usize) -> Option<String> {
        let shadow = self.allocation(ptr)?;
        let offset = shadow.first_unwritten((ptr - shadow.start) as usize, bytes)?;
        Some(format!("copies byte {offset} of an allocation of {} bytes to the host, which nothing has written", shadow.bytes))
    }

    // ---- a launch

    pub fn begin(&mut self, launch: Launch) {
        self.launch += 1;
        (self.grid_blocks, self.block_dim) = (launch.grid.iter().map(|&n| n as usize).product(), launch.block);
        self.blocks.clear();
        self.letters.clear();
        self.traffic = Traffic { launches: 1, ..Traffic::default() };
        self.sectors.iter_mut().for_each(HashSet::clear);
    }

    pub fn end(&mut self, kernel: &str) {
        self.traffic.read.distinct = self.sectors[0].len() as u64;
        self.traffic.write.distinct = self.sectors[1].len() as u64;
        let mut table = self.trace.0.lock().unwrap_or_else(|p| p.into_inner());
        table.entry(kernel.to_owned()).or_default().add(&self.traffic);
    }

    /// A block begins in `slot`, with nothing in its shared memory.
    pub fn enter(&mut self, slot: usize, block: u32, threads: usize, shared: (usize, usize)) {
        let order = Order::new(block, self.grid_blocks, threads);
        if let Some(known) = self.blocks.get_mut(slot) {
            known.order = order;
            known.shared.clear();
            known.tiles.clear();
            return;
        }
        let warps = (0..threads.div_ceil(32)).map(|_| Pending::default()).collect();
        self.blocks.push(Block { order, shared: Shadow::new(shared.0 as u64, shared.1 - shared.0), warps, tiles: Vec::new() });
    }

    /// All live threads of the block have met.
    pub fn barrier(&mut self, slot: usize) {
        self.blocks[slot].order.barrier();
    }

    pub fn sync_warp(&mut self, slot: usize, warp: u32, lanes: u32) {
        self.blocks[slot].order.sync_warp(warp, lanes);
    }

    pub fn fence(&mut self, who: Who) {
        self.blocks[who.slot].order.fence(who.thread);
    }

    /// What `who` has done is known to whoever passes the barrier at `address`.
    pub fn arrive(&mut self, who: Who, address: u64) {
        let order = &mut self.blocks[who.slot].order;
        order.fence(who.thread);
        order.operate(&mut self.letters, who.thread, address);
    }

    pub fn acquire(&mut self, who: Who, address: u64) {
        self.blocks[who.slot].order.acquire(&self.letters, who.thread, address);
    }

    pub fn now(&self, who: Who) -> Moment {
        let order = &self.blocks[who.slot].order;
        Moment { block: order.block, thread: who.thread, time: order.now(who.thread) }
    }

    /// A copy that was begun then is there, for whoever passes the barrier.
    pub fn landed(&mut self, slot: usize, begun: Moment, address: u64, bytes: usize, barrier: u64) {
        self.letters.know(barrier, (begun.block, begun.thread), begun.time);
        let shadow = &mut self.blocks[slot].shared;
        let at = (address - shadow.start) as usize;
        shadow.cells(at, bytes).iter_mut().for_each(|cell| cell.pending = None);
    }

    /// None of the warp's lanes can go on.
    pub fn paused(&mut self, slot: usize, warp: usize) {
        self.blocks[slot].warps[warp].count(&mut self.traffic);
    }

    /// Puts file and line in for every place.
    pub fn explain(&self, what: &str) -> String {
        let mut parts = what.split(MARK);
        let mut out = parts.next().unwrap_or_default().to_owned();
        while let (Some(number), Some(text)) = (parts.next(), parts.next()) {
            let place = number.parse().map_or_else(|_| "?".to_owned(), |n| self.places.describe(Place(n)));
            out.push_str(&place);
            out.push_str(text);
        }
        out
    }

    // ---- accesses

    pub fn place(&mut self, at: *const c_void, line: c_int) -> Place {
        self.places.number((at as usize, line))
    }

    /// An access to device memory, or to what is none: then `None`.
    pub fn global(&mut self, who: Who, address: u64, bytes: usize, how: How, place: Place) -> Option<Result<(), String>> {
        let (_, shadow) = self.allocations.range(..=address).next_back()?;
        let offset = address - shadow.start;
        if offset >= shadow.capacity() as u64 + super::memory::ZONE as u64 {
            return None;
        }
        if offset as usize + bytes > shadow.bytes {
            let (verb, size) = (verb(how), shadow.bytes);
            return Some(Err(format!("{verb} {bytes} bytes at offset {offset} of an allocation of {size} bytes at {place}")));
        }
        let start = shadow.start;
        self.count(who, address, bytes, how, place);
        Some(self.check(who, Some(start), offset as usize, bytes, how, place))
    }

    /// An access to the block's shared memory, inside a variable.
    pub fn shared(&mut self, who: Who, address: u64, bytes: usize, how: How, place: Place) -> Result<(), String> {
        if how != How::Tile {
            let event = Event { place, space: Space::Shared, lane: (who.thread % 32) as u8, address, bytes: bytes as u32 };
            self.push(who, event);
        }
        self.unseen(who, address, bytes, how, place)
    }

    /// As [`Checker::shared`], by what is no instruction of lanes.
    pub fn unseen(&mut self, who: Who, address: u64, bytes: usize, how: How, place: Place) -> Result<(), String> {
        let offset = address - self.blocks[who.slot].shared.start;
        self.check(who, None, offset as usize, bytes, how, place)
    }

    /// What to say of an access that is neither to device memory nor to a shared variable.
    pub fn outside(&self, address: usize, bytes: usize, how: How, place: Place) -> String {
        format!("{} {bytes} bytes at {address:#x}, outside every allocation and variable, at {place}", verb(how))
    }

    pub fn early(&self, address: usize, bytes: usize, how: How, place: Place) -> String {
        format!("{} {bytes} bytes at {address:#x} before it waits for the kernels before it, at {place}", verb(how))
    }

    pub fn misaligned(&self, address: usize, bytes: usize, how: How, place: Place) -> String {
        format!("{} {bytes} bytes at {address:#x}, which is no multiple of that, at {place}", verb(how))
    }

    /// `cp.async` owns `bytes` of shared memory until [`Checker::arrived`].
    pub fn pending(&mut self, who: Who, address: u64, bytes: usize, place: Place) {
        let shadow = &mut self.blocks[who.slot].shared;
        let at = (address - shadow.start) as usize;
        shadow.cells(at, bytes).iter_mut().for_each(|cell| cell.pending = Some(place));
    }

    /// The copy is there, as if its thread had written it now.
    pub fn arrived(&mut self, who: Who, address: u64, bytes: usize) {
        let Block { order, shared, .. } = &mut self.blocks[who.slot];
        let at = (address - shared.start) as usize;
        for cell in shared.cells(at, bytes) {
            let place = cell.pending.take().unwrap_or(cell.write.place);
            (cell.write, cell.read) = (order.stamp(self.launch, who.thread, place), Stamp::default());
        }
    }

    /// A read that was not made after all, so that the lane's next visit of the place is still counted with the other lanes'.
    pub fn pass_by(&mut self, who: Who, place: Place) -> Result<(), String> {
        self.push(who, Event { place, space: Space::Read, lane: (who.thread % 32) as u8, address: 0, bytes: 0 });
        Ok(())
    }

    fn push(&mut self, who: Who, event: Event) {
        let warp = &mut self.blocks[who.slot].warps[who.thread as usize / 32];
        if warp.push(event) {
            warp.count(&mut self.traffic);
        }
    }

    fn count(&mut self, who: Who, address: u64, bytes: usize, how: How, place: Place) {
        let lane = (who.thread % 32) as u8;
        for (space, moves, sectors) in [(Space::Read, how.reads(), 0), (Space::Write, how.writes(), 1)] {
            if moves {
                self.sectors[sectors].extend(address / SECTOR..=(address + bytes as u64 - 1) / SECTOR);
                self.push(who, Event { place, space, lane, address, bytes: bytes as u32 });
            }
        }
    }

    /// `start`: of the allocation; `None` for shared memory.
    fn check(&mut self, who: Who, start: Option<u64>, offset: usize, bytes: usize, how: How, place: Place) -> Result<(), String> {
        let (launch, thread) = (self.launch, who.thread);
        let Block { order, shared, tiles, .. } = &mut self.blocks[who.slot];
        if let (Some(start), true) = (start, how.is_atomic()) {
            match how {
                How::Acquire => order.acquire(&self.letters, thread, start + offset as u64),
                how => {
                    if how == How::Release {
                        order.fence(thread);
                    }
                    order.operate(&mut self.letters, thread, start + offset as u64);
                }
            }
        }
        let shadow = match start {
            None => shared,
            Some(start) => match self.allocations.get_mut(&start) {
                Some(shadow) => shadow,
                None => return Ok(()),
            },
        };
        let memory = || match start {
            None => "shared memory".to_owned(),
            Some(_) => format!("byte {offset} of an allocation"),
        };
        if how.reads()
            && let Some(at) = shadow.first_unwritten(offset, bytes)
        {
            let what = start.map_or("shared memory".to_owned(), |_| format!("byte {at} of an allocation of {} bytes", shadow.bytes));
            return Err(format!("reads {what} at {place}, which nothing has written"));
        }
        let stamp = order.stamp(launch, thread, place);
        let mut conflict = None;
        for cell in shadow.cells(offset, bytes) {
            if let Some(copy) = cell.pending {
                return Err(format!("{} shared memory at {place} while the cp.async of {copy} is on its way there", verb(how)));
            }
            let both_atomic = how.is_atomic() && cell.write.atomic;
            if !both_atomic && !order.follows(&cell.write, launch, thread) {
                conflict = Some((cell.write, "written"));
                break;
            }
            if how.writes() {
                if !order.follows(&cell.read, launch, thread) {
                    conflict = Some((cell.read, "read"));
                    break;
                }
                let stamp = Stamp { atomic: how.is_atomic(), ..stamp };
                match both_atomic && cell.write.block == stamp.block {
                    true => order.remember(&mut cell.write, stamp, thread),
                    false => cell.write = stamp,
                }
                cell.read = Stamp::default();
            } else if !matches!(how, How::Acquire | How::Tile) {
                order.remember(&mut cell.read, stamp, thread);
            }
        }
        if how.writes() {
            shadow.set_written(offset, bytes, true);
        }
        if start.is_none() && (how.writes() || how == How::Tile) {
            let end = offset + bytes;
            let meets = |range: &Range<usize>| range.start < end && offset < range.end;
            if how == How::Tile {
                tiles.retain(|(range, earlier)| !(*range == (offset..end) && order.follows(earlier, launch, thread)));
                tiles.push((offset..end, stamp));
            } else if let Some((_, read)) = tiles.iter().find(|(range, read)| meets(range) && !order.follows(read, launch, thread)) {
                conflict = conflict.or(Some((*read, "read")));
            } else {
                tiles.retain(|(range, _)| !meets(range));
            }
        }
        match conflict {
            None => Ok(()),
            Some((other, did)) => Err(format!(
                "race: {} {} at {place}, which {} has {did} at {} with nothing to order them",
                verb(how),
                memory(),
                self.name(&other),
                other.place,
            )),
        }
    }

    /// The threads of a stamp, in words.
    fn name(&self, stamp: &Stamp) -> String {
        let number = 32 * stamp.warp + stamp.lanes.trailing_zeros();
        let [x, y, _] = self.block_dim;
        let thread = [number % x, number / x % y, number / x / y];
        match stamp.reach {
            Reach::Warp => format!("thread {thread:?} of block {}", stamp.block),
            Reach::Block => format!("thread {thread:?} of block {}, among others,", stamp.block),
            Reach::Grid => format!("thread {thread:?} of block {}, among other blocks,", stamp.block),
        }
    }
}

fn verb(how: How) -> &'static str {
    match how {
        How::Read | How::MatrixRow | How::Tile | How::Acquire => "reads",
        How::Write | How::Release => "writes",
        How::Atomic => "updates",
    }
}
