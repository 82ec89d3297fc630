use crate::case::{Case, Check, Cost, Fill, Input};
use crate::ops::launch::partial_rows;
use crate::tolerance::Tolerance;
use crate::{DType, Shape};

pub fn cases() -> Vec<Case> {
    let shapes: [Shape; 10] = [
        [0, 3].into(),
        [1, 1].into(),
        [31, 33].into(),
        [2, 127, 17].into(),
        [500, 1].into(),
        [1, 500].into(),
        [700, 16].into(),
        [5, 2056].into(),
        [9000, 1].into(),
        [2100, 16].into(),
    ];
    // More partial sums than a block has threads.
    let mut cases = vec![totals([1100, 1000].into(), DType::F32, false)];
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for shape in shapes {
            cases.extend([totals(shape, dtype, false), sum_rows(shape, dtype, false)]);
        }
        cases.extend([totals([8, 48_000, 64].into(), dtype, true), sum_rows([8, 48_000, 64].into(), dtype, true)]);
    }
    cases
}

/// Of mean 0.5: the error of a sum is judged relative to the sum, which must not vanish by chance.
fn input(shape: Shape) -> Vec<Input> {
    vec![Input::new("x", shape, Fill::Uniform(-0.5, 1.5))]
}

fn totals(shape: Shape, dtype: DType, bench: bool) -> Case {
    let n = shape.elements();
    Case {
        label: format!("sum, mean, sum_squares {shape:?}"),
        dtype,
        inputs: input(shape),
        outputs: vec![
            ("sum", Check::Within(Tolerance::accumulate(n))),
            ("mean", Check::Within(Tolerance::accumulate(n).then_rounded(2))),
            ("sum_squares", Check::Within(Tolerance::positive_sum(n).then_rounded(1))),
        ],
        run: Box::new(|i| Ok(vec![super::sum(&i[0])?, super::mean(&i[0])?, super::sum_squares(&i[0])?])),
        cost: Cost { bytes: 3 * n * dtype.bytes(), flops: 4 * n },
        bench,
    }
}

fn sum_rows(shape: Shape, dtype: DType, bench: bool) -> Case {
    let (n, channels) = (shape.elements(), shape.last_dim());
    // The sums of blocks of rows are written, and read if there are several.
    let sums = match partial_rows(shape.rows(), channels, dtype) {
        0 | 1 => 1,
        blocks => 2 * blocks + 1,
    };
    Case {
        label: format!("sum_rows {shape:?}"),
        dtype,
        inputs: input(shape),
        outputs: vec![("y", Check::Within(Tolerance::accumulate(shape.rows())))],
        run: Box::new(|i| Ok(vec![super::sum_rows(&i[0])?])),
        cost: Cost { bytes: n * dtype.bytes() + 4 * sums * channels, flops: n },
        bench,
    }
}
