//! Windows of the image are gathered as rows of a matrix, a part at a time that stays in cache, and multiplied.

use std::ops::Range;

use super::{Geometry, Phase, four};
use crate::cpu::gemm::{Gather, Packed, Panels, Start, gemm, packed_len, product};
use crate::cpu::{parallel, vectorised};
use crate::tensor::Scratch;
use crate::{Real, Result, Tensor};

/// Elements that a thread gathers at once.
const BLOCK: usize = 1 << 14;
/// Elements of weights that a second-level cache holds: of more, rows are gathered for all threads, so that they are read seldom.
const CACHED: usize = 1 << 16;
/// Elements that are gathered for all threads.
const SHARED: usize = 1 << 21;
/// Rows of a tile of sums, and of a gradient's part.
const ROWS: usize = 12;

/// A matrix whose row `(image, h, w)` is a window: its column `(k, l, c)` is `x[h step - offset + k tap_step, .., c]`, likewise across.
struct Windows<'a, T> {
    x: &'a [T],
    size: [usize; 2],
    channels: usize,
    rows: [usize; 2],
    step: [usize; 2],
    offset: [isize; 2],
    taps: [usize; 2],
    tap_step: [usize; 2],
}

impl<'a, T: Real> Windows<'a, T> {
    fn of(x: &'a Tensor, g: &Geometry) -> Result<Self> {
        let [_, height, width, channels] = four("x", x)?;
        Ok(Windows {
            x: x.as_slice()?,
            size: [height, width],
            channels,
            rows: g.output([height, width]),
            step: g.stride,
            offset: g.padding.map(|n| n as isize),
            taps: g.kernel,
            tap_step: g.dilation,
        })
    }

    fn depth(&self) -> usize {
        self.taps[0] * self.taps[1] * self.channels
    }

    /// `columns` of the rows from `first` on, as many as `out` has room for.
    fn gather(&self, out: &mut [T], first: usize, columns: Range<usize>) {
        let ([height, width], c, [rows, across]) = (self.size, self.channels, self.rows);
        let (start, channel) = (columns.start / c, columns.start % c);
        let start = (start / self.taps[1], start % self.taps[1]);
        let (mut item, mut h, mut w) = (first / (rows * across), first / across % rows, first % across);
        vectorised(
            #[inline(always)]
            || {
                for mut out in out.chunks_exact_mut(columns.len()) {
                    let image = &self.x[item * height * width * c..][..height * width * c];
                    let from = |at: usize, axis: usize| (at * self.step[axis]) as isize - self.offset[axis];
                    let (top, left) = (from(h, 0), from(w, 1));
                    let ((mut k, mut l), mut channel) = (start, channel);
                    while !out.is_empty() {
                        let line = inside(top + (k * self.tap_step[0]) as isize, height);
                        let at = inside(left + (l * self.tap_step[1]) as isize, width);
                        // Neighbouring taps are neighbours in memory, too.
                        let taps = match at {
                            Some(at) if self.tap_step[1] == 1 => (self.taps[1] - l).min(width - at),
                            _ if line.is_none() => self.taps[1] - l,
                            _ => 1,
                        };
                        let (part, rest) = out.split_at_mut(out.len().min(taps * c - channel));
                        match line.zip(at) {
                            Some((line, at)) => copy(part, &image[(line * width + at) * c + channel..][..part.len()]),
                            None => part.fill(T::zero()),
                        }
                        (out, l, channel) = (rest, l + taps, 0);
                        if l == self.taps[1] {
                            (k, l) = (k + 1, 0);
                        }
                    }
                    w += 1;
                    if w == across {
                        (h, w) = (h + 1, 0);
                    }
                    if h == rows {
                        (item, h) = (item + 1, 0);
                    }
                }
            },
        );
    }

