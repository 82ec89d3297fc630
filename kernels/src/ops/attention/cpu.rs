use super::{Kept, KvCache, Mask, Positions, Saved, Stored};
use crate::cpu::vector::{Kernel, Vector};
use crate::cpu::{parallel, prefetch, vectorised};
use crate::tensor::Scratch;
use crate::{DType, Real, Result, Tensor, dispatch_real};

/// Tokens whose keys are stored side by side: a vector of scores.
const PANEL: usize = 16;
/// Query rows that are computed together.
const ROWS: usize = 4;
/// Values that are fetched before they are needed.
const AHEAD: usize = 16;

pub fn advance(seen: &mut [i32], tokens: i32, mask: Option<&Tensor>) -> Result<()> {
    let mask = mask.map(Tensor::as_slice::<u8>).transpose()?;
    for (b, seen) in seen.iter_mut().enumerate() {
        if mask.is_none_or(|mask| mask[b] != 0) {
            *seen = seen.wrapping_add(tokens);
        }
    }
    Ok(())
}

pub fn reset(seen: &mut [i32], mask: &Tensor) -> Result<()> {
    seen.iter_mut().zip(mask.as_slice::<u8>()?).filter(|(_, m)| **m != 0).for_each(|(seen, _)| *seen = 0);
    Ok(())
}

/// Stores the key of `slot`, as long as `key`, in the ring of one head: see [`KvCache`].
pub fn put_key<W: Copy>(ring: &mut [W], slot: usize, key: impl ExactSizeIterator<Item = W>) {
    let panel = &mut ring[slot / PANEL * PANEL * key.len()..];
    panel[slot % PANEL..].iter_mut().step_by(PANEL).zip(key).for_each(|(to, k)| *to = k);
}

/// The keys of a cache, `[B, Hkv, capacity, D]`.
pub fn keys(stored: &Tensor) -> Result<Tensor> {
    turn_panels(stored, stored.shape().last_dim(), PANEL)
}

/// And back.
pub fn stored(keys: &Tensor) -> Result<Tensor> {
    turn_panels(keys, PANEL, keys.shape().last_dim())
}

/// Panels of `columns` rows of `rows`, transposed.
fn turn_panels(x: &Tensor, rows: usize, columns: usize) -> Result<Tensor> {
    match x.dtype() {
        DType::U8 => turned::<i8>(x, rows, columns),
        DType::BF16 => turned::<half::bf16>(x, rows, columns),
        dtype => dispatch_real!("attention", dtype, T => turned::<T>(x, rows, columns)),
    }
}

fn turned<W: Stored>(x: &Tensor, rows: usize, columns: usize) -> Result<Tensor> {
    let mut y = x.empty_like()?;
    let panels = W::slice(x)?.chunks_exact(rows * columns);
    for (x, y) in panels.zip(W::slice_mut(&mut y)?.chunks_exact_mut(rows * columns)) {
        for (i, y) in y.iter_mut().enumerate() {
            *y = x[i % rows * columns + i / rows];
        }
    }
    Ok(y)
}

/// The ring of one stream and head, behind what is fixed.
#[derive(Clone, Copy)]
struct Ring<'a, W> {
    /// `[capacity / PANEL, dim, PANEL]`
    keys: &'a [W],
    /// `[capacity, dim]`
    values: &'a [W],
    /// Of the codes of keys and of values, `[capacity]`.
    factors: Option<[&'a [f32]; 2]>,
    capacity: usize,
    /// Slots of the first positions, which are not overwritten.
    fixed: usize,
    dim: usize,
}

impl<W> Ring<'_, W> {
    #[inline(always)]
    fn slot(&self, position: usize) -> usize {
        slot(position, self.fixed, self.capacity)
    }

    /// Positions from one on whose slots lie side by side.
    #[inline(always)]
    fn run(&self, position: usize) -> usize {
        if position < self.fixed { self.fixed - position } else { self.capacity - self.slot(position) }
    }
}

/// Of a position, in a ring behind `fixed` slots.
#[inline(always)]
pub fn slot(position: usize, fixed: usize, capacity: usize) -> usize {
    if position < fixed { position } else { fixed + (position - fixed) % (capacity - fixed) }
}

