//! The CPU's one matrix product, shaped for convolutions: rows of `A` may overlap, so a window of taps needs no copy.
//!
//! Every output is one chain of fused multiply-adds in the order of `p`, whatever the tile it falls into. So results do not
//! depend on how many rows are computed at once: streaming equals offline bit for bit.

use crate::Real;
use crate::cpu::{has_avx512, vectorised};

/// `A(i, (k, c)) = data[i * row_stride + k * tap_stride + c * column_stride]`, with `p = k * width + c`.
#[derive(Clone, Copy)]
pub struct Gather<'a, T> {
    pub data: &'a [T],
    pub row_stride: usize,
    pub taps: usize,
    pub tap_stride: usize,
    pub width: usize,
    pub column_stride: usize,
}

impl<T> Gather<'_, T> {
    pub fn depth(&self) -> usize {
        self.taps * self.width
    }

    /// One past the largest index that `rows` rows touch.
    fn extent(&self, rows: usize) -> usize {
        if rows == 0 || self.depth() == 0 {
            return 0;
        }
        (rows - 1) * self.row_stride + (self.taps - 1) * self.tap_stride + (self.width - 1) * self.column_stride + 1
    }
}

/// Columns of one panel: two vector registers.
pub fn panel_width<T: Real>() -> usize {
    if has_avx512() { 2 * T::LANES } else { T::LANES }
}

/// `B[depth, columns]` cut into panels of [`panel_width`] columns, each contiguous, the last padded with zeros.
#[derive(Default)]
pub struct Packed<T> {
    data: Vec<T>,
    depth: usize,
    columns: usize,
}

impl<T: Real> Packed<T> {
    /// Packs row-major `b` with `row_stride` elements from row to row, reusing this object's memory.
    pub fn pack(&mut self, b: &[T], depth: usize, columns: usize, row_stride: usize) {
        let nr = panel_width::<T>();
        self.depth = depth;
        self.columns = columns;
        self.data.resize(columns.div_ceil(nr) * depth * nr, T::zero());
        for (j, panel) in self.data.chunks_exact_mut((depth * nr).max(1)).enumerate() {
            let n = nr.min(columns - j * nr);
            for (p, row) in panel.chunks_exact_mut(nr).enumerate() {
                let from = p * row_stride + j * nr;
                row[..n].copy_from_slice(&b[from..from + n]);
                row[n..].fill(T::zero());
            }
        }
    }

    /// Packs the transpose of `columns` rows of `depth` elements each.
    pub fn pack_transposed(&mut self, b: &[T], depth: usize, columns: usize, row_stride: usize) {
        let nr = panel_width::<T>();
        self.depth = depth;
        self.columns = columns;
        self.data.resize(columns.div_ceil(nr) * depth * nr, T::zero());
        self.data.fill(T::zero());
        for column in 0..columns {
            let (j, lane) = (column / nr, column % nr);
            let panel = &mut self.data[j * depth * nr..(j + 1) * depth * nr];
            for (p, &v) in b[column * row_stride..][..depth].iter().enumerate() {
                panel[p * nr + lane] = v;
            }
        }
    }

    pub fn columns(&self) -> usize {
        self.columns
    }
}

/// What the accumulators start from.
#[derive(Clone, Copy)]
pub enum Start<'a, T> {
    Zero,
    /// One value a column.
    Bias(&'a [T]),
    /// What `C` holds already.
    Add,
}

