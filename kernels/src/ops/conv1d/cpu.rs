//! Blocks of output rows: the input rows of a block are gathered once into scratch memory - padded, taken from the ring,
//! activated - and the product, bias, residual and activation happen while the block is in cache.

use super::{Epilogue, Fused, Geometry, Prologue, Ring};
use crate::cpu::gemm::{Gather, Packed, Panels, Start, gemm};
use crate::cpu::{parallel, vectorised};
use crate::ops::snake;
use crate::tensor::Scratch;
use crate::{Real, Result, Tensor};

/// Elements of gathered input that one block aims for: half of a usual first-level cache.
const BLOCK: usize = 1 << 13;

/// Where the rows of one batch item come from.
struct Rows<'a, T> {
    x: &'a [T],
    channels: usize,
    pad_left: usize,
    /// The ring's rows and its position.
    past: Option<(&'a [T], usize)>,
    snake: Option<&'a snake::cpu::Coefficients<T>>,
    elu: bool,
}

impl<T: Real> Rows<'_, T> {
    /// Writes the padded input's rows `first..` to `out`.
    fn gather(&self, out: &mut [T], first: usize) {
        let c = self.channels;
        let t = self.x.len() / c;
        let rows = out.len() / c;
        // Padded row r is input row r - pad_left: a stretch before the input, one inside, one after.
        let before = self.pad_left.saturating_sub(first).min(rows);
        let start = (first + before).saturating_sub(self.pad_left);
        let inside = (rows - before).min(t.saturating_sub(start));
        let (head, rest) = out.split_at_mut(before * c);
        match self.past {
            Some((ring, position)) => {
                let p = ring.len() / c;
                for (r, row) in head.chunks_exact_mut(c).enumerate() {
                    let back = self.pad_left - first - r; // 1 is the newest
                    let at = (position + p - back) % p;
                    self.activate(row, &ring[at * c..][..c]);
                }
            }
            None => head.fill(T::zero()), // every prologue maps zero to zero
        }
        let (body, tail) = rest.split_at_mut(inside * c);
        self.activate(body, &self.x[start.min(t) * c..][..inside * c]);
        tail.fill(T::zero());
    }

    fn activate(&self, out: &mut [T], x: &[T]) {
        if let Some(coefficients) = self.snake {
            return coefficients.apply(out, x);
        }
        out.copy_from_slice(x);
        if self.elu {
            elu(out);
        }
    }
}

fn elu<T: Real>(values: &mut [T]) {
    for v in values {
        *v = if *v > T::zero() { *v } else { v.exp_m1() };
    }
}

pub fn forward<T: Real>(y: &mut Tensor, x: &Tensor, ring: Option<&Ring>, weight: &Tensor, g: &Geometry, fused: &Fused) -> Result<()> {
    let bias = fused.bias.map(Tensor::as_slice::<T>).transpose()?;
    let residual = fused.residual.map(Tensor::as_slice::<T>).transpose()?;
    let coefficients = match fused.prologue {
        Prologue::Snake(alpha) => Some(snake::cpu::Coefficients::new(alpha.as_slice::<T>()?)),
        _ => None,
    };
    let with_elu = matches!(fused.prologue, Prologue::Elu);
    let past = ring.map(|r| Ok::<_, crate::Error>((r.rows.as_slice::<T>()?, r.position.as_slice::<i32>()?))).transpose()?;
    let (xs, ws, ys) = (x.shape(), weight.shape(), y.shape());
    let weight = weight.as_slice::<T>()?;
    let x = x.as_slice::<T>()?;
    let (t, cin) = (xs[1], xs[2]);
    convolve(
        y.as_mut_slice::<T>()?,
        ys[1],
        ws[2],
        cin,
        (weight, ws[0]),
        g,
        bias,
        |item| Rows {
            x: &x[item * t * cin..][..t * cin],
            channels: cin,
            pad_left: g.pad_left,
            past: past.map(|(rows, position)| {
                let size = rows.len() / xs[0];
                (&rows[item * size..][..size], position[item] as usize)
            }),
            snake: coefficients.as_ref(),
            elu: with_elu,
        },
        |block, at| {
            if let Some(residual) = residual {
                let residual = &residual[at..][..block.len()];
                vectorised(
                    #[inline(always)]
                    || block.iter_mut().zip(residual).for_each(|(y, &r)| *y += r),
                );
            }
            match fused.epilogue {
                Epilogue::None => {}
                Epilogue::Tanh => block.iter_mut().for_each(|v| *v = v.tanh()),
                Epilogue::Elu => elu(block),
            }
        },
    );
    Ok(())
}