/// Positions `0..sinks` and `first..end` that a row of queries sees.
#[derive(Clone, Copy)]
struct Span {
    sinks: usize,
    first: usize,
    end: usize,
}

impl Mask {
    /// Of `length` keys, those that query `t` sees.
    fn keys(self, t: usize, length: usize) -> Span {
        match self.causal {
            true => Span { sinks: 0, first: self.window.map_or(0, |w| (t + 1).saturating_sub(w)), end: t + 1 },
            false => Span { sinks: 0, first: 0, end: length },
        }
    }
}

pub fn step<T: Real + Stored>(
    y: &mut Tensor,
    q: &Tensor,
    cache: &KvCache,
    positions: &Positions,
    window: Option<usize>,
    mask: Option<&Tensor>,
) -> Result<()> {
    match cache.kept() {
        Kept::Int8 => step_over::<T, i8>(y, q, cache, positions, window, mask),
        Kept::Values(DType::BF16) => step_over::<T, half::bf16>(y, q, cache, positions, window, mask),
        Kept::Values(_) => step_over::<T, T>(y, q, cache, positions, window, mask),
    }
}

fn step_over<T: Real, W: Stored>(
    y: &mut Tensor,
    q: &Tensor,
    cache: &KvCache,
    positions: &Positions,
    window: Option<usize>,
    mask: Option<&Tensor>,
) -> Result<()> {
    let [tokens, heads, dim] = std::array::from_fn(|i| q.shape()[q.shape().len() - 3 + i]);
    let (kv_heads, capacity, fixed) = (cache.kv_heads(), cache.capacity(), cache.fixed());
    let sinks = cache.sinks().map_or(0, |sinks| sinks.steps);
    let (q, seen) = (q.as_slice::<T>()?, positions.seen.as_slice::<i32>()?);
    let (q, far) = if sinks > 0 { q.split_at(q.len() / 2) } else { (q, q) };
    let mask = mask.map(Tensor::as_slice::<u8>).transpose()?;
    let (keys, values) = (W::slice(&cache.keys)?, W::slice(&cache.values)?);
    let factors = match &cache.factors {
        Some([keys, values]) => Some([keys.as_slice::<f32>()?, values.as_slice::<f32>()?]),
        None => None,
    };
    let room = capacity - fixed;
    let reach = window.unwrap_or(room).min(room);
    let size = capacity * dim;
    let layout = Layout { tokens, heads, kv_heads, dim, reach, sinks };
    let ring = |b: usize, h: usize| {
        let head = b * kv_heads + h;
        let (keys, values) = (&keys[head * size..][..size], &values[head * size..][..size]);
        let factors = factors.map(|f| f.map(|f| &f[head * capacity..][..capacity]));
        mask.is_none_or(|mask| mask[b] != 0).then_some(Ring { keys, values, factors, capacity, fixed, dim })
    };
    let span = |b: usize, t: usize| {
        let seen = seen[b] as u32 as usize;
        // What the ring holds after all tokens of this step were appended.
        let oldest = (seen + tokens).saturating_sub(room);
        let (first, end) = ((seen + t + 1).saturating_sub(reach).max(oldest).max(sinks), seen + t + 1);
        Span { sinks: sinks.min(end), first, end: end.max(first) }
    };
    layout.attend(y.as_mut_slice::<T>()?, None, [q, far], ring, span);
    Ok(())
}

