//! A stream fed in chunks gets the bits of the whole; both are what the definition says.

use super::*;
use crate::DType;
use crate::case::SplitMix;
use crate::ops::rope::{self, Rope, Style};
use crate::ops::testing::{check_gradient, devices, float_types, normal};

/// `[B, T, (Hq + 2 Hkv) D]` of projected queries, keys and values.
struct Stream {
    values: Vec<f64>,
    batch: usize,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
}

impl Stream {
    fn new([batch, tokens, heads, kv_heads, dim]: [usize; 5]) -> Stream {
        let mut rng = SplitMix(3);
        let n = batch * tokens * (heads + 2 * kv_heads) * dim;
        Stream { values: (0..n).map(|_| 4.0 * rng.uniform() - 2.0).collect(), batch, tokens, heads, kv_heads, dim }
    }

    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.dim
    }

    fn row(&self, b: usize, t: usize) -> &[f64] {
        &self.values[(b * self.tokens + t) * self.width()..][..self.width()]
    }

    /// Tokens from where each stream is; noise past the end.
    fn chunk(&self, device: &Device, dtype: DType, from: &[usize], len: usize) -> Result<Tensor> {
        let token = |b: usize, t: usize| (0..self.width()).map(move |c| if t < self.tokens { self.row(b, t)[c] } else { f64::NAN });
        let values: Vec<f64> = (0..self.batch).flat_map(|b| (0..len).flat_map(move |t| token(b, from[b] + t))).collect();
        Tensor::from_f64(device, dtype, &values, [self.batch, len, self.width()])
    }

    /// Runs the streams in random chunks of at most `longest` tokens, masking some streams at random, and returns their outputs.
    fn run(
        &self,
        device: &Device,
        (dtype, kept): (DType, Kept),
        window: Option<usize>,
        capacity: usize,
        longest: usize,
        seed: u64,
    ) -> Result<Vec<Vec<f64>>> {
        let cache = KvCache::new(device, kept, self.batch, self.kv_heads, capacity, self.dim)?;
        self.run_over(cache, device, dtype, window, longest, seed)
    }

    /// As [`run`](Self::run), with the first tokens as sinks.
    fn run_with(&self, device: &Device, (dtype, kept): (DType, Kept), sinks: Sinks, longest: usize, seed: u64) -> Result<Vec<Vec<f64>>> {
        let cache = KvCache::with_sinks(device, kept, self.batch, self.kv_heads, sinks, longest, self.dim)?;
        self.run_over(cache, device, dtype, Some(sinks.context), longest, seed)
    }

    fn run_over(
        &self,
        mut cache: KvCache,
        device: &Device,
        dtype: DType,
        window: Option<usize>,
        longest: usize,
        seed: u64,
    ) -> Result<Vec<Vec<f64>>> {
        let mut rng = SplitMix(seed);
        let rope = Rope::new(device, self.dim, 10_000.0, Style::Interleaved)?;
        let mut positions = Positions::new(device, self.batch)?;
        let mut at = vec![0; self.batch];
        let mut out = vec![Vec::new(); self.batch];
        while at.iter().any(|&t| t < self.tokens) {
            let len = 1 + rng.next() as usize % longest;
            let mask: Vec<u8> = at.iter().map(|&t| (t + len <= self.tokens && !rng.next().is_multiple_of(4)) as u8).collect();
            let len = if at.iter().all(|&t| t + len > self.tokens) { 1 } else { len };
            let mask_tensor = Tensor::from_slice(device, &mask, [self.batch])?;
            let mask_tensor = if mask.iter().all(|&m| m == 1) { None } else { Some(&mask_tensor) };
            let q = rope::append(&self.chunk(device, dtype, &at, len)?, &rope, &mut cache, &positions, mask_tensor)?;
            let y = step(&q, &cache, &positions, window, mask_tensor)?;
            positions.advance(len, mask_tensor)?;
            for (b, y) in y.to_f64()?.chunks(len * self.heads * self.dim).enumerate() {
                if mask[b] == 1 {
                    out[b].extend_from_slice(y);
                    at[b] += len;
                } else {
                    assert!(y.iter().all(|&v| v == 0.0), "a masked stream has {y:?}");
                }
            }
        }
        Ok(out)
    }

    /// By the definition, in f64.
    fn expected(&self, window: Option<usize>) -> Vec<Vec<f64>> {
        self.expected_over(|i| ((i + 1).saturating_sub(window.unwrap_or(usize::MAX))..=i).map(|j| (j, j)).collect())
    }

    /// Likewise as StreamingLLM has it: a cache of keys that are not turned, of the first tokens and the last, each of which is turned by its
    /// place in the cache when it is attended to; the query is its last.
    fn expected_with(&self, sinks: Sinks) -> Vec<Vec<f64>> {
        self.expected_over(|i| {
            let mut cache: Vec<usize> = (0..=i).collect();
            if cache.len() > sinks.context {
                cache.drain(sinks.steps..cache.len() - sinks.window());
            }
            cache.into_iter().enumerate().map(|(place, j)| (j, place)).collect()
        })
    }

    /// `seen` of a token: others, its own the last, and the positions that they are turned by.
    fn expected_over(&self, seen: impl Fn(usize) -> Vec<(usize, usize)>) -> Vec<Vec<f64>> {
        let (dim, group) = (self.dim, self.heads / self.kv_heads);
        let turned = |x: &[f64], position: usize| -> Vec<f64> {
            let pair = |i: usize| {
                let (sin, cos) = (position as f64 * 10_000f64.powf(-2.0 * i as f64 / dim as f64)).sin_cos();
                [x[2 * i] * cos - x[2 * i + 1] * sin, x[2 * i] * sin + x[2 * i + 1] * cos]
            };
            (0..dim / 2).flat_map(pair).collect()
        };
        let attend = |b: usize, i: usize, h: usize| -> Vec<f64> {
            let head = |t: usize, h: usize| &self.row(b, t)[h * dim..][..dim];
            let seen = seen(i);
            let q = turned(head(i, h), seen[seen.len() - 1].1);
            let weight = |&(j, position): &(usize, usize)| {
                let k = turned(head(j, self.heads + h / group), position);
                (q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>() / (dim as f64).sqrt()).exp()
            };
            let weights: Vec<f64> = seen.iter().map(weight).collect();
            let total: f64 = weights.iter().sum();
            let value = |d: usize| {
                seen.iter().zip(&weights).map(|((j, _), w)| w * head(*j, self.heads + self.kv_heads + h / group)[d]).sum::<f64>() / total
            };
            (0..dim).map(value).collect()
        };
        let attend = &attend;
        (0..self.batch).map(|b| (0..self.tokens).flat_map(|i| (0..self.heads).flat_map(move |h| attend(b, i, h))).collect()).collect()
    }
}

