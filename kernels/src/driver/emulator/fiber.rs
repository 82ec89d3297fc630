//! One CUDA thread is one fiber: a stack, and a switch between stacks that saves what the calling convention makes a callee save.

use std::arch::naked_asm;

/// A suspended fiber's stack pointer; its registers lie there.
pub(super) type Context = usize;

/// Saves the running fiber in `*save` and continues `to`. Returns when somebody continues `*save`.
///
/// # Safety
/// `to` must be a context that was saved or prepared and has not been continued since, on a stack that is still there.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn switch(save: *mut Context, to: Context) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "jmp {resume}",
        resume = sym resume,
    )
}

/// Continues the context that the stack pointer points to: where a signal handler sends a faulting fiber's host thread.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn resume() {
    naked_asm!("pop r15", "pop r14", "pop r13", "pop r12", "pop rbx", "pop rbp", "ret")
}

#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn start() {
    naked_asm!("mov rdi, rbx", "call r12", "ud2")
}

#[cfg(target_arch = "x86_64")]
const FRAME: usize = 7; // six registers and the return address

/// # Safety
/// `top` must be the 16-byte aligned end of a writable stack.
#[cfg(target_arch = "x86_64")]
unsafe fn prepare(top: *mut usize, main: extern "C" fn(usize) -> !, argument: usize) -> Context {
    let frame: [usize; FRAME] = [0, 0, 0, main as *const () as usize, argument, 0, start as *const () as usize];
    // SAFETY: the frame lies inside the stack.
    unsafe {
        let sp = top.sub(FRAME);
        sp.cast::<[usize; FRAME]>().write(frame);
        sp as Context
    }
}

#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn switch(save: *mut Context, to: Context) {
    naked_asm!(
        "sub sp, sp, #160",
        "stp x19, x20, [sp, #0]",
        "stp x21, x22, [sp, #16]",
        "stp x23, x24, [sp, #32]",
        "stp x25, x26, [sp, #48]",
        "stp x27, x28, [sp, #64]",
        "stp x29, x30, [sp, #80]",
        "stp d8, d9, [sp, #96]",
        "stp d10, d11, [sp, #112]",
        "stp d12, d13, [sp, #128]",
        "stp d14, d15, [sp, #144]",
        "mov x9, sp",
        "str x9, [x0]",
        "mov sp, x1",
        "b {resume}",
        resume = sym resume,
    )
}

#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn resume() {
    naked_asm!(
        "ldp x19, x20, [sp, #0]",
        "ldp x21, x22, [sp, #16]",
        "ldp x23, x24, [sp, #32]",
        "ldp x25, x26, [sp, #48]",
        "ldp x27, x28, [sp, #64]",
        "ldp x29, x30, [sp, #80]",
        "ldp d8, d9, [sp, #96]",
        "ldp d10, d11, [sp, #112]",
        "ldp d12, d13, [sp, #128]",
        "ldp d14, d15, [sp, #144]",
        "add sp, sp, #160",
        "ret",
    )
}

#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
unsafe extern "C" fn start() {
    naked_asm!("mov x0, x19", "blr x20", "brk #1")
}

/// # Safety
/// `top` must be the 16-byte aligned end of a writable stack.
#[cfg(target_arch = "aarch64")]
unsafe fn prepare(top: *mut usize, main: extern "C" fn(usize) -> !, argument: usize) -> Context {
    const FRAME: usize = 20;
    let mut frame = [0usize; FRAME];
    (frame[0], frame[1], frame[11]) = (argument, main as *const () as usize, start as *const () as usize);
    // SAFETY: the frame lies inside the stack.
    unsafe {
        let sp = top.sub(FRAME);
        sp.cast::<[usize; FRAME]>().write(frame);
        sp as Context
    }
}

/// Kernels keep little on the stack: what a GPU thread holds in at most 255 registers and its local arrays.
const STACK_BYTES: usize = 128 << 10;
/// The lowest part of each stack, which nobody can touch.
const GUARD_BYTES: usize = 16 << 10;

/// Stacks for a fixed number of fibers. Pages that no fiber reaches take no memory.
pub(super) struct Stacks {
    memory: *mut u8,
    count: usize,
}

// SAFETY: plain owned memory.
unsafe impl Send for Stacks {}

impl Stacks {
    /// `None` if the system refuses so much address space.
    pub fn new(count: usize) -> Option<Stacks> {
        let bytes = count.max(1).checked_mul(STACK_BYTES)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE;
        // SAFETY: asks for fresh pages anywhere.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if memory == libc::MAP_FAILED {
            return None;
        }
        let stacks = Stacks { memory: memory.cast(), count };
        for i in 0..count {
            // SAFETY: the low end of a stack of ours. Refused only when the process has too many mappings: then there is no guard.
            unsafe { libc::mprotect(stacks.memory.add(i * STACK_BYTES).cast(), GUARD_BYTES, libc::PROT_NONE) };
        }
        Some(stacks)
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// A fresh context on stack `index` that calls `main(argument)`. Forgets whatever ran on that stack.
    pub fn prepare(&mut self, index: usize, main: extern "C" fn(usize) -> !, argument: usize) -> Context {
        assert!(index < self.count);
        // SAFETY: `index` is in range, so the end of its stack lies in our memory.
        unsafe { prepare(self.memory.add((index + 1) * STACK_BYTES).cast(), main, argument) }
    }

    /// Whether `address` is on one of the stacks.
    pub fn contains(&self, address: usize) -> bool {
        address.wrapping_sub(self.memory as usize) < self.count * STACK_BYTES
    }

    /// Whether an access to `address` left a stack at its low end.
    pub fn guards(&self, address: usize) -> bool {
        let offset = address.wrapping_sub(self.memory as usize);
        offset < self.count * STACK_BYTES && offset % STACK_BYTES < GUARD_BYTES
    }
}

impl Drop for Stacks {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size.
        unsafe { libc::munmap(self.memory.cast(), self.count.max(1) * STACK_BYTES) };
    }
}