pub fn forward<T: Real + Stored>(y: &mut Tensor, logsum: &mut Tensor, q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask) -> Result<()> {
    let ([_, tokens, heads, dim], [_, length, kv_heads, _]) = (extents(q), extents(k));
    let (q, k, v) = (q.as_slice::<T>()?, k.as_slice::<T>()?, v.as_slice::<T>()?);
    // Rings that never turn.
    let capacity = length.next_multiple_of(PANEL);
    let size = capacity * dim;
    let mut rings = [Scratch::<T>::new(k.len() / length * capacity), Scratch::<T>::new(k.len() / length * capacity)];
    rings[0].fill(T::zero());
    let [keys, values] = &mut rings;
    for (i, (keys, values)) in keys.chunks_exact_mut(size).zip(values.chunks_exact_mut(size)).enumerate() {
        for s in 0..length {
            let at = ((i / kv_heads * length + s) * kv_heads + i % kv_heads) * dim;
            put_key(keys, s, k[at..][..dim].iter().copied());
            values[s * dim..][..dim].copy_from_slice(&v[at..][..dim]);
        }
    }
    let layout = Layout { tokens, heads, kv_heads, dim, reach: length, sinks: 0 };
    let [keys, values] = &rings;
    let ring = |b: usize, h: usize| {
        let at = (b * kv_heads + h) * size;
        Some(Ring { keys: &keys[at..][..size], values: &values[at..][..size], factors: None, capacity, fixed: 0, dim })
    };
    let span = |_, t: usize| mask.keys(t, length);
    layout.attend(y.as_mut_slice::<T>()?, Some(logsum.as_mut_slice::<T>()?), [q, q], ring, span);
    Ok(())
}

pub fn extents(t: &Tensor) -> [usize; 4] {
    let shape = t.shape();
    std::array::from_fn(|i| shape[i])
}

struct Layout {
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    /// Keys that a query sees at most besides sinks.
    reach: usize,
    sinks: usize,
}

impl Layout {
    /// `y [B, T, Hq, D]` and, if wanted, `logsum [B, Hq, T]` of `q [B, T, Hq, D]`, as it is and as sinks want it, for the ring of
    /// (stream, head), zero without one, and what (stream, token) sees of it.
    fn attend<'a, T: Real, W: Stored>(
        &self,
        y: &mut [T],
        mut logsum: Option<&mut [T]>,
        [q, far]: [&[T]; 2],
        ring: impl Fn(usize, usize) -> Option<Ring<'a, W>> + Sync + Send,
        span: impl Fn(usize, usize) -> Span + Sync + Send,
    ) {
        let &Layout { tokens, heads, kv_heads, dim, reach, sinks } = self;
        let group = heads / kv_heads;
        let (rows, run) = (tokens * group, dim + 1);
        // Enough for the rows of a tile and whole panels, wherever the window starts.
        let width = sinks.next_multiple_of(PANEL) + (reach + ROWS + 2 * PANEL).next_multiple_of(PANEL);
        // Rows (t, g) of a head lie side by side here, so that threads write apart; behind each, its logarithm.
        let mut by_head = Scratch::<T>::new(q.len() / dim * run);
        parallel::for_blocks(&mut by_head, rows * run, ROWS * run, 2 * (reach + sinks), |item, offset, out| {
            let (b, h) = (item / kv_heads, item % kv_heads);
            let Some(ring) = ring(b, h) else { return out.fill(T::zero()) };
            let row = |r: usize| {
                let (t, g) = ((offset / run + r) / group, (offset / run + r) % group);
                let at = ((b * tokens + t) * heads + h * group + g) * dim;
                (&q[at..][..dim], &far[at..][..dim], span(b, t))
            };
            let mut scores = Scratch::<T>::new(ROWS * width);
            match out.len() / run {
                1 => attend::<T, W, 1>(out, ring, row, &mut scores),
                2 => attend::<T, W, 2>(out, ring, row, &mut scores),
                3 => attend::<T, W, 3>(out, ring, row, &mut scores),
                _ => attend::<T, W, 4>(out, ring, row, &mut scores),
            }
        });
        for (i, y) in y.chunks_exact_mut(dim).enumerate() {
            let (b, t, head) = (i / heads / tokens, i / heads % tokens, i % heads);
            let row = &by_head[((b * kv_heads + head / group) * rows + t * group + head % group) * run..][..run];
            y.copy_from_slice(&row[..dim]);
            if let Some(logsum) = &mut logsum {
                logsum[(b * heads + head) * tokens + t] = row[dim];
            }
        }
    }
}

