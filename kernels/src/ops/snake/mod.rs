//! Snake, the periodic activation of neural vocoders.
//!
//! ```text
//! snake       y = x + sin^2(alpha x) / (alpha + 1e-9)
//!   dx     = dy (1 + sin(2 alpha x) alpha / (alpha + 1e-9))
//!   dalpha = sum dy (x sin(2 alpha x) / (alpha + 1e-9) - sin^2(alpha x) / (alpha + 1e-9)^2)
//! snake_beta  y = x + sin^2(a x) / (b + 1e-9)    a = e^log_alpha, b = e^log_beta
//! ```
//! `x`, `dy`: any shape whose last axis is `C` channels; parameters and their gradients `[C]`, the sum over all rows.
//! Storage of `x` f32, bf16 or f16 on CUDA (parameters f32), f32 or f64 on the CPU. Deterministic.
//!
//! Sources: Ziyin et al. 2020 (arXiv 2006.08195); DAC `nn/layers.py` (free alpha); BigVGAN `activations.py` (log scale).

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
use crate::tolerance::ROUNDOFF;
use crate::{Device, Result, Tensor, dispatch_real, span};

mod cases;
pub mod cpu;
mod cuda;

pub static SOURCE: Source = Source { path: "ops/snake/snake.cu", text: include_str!("snake.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "snake";
/// Keeps the division finite at `alpha = 0`; the published models have it inside the division.
const EPSILON: f64 = 1e-9;
/// Absolute error of the fast sine and cosine (`cpu::half_turn`, `snake.cuh`).
const SINE_ERROR: f64 = 2.0 * ROUNDOFF;

/// `y = x + sin^2(alpha x) / (alpha + 1e-9)`.
pub fn forward(x: &Tensor, alpha: &Tensor) -> Result<Tensor> {
    let _span = span::op("snake.forward");
    check::parameter(NAME, x, "alpha", alpha, x.shape().last_dim())?;
    let mut y = x.empty_like()?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::forward::<T>(&mut y, x, &cpu::Coefficients::new(alpha.as_slice()?)))?,
        Device::Cuda(gpu) => cuda::forward(&gpu, &mut y, x, alpha, None)?,
    }
    Ok(y)
}

/// `(dx, dalpha [C])` of [`forward`].
pub fn backward(dy: &Tensor, x: &Tensor, alpha: &Tensor) -> Result<(Tensor, Tensor)> {
    let _span = span::op("snake.backward");
    check::same(NAME, x, "dy", dy)?;
    check::parameter(NAME, x, "alpha", alpha, x.shape().last_dim())?;
    let mut dx = x.empty_like()?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => {
            let sums = cpu::backward::<T>(&mut dx, dy, x, &cpu::Coefficients::new(alpha.as_slice()?))?;
            let dalpha = sums.frequency.iter().zip(&sums.amplitude).map(|(f, a)| f - a);
            let dalpha = Tensor::from_f64(&Device::Cpu, x.dtype(), &dalpha.collect::<Vec<_>>(), alpha.shape())?;
            Ok((dx, dalpha))
        }),
        Device::Cuda(gpu) => {
            let (dalpha, _) = cuda::backward(&gpu, &mut dx, dy, x, alpha, None)?;
            Ok((dx, dalpha))
        }
    }
}

/// `y = x + sin^2(e^log_alpha x) / (e^log_beta + 1e-9)`.
pub fn beta_forward(x: &Tensor, log_alpha: &Tensor, log_beta: &Tensor) -> Result<Tensor> {
    let _span = span::op("snake.beta_forward");
    check_beta(x, log_alpha, log_beta)?;
    let mut y = x.empty_like()?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => {
            cpu::forward::<T>(&mut y, x, &cpu::Coefficients::beta(log_alpha.as_slice()?, log_beta.as_slice()?))
        })?,
        Device::Cuda(gpu) => cuda::forward(&gpu, &mut y, x, log_alpha, Some(log_beta))?,
    }
    Ok(y)
}

/// `(dx, dlog_alpha [C], dlog_beta [C])` of [`beta_forward`].
pub fn beta_backward(dy: &Tensor, x: &Tensor, log_alpha: &Tensor, log_beta: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
    let _span = span::op("snake.beta_backward");
    check::same(NAME, x, "dy", dy)?;
    check_beta(x, log_alpha, log_beta)?;
    let mut dx = x.empty_like()?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => {
            let coefficients = cpu::Coefficients::beta(log_alpha.as_slice()?, log_beta.as_slice()?);
            let sums = cpu::backward::<T>(&mut dx, dy, x, &coefficients)?;
            let gradient = |sums: &[f64], log: &Tensor, sign: f64| {
                let scaled: Vec<f64> = log.to_f64()?.iter().zip(sums).map(|(l, s)| sign * l.exp() * s).collect();
                Tensor::from_f64(&Device::Cpu, x.dtype(), &scaled, log.shape())
            };
            Ok((dx, gradient(&sums.frequency, log_alpha, 1.0)?, gradient(&sums.amplitude, log_beta, -1.0)?))
        }),
        Device::Cuda(gpu) => {
            let (dlog_alpha, dlog_beta) = cuda::backward(&gpu, &mut dx, dy, x, log_alpha, Some(log_beta))?;
            Ok((dx, dlog_alpha, dlog_beta))
        }
    }
}

