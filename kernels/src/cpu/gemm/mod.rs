//! The CPU's one matrix product, shaped for convolutions: rows of `A` may overlap, so a window of taps needs no copy.
//!
//! Every output is one chain of fused multiply-adds in the order of `p`, whatever the tile it falls into. So results do not
//! depend on how many rows are computed at once: streaming equals offline bit for bit. `B` may be stored in bf16 beside products
//! in f32, or as codes of few bits: fewer bytes, and values as they are read, so that the product is bit for bit that of the values.

use std::ops::Range;

mod panels;

use self::panels::{Coded, Rows, Store, Stored, Values, WIDE};
use crate::Real;
use crate::cpu::parallel::Parts;
use crate::cpu::team::{grain, run as run_parts};
use crate::cpu::vector::{Kernel, Vector};
use crate::quantized::Bits;

pub use self::panels::{Packed, Panels, packed_len};

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

/// What the accumulators start from.
#[derive(Clone, Copy)]
pub enum Start<'a, T> {
    Zero,
    /// One value a column.
    Bias(&'a [T]),
    /// What `C` holds already.
    Add,
}

/// `C[i, j] = start + sum_p A(i, p) B[p, j]` for `rows` rows of `C`, `c_stride` elements apart, on this thread.
pub fn gemm<T: Real>(c: &mut [T], c_stride: usize, rows: usize, a: Gather<T>, b: Panels<T>, start: Start<T>) {
    check(c.len(), c_stride, rows, &a, &b, &start);
    let job = Job { c: c.as_mut_ptr(), c_stride, a, b, start };
    // SAFETY: `c` is ours, and `check` compared the extents.
    unsafe { job.run(0..rows, 0..b.count()) }
}

/// As [`gemm`], on all threads, with `C` dense. `finish(i, j, part)` is called once on each part `C[i, j..]`, after its sums.
///
/// With few rows the threads read disjoint panels of `B`, each once.
pub fn product<T: Real>(
    c: &mut [T],
    rows: usize,
    a: Gather<T>,
    b: Panels<T>,
    start: Start<T>,
    finish: impl Fn(usize, usize, &mut [T]) + Sync,
) {
    let columns = b.columns;
    check(c.len(), columns, rows, &a, &b, &start);
    if rows == 0 || columns == 0 {
        return;
    }
    let (run, panels) = divide(rows, &b);
    let (row_runs, panel_runs) = (rows.div_ceil(run), b.count().div_ceil(panels));
    let job = Job { c: c.as_mut_ptr(), c_stride: columns, a, b, start };
    let whole = Parts::new(c);
    let part = |i: usize| {
        // Neighbours in time read the same panels.
        let (first, panel) = (i % row_runs * run, i / row_runs * panels);
        let (rows, panels) = (first..rows.min(first + run), panel..b.count().min(panel + panels));
        let from = panels.start * b.panel_width;
        let to = columns.min(panels.end * b.panel_width);
        // SAFETY: parts have rows or panels of their own, and `check` compared the extents.
        unsafe { job.run(rows.clone(), panels) };
        for i in rows {
            // SAFETY: as above; the pointer in `job` is not used meanwhile.
            finish(i, from, unsafe { whole.part(i * columns + from, to - from) });
        }
    };
    // A vector of products counts as one step.
    let work = (rows * columns).saturating_mul(b.depth.div_ceil(16));
    if work < grain() { (0..row_runs * panel_runs).for_each(part) } else { run_parts(row_runs * panel_runs, &part) }
}

/// Rows and panels of a part: some parts for each thread, by panels if those weigh more than `A`, whose rows of one part stay in
/// cache.
fn divide<T: Real>(rows: usize, b: &Panels<T>) -> (usize, usize) {
    const PARTS_A_THREAD: usize = 4;
    const CACHED: usize = 1 << 17;
    let parts = PARTS_A_THREAD * rayon::current_num_threads();
    let most = (CACHED / b.depth.max(1)).max(2 * TALLEST) / TALLEST * TALLEST;
    let tall = |runs: usize| rows.div_ceil(runs).next_multiple_of(TALLEST).min(most);
    if rows <= b.columns {
        let panels = b.count().div_ceil(parts);
        let runs = parts.div_ceil(b.count().div_ceil(panels));
        (tall(runs), panels)
    } else {
        let run = tall(parts);
        let panel_runs = parts.div_ceil(rows.div_ceil(run)).min(b.count());
        (run, b.count().div_ceil(panel_runs))
    }
}

