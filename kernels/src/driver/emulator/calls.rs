//! What a running kernel calls: the scheduler's side of `runtime.h`. Everything here runs on the stack of a fiber.
//!
//! What holds memory across [`raise`] is leaked, for a faulted fiber is never continued.

use std::ffi::{CStr, c_char, c_int, c_void};

use super::abi::{Meeting, Runtime};
use super::checker::How;
use super::fiber;
use super::hopper::{copy_bulk, mbarrier, products};
use super::memory::UNWRITTEN;
use super::scheduler::{Fault, PendingCopy, Site, Thread, Wait, Worker, plain};

pub(super) static RUNTIME: Runtime = Runtime {
    meet,
    barrier,
    spin,
    shared,
    dynamic_shared,
    copy_async,
    commit,
    wait,
    fault,
    access,
    fence,
    mbarrier,
    copy_bulk,
    products,
    predecessors,
};

/// Where a fiber begins.
pub(super) extern "C" fn thread_main(thread: usize) -> ! {
    let thread = thread as *mut Thread;
    // SAFETY: the worker holds thread, block and job until all fibers are gone; only this fiber runs on this host thread.
    unsafe {
        let worker = (*(*thread).block).worker;
        let job = (*worker).job;
        if let Some(kernel) = (*job).kernel.call {
            kernel((*job).args);
        }
        if !(*thread).waited {
            raise(thread, plain("is one of `// dependents:` and never waits for the kernels before it".to_owned()));
        }
        exit(thread)
    }
}

/// # Safety
/// For all functions here: `thread` is the running fiber's.
unsafe fn exit(thread: *mut Thread) -> ! {
    // SAFETY: see `thread_main`.
    unsafe {
        let block = &mut *(*thread).block;
        let (warp, bit) = ((*thread).number / 32, 1u32 << (*thread).lane);
        (*thread).wait = Wait::Exited;
        block.warps[warp].live &= !bit;
        block.live -= 1;
        // Those who remain may have been waiting for this thread alone.
        let mut outcome = block.complete_barrier();
        for lane in 0..32 {
            if block.warps[warp].meeting >> lane & 1 == 1 {
                outcome = outcome.and_then(|()| block.complete_meeting(warp, lane).map(drop));
            }
        }
        if let Err(fault) = outcome {
            raise(thread, fault);
        }
        leave(thread);
    }
    unreachable!("an exited thread is never continued")
}

/// Goes on with another lane of the warp, or with the scheduler if none can run.
unsafe fn leave(thread: *mut Thread) {
    // SAFETY: see `thread_main`.
    unsafe {
        let block = (*thread).block;
        let worker = (*block).worker;
        let number = (*thread).number;
        let warp = &mut (&mut (*block).warps)[number / 32];
        warp.runnable &= !(1 << (number % 32));
        let runnable = warp.runnable;
        if !matches!((*thread).wait, Wait::Spin) {
            (*worker).moves += 1;
        }
        let to = if runnable == 0 {
            (*worker).context
        } else {
            let lane = (*worker).pick(runnable);
            let next: *mut Thread = &mut (&mut (*block).threads)[(number & !31) + lane];
            *(*worker).current = next;
            (*next).context
        };
        fiber::switch(&mut (*thread).context, to);
    }
}

/// Reports and gives the fiber up.
pub(super) unsafe fn raise(thread: *mut Thread, fault: Fault) -> ! {
    // SAFETY: see `thread_main`.
    unsafe {
        let worker = (*(*thread).block).worker;
        (*worker).fault.get_or_insert(fault);
        fiber::switch(&mut (*thread).context, (*worker).context);
    }
    unreachable!("a faulted thread is never continued")
}