/// `y[B, tout, cout]` from the rows that `input(item)` yields; `finish(block, offset)` runs on each block of `y` once summed.
#[allow(clippy::too_many_arguments)]
fn convolve<'a, T: Real>(
    y: &mut [T],
    tout: usize,
    cout: usize,
    cin: usize,
    (weight, taps): (&[T], usize),
    g: &Geometry,
    bias: Option<&[T]>,
    input: impl Fn(usize) -> Rows<'a, T> + Sync,
    finish: impl Fn(&mut [T], usize) + Sync,
) {
    let (cin_group, cout_group) = (cin / g.groups, cout / g.groups);
    let depth = taps * cin_group;
    // Packing pays once more than a few rows share the weights.
    let few_rows = tout < 16 && y.len() / cout.max(1) < 64;
    let in_place = if few_rows && g.groups == 1 { Panels::in_place(weight, depth, cout) } else { None };
    let pack = |group: usize| Packed::new(&weight[group * cout_group..], depth, cout_group, cout);
    // One group, the usual case, costs no allocation.
    let whole = (in_place.is_none() && g.groups == 1).then(|| pack(0));
    let grouped: Vec<Packed<T>> = if g.groups == 1 { Vec::new() } else { (0..g.groups).map(pack).collect() };
    let block_rows = (BLOCK / (cin * g.stride).max(1)).clamp(16, 1024).next_multiple_of(12);
    parallel::for_blocks(y, tout * cout, block_rows * cout, y_work(depth), |item, first, block| {
        let rows = block.len() / cout;
        let source = input(item);
        let mut gathered = Scratch::<T>::new(((rows - 1) * g.stride + g.reach(taps)) * cin);
        source.gather(&mut gathered, first / cout * g.stride);
        for group in 0..g.groups {
            let a = Gather {
                data: &gathered[group * cin_group..],
                row_stride: g.stride * cin,
                taps,
                tap_stride: g.dilation * cin,
                width: cin_group,
                column_stride: 1,
            };
            let Some(panels) = in_place.or_else(|| whole.as_ref().or(grouped.get(group)).map(Packed::panels)) else { return };
            let start = bias.map_or(Start::Zero, |bias| Start::Bias(&bias[group * cout_group..][..cout_group]));
            gemm(&mut block[group * cout_group..], cout, rows, a, panels, start);
        }
        finish(block, item * tout * cout + first);
    });
}

/// Work per output element, in the units of [`parallel`].
fn y_work(depth: usize) -> usize {
    (depth / 16).max(1)
}

pub fn backward_input<T: Real>(dx: &mut Tensor, dy: &Tensor, weight: &Tensor, g: &Geometry) -> Result<()> {
    let (xs, ys, ws) = (dx.shape(), dy.shape(), weight.shape());
    let (t, cin, tout, cout, taps) = (xs[1], xs[2], ys[1], ys[2], ws[0]);
    let (dx, dy, w) = (dx.as_mut_slice::<T>()?, dy.as_slice::<T>()?, weight.as_slice::<T>()?);
    let reach = g.reach(taps);
    if g.groups == 1 && g.stride == 1 && g.pad_left < reach {
        // A convolution of dy with the taps reversed and each tap transposed.
        let flipped = transpose_taps(w, taps, cin, cout, |k| taps - 1 - k);
        let pad_left = reach - 1 - g.pad_left;
        let geometry = Geometry { pad_left, pad_right: 0, ..*g };
        bare(dx, t, (dy, tout, cout), (&flipped, taps, cin), &geometry);
    } else if g.groups == 1 && g.dilation == 1 {
        let shape = Upsample { stride: g.stride, taps, crop: g.pad_left, t: tout, len: t };
        let transposed = transpose_taps(w, taps, cin, cout, |k| k);
        upsample(dx, (dy, cout), &transposed, cin, None, shape, None, |_, _| {});
    } else {
        scatter_input(dx, dy, w, (t, cin, tout, cout, taps), g);
    }
    Ok(())
}

/// The convolution alone, on slices: `y[B, tout, cout]` from `x[B, t, cin]` and `w[taps, cin, cout]`.
pub(crate) fn bare<T: Real>(
    y: &mut [T],
    tout: usize,
    (x, t, cin): (&[T], usize, usize),
    (w, taps, cout): (&[T], usize, usize),
    g: &Geometry,
) {
    let rows =
        |item: usize| Rows { x: &x[item * t * cin..][..t * cin], channels: cin, pad_left: g.pad_left, past: None, snake: None, elu: false };
    convolve(y, tout, cout, cin, (w, taps), g, None, rows, |_, _| {});
}