fn check<T: Real>(c_len: usize, c_stride: usize, rows: usize, a: &Gather<T>, b: &Panels<T>, start: &Start<T>) {
    if rows == 0 || b.columns == 0 {
        return;
    }
    assert!(a.extent(rows) <= a.data.len(), "gemm: A is shorter than its rows reach");
    assert_eq!(a.depth(), b.depth, "gemm: depths of A and B differ");
    assert!(b.columns <= c_stride || rows == 1, "gemm: rows of C overlap");
    assert!((rows - 1) * c_stride + b.columns <= c_len, "gemm: C is shorter than its rows reach");
    if let Start::Bias(bias) = start {
        assert_eq!(bias.len(), b.columns, "gemm: one bias a column");
    }
}

/// Most rows of a tile.
const TALLEST: usize = 12;

struct Job<'a, T> {
    c: *mut T,
    c_stride: usize,
    a: Gather<'a, T>,
    b: Panels<'a, T>,
    start: Start<'a, T>,
}

// SAFETY: threads run parts of `C` that do not overlap: see `run`.
unsafe impl<T: Sync> Sync for Job<'_, T> {}

impl<T: Real> Job<'_, T> {
    /// # Safety
    /// `rows` and `panels` lie inside `C`, as [`check`] has it, and nobody else uses that part of it.
    unsafe fn run(&self, rows: Range<usize>, panels: Range<usize>) {
        let &Panels { panel_stride, row_stride, depth, .. } = &self.b;
        match self.b.data {
            Stored::Same(b) => T::widest(Run { job: self, b: Values { data: b.as_ptr(), panel_stride, row_stride }, rows, panels }),
            Stored::Half(b) => T::widest(Run { job: self, b: Values { data: b.as_ptr(), panel_stride, row_stride }, rows, panels }),
            Stored::Codes(bits, b) => {
                let mins = b.mins.map_or(std::ptr::null(), <[f32]>::as_ptr);
                let (codes, scales, group) = (b.codes.as_ptr(), b.scales.as_ptr(), b.group);
                match bits {
                    Bits::Four => {
                        let b = Coded::<4> { codes, scales, mins, panel_stride, depth, group };
                        T::widest(Run { job: self, b, rows, panels })
                    }
                    Bits::Eight => {
                        let b = Coded::<8> { codes, scales, mins, panel_stride, depth, group };
                        T::widest(Run { job: self, b, rows, panels })
                    }
                }
            }
        }
    }

    /// Tiles of up to `MR` rows by `NV` registers.
    /// # Safety
    /// As [`Job::run`]; `b` is what the panels hold.
    #[inline(always)]
    unsafe fn panels<V: Vector<Scalar = T>, S: Store, const MR: usize, const NV: usize>(
        &self,
        b: S,
        rows: Range<usize>,
        panels: Range<usize>,
    ) {
        let mut panels = panels;
        // One row of sums waits for each product unless there are more columns beside it.
        const MANY: usize = 4;
        let span = (MANY * V::LANES).div_ceil(WIDE);
        while S::SPANS && rows.len() == 1 && panels.start + span <= panels.end && (panels.start + span) * WIDE <= self.b.columns {
            for first in (0..span * WIDE).step_by(MANY * V::LANES) {
                // SAFETY: the caller's; these panels are whole.
                unsafe { self.tile::<V, S, 1, MANY>(b, rows.start, panels.start, first, MANY * V::LANES) };
            }
            panels.start += span;
        }
        for panel in panels {
            let columns = self.b.panel_width.min(self.b.columns - panel * self.b.panel_width);
            for first in (0..columns).step_by(NV * V::LANES) {
                let n = columns - first;
                // SAFETY: the caller's.
                unsafe {
                    if n <= V::LANES {
                        self.rows::<V, S, MR, 1>(b, rows.clone(), panel, first, n)
                    } else {
                        self.rows::<V, S, MR, NV>(b, rows.clone(), panel, first, n.min(NV * V::LANES))
                    }
                }
            }
        }
    }

    /// Few rows in one tile, so that a panel is read from memory once and only seldom again from cache.
    #[inline(always)]
    #[allow(clippy::int_plus_one, reason = "the last height is 1")]
    unsafe fn rows<V: Vector<Scalar = T>, S: Store, const MR: usize, const NV: usize>(
        &self,
        b: S,
        rows: Range<usize>,
        panel: usize,
        first: usize,
        n: usize,
    ) {
        let mut i = rows.start;
        macro_rules! tiles {
            ($($height:expr),*) => {
                $(while $height <= MR && i + $height <= rows.end {
                    // SAFETY: the caller's; a height above MR is never reached.
                    unsafe { self.tile::<V, S, { $height }, NV>(b, i, panel, first, n) };
                    i += $height;
                })*
            };
        }
        tiles!(TALLEST, 8, 6, 4, 3, 2, 1);
    }

    #[inline(always)]
    unsafe fn tile<V: Vector<Scalar = T>, S: Store, const MR: usize, const NV: usize>(
        &self,
        b: S,
        i: usize,
        panel: usize,
        first: usize,
        n: usize,
    ) {
        let (a, nr) = (self.a, self.b.panel_width);
        let j = panel * nr + first;
        // Ragged rows of C and the bias go through a buffer, so that nothing needs masked loads.
        let mut edge = [T::zero(); WIDE];
        let whole = n == NV * V::LANES;
        // SAFETY: the rows, columns and depth of this tile lie inside `a.data` and `c`, as `check` has it; a panel has
        // `depth` rows, and `first + NV * LANES` columns of it are readable (packed: padded; in place: whole vectors; more
        // than a panel has: the next is there); `edge` holds `WIDE >= NV * LANES` wherever a tile is not whole.
        unsafe {
            let row_of_c = |r: usize| self.c.add((i + r) * self.c_stride + j);
            let mut acc = [[V::splat(T::zero()); NV]; MR];
            for (r, acc) in acc.iter_mut().enumerate() {
                let from = match self.start {
                    Start::Zero => continue,
                    Start::Bias(bias) if whole => bias.as_ptr().add(j),
                    Start::Add if whole => row_of_c(r).cast_const(),
                    Start::Bias(bias) => {
                        edge[..n].copy_from_slice(&bias[j..j + n]);
                        edge.as_ptr()
                    }
                    Start::Add => {
                        std::ptr::copy_nonoverlapping(row_of_c(r), edge.as_mut_ptr(), n);
                        edge.as_ptr()
                    }
                };
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = V::load(from.add(v * V::LANES));
                }
            }
            let mut b = b.rows::<V, NV>(panel, first);
            for k in 0..a.taps {
                let mut column = a.data.as_ptr().wrapping_add(i * a.row_stride + k * a.tap_stride);
                for _ in 0..a.width {
                    let row = b.next();
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let x = V::splat(*column.add(r * a.row_stride));
                        for (acc, &b) in acc.iter_mut().zip(&row) {
                            *acc = acc.fma(x, b);
                        }
                    }
                    column = column.wrapping_add(a.column_stride);
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                let to = if whole { row_of_c(r) } else { edge.as_mut_ptr() };
                for (v, acc) in acc.iter().enumerate() {
                    acc.store(to.add(v * V::LANES));
                }
                if !whole {
                    std::ptr::copy_nonoverlapping(edge.as_ptr(), row_of_c(r), n);
                }
            }
        }
    }
}

