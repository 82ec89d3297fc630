//! Sums over rows whose order depends on the shape alone: fixed blocks, each summed by one thread, added up in order.

use rayon::prelude::*;

use crate::Real;
use crate::tensor::Scratch;

/// Elements that one block covers, about.
const BLOCK: usize = 1 << 14;

/// Elements in a block of whole `unit`s.
pub fn block(unit: usize) -> usize {
    (BLOCK / unit.max(1)).max(1) * unit.max(1)
}

/// `width` sums over `n` elements: `f(start, end, sums)` adds what the elements `start..end` contribute.
/// Blocks start at multiples of [`block`]`(unit)`.
pub fn sums(n: usize, unit: usize, width: usize, f: impl Fn(usize, usize, &mut [f64]) + Sync + Send) -> Vec<f64> {
    let step = block(unit);
    let mut partial = Scratch::<f64>::new(n.div_ceil(step) * width);
    partial.fill(0.0);
    let run = |(i, sums): (usize, &mut [f64])| f(i * step, ((i + 1) * step).min(n), sums);
    if n <= 2 * step {
        partial.chunks_mut(width.max(1)).enumerate().for_each(run);
    } else {
        partial.par_chunks_mut(width.max(1)).enumerate().for_each(run);
    }
    total(&partial, width)
}

/// As [`sums`] over the elements of `out`, which `f(start, block of out, sums)` writes as it goes.
pub fn map_sums<T: Send>(out: &mut [T], unit: usize, width: usize, f: impl Fn(usize, &mut [T], &mut [f64]) + Sync + Send) -> Vec<f64> {
    let step = block(unit);
    let mut partial = Scratch::<f64>::new(out.len().div_ceil(step) * width);
    partial.fill(0.0);
    let run = |(i, (out, sums)): (usize, (&mut [T], &mut [f64]))| f(i * step, out, sums);
    if out.len() <= 2 * step {
        out.chunks_mut(step).zip(partial.chunks_mut(width.max(1))).enumerate().for_each(run);
    } else {
        out.par_chunks_mut(step).zip(partial.par_chunks_mut(width.max(1))).enumerate().for_each(run);
    }
    total(&partial, width)
}

fn total(partial: &[f64], width: usize) -> Vec<f64> {
    let mut total = vec![0.0; width];
    for sums in partial.chunks(width.max(1)) {
        total.iter_mut().zip(sums).for_each(|(t, s)| *t += s);
    }
    total
}

/// `row` repeated to a length that fills vector registers, still a multiple of its own: rows are contiguous, so a loop over
/// several narrow rows at once is a loop over one wide row.
pub fn tile<T: Copy>(row: &[T]) -> Vec<T> {
    row.repeat(tile_len(row.len()) / row.len().max(1))
}

/// Length of [`tile`] for a row of `channels`.
pub fn tile_len(channels: usize) -> usize {
    const FULL: usize = 64;
    channels * FULL.div_ceil(channels.max(1))
}

/// Adds a tile's sums to those of its channels.
pub fn fold<T: Real>(sums: &mut [f64], tile: &[T]) {
    let channels = sums.len().max(1);
    for row in tile.chunks(channels) {
        sums.iter_mut().zip(row).for_each(|(s, v)| *s += v.f64());
    }
}

/// The sum of `term(a, b)` over two slices of the same length, in lanes.
#[inline(always)]
pub fn sum_of<T: Real>(a: &[T], b: &[T], term: impl Fn(T, T) -> f64) -> f64 {
    const LANES: usize = 16;
    let mut lanes = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            lanes[l] += term(a[l], b[l]);
        }
    }
    for (l, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[l] += term(a, b);
    }
    lanes.iter().sum()
}
