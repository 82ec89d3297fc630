//! NVTX ranges, without NVIDIA's headers or libraries.
//!
//! NVTX 3 is a protocol, not a library (`libnvToolsExt` left CUDA with 12.9): a tool that starts a program names its own library
//! in `NVTX_INJECTION64_PATH`; the program loads that, and calls its `InitializeInjectionNvtx2` with a function from which the
//! tool gets tables of slots; the tool writes its implementations into the slots. A program that was not started by such a tool
//! finds no variable, and ranges stay off. Layouts and numbers are those of `nvtxTypes.h`, NVTX 3 (frozen: a tool must serve
//! programs of every age).

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use libloading::Library;

const VARIABLE: &str = if cfg!(target_pointer_width = "64") { "NVTX_INJECTION64_PATH" } else { "NVTX_INJECTION32_PATH" };

/// Callback identifiers of a module, number 0 included: core, CUDA, OpenCL, CUDA runtime, core 2, sync. Modules count from 1.
const MODULES: [usize; 6] = [16, 9, 15, 7, 16, 7];
const MOST: usize = 16;
const CORE: usize = 0;
const RANGE_PUSH_A: usize = 9;
const RANGE_POP: usize = 11;

const CALLBACKS: u32 = 1;
const VERSION_INFO: u32 = 3;
const VERSION: u32 = 3;

/// Where a tool writes its implementations.
static SLOTS: [[AtomicPtr<c_void>; MOST]; MODULES.len()] = [const { [const { AtomicPtr::new(null_mut()) }; MOST] }; MODULES.len()];

/// Pointers to the slots of a module; entry 0 and the one after the last are null.
type Table = [*const AtomicPtr<c_void>; MOST + 1];

struct Tables([Table; MODULES.len()]);

// SAFETY: they point at statics, and are never written after they were made.
unsafe impl Send for Tables {}
// SAFETY: as above.
unsafe impl Sync for Tables {}

fn tables() -> &'static Tables {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    TABLES.get_or_init(|| {
        Tables(std::array::from_fn(|module| {
            std::array::from_fn(|id| if (1..MODULES[module]).contains(&id) { &raw const SLOTS[module][id] } else { null() })
        }))
    })
}

#[repr(C)]
struct Callbacks {
    size: usize,
    module_table: extern "C" fn(c_int, *mut *const *const AtomicPtr<c_void>, *mut c_uint) -> c_int,
}

#[repr(C)]
struct VersionInfo {
    size: usize,
    version: u32,
    reserved: u32,
    set_tool_version: extern "C" fn(u32),
}

type Initialise = unsafe extern "C" fn(extern "C" fn(u32) -> *const c_void) -> c_int;

/// What a tool asks first.
extern "C" fn export_table(id: u32) -> *const c_void {
    static CALLBACK_TABLE: Callbacks = Callbacks { size: size_of::<Callbacks>(), module_table };
    static VERSION_TABLE: VersionInfo = VersionInfo { size: size_of::<VersionInfo>(), version: VERSION, reserved: 0, set_tool_version };
    match id {
        CALLBACKS => (&raw const CALLBACK_TABLE).cast(),
        VERSION_INFO => (&raw const VERSION_TABLE).cast(),
        _ => null(),
    }
}

extern "C" fn module_table(module: c_int, table: *mut *const *const AtomicPtr<c_void>, size: *mut c_uint) -> c_int {
    let Some(module) = usize::try_from(module).ok().and_then(|module| module.checked_sub(1)).filter(|&module| module < MODULES.len())
    else {
        return 0;
    };
    // SAFETY: the tool's out-parameters; either may be null. Tools write through the table with plain stores, before
    // `attach` returns.
    unsafe {
        if !table.is_null() {
            *table = tables().0[module].as_ptr();
        }
        if !size.is_null() {
            *size = MODULES[module] as c_uint;
        }
    }
    1
}

extern "C" fn set_tool_version(_: u32) {}

