use super::cuda::spans;
use super::{Kept, Kernel, KvCache, Mask, Positions, Sinks, backward, forward, forward_by, step};
use crate::DType;
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::tolerance::Tolerance;

/// Tokens seen by a stream whose ring has no room for all of them.
const LONG_AGO: usize = 1777;

/// `B T Hq Hkv D`.
type Extents = [usize; 5];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let windowed = |window| Mask { causal: true, window: Some(window) };
    let all = Mask::default();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (shape, keys, mask) in [
            ([1, 1, 1, 1, 1], 1, all),
            ([2, 31, 2, 1, 64], 31, Mask::CAUSAL),
            ([1, 33, 3, 3, 40], 127, all),
            ([1, 127, 4, 1, 128], 127, windowed(50)),
            ([2, 70, 2, 2, 34], 70, windowed(1)),
            ([1, 5, 6, 2, 72], 500, all),
            ([1, 3, 2, 2, 33], 65, all),
            ([1, 200, 1, 1, 16], 200, Mask::CAUSAL),
            ([0, 3, 2, 2, 8], 3, all),
        ] {
            cases.push(sequences(Kernel::Mma, shape, keys, mask, dtype, false));
            // The only key that is seen has a weight of one, whose slope is nothing but rounding.
            let mask = if mask.window == Some(1) { windowed(2) } else { mask };
            cases.push(gradients(shape, keys, mask, dtype, false));
        }
        for (shape, seen, window) in [
            ([1, 2, 8, 8, 64], 400, Some(250)),
            ([3, 1, 4, 2, 64], 40, Some(31)),
            ([2, 5, 6, 1, 34], 70, Some(33)),
            ([1, 31, 2, 2, 128], 127, None),
            ([2, 1, 4, 1, 128], 2100, Some(1500)),
            ([1, 20, 2, 2, 64], 600, Some(500)),
            ([1, 3, 2, 2, 10], 1500, None),
            ([2, 20, 1, 1, 80], 1100, Some(1025)),
            ([2, 2, 2, 1, 64], LONG_AGO, None),
        ] {
            for kept in [Kept::Values(dtype), Kept::Int8] {
                cases.push(stream(shape, seen, window, 0, dtype, kept, false));
            }
        }
        for (shape, seen, window, sinks) in [
            ([1, 1, 8, 8, 64], 400, 250, 4),
            ([3, 1, 4, 2, 64], 40, 31, 1),
            ([2, 5, 6, 1, 34], 70, 33, 32),
            ([1, 31, 2, 2, 128], 1000, 127, 70),
            ([2, 7, 4, 1, 64], 2, 500, 4),
            ([2, 2, 2, 1, 128], 3000, 1504, 4),
        ] {
            for kept in [Kept::Values(dtype), Kept::Int8] {
                cases.push(stream(shape, seen, Some(window), sinks, dtype, kept, false));
            }
        }
        cases.push(sequences(Kernel::Mma, [4, 2048, 16, 16, 64], 2048, Mask::CAUSAL, dtype, true));
        cases.push(sequences(Kernel::Mma, [1, 4096, 32, 8, 128], 4096, Mask::CAUSAL, dtype, true));
        cases.push(gradients([1, 2048, 16, 16, 64], 2048, Mask::CAUSAL, dtype, true));
        for kept in [Kept::Values(dtype), Kept::Int8] {
            cases.push(stream([64, 2, 8, 8, 64], 300, Some(250), 0, dtype, kept, true));
            cases.push(stream([8, 1, 32, 32, 128], 3000, Some(3000), 0, dtype, kept, true));
            cases.push(stream([8, 1, 32, 32, 128], 9000, Some(3000), 4, dtype, kept, true));
        }
    }
    for dtype in [DType::BF16, DType::F16] {
        for (shape, keys, mask) in [
            ([1, 1, 1, 1, 64], 1, all),
            ([1, 31, 2, 1, 64], 31, Mask::CAUSAL),
            ([1, 130, 1, 1, 64], 700, all),
            ([1, 300, 2, 1, 128], 300, Mask::CAUSAL),
            ([2, 256, 1, 1, 64], 256, Mask::CAUSAL),
            ([2, 70, 2, 1, 64], 70, Mask::CAUSAL), // streams that are no whole tiles
            ([1, 400, 1, 1, 64], 400, windowed(140)),
            ([1, 260, 4, 1, 64], 260, windowed(1)),
            ([1, 260, 4, 1, 128], 260, windowed(1)),
            ([1, 200, 3, 3, 40], 200, Mask::CAUSAL), // heads that no tile fits
        ] {
            cases.push(sequences(Kernel::Wgmma, shape, keys, mask, dtype, false));
        }
        cases.push(sequences(Kernel::Wgmma, [4, 2048, 16, 16, 64], 2048, Mask::CAUSAL, dtype, true));
        cases.push(sequences(Kernel::Wgmma, [1, 4096, 32, 8, 128], 4096, Mask::CAUSAL, dtype, true));
    }
    cases
}

