//! Data parallelism over rows. Results never depend on the number of threads: a row is computed whole by one thread.

use rayon::prelude::*;

/// Elements below which a second thread costs more than it saves.
const GRAIN: usize = 1 << 14;

/// Calls `f(first_row, rows)` on disjoint runs of rows of `width` elements that together cover `out`.
pub fn for_rows<T: Send>(out: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    if out.is_empty() || width == 0 {
        return;
    }
    let rows = out.len() / width;
    let per_run = rows.div_ceil(rayon::current_num_threads()).max(GRAIN.div_ceil(width));
    if per_run >= rows {
        return f(0, out);
    }
    out.par_chunks_mut(per_run * width).enumerate().for_each(|(i, run)| f(i * per_run, run));
}

/// Calls `f(index)` for each index below `n`, on all threads if `work` (elements touched in all) is worth it.
pub fn for_each(n: usize, work: usize, f: impl Fn(usize) + Sync + Send) {
    if n < 2 || work < GRAIN {
        (0..n).for_each(f);
    } else {
        (0..n).into_par_iter().for_each(f);
    }
}

/// Cuts `out` into items of `item` elements and those into blocks of `block`; calls `f(item, offset in the item, block)` on
/// each. `work` is what one element costs, in additions.
pub fn for_blocks<T: Send>(out: &mut [T], item: usize, block: usize, work: usize, f: impl Fn(usize, usize, &mut [T]) + Sync + Send) {
    if item == 0 || block == 0 {
        return;
    }
    let run = |(i, item): (usize, &mut [T])| item.chunks_mut(block).enumerate().for_each(|(b, out)| f(i, b * block, out));
    if out.len().saturating_mul(work) < GRAIN * 4 || out.len() <= block {
        out.chunks_mut(item).enumerate().for_each(run);
    } else {
        out.par_chunks_mut(item).enumerate().for_each(|(i, item)| {
            item.par_chunks_mut(block).enumerate().for_each(|(b, out)| f(i, b * block, out));
        });
    }
}
