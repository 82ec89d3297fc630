use super::{concat, reflect, reflect_backward};
use crate::DType;
use crate::case::{Case, Check, Cost, Input};
use crate::tolerance::Tolerance;

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
            cases.extend([case(shape, left, right, dtype, false), gradient(shape, left, right, dtype)]);
        }
        cases.push(case([8, 24_000, 64], 6, 0, dtype, true));
        for (batch, rows, channels) in [(1, [1, 1, 1], 1), (2, [31, 7, 2], 33), (3, [0, 5, 9], 8), (5, [127, 33, 64], 32)] {
            cases.push(joined(batch, rows, channels, dtype));
        }
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

fn gradient(shape: [usize; 3], left: isize, right: isize, dtype: DType) -> Case {
    let [batch, t, channels] = shape;
    let padded = (t as isize + left + right) as usize;
    Case {
        label: format!("backward {batch}x{t}x{channels} {left:+} {right:+}"),
        inputs: vec![Input::normal("dy", [batch, padded, channels])],
        // Three rows at most.
        outputs: vec![("dx", Check::Within(Tolerance::accumulate(2).then_round_to(dtype)))],
        run: Box::new(move |i| Ok(vec![reflect_backward(&i[0], left, right, t)?])),
        cost: Cost { bytes: batch * (t + padded) * channels * dtype.bytes(), flops: batch * padded * channels },
        ..case(shape, left, right, dtype, false)
    }
}

fn joined(batch: usize, rows: [usize; 3], channels: usize, dtype: DType) -> Case {
    let n = batch * rows.iter().sum::<usize>() * channels;
    Case {
        label: format!("concat {batch}x{rows:?}x{channels}"),
        dtype,
        inputs: rows.map(|t| Input::normal("part", [batch, t, channels])).to_vec(),
        outputs: vec![("y", Check::Exact)],
        run: Box::new(|i| Ok(vec![concat(&i.iter().collect::<Vec<_>>())?])),
        cost: Cost { bytes: 2 * n * dtype.bytes(), flops: 0 },
        bench: false,
    }
}
