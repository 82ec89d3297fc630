use super::{Tokens, feed, take};
use crate::DType;
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::ops::attention::Positions;

pub(super) fn cases() -> Vec<Case> {
    let late = |columns: usize, most: usize| (0..columns).map(|k| [0, most, 1, most / 2][k % 4].min(most)).collect::<Vec<_>>();
    let moshi: Vec<usize> = [0].into_iter().chain((0..16).map(|k| usize::from(k % 8 != 0))).collect();
    vec![
        case(&[0], 1, 1, false),
        case(&moshi, 9, 3, false),
        case(&late(33, 6), 17, 11, false),
        case(&late(9, 32), 9, 4, false),
        case(&late(5, 2), 2, 70, false),
        case(&moshi, 9, 64, true),
    ]
}

/// A step of `batch` streams at positions from the first on, the last of several sitting out.
fn case(delays: &[usize], generated: usize, batch: usize, bench: bool) -> Case {
    let columns = delays.len();
    let longest = delays.iter().copied().max().unwrap_or(0);
    let ids = |name, columns| Input::new(name, [batch, columns], Fill::Below(2048)).integer(DType::I32);
    let mask = Fill::Values((0..batch).map(|b| f64::from(u8::from(batch == 1 || b + 1 < batch))).collect());
    let late = delays.iter().map(|&delay| delay as f64).collect();
    let outputs = ["ids", "out", "ring"];
    Case {
        label: format!("{batch} streams of {columns} columns late by {longest}, {generated} generated"),
        dtype: DType::F32,
        inputs: vec![
            ids("given", columns - generated),
            ids("generated", generated),
            Input::new("seen", [batch], Fill::Values((0..batch).map(|b| b as f64).collect())).integer(DType::I32),
            Input::new("mask", [batch], mask).integer(DType::U8),
            Input::new("ring", [batch, columns, longest + 2], Fill::Below(2048)).integer(DType::I32),
            Input::new("delays", [columns], Fill::Values(late)).integer(DType::I32),
            Input::new("initial", [columns], Fill::Values((3000..3000 + columns).map(|id| id as f64).collect())).integer(DType::I32),
        ],
        outputs: outputs.into_iter().map(|name| (name, Check::Exact)).collect(),
        run: Box::new(move |i| {
            let [ring, delays, initial] = [4, 5, 6].map(|n: usize| i[n].copy());
            let mut tokens = Tokens { ring: ring?, delays: delays?, initial: initial?, longest, generated };
            let positions = Positions { seen: i[2].copy()? };
            let ids = feed(&mut tokens, &i[0], &positions, Some(&i[3]))?;
            let out = take(&mut tokens, &i[1], &positions, Some(&i[3]))?;
            Ok(vec![ids, out, tokens.ring])
        }),
        cost: Cost { bytes: 4 * batch * (4 * columns + 2 * generated) + 8 * columns + 5 * batch, flops: 0 },
        bench,
    }
}