/// Any geometry, one multiply at a time: groups, and stride together with dilation.
fn scatter_input<T: Real>(dx: &mut [T], dy: &[T], w: &[T], (t, cin, tout, cout, taps): (usize, usize, usize, usize, usize), g: &Geometry) {
    let (cin_group, cout_group) = (cin / g.groups, cout / g.groups);
    parallel::for_blocks(dx, t * cin, t * cin, y_work(taps * cout_group), |item, _, dx| {
        dx.fill(T::zero());
        for step in 0..tout {
            let dy = &dy[(item * tout + step) * cout..][..cout];
            for k in 0..taps {
                let Some(at) = (step * g.stride + k * g.dilation).checked_sub(g.pad_left).filter(|&at| at < t) else { continue };
                for i in 0..cin {
                    let first = i / cin_group * cout_group;
                    let w = &w[(k * cin_group + i % cin_group) * cout + first..][..cout_group];
                    dx[at * cin + i] += w.iter().zip(&dy[first..]).map(|(&w, &d)| w * d).sum::<T>();
                }
            }
        }
    });
}

/// `out[k][o][i] = w[order(k)][i][o]`.
pub(crate) fn transpose_taps<T: Real>(w: &[T], taps: usize, rows: usize, columns: usize, order: impl Fn(usize) -> usize) -> Scratch<T> {
    let mut out = Scratch::new(taps * rows * columns);
    for (k, out) in out.chunks_exact_mut((rows * columns).max(1)).enumerate() {
        let w = &w[order(k) * rows * columns..][..rows * columns];
        for (i, row) in w.chunks_exact(columns).enumerate() {
            for (o, &v) in row.iter().enumerate() {
                out[o * rows + i] = v;
            }
        }
    }
    out
}

/// A transposed convolution's extents: `t` input rows, `len` output rows from `crop` on.
#[derive(Clone, Copy)]
pub(crate) struct Upsample {
    pub stride: usize,
    pub taps: usize,
    pub crop: usize,
    pub t: usize,
    pub len: usize,
}

/// `y[o] = sum x[t] w[o + crop - t * stride]` with `w [taps, cin, cout]`: each stretch of `stride` outputs is one row of
/// a convolution over `x` with `ceil(taps / stride)` taps and `stride * cout` columns.
#[allow(clippy::too_many_arguments)]
pub(crate) fn upsample<T: Real>(
    y: &mut [T],
    (x, cin): (&[T], usize),
    w: &[T],
    cout: usize,
    bias: Option<&[T]>,
    shape: Upsample,
    ring: Option<&Ring>,
    finish: impl Fn(&mut [T], usize) + Sync,
) {
    let Upsample { stride, taps, crop, t, len } = shape;
    let history = taps.div_ceil(stride);
    let columns = stride * cout;
    // polyphase[m][i][phase * cout + o] = w[phase + stride * (history - 1 - m)][i][o]
    let mut polyphase = Scratch::<T>::new(history * cin * columns);
    for m in 0..history {
        for phase in 0..stride {
            let k = phase + stride * (history - 1 - m);
            for i in 0..cin {
                let out = &mut polyphase[(m * cin + i) * columns + phase * cout..][..cout];
                if k < taps { out.copy_from_slice(&w[(k * cin + i) * cout..][..cout]) } else { out.fill(T::zero()) }
            }
        }
    }
    let bias: Option<Scratch<T>> = bias.map(|bias| {
        let mut repeated = Scratch::new(columns);
        repeated.chunks_exact_mut(cout.max(1)).for_each(|phase| phase.copy_from_slice(bias));
        repeated
    });
    // Rows of `stride` outputs that cover `crop..crop + len`; row u reads inputs u - (history - 1) ..= u.
    let first = crop / stride;
    let rows = if len == 0 { 0 } else { (crop + len).div_ceil(stride) - first };
    let batch = y.len().checked_div(len * cout).unwrap_or(0);
    // A crop beyond the padding is skipped input.
    let skip = first.saturating_sub(history - 1).min(t);
    let pad_left = (history - 1).saturating_sub(first);
    let geometry = Geometry { pad_left, ..Geometry::default() };
    let input = |item: usize| Rows {
        x: &x[(item * t + skip) * cin..(item + 1) * t * cin],
        channels: cin,
        pad_left,
        past: ring.and_then(|r| {
            let (rows, position) = (r.rows.as_slice::<T>().ok()?, r.position.as_slice::<i32>().ok()?);
            let size = rows.len() / position.len().max(1);
            Some((&rows[item * size..][..size], position[item] as usize))
        }),
        snake: None,
        elu: false,
    };
    if crop.is_multiple_of(stride) && len.is_multiple_of(stride) {
        convolve(y, rows, columns, cin, (&polyphase, history), &geometry, bias.as_deref(), input, finish);
    } else {
        let mut whole = Scratch::<T>::new(batch * rows * columns);
        convolve(&mut whole, rows, columns, cin, (&polyphase, history), &geometry, bias.as_deref(), input, |_, _| {});
        let from = (crop - first * stride) * cout;
        for (item, y) in y.chunks_exact_mut((len * cout).max(1)).enumerate() {
            y.copy_from_slice(&whole[item * rows * columns + from..][..len * cout]);
            finish(y, item * len * cout);
        }
    }
}

