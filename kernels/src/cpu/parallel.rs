//! Data parallelism. Results never depend on the number of threads: an output is computed whole by one thread.

use super::team::{grain, run};

/// How many there are to share work.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Calls `f(first_row, rows)` on disjoint runs of rows of `width` elements that together cover `out`.
pub fn for_rows<T: Send>(out: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    if out.is_empty() || width == 0 {
        return;
    }
    let rows = out.len() / width;
    let per_run = rows.div_ceil(rayon::current_num_threads()).max((grain() / 4).div_ceil(width));
    if per_run >= rows {
        return f(0, out);
    }
    chunks(out, per_run * width, |i, run| f(i * per_run, run));
}

/// Calls `f(index)` for each index below `n`, on all threads if `work` (elements touched in all) is worth it.
pub fn for_each(n: usize, work: usize, f: impl Fn(usize) + Sync + Send) {
    if work < grain() / 4 { (0..n).for_each(f) } else { run(n, &f) }
}

/// Cuts `out` into items of `item` elements and those into blocks of `block`; calls `f(item, offset in the item, block)` on
/// each. `work` is what one element costs, in additions.
pub fn for_blocks<T: Send>(out: &mut [T], item: usize, block: usize, work: usize, f: impl Fn(usize, usize, &mut [T]) + Sync + Send) {
    if item == 0 || block == 0 {
        return;
    }
    let blocks = item.div_ceil(block);
    let n = out.len().div_ceil(item) * blocks;
    let work = out.len().saturating_mul(work);
    let whole = Parts::new(out);
    let each = |i: usize| {
        let (item_index, first) = (i / blocks, i % blocks * block);
        // SAFETY: blocks are disjoint and each is visited once.
        f(item_index, first, unsafe { whole.part(item_index * item + first, block.min(item - first)) });
    };
    if work < grain() { (0..n).for_each(each) } else { run(n, &each) }
}

/// Calls `f(i, chunk)` on each chunk of `size` elements, on all threads.
pub fn chunks<T: Send>(out: &mut [T], size: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    let n = out.len().div_ceil(size.max(1));
    let whole = Parts::new(out);
    // SAFETY: chunks are disjoint and each is visited once.
    run(n, &|i| f(i, unsafe { whole.part(i * size, size) }));
}

/// As [`chunks`], of two slices that are as long as each other.
pub fn chunks_of_two<T: Send, U: Send>((a, b): (&mut [T], &mut [U]), size: usize, f: impl Fn(usize, &mut [T], &mut [U]) + Sync + Send) {
    let n = a.len().max(b.len()).div_ceil(size.max(1));
    let (a, b) = (Parts::new(a), Parts::new(b));
    // SAFETY: as in `chunks`.
    run(n, &|i| unsafe { f(i, a.part(i * size, size), b.part(i * size, size)) });
}

/// A slice whose disjoint parts several threads write.
pub(super) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out `&mut T`s, of elements that its users keep apart.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Parts { start: slice.as_mut_ptr(), len: slice.len(), slice: std::marker::PhantomData }
    }

    /// Elements from `at` on, fewer at the end.
    ///
    /// # Safety
    /// No two parts that live at the same time may overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        let at = at.min(self.len);
        // SAFETY: inside the slice, and apart from other parts by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len.min(self.len - at)) }
    }
}
