//! Losses between two tensors of one shape, averaged over all elements.
//!
//! ```text
//! l1      mean |x - y|                                        dx = s / n sign(x - y)
//! mse     mean (x - y)^2                                      dx = s / n 2 (x - y)
//! log_l1  mean w |d|, d = log10 max(x, floor) - log10 max(y, floor)    dx = s / n w sign(d) / (x ln 10) where x >= floor, else 0
//!         w = `added` where d > 0, else 1: what is too loud may count more than what is too soft
//! log_mse mean (log10(x + floor) - log10(y + floor))^2        dx = s / n 2 (log10(x + floor) - log10(y + floor)) / ((x + floor) ln 10)
//! ```
//! Each gives `[1]`; its backward takes `s`, what the loss is multiplied by further on, and differentiates with respect to
//! `x`. `sign(0) = 0`. An empty tensor has the loss NaN. f32, or f64 on the CPU; sums in f64 on the CPU. Deterministic.
//! Sources: `torch.nn.functional.{l1_loss, mse_loss}`; `log_l1` is at `added` 1 the log-mel term of DAC (`nn/loss.py`) at power 1,
//! `log_mse` that of audiocraft (`losses/specloss.py`).

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
use crate::{DType, Device, Error, Real, Result, Tensor, dispatch_real, span};

mod cases;
mod cpu;
mod cuda;

pub static SOURCE: Source = Source { path: "ops/loss/loss.cu", text: include_str!("loss.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "loss";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Loss {
    L1,
    Mse,
    LogL1 { floor: f64, added: f64 },
    LogMse { floor: f64 },
}

pub fn l1(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    forward(Loss::L1, x, y)
}

pub fn l1_backward(x: &Tensor, y: &Tensor, scale: f64) -> Result<Tensor> {
    backward(Loss::L1, x, y, scale)
}

pub fn mse(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    forward(Loss::Mse, x, y)
}

pub fn mse_backward(x: &Tensor, y: &Tensor, scale: f64) -> Result<Tensor> {
    backward(Loss::Mse, x, y, scale)
}

/// `[1]` of `x` and `y` of one shape. A term where `x` is the larger counts `added` times.
///
/// # Errors
/// Other shapes; a `floor` or an `added` that is not positive and normal in f32.
pub fn log_l1(x: &Tensor, y: &Tensor, floor: f64, added: f64) -> Result<Tensor> {
    forward(Loss::LogL1 { floor, added }, x, y)
}

/// `dx` of [`log_l1`], which is multiplied by `scale` further on.
///
/// # Errors
/// Those of [`log_l1`].
pub fn log_l1_backward(x: &Tensor, y: &Tensor, floor: f64, added: f64, scale: f64) -> Result<Tensor> {
    backward(Loss::LogL1 { floor, added }, x, y, scale)
}

/// `x` and `y` must not be negative, `floor` positive.
pub fn log_mse(x: &Tensor, y: &Tensor, floor: f64) -> Result<Tensor> {
    forward(Loss::LogMse { floor }, x, y)
}

pub fn log_mse_backward(x: &Tensor, y: &Tensor, floor: f64, scale: f64) -> Result<Tensor> {
    backward(Loss::LogMse { floor }, x, y, scale)
}

fn check(loss: Loss, x: &Tensor, y: &Tensor) -> Result<()> {
    if !matches!(x.dtype(), DType::F32 | DType::F64) {
        return Err(Error::dtype(NAME, "x", "f32", x.dtype()));
    }
    // In f32, where they are computed with.
    let positive = |value: f64| value as f32 >= f32::MIN_POSITIVE && (value as f32).is_finite();
    match loss {
        Loss::LogL1 { floor, .. } | Loss::LogMse { floor } if !positive(floor) => {
            Err(Error::argument(NAME, format!("the floor of a logarithm must be positive, not {floor}")))
        }
        Loss::LogL1 { added, .. } if !positive(added) => Err(Error::argument(NAME, format!("a weight must be positive, not {added}"))),
        _ => check::same(NAME, x, "y", y),
    }
}

fn forward(loss: Loss, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let _span = span::op("loss.forward");
    check(loss, x, y)?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => {
            Tensor::from_slice(&Device::Cpu, &[T::of(cpu::total::<T>(loss, x, y)? / x.elements() as f64)], [1])
        }),
        Device::Cuda(gpu) => cuda::forward(&gpu, loss, x, y),
    }
}