    /// `y = windows b`, `finish`ed.
    fn multiply(&self, y: &mut [T], b: &Packed, columns: usize, start: Start<T>, finish: impl Fn(&mut [T]) + Sync) -> Result<()> {
        let (depth, panels) = (self.depth(), b.panels::<T>()?);
        if depth * columns > CACHED {
            let chunk = (SHARED / depth).max(ROWS);
            for (i, y) in y.chunks_mut(chunk * columns).enumerate() {
                let n = y.len() / columns;
                let mut gathered = Scratch::<T>::new(n * depth);
                parallel::for_rows(&mut gathered, depth, |first, out| self.gather(out, i * chunk + first, 0..depth));
                product(y, n, matrix(&gathered, depth), panels, start, |_, _, part| finish(part));
            }
        } else {
            let (len, block) = (y.len(), (BLOCK / depth).clamp(ROWS, 1024) / ROWS * ROWS);
            parallel::for_blocks(y, len, block * columns, (depth / 16).max(1), |_, first, y| {
                let n = y.len() / columns;
                let mut gathered = Scratch::<T>::new(n * depth);
                self.gather(&mut gathered, first / columns, 0..depth);
                gemm(y, columns, n, matrix(&gathered, depth), panels, start);
                finish(y);
            });
        }
        Ok(())
    }
}

#[inline(always)]
fn inside(at: isize, n: usize) -> Option<usize> {
    usize::try_from(at).ok().filter(|&at| at < n)
}

/// Channels are few and mostly a multiple of a register: a call would take longer than the copy.
#[inline(always)]
fn copy<T: Copy>(to: &mut [T], from: &[T]) {
    const LANES: usize = 8;
    if to.len() > 16 * LANES {
        return to.copy_from_slice(from);
    }
    let ((to, to_rest), (from, from_rest)) = (to.as_chunks_mut::<LANES>(), from.as_chunks::<LANES>());
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    to_rest.iter_mut().zip(from_rest).for_each(|(to, from)| *to = *from);
}

fn matrix<T>(data: &[T], depth: usize) -> Gather<'_, T> {
    Gather { data, row_stride: depth, taps: 1, tap_stride: 0, width: depth, column_stride: 1 }
}

pub fn forward<T: Real>(y: &mut Tensor, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, g: &Geometry, slope: f64) -> Result<()> {
    let windows = Windows::<T>::of(x, g)?;
    let cout = weight.shape()[2];
    let packed = Packed::new(weight.as_slice::<T>()?, windows.depth(), cout, cout)?;
    let start = bias.map(Tensor::as_slice::<T>).transpose()?.map_or(Start::Zero, Start::Bias);
    let slope_of = T::of(slope);
    windows.multiply(y.as_mut_slice()?, &packed, cout, start, |part| {
        if slope != 1.0 {
            vectorised(
                #[inline(always)]
                || part.iter_mut().for_each(|v| *v = if *v < T::zero() { *v * slope_of } else { *v }),
            );
        }
    })
}

pub fn backward_input<T: Real>(dx: &mut Tensor, dy: &Tensor, weight: &Tensor, g: &Geometry) -> Result<()> {
    let ([batch, height, width, cin], cout) = (four("dx", dx)?, weight.shape()[2]);
    let phases = |axis: usize, n: usize| (0..g.stride[axis].min(n)).map(|residue| g.phase(axis, residue, n)).collect::<Vec<_>>();
    let (down, across) = (phases(0, height), phases(1, width));
    let dx = dx.as_mut_slice::<T>()?;
    if let ([h], [w]) = (&down[..], &across[..]) {
        return one_phase(dx, dy, weight, g, [h, w], [cin, cout]);
    }
    let mut parts = Vec::with_capacity(down.len() * across.len());
    for h in &down {
        for w in &across {
            let mut part = Scratch::<T>::new(batch * h.rows * w.rows * cin);
            one_phase(&mut part, dy, weight, g, [h, w], [cin, cout])?;
            parts.push(part);
        }
    }
    parallel::for_rows(dx, width * cin, |first, dx| {
        for (row, dx) in (first..).zip(dx.chunks_exact_mut(width * cin)) {
            let (item, h) = (row / height, row % height);
            let (down_at, line) = (h % down.len(), h / down.len());
            for (w, dx) in dx.chunks_exact_mut(cin).enumerate() {
                let (part, columns) = (&parts[down_at * across.len() + w % across.len()], across[w % across.len()].rows);
                let at = (item * down[down_at].rows + line) * columns + w / across.len();
                dx.copy_from_slice(&part[at * cin..][..cin]);
            }
        }
    });
    Ok(())
}