/// `out [R, dim + 1]` for rows of queries.
fn attend<'a, T: Real, W: Stored, const R: usize>(
    out: &mut [T],
    ring: Ring<W>,
    row: impl Fn(usize) -> (&'a [T], &'a [T], Span),
    scores: &mut [T],
) {
    let rows: [(&[T], &[T], Span); R] = std::array::from_fn(row);
    let (q, far, spans) = (rows.map(|(q, ..)| q), rows.map(|(_, far, _)| far), rows.map(|(.., span)| span));
    let sinks = spans.iter().map(|s| s.sinks).max().unwrap_or(0);
    let first = spans.iter().map(|s| s.first).min().unwrap_or(0);
    let end = spans.iter().map(|s| s.end).max().unwrap_or(0);
    // From a position that is a multiple of a vector, so that a weight's lane depends on its position alone.
    let base = first / PANEL * PANEL;
    // Of these rows, which may see fewer than the cache keeps.
    let sunk = sinks.next_multiple_of(PANEL);
    let width = sunk + (end - base).next_multiple_of(PANEL);
    T::widest(Attend { out, ring, q, far, spans, range: Span { sinks, first, end }, base, sunk, width, scores: &mut scores[..R * width] });
}

/// Rows of queries that see some of the positions `range`. Scores are of sinks in the first `sunk` columns, whole panels, and from there
/// on of the positions from `base` on.
struct Attend<'a, T, W, const R: usize> {
    out: &'a mut [T],
    ring: Ring<'a, W>,
    q: [&'a [T]; R],
    /// As sinks want them.
    far: [&'a [T]; R],
    spans: [Span; R],
    range: Span,
    base: usize,
    sunk: usize,
    width: usize,
    /// `[R, width]`
    scores: &'a mut [T],
}

impl<T: Real, W: Stored, const R: usize> Kernel<T> for Attend<'_, T, W, R> {
    #[inline(always)]
    fn run<V: Vector<Scalar = T>>(mut self) {
        let (mut at, q) = (0, self.q);
        for (q, columns) in [(self.far, self.sunk), (q, self.width)] {
            self.q = q;
            let registers = columns / V::LANES;
            while R <= 2 && at + 4 <= registers {
                self.score::<V, 4>(at);
                at += 4;
            }
            while at + 2 <= registers {
                self.score::<V, 2>(at);
                at += 2;
            }
            while at < registers {
                self.score::<V, 1>(at);
                at += 1;
            }
        }
        let dim = self.ring.dim;
        let mut inverse = [T::zero(); R];
        for (r, inverse) in inverse.iter_mut().enumerate() {
            let weights = &mut self.scores[r * self.width..][..self.width];
            let Span { sinks, first, end } = self.spans[r];
            let (largest, sum) = softmax(weights, sinks, self.sunk + first - self.base, self.sunk + end - self.base, dim);
            *inverse = sum.recip();
            self.out[r * (dim + 1) + dim] = largest + sum.log2();
        }
        self.weigh_codes();
        let mut d = 0;
        while d + 4 * V::LANES <= dim {
            self.sum::<V, 4>(d, inverse);
            d += 4 * V::LANES;
        }
        while d + V::LANES <= dim {
            self.sum::<V, 1>(d, inverse);
            d += V::LANES;
        }
        while d < dim {
            self.sum_one(d, inverse);
            d += 1;
        }
    }
}

