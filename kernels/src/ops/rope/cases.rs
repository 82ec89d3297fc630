use super::{Rope, Style, append, backward, forward, frequencies, halves};
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::ops::attention::{Kept, KvCache, Positions, Sinks};
use crate::tolerance::{ROUNDOFF, Tolerance};
use crate::{DType, Tensor};

/// Of a sine or cosine: rounding the angle (pi / 4 at most), the polynomial's last three roundings, the polynomial itself and
/// the cut phase.
const TURN_ERROR: f64 = 4.0 * ROUNDOFF + 5e-9;
/// Inputs are within this.
const LIMIT: f64 = 2.0;

const STYLES: [Style; 2] = [Style::Interleaved, Style::HalfSplit];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for style in STYLES {
            for shape in [[1, 1, 1, 2], [2, 31, 3, 64], [3, 5, 7, 34], [1, 33, 2, 128], [2, 127, 5, 32], [1, 3, 33, 24], [0, 3, 2, 8]] {
                cases.push(rotation(shape, style, dtype, false));
            }
            for (shape, kv_heads) in
                [([1, 2, 8, 64], 8), ([3, 31, 4, 64], 2), ([2, 70, 3, 10], 1), ([2, 127, 6, 32], 3), ([1, 1, 32, 128], 32)]
            {
                for kept in [Kept::Values(dtype), Kept::Int8] {
                    cases.push(appending(shape, kv_heads, None, style, dtype, kept, false));
                }
            }
            for (shape, kv_heads, steps, context) in
                [([2, 31, 4, 64], 2, 4, 90), ([1, 70, 3, 10], 1, 66, 140), ([4, 1, 32, 128], 32, 4, 70)]
            {
                for kept in [Kept::Values(dtype), Kept::Int8] {
                    cases.push(appending(shape, kv_heads, Some(Sinks { steps, context }), style, dtype, kept, false));
                }
            }
        }
        cases.push(rotation([8, 2048, 32, 128], Style::Interleaved, dtype, true));
        for kept in [Kept::Values(dtype), Kept::Int8] {
            cases.push(appending([64, 64, 8, 64], 8, None, Style::HalfSplit, dtype, kept, true));
        }
    }
    cases
}

/// Both products and their sum round, both turns err.
fn turned(dtype: DType) -> Check {
    Check::Within(Tolerance::EXACT.plus(2.0 * LIMIT * (TURN_ERROR + 2.0 * ROUNDOFF)).then_round_to(dtype))
}

fn seen(batch: usize) -> Input {
    let seen = [1000.0, 0.0, 2e9, 63.0].into_iter().cycle().take(batch.max(1)).collect();
    Input::new("seen", [batch], Fill::Values(seen)).integer(DType::I32)
}

/// As an input, for the host has no part in a recorded run.
fn turns(dim: usize) -> Input {
    let halves = frequencies(dim, 10_000.0).into_iter().flat_map(halves).map(f64::from).collect();
    Input::new("frequencies", [dim / 2, 2], Fill::Values(halves)).integer(DType::I32)
}

/// No, one, two or three quarters of a turn a token.
fn quarters(dim: usize) -> Input {
    let halves = (0..dim / 2).flat_map(|i| [0, ((i as u32 % 4) << 30) as i32]).map(f64::from).collect();
    Input::new("frequencies", [dim / 2, 2], Fill::Values(halves)).integer(DType::I32)
}

fn rope(frequencies: &Tensor, style: Style) -> crate::Result<Rope> {
    Ok(Rope { frequencies: frequencies.copy()?, style })
}

fn positions(seen: &Tensor) -> crate::Result<Positions> {
    Ok(Positions { seen: seen.copy()? })
}

fn label(kind: &str, [batch, tokens, heads, dim]: [usize; 4], style: Style) -> String {
    format!("{kind} {batch}x{tokens}x{heads}x{dim} {style:?}")
}

fn rotation(shape: [usize; 4], style: Style, dtype: DType, bench: bool) -> Case {
    let n: usize = shape.iter().product();
    let runs = if bench { 1 } else { 2 };
    let tables = 4 * (shape[3] + shape[0]);
    Case {
        label: label("rotate", shape, style),
        dtype,
        inputs: vec![Input::new("x", shape, Fill::Uniform(-LIMIT, LIMIT)), seen(shape[0]), turns(shape[3])],
        outputs: [("y", turned(dtype)), ("dx", turned(dtype))].into_iter().take(runs).collect(),
        run: Box::new(move |i| {
            let rope = rope(&i[2], style)?;
            let positions = positions(&i[1])?;
            let y = forward(&i[0], &rope, &positions)?;
            Ok(if bench { vec![y] } else { vec![y, backward(&i[0], &rope, &positions)?] })
        }),
        cost: Cost { bytes: runs * (2 * n * dtype.bytes() + tables), flops: runs * 3 * n },
        bench,
    }
}

fn appending(shape: [usize; 4], kv_heads: usize, sinks: Option<Sinks>, style: Style, dtype: DType, kept: Kept, bench: bool) -> Case {
    let [batch, tokens, heads, dim] = shape;
    let width = (heads + 2 * kv_heads) * dim;
    // The last stream of several sits out.
    let mask = Fill::Values((0..batch).map(|b| (batch == 1 || b + 1 < batch) as u8 as f64).collect());
    let runs = batch - (batch > 1) as usize;
    // What is read of queries, and written once or twice.
    let queries = if sinks.is_some() { 3 } else { 2 };
    let (read, written) = (runs * tokens * 2 * kv_heads * dim * dtype.bytes(), runs * tokens * 2 * kv_heads * kept.bytes(dim));
    let mut outputs = vec![("q", turned(dtype))];
    match kept {
        _ if bench => {}
        Kept::Values(_) => outputs.extend([("keys", turned(dtype)), ("values", Check::Exact)]),
        // Keys are turned by quarters, so that no rounding moves a code.
        Kept::Int8 => outputs.extend(["keys", "values", "key factors", "value factors"].map(|name| (name, Check::Exact))),
    }
    Case {
        label: label("append", shape, style)
            + &format!(" to {kv_heads}")
            + &sinks.map_or(String::new(), |sinks| format!(", {} sinks of {}", sinks.steps, sinks.context))
            + if kept == Kept::Int8 { " as codes" } else { "" },
        dtype,
        inputs: vec![
            Input::new("qkv", [batch, tokens, width], Fill::Uniform(-LIMIT, LIMIT)),
            seen(batch),
            Input::new("mask", [batch], mask).integer(DType::U8),
            if kept == Kept::Int8 { quarters(dim) } else { turns(dim) },
        ],
        outputs,
        run: Box::new(move |i| {
            let rope = rope(&i[3], style)?;
            let kept = if kept == Kept::Int8 { kept } else { i[0].dtype().into() };
            let mut cache = match sinks {
                Some(sinks) => KvCache::with_sinks(&i[0].device(), kept, batch, kv_heads, sinks, tokens, dim)?,
                None => KvCache::new(&i[0].device(), kept, batch, kv_heads, tokens, dim)?,
            };
            let q = append(&i[0], &rope, &mut cache, &positions(&i[1])?, Some(&i[2]))?;
            if bench {
                return Ok(vec![q]);
            }
            let keys = cache.keys()?;
            Ok([q, keys, cache.values].into_iter().chain(cache.factors.into_iter().flatten()).collect())
        }),
        cost: Cost {
            bytes: queries * batch * tokens * heads * dim * dtype.bytes() + read + written + 4 * (dim + batch) + batch,
            flops: 3 * batch * tokens * ((queries - 1) * heads + kv_heads) * dim,
        },
        bench,
    }
}
