use super::{Rope, Style};
use crate::cpu::parallel;
use crate::ops::attention::{
    Kept, KvCache, Positions, Stored,
    cpu::{put_key, slot},
    factors,
};
use crate::tensor::Scratch;
use crate::{DType, Real, Result, Tensor};

/// Cosines, then sines, of the pairs of a head: `[T, 2, D / 2]` from `position` on, up to `last`. `back` turns the other way.
fn turns<T: Real>(rope: &Rope, position: i32, last: u64, tokens: usize, back: bool) -> Result<Scratch<T>> {
    let frequencies = rope.frequencies.as_slice::<i32>()?;
    let pairs = frequencies.len() / 2;
    let mut turns = Scratch::new(tokens * 2 * pairs);
    let unit = std::f64::consts::TAU * 2f64.powi(-64) * if back { -1.0 } else { 1.0 };
    for (t, row) in turns.chunks_exact_mut(2 * pairs).enumerate() {
        let (cos, sin) = row.split_at_mut(pairs);
        let position = (position as u32 as u64).wrapping_add(t as u64).min(last);
        for ((cos, sin), f) in cos.iter_mut().zip(sin).zip(frequencies.chunks_exact(2)) {
            let frequency = f[0] as u32 as u64 | (f[1] as u32 as u64) << 32;
            let (s, c) = (position.wrapping_mul(frequency) as i64 as f64 * unit).sin_cos();
            (*cos, *sin) = (T::of(c), T::of(s));
        }
    }
    Ok(turns)
}

/// `y = x` turned, for one head.
fn turn<T: Real>(style: Style, y: &mut [T], x: &[T], turns: &[T]) {
    let pairs = x.len() / 2;
    let (cos, sin) = turns.split_at(pairs);
    for i in 0..pairs {
        let (a, b) = match style {
            Style::Interleaved => (2 * i, 2 * i + 1),
            Style::HalfSplit => (i, i + pairs),
        };
        let (xa, xb) = (x[a], x[b]);
        y[a] = xa * cos[i] - xb * sin[i];
        y[b] = xa * sin[i] + xb * cos[i];
    }
}

pub fn rotate<T: Real>(y: &mut Tensor, x: &Tensor, rope: &Rope, positions: &Positions, back: bool) -> Result<()> {
    let [_, tokens, heads, dim] = x.shape()[..] else { return Ok(()) };
    let (x, y, width) = (x.as_slice::<T>()?, y.as_mut_slice::<T>()?, heads * dim);
    for ((y, x), &position) in
        y.chunks_mut((tokens * width).max(1)).zip(x.chunks((tokens * width).max(1))).zip(positions.seen.as_slice::<i32>()?)
    {
        let turns = turns::<T>(rope, position, u64::MAX, tokens, back)?;
        parallel::for_rows(y, width, |first, y| {
            for (row, y) in y.chunks_exact_mut(width).enumerate() {
                let t = first + row;
                let turns = &turns[t * dim..][..dim];
                y.chunks_exact_mut(dim).zip(x[t * width..].chunks_exact(dim)).for_each(|(y, x)| turn(rope.style, y, x, turns));
            }
        });
    }
    Ok(())
}

pub fn append<T: Real + Stored>(
    q: &mut Tensor,
    qkv: &Tensor,
    rope: &Rope,
    cache: &mut KvCache,
    positions: &Positions,
    mask: Option<&Tensor>,
) -> Result<()> {
    match cache.kept() {
        Kept::Int8 => append_to::<T, i8>(q, qkv, rope, cache, positions, mask),
        Kept::Values(DType::BF16) => append_to::<T, half::bf16>(q, qkv, rope, cache, positions, mask),
        Kept::Values(_) => append_to::<T, T>(q, qkv, rope, cache, positions, mask),
    }
}

fn append_to<T: Real, W: Stored>(
    q: &mut Tensor,
    qkv: &Tensor,
    rope: &Rope,
    cache: &mut KvCache,
    positions: &Positions,
    mask: Option<&Tensor>,
) -> Result<()> {
    let [_, tokens, heads, dim] = q.shape()[..] else { return Ok(()) };
    let (kv_heads, capacity, fixed, style) = (cache.kv_heads(), cache.capacity(), cache.fixed(), rope.style);
    let sinks = cache.sinks();
    let mask = mask.map(Tensor::as_slice::<u8>).transpose()?;
    let (queries, width) = (heads * dim, (heads + 2 * kv_heads) * dim);
    let (q, qkv, seen) = (q.as_mut_slice::<T>()?, qkv.as_slice::<T>()?, positions.seen.as_slice::<i32>()?);
    let (keys, values) = (W::slice_mut(&mut cache.keys)?, W::slice_mut(&mut cache.values)?);
    let mut scales = match &mut cache.factors {
        Some([keys, values]) => Some([keys.as_mut_slice::<f32>()?, values.as_mut_slice::<f32>()?]),
        None => None,
    };
    if tokens == 0 {
        return Ok(());
    }
    let turn_queries = |q: &mut [T], qkv: &[T], turns: &[T]| {
        parallel::for_rows(q, queries, |first, q| {
            for (row, q) in q.chunks_exact_mut(queries).enumerate() {
                let t = first + row;
                let turns = &turns[t * dim..][..dim];
                q.chunks_exact_mut(dim).zip(qkv[t * width..].chunks_exact(dim)).for_each(|(q, x)| turn(style, q, x, turns));
            }
        });
    };
    let (q, far) = q.split_at_mut(seen.len() * tokens * queries);
    if let Some(sinks) = sinks {
        for (b, (q, qkv)) in far.chunks_mut(tokens * queries).zip(qkv.chunks(tokens * width)).enumerate() {
            turn_queries(q, qkv, &turns::<T>(rope, seen[b], sinks.context as u64 - 1, tokens, false)?);
        }
    }
    let mut key = Scratch::<T>::new(dim);
    for (b, (q, qkv)) in q.chunks_mut(tokens * queries).zip(qkv.chunks(tokens * width)).enumerate() {
        let turns = turns::<T>(rope, seen[b], u64::MAX, tokens, false)?;
        turn_queries(q, qkv, &turns);
        if mask.is_some_and(|mask| mask[b] == 0) {
            continue;
        }
        let head = capacity * dim;
        let rings = keys[b * kv_heads * head..].chunks_exact_mut(head).zip(values[b * kv_heads * head..].chunks_exact_mut(head));
        for (h, (keys, values)) in rings.take(kv_heads).enumerate() {
            for (t, row) in qkv.chunks_exact(width).enumerate() {
                let slot = slot(seen[b] as u32 as usize + t, fixed, capacity);
                let value = &row[queries + (kv_heads + h) * dim..][..dim];
                turn(style, &mut key, &row[queries + h * dim..][..dim], &turns[t * dim..][..dim]);
                let mut inverses = [0.0; 2];
                if let Some(scales) = &mut scales {
                    for ((scales, inverse), row) in scales.iter_mut().zip(&mut inverses).zip([&key, value]) {
                        [scales[(b * kv_heads + h) * capacity + slot], *inverse] = factors(row);
                    }
                }
                put_key(keys, slot, key.iter().map(|&k| W::of(k, inverses[0])));
                values[slot * dim..][..dim].iter_mut().zip(value).for_each(|(to, &v)| *to = W::of(v, inverses[1]));
            }
        }
    }
    Ok(())
}
