//! Blocks of output rows: the input rows of a block are gathered once into scratch memory - padded, taken from the ring,
//! activated - and the product, bias, residual and activation happen while the block is in cache.

use std::ops::Range;

use super::{AnyWeight, Epilogue, Fused, Geometry, Prologue, Ring};
use crate::cpu::gemm::{Gather, Packed, Panels, Start, gemm, packed_len, product};
use crate::cpu::{math, parallel, vectorised};
use crate::ops::snake;
use crate::tensor::Scratch;
use crate::{Element, Real, Result, Tensor};

/// Elements of gathered input that one block aims for: half of a usual first-level cache.
const BLOCK: usize = 1 << 13;

/// What it costs to gather and activate an element, in vectors of products.
const GATHER_WORK: usize = 1;

/// Where the rows of one batch item come from.
pub(crate) struct Rows<'a, T> {
    pub x: &'a [T],
    pub channels: usize,
    pub pad_left: usize,
    /// The ring's rows and its position.
    pub past: Option<(&'a [T], usize)>,
    pub prologue: &'a Activate<T>,
}

impl<'a, T: Real> Rows<'a, T> {
    /// An item of `x [B, t, channels]`, as it is.
    fn bare(x: &'a [T], item: usize, t: usize, channels: usize, g: &Geometry) -> Rows<'a, T> {
        let x = &x[item * t * channels..][..t * channels];
        Rows { x, channels, pad_left: g.pad_left, past: None, prologue: &Activate::None }
    }

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
                    self.prologue.apply(row, &ring[at * c..][..c]);
                }
            }
            None => head.fill(T::zero()), // every prologue maps zero to zero
        }
        let (body, tail) = rest.split_at_mut(inside * c);
        self.prologue.apply(body, &self.x[start.min(t) * c..][..inside * c]);
        tail.fill(T::zero());
    }
}

/// Packs a weight `[K, Cin / groups, Cout]`, once a group.
pub fn pack<W: Element>(weight: &Tensor, groups: usize) -> Result<Packed> {
    let ws = weight.shape();
    pack_groups(weight.as_slice::<W>()?, ws[0] * ws[1], ws[2], groups)
}

fn pack_groups<W: Element>(weight: &[W], depth: usize, cout: usize, groups: usize) -> Result<Packed> {
    let columns = cout / groups;
    Packed::grouped(groups, depth, columns, |group, p, first, row: &mut [W]| {
        row.copy_from_slice(&weight[p * cout + group * columns + first..][..row.len()]);
    })
}

/// What [`convolve`] multiplies by.
#[derive(Clone, Copy)]
pub(crate) enum Weights<'a, T> {
    Packed(&'a Packed),
    /// `[K, C]`, for as many groups as channels.
    Depthwise(&'a [T]),
}

/// A convolution of slices, everything but its input and output.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a, T> {
    pub weights: Weights<'a, T>,
    pub taps: usize,
    pub cin: usize,
    pub cout: usize,
    pub geometry: &'a Geometry,
    pub bias: Option<&'a [T]>,
}

/// What the rows before `item`'s first one are: its ring and position in it.
pub(crate) fn past<'a, T: Real>(ring: Option<&'a Ring>) -> Result<impl Fn(usize) -> Option<(&'a [T], usize)> + Sync> {
    let past = ring.map(|r| Ok::<_, crate::Error>((r.rows.as_slice::<T>()?, r.position.as_slice::<i32>()?))).transpose()?;
    Ok(move |item: usize| {
        past.map(|(rows, position)| {
            let size = rows.len() / position.len().max(1);
            (&rows[item * size..][..size], position[item] as usize)
        })
    })
}

/// A prologue with its coefficients at hand.
pub(crate) enum Activate<T> {
    None,
    Snake(snake::cpu::Coefficients<T>),
    Elu,
}

impl<T: Real> Activate<T> {
    pub fn new(prologue: Prologue) -> Result<Self> {
        Ok(match prologue {
            Prologue::None => Activate::None,
            Prologue::Snake(alpha) => Activate::Snake(snake::cpu::Coefficients::new(alpha.as_slice::<T>()?)),
            Prologue::Elu => Activate::Elu,
        })
    }

    fn apply(&self, out: &mut [T], x: &[T]) {
        match self {
            Activate::Snake(coefficients) => coefficients.apply(out, x),
            Activate::None => out.copy_from_slice(x),
            Activate::Elu => {
                out.copy_from_slice(x);
                math::elu(out);
            }
        }
    }
}

