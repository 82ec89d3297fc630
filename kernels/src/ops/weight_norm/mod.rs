//! Weight normalisation of convolution weights (Salimans & Kingma 2016; `torch.nn.utils.weight_norm`).
//!
//! ```text
//! w  = g v / |v|                       |v| over the two axes that g does not index
//! dg = <dw, v> / |v|
//! dv = g / |v| (dw - dg / |v| v)
//! ```
//! `v`, `w`, `dw`, `dv [K, Cin, Cout]`. [`Axis::Out`]: `g [Cout]`, torch's `dim = 0` of a Conv1d. [`Axis::In`]: `g [Cin]`,
//! torch's `dim = 0` of a ConvTranspose1d, whose weight is stored input first. A zero `v` gives NaN, as in torch.
//! f32 (sums in f64 on the CPU), f64 on the CPU. Deterministic.

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
use crate::{DType, Device, Error, Result, Tensor, dispatch_real, span};

mod cases;
mod cpu;
mod cuda;

pub static SOURCE: Source = Source { path: "ops/weight_norm/weight_norm.cu", text: include_str!("weight_norm.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "weight_norm";

/// The axis of `v` that `g` scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    Out,
    In,
}

/// Extents of `v`: taps * in rows of `cout`, and the length of `g`.
fn check(v: &Tensor, g: &Tensor, axis: Axis) -> Result<()> {
    let &[_, cin, cout] = &*v.shape() else { return Err(Error::shape(NAME, "v", "[taps, in, out]", v.shape())) };
    if !matches!(v.dtype(), DType::F32 | DType::F64) {
        return Err(Error::dtype(NAME, "v", "f32", v.dtype()));
    }
    let n = match axis {
        Axis::Out => cout,
        Axis::In => cin,
    };
    check::parameter(NAME, v, "g", g, n)
}

/// `w = g v / |v|`.
pub fn forward(v: &Tensor, g: &Tensor, axis: Axis) -> Result<Tensor> {
    let _span = span::op("weight_norm.forward");
    check(v, g, axis)?;
    let mut w = v.empty_like()?;
    match v.device() {
        Device::Cpu => dispatch_real!(NAME, v.dtype(), T => cpu::forward::<T>(&mut w, v, g, axis))?,
        Device::Cuda(gpu) => cuda::forward(&gpu, &mut w, v, g, axis)?,
    }
    Ok(w)
}

/// `(dv, dg)` of [`forward`].
pub fn backward(dw: &Tensor, v: &Tensor, g: &Tensor, axis: Axis) -> Result<(Tensor, Tensor)> {
    let _span = span::op("weight_norm.backward");
    check(v, g, axis)?;
    check::same(NAME, v, "dw", dw)?;
    let (mut dv, mut dg) = (v.empty_like()?, g.empty_like()?);
    match v.device() {
        Device::Cpu => dispatch_real!(NAME, v.dtype(), T => cpu::backward::<T>(&mut dv, &mut dg, dw, v, g, axis))?,
        Device::Cuda(gpu) => cuda::backward(&gpu, &mut dv, &mut dg, dw, v, g, axis)?,
    }
    Ok((dv, dg))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_gradient, normal};

    #[test]
    fn gradients_match_differences() {
        for (axis, n) in [(Axis::Out, 5), (Axis::In, 3)] {
            check_gradient(
                &[normal([7, 3, 5], 1), normal([n], 2)],
                |i| forward(&i[0], &i[1], axis),
                |i, dw| backward(dw, &i[0], &i[1], axis).map(|(dv, dg)| vec![Some(dv), Some(dg)]),
            );
        }
    }

    #[test]
    fn every_slice_has_the_norm_g() {
        let (v, g) = (normal([2, 3, 4], 1), normal([3], 2));
        let w = forward(&v, &g, Axis::In).unwrap().to_f64().unwrap();
        for (i, g) in g.to_f64().unwrap().iter().enumerate() {
            let norm = (0..2).flat_map(|k| &w[(k * 3 + i) * 4..][..4]).map(|w| w * w).sum::<f64>().sqrt();
            assert!((norm - g.abs()).abs() < 1e-14);
        }
    }

    #[test]
    fn a_slice_of_one_weight_has_no_gradient() {
        let (dv, dg) = backward(&normal([1, 1, 1], 1), &normal([1, 1, 1], 2), &normal([1], 3), Axis::Out).unwrap();
        assert!(dv.to_f64().unwrap()[0].abs() < 1e-15 && dg.to_f64().unwrap()[0] != 0.0);
    }

    #[test]
    fn a_gain_of_the_wrong_length_is_an_error() {
        assert!(matches!(forward(&normal([2, 3, 4], 1), &normal([3], 2), Axis::Out), Err(Error::Shape { operand: "g", .. })));
    }
}
