use super::{CrossEntropy, backward, forward};
use crate::case::{Case, Check, Cost, Fill, Input, Inputs};
use crate::tolerance::{ROUNDOFF, Tolerance};
use crate::{DType, Device, Result, Shape, Tensor};

/// Logits are within this, and log sums within it and the logarithm of their number, at most 10.
const LIMIT: f64 = 4.0;
const SCALE: f64 = 15.0;
/// One row in five has none; others are not what a narrow type has.
const WEIGHTS: [f64; 5] = [1.0, 0.3, 100.1, 0.0, 2.7];
const MOST: f64 = 100.1;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (rows, classes) in [(1, 1), (31, 33), (7, 127), (12, 500), (801, 2), (9, 2048), (3, 8200), (1, 9001), (70, 1040)] {
            cases.push(both(rows, classes, dtype));
        }
        cases.push(odd(dtype));
        cases.extend([8.0, -2.0, 1e9].map(|target| stray(target, dtype)));
        cases.extend([found_forward(8192, 2048, dtype), found_backward(8192, 2048, dtype)]);
    }
    cases
}

fn integers(name: &'static str, values: Vec<f64>) -> Input {
    Input::new(name, [values.len()], Fill::Values(values)).integer(DType::I32)
}

/// One row in seven has no target; the first and the last logit are some.
fn targets(rows: usize, classes: usize) -> Vec<f64> {
    let target = |n: usize| if n % 7 == 4 { -1.0 } else { (n * n * 5 % classes.max(1)) as f64 };
    (0..rows).map(|n| if n % 7 == 3 { classes as f64 - 1.0 } else { target(n) }).collect()
}

/// Rows that count, and their weights' sum.
fn counted(targets: &[f64]) -> (usize, f64) {
    let weights = targets.iter().zip(WEIGHTS.iter().cycle()).map(|(target, weight)| if *target < 0.0 { 0.0 } else { *weight });
    weights.fold((0, 0.0), |(rows, sum), weight| (rows + (weight != 0.0) as usize, sum + weight))
}

fn inputs(targets: Vec<f64>, classes: usize) -> Vec<Input> {
    let rows = targets.len();
    vec![
        Input::new("logits", [rows, classes], Fill::Uniform(-LIMIT, LIMIT)),
        integers("targets", targets),
        Input::new("weights", [rows], Fill::Values(WEIGHTS.to_vec())).f32(),
    ]
}

/// Of `e^d` for |d| of at most `2 LIMIT`, relative: the difference rounds, and the exponential errs by two units in the last place.
const EXPONENTIAL: f64 = (2.0 * LIMIT + 4.0) * ROUNDOFF;

/// Of a log sum: exponentials, each rescaled when a larger maximum comes, as often as a thread has vectors and once by the block, and a
/// positive sum of them; a logarithm of at most 10, and its sum with the maximum.
fn log_sum(classes: usize) -> f64 {
    let rescalings = 1 + classes.div_ceil(1024).max(4);
    let sum = 2.0 * (classes as f64).sqrt() * ROUNDOFF;
    EXPONENTIAL + rescalings as f64 * (EXPONENTIAL + ROUNDOFF) + sum + (2.0 * 10.0 + LIMIT + 10.0) * ROUNDOFF
}

/// A row's term is a difference of a log sum and a logit, times its weight; the mean is of positive terms, over a sum of weights.
fn loss(rows: usize, classes: usize) -> Check {
    let difference = (2.0 * LIMIT + 10.0) * ROUNDOFF;
    Check::Within(Tolerance::positive_sum(4 * rows).then_rounded(3).plus(log_sum(classes) + difference))
}

/// A probability of at most 1 whose log sum errs by `log_sum`, less 1, times a factor of at most `factor`.
fn gradient(rows: usize, log_sum: f64, factor: f64, dtype: DType) -> Check {
    let probability = log_sum + (2.0 * LIMIT + 10.0 + 4.0 + 1.0) * ROUNDOFF;
    Check::Within(Tolerance::positive_sum(rows).then_rounded(4).plus(factor * probability).then_round_to(dtype))
}

fn both(rows: usize, classes: usize, dtype: DType) -> Case {
    let targets = targets(rows, classes);
    let (_, weight) = counted(&targets);
    let (forward_cost, backward_cost) = (forward_cost(&targets, classes, dtype), backward_cost(&targets, classes, dtype));
    let factor = SCALE * MOST / weight;
    Case {
        label: format!("{rows}x{classes}"),
        dtype,
        inputs: inputs(targets, classes),
        outputs: vec![("loss", loss(rows, classes)), ("dx", gradient(rows, log_sum(classes), factor, dtype))],
        run: Box::new(|i| {
            let found = forward(&i[0], &i[1], &i[2])?;
            let dx = backward(&found, &i[0], &i[1], &i[2], SCALE)?;
            Ok(vec![found.loss, dx])
        }),
        cost: Cost { bytes: forward_cost.bytes + backward_cost.bytes, flops: forward_cost.flops + backward_cost.flops },
        bench: false,
    }
}

