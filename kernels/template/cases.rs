use crate::case::{Case, Check, Cost, Input};
use crate::tolerance::Tolerance;
use crate::{DType, Shape};

/// A number that f32 has, so that no tolerance need allow for its rounding.
const LIMIT: f64 = 3.0;

pub fn cases() -> Vec<Case> {
    // Nothing, one, odd sizes, one more than a block's share, and one large enough to count its traffic.
    let shapes: [Shape; 6] = [[0].into(), [1].into(), [31, 33].into(), [127].into(), [4097].into(), [500, 72].into()];
    let large = [8, 48_000, 64].into();
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        cases.extend(shapes.iter().flat_map(|&shape| [forward(shape, dtype, false), backward(shape, dtype, false)]));
        cases.extend([forward(large, dtype, true), backward(large, dtype, true)]);
    }
    cases
}

/// Both quotients and the sum round once each.
fn forward(shape: Shape, dtype: DType, bench: bool) -> Case {
    let n = shape.elements();
    Case {
        label: format!("forward {shape:?}"),
        dtype,
        inputs: vec![Input::normal("x", shape)],
        outputs: vec![("y", Check::Within(Tolerance::roundings(3).then_round_to(dtype)))],
        run: Box::new(|i| Ok(vec![super::forward(&i[0], LIMIT)?])),
        cost: Cost { bytes: 2 * n * dtype.bytes(), flops: 3 * n },
        bench,
    }
}

/// Quotient and sum count twice, as they are squared; the square and the other quotient round once each.
fn backward(shape: Shape, dtype: DType, bench: bool) -> Case {
    let n = shape.elements();
    Case {
        label: format!("backward {shape:?}"),
        dtype,
        inputs: vec![Input::normal("dy", shape), Input::normal("x", shape)],
        outputs: vec![("dx", Check::Within(Tolerance::roundings(6).then_round_to(dtype)))],
        run: Box::new(|i| Ok(vec![super::backward(&i[0], &i[1], LIMIT)?])),
        cost: Cost { bytes: 3 * n * dtype.bytes(), flops: 4 * n },
        bench,
    }
}