pub fn forward<T: Real>(y: &mut Tensor, x: &Tensor, ring: Option<&Ring>, weight: AnyWeight, g: &Geometry, fused: &Fused) -> Result<()> {
    let bias = fused.bias.map(Tensor::as_slice::<T>).transpose()?;
    let residual = fused.residual.map(Tensor::as_slice::<T>).transpose()?;
    let prologue = Activate::new(fused.prologue)?;
    let past = past::<T>(ring)?;
    let (xs, ws, ys) = (x.shape(), weight.shape(), y.shape());
    let x = x.as_slice::<T>()?;
    let (t, cin) = (xs[1], xs[2]);
    let packed;
    let weights = match (weight.packed(), weight.tensor()) {
        (Some(packed), _) => Weights::Packed(packed),
        (None, Some(w)) if ws[1] == 1 && g.groups == ws[2] => Weights::Depthwise(w.as_slice::<T>()?),
        (None, Some(w)) => {
            packed = pack::<T>(w, g.groups)?;
            Weights::Packed(&packed)
        }
        (None, None) => return Ok(()), // a weight is one of the two
    };
    let layer = Layer { weights, taps: ws[0], cin, cout: ws[2], geometry: g, bias };
    let input = |item: usize| Rows {
        x: &x[item * t * cin..][..t * cin],
        channels: cin,
        pad_left: g.pad_left,
        past: past(item),
        prologue: &prologue,
    };
    convolve(y.as_mut_slice::<T>()?, ys[1], &layer, input, |block, at| {
        if let Some(residual) = residual {
            let residual = &residual[at..][..block.len()];
            vectorised(
                #[inline(always)]
                || block.iter_mut().zip(residual).for_each(|(y, &r)| *y += r),
            );
        }
        match fused.epilogue {
            Epilogue::None => {}
            Epilogue::Tanh => math::tanh(block),
            Epilogue::Elu => math::elu(block),
        }
    })
}

/// `y[B, tout, cout]` from the rows that `input(item)` yields; `finish(part, offset)` runs on each part of `y` once summed.
pub(crate) fn convolve<'a, T: Real>(
    y: &mut [T],
    tout: usize,
    layer: &Layer<T>,
    input: impl Fn(usize) -> Rows<'a, T> + Sync,
    finish: impl Fn(&mut [T], usize) + Sync,
) -> Result<()> {
    let &Layer { weights, taps, cin, cout, geometry: g, bias } = layer;
    let rows = y.len() / cout;
    if rows == 0 {
        return Ok(());
    }
    let items = rows / tout;
    let height = (tout - 1) * g.stride + g.reach(taps);
    match weights {
        // Weights that weigh more than what they are multiplied by are read once.
        Weights::Packed(packed) if g.groups == 1 && if items == 1 { height <= taps * cout } else { rows <= cout } => {
            let mut gathered = Scratch::<T>::new(items * height * cin);
            parallel::for_blocks(&mut gathered, height * cin, height.div_ceil(4) * cin, GATHER_WORK, |item, first, out| {
                input(item).gather(out, first / cin);
            });
            let apart;
            let a = if items == 1 {
                let (row_stride, tap_stride) = (g.stride * cin, g.dilation * cin);
                Gather { data: &gathered, row_stride, taps, tap_stride, width: cin, column_stride: 1 }
            } else {
                let depth = taps * cin;
                apart = windows(&gathered, rows, depth, cin, |row, k| row / tout * height + row % tout * g.stride + k * g.dilation);
                Gather { data: &apart, row_stride: depth, taps: 1, tap_stride: 0, width: depth, column_stride: 1 }
            };
            let start = bias.map_or(Start::Zero, Start::Bias);
            product(y, rows, a, packed.panels()?, start, |i, j, part| finish(part, i * cout + j));
        }
        Weights::Packed(packed) => {
            let (cin_group, cout_group) = (cin / g.groups, cout / g.groups);
            let panels = packed.panels::<T>()?;
            by_blocks(
                y,
                tout,
                layer,
                input,
                |block, gathered| {
                    let rows = block.len() / cout;
                    for group in 0..g.groups {
                        let a = Gather {
                            data: &gathered[group * cin_group..],
                            row_stride: g.stride * cin,
                            taps,
                            tap_stride: g.dilation * cin,
                            width: cin_group,
                            column_stride: 1,
                        };
                        let start = bias.map_or(Start::Zero, |bias| Start::Bias(&bias[group * cout_group..][..cout_group]));
                        gemm(&mut block[group * cout_group..], cout, rows, a, panels.group(group), start);
                    }
                },
                finish,
            );
        }
        Weights::Depthwise(weights) => {
            let steps = (cin, g.stride, g.dilation);
            by_blocks(y, tout, layer, input, |block, gathered| depthwise(block, gathered, weights, steps, bias), finish);
        }
    }
    Ok(())
}

