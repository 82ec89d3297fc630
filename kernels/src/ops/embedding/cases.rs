use std::collections::BTreeSet;

use super::{Tables, backward, forward, forward_codes, split};
use crate::case::{Case, Check, Cost, Fill, Input, Inputs};
use crate::ops::elementwise::convert;
use crate::tolerance::Tolerance;
use crate::{DType, Device, Result, Tensor};

/// The streams of Moshi: a text table and sixteen of audio.
const MOSHI: [usize; 17] = [32_001, 2049, 2049, 2049, 2049, 2049, 2049, 2049, 2049, 2049, 2049, 2049, 2049, 2049, 2049, 2049, 2049];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (batch, sizes, dim, onto) in [
            (1, &[1][..], 1, false),
            (3, &[31, 33], 33, true),
            (33, &[127, 1, 500], 31, false),
            (2, &[40; 17], 500, true),
            (31, &[65; 9], 2048, false),
            (5, &[9, 0, 7], 1032, true),
            (0, &[3], 8, false),
            (4, &[5, 6], 0, false),
            (3, &[2; 64], 24, false),
            (2, &[3; 129], 136, false),
        ] {
            cases.push(gather(batch, sizes, dim, onto, dtype, false));
            if dim > 0 {
                cases.push(codes(batch, sizes, dim, dtype, false));
            }
        }
        cases.push(codes(64, &MOSHI, 4096, dtype, true));
        cases.push(stray(dtype));
        cases.push(gather(64, &MOSHI, 4096, false, dtype, true));
    }
    for (batch, sizes, dim) in [
        (1, &[1][..], 1),
        (33, &[31, 2], 33),
        (127, &[5, 40, 1], 64),
        (600, &[33; 3], 256),
        (200, &[2, 300], 31),
        (31, &[16], 1032),
        (0, &[3], 8),
    ] {
        cases.push(gradient(batch, sizes, dim, false));
    }
    cases.push(gradient(4000, &MOSHI, 1024, true));
    cases.extend([(1, 1, 1), (3, 5, 7), (130, 4, 46_341), (1, 300, 33)].map(|(batch, width, size)| both(batch, width, size, false)));
    cases.push(both(4096, 17, 32_001, true));
    cases
}

/// Ids `[batch, width]`, of which the first column holds those of two tables: some are of one table, some of none.
fn both(batch: usize, width: usize, size: usize, bench: bool) -> Case {
    let most = (size * size + size).min(i32::MAX as usize);
    let id = |at: usize| match at % 5 {
        3 => -(1.0 + (at % 2) as f64),
        4 => (at % size) as f64,
        _ => (at * 2_654_435_761 % most) as f64,
    };
    Case {
        label: format!("split {batch}x{width}, two of {size}"),
        dtype: DType::F32,
        inputs: vec![integers("ids", batch, width, (0..batch * width).map(id).collect())],
        outputs: vec![("split", Check::Exact)],
        run: Box::new(move |i| Ok(vec![split(&i[0], size)?])),
        cost: Cost { bytes: 4 * batch * (2 * width + 1), flops: 0 },
        bench,
    }
}

/// Ids of `[batch, 1 + tables + 1]`, of which the outer columns are not for these tables: most rows of each table, one in seven -1.
fn ids(batch: usize, sizes: &[usize]) -> Vec<f64> {
    let id = |b: usize, k: usize, size: usize| match (b + k) % 7 {
        5 => -1.0,
        _ if size == 0 => -1.0,
        _ => ((b * 7 + k * 3 + b * b) % size) as f64,
    };
    let row = |b| sizes.iter().enumerate().map(move |(k, &size)| id(b, k, size));
    (0..batch).flat_map(|b| [1e6].into_iter().chain(row(b)).chain([-3.0])).collect()
}

/// How many different rows those are.
fn named(ids: &[f64], tables: usize) -> usize {
    let rows = ids.chunks(tables + 2).flat_map(|row| row[1..=tables].iter().enumerate());
    rows.filter(|(_, id)| **id >= 0.0).map(|(k, id)| (k, *id as usize)).collect::<BTreeSet<_>>().len()
}

/// As an input, for the host has no part in a recorded run.
fn starts(sizes: &[usize]) -> Input {
    let ends = sizes.iter().scan(0, |end, size| {
        *end += size;
        Some(*end as f64)
    });
    Input::new("starts", [sizes.len() + 1], Fill::Values([0.0].into_iter().chain(ends).collect())).integer(DType::I32)
}

fn tables(starts: &Tensor, sizes: &[usize]) -> Result<Tables> {
    Ok(Tables { starts: starts.copy()?, sizes: sizes.to_vec() })
}

fn integers(name: &'static str, batch: usize, columns: usize, values: Vec<f64>) -> Input {
    let values = if values.is_empty() { vec![0.0] } else { values };
    Input::new(name, [batch, columns], Fill::Values(values)).integer(DType::I32)
}

