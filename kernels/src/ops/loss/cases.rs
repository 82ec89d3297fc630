use super::Loss;
use crate::DType;
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::tolerance::{ROUNDOFF, Tolerance};

const FLOOR: f64 = 0.1;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for loss in [
        Loss::L1,
        Loss::Mse,
        Loss::LogL1 { floor: FLOOR, added: 1.0 },
        Loss::LogL1 { floor: FLOOR, added: 2.5 },
        Loss::LogL1 { floor: FLOOR, added: 0.5 },
        Loss::LogMse { floor: FLOOR },
    ] {
        for n in [1, 31, 127, 500, 4097, 9000] {
            cases.extend([forward(loss, n, false), backward(loss, n, false)]);
        }
        cases.push(equal(loss));
        cases.extend([forward(loss, 1 << 22, true), backward(loss, 1 << 22, true)]);
    }
    cases
}

/// Logarithms want positive values, some of them below the floor. A lone pair is fixed far apart: a difference of close
/// logarithms has no accuracy relative to itself.
fn inputs(loss: Loss, n: usize) -> Vec<Input> {
    let fill = if let Loss::LogL1 { .. } | Loss::LogMse { .. } = loss { Fill::Uniform(0.01, 3.0) } else { Fill::Normal(1.0) };
    let lone = [0.3, 2.0].map(|v| Fill::Values(vec![v]));
    let fills = if n == 1 { lone } else { [fill.clone(), fill] };
    ["x", "y"].into_iter().zip(fills).map(|(name, fill)| Input::new(name, [n], fill)).collect()
}

/// A mean of positive terms: their sum, a factor of two roundings. `log10f` errs by two units in the last place, four roundoffs,
/// of logarithms of up to 1 and 0.5, and the floor's own rounding counts half;
/// as often as the term that counts more.
fn value(loss: Loss, n: usize) -> Tolerance {
    let mean = Tolerance::positive_sum(n).then_rounded(2);
    match loss {
        Loss::L1 => mean.then_rounded(1),
        Loss::Mse => mean.then_rounded(3),
        Loss::LogL1 { added, .. } => mean.then_rounded(2).plus(added.max(1.0) * (4.0 * 1.5 + 1.0) * ROUNDOFF),
        Loss::LogMse { .. } => mean.then_rounded(2).plus(2.0 * 1.5 * LOGARITHMS * ROUNDOFF),
    }
}

/// How far a difference of `log10(x + FLOOR)` may be off, in roundoffs: the logarithms as above, and what their arguments were rounded by.
const LOGARITHMS: f64 = 4.0 * 1.5 + 1.0 + 2.0;

/// The constant; difference or division, and product. A difference of logarithms is off by as much wherever it is near zero, over no
/// less than the floor.
fn slope(loss: Loss, n: usize) -> Tolerance {
    match loss {
        Loss::L1 => Tolerance::roundings(1),
        Loss::Mse => Tolerance::roundings(3),
        Loss::LogL1 { .. } => Tolerance::roundings(4),
        Loss::LogMse { floor } => {
            Tolerance::roundings(4).plus(15.0 / n as f64 * 2.0 * std::f64::consts::LOG10_E / floor * LOGARITHMS * ROUNDOFF)
        }
    }
}

fn forward(loss: Loss, n: usize, bench: bool) -> Case {
    Case {
        label: format!("{loss:?} forward [{n}]"),
        dtype: DType::F32,
        inputs: inputs(loss, n),
        outputs: vec![("loss", Check::Within(value(loss, n)))],
        run: Box::new(move |i| Ok(vec![super::forward(loss, &i[0], &i[1])?])),
        cost: Cost { bytes: 2 * 4 * n, flops: 3 * n },
        bench,
    }
}

/// The slope where both are the same: 0 for all, also where the absolute value has none.
fn equal(loss: Loss) -> Case {
    let fill = || Fill::Values(vec![0.5, 2.0, 0.25, 1.5]);
    let inputs = [Input::new("x", [40], fill()), Input::new("y", [40], fill())].into();
    Case { label: format!("{loss:?} backward of equals"), inputs, ..backward(loss, 40, false) }
}

fn backward(loss: Loss, n: usize, bench: bool) -> Case {
    Case {
        label: format!("{loss:?} backward [{n}]"),
        outputs: vec![("dx", Check::Within(slope(loss, n)))],
        run: Box::new(move |i| Ok(vec![super::backward(loss, &i[0], &i[1], 15.0)?])),
        cost: Cost { bytes: 3 * 4 * n, flops: 3 * n },
        ..forward(loss, n, bench)
    }
}