/// `multiply(block, its input)` and `finish(block, offset)` on blocks of rows of `y`.
fn by_blocks<'a, T: Real>(
    y: &mut [T],
    tout: usize,
    layer: &Layer<T>,
    input: impl Fn(usize) -> Rows<'a, T> + Sync,
    multiply: impl Fn(&mut [T], &[T]) + Sync,
    finish: impl Fn(&mut [T], usize) + Sync,
) {
    let &Layer { taps, cin, cout, geometry: g, .. } = layer;
    let block_rows = (BLOCK / (cin * g.stride).max(1)).clamp(16, 1024).next_multiple_of(12);
    parallel::for_blocks(y, tout * cout, block_rows * cout, y_work(taps * cin / g.groups), |item, first, block| {
        let mut gathered = Scratch::<T>::new(((block.len() / cout - 1) * g.stride + g.reach(taps)) * cin);
        input(item).gather(&mut gathered, first / cout * g.stride);
        multiply(block, &gathered);
        finish(block, item * tout * cout + first);
    });
}

/// `[rows, depth]` whose stretch `k` of row `row` is row `at(row, k)` of `x`, of `width`.
fn windows<T: Real>(x: &[T], rows: usize, depth: usize, width: usize, at: impl Fn(usize, usize) -> usize + Sync) -> Scratch<T> {
    let mut out = Scratch::new(rows * depth);
    parallel::for_rows(&mut out, depth, |first, out| {
        for (row, out) in out.chunks_exact_mut(depth).enumerate() {
            for (k, out) in out.chunks_exact_mut(width).enumerate() {
                out.copy_from_slice(&x[at(first + row, k) * width..][..width]);
            }
        }
    });
    out
}

/// `y[t, c] = bias[c] + sum_k x[t * stride + k * dilation, c] w[k, c]`, in the order of `k`.
fn depthwise<T: Real>(y: &mut [T], x: &[T], w: &[T], (channels, stride, dilation): (usize, usize, usize), bias: Option<&[T]>) {
    vectorised(
        #[inline(always)]
        || {
            for (t, y) in y.chunks_exact_mut(channels).enumerate() {
                match bias {
                    Some(bias) => y.copy_from_slice(bias),
                    None => y.fill(T::zero()),
                }
                for (k, w) in w.chunks_exact(channels).enumerate() {
                    let x = &x[(t * stride + k * dilation) * channels..][..channels];
                    for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
                        *y = x.mul_add(w, *y);
                    }
                }
            }
        },
    );
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
    let (cin_group, cout_group) = (cin / g.groups, cout / g.groups);
    let depthwise = cin_group == 1 && cout_group == 1;
    if g.stride == 1 && g.pad_left < reach {
        // A convolution of dy with the taps reversed and each tap transposed, group by group.
        let geometry = Geometry { pad_left: reach - 1 - g.pad_left, pad_right: 0, ..*g };
        let flip = |w: &[T]| transpose_taps(w, taps, cin_group, cout_group, |k| taps - 1 - k);
        let flipped = match g.groups {
            1 => flip(w),
            groups => {
                let mut all = Scratch::<T>::new(taps * cout_group * cin);
                for group in 0..groups {
                    let own = flip(&columns(w, cout, group * cout_group..(group + 1) * cout_group));
                    put_columns(&mut all, cin, group * cin_group, &own, cin_group);
                }
                all
            }
        };
        if depthwise {
            let layer = Layer { weights: Weights::Depthwise(&flipped), taps, cin: cout, cout: cin, geometry: &geometry, bias: None };
            return convolve(dx, t, &layer, |item| Rows::bare(dy, item, tout, cout, &geometry), |_, _| {});
        }
        bare(dx, t, (dy, tout, cout), (&flipped, taps, cin), &geometry)?;
    } else if g.dilation == 1 {
        let shape = Upsample { stride: g.stride, taps, crop: g.pad_left, t: tout, len: t };
        if depthwise {
            return upsample(dx, (dy, cout), (Weights::Depthwise(w), cin), None, shape, |_| None, &Activate::None);
        }
        let one = |dx: &mut [T], dy: &[T], w: &[T]| {
            let transposed = transpose_taps(w, taps, cin_group, cout_group, |k| k);
            let weights = polyphase(&transposed, (taps, cout_group, cin_group), g.stride)?;
            upsample(dx, (dy, cout_group), (Weights::Packed(&weights), cin_group), None, shape, |_| None, &Activate::None)
        };
        if g.groups == 1 {
            return one(dx, dy, w);
        }
        let mut part = Scratch::<T>::new(dx.len() / g.groups);
        for group in 0..g.groups {
            let own = group * cout_group..(group + 1) * cout_group;
            one(&mut part, &columns(dy, cout, own.clone()), &columns(w, cout, own))?;
            put_columns(dx, cin, group * cin_group, &part, cin_group);
        }
    } else {
        scatter_input(dx, dy, w, (t, cin, tout, cout, taps), g);
    }
    Ok(())
}

