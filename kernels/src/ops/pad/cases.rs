use super::reflect;
use crate::DType;
use crate::case::{Case, Check, Cost, Input};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (shape, left, right) in [
            ([1, 1, 1], 0, 0),
            ([2, 1, 3], 2, 2),
            ([2, 31, 33], 6, 1),
            ([1, 127, 8], 3, 3),
            ([3, 5, 16], 6, 0),
            ([2, 33, 24], 0, 40),
            ([1, 500, 7], -3, 5),
            ([2, 65, 32], -31, -33),
            ([0, 4, 8], 1, 1),
            ([1, 600, 40], 6, 7),
        ] {
            cases.push(case(shape, left, right, dtype, false));
        }
        cases.push(case([8, 24_000, 64], 6, 0, dtype, true));
    }
    cases
}

fn case(shape: [usize; 3], left: isize, right: isize, dtype: DType, bench: bool) -> Case {
    let [batch, t, channels] = shape;
    let (out, read) = (t as isize + left + right, t as isize + left.min(0) + right.min(0));
    Case {
        label: format!("{batch}x{t}x{channels} {left:+} {right:+}"),
        dtype,
        inputs: vec![Input::normal("x", shape)],
        outputs: vec![("y", Check::Exact)],
        run: Box::new(move |i| Ok(vec![reflect(&i[0], left, right)?])),
        cost: Cost { bytes: batch * (out + read) as usize * channels * dtype.bytes(), flops: 0 },
        bench,
    }
}