impl<T: Real, W: Stored, const R: usize> Attend<'_, T, W, R> {
    /// `N` registers of scores from register `first` on: `q . key`, each a chain over the elements of the head.
    #[inline(always)]
    fn score<V: Vector<Scalar = T>, const N: usize>(&mut self, first: usize) {
        let Ring { keys, factors, dim, .. } = self.ring;
        let slot = |n: usize| {
            let column = (first + n) * V::LANES;
            self.ring.slot(if column < self.sunk { column } else { self.base + column - self.sunk })
        };
        let factors: Option<[&[f32]; N]> = factors.map(|[factors, _]| std::array::from_fn(|n| &factors[slot(n)..][..V::LANES]));
        let keys: [&[W]; N] = std::array::from_fn(
            #[inline(always)]
            |n| {
                let slot = slot(n);
                let panel = &keys[slot / PANEL * PANEL * dim..][..PANEL * dim];
                &panel[slot % PANEL..]
            },
        );
        let q = self.q.map(
            #[inline(always)]
            |q| &q[..dim],
        );
        let to = &mut self.scores[first * V::LANES..][..(R - 1) * self.width + N * V::LANES];
        // SAFETY: this CPU has the registers; a key has an element in each of `dim` rows of its panel, with `V::LANES` of them side
        // by side, as `PANEL` is a multiple, and so many factors; a query has `dim` elements; `to` was just cut to what is stored.
        unsafe {
            let mut sums = [[V::splat(T::zero()); N]; R];
            for d in 0..dim {
                let mut key = [V::splat(T::zero()); N];
                for (key, keys) in key.iter_mut().zip(&keys) {
                    let at = keys.as_ptr().add(d * PANEL);
                    *key = W::load(at);
                    // What follows, as far as the ring does not start again.
                    prefetch(at.wrapping_add(N * V::LANES * dim));
                }
                for (sums, q) in sums.iter_mut().zip(&q) {
                    let q = V::splat(*q.get_unchecked(d));
                    for (sum, &key) in sums.iter_mut().zip(&key) {
                        *sum = sum.fma(q, key);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (n, &sum) in sums.iter().enumerate() {
                    let sum = match &factors {
                        Some(factors) => V::splat(T::zero()).fma(sum, V::load_single(factors[n].as_ptr())),
                        None => sum,
                    };
                    sum.store(to.as_mut_ptr().add(r * self.width + n * V::LANES));
                }
            }
        }
    }

    /// Weights of codes are weights of values.
    #[inline(always)]
    fn weigh_codes(&mut self) {
        let Some([_, factors]) = self.ring.factors else { return };
        for (at, run, from) in runs(self.range, self.ring, self.base, self.sunk) {
            for row in self.scores.chunks_exact_mut(self.width) {
                let weights = row[from..][..run].iter_mut().zip(&factors[self.ring.slot(at)..]);
                weights.for_each(|(weight, &factor)| *weight *= T::of(factor.into()));
            }
        }
    }

    /// Stretches of the values of the positions, each with the column of its first.
    #[inline(always)]
    fn stretches(&self) -> impl Iterator<Item = (&[W], usize)> + use<'_, T, W, R> {
        let Ring { values, dim, .. } = self.ring;
        let runs = runs(self.range, self.ring, self.base, self.sunk);
        runs.map(move |(at, run, from)| (&values[self.ring.slot(at) * dim..][..run * dim], from))
    }

    /// `N` registers of `inverse[r] sum_j weights[r][j] values[j]` from element `d` on, over the positions in order.
    #[inline(always)]
    fn sum<V: Vector<Scalar = T>, const N: usize>(&mut self, d: usize, inverse: [T; R]) {
        let dim = self.ring.dim;
        assert!(d + N * V::LANES <= dim);
        // SAFETY: this CPU has the registers; a value has the elements that were just counted, and a weight in each row of scores.
        unsafe {
            let mut sums = [[V::splat(T::zero()); N]; R];
            for (values, from) in self.stretches() {
                let weights = &self.scores[from..][..(R - 1) * self.width + values.len() / dim];
                for (j, value) in values.chunks_exact(dim).enumerate() {
                    let value = value.as_ptr().add(d);
                    let mut register = [V::splat(T::zero()); N];
                    for (n, register) in register.iter_mut().enumerate() {
                        *register = W::load(value.add(n * V::LANES));
                        prefetch(value.wrapping_add(AHEAD * dim + n * V::LANES));
                    }
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let weight = V::splat(*weights.get_unchecked(r * self.width + j));
                        for (sum, &value) in sums.iter_mut().zip(&register) {
                            *sum = sum.fma(weight, value);
                        }
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                let out = &mut self.out[r * (dim + 1) + d..][..N * V::LANES];
                for (n, &sum) in sums.iter().enumerate() {
                    V::splat(T::zero()).fma(sum, V::splat(inverse[r])).store(out.as_mut_ptr().add(n * V::LANES));
                }
            }
        }
    }

    /// As [`Attend::sum`], of one element.
    #[inline(always)]
    fn sum_one(&mut self, d: usize, inverse: [T; R]) {
        let dim = self.ring.dim;
        for (r, inverse) in inverse.into_iter().enumerate() {
            let mut sum = T::zero();
            for (values, from) in self.stretches() {
                let weights = &self.scores[r * self.width + from..];
                for (value, &weight) in values.chunks_exact(dim).zip(weights) {
                    sum = weight.mul_add(value[d].value(), sum);
                }
            }
            self.out[r * (dim + 1) + d] = sum * inverse;
        }
    }
}

/// Runs of the positions of a span whose slots lie side by side: the first position, how many, and the column of the first.
#[inline(always)]
fn runs<W: Copy>(Span { sinks, first, end }: Span, ring: Ring<W>, base: usize, sunk: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let (mut at, mut left) = (0, sinks);
    std::iter::from_fn(
        #[inline(always)]
        move || {
            if at == sinks && left == 0 {
                (at, left) = (first, end - first);
            }
            let run = left.min(ring.run(at));
            // Sinks are before what else is seen.
            let found = (run > 0).then(|| (at, run, if at < first { at } else { sunk + at - base }));
            (at, left) = (at + run, left - run);
            found
        },
    )
}

/// Scores to weights `2^(scale (score - largest))` of the entries `..sinks` and `first..end`, zero for the others; returns
/// the largest (scaled) and the sum, which is in lanes.
#[inline(always)]
fn softmax<T: Real>(row: &mut [T], sinks: usize, first: usize, end: usize, dim: usize) -> (T, T) {
    row[sinks..first].fill(T::neg_infinity());
    row[end..].fill(T::neg_infinity());
    let scale = T::of(std::f64::consts::LOG2_E / (dim as f64).sqrt());
    let mut largest = [T::neg_infinity(); PANEL];
    let (panels, _) = row.as_chunks_mut::<PANEL>();
    for panel in panels.iter() {
        for l in 0..PANEL {
            largest[l] = if panel[l] > largest[l] { panel[l] } else { largest[l] };
        }
    }
    let largest = largest.into_iter().fold(T::neg_infinity(), T::max);
    let mut sums = [T::zero(); PANEL];
    for panel in panels {
        for l in 0..PANEL {
            panel[l] = exp2((panel[l] - largest) * scale);
            sums[l] += panel[l];
        }
    }
    let mut n = PANEL / 2;
    while n > 0 {
        for l in 0..n {
            sums[l] += sums[l + n];
        }
        n /= 2;
    }
    (largest * scale, sums[0])
}

/// `2^x` for `x <= 0`, to 1.2 roundings in f32: a polynomial on half a binade about zero (relative 6e-9). Zero below 2^-126.
#[inline(always)]
fn exp2<T: Real>(x: T) -> T {
    if T::DTYPE != DType::F32 {
        return x.exp2();
    }
    const C: [f64; 6] = [0.693147188, 0.2402265076, 0.05550357114, 0.009618082557, 0.001339086336, 0.0001545316294];
    let x = if x < T::of(-127.0) { T::of(-127.0) } else { x }; // a NaN stays
    let whole = (x + T::of(0.5)).floor();
    let f = x - whole;
    let mut p = T::of(C[5]);
    for c in [C[4], C[3], C[2], C[1], C[0], 1.0] {
        p = p.mul_add(f, T::of(c));
    }
    // Between two conversions that cancel, since these are the bits of an f32.
    let power = f32::from_bits(((whole.f64() as f32 as i32 + 127) as u32) << 23);
    p * T::of(power as f64)
}

/// `to += factor from`, as far as `to` goes.
#[inline(always)]
fn add<T: Real>(to: &mut [T], factor: T, from: &[T]) {
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = factor.mul_add(from, *to));
}