/// Logits that are not numbers spoil their row and the loss, unless they do not count; -infinity is one that is never right.
fn odd(dtype: DType) -> Case {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    let logits = vec![1.0, -inf, 2.0, nan, nan, nan, -inf, 0.5, -inf, -inf, -inf, -inf];
    let mut case = both(4, 3, dtype);
    case.label += " odd";
    case.inputs[0] = Input::new("logits", [4, 3], Fill::Values(logits));
    case.inputs[1] = integers("targets", vec![2.0, -1.0, 1.0, 0.0]);
    case.inputs[2] = Input::new("weights", [4], Fill::Values(vec![1.0, 2.0, 0.5, 0.0])).f32();
    case
}

/// A target outside, which a GPU cannot refuse: NaN for loss and row, and for no other row.
fn stray(target: f64, dtype: DType) -> Case {
    let classes = 8;
    let targets = vec![3.0, target, 7.0, -1.0, 0.0];
    let outside = move |target: f64| target < -1.0 || target >= classes as f64;
    let run = move |i: &Inputs| {
        if i[0].device() != Device::Cpu {
            let found = forward(&i[0], &i[1], &i[2])?;
            let dx = backward(&found, &i[0], &i[1], &i[2], SCALE)?;
            return Ok(vec![found.loss, dx]);
        }
        let targets = i[1].to_f64()?;
        let inside: Vec<f64> = targets.iter().map(|&t| if outside(t) { 0.0 } else { t }).collect();
        let inside = Tensor::from_f64(&Device::Cpu, DType::I32, &inside, i[1].shape())?;
        let found = forward(&i[0], &inside, &i[2])?;
        let mut dx = backward(&found, &i[0], &inside, &i[2], SCALE)?.to_f64()?;
        dx.chunks_mut(classes).zip(&targets).filter(|(_, t)| outside(**t)).for_each(|(row, _)| row.fill(f64::NAN));
        let loss = Tensor::from_f64(&Device::Cpu, i[0].dtype(), &[f64::NAN], [1])?;
        Ok(vec![loss, Tensor::from_f64(&Device::Cpu, i[0].dtype(), &dx, i[0].shape())?])
    };
    let mut case = both(targets.len(), classes, dtype);
    case.label = format!("stray target {target}");
    case.inputs[1] = integers("targets", targets);
    case.inputs[2] = Input::new("weights", [5], Fill::Values(vec![1.0])).f32();
    case.run = Box::new(run);
    case
}

/// Rows that count are read; terms, targets and weights by both kernels.
fn forward_cost(targets: &[f64], classes: usize, dtype: DType) -> Cost {
    let (rows, read) = (targets.len(), counted(targets).0);
    Cost { bytes: read * (classes * dtype.bytes() + 4) + 4 * 6 * rows, flops: 4 * read * classes }
}

fn backward_cost(targets: &[f64], classes: usize, dtype: DType) -> Cost {
    let (rows, read) = (targets.len(), counted(targets).0);
    Cost { bytes: (rows + read) * classes * dtype.bytes() + 4 * (2 * rows + read), flops: 4 * read * classes }
}

fn found_forward(rows: usize, classes: usize, dtype: DType) -> Case {
    let targets = targets(rows, classes);
    Case {
        label: format!("forward {rows}x{classes}"),
        outputs: vec![("loss", loss(rows, classes))],
        run: Box::new(|i| Ok(vec![forward(&i[0], &i[1], &i[2])?.loss])),
        cost: forward_cost(&targets, classes, dtype),
        bench: true,
        ..both(rows, classes, dtype)
    }
}

/// Of log sums and a weight that are given.
fn found_backward(rows: usize, classes: usize, dtype: DType) -> Case {
    let targets = targets(rows, classes);
    let weight = counted(&targets).1;
    let given = |name, shape: Shape, fill| Input::new(name, shape, fill).f32();
    let mut case = both(rows, classes, dtype);
    case.inputs.push(given("log sums", [rows].into(), Fill::Uniform(LIMIT, LIMIT + 6.0)));
    case.inputs.push(given("weight", [1].into(), Fill::Values(vec![weight])));
    let run = |i: &Inputs| -> Result<Vec<Tensor>> {
        let found = CrossEntropy { loss: i[4].copy()?, log_sums: i[3].copy()?, weight: i[4].copy()? };
        Ok(vec![backward(&found, &i[0], &i[1], &i[2], SCALE)?])
    };
    Case {
        label: format!("backward {rows}x{classes}"),
        outputs: vec![("dx", gradient(rows, 0.0, SCALE * MOST / weight, dtype))],
        run: Box::new(run),
        cost: backward_cost(&targets, classes, dtype),
        bench: true,
        ..case
    }
}