/// A score has an error of `dim` products of about its own size, and in the exponent that of rounding scores of up to some 64;
/// weights err in proportion, each for itself, and so are as many roundings of what is summed, besides that of the sum over
/// keys, of the weights' total and of its inverse. On tensor cores a weight is rounded to its type.
/// `largest` is how much larger than most a row may be.
fn tolerance(dtype: DType, keys: usize, dim: usize, largest: f64) -> Tolerance {
    let weights = Tolerance::accumulate(2 * keys + dim + 64 * 64 + 8);
    let weights = if dtype == DType::F32 { weights } else { weights.via(dtype, 1) };
    weights.of_sum_larger_by(largest).then_rounded(3).then_round_to(dtype)
}

fn label(kind: &str, [batch, tokens, heads, kv_heads, dim]: Extents) -> String {
    format!("{kind} {batch}x{tokens}x{heads}/{kv_heads}x{dim}")
}

/// Keys that a query sees.
fn seen(t: usize, keys: usize, mask: Mask) -> usize {
    if mask.causal { (t + 1).min(mask.window.unwrap_or(keys)) } else { keys }
}

/// How much larger than the rest the mean of the fewest keys is, that of one: a mean of `n` has a deviation of about `n^-1/2`.
fn largest_row(tokens: usize, keys: usize, mask: Mask) -> f64 {
    if !mask.causal || tokens == 0 {
        return 1.0;
    }
    let mean = (0..tokens).map(|t| 1.0 / seen(t, keys, mask) as f64).sum::<f64>() / tokens as f64;
    mean.powf(-0.5)
}

fn sequences(kernel: Kernel, shape: Extents, keys: usize, mask: Mask, dtype: DType, bench: bool) -> Case {
    let [batch, tokens, heads, kv_heads, dim] = shape;
    let elements = 2 * batch * tokens * heads * dim + 2 * batch * keys * kv_heads * dim;
    let (q, kv) = ([batch, tokens, heads, dim], [batch, keys, kv_heads, dim]);
    // Of log2(sum): scores as above, times log2(e), and the rounding of what may be as large as a score.
    let logsum = Tolerance::accumulate(dim + 64).then_rounded(4).plus(2f64.powi(-22));
    Case {
        label: label("forward", shape)
            + &format!(
                " over {keys}{}{}{}",
                if mask.causal { " causal" } else { "" },
                mask.window.map_or(String::new(), |w| format!(" window {w}")),
                if kernel == Kernel::Wgmma { " by wgmma" } else { "" },
            ),
        dtype,
        inputs: vec![Input::normal("q", q), Input::normal("k", kv), Input::normal("v", kv)],
        outputs: vec![
            ("y", Check::Within(tolerance(dtype, keys, dim, largest_row(tokens, keys, mask)))),
            ("logsum", Check::Within(logsum)),
        ],
        run: Box::new(move |i| forward_by(kernel, &i[0], &i[1], &i[2], mask).map(|(y, logsum)| vec![y, logsum])),
        cost: Cost {
            bytes: elements * dtype.bytes() + 4 * batch * tokens * heads,
            flops: 4 * batch * heads * dim * (0..tokens).map(|t| seen(t, keys, mask)).sum::<usize>(),
        },
        bench,
    }
}

/// Forward and backward. A slope is the difference of two sums over the head that are larger than their difference, one of them
/// of an output that was rounded; a gradient sums over at most `keys` keys or `rows` rows of such, and where few take part the
/// error is that of a single one.
fn gradients(shape: Extents, keys: usize, mask: Mask, dtype: DType, bench: bool) -> Case {
    let [batch, tokens, heads, kv_heads, dim] = shape;
    let forward_case = sequences(Kernel::Mma, shape, keys, mask, dtype, bench);
    let rows = tokens * heads / kv_heads;
    let n = keys.max(rows);
    let tolerance =
        Tolerance::accumulate(2 * n + 2 * dim + 64 * 64).via(dtype, 3).of_sum_larger_by((n as f64).sqrt().max(1.0)).then_round_to(dtype);
    let mut inputs = forward_case.inputs;
    inputs.push(Input::normal("dy", [batch, tokens, heads, dim]));
    // dy and y for delta; both kernels read q, k, v, dy and the statistics, and write the gradients.
    let (queries, pairs) = (batch * tokens * heads * dim, batch * keys * kv_heads * dim);
    let statistics = 4 * 5 * batch * tokens * heads;
    let bytes = (2 * queries + 4 * queries + 4 * pairs + queries + 2 * pairs) * dtype.bytes() + statistics;
    Case {
        label: forward_case.label.replace("forward", "backward"),
        inputs,
        outputs: ["dq", "dk", "dv"].map(|name| (name, Check::Within(tolerance))).into(),
        run: Box::new(move |i| {
            let (y, logsum) = forward(&i[0], &i[1], &i[2], mask)?;
            Ok(backward(&i[3], &i[0], &i[1], &i[2], &y, &logsum, mask)?.into())
        }),
        cost: Cost { bytes: forward_case.cost.bytes + bytes, flops: forward_case.cost.flops * 9 / 2 },
        ..forward_case
    }
}

