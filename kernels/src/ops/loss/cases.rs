use super::Loss;
use crate::DType;
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::tolerance::Tolerance;

const FLOOR: f64 = 0.1;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for loss in [Loss::L1, Loss::Mse, Loss::LogL1 { floor: FLOOR }] {
        for n in [1, 31, 127, 500, 4097, 9000] {
            cases.extend([forward(loss, n, false), backward(loss, n, false)]);
        }
        cases.extend([forward(loss, 1 << 22, true), backward(loss, 1 << 22, true)]);
    }
    cases
}

/// Logarithms want positive values, some of them below the floor. A lone pair is fixed far apart: a difference of close
/// logarithms has no accuracy relative to itself.
fn inputs(loss: Loss, n: usize) -> Vec<Input> {
    let fill = if let Loss::LogL1 { .. } = loss { Fill::Uniform(0.01, 3.0) } else { Fill::Normal(1.0) };
    let lone = [0.3, 2.0].map(|v| Fill::Values(vec![v]));
    let fills = if n == 1 { lone } else { [fill.clone(), fill] };
    ["x", "y"].into_iter().zip(fills).map(|(name, fill)| Input::new(name, [n], fill)).collect()
}

fn forward(loss: Loss, n: usize, bench: bool) -> Case {
    Case {
        label: format!("{loss:?} forward [{n}]"),
        dtype: DType::F32,
        inputs: inputs(loss, n),
        outputs: vec![("loss", Check::Within(Tolerance::accumulate(n).then_round_to(DType::F32)))],
        run: Box::new(move |i| Ok(vec![super::forward(loss, &i[0], &i[1])?])),
        cost: Cost { bytes: 2 * 4 * n, flops: 3 * n },
        bench,
    }
}

fn backward(loss: Loss, n: usize, bench: bool) -> Case {
    Case {
        label: format!("{loss:?} backward [{n}]"),
        outputs: vec![("dx", Check::Within(Tolerance::accumulate(1).then_round_to(DType::F32)))],
        run: Box::new(move |i| Ok(vec![super::backward(loss, &i[0], &i[1], 15.0)?])),
        cost: Cost { bytes: 3 * 4 * n, flops: 3 * n },
        ..forward(loss, n, bench)
    }
}