fn gather(batch: usize, sizes: &[usize], dim: usize, onto: bool, dtype: DType, bench: bool) -> Case {
    const SLOTS: usize = 3;
    let (count, rows) = (sizes.len(), sizes.iter().sum::<usize>());
    let ids = ids(batch, sizes);
    let moved = named(&ids, count) + batch * (1 + onto as usize);
    let mut inputs = vec![Input::normal("weight", [rows, dim]), integers("ids", batch, count + 2, ids), starts(sizes)];
    if onto {
        inputs.push(Input::normal("onto", [batch, SLOTS, dim]));
    }
    let sizes = sizes.to_vec();
    Case {
        label: format!("{batch}x{dim} of {count} tables, {rows} rows{}", if onto { ", onto" } else { "" }),
        dtype,
        inputs,
        outputs: vec![("y", Check::Within(Tolerance::accumulate(count + onto as usize).then_round_to(dtype)))],
        run: Box::new(move |i| {
            let tables = tables(&i[2], &sizes)?;
            Ok(vec![forward(&i[0], &tables, (&i[1], 1), i.get(3).map(|onto| (onto, 1)))?])
        }),
        cost: Cost { bytes: moved * dim * dtype.bytes() + 4 * (batch * count + count + 1), flops: batch * count * dim },
        bench,
    }
}

/// Rows of codes, onto what is of the type of the sums.
fn codes(batch: usize, sizes: &[usize], dim: usize, dtype: DType, bench: bool) -> Case {
    let (count, rows) = (sizes.len(), sizes.iter().sum::<usize>());
    let of_values = gather(batch, sizes, dim, true, dtype, bench);
    let read = named(&ids(batch, sizes), count);
    let mut inputs = of_values.inputs;
    inputs[0] = Input::new("codes", [rows, dim], Fill::Below(256)).integer(DType::U8);
    let scale = |row: usize| 0.01 + 1e-4 * (row * 37 % 101) as f64;
    inputs.push(Input::new("scales", [rows, 1], Fill::Values((0..rows).map(scale).collect())).integer(DType::F32));
    let sizes = sizes.to_vec();
    Case {
        label: of_values.label + " of codes",
        inputs,
        // The products round as well, and are uniform: more of their rms than normal ones.
        outputs: vec![("y", Check::Within(Tolerance::accumulate(3 * count + 1).then_rounded(2).then_round_to(dtype)))],
        run: Box::new(move |i| {
            // Scales are f32 beside f64 as well.
            let single = (i[4].dtype() != DType::F32).then(|| convert(&i[4], DType::F32)).transpose()?;
            let weight = (&i[0], single.as_ref().unwrap_or(&i[4]));
            let tables = tables(&i[2], &sizes)?;
            Ok(vec![forward_codes(weight, &tables, (&i[1], 1), Some((&i[3], 1)), i[3].dtype())?])
        }),
        cost: Cost {
            bytes: read * (dim + 4) + 2 * batch * dim * dtype.bytes() + 4 * (batch * count + count + 1),
            flops: 2 * batch * count * dim,
        },
        ..of_values
    }
}

/// Ids outside their table, which a GPU cannot refuse: NaN for the whole row. Those within, and -1, are exact.
fn stray(dtype: DType) -> Case {
    let (sizes, dim) = ([7, 5], 9);
    let ids = vec![0.0, -1.0, 6.0, 4.0, 7.0, 0.0, 0.0, 5.0, -2.0, 1.0, -1.0, -1.0, 1e9, -1.0, 3.0, -2147483648.0];
    let batch = ids.len() / 2;
    let run = move |i: &Inputs| {
        let tables = tables(&i[2], &sizes)?;
        if i[0].device() != Device::Cpu {
            return Ok(vec![forward(&i[0], &tables, (&i[1], 0), None)?]);
        }
        let (weight, ids) = (i[0].to_f64()?, i[1].to_f64()?);
        let value = |k: usize, id: f64, j: usize| match id {
            -1.0 => 0.0,
            _ if id >= 0.0 && id < sizes[k] as f64 => weight[(sizes[0] * k + id as usize) * dim + j],
            _ => f64::NAN,
        };
        let values: Vec<f64> = ids.chunks(2).flat_map(|row| (0..dim).map(|j| value(0, row[0], j) + value(1, row[1], j))).collect();
        Ok(vec![Tensor::from_f64(&Device::Cpu, i[0].dtype(), &values, [batch, dim])?])
    };
    Case {
        label: "stray ids".into(),
        inputs: vec![Input::normal("weight", [12, dim]), integers("ids", batch, 2, ids), starts(&sizes)],
        run: Box::new(run),
        ..gather(batch, &sizes, dim, false, dtype, false)
    }
}

/// Onto a gradient that is there already.
fn gradient(batch: usize, sizes: &[usize], dim: usize, bench: bool) -> Case {
    let (count, rows) = (sizes.len(), sizes.iter().sum::<usize>());
    let ids = ids(batch, sizes);
    let touched = named(&ids, count);
    let sizes = sizes.to_vec();
    let read = (0..batch).filter(|b| ids[b * (count + 2)..][1..=count].iter().any(|id| *id >= 0.0)).count();
    let most = batch.div_ceil(sizes.iter().copied().min().unwrap_or(1).max(1)) + 1;
    Case {
        label: format!("backward {batch}x{dim} of {count} tables, {rows} rows"),
        dtype: DType::F32,
        inputs: vec![
            Input::normal("dy", [batch, dim]),
            integers("ids", batch, count + 2, ids),
            starts(&sizes),
            Input::normal("gradient", [rows, dim]),
        ],
        outputs: vec![("gradient", Check::Within(Tolerance::accumulate(4 * most)))],
        run: Box::new(move |i| {
            let tables = tables(&i[2], &sizes)?;
            let mut gradient = i[3].copy()?;
            backward(&mut gradient, &tables, &i[0], (&i[1], 1))?;
            Ok(vec![gradient])
        }),
        cost: Cost { bytes: 4 * ((read + 2 * touched) * dim + 3 * batch * count), flops: batch * count * dim },
        bench,
    }
}
