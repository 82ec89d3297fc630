//! Every row without its mean, as loud as its peak is to be.
//!
//! ```text
//! c = x - mean x,  P = max |c| + 1e-9        over the N elements of a row
//! y  = level c / P
//! d  = level / P dy,  and of the peak's element, the first if there are several, sign(c) level / P^2 sum dy c less
//! dx = d - mean d
//! ```
//! `x [.., N]`, `y`, `dy`, `dx` alike. f32, or f64 on the CPU, whose sums are in f64. Deterministic.
//! Source: `Discriminator.preprocess` of DAC (`model/discriminator.py`), whose level is 0.8.

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
use crate::{DType, Device, Error, Result, Tensor, dispatch_real, span};

mod cases;
mod cpu;
mod cuda;

pub static SOURCE: Source = Source { path: "ops/peak_norm/peak_norm.cu", text: include_str!("peak_norm.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "peak_norm";
/// Added to a peak.
const EPSILON: f64 = 1e-9;

fn check(x: &Tensor) -> Result<()> {
    if x.shape().is_empty() || x.shape().last_dim() == 0 {
        return Err(Error::shape(NAME, "x", "[.., at least one]", x.shape()));
    }
    match x.dtype() {
        DType::F32 | DType::F64 => Ok(()),
        found => Err(Error::dtype(NAME, "x", "f32", found)),
    }
}

pub fn forward(x: &Tensor, level: f64) -> Result<Tensor> {
    let _span = span::op("peak_norm.forward");
    check(x)?;
    let mut y = x.empty_like()?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::forward::<T>(&mut y, x, level))?,
        Device::Cuda(gpu) => cuda::forward(&gpu, &mut y, x, level)?,
    }
    Ok(y)
}

/// `dx` of [`forward`], from its input.
pub fn backward(dy: &Tensor, x: &Tensor, level: f64) -> Result<Tensor> {
    let _span = span::op("peak_norm.backward");
    check(x)?;
    check::same(NAME, x, "dy", dy)?;
    let mut dx = x.empty_like()?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::backward::<T>(&mut dx, dy, x, level))?,
        Device::Cuda(gpu) => cuda::backward(&gpu, &mut dx, dy, x, level)?,
    }
    Ok(dx)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_emulator, check_gradient, normal, tensor};

    #[test]
    fn rows_have_no_mean_and_one_peak() {
        let y = forward(&normal([3, 127], 1), 0.8).unwrap().to_f64().unwrap();
        for row in y.chunks(127) {
            assert!(row.iter().sum::<f64>().abs() < 1e-12);
            assert!((row.iter().fold(0.0, |m: f64, v| m.max(v.abs())) - 0.8).abs() < 1e-8);
        }
        assert_eq!(forward(&tensor(&[3.0; 4], [1, 4]), 0.8).unwrap().to_f64().unwrap(), [0.0; 4]);
    }

    #[test]
    fn gradients_match_differences() {
        check_gradient(&[normal([3, 31], 4)], |i| forward(&i[0], 0.8), |i, dy| Ok(vec![Some(backward(dy, &i[0], 0.8)?)]));
    }

    #[test]
    fn nothing_has_no_peak() {
        assert!(forward(&tensor(&[], [2, 0]), 0.8).is_err());
        assert!(forward(&tensor(&[], [0, 3]), 0.8).is_ok());
        assert!(backward(&normal([2, 3], 1), &normal([3, 2], 1), 0.8).is_err());
    }

    #[test]
    fn the_emulator_computes_the_same() {
        check_emulator(&OP);
    }
}
