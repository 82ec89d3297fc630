//! What a running kernel calls for barriers in shared memory, the copies that report to them, and products of tiles: Hopper's
//! asynchronous half. Everything happens as late as it may - a copy when somebody waits for its barrier, a product when its group
//! is waited for - so that whoever does not wait sees what was there before.

use std::collections::VecDeque;
use std::ffi::{c_char, c_int, c_void};

use super::calls::raise;
use super::checker::{How, Moment};
use super::memory::UNWRITTEN;
use super::scheduler::{Site, Thread, Worker, plain};

const PIECE: usize = 16;

/// `Barrier` of ptx.cuh, as the emulator writes it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Barrier {
    /// Arrivals that end a phase.
    arrivals: u16,
    /// Those that are still to come in this phase; the highest bit is the phase's parity.
    missing: u16,
    /// Bytes that are expected and not there yet.
    bytes: i32,
}

const PARITY: u16 = 1 << 15;

impl Barrier {
    fn parity(self) -> u32 {
        u32::from(self.missing >> 15)
    }

    fn end_phase(&mut self) {
        if self.missing & !PARITY == 0 && self.bytes == 0 {
            self.missing = (self.missing & PARITY ^ PARITY) | self.arrivals;
        }
    }
}

/// 16 bytes on their way to shared memory.
pub(super) struct BulkCopy {
    barrier: u64,
    dst: *mut u8,
    src: *const u8,
    valid: usize,
    /// When it was begun, for the checker.
    begun: Moment,
}

/// `swara::Product`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Product {
    _what: [u64; 7],
    file: *const c_char,
    line: c_int,
}

/// Products of one thread that it has not waited for, with the numbers of their groups.
#[derive(Default)]
pub(super) struct Products {
    pending: VecDeque<(u32, Product)>,
    group: u32,
    /// Whether a fence stands between the last touch of registers and now.
    fenced: bool,
}

/// `swara::BarrierOperation`.
pub(super) unsafe extern "C" fn mbarrier(
    thread: *mut Thread,
    operation: c_int,
    barrier: *mut c_void,
    value: u32,
    file: *const c_char,
    line: c_int,
) -> c_int {
    const INIT: c_int = 0;
    const ARRIVE: c_int = 1;
    // SAFETY: the running fiber's thread; the barrier is checked to be shared memory of its block before it is touched.
    unsafe {
        let block = &mut *(*thread).block;
        let (site, at, who) = (Site { file, line }, barrier as u64, (*thread).who());
        let (begin, end) = (*thread).shared;
        let wrong = |what: String| raise(thread, plain(format!("a barrier at {site} {what}")));
        if !at.is_multiple_of(8) || (at as usize) < begin || at as usize + 8 > end || !block.shared.inside(at as usize, 8) {
            wrong("is no variable of 8 bytes in shared memory".to_owned());
        }
        let state = &mut *barrier.cast::<Barrier>();
        if let Some(checker) = Worker::checker(block.worker) {
            let place = checker.place(file.cast(), line);
            let how = if operation == INIT { How::Write } else { How::Atomic };
            if let Err(what) = checker.unseen(who, at, 8, how, place) {
                raise(thread, plain(what));
            }
        }
        if operation == INIT {
            if value == 0 || value >= u32::from(PARITY) {
                wrong(format!("is made for {value} arrivals"));
            }
            *state = Barrier { arrivals: value as u16, missing: value as u16, bytes: 0 };
            return 0;
        }
        if state.arrivals & PARITY != 0 {
            wrong("was not initialised".to_owned());
        }
        if operation == ARRIVE {
            if state.missing & !PARITY == 0 {
                wrong("has more arrivals than it was made for".to_owned());
            }
            if let Some(checker) = Worker::checker(block.worker) {
                checker.arrive(who, at);
            }
            (*block.worker).moves += 1;
            state.missing -= 1;
            state.bytes += value as i32;
            state.end_phase();
            return 0;
        }
        if state.parity() == value {
            land(block.worker, block.slot, &mut block.bulk, state, at);
        }
        let ended = state.parity() != value;
        if let (true, Some(checker)) = (ended, Worker::checker(block.worker)) {
            checker.acquire(who, at);
        }
        ended as c_int
    }
}

/// Makes the copies that report to the barrier at `at`.
unsafe fn land(worker: *mut Worker, slot: usize, bulk: &mut Vec<BulkCopy>, state: &mut Barrier, at: u64) {
    // SAFETY: `copy_bulk` checked both ends of each copy.
    unsafe {
        for copy in bulk.extract_if(.., |copy| copy.barrier == at) {
            copy.dst.copy_from(copy.src, copy.valid);
            copy.dst.add(copy.valid).write_bytes(0, PIECE - copy.valid);
            if let Some(checker) = Worker::checker(worker) {
                checker.landed(slot, copy.begun, copy.dst as u64, PIECE, at);
            }
            state.bytes -= PIECE as i32;
            state.end_phase();
        }
    }
}

pub(super) unsafe extern "C" fn copy_bulk(
    thread: *mut Thread,
    dst: *mut c_void,
    src: *const c_void,
    valid: c_int,
    barrier: *mut c_void,
    file: *const c_char,
    line: c_int,
) {
    // SAFETY: as above.
    unsafe {
        let block = &mut *(*thread).block;
        let (site, valid, who) = (Site { file, line }, valid as usize, (*thread).who());
        let wrong = |what: String| raise(thread, plain(format!("copy_tile at {site} {what}")));
        let (begin, end) = (*thread).shared;
        if (dst as usize) < begin || dst as usize + PIECE > end || !block.shared.inside(dst as usize, PIECE) {
            wrong("writes outside shared memory".to_owned());
        }
        let memory = (*(*block.worker).job).memory;
        if let Some(outside) = (valid > 0).then(|| memory.holds(src as u64, valid).err()).flatten() {
            wrong(format!("reads outside device memory: {outside}"));
        }
        let mut begun = Moment::default();
        if let Some(checker) = Worker::checker(block.worker) {
            let place = checker.place(file.cast(), line);
            if let Err(what) = checker.unseen(who, dst as u64, PIECE, How::Write, place) {
                raise(thread, plain(what));
            }
            checker.pending(who, dst as u64, PIECE, place);
            begun = checker.now(who);
        }
        dst.cast::<u8>().write_bytes(UNWRITTEN, PIECE);
        block.bulk.push(BulkCopy { barrier: barrier as u64, dst: dst.cast(), src: src.cast(), valid, begun });
    }
}

/// `swara::ProductOperation`.
pub(super) unsafe extern "C" fn products(thread: *mut Thread, operation: c_int, product: *mut Product, pending: c_int) -> c_int {
    const FENCE: c_int = 0;
    const MULTIPLY: c_int = 1;
    const COMMIT: c_int = 2;
    // SAFETY: the running fiber's thread; `product` is there to be read for MULTIPLY, and to be written for what remains.
    unsafe {
        let products = &mut (*thread).products;
        match operation {
            FENCE => products.fenced = true,
            MULTIPLY if !products.fenced => {
                let Product { file, line, .. } = *product;
                raise(thread, plain(format!("wgmma at {} without a wgmma_fence since sums may have been touched", Site { file, line })));
            }
            MULTIPLY => products.pending.push_back((products.group, *product)),
            COMMIT => products.group += 1,
            _ => {
                products.fenced = false;
                let Some(&(group, next)) = products.pending.front() else { return 0 };
                if group + pending as u32 >= products.group {
                    return 0;
                }
                *product = next;
                products.pending.pop_front();
                return 1;
            }
        }
        0
    }
}