pub fn backward_weight<T: Real>(dw: &mut Tensor, dy: &Tensor, x: &Tensor, g: &Geometry) -> Result<()> {
    let (xs, ys, ws) = (x.shape(), dy.shape(), dw.shape());
    correlate(dw.as_mut_slice::<T>()?, (x.as_slice::<T>()?, xs[1], xs[2]), (dy.as_slice::<T>()?, ys[1], ys[2]), xs[0], ws[0], g);
    Ok(())
}

/// `dw[k, i, o] = sum_{b, t} x[b, t * stride + k * dilation - pad_left, i] dy[b, t, o]`: per tap a product over time, in
/// chunks of `dy` that stay in cache. Threads own taps and input channels, so the order of the sum is fixed.
pub(crate) fn correlate<T: Real>(
    dw: &mut [T],
    (x, t, cin): (&[T], usize, usize),
    (dy, tout, cout): (&[T], usize, usize),
    batch: usize,
    taps: usize,
    g: &Geometry,
) {
    let (cin_group, cout_group) = (cin / g.groups, cout / g.groups);
    let chunk = (BLOCK * 4 / (cout + g.stride * cin).max(1)).clamp(32, 4096);
    // A part is a run of input channels of one tap: enough of them for the threads, whole tiles each.
    let part = if taps >= 2 * rayon::current_num_threads() { cin_group } else { 24.min(cin_group) };
    parallel::for_blocks(dw, cin_group * cout, part * cout, batch * tout, |k, first, dw| {
        dw.fill(T::zero());
        let i0 = first / cout;
        let rows = dw.len() / cout;
        for item in 0..batch {
            for group in 0..g.groups {
                // Steps whose tap lies inside the input.
                let tap = k * g.dilation;
                let begin = g.pad_left.saturating_sub(tap).div_ceil(g.stride);
                let end = tout.min((t + g.pad_left).saturating_sub(tap).div_ceil(g.stride));
                let mut step = begin;
                while step < end {
                    let n = chunk.min(end - step);
                    let dy = &dy[(item * tout + step) * cout + group * cout_group..];
                    let packed;
                    let b = match Panels::in_place(dy, n, cout).filter(|_| g.groups == 1) {
                        Some(panels) => panels,
                        None => {
                            packed = Packed::new(dy, n, cout_group, cout);
                            packed.panels()
                        }
                    };
                    let at = step * g.stride + tap - g.pad_left;
                    let a = Gather {
                        data: &x[(item * t + at) * cin + group * cin_group + i0..],
                        row_stride: 1,
                        taps: 1,
                        tap_stride: 0,
                        width: n,
                        column_stride: g.stride * cin,
                    };
                    gemm(&mut dw[group * cout_group..], cout, rows, a, b, Start::Add);
                    step += n;
                }
            }
        }
    });
}

/// Appends the newest rows of `x` to the ring of every stream that is not masked out.
pub fn append<T: Real>(ring: &mut Ring, x: &Tensor, mask: Option<&Tensor>) -> Result<()> {
    let [batch, past, c] = ring.rows.shape()[..] else { return Ok(()) };
    let t = x.shape()[1];
    let mask = mask.map(Tensor::as_slice::<u8>).transpose()?;
    let x = x.as_slice::<T>()?;
    let rows = ring.rows.as_mut_slice::<T>()?;
    let position = ring.position.as_mut_slice::<i32>()?;
    if past == 0 {
        return Ok(());
    }
    for item in (0..batch).filter(|&item| mask.is_none_or(|m| m[item] != 0)) {
        let at = position[item] as usize;
        for r in t.saturating_sub(past)..t {
            let slot = (at + r) % past;
            rows[(item * past + slot) * c..][..c].copy_from_slice(&x[(item * t + r) * c..][..c]);
        }
        position[item] = ((at + t) % past) as i32;
    }
    Ok(())
}

pub fn reset<T: Real>(ring: &mut Ring, mask: &[u8]) -> Result<()> {
    let size = ring.rows.elements() / mask.len().max(1);
    for (item, _) in mask.iter().enumerate().filter(|&(_, &m)| m != 0) {
        ring.rows.as_mut_slice::<T>()?[item * size..][..size].fill(T::zero());
        ring.position.as_mut_slice::<i32>()?[item] = 0;
    }
    Ok(())
}
