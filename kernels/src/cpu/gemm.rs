//! The CPU's one matrix product, shaped for convolutions: rows of `A` may overlap, so a window of taps needs no copy.
//!
//! Every output is one chain of fused multiply-adds in the order of `p`, whatever the tile it falls into. So results do not
//! depend on how many rows are computed at once: streaming equals offline bit for bit.

use num_traits::Zero;

use crate::cpu::{has_avx512, vectorised};
use crate::tensor::Scratch;
use crate::{Element, Real};

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

/// Row-major `B[depth, columns]` as the product reads it: in panels of columns.
#[derive(Clone, Copy)]
pub struct Panels<'a, T> {
    data: &'a [T],
    depth: usize,
    columns: usize,
    panel_width: usize,
    panel_stride: usize,
    row_stride: usize,
}

impl<'a, T: Real> Panels<'a, T> {
    /// Uses `b` where it lies. Only for columns in whole vectors; [`Packed`] is faster when many rows share one `B`.
    pub fn in_place(b: &'a [T], depth: usize, columns: usize) -> Option<Self> {
        (columns.is_multiple_of(16) && b.len() >= depth * columns).then_some(Panels {
            data: b,
            depth,
            columns,
            panel_width: 32,
            panel_stride: 32,
            row_stride: columns,
        })
    }
}

/// `B[depth, columns]` cut into panels, each contiguous, the last padded with zeros.
pub struct Packed<T> {
    data: Scratch<T>,
    depth: usize,
    columns: usize,
    /// 16 if that holds all columns, else 32: a multiple of every vector here.
    panel_width: usize,
}

impl<T: Real> Packed<T> {
    /// Packs row-major `b` with `row_stride` elements from row to row.
    pub fn new(b: &[T], depth: usize, columns: usize, row_stride: usize) -> Self {
        let mut packed = Self::empty(depth, columns);
        let nr = packed.panel_width;
        for (j, panel) in packed.data.chunks_exact_mut((depth * nr).max(1)).enumerate() {
            let n = nr.min(columns - j * nr);
            for (p, row) in panel.chunks_exact_mut(nr).enumerate() {
                let from = p * row_stride + j * nr;
                row[..n].copy_from_slice(&b[from..from + n]);
                row[n..].fill(T::zero());
            }
        }
        packed
    }

    fn empty(depth: usize, columns: usize) -> Self {
        let panel_width = if columns <= 16 { 16 } else { 32 };
        Packed { data: Scratch::new(columns.div_ceil(panel_width) * depth * panel_width), depth, columns, panel_width }
    }

