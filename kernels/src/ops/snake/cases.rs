use super::SINE_ERROR;
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::tolerance::Tolerance;
use crate::{DType, Shape};

/// Phases stay below about 12, so one unit in the last place of `e^log_alpha` moves them by less than this.
const PHASE_ERROR: f64 = 12.0 * 1.2e-7;

pub fn cases() -> Vec<Case> {
    let shapes: [Shape; 8] = [
        [1, 1].into(),
        [31, 33].into(),
        [2, 127, 16].into(),
        [500, 1].into(),
        [1, 500].into(),
        [3, 33, 96].into(),
        [2, 1032].into(),
        [0, 5].into(),
    ];
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for shape in shapes {
            cases.extend([
                forward(shape, dtype, false),
                backward(shape, dtype, false),
                beta_forward(shape, dtype),
                beta_backward(shape, dtype),
            ]);
        }
        cases.push(forward([8, 48_000, 96].into(), dtype, true));
        cases.push(backward([8, 48_000, 96].into(), dtype, true));
    }
    cases
}

/// Sine, cosine, their product and its sum with one are rounded before the store.
fn elementwise(dtype: DType) -> Tolerance {
    rounded(4, Tolerance::accumulate(1)).with_approximation(SINE_ERROR).then_round_to(dtype)
}

/// A sum over all rows. A term is the difference of two products: three roundings each for sine and cosine, twice, six
/// products, the inverse, twice, the difference. They are of the result's magnitude but not proportional to it, since the
/// difference may vanish where the products do not.
fn row_sum(shape: Shape) -> Tolerance {
    rounded(21, Tolerance::accumulate(shape.rows())).with_approximation(SINE_ERROR).then_round_to(DType::F32)
}

fn rounded(times: usize, t: Tolerance) -> Tolerance {
    (0..times).fold(t, |t, _| t.via(DType::F32))
}

/// Normal; but a single channel's sums have no other channel to measure their error by, so there nothing may cancel.
fn input(name: &'static str, shape: Shape) -> Input {
    Input::new(name, shape, if shape.last_dim() == 1 { Fill::Uniform(0.2, 0.6) } else { Fill::Normal(1.0) })
}

fn alpha(shape: Shape) -> Input {
    let high = if shape.last_dim() == 1 { 1.0 } else { 3.0 };
    Input::new("alpha", [shape.last_dim()], Fill::Uniform(0.3, high)).f32()
}

fn logarithms(shape: Shape) -> [Input; 2] {
    ["log_alpha", "log_beta"].map(|name| Input::new(name, [shape.last_dim()], Fill::Uniform(-1.0, 1.0)).f32())
}

fn forward(shape: Shape, dtype: DType, bench: bool) -> Case {
    Case {
        label: format!("forward {shape:?}"),
        dtype,
        inputs: vec![input("x", shape), alpha(shape)],
        outputs: vec![("y", Check::Within(elementwise(dtype)))],
        run: Box::new(|i| Ok(vec![super::forward(&i[0], &i[1])?])),
        cost: Cost { bytes: 2 * shape.elements() * dtype.bytes(), flops: 20 * shape.elements() },
        bench,
    }
}

fn backward(shape: Shape, dtype: DType, bench: bool) -> Case {
    Case {
        label: format!("backward {shape:?}"),
        dtype,
        inputs: vec![input("dy", shape), input("x", shape), alpha(shape)],
        outputs: vec![("dx", Check::Within(elementwise(dtype))), ("dalpha", Check::Within(row_sum(shape)))],
        run: Box::new(|i| super::backward(&i[0], &i[1], &i[2]).map(|(dx, dalpha)| vec![dx, dalpha])),
        cost: Cost { bytes: 3 * shape.elements() * dtype.bytes(), flops: 34 * shape.elements() },
        bench,
    }
}

fn beta_forward(shape: Shape, dtype: DType) -> Case {
    let [log_alpha, log_beta] = logarithms(shape);
    Case {
        label: format!("beta forward {shape:?}"),
        inputs: vec![input("x", shape), log_alpha, log_beta],
        outputs: vec![("y", Check::Within(elementwise(dtype).with_approximation(PHASE_ERROR)))],
        run: Box::new(|i| Ok(vec![super::beta_forward(&i[0], &i[1], &i[2])?])),
        ..forward(shape, dtype, false)
    }
}

fn beta_backward(shape: Shape, dtype: DType) -> Case {
    let [log_alpha, log_beta] = logarithms(shape);
    let sum = || Check::Within(row_sum(shape).with_approximation(PHASE_ERROR));
    let dx = Check::Within(elementwise(dtype).with_approximation(PHASE_ERROR));
    Case {
        label: format!("beta backward {shape:?}"),
        inputs: vec![input("dy", shape), input("x", shape), log_alpha, log_beta],
        outputs: vec![("dx", dx), ("dlog_alpha", sum()), ("dlog_beta", sum())],
        run: Box::new(|i| super::beta_backward(&i[0], &i[1], &i[2], &i[3]).map(|(dx, da, db)| vec![dx, da, db])),
        ..backward(shape, dtype, false)
    }
}
