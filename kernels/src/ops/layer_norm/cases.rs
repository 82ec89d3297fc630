use super::Norm;
use super::cuda::{is_long, partial_rows};
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::tolerance::{ROUNDOFF, Tolerance};
use crate::{DType, Shape};

const EPSILON: f64 = 1e-5;
/// Bounds of a bias.
const BIAS: f64 = 0.5;
/// Bounds of `x`, and of a residual.
const X: (f64, f64) = (-1.0, 3.0);

pub fn of(norm: &'static Norm) -> Vec<Case> {
    let shapes: [Shape; 9] = [
        [0, 5].into(),
        [5, 1].into(),
        [31, 33].into(),
        [2, 127, 16].into(),
        [3, 500].into(),
        [33, 512].into(),
        [5, 1032].into(), // several warps, the last without work
        [1, 4096].into(),
        [8300, 32].into(), // several rows a thread
    ];
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for shape in shapes {
            cases.push(forward(norm, shape, dtype, false));
            // The gradient of a lone x that is divided by its size is all cancellation.
            if norm.centred || shape.last_dim() > 1 {
                cases.push(backward(norm, shape, dtype, false));
            }
        }
        // Longer than registers hold, in vectors and without.
        cases.extend([[2, 8200], [1, 8193]].map(|shape| forward(norm, shape.into(), dtype, false)));
        for shape in [[31, 33], [9, 512], [2, 8200]] {
            cases.push(add_forward(norm, shape.into(), dtype, false));
        }
        let large = [32_768, 1024].into();
        cases.extend([forward(norm, large, dtype, true), add_forward(norm, large, dtype, true), backward(norm, large, dtype, true)]);
    }
    cases
}

/// Mean 1 and deviation 1.15, so that a mean that is left out shows.
fn x(name: &'static str, shape: Shape) -> Input {
    Input::new(name, shape, Fill::Uniform(X.0, X.1))
}

fn weight(shape: Shape) -> Input {
    Input::new("weight", [shape.last_dim()], Fill::Uniform(0.5, 1.5)).f32()
}

fn inputs(norm: &Norm, shape: Shape) -> Vec<Input> {
    let bias = norm.centred.then(|| Input::new("bias", [shape.last_dim()], Fill::Uniform(-BIAS, BIAS)).f32());
    [Some(weight(shape)), bias].into_iter().flatten().collect()
}

/// Relative error of `xhat`: half that of a sum of squares, and the roundings of a difference, twice in the sum and once outside,
/// a square, two quotients, a root, the sum with epsilon and a product.
fn relative(channels: usize) -> f64 {
    ((channels as f64).sqrt() + 9.0) * ROUNDOFF
}

/// Absolute error of `xhat` from the mean, whose sum errs by `2 sqrt(n) 2^-24` of itself. A row's deviation is at least half of its
/// expectation from 16 channels on; with fewer there is no such bound, but the cases have none.
fn from_mean(norm: &Norm, channels: usize) -> f64 {
    if norm.centred && channels > 1 { 2.0 * (channels as f64).sqrt() * ROUNDOFF / (0.5 * 1.15) } else { 0.0 }
}

/// `weight xhat + bias`: what is relative to the product is relative to `y` and to the bias.
fn value(norm: &Norm, shape: Shape) -> Tolerance {
    let c = shape.last_dim();
    let relative = relative(c) + 2.0 * ROUNDOFF;
    let product = Tolerance::roundings((relative / ROUNDOFF).ceil() as usize);
    product.plus(1.5 * from_mean(norm, c) + if norm.centred { BIAS * relative } else { 0.0 }).then_rounded(1)
}

/// Read, written, and the parameters.
fn forward_bytes(norm: &Norm, shape: Shape, dtype: DType, tensors: usize) -> usize {
    let parameters = if norm.centred { 2 } else { 1 };
    let parameters = if shape.elements() == 0 { 0 } else { 4 * parameters * shape.last_dim() };
    tensors * shape.elements() * dtype.bytes() + parameters
}

fn forward(norm: &'static Norm, shape: Shape, dtype: DType, bench: bool) -> Case {
    Case {
        label: format!("forward {shape:?}"),
        dtype,
        inputs: [vec![x("x", shape)], inputs(norm, shape)].concat(),
        outputs: vec![("y", Check::Within(value(norm, shape).then_round_to(dtype)))],
        run: Box::new(|i| Ok(vec![norm.forward(&i[0], &i[1], i.get(2), EPSILON)?])),
        cost: Cost { bytes: forward_bytes(norm, shape, dtype, 2), flops: 8 * shape.elements() },
        bench,
    }
}

/// The sum is rounded before it is normalised: by at most that of the largest, over a deviation of at least half of 1.63. A long row
/// is read again as it was written.
fn add_forward(norm: &'static Norm, shape: Shape, dtype: DType, bench: bool) -> Case {
    let sum = 1.5 * dtype.epsilon() * 2.0 * X.1 / (0.5 * 1.63);
    Case {
        label: format!("add_forward {shape:?}"),
        inputs: [vec![x("x", shape), x("residual", shape)], inputs(norm, shape)].concat(),
        outputs: vec![
            ("sum", Check::Within(Tolerance::EXACT.then_round_to(dtype))),
            ("y", Check::Within(value(norm, shape).plus(sum).then_round_to(dtype))),
        ],
        run: Box::new(|i| norm.add_forward(&i[0], &i[1], &i[2], i.get(3), EPSILON).map(|(sum, y)| vec![sum, y])),
        cost: Cost {
            bytes: forward_bytes(norm, shape, dtype, if is_long(shape.last_dim(), dtype) { 5 } else { 4 }),
            flops: 9 * shape.elements(),
        },
        ..forward(norm, shape, dtype, bench)
    }
}

/// A term of `dx` has the error of `xhat` and of two sums over channels; a term of `dweight` that of `xhat`, the part from the mean
/// being as that of `1 + 4 C` roundings. Of one sign mostly: a lone sum of terms that cancel has no other to measure its error by.
fn backward(norm: &'static Norm, shape: Shape, dtype: DType, bench: bool) -> Case {
    let (rows, c) = (shape.rows(), shape.last_dim());
    let partial = match partial_rows(rows, c, dtype) {
        0 | 1 => 1,
        blocks => 2 * blocks + 1,
    };
    let parameters = if norm.centred { 2 } else { 1 };
    let sums = if shape.elements() == 0 { parameters } else { 1 + parameters * partial };
    let mut outputs = vec![
        ("dx", Check::Within(Tolerance::accumulate(7 * c + 12).then_round_to(dtype))),
        ("dweight", Check::Within(Tolerance::accumulate(rows + 5 * c + 12))),
    ];
    if norm.centred {
        outputs.push(("dbias", Check::Within(Tolerance::accumulate(rows))));
    }
    Case {
        label: format!("backward {shape:?}"),
        inputs: vec![Input::new("dy", shape, Fill::Uniform(-0.2, 1.0)), x("x", shape), weight(shape)],
        outputs,
        run: Box::new(|i| norm.backward(&i[0], &i[1], &i[2], EPSILON).map(|(dx, sums)| [vec![dx], sums].into_iter().flatten().collect())),
        cost: Cost { bytes: 3 * shape.elements() * dtype.bytes() + 4 * sums * c, flops: 20 * shape.elements() },
        ..forward(norm, shape, dtype, bench)
    }
}
