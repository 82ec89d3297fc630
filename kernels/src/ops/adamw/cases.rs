use super::AdamW;
use crate::DType;
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::tolerance::{ROUNDOFF, Tolerance};

const OPTIONS: AdamW = AdamW { lr: 1e-2, beta1: 0.8, beta2: 0.99, eps: 1e-8, weight_decay: 0.05 };

pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> =
        [1, 31, 127, 500, 4097, 9000].into_iter().flat_map(|n| [step(n, true, false), step(n, false, false), ema(n)]).collect();
    cases.extend([step(1 << 24, true, true)]);
    cases.extend([1e-4, 0.3, 400.0].map(clip));
    cases
}

/// `a p + b q` for |p|, |q| <= 1 and a + b = 1: the constants, the products, and one more rounding of `q`; then the sum.
fn average() -> Check {
    Check::Within(Tolerance::roundings(1).plus(3.0 * ROUNDOFF))
}

/// Values in [-1, 1].
fn input(name: &'static str, n: usize) -> Input {
    Input::new(name, [n], Fill::Uniform(-1.0, 1.0))
}

fn step(n: usize, clipped: bool, bench: bool) -> Case {
    // Second moments are positive; far from zero, since 1 / sqrt(v) multiplies their rounding by its own size.
    let mut inputs = vec![input("param", n), input("grad", n), input("m", n), Input::new("v", [n], Fill::Uniform(0.1, 2.0))];
    inputs.extend(clipped.then(|| Input::new("grad_scale", [1], Fill::Uniform(0.1, 1.0))));
    Case {
        label: format!("step {}[{n}]", if clipped { "clipped " } else { "" }),
        dtype: DType::F32,
        inputs,
        // Of the parameter, the step is a hundredth and its ten roundings count as little; the second moment is a sum of
        // positive terms, of two and five roundings.
        outputs: vec![("param", average()), ("m", average()), ("v", Check::Within(Tolerance::roundings(5 + 1)))],
        run: Box::new(|i| {
            let (mut param, mut m, mut v) = (i[0].copy()?, i[2].copy()?, i[3].copy()?);
            super::step(&mut param, &i[1], &mut m, &mut v, &OPTIONS, 3, i.get(4))?;
            Ok(vec![param, m, v])
        }),
        cost: Cost { bytes: 7 * 4 * n, flops: 15 * n },
        bench,
    }
}

fn ema(n: usize) -> Case {
    Case {
        label: format!("ema [{n}]"),
        dtype: DType::F32,
        inputs: vec![input("shadow", n), input("param", n)],
        outputs: vec![("shadow", average())],
        run: Box::new(|i| {
            let mut shadow = i[0].copy()?;
            super::ema(&mut shadow, &i[1], 0.999)?;
            Ok(vec![shadow])
        }),
        cost: Cost { bytes: 3 * 4 * n, flops: 3 * n },
        bench: false,
    }
}

fn clip(total: f64) -> Case {
    Case {
        label: format!("clip_scale of {total}"),
        dtype: DType::F32,
        inputs: vec![Input::new("total", [1], Fill::Values(vec![total]))],
        outputs: vec![("scale", Check::Within(Tolerance::roundings(5)))], // two constants, root, sum, division
        run: Box::new(|i| Ok(vec![super::clip_scale(&i[0], 0.5)?])),
        cost: Cost { bytes: 8, flops: 4 },
        bench: false,
    }
}
