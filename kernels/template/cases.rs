use crate::case::{Case, Check, Cost, Input};
use crate::tolerance::Tolerance;
use crate::{DType, Shape};

pub fn cases() -> Vec<Case> {
    // Nothing, one, odd sizes, one more than a block's share, and one large enough to count its traffic.
    let shapes: [Shape; 6] = [[0].into(), [1].into(), [31, 33].into(), [127].into(), [4097].into(), [500, 72].into()];
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        cases.extend(shapes.map(|shape| forward(shape, dtype, false)));
        cases.push(forward([8, 48_000, 64].into(), dtype, true));
    }
    cases
}

/// Sum and quotient round once each.
fn forward(shape: Shape, dtype: DType, bench: bool) -> Case {
    let n = shape.elements();
    Case {
        label: format!("forward {shape:?}"),
        dtype,
        inputs: vec![Input::normal("x", shape)],
        outputs: vec![("y", Check::Within(Tolerance::roundings(2).then_round_to(dtype)))],
        run: Box::new(|i| Ok(vec![super::forward(&i[0])?])),
        cost: Cost { bytes: 2 * n * dtype.bytes(), flops: 2 * n },
        bench,
    }
}
