use super::SINE_ERROR;
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::ops::launch::partial_rows;
use crate::tolerance::{ROUNDOFF, Tolerance};
use crate::{DType, Shape};

/// Bounds follow from the ranges of the inputs: `|x| <= 3`, `|dy| <= 1`, both logarithms within this.
const LOG: f64 = 0.3;

pub fn cases() -> Vec<Case> {
    let shapes: [Shape; 9] = [
        [1, 1].into(),
        [31, 33].into(),
        [2, 127, 16].into(),
        [500, 1].into(),
        [1, 500].into(),
        [3, 33, 96].into(),
        [3, 110, 96].into(),
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

/// An exponential errs by one unit in its last place, two roundoffs; a phase `e^log_alpha x` by that of up to 3 e^LOG.
fn phase_error() -> f64 {
    3.0 * LOG.exp() * 2.0 * ROUNDOFF
}

/// `x + s^2 / b`: twice the sine's error, as |s| <= 1; three roundings of the square and the inverse, two of an exponential.
fn value(dtype: DType, largest_inverse: f64, phase_error: f64) -> Check {
    let bound = (2.0 * SINE_ERROR + 5.0 * ROUNDOFF + phase_error) * largest_inverse;
    Check::Within(Tolerance::roundings(1).plus(bound).then_round_to(dtype))
}

/// `dy (1 + 2 s c a / b)`: the errors of sine and cosine, weighted by each other; five roundings of factors and sum, four of
/// the exponentials.
fn slope(dtype: DType, largest_ratio: f64, phase_error: f64) -> Check {
    let bound = (8f64.sqrt() * SINE_ERROR + 9.0 * ROUNDOFF + 2.0 * phase_error) * largest_ratio;
    Check::Within(Tolerance::roundings(1).plus(bound).then_round_to(dtype))
}

/// A sum over all rows, each of which errs by at most `bound`, of either sign.
fn row_sum(shape: Shape, bound: f64) -> Check {
    let rows = shape.rows();
    Check::Within(Tolerance::accumulate(rows).plus((rows as f64).sqrt() * bound).then_round_to(DType::F32))
}

/// Rows of `dalpha`, `dy (x 2 s c / b - (s / b)^2)`: sine and cosine weighted by each other, and five roundings; twice the
/// sine's error and three roundings.
fn alpha_row(shape: Shape) -> f64 {
    let inverse = 1.0 / alphas(shape).0;
    let (dy, x) = if shape.last_dim() == 1 { (0.6, 0.6) } else { (1.0, 3.0) };
    dy * (x * inverse * (8f64.sqrt() * SINE_ERROR + 5.0 * ROUNDOFF) + 2.0 * inverse * inverse * (SINE_ERROR + 3.0 * ROUNDOFF))
}

/// Rows of `dlog_alpha`, `dy x 2 s c a / b`, as above with four roundings of the exponentials, two products and the phase's error;
/// those of `dlog_beta`, `dy s^2 / b`, are smaller and err less.
fn logarithm_row() -> f64 {
    3.0 * (2.0 * LOG).exp() * (8f64.sqrt() * SINE_ERROR + 11.0 * ROUNDOFF + 2.0 * phase_error())
}

/// Of both signs; but a single channel's sums have no other channel to measure their error by, so there nothing may cancel.
fn input(name: &'static str, shape: Shape, limit: f64) -> Input {
    let (low, high) = if shape.last_dim() == 1 { (0.2, 0.6) } else { (-limit, limit) };
    Input::new(name, shape, Fill::Uniform(low, high))
}

fn alpha(shape: Shape) -> Input {
    let (low, high) = alphas(shape);
    Input::new("alpha", [shape.last_dim()], Fill::Uniform(low, high)).f32()
}

/// Phases of up to 9, or terms of one sign.
fn alphas(shape: Shape) -> (f64, f64) {
    if shape.last_dim() == 1 { (0.3, 1.0) } else { (1.5, 3.0) }
}

fn logarithms(shape: Shape) -> [Input; 2] {
    ["log_alpha", "log_beta"].map(|name| Input::new(name, [shape.last_dim()], Fill::Uniform(-LOG, LOG)).f32())
}

fn forward_bytes(shape: Shape, dtype: DType, parameters: usize) -> usize {
    2 * shape.elements() * dtype.bytes() + 4 * shape.last_dim() * parameters
}

/// Two sums a block of rows and channel are written and read; logarithms are read once more for their gradients.
fn backward_bytes(shape: Shape, dtype: DType, parameters: usize) -> usize {
    let channels = shape.last_dim();
    let sums = 4 * partial_rows(shape.rows(), channels, dtype);
    let vectors = if parameters == 1 { 2 } else { 6 };
    3 * shape.elements() * dtype.bytes() + 4 * channels * (sums + vectors)
}

fn forward(shape: Shape, dtype: DType, bench: bool) -> Case {
    Case {
        label: format!("forward {shape:?}"),
        dtype,
        inputs: vec![input("x", shape, 3.0), alpha(shape)],
        outputs: vec![("y", value(dtype, 1.0 / alphas(shape).0, 0.0))],
        run: Box::new(|i| Ok(vec![super::forward(&i[0], &i[1])?])),
        cost: Cost { bytes: forward_bytes(shape, dtype, 1), flops: 20 * shape.elements() },
        bench,
    }
}

fn backward(shape: Shape, dtype: DType, bench: bool) -> Case {
    Case {
        label: format!("backward {shape:?}"),
        dtype,
        inputs: vec![input("dy", shape, 1.0), input("x", shape, 3.0), alpha(shape)],
        outputs: vec![("dx", slope(dtype, 1.0, 0.0)), ("dalpha", row_sum(shape, alpha_row(shape)))],
        run: Box::new(|i| super::backward(&i[0], &i[1], &i[2]).map(|(dx, dalpha)| vec![dx, dalpha])),
        cost: Cost { bytes: backward_bytes(shape, dtype, 1), flops: 34 * shape.elements() },
        bench,
    }
}

fn beta_forward(shape: Shape, dtype: DType) -> Case {
    let [log_alpha, log_beta] = logarithms(shape);
    Case {
        label: format!("beta forward {shape:?}"),
        inputs: vec![input("x", shape, 3.0), log_alpha, log_beta],
        outputs: vec![("y", value(dtype, LOG.exp(), phase_error()))],
        run: Box::new(|i| Ok(vec![super::beta_forward(&i[0], &i[1], &i[2])?])),
        cost: Cost { bytes: forward_bytes(shape, dtype, 2), flops: 20 * shape.elements() },
        ..forward(shape, dtype, false)
    }
}

fn beta_backward(shape: Shape, dtype: DType) -> Case {
    let [log_alpha, log_beta] = logarithms(shape);
    let sum = || row_sum(shape, logarithm_row());
    Case {
        label: format!("beta backward {shape:?}"),
        inputs: vec![input("dy", shape, 1.0), input("x", shape, 3.0), log_alpha, log_beta],
        outputs: vec![("dx", slope(dtype, (2.0 * LOG).exp(), phase_error())), ("dlog_alpha", sum()), ("dlog_beta", sum())],
        run: Box::new(|i| super::beta_backward(&i[0], &i[1], &i[2], &i[3]).map(|(dx, da, db)| vec![dx, da, db])),
        cost: Cost { bytes: backward_bytes(shape, dtype, 2), flops: 34 * shape.elements() },
        ..backward(shape, dtype, false)
    }
}
