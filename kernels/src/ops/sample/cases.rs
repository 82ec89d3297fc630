use super::{Sampler, Settings, WORDS, draw};
use crate::DType;
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::cpu::random::{gumbel, philox};

/// Draws of a case, each into its own column.
const DRAWS: usize = 3;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (batch, n) in [(1, 1), (500, 2), (64, 3), (31, 33), (33, 127), (12, 500), (5, 2048), (2, 8200), (7, 4096), (0, 5)] {
            cases.push(case(batch, n, Fill::Normal(2.0), dtype, false));
        }
        // Few different values, so that the last of the k has equals before and after it; the same large ones, and all one.
        cases.push(named("ties", case(40, 97, Fill::Values(vec![1.0, -2.0, 0.5, 1.0, 0.0, -0.0, 0.5]), dtype, false)));
        cases.push(named("far from zero", case(20, 70, Fill::Uniform(20_000.0, 20_006.0), dtype, false)));
        cases.push(named("all one", case(60, 40, Fill::Values(vec![0.75]), dtype, false)));
        let odd = vec![f64::NAN, 1.0, f64::NEG_INFINITY, 0.5, f64::NAN, f64::NEG_INFINITY, -1.0];
        cases.push(named("NaN and -infinity", case(30, 7, Fill::Values(odd), dtype, false)));
        let lost = vec![f64::NEG_INFINITY, f64::NAN, f64::NAN, f64::NEG_INFINITY, 2.0, f64::INFINITY, 3.0, f64::INFINITY];
        cases.push(named("nothing finite", case(8, 4, Fill::Values(lost), dtype, false)));
        if dtype == DType::F32 {
            cases.push(named("that cancel the noise", case(60, 33, cancelling(60, 33), dtype, false)));
        }
        cases.push(case(64, 2048, Fill::Normal(2.0), dtype, true));
        cases.push(case(16, 32_000, Fill::Normal(2.0), dtype, true));
    }
    cases
}

fn named(name: &str, mut case: Case) -> Case {
    case.label = format!("{} {name}", case.label);
    case
}

/// Logits from which the noise of the first draw takes all but little steps: who is drawn depends on its last bits.
fn cancelling(batch: usize, n: usize) -> Fill {
    let logit = |b: usize, i: usize| {
        let Settings { temperature, seed, sequence, .. } = settings(b, n, false);
        let [low, high] = counted(b);
        let noise = gumbel(philox([i as u32, sequence, low as u32, high as u32], [seed as u32, (seed >> 32) as u32])[0]);
        f64::from(temperature) * (1e-5 * (7 * i % n) as f64 - f64::from(noise))
    };
    Fill::Values((0..batch * n).map(|at| logit(at / n, at % n)).collect())
}

/// How often row `b` drew: the low half is about to overflow.
fn counted(b: usize) -> [i32; 2] {
    [-2, b as i32]
}

/// Of all kinds: greedy, flat and sharp, few and many kept; every sixth row is greedy.
fn settings(row: usize, n: usize, bench: bool) -> Settings {
    let temperatures = [0.0, 0.8, 30.0, 0.7, 1.0, 4.0];
    let kept = [25, 1, 3, 0, n - 1, n, 2, 5, 250, 4, n + 1, 7];
    let seed = 0x1234_5678_9abc_def0 ^ (row as u64 / 2) << 20;
    if bench {
        return Settings { temperature: 0.8, top_k: 250, seed, sequence: row as u32 };
    }
    let temperature = temperatures[row % temperatures.len()];
    Settings { temperature, top_k: kept[row / 3 % kept.len()], seed, sequence: row as u32 % 5 }
}

/// Ids exactly, and counters. Every fifth row sits out. Of the rows that had drawn already
/// the first three start again.
fn case(batch: usize, n: usize, fill: Fill, dtype: DType, bench: bool) -> Case {
    let integers = |name, columns: usize, mut values: Vec<f64>| {
        values.resize(values.len().max(1), 0.0);
        Input::new(name, [batch, columns], Fill::Values(values)).integer(DType::I32)
    };
    let flags = |f: fn(usize) -> bool| Fill::Values((0..batch.max(1)).map(|b| f(b) as u8 as f64).collect());
    // A temperature of `settings` is a number.
    let words = |b| settings(b, n, bench).words().unwrap_or_default();
    let draws = if bench { 1 } else { DRAWS };
    let rows = if bench { batch } else { batch - batch.div_ceil(5) };
    Case {
        label: format!("{batch}x{n}"),
        dtype,
        inputs: vec![
            Input::new("logits", [batch, n], fill),
            integers("settings", WORDS, (0..batch).flat_map(words).map(f64::from).collect()),
            integers("counters", 2, (0..batch).flat_map(counted).map(f64::from).collect()),
            Input::new("mask", [batch], flags(if bench { |_| true } else { |b| b % 5 != 0 })).integer(DType::U8),
            Input::new("start again", [batch], flags(|b| b < 3)).integer(DType::U8),
            integers("ids", DRAWS, vec![-7.0]),
        ],
        outputs: vec![("ids", Check::Exact), ("counters", Check::Exact)],
        run: Box::new(move |i| {
            let mut sampler = Sampler { settings: i[1].copy()?, counters: i[2].copy()? };
            let mut ids = i[5].copy()?;
            for column in 0..draws {
                draw(&mut ids, column, &i[0], &mut sampler, Some(&i[3]))?;
            }
            if !bench {
                sampler.reset(&i[4])?;
            }
            Ok(vec![ids, sampler.counters])
        }),
        // The largest is searched for, the threshold, and the draw made: a few operations a logit and pass.
        cost: Cost { bytes: draws * (rows * (n * dtype.bytes() + 4 * WORDS + 2 * 8 + 4) + batch), flops: draws * rows * 4 * n },
        bench,
    }
}
