use crate::case::{Case, Check, Cost, Input, Run};
use crate::tolerance::Tolerance;
use crate::{DType, Result, Shape, Tensor};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for shape in [[0].into(), [1].into(), [31, 33].into(), [127].into(), [500, 8].into(), [131, 130].into()] {
            cases.extend(flat(shape, dtype, false));
        }
        cases.extend(flat([8, 48_000, 64].into(), dtype, true).into_iter().take(1));
        for (rows, channels) in [(1, 1), (500, 1), (33, 31), (127, 8), (3, 2056), (0, 3), (127, 136)] {
            let inputs = vec![Input::normal("x", [rows, channels]), Input::normal("bias", [channels])];
            let run: Run = Box::new(|i| Ok(vec![super::add_row(&i[0], &i[1])?]));
            cases.push(case(format!("add_row [{rows}, {channels}]"), dtype, inputs, Check::Within(rounded(dtype)), run));
        }
        for shape in [[1, 1, 1], [2, 31, 33], [1, 500, 3], [3, 64, 32], [2, 1, 127], [1, 0, 5], [2, 128, 96]] {
            let run: Run = Box::new(|i| Ok(vec![super::transpose(&i[0])?]));
            cases.push(case(format!("transpose {shape:?}"), dtype, vec![Input::normal("x", shape)], Check::Exact, run));
        }
        let run: Run = Box::new(|i| Ok(vec![super::transpose(&i[0])?]));
        let large = case("transpose [8, 48000, 64]".into(), dtype, vec![Input::normal("x", [8, 48_000, 64])], Check::Exact, run);
        cases.push(Case { bench: true, ..large });
        for to in [DType::F32, DType::BF16, DType::F16] {
            for n in [1, 31, 500, 4096].into_iter().chain((to != dtype).then_some(20_001)) {
                let run: Run = Box::new(move |i| Ok(vec![convert(&i[0], to)?]));
                let same = case(format!("to {to} [{n}]"), dtype, vec![Input::normal("x", [n])], Check::Within(rounded(to)), run);
                cases.push(Case { cost: Cost { bytes: n * (dtype.bytes() + to.bytes()), flops: n }, ..same });
            }
        }
    }
    cases
}

/// The oracle's input has no narrow type to convert to.
fn convert(x: &Tensor, to: DType) -> Result<Tensor> {
    if x.dtype() == DType::F64 { x.copy() } else { super::convert(x, to) }
}

fn flat(shape: Shape, dtype: DType, bench: bool) -> Vec<Case> {
    let runs: [(&str, Run); 5] = [
        ("add", Box::new(|i| Ok(vec![super::add(&i[0], &i[1])?]))),
        ("sub", Box::new(|i| Ok(vec![super::sub(&i[0], &i[1])?]))),
        ("mul", Box::new(|i| Ok(vec![super::mul(&i[0], &i[1])?]))),
        ("scale", Box::new(|i| Ok(vec![super::scale(&i[0], -0.3)?]))),
        (
            "add_assign",
            Box::new(|i| {
                let mut a = i[0].copy()?;
                super::add_assign(&mut a, &i[1])?;
                Ok(vec![a])
            }),
        ),
    ];
    let make = |(name, run): (&str, Run)| {
        let operands = if name == "scale" { &["a"][..] } else { &["a", "b"] };
        let inputs = operands.iter().map(|operand| Input::normal(operand, shape)).collect();
        Case { bench, ..case(format!("{name} {shape:?}"), dtype, inputs, Check::Within(rounded(dtype)), run) }
    };
    runs.into_iter().map(make).collect()
}

/// One f32 operation, one store.
fn rounded(dtype: DType) -> Tolerance {
    Tolerance::roundings(1).then_round_to(dtype)
}

fn case(label: String, dtype: DType, inputs: Vec<Input>, check: Check, run: Run) -> Case {
    let read: usize = inputs.iter().map(|i| i.shape.elements()).sum();
    let written = inputs[0].shape.elements();
    let cost = Cost { bytes: (read + written) * dtype.bytes(), flops: written };
    Case { label, dtype, inputs, outputs: vec![("y", check)], run, cost, bench: false }
}
