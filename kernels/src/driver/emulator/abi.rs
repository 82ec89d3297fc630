//! What a compiled kernel and the scheduler know of each other: the mirror of `emulator/runtime.h`.

use std::ffi::{c_char, c_int, c_void};

use super::hopper::Product;
use super::scheduler::Thread;

/// `swara::WHY_BYTES`.
pub(super) const WHY_BYTES: usize = 160;

/// `swara::Meeting`: does a meeting's work for all lanes; returns -1, or the lane at fault and why.
pub(super) type Meeting = unsafe extern "C" fn(lanes: *mut *mut c_void, present: u32, why: *mut c_char) -> c_int;

/// `swara::Runtime`.
#[repr(C)]
pub(super) struct Runtime {
    pub meet: unsafe extern "C" fn(*mut Thread, u32, *const c_char, *const c_char, c_int, *mut c_void, Option<Meeting>),
    pub barrier: unsafe extern "C" fn(*mut Thread, c_int, c_int, *const c_char, c_int) -> c_int,
    pub spin: unsafe extern "C" fn(*mut Thread),
    pub shared: unsafe extern "C" fn(*mut Thread, *const c_void, *const c_char, usize, usize) -> *mut c_void,
    pub dynamic_shared: unsafe extern "C" fn(*mut Thread) -> *mut c_void,
    pub copy_async: unsafe extern "C" fn(*mut Thread, *mut c_void, *const c_void, c_int, c_int, *const c_char, c_int),
    pub commit: unsafe extern "C" fn(*mut Thread),
    pub wait: unsafe extern "C" fn(*mut Thread, c_int),
    pub fault: unsafe extern "C" fn(*mut Thread, *const c_char, *const c_char, c_int),
    pub access: unsafe extern "C" fn(*mut Thread, *const c_void, usize, c_int, *const c_void, c_int),
    pub fence: unsafe extern "C" fn(*mut Thread),
    pub mbarrier: unsafe extern "C" fn(*mut Thread, c_int, *mut c_void, u32, *const c_char, c_int) -> c_int,
    pub copy_bulk: unsafe extern "C" fn(*mut Thread, *mut c_void, *const c_void, c_int, *mut c_void, *const c_char, c_int),
    pub products: unsafe extern "C" fn(*mut Thread, c_int, *mut Product, c_int) -> c_int,
    pub predecessors: unsafe extern "C" fn(*mut Thread),
}

/// `swara::Kernel`.
#[repr(C)]
pub(super) struct Kernel {
    pub name: *const c_char,
    /// Absent if this architecture's text leaves the kernel out.
    pub call: Option<unsafe extern "C" fn(*mut *mut c_void)>,
    sizes: *const u32,
    count: u32,
}

impl Kernel {
    /// Bytes of each parameter.
    pub fn sizes(&self) -> &[u32] {
        if self.call.is_none() {
            return &[];
        }
        // SAFETY: the library exports both together, and is never unloaded.
        unsafe { std::slice::from_raw_parts(self.sizes, self.count as usize) }
    }
}