/// `C[i, j] = start + sum_p A(i, p) B[p, j]` for `rows` rows of `C`, `c_stride` elements apart.
pub fn gemm<T: Real>(c: &mut [T], c_stride: usize, rows: usize, a: Gather<T>, b: &Packed<T>, start: Start<T>) {
    if rows == 0 || b.columns == 0 {
        return;
    }
    assert!(a.extent(rows) <= a.data.len(), "gemm: A is shorter than its rows reach");
    assert_eq!(a.depth(), b.depth, "gemm: depths of A and B differ");
    assert!((rows - 1) * c_stride + b.columns <= c.len(), "gemm: C is shorter than its rows reach");
    match (has_avx512(), T::LANES) {
        (true, 16) => vectorised(#[inline(always)] || panels::<T, 8, 32>(c, c_stride, rows, a, b, start)),
        (true, _) => vectorised(#[inline(always)] || panels::<T, 8, 16>(c, c_stride, rows, a, b, start)),
        (false, 16) => vectorised(#[inline(always)] || panels::<T, 4, 16>(c, c_stride, rows, a, b, start)),
        (false, _) => vectorised(#[inline(always)] || panels::<T, 4, 8>(c, c_stride, rows, a, b, start)),
    }
}

#[inline(always)]
fn panels<T: Real, const MR: usize, const NR: usize>(c: &mut [T], c_stride: usize, rows: usize, a: Gather<T>, b: &Packed<T>, start: Start<T>) {
    for j in 0..b.columns.div_ceil(NR) {
        let panel = &b.data[j * b.depth * NR..(j + 1) * b.depth * NR];
        let n = NR.min(b.columns - j * NR);
        let mut i = 0;
        while i + MR <= rows {
            if n * 2 <= NR {
                narrow_tile::<T, MR, NR>(c, c_stride, i, j * NR, n, a, panel, start);
            } else {
                tile::<T, MR, NR, NR>(c, c_stride, i, j * NR, n, a, panel, start);
            }
            i += MR;
        }
        while i + 2 <= rows {
            tile::<T, 2, NR, NR>(c, c_stride, i, j * NR, n, a, panel, start);
            i += 2;
        }
        if i < rows {
            tile::<T, 1, NR, NR>(c, c_stride, i, j * NR, n, a, panel, start);
        }
    }
}

/// A half-empty panel: only its first half is computed.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn narrow_tile<T: Real, const MR: usize, const NR: usize>(
    c: &mut [T],
    c_stride: usize,
    i: usize,
    j: usize,
    n: usize,
    a: Gather<T>,
    panel: &[T],
    start: Start<T>,
) {
    match NR {
        32 => tile::<T, MR, NR, 16>(c, c_stride, i, j, n, a, panel, start),
        16 => tile::<T, MR, NR, 8>(c, c_stride, i, j, n, a, panel, start),
        _ => tile::<T, MR, NR, NR>(c, c_stride, i, j, n, a, panel, start),
    }
}

/// `MR` rows by the first `NC` columns of a panel whose rows are `NR` wide; `n <= NC` of them are stored.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn tile<T: Real, const MR: usize, const NR: usize, const NC: usize>(
    c: &mut [T],
    c_stride: usize,
    i: usize,
    j: usize,
    n: usize,
    a: Gather<T>,
    panel: &[T],
    start: Start<T>,
) {
    let mut acc = [[T::zero(); NC]; MR];
    match start {
        Start::Zero => {}
        Start::Bias(bias) => acc.iter_mut().for_each(|row| row[..n].copy_from_slice(&bias[j..j + n])),
        Start::Add => acc.iter_mut().enumerate().for_each(|(r, row)| row[..n].copy_from_slice(&c[(i + r) * c_stride + j..][..n])),
    }
    let mut b = panel.as_ptr();
    for k in 0..a.taps {
        // SAFETY: `gemm` checked that row `rows - 1`, the last tap and the last column lie inside `a.data`; `i + MR <= rows`.
        let mut row = unsafe { a.data.as_ptr().add(i * a.row_stride + k * a.tap_stride) };
        for _ in 0..a.width {
            // SAFETY: the panel holds `taps * width` rows of `NR >= NC` elements, and `b` has advanced by fewer.
            let column: &[T; NC] = unsafe { &*b.cast() };
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: as for `row` above.
                let v = unsafe { *row.add(r * a.row_stride) };
                for (acc, &b) in acc.iter_mut().zip(column) {
                    *acc = v.mul_add(b, *acc);
                }
            }
            // SAFETY: one past the end at most, after the last element.
            unsafe {
                b = b.add(NR);
                row = row.wrapping_add(a.column_stride);
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        c[(i + r) * c_stride + j..][..n].copy_from_slice(&acc[..n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::SplitMix;

    fn random(n: usize, rng: &mut SplitMix) -> Vec<f32> {
        (0..n).map(|_| rng.uniform() as f32 - 0.5).collect()
    }

    #[test]
    fn overlapping_rows_and_odd_sizes_match_the_definition_bit_for_bit() {
        let mut rng = SplitMix(7);
        for (rows, taps, width, columns) in [(1, 1, 1, 1), (9, 3, 5, 33), (17, 7, 16, 16), (8, 2, 31, 65), (500, 1, 3, 7)] {
            let (row_stride, tap_stride) = (2 * width, 3 * width);
            let data = random((rows - 1) * row_stride + (taps - 1) * tap_stride + width, &mut rng);
            let b = random(taps * width * columns, &mut rng);
            let bias = random(columns, &mut rng);
            let mut packed = Packed::default();
            packed.pack(&b, taps * width, columns, columns);
            let mut c = vec![f32::NAN; rows * columns];
            let a = Gather { data: &data, row_stride, taps, tap_stride, width, column_stride: 1 };
            gemm(&mut c, columns, rows, a, &packed, Start::Bias(&bias));
            for i in 0..rows {
                for j in 0..columns {
                    let mut sum = bias[j];
                    for k in 0..taps {
                        for x in 0..width {
                            sum = data[i * row_stride + k * tap_stride + x].mul_add(b[(k * width + x) * columns + j], sum);
                        }
                    }
                    assert_eq!(c[i * columns + j], sum, "row {i} column {j}");
                }
            }
        }
    }

    #[test]
    fn throughput_is_reported() {
        let (m, k, n) = (512, 256, 256);
        let mut rng = SplitMix(1);
        let (a, b) = (random(m * k, &mut rng), random(k * n, &mut rng));
        let mut packed = Packed::default();
        packed.pack(&b, k, n, n);
        let mut c = vec![0f32; m * n];
        let gather = Gather { data: &a, row_stride: k, taps: 1, tap_stride: 0, width: k, column_stride: 1 };
        let mut best = f64::INFINITY;
        for _ in 0..10 {
            let start = std::time::Instant::now();
            gemm(&mut c, n, m, gather, &packed, Start::Zero);
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{m}x{n}x{k}: {:.1} GFLOP/s on one thread", 2e-9 * (m * n * k) as f64 / best);
    }
}