/// A step of streams that have seen `seen` tokens, the last of several masked. `sinks` are of the window.
fn stream(shape: Extents, seen: usize, window: Option<usize>, sinks: usize, dtype: DType, kept: Kept, bench: bool) -> Case {
    let [batch, tokens, heads, kv_heads, dim] = shape;
    let all = if seen == LONG_AGO { super::KEY_BLOCK } else { seen + tokens };
    let fixed = sinks.next_multiple_of(super::KEY_BLOCK);
    let capacity = fixed + window.map_or(all, |w| w - sinks + tokens - 1).next_multiple_of(super::KEY_BLOCK);
    let reach = window.unwrap_or(capacity).min(seen + tokens);
    let visited = (reach + tokens - 1).min(seen + tokens);
    let kept_sinks = window.filter(|_| sinks > 0).map(|context| Sinks { steps: sinks, context });
    let queries = if sinks > 0 { 2 * batch } else { batch };
    let kv = [batch, kv_heads, capacity, dim];
    let runs = if batch > 1 && !bench { batch - 1 } else { batch };
    let flag = Fill::Values((0..batch).map(|b| (b < runs) as u8 as f64).collect());
    let seen = |b: usize| (seen as f64 - b as f64).max(0.0);
    // Factors that make values of bytes about as large as others; what was never written has no say, whatever it is.
    let codes = kept == Kept::Int8;
    let factor = |slot: usize| if slot < all { 0.01 + 1e-4 * (slot * 37 % 101) as f64 } else { f64::NAN };
    let written = Fill::Values((0..capacity).map(factor).collect());
    let factors = |name| Input::new(name, [batch, kv_heads, capacity], written.clone()).integer(DType::F32);
    let ring = |name| if codes { Input::new(name, kv, Fill::Below(256)).integer(DType::U8) } else { Input::normal(name, kv) };
    let mut inputs = vec![
        Input::normal("q", [queries, tokens, heads, dim]),
        ring("keys"),
        ring("values"),
        Input::new("seen", [batch], Fill::Values((0..batch.max(1)).map(seen).collect())).integer(DType::I32),
        Input::new("mask", [batch], flag).integer(DType::U8),
    ];
    if codes {
        inputs.extend([factors("key factors"), factors("value factors")]);
    }
    let spans = spans(window.map_or(capacity, |w| w - sinks), tokens, sinks);
    let partial = if spans == 1 { 0 } else { 8 * runs * heads * tokens * spans * (dim + 2) };
    let values = (batch + if sinks > 0 { 2 * runs } else { runs }) * tokens * heads * dim;
    // Values are rounded once more, and bytes, which are uniform, by more of their rms than normal ones.
    let tolerance = tolerance(dtype, reach, dim, 1.0).via(dtype, if codes { 2 } else { 0 });
    Case {
        label: label("step", shape)
            + &format!(" window {}", window.map_or("all".into(), |w| w.to_string()))
            + &if sinks > 0 { format!(" {sinks} sinks") } else { String::new() }
            + if codes { " of codes" } else { "" },
        dtype,
        inputs,
        outputs: vec![("y", Check::Within(tolerance)), ("seen", Check::Exact)],
        run: Box::new(move |i| {
            let factors = if i.len() > 5 { Some([&i[5], &i[6]]) } else { None };
            let cache = KvCache::of(&i[1], &i[2], factors, kept_sinks)?;
            let mut positions = Positions { seen: i[3].copy()? };
            let y = step(&i[0], &cache, &positions, window, Some(&i[4]))?;
            positions.advance(tokens, Some(&i[4]))?;
            Ok(vec![y, positions.seen])
        }),
        cost: Cost {
            bytes: values * dtype.bytes() + 2 * runs * kv_heads * visited * kept.bytes(dim) + partial + 14 * batch,
            flops: 4 * runs * heads * dim * tokens * reach,
        },
        bench,
    }
}