fn backward(loss: Loss, x: &Tensor, y: &Tensor, scale: f64) -> Result<Tensor> {
    let _span = span::op("loss.backward");
    check(loss, x, y)?;
    let mut dx = x.empty_like()?;
    let factor = scale / x.elements().max(1) as f64;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::backward::<T>(loss, &mut dx, x, y, factor))?,
        Device::Cuda(gpu) => cuda::backward(&gpu, loss, &mut dx, x, y, factor)?,
    }
    Ok(dx)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_gradient, normal, tensor};

    fn check_loss(loss: Loss, x: Tensor, y: Tensor) {
        check_gradient(
            &[x, y],
            |i| forward(loss, &i[0], &i[1]),
            |i, dy| Ok(vec![Some(backward(loss, &i[0], &i[1], dy.to_f64()?[0])?), None]),
        );
    }

    #[test]
    fn gradients_match_differences_away_from_kinks() {
        // A distance of at least 0.5 between x and y, and x at least 0.5 from the floor.
        let apart = |seed| {
            let y = normal([7, 31], seed).to_f64().unwrap();
            let x: Vec<f64> = y.iter().map(|y| y + 0.5f64.copysign(*y) + 0.3 * y).collect();
            (tensor(&x, [7, 31]), tensor(&y, [7, 31]))
        };
        let (x, y) = apart(1);
        check_loss(Loss::L1, x, y);
        let (x, y) = apart(2);
        check_loss(Loss::Mse, x, y);
        let (x, y) = (tensor(&[4.0, 2.0, 9.0, 0.1, 0.2], [5]), tensor(&[2.0, 4.0, 0.1, 3.0, 0.1], [5]));
        check_loss(Loss::LogL1 { floor: 1.0, added: 1.0 }, x.copy().unwrap(), y.copy().unwrap());
        check_loss(Loss::LogL1 { floor: 1.0, added: 2.5 }, x.copy().unwrap(), y.copy().unwrap());
        check_loss(Loss::LogMse { floor: 0.1 }, x, y);
    }

    #[test]
    fn values_are_means() {
        let (x, y) = (tensor(&[1.0, -2.0], [2]), tensor(&[4.0, -2.0], [2]));
        let value = |t: Result<Tensor>| t.unwrap().to_f64().unwrap()[0];
        assert_eq!(value(l1(&x, &y)), 1.5);
        assert_eq!(value(mse(&x, &y)), 4.5);
        assert_eq!(value(log_l1(&tensor(&[100.0, 1e-9], [2]), &tensor(&[1.0, 1e-2], [2]), 1e-2, 1.0)), 1.0);
        let (loud, soft) = (tensor(&[100.0, 1.0], [2]), tensor(&[1.0, 10.0], [2]));
        assert_eq!(value(log_l1(&loud, &soft, 1e-2, 3.0)), 3.5);
        assert_eq!(value(log_l1(&soft, &loud, 1e-2, 3.0)), 2.5);
        assert_eq!(value(log_mse(&tensor(&[99.0, 0.0], [2]), &tensor(&[0.0, 0.0], [2]), 1.0)), 2.0);
        assert_eq!(l1_backward(&x, &y, 2.0).unwrap().to_f64().unwrap(), [-1.0, 0.0]);
    }

    #[test]
    fn nan_is_not_hidden_by_the_floor() {
        let (x, y) = (tensor(&[f64::NAN], [1]), tensor(&[1.0], [1]));
        assert!(log_l1(&x, &y, 1e-5, 1.0).unwrap().to_f64().unwrap()[0].is_nan());
    }

    #[test]
    fn a_floor_of_zero_is_an_error() {
        assert!(matches!(log_l1(&normal([2], 1), &normal([2], 1), 0.0, 1.0), Err(Error::Argument { .. })));
        assert!(matches!(log_l1(&normal([2], 1), &normal([2], 1), 1.0, f64::NAN), Err(Error::Argument { .. })));
        assert!(matches!(log_mse(&normal([2], 1), &normal([2], 1), -1.0), Err(Error::Argument { .. })));
        for lost in [1e39, 1e-46] {
            assert!(matches!(log_l1(&normal([2], 1), &normal([2], 1), lost, 1.0), Err(Error::Argument { .. })));
            assert!(matches!(log_l1(&normal([2], 1), &normal([2], 1), 1.0, lost), Err(Error::Argument { .. })));
        }
    }
}