/// A head of keys at a time: a query's row of weights, then what it adds to every gradient.
pub fn backward<T: Real>([dq, dk, dv]: &mut [Tensor; 3], dy: &Tensor, saved: &Saved) -> Result<()> {
    let &Saved { mask, .. } = saved;
    let ([batch, tokens, heads, dim], [_, length, kv_heads, _]) = (extents(saved.q), extents(saved.k));
    let (q, k, v) = (saved.q.as_slice::<T>()?, saved.k.as_slice::<T>()?, saved.v.as_slice::<T>()?);
    let (y, dy, logsum) = (saved.y.as_slice::<T>()?, dy.as_slice::<T>()?, saved.logsum.as_slice::<T>()?);
    let (group, scale) = (heads / kv_heads, T::of(1.0 / (dim as f64).sqrt()));
    let rows = tokens * group;
    // Of a head: dk and dv [S, D], then dq [T, G, D].
    let item = (2 * length + rows) * dim;
    let mut by_head = Scratch::<T>::new(batch * kv_heads * item);
    by_head.fill(T::zero());
    parallel::for_blocks(&mut by_head, item, item, length, |i, _, out| {
        let (b, h) = (i / kv_heads, i % kv_heads);
        let (dkv, dq) = out.split_at_mut(2 * length * dim);
        let (dk, dv) = dkv.split_at_mut(length * dim);
        // Keys and values with their positions side by side; a weight and a slope of each position.
        let mut scratch = Scratch::<T>::new(2 * (dim + 1) * length);
        let (columns, rows) = scratch.split_at_mut(2 * dim * length);
        let (k_columns, v_columns) = columns.split_at_mut(dim * length);
        let (weights, slopes) = rows.split_at_mut(length);
        vectorised(
            #[inline(always)]
            || {
                for j in 0..length {
                    let at = ((b * length + j) * kv_heads + h) * dim;
                    for d in 0..dim {
                        (k_columns[d * length + j], v_columns[d * length + j]) = (k[at + d], v[at + d]);
                    }
                }
                for (r, dq) in dq.chunks_exact_mut(dim).enumerate() {
                    let (t, head) = (r / group, h * group + r % group);
                    let at = ((b * tokens + t) * heads + head) * dim;
                    let (q, dy, y) = (&q[at..][..dim], &dy[at..][..dim], &y[at..][..dim]);
                    let delta = dy.iter().zip(y).fold(T::zero(), |sum, (&dy, &y)| dy.mul_add(y, sum));
                    let log = logsum[(b * heads + head) * tokens + t];
                    let Span { first, end, .. } = mask.keys(t, length);
                    let (weights, slopes) = (&mut weights[first..end], &mut slopes[first..end]);
                    weights.fill(T::zero());
                    slopes.fill(T::zero());
                    for d in 0..dim {
                        add(weights, q[d], &k_columns[d * length + first..]);
                        add(slopes, dy[d], &v_columns[d * length + first..]);
                    }
                    for (weight, slope) in weights.iter_mut().zip(slopes.iter_mut()) {
                        let exponent = *weight * scale * T::of(std::f64::consts::LOG2_E) - log;
                        // Roundings apart a weight is at most 1.
                        *weight = exp2(if exponent > T::zero() { T::zero() } else { exponent });
                        *slope = *weight * (*slope - delta) * scale;
                    }
                    for (j, (&weight, &slope)) in (first..end).zip(weights.iter().zip(slopes.iter())) {
                        add(dq, slope, &k[((b * length + j) * kv_heads + h) * dim..]);
                        add(&mut dk[j * dim..][..dim], slope, q);
                        add(&mut dv[j * dim..][..dim], weight, dy);
                    }
                }
            },
        );
    });
    let (dq, dk, dv) = (dq.as_mut_slice::<T>()?, dk.as_mut_slice::<T>()?, dv.as_mut_slice::<T>()?);
    for (i, from) in by_head.chunks_exact(item.max(1)).enumerate() {
        let (b, h) = (i / kv_heads, i % kv_heads);
        let (from_dk, from) = from.split_at(length * dim);
        let (from_dv, from_dq) = from.split_at(length * dim);
        for (j, (from_dk, from_dv)) in from_dk.chunks_exact(dim).zip(from_dv.chunks_exact(dim)).enumerate() {
            let at = ((b * length + j) * kv_heads + h) * dim;
            dk[at..][..dim].copy_from_slice(from_dk);
            dv[at..][..dim].copy_from_slice(from_dv);
        }
        for (t, row) in from_dq.chunks_exact((group * dim).max(1)).enumerate() {
            dq[((b * tokens + t) * heads + h * group) * dim..][..row.len()].copy_from_slice(row);
        }
    }
    Ok(())
}