/// What a cache beside values of `dtype` may keep.
fn kinds(device: &Device, dtype: DType) -> Vec<Kept> {
    let half = (*device == Device::Cpu).then_some(Kept::Values(DType::BF16));
    [Kept::Values(dtype), Kept::Int8].into_iter().chain(half).collect()
}

#[test]
fn streams_are_what_the_definition_says() -> Result<()> {
    for (shape, window, capacity) in [
        ([2, 70, 3, 3, 4], Some(17), 19),
        ([1, 150, 4, 2, 6], Some(64), 66),
        ([2, 140, 6, 1, 66], None, 140),
        ([1, 90, 1, 1, 34], Some(1), 1),
    ] {
        let stream = Stream::new(shape);
        let found = stream.run(&Device::Cpu, (DType::F64, DType::F64.into()), window, capacity, capacity.min(3), 1)?;
        for (found, expected) in found.iter().zip(&stream.expected(window)) {
            assert_eq!(found.len(), expected.len());
            for (at, (f, e)) in found.iter().zip(expected).enumerate() {
                assert!((f - e).abs() < 1e-12, "{shape:?} at {at}: {f}, expected {e}");
            }
        }
    }
    Ok(())
}

/// Past twice the context, and past where the ring starts again.
#[test]
fn sinks_are_what_streaming_llm_says() -> Result<()> {
    for (shape, steps, context) in
        [([2, 90, 3, 3, 4], 1, 17), ([1, 300, 4, 2, 6], 4, 64), ([2, 200, 6, 1, 34], 70, 75), ([1, 60, 1, 1, 8], 5, 6)]
    {
        let (stream, sinks) = (Stream::new(shape), Sinks { steps, context });
        let expected = stream.expected_with(sinks);
        for longest in [1, 5] {
            let found = stream.run_with(&Device::Cpu, (DType::F64, DType::F64.into()), sinks, longest, 1)?;
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.len(), expected.len());
                let worst = found.iter().zip(expected).map(|(f, e)| (f - e).abs()).fold(0.0, f64::max);
                assert!(worst < 1e-12, "{shape:?}, {steps} sinks of {context}: off by {worst:e}");
            }
        }
    }
    Ok(())
}