/// The rows of `dx` of one residue of either axis: windows of `dy` times the taps that meet them, last tap first.
fn one_phase<T: Real>(
    dx: &mut [T],
    dy: &Tensor,
    weight: &Tensor,
    g: &Geometry,
    phases: [&Phase; 2],
    [cin, cout]: [usize; 2],
) -> Result<()> {
    let ([_, rows, columns, _], weight) = (four("dy", dy)?, weight.as_slice::<T>()?);
    let taps = phases.map(|p| p.taps);
    if taps.contains(&0) {
        dx.fill(T::zero());
        return Ok(());
    }
    let windows = Windows {
        x: dy.as_slice::<T>()?,
        size: [rows, columns],
        channels: cout,
        rows: phases.map(|p| p.rows),
        step: [1, 1],
        offset: phases.map(|p| ((p.taps - 1) * p.step) as isize - p.start),
        taps,
        tap_step: phases.map(|p| p.step),
    };
    let stored = |axis: usize, tap: usize| phases[axis].first + (taps[axis] - 1 - tap) * phases[axis].every;
    let packed = Packed::from_rows(windows.depth(), cin, |row, first, out: &mut [T]| {
        let (tap, o) = (row / cout, row % cout);
        let tap = stored(0, tap / taps[1]) * g.kernel[1] + stored(1, tap % taps[1]);
        for (i, out) in (first..).zip(out) {
            *out = weight[(tap * cin + i) * cout + o];
        }
    })?;
    windows.multiply(dx, &packed, cin, Start::Zero, |_| {})
}

/// Threads own rows of `dw`, which are columns of the windows, and sum over the windows in order.
pub fn backward_weight<T: Real>(dw: &mut Tensor, dy: &Tensor, x: &Tensor, g: &Geometry) -> Result<()> {
    let (windows, cout) = (Windows::<T>::of(x, g)?, dw.shape()[2]);
    let dy = dy.as_slice::<T>()?;
    let (rows, part) = (dy.len() / cout, (2 * ROWS).min(windows.depth()));
    let chunk = (4 * BLOCK / (cout + part)).clamp(32, 4096);
    let dw = dw.as_mut_slice::<T>()?;
    let len = dw.len();
    parallel::for_blocks(dw, len, part * cout, (rows / 16).max(1), |_, first, dw| {
        dw.fill(T::zero());
        let (first, width) = (first / cout, dw.len() / cout);
        for (step, dy) in (0..).step_by(chunk).zip(dy.chunks(chunk * cout)) {
            let n = chunk.min(rows - step);
            let mut gathered = Scratch::<T>::new(n * width);
            windows.gather(&mut gathered, step, first..first + width);
            let mut packed;
            let b = match Panels::in_place(dy, n, cout) {
                Some(panels) => panels,
                None => {
                    packed = Scratch::new(packed_len(n, cout));
                    Panels::pack(&mut packed, n, cout, |p, first, row| row.copy_from_slice(&dy[p * cout + first..][..row.len()]))
                }
            };
            let a = Gather { data: &gathered[..], row_stride: 1, taps: 1, tap_stride: 0, width: n, column_stride: width };
            gemm(dw, cout, width, a, b, Start::Add);
        }
    });
    Ok(())
}
