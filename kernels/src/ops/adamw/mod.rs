//! AdamW, gradient clipping and parameter averaging, in place.
//!
//! ```text
//! g' = c g                              c: clip scale, 1 if absent
//! p *= 1 - lr weight_decay
//! m  = beta1 m + (1 - beta1) g'
//! v  = beta2 v + (1 - beta2) g'^2
//! p -= lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//! ```
//! `p`, `g`, `m`, `v` share a shape. f32, or f64 on the CPU. Source: Loshchilov & Hutter 2019 as in `torch.optim.AdamW`.

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
use crate::{DType, Device, Error, Real, Result, Tensor, dispatch_real, span};

mod cases;
mod cpu;
mod cuda;

pub static SOURCE: Source = Source { path: "ops/adamw/adamw.cu", text: include_str!("adamw.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "adamw";

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
}

/// The update with everything that depends on the step worked out.
#[derive(Clone, Copy)]
struct Update {
    keep: f64,
    beta1: f64,
    beta2: f64,
    rate: f64,
    /// `1 / sqrt(1 - beta2^t)`
    correction: f64,
    eps: f64,
}

impl AdamW {
    fn at(&self, step: u64) -> Result<Update> {
        let &AdamW { lr, beta1, beta2, eps, weight_decay } = self;
        let decays = |beta: f64| (0.0..1.0).contains(&beta);
        let valid = step > 0 && decays(beta1) && decays(beta2) && lr.is_finite() && weight_decay.is_finite() && eps >= 0.0;
        if !valid {
            return Err(Error::argument(
                NAME,
                format!("expected step >= 1, 0 <= beta < 1, eps >= 0 and finite rates: step {step}, {self:?}"),
            ));
        }
        let corrected = |beta: f64| 1.0 - beta.powf(step as f64);
        Ok(Update {
            keep: 1.0 - lr * weight_decay,
            beta1,
            beta2,
            rate: lr / corrected(beta1),
            correction: corrected(beta2).sqrt().recip(),
            eps,
        })
    }
}

/// One update of `param`, `m` and `v`; `step` counts from 1. `grad_scale [1]` (see [`clip_scale`]) is read on the device.
pub fn step(
    param: &mut Tensor,
    grad: &Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    options: &AdamW,
    step: u64,
    grad_scale: Option<&Tensor>,
) -> Result<()> {
    let _span = span::op("adamw.step");
    check_dtype("param", param)?;
    check::same(NAME, param, "grad", grad)?;
    check::same(NAME, param, "m", m)?;
    check::same(NAME, param, "v", v)?;
    if let Some(scale) = grad_scale {
        check::parameter(NAME, param, "grad_scale", scale, 1)?;
    }
    let update = options.at(step)?;
    match param.device() {
        Device::Cpu => dispatch_real!(NAME, param.dtype(), T => cpu::step::<T>(param, grad, m, v, update, grad_scale)),
        Device::Cuda(gpu) => cuda::step(&gpu, param, grad, m, v, update, grad_scale),
    }
}

/// `min(1, max_norm / (sqrt(total) + 1e-6)) [1]`, with `total [1]` the sum of squares of all gradients; NaN if that is NaN.
pub fn clip_scale(total: &Tensor, max_norm: f64) -> Result<Tensor> {
    let _span = span::op("adamw.clip_scale");
    check_dtype("total", total)?;
    check::parameter(NAME, total, "total", total, 1)?;
    if max_norm.is_nan() || max_norm <= 0.0 {
        return Err(Error::argument(NAME, format!("the norm to clip to must be positive, not {max_norm}")));
    }
    match total.device() {
        Device::Cpu => dispatch_real!(NAME, total.dtype(), T => {
            let scale = max_norm / (total.as_slice::<T>()?[0].f64().sqrt() + 1e-6);
            Tensor::from_slice(&Device::Cpu, &[T::of(if scale > 1.0 { 1.0 } else { scale })], [1])
        }),
        Device::Cuda(gpu) => {
            let mut scale = total.empty_like()?;
            cuda::clip_scale(&gpu, &mut scale, total, max_norm)?;
            Ok(scale)
        }
    }
}

/// `shadow = decay shadow + (1 - decay) param`.
pub fn ema(shadow: &mut Tensor, param: &Tensor, decay: f64) -> Result<()> {
    let _span = span::op("adamw.ema");
    check_dtype("shadow", shadow)?;
    check::same(NAME, shadow, "param", param)?;
    match shadow.device() {
        Device::Cpu => dispatch_real!(NAME, shadow.dtype(), T => cpu::ema::<T>(shadow, param, decay)),
        Device::Cuda(gpu) => cuda::ema(&gpu, shadow, param, decay),
    }
}

fn check_dtype(operand: &'static str, t: &Tensor) -> Result<()> {
    match t.dtype() {
        DType::F32 | DType::F64 => Ok(()),
        found => Err(Error::dtype(NAME, operand, "f32", found)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{normal, tensor};

    const OPTIONS: AdamW = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0 };

    #[test]
    fn the_first_step_is_the_learning_rate_against_the_sign() {
        let (mut p, g) = (tensor(&[1.0, 1.0, 1.0], [3]), tensor(&[3.0, -1e-3, 0.0], [3]));
        let (mut m, mut v) = (tensor(&[0.0; 3], [3]), tensor(&[0.0; 3], [3]));
        step(&mut p, &g, &mut m, &mut v, &OPTIONS, 1, None).unwrap();
        for (p, expected) in p.to_f64().unwrap().iter().zip([0.9, 1.1, 1.0]) {
            assert!((p - expected).abs() < 1e-5, "{p}");
        }
    }

    #[test]
    fn it_finds_the_bottom_of_a_bowl_and_decay_pulls_to_zero() {
        let target = normal([33], 1);
        let run = |weight_decay| {
            let options = AdamW { lr: 0.02, weight_decay, ..OPTIONS };
            let (mut p, mut m, mut v) = (tensor(&[0.0; 33], [33]), tensor(&[0.0; 33], [33]), tensor(&[0.0; 33], [33]));
            for t in 1..=1000 {
                let grad = crate::ops::elementwise::sub(&p, &target).unwrap();
                step(&mut p, &grad, &mut m, &mut v, &options, t, None).unwrap();
            }
            p.to_f64().unwrap()
        };
        let target = target.to_f64().unwrap();
        assert!(run(0.0).iter().zip(&target).all(|(p, t)| (p - t).abs() < 1e-3));
        // Far from its target a parameter moves by the learning rate, so decay 1 stops it at 1.
        assert!(target.iter().any(|t| t.abs() > 1.5) && run(1.0).iter().all(|p| p.abs() < 1.05));
    }

    #[test]
    fn a_scaled_gradient_is_a_smaller_gradient() {
        let (g, scale) = (normal([5], 1), tensor(&[0.25], [1]));
        let quarter = crate::ops::elementwise::scale(&g, 0.25).unwrap();
        let run = |g: &Tensor, scale: Option<&Tensor>| {
            let (mut p, mut m, mut v) = (normal([5], 2), normal([5], 3), tensor(&[1.0; 5], [5]));
            step(&mut p, g, &mut m, &mut v, &OPTIONS, 7, scale).unwrap();
            [p, m, v].map(|t| t.to_f64().unwrap())
        };
        assert_eq!(run(&g, Some(&scale)), run(&quarter, None));
    }

    #[test]
    fn clipping_scales_only_what_is_too_long() {
        let scale = |total: f64, max| clip_scale(&tensor(&[total], [1]), max).unwrap().to_f64().unwrap()[0];
        assert_eq!(scale(4.0, 10.0), 1.0);
        assert!((scale(400.0, 10.0) - 0.5).abs() < 1e-6);
        assert!(scale(f64::NAN, 10.0).is_nan());
        assert!(clip_scale(&tensor(&[1.0], [1]), 0.0).is_err());
    }

    #[test]
    fn step_zero_and_foreign_shapes_are_errors() {
        let (mut p, g, mut m, mut v) = (normal([5], 1), normal([5], 1), normal([5], 1), normal([4], 1));
        assert!(matches!(step(&mut p, &g, &mut m, &mut v, &OPTIONS, 1, None), Err(Error::Shape { operand: "v", .. })));
        let mut v = normal([5], 1);
        assert!(matches!(step(&mut p, &g, &mut m, &mut v, &OPTIONS, 0, None), Err(Error::Argument { .. })));
    }

    #[test]
    fn an_average_moves_by_what_it_does_not_keep() {
        let mut shadow = tensor(&[1.0, 0.0], [2]);
        ema(&mut shadow, &tensor(&[3.0, 8.0], [2]), 0.75).unwrap();
        assert_eq!(shadow.to_f64().unwrap(), [1.5, 2.0]);
    }
}
