use super::{Transpose, forward, forward_in};
use crate::DType;
use crate::case::{Case, Check, Cost, Fill, Input, Inputs};
use crate::ops::check::statistics_dtype;
use crate::tolerance::Tolerance;

use super::cuda::{partial_bytes, tn_run_length};

pub(super) fn cases() -> Vec<Case> {
    let plain = Transpose::default();
    let (ta, tb) = (Transpose { a: true, b: false }, Transpose { a: false, b: true });
    let small = [
        (1, 1, 1, plain),
        (31, 33, 17, plain),
        (127, 65, 40, plain),
        (64, 64, 96, plain),
        (1, 128, 64, plain),
        (33, 31, 70, ta),
        (64, 128, 64, ta),
        (29, 37, 33, tb),
        (64, 64, 64, tb),
        (5, 3, 500, Transpose { a: true, b: true }),
        (48, 40, 2100, ta),
        (3, 66, 128, tb),
        (500, 129, 33, plain), // the largest tiles, on the emulator's few processors
        (18, 128, 256, plain),
        (3, 208, 272, plain),
        (18, 128, 256, tb),
        (3, 272, 208, tb),
        (16, 32, 2100, ta),
    ];
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        cases.extend(small.map(|(m, n, k, t)| case(m, n, k, t, dtype, false)));
        if dtype != DType::F32 {
            cases.extend([(33, 31, 70), (48, 40, 2100)].map(|(m, n, k)| in_f32(m, n, k, dtype)));
        }
        cases.push(case(4096, 1024, 1024, plain, dtype, true));
    }
    cases
}

fn case(m: usize, n: usize, k: usize, transpose: Transpose, dtype: DType, bench: bool) -> Case {
    let t = |flag| if flag { "T" } else { "" };
    let a = if transpose.a { [k, m] } else { [m, k] };
    let b = if transpose.b { [n, k] } else { [k, n] };
    let mut bytes = (m * k + k * n + m * n) * dtype.bytes();
    if transpose.a {
        bytes += partial_bytes(k, tn_run_length(k), m * n, dtype == DType::F32);
        if transpose.b {
            bytes += 2 * k * n * dtype.bytes(); // b is turned first
        }
    }
    Case {
        label: format!("{m}x{k}{} {k}x{n}{}", t(transpose.a), t(transpose.b)),
        dtype,
        inputs: vec![Input::normal("a", a), Input::new("b", b, Fill::Normal((k as f64).powf(-0.5)))],
        outputs: vec![("c", Check::Within(Tolerance::accumulate(k).then_round_to(dtype)))],
        run: Box::new(move |i: &Inputs| Ok(vec![forward(&i[0], &i[1], transpose)?])),
        cost: Cost { bytes, flops: 2 * m * n * k },
        bench,
    }
}

/// With `a` transposed, stored in f32.
fn in_f32(m: usize, n: usize, k: usize, dtype: DType) -> Case {
    let transpose = Transpose { a: true, b: false };
    let case = case(m, n, k, transpose, dtype, false);
    let bytes = (m * k + k * n) * dtype.bytes() + 4 * m * n + partial_bytes(k, tn_run_length(k), m * n, true);
    Case {
        label: format!("{} in f32", case.label),
        outputs: vec![("c", Check::Within(Tolerance::accumulate(k)))],
        run: Box::new(move |i: &Inputs| Ok(vec![forward_in(statistics_dtype(i[0].dtype()), &i[0], &i[1], transpose)?])),
        cost: Cost { bytes, ..case.cost },
        ..case
    }
}