/// Loads the tool that started this program, if one did. Called once, by the first span.
///
/// # Errors
/// Why there are no ranges, in words.
pub(super) fn attach() -> Result<(), String> {
    let path = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).ok_or("no tool is attached")?;
    let refuse = |why: String| format!("{VARIABLE}: {why}");
    // SAFETY: loading runs the library's initialisers: it is what whoever set the variable asks for.
    let library = unsafe { Library::new(&path) }.map_err(|e| refuse(e.to_string()))?;
    // SAFETY: the signature is that of nvtxTypes.h.
    let initialise =
        unsafe { library.get::<Initialise>(c"InitializeInjectionNvtx2".to_bytes_with_nul()) }.map_err(|e| refuse(e.to_string()))?;
    // SAFETY: as the protocol has it; tables and slots live as long as the process.
    if unsafe { initialise(export_table) } == 0 {
        for slot in SLOTS.iter().flatten() {
            slot.store(null_mut(), Ordering::Release); // they may point into a library that is about to go
        }
        return Err(refuse("the tool's library refused".into()));
    }
    let _ = ManuallyDrop::new(library);
    match SLOTS[CORE][RANGE_PUSH_A].load(Ordering::Acquire).is_null() || SLOTS[CORE][RANGE_POP].load(Ordering::Acquire).is_null() {
        true => Err(refuse("the tool takes no ranges".into())),
        false => Ok(()),
    }
}

/// Names are cut to what fits here, so that a range allocates nothing.
const LONGEST: usize = 127;

/// Opens a range; `false` if nobody takes it.
pub(super) fn push(name: &str) -> bool {
    let implementation = SLOTS[CORE][RANGE_PUSH_A].load(Ordering::Acquire);
    if implementation.is_null() {
        return false;
    }
    let mut text = [0u8; LONGEST + 1];
    let used = (0..=name.len().min(LONGEST)).rev().find(|&n| name.is_char_boundary(n)).unwrap_or(0);
    text[..used].copy_from_slice(&name.as_bytes()[..used]);
    let Ok(message) = CStr::from_bytes_until_nul(&text) else { return false };
    // SAFETY: what a tool wrote into this slot is an nvtxRangePushA; it copies the message.
    unsafe {
        let push: unsafe extern "C" fn(*const c_char) -> c_int = std::mem::transmute(implementation);
        push(message.as_ptr());
    }
    true
}

/// Closes the range that this thread opened last.
pub(super) fn pop() {
    let implementation = SLOTS[CORE][RANGE_POP].load(Ordering::Acquire);
    if !implementation.is_null() {
        // SAFETY: what a tool wrote into this slot is an nvtxRangePop.
        unsafe {
            let pop: unsafe extern "C" fn() -> c_int = std::mem::transmute(implementation);
            pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_have_the_sizes_and_nulls_that_tools_count_on() {
        assert!(export_table(0).is_null() && export_table(2).is_null() && export_table(u32::MAX).is_null());
        // SAFETY: as a tool reads them.
        unsafe {
            let callbacks = &*export_table(CALLBACKS).cast::<Callbacks>();
            assert_eq!(callbacks.size, 2 * size_of::<usize>());
            assert_eq!((*export_table(VERSION_INFO).cast::<VersionInfo>()).version, 3);
            for (module, ids) in MODULES.into_iter().enumerate() {
                let (mut table, mut size) = (null(), 0);
                assert_eq!((callbacks.module_table)(module as c_int + 1, &mut table, &mut size), 1);
                assert_eq!(size as usize, ids);
                let entries = std::slice::from_raw_parts(table, ids + 1);
                assert!(entries[0].is_null() && entries[ids].is_null() && entries[1..ids].iter().all(|entry| !entry.is_null()));
                assert_eq!((callbacks.module_table)(module as c_int + 1, null_mut(), null_mut()), 1);
            }
            for none in [0, -1, 7, c_int::MAX, c_int::MIN] {
                assert_eq!((callbacks.module_table)(none, null_mut(), null_mut()), 0);
            }
        }
    }

    #[test]
    fn ranges_nobody_takes_are_no_ranges() {
        assert!(!push("unheard"));
        pop();
    }
}
