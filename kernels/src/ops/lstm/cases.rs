use super::{Pull, State, Weight, backward, cells, forward, step, step_backward};
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::tolerance::{ROUNDOFF, Tolerance};
use crate::{DType, Shape, Tensor};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (batch, steps, hidden) in [(1, 1, 1), (2, 1, 33), (3, 2, 31), (1, 3, 127), (2, 2, 500), (1, 2, 512), (0, 2, 8), (2, 3, 2000)] {
            cases.push(cell(batch, steps, hidden, dtype, false));
            cases.push(cell_backward(batch, steps, hidden, dtype, false));
            cases.push(all_cells(batch, steps, hidden, dtype, false));
        }
        for (batch, steps, hidden) in [(1, 1, 1), (1, 5, 8), (3, 2, 33), (2, 7, 64), (2, 0, 8)] {
            cases.push(sequence(batch, steps, hidden, dtype, false));
            cases.push(sequence_backward(batch, steps, hidden, dtype));
        }
        cases.push(cell(4096, 1, 512, dtype, true));
        cases.push(cell_backward(4096, 1, 512, dtype, true));
        cases.push(all_cells(64, 75, 512, dtype, true));
        cases.push(sequence(1, 75, 512, dtype, true));
    }
    cases
}

/// Of a sum of two numbers within 4: half a unit in its last place. A sigmoid's slope is at most 1/4, a hyperbolic tangent's 1; they
/// themselves err by 4 and 5 roundoffs (cpu/math.rs; CUDA's by less).
const SUM: f64 = 8.0 * ROUNDOFF;
const SIGMOID: f64 = SUM / 4.0 + 4.0 * ROUNDOFF;
const TANH: f64 = SUM + 5.0 * ROUNDOFF;
/// Of a cell: two products of such, a cell within 2 before it, and their sum of at most 3.
const CELL: f64 = 2.0 * SIGMOID + (SIGMOID + TANH) + (2.0 + 1.0 + 3.0) * ROUNDOFF;
/// Of what is made of it: a product of at most 1.
const HIDDEN: f64 = SIGMOID + (CELL + 5.0 * ROUNDOFF) + ROUNDOFF;

/// The last step by itself, from any state.
fn cell(batch: usize, steps: usize, hidden: usize, dtype: DType, bench: bool) -> Case {
    let input = |name, shape: Shape| Input::new(name, shape, Fill::Uniform(-2.0, 2.0));
    let within = |bound| Check::Within(Tolerance::EXACT.plus(bound));
    let stored = |bound| Check::Within(Tolerance::EXACT.plus(bound).then_round_to(dtype));
    let rows = batch * hidden;
    let n = dtype.bytes();
    Case {
        label: format!("cell {batch}x{steps}x{hidden}"),
        dtype,
        inputs: vec![
            input("gates", [batch, steps, 4 * hidden].into()),
            input("recurrent", [batch, 4 * hidden].into()),
            input("cell", [batch, hidden].into()).f32(),
        ],
        outputs: vec![("y", stored(HIDDEN)), ("hidden", stored(HIDDEN)), ("cell", within(CELL))],
        run: Box::new(move |i| {
            let device = i[0].device();
            let mut y = Tensor::zeros(&device, i[0].dtype(), [batch, steps, hidden])?;
            let mut state = State { hidden: Tensor::empty(&device, i[0].dtype(), [batch, hidden])?, cell: i[2].copy()? };
            if rows > 0 {
                step(&mut y, &mut state, &i[0], &i[1], steps - 1)?;
            }
            Ok(vec![y, state.hidden, state.cell])
        }),
        cost: Cost { bytes: rows * (10 * n + 8), flops: 30 * rows },
        bench,
    }
}

/// A whole sequence, its weights such that it neither forgets all nor explodes.
fn sequence(batch: usize, steps: usize, hidden: usize, dtype: DType, bench: bool) -> Case {
    let (rows, n) = (batch * hidden, dtype.bytes());
    let product = 4 * hidden * hidden * n + 5 * rows * n;
    // A hidden value is stored once a step; what a step errs by, the next has in its sums of H products and in its cell.
    let each = hidden + 64;
    let tolerance = Tolerance::accumulate(each * steps).via(dtype, 2 * steps).plus(steps as f64 * HIDDEN).then_round_to(dtype);
    Case {
        label: format!("sequence {batch}x{steps}x{hidden}"),
        dtype,
        inputs: vec![
            Input::normal("gates", [batch, steps, 4 * hidden]),
            Input::new("weight", [4 * hidden, hidden], Fill::Normal((hidden as f64).powf(-0.5) / 2.0)),
        ],
        outputs: vec![("y", Check::Within(tolerance))],
        run: Box::new(|i| Ok(vec![forward(&i[0], i.once(|i| Weight::new(&i[1]))?)?])),
        cost: Cost { bytes: steps * (product + rows * (10 * n + 8)), flops: steps * (8 * hidden * rows + 30 * rows) },
        bench,
    }
}

