use super::{backward, forward};
use crate::DType;
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::tolerance::Tolerance;

const LEVEL: f64 = 0.8;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (shape, bench) in [
        ([1, 5], false),
        ([3, 31], false),
        ([2, 500], false),
        ([1, 1025], false),
        ([1, 4100], false),
        ([0, 7], false),
        ([2, 16_000], false),
        ([16, 24_000], true),
    ] {
        let [rows, width] = shape;
        let n = rows * width;
        // Where one thread alone has a second sample, that is the peak.
        let x = match width {
            1025 => Input::new("x", shape, Fill::Values((0..width).map(|i| (i / 1024) as f64 + (i % 7) as f64 / 8.0).collect())),
            _ => Input::normal("x", shape),
        };
        // A mean of errors, a difference, a sum, a quotient, a product.
        let tolerance = Tolerance::accumulate(4).then_rounded(5);
        cases.push(Case {
            label: format!("forward {rows}x{width}"),
            dtype: DType::F32,
            inputs: vec![x.clone()],
            outputs: vec![("y", Check::Within(tolerance))],
            run: Box::new(|i| Ok(vec![forward(&i[0], LEVEL)?])),
            cost: Cost { bytes: 8 * n, flops: 5 * n },
            bench,
        });
        // Beside which the peak has a sum over the row.
        cases.push(Case {
            label: format!("backward {rows}x{width}"),
            dtype: DType::F32,
            inputs: vec![Input::normal("dy", shape), x],
            outputs: vec![("dx", Check::Within(tolerance.via(DType::F32, width).then_rounded(6)))],
            run: Box::new(|i| Ok(vec![backward(&i[0], &i[1], LEVEL)?])),
            cost: Cost { bytes: 12 * n, flops: 9 * n },
            bench,
        });
    }
    cases
}
