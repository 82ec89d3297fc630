//! Device memory on the host: every allocation lies between red zones, and what was never written is NaN in every float type.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;

/// Bytes that nobody may write, before and after each allocation.
pub(super) const ZONE: usize = 512;
/// NaN as f32, bf16 and f16, and different from [`UNWRITTEN`], so that a stray write of "uninitialised" is seen too.
const RED: [u8; 2] = [0xfe, 0xff];
/// What memory holds before anything is written to it.
pub(super) const UNWRITTEN: u8 = 0xff;

/// Fills a guard region.
pub(super) fn redden(zone: &mut [u8]) {
    let parity = zone.as_ptr() as usize;
    for (i, byte) in zone.iter_mut().enumerate() {
        *byte = RED[(parity + i) % 2];
    }
}

/// First and last byte of a guard region that something has overwritten.
pub(super) fn damage(zone: &[u8]) -> Option<(usize, usize)> {
    let parity = zone.as_ptr() as usize;
    let (one, other) = (RED[parity % 2], RED[(parity + 1) % 2]);
    let whole = zone.chunks_exact(8);
    if whole.remainder().iter().zip([one, other].iter().cycle()).all(|(a, b)| a == b)
        && whole.into_iter().all(|word| word == [one, other, one, other, one, other, one, other])
    {
        return None; // nearly always
    }
    let changed = |&i: &usize| zone[i] != RED[(parity + i) % 2];
    let first = (0..zone.len()).find(changed)?;
    Some((first, (0..zone.len()).rfind(changed)?))
}

struct Allocation {
    /// Start of the whole, front zone included.
    memory: *mut u8,
    capacity: usize,
    /// Bytes in use; the rest of the capacity belongs to the rear zone.
    bytes: usize,
}

impl Allocation {
    fn layout(capacity: usize) -> Option<Layout> {
        Layout::from_size_align(capacity.checked_add(2 * ZONE)?, 256).ok()
    }

    fn front(&self) -> &[u8] {
        // SAFETY: the first ZONE bytes of our memory.
        unsafe { std::slice::from_raw_parts(self.memory, ZONE) }
    }

    fn rear(&self) -> &[u8] {
        // SAFETY: from the end of the used part to the end of our memory.
        unsafe { std::slice::from_raw_parts(self.memory.add(ZONE + self.bytes), self.capacity + ZONE - self.bytes) }
    }

    /// What has been written outside, if anything; repairs it, so that it is reported once.
    fn check(&self) -> Option<String> {
        let what = match (damage(self.front()), damage(self.rear())) {
            (None, None) => return None,
            (Some((_, last)), _) => format!("{} bytes before", ZONE - last),
            (_, Some((first, _))) => format!("{first} bytes past the end of"),
        };
        self.redden();
        Some(format!("wrote {what} an allocation of {} bytes", self.bytes))
    }

    fn redden(&self) {
        // SAFETY: both zones are ours, and no reference to them is alive.
        unsafe {
            redden(std::slice::from_raw_parts_mut(self.memory, ZONE));
            redden(std::slice::from_raw_parts_mut(self.memory.add(ZONE + self.bytes), self.capacity + ZONE - self.bytes));
        }
    }
}

/// All allocations by address.
#[derive(Default)]
pub(super) struct Memory {
    allocations: BTreeMap<u64, Allocation>,
}

// SAFETY: owned memory, reached only through the table.
unsafe impl Send for Memory {}
// SAFETY: as above; `&self` only reads, but for the repair of red zones, which nothing else may touch.
unsafe impl Sync for Memory {}

impl Memory {
    /// `None` if the host has no memory left.
    pub fn alloc(&mut self, capacity: usize) -> Option<u64> {
        let layout = Allocation::layout(capacity)?;
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc(layout) };
        if memory.is_null() {
            return None;
        }
        // SAFETY: the whole of what was just allocated.
        unsafe { memory.write_bytes(UNWRITTEN, layout.size()) };
        let allocation = Allocation { memory, capacity, bytes: capacity };
        allocation.redden();
        let ptr = memory as u64 + ZONE as u64;
        self.allocations.insert(ptr, allocation);
        Some(ptr)
    }

    /// Gives back what the red zones showed, if they were damaged.
    pub fn free(&mut self, ptr: u64) -> Result<(), String> {
        let Some(allocation) = self.allocations.remove(&ptr) else { return Err(format!("free of {ptr:#x}, which is no allocation")) };
        let damage = allocation.check();
        if let Some(layout) = Allocation::layout(allocation.capacity) {
            // SAFETY: allocated by `alloc` with this layout.
            unsafe { dealloc(allocation.memory, layout) };
        }
        damage.map_or(Ok(()), Err)
    }

    /// Only the first `bytes` of the allocation are in use from now on (at least `keep` of them stay in use).
    pub fn lend(&mut self, ptr: u64, bytes: usize, keep_larger: bool) -> Result<(), String> {
        let Some(allocation) = self.allocations.get_mut(&ptr) else { return Err(format!("{ptr:#x} is no allocation")) };
        let damage = allocation.check();
        let bytes = bytes.min(allocation.capacity);
        allocation.bytes = if keep_larger { bytes.max(allocation.bytes) } else { bytes };
        allocation.redden();
        damage.map_or(Ok(()), Err)
    }

    /// The allocation that holds `ptr`, if `bytes` from there are inside it.
    pub fn holds(&self, ptr: u64, bytes: usize) -> Result<(), String> {
        let outside = || format!("{bytes} bytes at {ptr:#x} are outside every allocation");
        let (start, allocation) = self.allocations.range(..=ptr).next_back().ok_or_else(outside)?;
        let offset = (ptr - start) as usize;
        if offset > allocation.capacity {
            return Err(outside());
        }
        if offset.checked_add(bytes).is_none_or(|end| end > allocation.bytes) {
            return Err(format!("{bytes} bytes at offset {offset} leave an allocation of {} bytes", allocation.bytes));
        }
        Ok(())
    }

    /// Damage to any red zone since the last check.
    pub fn check(&self) -> Result<(), String> {
        self.allocations.values().find_map(Allocation::check).map_or(Ok(()), Err)
    }

    /// As [`Memory::check`], of the one allocation that holds `ptr`.
    pub fn check_at(&self, ptr: u64) -> Result<(), String> {
        let found = self.allocations.range(..=ptr).next_back();
        found.filter(|(start, a)| ptr - **start < a.capacity.max(1) as u64).and_then(|(_, a)| a.check()).map_or(Ok(()), Err)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for allocation in self.allocations.values() {
            if let Some(layout) = Allocation::layout(allocation.capacity) {
                // SAFETY: allocated by `alloc` with this layout, and freed nowhere else.
                unsafe { dealloc(allocation.memory, layout) };
            }
        }
    }
}