/// Inputs within 2, and what is passed back within 2 at each of its ways, so that `dh` is within 4 and `dc` within 6. A tangent's slope
/// errs by 12 roundoffs, a sigmoid's by 6.
const DCELL: f64 = (4.0 + 4.0 * 4.0 + 4.0 * 12.0 + 3.0 * 4.0 + 6.0) * ROUNDOFF;
/// Of the gate whose bound is the widest, `g`.
const DGATE: f64 = DCELL + (6.0 * 4.0 + 6.0 * 12.0 + 3.0 * 6.0) * ROUNDOFF;
/// Of the cell that is passed on: times a sigmoid.
const PASSED: f64 = DCELL + (6.0 * 4.0 + 6.0) * ROUNDOFF;

/// The last step by itself.
fn cell_backward(batch: usize, steps: usize, hidden: usize, dtype: DType, bench: bool) -> Case {
    let input = |name, shape: Shape| Input::new(name, shape, Fill::Uniform(-2.0, 2.0));
    let stored = |bound| Check::Within(Tolerance::EXACT.plus(bound).then_round_to(dtype));
    let (rows, n) = (batch * hidden, dtype.bytes());
    Case {
        label: format!("cell backward {batch}x{steps}x{hidden}"),
        dtype,
        inputs: vec![
            input("dy", [batch, steps, hidden].into()),
            input("pulled", [batch, hidden].into()),
            input("sums", [batch, steps, 4 * hidden].into()),
            input("dcell", [batch, hidden].into()).f32(),
            input("cells", [batch, steps, hidden].into()).f32(),
        ],
        outputs: vec![("dgates", stored(DGATE)), ("gates", stored(DGATE)), ("dcell", Check::Within(Tolerance::EXACT.plus(PASSED)))],
        run: Box::new(move |i| {
            let device = i[0].device();
            let mut dgates = Tensor::zeros(&device, i[0].dtype(), [batch, steps, 4 * hidden])?;
            let gates = Tensor::empty(&device, i[0].dtype(), [batch, 4 * hidden])?;
            let mut pull = Pull { hidden: i[1].copy()?, cell: i[3].copy()?, gates };
            if rows > 0 {
                step_backward(&mut dgates, &mut pull, &i[0], &i[2], &i[4], steps - 1)?;
            }
            Ok(vec![dgates, pull.gates, pull.cell])
        }),
        cost: Cost { bytes: rows * (14 * n + 4 * if steps > 1 { 4 } else { 3 }), flops: 60 * rows },
        bench,
    }
}

/// From sums within 2, cells stay within 8: 51 roundoffs a step, of which the next keeps 0.88.
fn all_cells(batch: usize, steps: usize, hidden: usize, dtype: DType, bench: bool) -> Case {
    let rows = batch * steps * hidden;
    Case {
        label: format!("cells {batch}x{steps}x{hidden}"),
        dtype,
        inputs: vec![Input::new("sums", [batch, steps, 4 * hidden], Fill::Uniform(-2.0, 2.0))],
        outputs: vec![("cells", Check::Within(Tolerance::EXACT.plus(51.0 * ROUNDOFF * (steps as f64).min(8.4))))],
        run: Box::new(move |i| match rows {
            0 => Ok(vec![Tensor::zeros(&i[0].device(), i[0].dtype(), [batch, steps, hidden])?]),
            _ => Ok(vec![cells(&i[0], hidden)?]),
        }),
        cost: Cost { bytes: rows * (3 * dtype.bytes() + 4), flops: 25 * rows },
        bench,
    }
}

/// Both gradients of a whole sequence: as many roundings again as going forward, on values that those of the way forward err by.
fn sequence_backward(batch: usize, steps: usize, hidden: usize, dtype: DType) -> Case {
    let each = hidden + 64;
    let tolerance = Tolerance::accumulate(2 * each * steps).via(dtype, 6 * steps).plus(steps as f64 * (HIDDEN + DGATE));
    let forward = sequence(batch, steps, hidden, dtype, false);
    Case {
        label: format!("sequence backward {batch}x{steps}x{hidden}"),
        inputs: forward.inputs.into_iter().chain([Input::normal("dy", [batch, steps, hidden])]).collect(),
        outputs: vec![
            ("dgates", Check::Within(tolerance.then_round_to(dtype))),
            ("dweight", Check::Within(tolerance.via(dtype, batch * steps).then_round_to(dtype))),
        ],
        run: Box::new(|i| {
            let y = super::forward(&i[0], i.once(|i| Weight::new(&i[1]))?)?;
            let (dgates, dweight) = backward(&i[2], &i[0], &i[1], &y)?;
            Ok(vec![dgates, dweight])
        }),
        cost: Cost { bytes: 0, flops: 3 * forward.cost.flops },
        ..forward
    }
}