unsafe extern "C" fn meet(
    thread: *mut Thread,
    mask: u32,
    what: *const c_char,
    file: *const c_char,
    line: c_int,
    args: *mut c_void,
    work: Option<Meeting>,
) {
    // SAFETY: see `thread_main`; the pointers come from the kernel's library.
    unsafe {
        let block = &mut *(*thread).block;
        let (warp, lane) = ((*thread).number / 32, (*thread).lane as usize);
        let site = Site { file, line };
        if mask >> lane & 1 == 0 {
            let what = CStr::from_ptr(what).to_string_lossy();
            raise(thread, plain(format!("{what} at {site} is called by lane {lane}, which is outside its mask {mask:#010x}")));
        }
        (*thread).wait = Wait::Meeting { what, site, mask, args, work };
        block.warps[warp].meeting |= 1 << lane;
        match block.complete_meeting(warp, lane) {
            Ok(true) => (*block.worker).moves += 1,
            Ok(false) => leave(thread),
            Err(fault) => raise(thread, fault),
        }
    }
}

unsafe extern "C" fn barrier(thread: *mut Thread, operation: c_int, value: c_int, file: *const c_char, line: c_int) -> c_int {
    // SAFETY: see `thread_main`.
    unsafe {
        let block = &mut *(*thread).block;
        (*thread).wait = Wait::Barrier { operation, value, site: Site { file, line } };
        block.at_barrier += 1;
        // The last one runs on: its warp has the freshest registers, and another order is as legal.
        if let Err(fault) = block.complete_barrier() {
            raise(thread, fault);
        }
        if matches!((*thread).wait, Wait::Barrier { .. }) {
            leave(thread);
        } else {
            (*block.worker).moves += 1;
        }
        (*thread).barrier_result
    }
}

unsafe extern "C" fn spin(thread: *mut Thread) {
    // SAFETY: see `thread_main`.
    unsafe {
        (*thread).wait = Wait::Spin;
        (&mut (*(*thread).block).warps)[(*thread).number / 32].spinning |= 1 << (*thread).lane;
        leave(thread);
        (*thread).wait = Wait::Nothing;
    }
}

unsafe extern "C" fn shared(thread: *mut Thread, site: *const c_void, name: *const c_char, bytes: usize, align: usize) -> *mut c_void {
    // SAFETY: see `thread_main`; `name` is a literal of the kernel's library.
    unsafe {
        let name = CStr::from_ptr(name).to_str().unwrap_or("?");
        match (*(*thread).block).shared.variable(site as usize, name, bytes, align) {
            Ok(address) => address.cast(),
            Err(what) => raise(thread, plain(what)),
        }
    }
}

unsafe extern "C" fn dynamic_shared(thread: *mut Thread) -> *mut c_void {
    // SAFETY: see `thread_main`.
    unsafe { (*(*thread).block).shared.dynamic().cast() }
}

unsafe extern "C" fn copy_async(
    thread: *mut Thread,
    dst: *mut c_void,
    src: *const c_void,
    bytes: c_int,
    valid: c_int,
    file: *const c_char,
    line: c_int,
) {
    // SAFETY: see `thread_main`. The destination is checked to be shared memory of this block before it is written.
    unsafe {
        let site = Site { file, line };
        let (bytes, valid) = (bytes as usize, valid as usize);
        let (begin, end) = (*thread).shared;
        let worker = (*(*thread).block).worker;
        let memory = (*(*worker).job).memory;
        let outside = if valid > 0 { memory.holds(src as u64, valid).err() } else { None };
        let wrong = if (dst as usize) < begin || dst as usize + bytes > end {
            Some("writes outside shared memory".to_owned())
        } else if valid > 0 && !(*thread).waited {
            Some("reads before it waits for the kernels before it".to_owned())
        } else if !(dst as usize).is_multiple_of(bytes) || (valid > 0 && !(src as usize).is_multiple_of(bytes)) {
            Some(format!("is not aligned to its {bytes} bytes"))
        } else {
            outside.map(|o| format!("reads outside device memory: {o}"))
        };
        if let Some(wrong) = wrong {
            raise(thread, plain(format!("cp_async{bytes} at {site} {wrong}")));
        }
        if let Some(checker) = Worker::checker(worker) {
            let place = checker.place(file.cast(), line);
            let who = (*thread).who();
            let read = match valid {
                0 => checker.pass_by(who, place),
                _ => checker.global(who, src as u64, valid, How::Read, place).unwrap_or(Ok(())),
            };
            if let Err(what) = read.and_then(|()| checker.shared(who, dst as u64, bytes, How::Write, place)) {
                raise(thread, plain(what));
            }
            checker.pending(who, dst as u64, bytes, place);
        }
        dst.cast::<u8>().write_bytes(UNWRITTEN, bytes);
        let group = (*thread).group;
        (*thread).copies.push_back(PendingCopy { group, dst: dst.cast(), src: src.cast(), bytes, valid });
    }
}