/// On every device, in every type, whatever keeps keys and values: a context that is cut into spans as well.
#[test]
fn sinks_of_every_device_are_those_of_the_definition_in_any_chunks() -> Result<()> {
    for (shape, steps, context) in [([2, 150, 4, 2, 64], 4, 60), ([1, 140, 2, 1, 80], 66, 100), ([1, 1100, 1, 1, 8], 3, 1030)] {
        let (stream, sinks) = (Stream::new(shape), Sinks { steps, context });
        let expected = stream.expected_with(sinks).concat();
        for device in devices()? {
            for &dtype in float_types(&device) {
                for kept in kinds(&device, dtype) {
                    // Of values up to 2, as in `what_is_kept_in_fewer_bits_errs_by_their_rounding`.
                    let bound = match (kept, dtype) {
                        (Kept::Int8, _) => 2.0 / 254.0,
                        (Kept::Values(DType::BF16), _) => 2.0 / 128.0,
                        (_, DType::F16) => 2.0 / 1024.0,
                        (..) => 1e-4,
                    };
                    let bound = if dtype == DType::BF16 { bound + 2.0 / 128.0 } else { bound };
                    let one = stream.run_with(&device, (dtype, kept), sinks, if shape[1] > 1000 { 40 } else { 1 }, 1)?;
                    let some = stream.run_with(&device, (dtype, kept), sinks, 37, 2)?;
                    assert!(one == some, "{device:?} {dtype} kept as {kept:?}, {steps} sinks of {context}");
                    let worst = one.concat().iter().zip(&expected).map(|(f, e)| (f - e).abs()).fold(0.0, f64::max);
                    assert!(worst < 4.0 * bound, "{device:?} {dtype} kept as {kept:?}, {steps} sinks of {context}: off by {worst:e}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn sinks_that_do_not_fit_are_errors() -> Result<()> {
    let cache = |steps, context| KvCache::with_sinks(&Device::Cpu, DType::F32, 1, 1, Sinks { steps, context }, 1, 8);
    for (steps, context) in [(0, 8), (8, 8), (9, 8), (1, usize::MAX), (usize::MAX, usize::MAX)] {
        assert!(cache(steps, context).is_err(), "{steps} of {context}");
    }
    let (cache, positions) = (cache(2, 8)?, Positions::new(&Device::Cpu, 1)?);
    let q = |batch: usize| Tensor::zeros(&Device::Cpu, DType::F32, [batch, 1, 1, 8]).unwrap();
    assert!(step(&q(2), &cache, &positions, Some(8), None).is_ok());
    assert!(step(&q(1), &cache, &positions, Some(8), None).is_err());
    assert!(step(&q(2), &cache, &positions, Some(6), None).is_err() && step(&q(2), &cache, &positions, None, None).is_err());
    Ok(())
}

#[test]
fn chunks_and_masks_change_no_bit_past_the_window() -> Result<()> {
    // The last has a window that is cut into spans.
    for (shape, window) in [([3, 200, 2, 2, 64], 50), ([2, 150, 4, 1, 10], 33), ([2, 90, 2, 1, 80], 1), ([1, 1130, 1, 1, 8], 1030)] {
        let stream = Stream::new(shape);
        for device in devices()? {
            // A few chunks a device: an emulated step takes its time.
            let chunks: &[usize] = if device == Device::Cpu { &[2, 5, 64, 130] } else { &[70] };
            for &dtype in float_types(&device) {
                for kept in kinds(&device, dtype) {
                    let few = if window > 1000 { 20 } else { 1 };
                    let expected = stream.run(&device, (dtype, kept), Some(window), window + few - 1, few, 1)?;
                    for &longest in chunks {
                        let found = stream.run(&device, (dtype, kept), Some(window), window + longest - 1, longest, longest as u64)?;
                        assert!(found == expected, "{device:?} {dtype} kept as {kept:?}, {shape:?} in chunks of {longest}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn what_is_kept_in_fewer_bits_errs_by_their_rounding() -> Result<()> {
    let stream = Stream::new([2, 150, 4, 2, 64]);
    let window = Some(100);
    let expected = stream.expected(window);
    for device in devices()? {
        let dtype = if device == Device::Cpu { DType::F64 } else { DType::F32 };
        for kept in kinds(&device, dtype) {
            // Of values up to 2. A mean over keys errs by that of a value at most, and by as much again for each deviation of 1.15
            // that a score has for its key's error: its weights move by that and values are up to 2.
            let bound = match kept {
                Kept::Int8 => 2.0 / 254.0,
                Kept::Values(DType::BF16) => 2.0 / 512.0,
                Kept::Values(_) => 1e-4,
            };
            let found = stream.run(&device, (dtype, kept), window, 199, 7, 5)?;
            let errors = found.concat().into_iter().zip(expected.concat()).map(|(f, e)| (f - e).abs());
            let (count, (square, most)) = (expected.concat().len(), errors.fold((0.0, 0f64), |(s, m), e| (s + e * e, m.max(e))));
            let rms = (square / count as f64).sqrt();
            assert!(rms < bound / 2.0 && most < 4.0 * bound, "{device:?} {kept:?}: {rms:e} {most:e}");
            assert_eq!(rms > bound / 100.0, kept != Kept::Values(dtype), "{device:?} {kept:?}: {rms:e}");
        }
    }
    Ok(())
}

#[test]
fn a_token_that_is_not_finite_is_seen_by_those_that_see_it() -> Result<()> {
    for device in devices()? {
        for what in [f32::NAN, f32::INFINITY] {
            for part in [1, 2] {
                let rope = Rope::new(&device, 8, 1e4, Style::Interleaved)?;
                let mut cache = KvCache::new(&device, Kept::Int8, 1, 1, 4, 8)?;
                let mut positions = Positions::new(&device, 1)?;
                let mut seen = Vec::new();
                for t in 0..6 {
                    let row: Vec<f32> = (0..24).map(|i| if t == 1 && i == part * 8 + 3 { what } else { 1.0 + i as f32 }).collect();
                    let q = rope::append(&Tensor::from_slice(&device, &row, [1, 1, 24])?, &rope, &mut cache, &positions, None)?;
                    seen.push(step(&q, &cache, &positions, Some(3), None)?.to_vec::<f32>()?.iter().any(|v| v.is_nan()));
                    positions.advance(1, None)?;
                }
                assert_eq!(seen, [false, true, true, true, false, false], "{device:?} {what}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_sequence_is_what_a_stream_of_it_is() -> Result<()> {
    let (tokens, heads, kv_heads, dim, window) = (70, 4, 2, 64, 40);
    let (q, k, v) = (normal([1, tokens, heads, dim], 1), normal([1, tokens, kv_heads, dim], 2), normal([1, tokens, kv_heads, dim], 3));
    let mask = Mask { causal: true, window: Some(window) };
    for device in devices()? {
        for &dtype in float_types(&device) {
            let on = |t: &Tensor| Tensor::from_f64(&device, dtype, &t.to_f64()?, t.shape());
            let (y, _) = forward(&on(&q)?, &on(&k)?, &on(&v)?, mask)?;
            // Frequencies of zero turn nothing.
            let rope = Rope::with_frequencies(&device, &[0.0; 32], Style::Interleaved)?;
            let mut cache = KvCache::new(&device, dtype, 1, kv_heads, tokens + window, dim)?;
            let positions = Positions::new(&device, 1)?;
            let [q, k, v] = [&q, &k, &v].map(|t| t.to_f64());
            let (q, k, v) = (q?, k?, v?);
            let token =
                |t: usize| [(&q, heads), (&k, kv_heads), (&v, kv_heads)].map(|(x, h)| x[t * h * dim..][..h * dim].to_vec()).concat();
            let qkv: Vec<f64> = (0..tokens).flat_map(token).collect();
            let qkv = Tensor::from_f64(&device, dtype, &qkv, [1, tokens, (heads + 2 * kv_heads) * dim])?;
            let q = rope::append(&qkv, &rope, &mut cache, &positions, None)?;
            let stream = step(&q, &cache, &positions, Some(window), None)?;
            assert!(stream.to_f64()? == y.to_f64()?, "{device:?} {dtype}");
        }
    }
    Ok(())
}

#[test]
fn gradients_agree_with_differences() -> Result<()> {
    let windowed = Mask { causal: true, window: Some(3) };
    for (tokens, keys, heads, kv_heads, mask) in [(5, 7, 2, 2, Mask::default()), (6, 6, 4, 2, Mask::CAUSAL), (7, 7, 2, 1, windowed)] {
        let inputs = [normal([2, tokens, heads, 3], 1), normal([2, keys, kv_heads, 3], 2), normal([2, keys, kv_heads, 3], 3)];
        check_gradient(
            &inputs,
            |i| Ok(forward(&i[0], &i[1], &i[2], mask)?.0),
            |i, dy| {
                let (y, logsum) = forward(&i[0], &i[1], &i[2], mask)?;
                Ok(backward(dy, &i[0], &i[1], &i[2], &y, &logsum, mask)?.map(Some).into())
            },
        );
    }
    Ok(())
}

/// Printed, not asserted: machines differ.
#[test]
fn a_frame_of_mimi_is_timed() -> Result<()> {
    let device = Device::Cpu;
    let rope = Rope::new(&device, 64, 10_000.0, Style::Interleaved)?;
    // As many layers as a frame has, so that a cache is cold when its turn comes.
    let mut caches: Vec<KvCache> = (0..16).map(|_| KvCache::new(&device, DType::F32, 1, 8, 251, 64)).collect::<Result<_>>()?;
    let mut positions = Positions::at(&device, &[1000])?;
    let qkv = Tensor::from_f64(&device, DType::F32, &normal([1, 2, 1536], 1).to_f64()?, [1, 2, 1536])?;
    let (mut append, mut attend) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..50 {
        let (mut times, start) = ([0.0; 2], std::time::Instant::now());
        for cache in &mut caches {
            let from = start.elapsed();
            let q = rope::append(&qkv, &rope, cache, &positions, None)?;
            let between = start.elapsed();
            step(&q, cache, &positions, Some(250), None)?;
            times[0] += (between - from).as_secs_f64();
            times[1] += (start.elapsed() - between).as_secs_f64();
        }
        positions.advance(2, None)?;
        (append, attend) = (append.min(times[0]), attend.min(times[1]));
    }
    println!("16 layers, 2 tokens, 8 heads of 64, 250 keys: append {:.0} us, attention {:.0} us", 1e6 * append, 1e6 * attend);
    Ok(())
}

#[test]
fn a_stream_that_starts_again_forgets() -> Result<()> {
    let device = Device::Cpu;
    let stream = Stream::new([2, 8, 2, 1, 16]);
    let rope = Rope::new(&device, 16, 10_000.0, Style::HalfSplit)?;
    let mut cache = KvCache::new(&device, DType::F32, 2, 1, 100, 16)?;
    let mut positions = Positions::new(&device, 2)?;
    let mut feed = |x: &Tensor, reset: Option<&Tensor>| -> Result<Vec<f64>> {
        if let Some(mask) = reset {
            positions.reset(mask)?;
        }
        let q = rope::append(x, &rope, &mut cache, &positions, None)?;
        let y = step(&q, &cache, &positions, Some(90), None)?;
        positions.advance(x.shape()[1], None)?;
        y.to_f64()
    };
    let poison = Tensor::from_slice(&device, &vec![f32::NAN; 2 * 8 * stream.width()], [2, 8, stream.width()])?;
    let x = stream.chunk(&device, DType::F32, &[0, 0], 8)?;
    let first = feed(&x, None)?;
    assert!(feed(&poison, None)?.iter().all(|v| v.is_nan()));
    let again = feed(&x, Some(&Tensor::from_slice(&device, &[1u8, 0], [2])?))?;
    let half = first.len() / 2;
    assert_eq!(again[..half], first[..half], "stream 0 starts again");
    assert!(again[half..].iter().all(|v| v.is_nan()), "stream 1 does not");
    Ok(())
}

#[test]
fn a_window_wants_its_capacity() -> Result<()> {
    let device = Device::Cpu;
    let positions = Positions::new(&device, 1)?;
    let cache = KvCache::new(&device, DType::F32, 1, 2, 100, 8)?;
    assert_eq!(cache.capacity(), 128);
    let q = |tokens| Tensor::zeros(&device, DType::F32, [1, tokens, 2, 8]);
    for (tokens, window, fits) in [
        (1, Some(128), true),
        (2, Some(128), false),
        (2, Some(127), true),
        (128, Some(1), true),
        (129, Some(1), false),
        (128, None, true),
        (129, None, false),
        (1, Some(0), false),
        (2, Some(usize::MAX), false),
    ] {
        assert_eq!(step(&q(tokens)?, &cache, &positions, window, None).is_ok(), fits, "{tokens} tokens, window {window:?}");
    }
    Ok(())
}

#[test]
fn a_row_of_a_sequence_has_the_same_bits_beside_any_others() -> Result<()> {
    const WIDTH: usize = 2 * 64;
    let x: Vec<Vec<f64>> = (0..3).map(|seed| normal([2, 256, 2, 64], seed + 1).to_f64()).collect::<Result<_>>()?;
    for device in devices()? {
        for &dtype in float_types(&device) {
            let run = |streams: std::ops::Range<usize>, tokens: usize| -> Result<Vec<f64>> {
                let part = |values: &[f64]| -> Result<Tensor> {
                    let rows = streams.clone().flat_map(|b| &values[b * 256 * WIDTH..][..tokens * WIDTH]);
                    Tensor::from_f64(&device, dtype, &rows.copied().collect::<Vec<_>>(), [streams.len(), tokens, 2, 64])
                };
                let mask = Mask { causal: true, window: Some(150) };
                forward_by(Kernel::Wgmma, &part(&x[0])?, &part(&x[1])?, &part(&x[2])?, mask)?.0.to_f64()
            };
            let both = run(0..2, 256)?;
            assert_eq!(run(0..1, 256)?, both[..256 * WIDTH], "{device:?} {dtype}: the first by itself");
            assert_eq!(run(1..2, 256)?, both[256 * WIDTH..], "{device:?} {dtype}: the second");
            assert_eq!(run(0..1, 131)?, both[..131 * WIDTH], "{device:?} {dtype}: 131 tokens");
        }
    }
    Ok(())
}

#[test]
fn what_is_not_finite_stays_in_its_stream() -> Result<()> {
    for device in devices()? {
        for (&dtype, tokens) in float_types(&device).iter().flat_map(|dtype| [(dtype, 100), (dtype, 128)]) {
            let mut values = vec![1.0; 2 * tokens * 64];
            values[tokens * 64..].fill(f64::NAN);
            let x = Tensor::from_f64(&device, dtype, &values, [2, tokens, 1, 64])?;
            for kernel in [Kernel::Mma, Kernel::Wgmma] {
                let y = forward_by(kernel, &x, &x, &x, Mask::default())?.0.to_f64()?;
                assert!(y[..tokens * 64].iter().all(|y| (y - 1.0).abs() < 1e-5), "{device:?} {dtype} {kernel:?}, {tokens} tokens");
                assert!(y[tokens * 64..].iter().all(|y| y.is_nan()), "{device:?} {dtype} {kernel:?}, {tokens} tokens");
            }
        }
    }
    Ok(())
}