    pub fn panels(&self) -> Panels<'_, T> {
        let (depth, columns, panel_width) = (self.depth, self.columns, self.panel_width);
        Panels { data: &self.data, depth, columns, panel_width, panel_stride: depth * panel_width, row_stride: panel_width }
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
pub fn gemm<T: Real>(c: &mut [T], c_stride: usize, rows: usize, a: Gather<T>, b: Panels<T>, start: Start<T>) {
    if rows == 0 || b.columns == 0 {
        return;
    }
    assert!(a.extent(rows) <= a.data.len(), "gemm: A is shorter than its rows reach");
    assert_eq!(a.depth(), b.depth, "gemm: depths of A and B differ");
    assert!((rows - 1) * c_stride + b.columns <= c.len(), "gemm: C is shorter than its rows reach");
    if let Start::Bias(bias) = start {
        assert_eq!(bias.len(), b.columns, "gemm: one bias a column");
    }
    let mut job = Job { c, c_stride, rows, a, b, start };
    #[cfg(target_arch = "x86_64")]
    if T::DTYPE == crate::DType::F32 {
        use std::arch::x86_64::{__m256, __m512};
        if has_avx512() {
            return vectorised(
                #[inline(always)]
                || job.run::<__m512, 12, 2>(),
            );
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            return vectorised(
                #[inline(always)]
                || job.run::<__m256, 6, 2>(),
            );
        }
    }
    job.run::<Scalars<T>, 2, 2>()
}

/// A register of consecutive columns.
trait Vector: Copy {
    const LANES: usize;
    type Scalar: Real;
    /// # Safety
    /// The CPU must have the register, and `at` must be valid for `LANES` elements; alike below.
    unsafe fn load(at: *const Self::Scalar) -> Self;
    unsafe fn store(self, at: *mut Self::Scalar);
    unsafe fn splat(v: Self::Scalar) -> Self;
    /// `self + a * b`, rounded once.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
}

/// Any type on any machine, for the oracle and for CPUs without a vector path here.
#[derive(Clone, Copy)]
struct Scalars<T>([T; 8]);

impl<T: Real> Vector for Scalars<T> {
    const LANES: usize = 8;
    type Scalar = T;
    #[inline(always)]
    unsafe fn load(at: *const T) -> Self {
        // SAFETY: the caller's.
        Scalars(unsafe { at.cast::<[T; 8]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut T) {
        // SAFETY: the caller's.
        unsafe { at.cast::<[T; 8]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(v: T) -> Self {
        Scalars([v; 8])
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        Scalars(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], self.0[i])))
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! x86_vector {
    ($register:ty, $lanes:literal, $load:ident, $store:ident, $splat:ident, $fma:ident) => {
        impl Vector for $register {
            const LANES: usize = $lanes;
            type Scalar = f32;
            #[inline(always)]
            unsafe fn load(at: *const f32) -> Self {
                // SAFETY: the caller's; alike below.
                unsafe { std::arch::x86_64::$load(at) }
            }
            #[inline(always)]
            unsafe fn store(self, at: *mut f32) {
                unsafe { std::arch::x86_64::$store(at, self) }
            }
            #[inline(always)]
            unsafe fn splat(v: f32) -> Self {
                unsafe { std::arch::x86_64::$splat(v) }
            }
            #[inline(always)]
            unsafe fn fma(self, a: Self, b: Self) -> Self {
                unsafe { std::arch::x86_64::$fma(a, b, self) }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
x86_vector!(std::arch::x86_64::__m512, 16, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_fmadd_ps);
#[cfg(target_arch = "x86_64")]
x86_vector!(std::arch::x86_64::__m256, 8, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_fmadd_ps);

struct Job<'a, T> {
    c: &'a mut [T],
    c_stride: usize,
    rows: usize,
    a: Gather<'a, T>,
    b: Panels<'a, T>,
    start: Start<'a, T>,
}

impl<T: Real> Job<'_, T> {
    /// Tiles of `MR` rows by `NV` vectors. `V::Scalar` is `T`: [`gemm`] picks the vector by the type.
    #[inline(always)]
    fn run<V: Vector, const MR: usize, const NV: usize>(&mut self) {
        debug_assert_eq!(V::Scalar::DTYPE, T::DTYPE);
        for panel in 0..self.b.columns.div_ceil(self.b.panel_width) {
            let columns = self.b.panel_width.min(self.b.columns - panel * self.b.panel_width);
            for first in (0..columns).step_by(NV * V::LANES) {
                let n = columns - first;
                if n <= V::LANES {
                    self.rows::<V, MR, 1>(panel, first, n)
                } else {
                    self.rows::<V, MR, NV>(panel, first, n.min(NV * V::LANES))
                }
            }
        }
    }

    #[inline(always)]
    fn rows<V: Vector, const MR: usize, const NV: usize>(&mut self, panel: usize, first: usize, n: usize) {
        let mut i = 0;
        while i + MR <= self.rows {
            self.tile::<V, MR, NV>(i, panel, first, n);
            i += MR;
        }
        while i + 4 <= self.rows {
            self.tile::<V, 4, NV>(i, panel, first, n);
            i += 4;
        }
        while i < self.rows {
            self.tile::<V, 1, NV>(i, panel, first, n);
            i += 1;
        }
    }

    #[inline(always)]
    fn tile<V: Vector, const MR: usize, const NV: usize>(&mut self, i: usize, panel: usize, first: usize, n: usize) {
        const WIDEST: usize = 32;
        let (a, nr) = (self.a, self.b.panel_width);
        let j = panel * nr + first;
        // Rows of C go through a buffer, so that a ragged last panel needs no masked loads.
        let mut edge = [T::zero(); WIDEST];
        // SAFETY: `gemm` checked that the last row, tap and column lie inside `a.data`, and `i + MR <= rows`; a panel has
        // `depth` rows, and `first + NV * LANES` columns of it are readable (packed: padded; in place: whole vectors); `edge` holds `WIDEST >= NV * LANES`; `V::Scalar` is `T`.
        unsafe {
            let mut acc = [[V::splat(V::Scalar::zero()); NV]; MR];
            for (r, acc) in acc.iter_mut().enumerate() {
                match self.start {
                    Start::Zero => continue,
                    Start::Bias(bias) => edge[..n].copy_from_slice(&bias[j..j + n]),
                    Start::Add => edge[..n].copy_from_slice(&self.c[(i + r) * self.c_stride + j..][..n]),
                }
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = V::load(edge.as_ptr().add(v * V::LANES).cast());
                }
            }
            let mut b = self.b.data.as_ptr().add(panel * self.b.panel_stride + first).cast::<V::Scalar>();
            for k in 0..a.taps {
                let mut column = a.data.as_ptr().add(i * a.row_stride + k * a.tap_stride).cast::<V::Scalar>();
                for _ in 0..a.width {
                    let mut row = [V::splat(V::Scalar::zero()); NV];
                    for (v, row) in row.iter_mut().enumerate() {
                        *row = V::load(b.add(v * V::LANES));
                    }
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let x = V::splat(*column.add(r * a.row_stride));
                        for (acc, &b) in acc.iter_mut().zip(&row) {
                            *acc = acc.fma(x, b);
                        }
                    }
                    b = b.wrapping_add(self.b.row_stride);
                    column = column.wrapping_add(a.column_stride);
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    acc.store(edge.as_mut_ptr().add(v * V::LANES).cast());
                }
                self.c[(i + r) * self.c_stride + j..][..n].copy_from_slice(&edge[..n]);
            }
        }
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
            let packed = Packed::new(&b, taps * width, columns, columns);
            let mut c = vec![f32::NAN; rows * columns];
            let a = Gather { data: &data, row_stride, taps, tap_stride, width, column_stride: 1 };
            gemm(&mut c, columns, rows, a, packed.panels(), Start::Bias(&bias));
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
        let packed = Packed::new(&b, k, n, n);
        let mut c = vec![0f32; m * n];
        let gather = Gather { data: &a, row_stride: k, taps: 1, tap_stride: 0, width: k, column_stride: 1 };
        let mut best = f64::INFINITY;
        for _ in 0..10 {
            let start = std::time::Instant::now();
            gemm(&mut c, n, m, gather, packed.panels(), Start::Zero);
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{m}x{n}x{k}: {:.1} GFLOP/s on one thread", 2e-9 * (m * n * k) as f64 / best);
    }
}