fn check_beta(x: &Tensor, log_alpha: &Tensor, log_beta: &Tensor) -> Result<()> {
    check::parameter(NAME, x, "log_alpha", log_alpha, x.shape().last_dim())?;
    check::parameter(NAME, x, "log_beta", log_beta, x.shape().last_dim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_gradient, normal, tensor};
    use crate::{DType, Error};

    #[test]
    fn gradients_match_differences() {
        for c in [1, 7, 33] {
            let alpha = tensor(&(0..c).map(|i| 0.3 + 0.1 * i as f64).collect::<Vec<_>>(), [c]);
            check_gradient(
                &[normal([2, 31, c], 1), alpha],
                |i| forward(&i[0], &i[1]),
                |i, dy| backward(dy, &i[0], &i[1]).map(|(dx, da)| vec![Some(dx), Some(da)]),
            );
            check_gradient(
                &[normal([2, 31, c], 1), normal([c], 2), normal([c], 3)],
                |i| beta_forward(&i[0], &i[1], &i[2]),
                |i, dy| beta_backward(dy, &i[0], &i[1], &i[2]).map(|(dx, da, db)| vec![Some(dx), Some(da), Some(db)]),
            );
        }
    }

    /// The same numbers in f32 and, widened, in f64.
    fn pair(values: &[f64], shape: impl Into<crate::Shape> + Copy) -> (Tensor, Tensor) {
        let narrow = Tensor::from_f64(&Device::Cpu, DType::F32, values, shape).unwrap();
        let wide = Tensor::from_f64(&Device::Cpu, DType::F64, &narrow.to_f64().unwrap(), shape).unwrap();
        (narrow, wide)
    }

    #[test]
    fn the_fast_sine_holds_its_budget_for_large_arguments() {
        let alphas = [1e-6, 1e-3, 0.02, -0.5, 1.0, -3.0, 9.0, 40.0, 200.0];
        let x: Vec<f64> = normal([500 * alphas.len()], 1).to_f64().unwrap().iter().map(|x| x * 50.0).collect();
        let ((x32, x64), (a32, a64)) = (pair(&x, [500, alphas.len()]), pair(&alphas, [alphas.len()]));
        let (found, expected) = (forward(&x32, &a32).unwrap().to_f64().unwrap(), forward(&x64, &a64).unwrap().to_f64().unwrap());
        let (backward32, backward64) = (backward(&x32, &x32, &a32).unwrap(), backward(&x64, &x64, &a64).unwrap());
        let (dx, dx64) = (backward32.0.to_f64().unwrap(), backward64.0.to_f64().unwrap());
        for (i, x) in x64.to_f64().unwrap().into_iter().enumerate() {
            let alpha = alphas[i % alphas.len()];
            let (sin, cos) = (alpha * x).sin_cos();
            // Small sines are accurate relative to themselves.
            let sine_error = SINE_ERROR.min(2.0 * SINE_ERROR * (alpha * x).abs());
            let bound = (2.0 * sin.abs() * sine_error + 4.0 * ROUNDOFF * sin * sin) / alpha.abs() + 2.0 * ROUNDOFF * expected[i].abs();
            assert!((found[i] - expected[i]).abs() <= bound, "alpha {alpha}, x {x}: {} {}", found[i], expected[i]);
            let bound = x.abs() * (2.0 * (sin.abs() + cos.abs()) * sine_error + 8.0 * ROUNDOFF);
            assert!((dx[i] - dx64[i]).abs() <= bound, "alpha {alpha}, x {x}: {} {}", dx[i], dx64[i]);
        }
        // The sums differ by orders of magnitude between channels, so each is its own comparison.
        for (c, (f, e)) in backward32.1.to_f64().unwrap().iter().zip(backward64.1.to_f64().unwrap()).enumerate() {
            let rms = (x.iter().map(|x| x.powi(4)).sum::<f64>() / alphas.len() as f64).sqrt() / alphas[c].abs().max(1e-3);
            assert!((f - e).abs() < 1e-6 * rms.max(e.abs()), "alpha {}: {f} {e}", alphas[c]);
        }
    }

    #[test]
    fn zero_alpha_is_the_identity_and_nan_stays_nan() {
        let x = Tensor::from_slice(&Device::Cpu, &[1.5f32, f32::NAN, -2.0], [3, 1]).unwrap();
        let y = forward(&x, &Tensor::zeros(&Device::Cpu, DType::F32, [1]).unwrap()).unwrap().to_vec::<f32>().unwrap();
        assert!(y[0] == 1.5 && y[1].is_nan() && y[2] == -2.0);
    }

    #[test]
    fn one_alpha_a_channel_is_demanded() {
        assert!(matches!(forward(&normal([2, 3], 1), &normal([2], 1)), Err(Error::Shape { operand: "alpha", .. })));
        let empty = Tensor::zeros(&Device::Cpu, DType::F32, [0, 3]).unwrap();
        let alpha = Tensor::zeros(&Device::Cpu, DType::F32, [3]).unwrap();
        assert_eq!(backward(&empty, &empty, &alpha).unwrap().1.to_vec::<f32>().unwrap(), [0.0; 3]);
    }
}