/// A [`Job::run`], for every kind of register and of what the panels hold.
struct Run<'j, 'a, T, S> {
    job: &'j Job<'a, T>,
    b: S,
    rows: Range<usize>,
    panels: Range<usize>,
}

impl<T: Real, S: Store> Kernel<T> for Run<'_, '_, T, S> {
    #[inline(always)]
    fn run<V: Vector<Scalar = T>>(self) {
        let Run { job, b, rows, panels } = self;
        // SAFETY: that of `Job::run`, which alone makes these.
        unsafe {
            match V::ROWS {
                TALLEST => job.panels::<V, S, TALLEST, 2>(b, rows, panels),
                6 => job.panels::<V, S, 6, 2>(b, rows, panels),
                _ => job.panels::<V, S, 2, 2>(b, rows, panels),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

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
            let packed = Packed::new(&b, taps * width, columns, columns).unwrap();
            let mut c = vec![f32::NAN; rows * columns];
            let a = Gather { data: &data, row_stride, taps, tap_stride, width, column_stride: 1 };
            gemm(&mut c, columns, rows, a, packed.panels().unwrap(), Start::Bias(&bias));
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
    fn what_is_stored_in_bf16_is_multiplied_as_the_same_values_in_f32() {
        let mut rng = SplitMix(9);
        for (rows, depth, columns) in [(1, 1, 1), (1, 500, 33), (2, 127, 500), (31, 33, 31), (127, 64, 48)] {
            let a = random(rows * depth, &mut rng);
            let halves: Vec<bf16> = random(depth * columns, &mut rng).into_iter().map(bf16::from_f32).collect();
            let whole: Vec<f32> = halves.iter().map(|v| v.to_f32()).collect();
            let a = Gather { data: &a, row_stride: depth, taps: 1, tap_stride: 0, width: depth, column_stride: 1 };
            let run = |b: Packed| {
                let mut c = vec![f32::NAN; rows * columns];
                product(&mut c, rows, a, b.panels().unwrap(), Start::Zero, |_, _, _| {});
                c
            };
            let [half, whole] = [Packed::new(&halves, depth, columns, columns), Packed::new(&whole, depth, columns, columns)];
            assert_eq!(run(half.unwrap()), run(whole.unwrap()), "{rows}x{columns}x{depth}");
        }
        let half = Packed::new(&[bf16::ONE], 1, 1, 1).unwrap();
        assert!(half.panels::<f64>().is_err());
    }

    #[test]
    fn products_have_the_same_bits_on_any_number_of_threads() {
        let mut rng = SplitMix(8);
        for (rows, depth, columns) in
            [(1, 4096, 70), (2, 300, 513), (3, 500, 1000), (7, 64, 320), (25, 700, 129), (600, 40, 33), (40, 0, 50)]
        {
            let (a, b, bias) = (random(rows * depth, &mut rng), random(depth * columns, &mut rng), random(columns, &mut rng));
            let a = Gather { data: &a, row_stride: depth, taps: 1, tap_stride: 0, width: depth, column_stride: 1 };
            let packed = Packed::new(&b, depth, columns, columns).unwrap();
            let mut expected = vec![f32::NAN; rows * columns];
            gemm(&mut expected, columns, rows, a, packed.panels().unwrap(), Start::Bias(&bias));
            for threads in [1, 2, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                for alone in [false, true] {
                    let mut c = vec![f32::NAN; rows * columns];
                    let mut run = || {
                        product(&mut c, rows, a, packed.panels().unwrap(), Start::Bias(&bias), |i, j, part| {
                            part.iter_mut().enumerate().for_each(|(n, c)| *c = -*c * (i * columns + j + n) as f32);
                        })
                    };
                    pool.install(|| if alone { run() } else { crate::cpu::team::team(run) });
                    for (at, (&c, &e)) in c.iter().zip(&expected).enumerate() {
                        assert_eq!(c, -e * at as f32, "{rows}x{columns}x{depth} on {threads} at {at}");
                    }
                }
            }
        }
    }

    #[test]
    fn throughput_is_reported() {
        let (m, k, n) = (512, 256, 256);
        let mut rng = SplitMix(1);
        let (a, b) = (random(m * k, &mut rng), random(k * n, &mut rng));
        let packed = Packed::new(&b, k, n, n).unwrap();
        let mut c = vec![0f32; m * n];
        let gather = Gather { data: &a, row_stride: k, taps: 1, tap_stride: 0, width: k, column_stride: 1 };
        let mut best = f64::INFINITY;
        for _ in 0..10 {
            let start = std::time::Instant::now();
            gemm(&mut c, n, m, gather, packed.panels().unwrap(), Start::Zero);
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{m}x{n}x{k}: {:.1} GFLOP/s on one thread", 2e-9 * (m * n * k) as f64 / best);
    }
}