unsafe extern "C" fn commit(thread: *mut Thread) {
    // SAFETY: see `thread_main`.
    unsafe { (*thread).group += 1 }
}

unsafe extern "C" fn wait(thread: *mut Thread, pending: c_int) {
    // SAFETY: see `thread_main`; `copy_async` checked both ends of each copy.
    unsafe {
        let copies = &mut (*thread).copies;
        while let Some(copy) = copies.front().filter(|c| c.group + (pending as u32) < (*thread).group) {
            copy.dst.copy_from(copy.src, copy.valid);
            copy.dst.add(copy.valid).write_bytes(0, copy.bytes - copy.valid);
            if let Some(checker) = Worker::checker((*(*thread).block).worker) {
                checker.arrived((*thread).who(), copy.dst as u64, copy.bytes);
            }
            copies.pop_front();
        }
    }
}

/// `swara::ALIGNED`.
const ALIGNED: c_int = 64;

/// A checked build is about to access memory.
unsafe extern "C" fn access(thread: *mut Thread, at: *const c_void, bytes: usize, how: c_int, place: *const c_void, line: c_int) {
    // SAFETY: see `thread_main`.
    unsafe {
        let block = (*thread).block;
        let worker = (*block).worker;
        let aligned = how & ALIGNED != 0;
        let (Some(checker), Some(how)) = (Worker::checker(worker), How::from_code(how & !ALIGNED)) else { return };
        let address = at as usize;
        if bytes == 0 || (*worker).holds_stack(address) {
            return;
        }
        let who = (*thread).who();
        let (begin, end) = (*thread).shared;
        let place = checker.place(place, line);
        let outcome = if aligned && !address.is_multiple_of(bytes) {
            Err(checker.misaligned(address, bytes, how, place))
        } else if (begin..end).contains(&address) {
            match (*block).shared.inside(address, bytes) {
                true => checker.shared(who, address as u64, bytes, how, place),
                false => Err(checker.outside(address, bytes, how, place)),
            }
        } else {
            match checker.global(who, address as u64, bytes, how, place) {
                Some(Ok(())) if !(*thread).waited => Err(checker.early(address, bytes, how, place)),
                Some(outcome) => outcome,
                None if (*worker).knows(&*block, address) => Ok(()),
                None => Err(checker.outside(address, bytes, how, place)),
            }
        };
        if let Err(what) = outcome {
            raise(thread, plain(what));
        }
    }
}

unsafe extern "C" fn predecessors(thread: *mut Thread) {
    // SAFETY: see `thread_main`.
    unsafe { (*thread).waited = true }
}

unsafe extern "C" fn fence(thread: *mut Thread) {
    // SAFETY: see `thread_main`.
    unsafe {
        if let Some(checker) = Worker::checker((*(*thread).block).worker) {
            checker.fence((*thread).who());
        }
    }
}

unsafe extern "C" fn fault(thread: *mut Thread, why: *const c_char, file: *const c_char, line: c_int) {
    // SAFETY: see `thread_main`; both strings are terminated.
    unsafe {
        let fault = plain(format!("{} at {}", CStr::from_ptr(why).to_string_lossy(), Site { file, line }));
        raise(thread, fault)
    }
}