/// Some columns of rows of `width`.
fn columns<T: Real>(x: &[T], width: usize, which: Range<usize>) -> Scratch<T> {
    let mut out = Scratch::new(x.len() / width.max(1) * which.len());
    for (out, x) in out.chunks_exact_mut(which.len().max(1)).zip(x.chunks_exact(width.max(1))) {
        out.copy_from_slice(&x[which.clone()]);
    }
    out
}

/// Rows of `count` become the columns from `first` on of rows of `width`.
fn put_columns<T: Real>(out: &mut [T], width: usize, first: usize, part: &[T], count: usize) {
    for (out, part) in out.chunks_exact_mut(width.max(1)).zip(part.chunks_exact(count.max(1))) {
        out[first..first + count].copy_from_slice(part);
    }
}

/// The convolution alone, on slices: `y[B, tout, cout]` from `x[B, t, cin]` and `w[taps, cin / groups, cout]`.
pub(crate) fn bare<T: Real>(
    y: &mut [T],
    tout: usize,
    (x, t, cin): (&[T], usize, usize),
    (w, taps, cout): (&[T], usize, usize),
    g: &Geometry,
) -> Result<()> {
    let packed = pack_groups(w, taps * cin / g.groups, cout, g.groups)?;
    let layer = Layer { weights: Weights::Packed(&packed), taps, cin, cout, geometry: g, bias: None };
    convolve(y, tout, &layer, |item| Rows::bare(x, item, t, cin, g), |_, _| {})
}

/// Any geometry, one multiply at a time: stride together with dilation, padding beyond the filter.
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

/// `[taps, cin, cout]` regrouped: row `(m, i)`, column `(phase, o)` is `w[phase + stride * (history - 1 - m)][i][o]`, with
/// `history = ceil(taps / stride)`.
pub(crate) fn polyphase<W: Element>(w: &[W], (taps, cin, cout): (usize, usize, usize), stride: usize) -> Result<Packed> {
    let history = taps.div_ceil(stride);
    Packed::from_rows(history * cin, stride * cout, |row, first, out: &mut [W]| {
        let (m, i) = (row / cin, row % cin);
        let mut column = first;
        let mut out = out;
        while !out.is_empty() {
            let (phase, o) = (column / cout, column % cout);
            let n = out.len().min(cout - o);
            let (part, rest) = out.split_at_mut(n);
            let k = phase + stride * (history - 1 - m);
            if k < taps {
                part.copy_from_slice(&w[(k * cin + i) * cout + o..][..n])
            } else {
                part.fill(W::default())
            }
            (out, column) = (rest, column + n);
        }
    })
}

