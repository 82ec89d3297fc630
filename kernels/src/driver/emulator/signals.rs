//! Turns a crash inside a kernel - a wild address, a misaligned vector, a division by zero - into a fault of that kernel.

use super::fiber::Context;

/// Shared by a worker and the signal handler of its host thread.
pub(super) struct Watch {
    /// The scheduler's context while a fiber runs, else null.
    pub scheduler: *const Context,
    signal: i32,
    address: usize,
}

impl Default for Watch {
    fn default() -> Watch {
        Watch { scheduler: std::ptr::null(), signal: 0, address: 0 }
    }
}

impl Watch {
    pub fn caught(&self) -> bool {
        self.signal != 0
    }

    /// What was caught, in words.
    pub fn take(&mut self, is_stack_guard: impl Fn(usize) -> bool) -> Option<String> {
        let address = self.address;
        match std::mem::take(&mut self.signal) {
            0 => None,
            libc::SIGFPE => Some("divides an integer by zero".to_owned()),
            libc::SIGILL => Some("runs into a trap".to_owned()),
            _ if is_stack_guard(address) => Some("overflows its stack: local arrays or recursion take too much".to_owned()),
            _ if address == 0 => Some("accesses address 0, or a vector that is not aligned to its size".to_owned()),
            _ => Some(format!("accesses {address:#x}, which is no memory")),
        }
    }
}

/// Until the guard is dropped, crashes on this host thread while `watch.scheduler` is set go there.
pub(super) fn watch(watch: *mut Watch) -> Guard {
    handler::install();
    handler::WATCH.set(watch);
    Guard
}

pub(super) struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        handler::WATCH.set(std::ptr::null_mut());
    }
}

#[cfg(target_os = "linux")]
mod handler {
    use std::cell::Cell;
    use std::ffi::{c_int, c_void};
    use std::mem::MaybeUninit;
    use std::sync::OnceLock;

    use super::Watch;
    use crate::driver::emulator::fiber;

    const SIGNALS: [c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL];
    static PREVIOUS: OnceLock<[libc::sigaction; 4]> = OnceLock::new();

    thread_local! {
        pub static WATCH: Cell<*mut Watch> = const { Cell::new(std::ptr::null_mut()) };
    }

    /// Once a process. Threads of the standard library have a stack for signals already.
    pub fn install() {
        PREVIOUS.get_or_init(|| {
            SIGNALS.map(|signal| {
                let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
                // SAFETY: all-zero is a valid sigaction; the handler is async-signal-safe.
                unsafe {
                    let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
                    action.sa_sigaction = on_signal as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
                    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                    libc::sigaction(signal, &action, previous.as_mut_ptr());
                    previous.assume_init()
                }
            })
        });
    }

    extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
        let watch = WATCH.get();
        // SAFETY: the guard clears the pointer before the watch goes; `scheduler` is set only while a fiber runs, and then
        // holds a suspended context on this host thread's own stack. `info` and `context` come from the kernel.
        unsafe {
            if !watch.is_null() && !(*watch).scheduler.is_null() {
                (*watch).signal = signal;
                (*watch).address = (*info).si_addr() as usize;
                let machine = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
                #[cfg(target_arch = "x86_64")]
                {
                    machine.gregs[libc::REG_RSP as usize] = *(*watch).scheduler as i64;
                    machine.gregs[libc::REG_RIP as usize] = fiber::resume as *const () as i64;
                }
                #[cfg(target_arch = "aarch64")]
                {
                    machine.sp = *(*watch).scheduler as u64;
                    machine.pc = fiber::resume as *const () as u64;
                }
                return;
            }
        }
        // Not ours: put back whoever was there; the instruction runs again and they get it.
        let index = SIGNALS.iter().position(|&s| s == signal).unwrap_or(0);
        if let Some(previous) = PREVIOUS.get() {
            // SAFETY: as it was given to us by the system.
            unsafe { libc::sigaction(signal, &previous[index], std::ptr::null_mut()) };
        }
    }
}

/// Elsewhere a crash ends the process, as any other would.
#[cfg(not(target_os = "linux"))]
mod handler {
    use super::Watch;
    use std::cell::Cell;
    thread_local! {
        pub static WATCH: Cell<*mut Watch> = const { Cell::new(std::ptr::null_mut()) };
    }
    pub fn install() {}
}
