use super::Activation;
use crate::case::{Case, Check, Cost, Fill, Input, Inputs};
use crate::tolerance::{ROUNDOFF, Tolerance};
use crate::{DType, Shape};

pub fn cases() -> Vec<Case> {
    let shapes: [Shape; 6] = [[0].into(), [1].into(), [31, 33].into(), [127].into(), [500, 8].into(), [2, 33, 31].into()];
    let medium = [33, 1001].into();
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for kind in Activation::ALL {
            cases.extend(shapes.iter().flat_map(|&shape| [forward(kind, shape, dtype, false), backward(kind, shape, dtype, false)]));
            cases.extend([[1, 2], [3, 66], [5, 1008], [0, 8]].map(|[rows, wide]| gate(kind, rows, wide, dtype, false)));
        }
        cases.extend([[0].into(), [127].into(), [33, 1001].into()].into_iter().flat_map(|shape| leaky_relu(shape, dtype)));
        let large = [8, 48_000, 64].into();
        cases.extend([forward(Activation::Elu, medium, dtype, false), backward(Activation::Elu, medium, dtype, false)]);
        cases.extend([forward(Activation::Elu, large, dtype, true), backward(Activation::Elu, large, dtype, true)]);
        cases.push(gate(Activation::Relu, 16, 2 * 2048, dtype, false));
        cases.push(gate(Activation::Gelu, 64, 2 * 11_264, dtype, true));
    }
    cases
}

/// Roundoffs of `y` relative to itself, for |x| <= 3. Units in the last place are two roundoffs: CUDA's guide gives `expm1f` 1,
/// `expf` and `tanhf` 2, `erfcf` 4. An error of an argument `z` counts `|z f'(z) / f(z)|` times.
fn value(kind: Activation) -> usize {
    match kind {
        Activation::Identity | Activation::Relu => 0,
        Activation::Elu => 2,
        Activation::Silu => 4 + 3,             // exponential; sum, division, product
        Activation::Gelu => 2 * 10 + 8 + 1,    // argument at z = 3 / sqrt 2; erfc; product
        Activation::GeluTanh => 5 * 7 + 4 + 3, // cubic argument of up to 6.7; as silu
        Activation::Tanh => 4,
        Activation::Sigmoid => 4 + 2,      // exponential; sum, division
        Activation::LeakyRelu => 2,        // the slope itself; product
        Activation::Mish => 4 + 5 + 1 + 3, // n of the exponential, the sum and their product; sum, division, product
        Activation::Softsign => 2,
    }
}

/// Roundoffs of `dx` relative to itself, and absolute ones, for |dy| <= 1, where it is a sum that may vanish.
fn slope(kind: Activation) -> (usize, usize) {
    match kind {
        Activation::Identity | Activation::Relu => (1, 0),
        Activation::Elu => (4 + 1, 0),
        Activation::Silu => (1, 10),     // 6 of a sigmoid, 10 of x s (1 - s) <= 0.23, 1 of the sum
        Activation::Gelu => (1, 15),     // 8 of erfc and 2 * 0.24 of its argument, 17 of x density <= 0.25, 1 of the sum
        Activation::GeluTanh => (1, 16), // 5 + 5 * 0.23 of a sigmoid of a cubic, 23 of its slope <= 0.36, 1 of the sum
        Activation::Tanh | Activation::Sigmoid => (4 + 5, 0),
        Activation::LeakyRelu => (2, 0),
        Activation::Mish => (1, 20), // 12 of its value <= 1, 28 of x times its slope <= 0.27, 1 of the sum
        Activation::Softsign => (4 + 1, 0),
    }
}

/// A lone element lies where no derivative vanishes: there is no other to measure its error by.
fn x(shape: Shape) -> Input {
    Input::new("x", shape, if shape.elements() == 1 { Fill::Values(vec![0.7]) } else { Fill::Uniform(-3.0, 3.0) })
}

fn forward(kind: Activation, shape: Shape, dtype: DType, bench: bool) -> Case {
    Case {
        label: format!("{kind:?} forward {shape:?}"),
        dtype,
        inputs: vec![x(shape)],
        outputs: vec![("y", Check::Within(Tolerance::roundings(value(kind)).then_round_to(dtype)))],
        run: Box::new(move |i| Ok(vec![super::forward(kind, &i[0])?])),
        cost: Cost { bytes: 2 * shape.elements() * dtype.bytes(), flops: 20 * shape.elements() },
        bench,
    }
}

/// The slope that a kernel has may be a roundoff from the oracle's, beside which the product rounds.
fn leaky_relu(shape: Shape, dtype: DType) -> [Case; 2] {
    const SLOPE: f64 = 0.1;
    let (forward, backward) = (forward(Activation::LeakyRelu, shape, dtype, false), backward(Activation::LeakyRelu, shape, dtype, false));
    let (run, label) = (Box::new(|i: &Inputs| Ok(vec![super::leaky_relu(&i[0], SLOPE)?])), format!("leaky forward {shape:?}"));
    let forward = Case { run, label, ..forward };
    let run = Box::new(|i: &Inputs| Ok(vec![super::leaky_relu_backward(&i[0], &i[1], SLOPE)?]));
    [forward, Case { run, label: format!("leaky backward {shape:?}"), ..backward }]
}

fn gate(kind: Activation, rows: usize, wide: usize, dtype: DType, bench: bool) -> Case {
    let outputs = rows * wide / 2;
    Case {
        label: format!("{kind:?} gate {rows}x{wide}"),
        inputs: vec![x([rows, wide].into())],
        outputs: vec![("y", Check::Within(Tolerance::roundings(value(kind) + 1).then_round_to(dtype)))],
        run: Box::new(move |i| Ok(vec![super::gate(kind, &i[0])?])),
        cost: Cost { bytes: 3 * outputs * dtype.bytes(), flops: 21 * outputs },
        ..forward(kind, [rows, wide].into(), dtype, bench)
    }
}

fn backward(kind: Activation, shape: Shape, dtype: DType, bench: bool) -> Case {
    let (relative, absolute) = slope(kind);
    let tolerance = Tolerance::roundings(relative).plus(absolute as f64 * ROUNDOFF).then_round_to(dtype);
    Case {
        label: format!("{kind:?} backward {shape:?}"),
        dtype,
        inputs: vec![Input::new("dy", shape, Fill::Uniform(-1.0, 1.0)), x(shape)],
        outputs: vec![("dx", Check::Within(tolerance))],
        run: Box::new(move |i| Ok(vec![super::backward(kind, &i[0], &i[1])?])),
        cost: Cost { bytes: 3 * shape.elements() * dtype.bytes(), flops: 30 * shape.elements() },
        bench,
    }
}