/// `y[o] = bias + sum x[t] w[o + crop - t * stride]`: each stretch of `stride` outputs is one row of a convolution over `x` with
/// `ceil(taps / stride)` taps and `stride * cout` columns. Weights are [`polyphase`], or `[taps, C]` depthwise.
pub(crate) fn upsample<'a, T: Real>(
    y: &mut [T],
    (x, cin): (&[T], usize),
    (weights, cout): (Weights<T>, usize),
    bias: Option<&[T]>,
    shape: Upsample,
    past: impl Fn(usize) -> Option<(&'a [T], usize)> + Sync,
    prologue: &Activate<T>,
) -> Result<()> {
    let Upsample { stride, taps, crop, t, len } = shape;
    let history = taps.div_ceil(stride);
    let columns = stride * cout;
    // Rows of `stride` outputs that cover `crop..crop + len`; row u reads inputs u - (history - 1) ..= u.
    let first = crop / stride;
    let rows = if len == 0 { 0 } else { (crop + len).div_ceil(stride) - first };
    let batch = y.len().checked_div(len * cout).unwrap_or(0);
    // A crop beyond the padding is skipped input.
    let skip = first.saturating_sub(history - 1).min(t);
    let pad_left = (history - 1).saturating_sub(first);
    let geometry = Geometry { pad_left, ..Geometry::default() };
    let input =
        |item: usize| Rows { x: &x[(item * t + skip) * cin..(item + 1) * t * cin], channels: cin, pad_left, past: past(item), prologue };
    let run = |y: &mut [T]| match weights {
        Weights::Depthwise(w) => {
            parallel::for_blocks(y, rows * columns, rows * columns, y_work(history), |item, _, y| {
                let mut gathered = Scratch::<T>::new((rows + history - 1) * cin);
                input(item).gather(&mut gathered, 0);
                spread(y, &gathered, w, (cin, stride, history), bias);
            });
            Ok(())
        }
        Weights::Packed(_) => {
            let bias = bias.map(|bias| {
                let mut repeated = Scratch::<T>::new(columns);
                repeated.chunks_exact_mut(cout.max(1)).for_each(|phase| phase.copy_from_slice(bias));
                repeated
            });
            let layer = Layer { weights, taps: history, cin, cout: columns, geometry: &geometry, bias: bias.as_deref() };
            convolve(y, rows, &layer, input, |_, _| {})
        }
    };
    if crop.is_multiple_of(stride) && len.is_multiple_of(stride) {
        return run(y);
    }
    let mut whole = Scratch::<T>::new(batch * rows * columns);
    run(&mut whole)?;
    let from = (crop - first * stride) * cout;
    for (item, y) in y.chunks_exact_mut((len * cout).max(1)).enumerate() {
        y.copy_from_slice(&whole[item * rows * columns + from..][..len * cout]);
    }
    Ok(())
}

/// `y[u, phase, c] = bias[c] + sum_m x[u + m, c] w[phase + stride (history - 1 - m), c]`, in the order of `m`.
fn spread<T: Real>(y: &mut [T], x: &[T], w: &[T], (channels, stride, history): (usize, usize, usize), bias: Option<&[T]>) {
    vectorised(
        #[inline(always)]
        || {
            for (row, y) in y.chunks_exact_mut(channels).enumerate() {
                let (u, phase) = (row / stride, row % stride);
                match bias {
                    Some(bias) => y.copy_from_slice(bias),
                    None => y.fill(T::zero()),
                }
                for m in 0..history {
                    let k = phase + stride * (history - 1 - m);
                    let Some(w) = w.get(k * channels..(k + 1) * channels) else { continue };
                    for ((y, &x), &w) in y.iter_mut().zip(&x[(u + m) * channels..]).zip(w) {
                        *y = x.mul_add(w, *y);
                    }
                }
            }
        },
    );
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
                    let mut packed;
                    let b = match Panels::in_place(dy, n, cout).filter(|_| g.groups == 1) {
                        Some(panels) => panels,
                        None => {
                            packed = Scratch::new(packed_len(n, cout_group));
                            Panels::pack(&mut packed, n, cout_group, |p, first, row| {
                                row.copy_from_slice(&dy[p * cout + first..][..row.len()])
                            })
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

/// Makes the first row of `x` the past of every stream without one that is not masked out.
pub fn prime<T: Real>(ring: &mut Ring, x: &Tensor, mask: Option<&Tensor>) -> Result<()> {
    let [batch, past, c] = ring.rows.shape()[..] else { return Ok(()) };
    let t = x.shape()[1];
    let mask = mask.map(Tensor::as_slice::<u8>).transpose()?;
    let x = x.as_slice::<T>()?;
    let rows = ring.rows.as_mut_slice::<T>()?;
    let primed = ring.primed.as_mut_slice::<u8>()?;
    for item in (0..batch).filter(|&item| mask.is_none_or(|m| m[item] != 0)) {
        if std::mem::replace(&mut primed[item], 1) == 0 {
            let first = &x[item * t * c..][..c];
            rows[item * past * c..][..past * c].chunks_exact_mut(c).for_each(|row| row.copy_from_slice(first));
        }
    }
    Ok(())
}

pub fn reset<T: Real>(ring: &mut Ring, mask: &[u8]) -> Result<()> {
    let size = ring.rows.elements() / mask.len().max(1);
    for (item, _) in mask.iter().enumerate().filter(|&(_, &m)| m != 0) {
        ring.rows.as_mut_slice::<T>()?[item * size..][..size].fill(T::zero());
        ring.position.as_mut_slice::<i32>()?[item] = 0;
        ring.primed.as_mut_slice::<u8>()?[item] = 0;
    }
    Ok(())
}
