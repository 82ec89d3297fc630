use super::AdamW;
use crate::DType;
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::tolerance::Tolerance;

const OPTIONS: AdamW = AdamW { lr: 1e-2, beta1: 0.8, beta2: 0.99, eps: 1e-8, weight_decay: 0.05 };

pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> =
        [1, 31, 127, 500, 4097].into_iter().flat_map(|n| [step(n, true, false), step(n, false, false), ema(n)]).collect();
    cases.extend([step(1 << 24, true, true)]);
    cases.extend([1e-4, 0.3, 400.0].map(clip));
    cases
}

/// Every output is a handful of f32 operations on each element.
fn tolerance() -> Check {
    // `m` and `param` are differences that may vanish where their terms do not.
    let sum = Tolerance::accumulate(8).via(DType::F32).via(DType::F32);
    Check::Within((0..4).fold(sum, |t, _| t.then_round_to(DType::F32)))
}

fn step(n: usize, clipped: bool, bench: bool) -> Case {
    // Second moments are positive; far from zero, since 1 / sqrt(v) multiplies their rounding by its own size.
    let mut inputs = vec![
        Input::normal("param", [n]),
        Input::normal("grad", [n]),
        Input::normal("m", [n]),
        Input::new("v", [n], Fill::Uniform(0.1, 2.0)),
    ];
    inputs.extend(clipped.then(|| Input::new("grad_scale", [1], Fill::Uniform(0.1, 1.0))));
    Case {
        label: format!("step {}[{n}]", if clipped { "clipped " } else { "" }),
        dtype: DType::F32,
        inputs,
        outputs: vec![("param", tolerance()), ("m", tolerance()), ("v", tolerance())],
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
        inputs: vec![Input::normal("shadow", [n]), Input::normal("param", [n])],
        outputs: vec![("shadow", tolerance())],
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
        outputs: vec![("scale", tolerance())],
        run: Box::new(|i| Ok(vec![super::clip_scale(&i[0], 0.5)?])),
        cost: Cost { bytes: 8, flops: 4 },
        bench: false,
    }
}
