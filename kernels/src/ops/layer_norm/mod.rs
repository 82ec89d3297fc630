//! Layer normalisation of every row, and its form with the sum of a residual stream before it.
//!
//! ```text
//! xhat = (x - mean) / sqrt(variance + epsilon)        mean and variance over the C elements of a row, variance = sum (x - mean)^2 / C
//! y    = weight xhat + bias
//! dx   = (g - mean g - xhat mean (g xhat)) / sqrt(variance + epsilon)        g = weight dy
//! dweight = sum over rows of dy xhat        dbias = sum over rows of dy
//! ```
//! | tensor             | shape     |                                                                              |
//! |--------------------|-----------|------------------------------------------------------------------------------|
//! | `x`, `y`, `dy`, `dx` | `[.., C]` | f32, bf16 or f16 on CUDA, f32 or f64 on the CPU                              |
//! | `residual`, sum    | as `x`    | the sum is normalised as it is stored, so fusing changes no bit              |
//! | `weight`, `bias`   | `[C]`     | f32 beside narrower types (f64 beside f64), and so are their gradients       |
//!
//! Statistics in f32, in an order that `C` and the type alone decide, so that a row's result does not depend on the other rows.
//! Gradients of parameters are sums over runs of rows, then over the runs. On CUDA [`backward`] takes at most 8192
//! channels, or 4096 if they do not fill 16 bytes evenly.
//! Sources: Ba et al. 2016 (arXiv 1607.06450); `torch.nn.functional.layer_norm`.

mod cases;
mod cpu;
mod cuda;

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::{check, elementwise};
use crate::{Device, Error, Result, Tensor, dispatch_real, span};
pub(super) use cases::of as cases_of;

pub static SOURCE: Source = Source { path: "ops/layer_norm/layer_norm.cu", text: include_str!("layer_norm.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NORM.name, sources: &[&SOURCE], cases: || cases::of(&NORM) };

static NORM: Norm = Norm {
    name: "layer_norm",
    spans: ["layer_norm.forward", "layer_norm.add_forward", "layer_norm.backward"],
    source: &SOURCE,
    centred: true,
};

/// `y = layer_norm(x)`.
///
/// # Errors
/// Parameters that are not `[C]`; an epsilon that is negative or not finite.
pub fn forward(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64) -> Result<Tensor> {
    NORM.forward(x, weight, Some(bias), epsilon)
}

/// `(x + residual, layer_norm(x + residual))`.
pub fn add_forward(x: &Tensor, residual: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor)> {
    NORM.add_forward(x, residual, weight, Some(bias), epsilon)
}

/// `(dx, dweight [C], dbias [C])` of [`forward`].
pub fn backward(dy: &Tensor, x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor, Tensor)> {
    let (dx, mut sums) = NORM.backward(dy, x, weight, epsilon)?;
    let dbias = sums.pop().ok_or_else(|| Error::argument(NORM.name, "no gradient of the bias"))?;
    let dweight = sums.pop().ok_or_else(|| Error::argument(NORM.name, "no gradient of the weight"))?;
    Ok((dx, dweight, dbias))
}

/// What layer and root-mean-square normalisation share.
pub(super) struct Norm {
    pub name: &'static str,
    pub spans: [&'static str; 3],
    pub source: &'static Source,
    /// Whether the mean is subtracted; then there is a bias, too.
    pub centred: bool,
}

impl Norm {
    fn check(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, epsilon: f64) -> Result<()> {
        let channels = x.shape().last_dim();
        check::parameter(self.name, x, "weight", weight, channels)?;
        bias.map_or(Ok(()), |bias| check::parameter(self.name, x, "bias", bias, channels))?;
        if !(epsilon >= 0.0 && epsilon.is_finite()) {
            return Err(Error::argument(self.name, format!("epsilon {epsilon} is negative or not finite")));
        }
        Ok(())
    }

    pub fn forward(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, epsilon: f64) -> Result<Tensor> {
        let _span = span::op(self.spans[0]);
        self.check(x, weight, bias, epsilon)?;
        let mut y = x.empty_like()?;
        match x.device() {
            Device::Cpu => dispatch_real!(self.name, x.dtype(), T => cpu::forward::<T>(self, &mut y, x, weight, bias, epsilon))?,
            Device::Cuda(gpu) => cuda::forward(self, &gpu, &mut y, None, x, weight, bias, epsilon)?,
        }
        Ok(y)
    }

    pub fn add_forward(
        &self,
        x: &Tensor,
        residual: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        epsilon: f64,
    ) -> Result<(Tensor, Tensor)> {
        let _span = span::op(self.spans[1]);
        check::same(self.name, x, "residual", residual)?;
        let Device::Cuda(gpu) = x.device() else {
            let sum = elementwise::add(x, residual)?;
            let y = self.forward(&sum, weight, bias, epsilon)?;
            return Ok((sum, y));
        };
        self.check(x, weight, bias, epsilon)?;
        let (mut sum, mut y) = (x.empty_like()?, x.empty_like()?);
        cuda::forward(self, &gpu, &mut y, Some((&mut sum, residual)), x, weight, bias, epsilon)?;
        Ok((sum, y))
    }

    /// `dx`, and the gradients of the weight and, if centred, of the bias.
    pub fn backward(&self, dy: &Tensor, x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<(Tensor, Vec<Tensor>)> {
        let _span = span::op(self.spans[2]);
        self.check(x, weight, None, epsilon)?;
        check::same(self.name, x, "dy", dy)?;
        let mut dx = x.empty_like()?;
        let parameters = if self.centred { 2 } else { 1 };
        if x.elements() == 0 {
            let zeros = || Tensor::zeros(&x.device(), weight.dtype(), weight.shape());
            return Ok((dx, (0..parameters).map(|_| zeros()).collect::<Result<_>>()?));
        }
        let sums = match x.device() {
            Device::Cpu => dispatch_real!(self.name, x.dtype(), T => cpu::backward::<T>(self, &mut dx, dy, x, weight, epsilon))?,
            Device::Cuda(gpu) => cuda::backward(self, &gpu, &mut dx, dy, x, weight, epsilon)?,
        };
        Ok((dx, sums))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::testing::{check_gradient, normal, tensor};

    #[test]
    fn gradients_match_differences() {
        for c in [2, 7, 33] {
            check_gradient(
                &[normal([2, 5, c], 1), normal([c], 2), normal([c], 3)],
                |i| forward(&i[0], &i[1], &i[2], 1e-5),
                |i, dy| backward(dy, &i[0], &i[1], 1e-5).map(|(dx, dw, db)| vec![Some(dx), Some(dw), Some(db)]),
            );
        }
    }

    #[test]
    fn values_are_those_of_the_formula() {
        let y = forward(&tensor(&[1.0, 3.0, 2.0, 2.0], [2, 2]), &tensor(&[2.0, 4.0], [2]), &tensor(&[0.5, 0.25], [2]), 0.0).unwrap();
        let y = y.to_f64().unwrap();
        assert_eq!(y[..2], [-1.5, 4.25]);
        assert!(y[2..].iter().all(|y| y.is_nan()), "no variance and no epsilon: {y:?}");
        let y = forward(&tensor(&[2.0, 2.0], [1, 2]), &tensor(&[2.0, 4.0], [2]), &tensor(&[0.5, 0.25], [2]), 1e-5).unwrap();
        assert_eq!(y.to_f64().unwrap(), [0.5, 0.25]);
    }

    #[test]
    fn adding_first_and_other_rows_change_no_bit() {
        let mut devices = vec![Device::Cpu];
        match Device::open("emulator") {
            Ok(emulator) => devices.push(emulator),
            Err(e) => println!("skipped: the emulator, {e}"),
        }
        for device in devices {
            for (dtype, c) in [(DType::F32, 500), (DType::F32, 33), (DType::BF16, 1032), (DType::F16, 31)] {
                let Ok(x) = on(&device, dtype, &normal([9, c], 1)) else { continue };
                let r = on(&device, dtype, &normal([9, c], 2)).unwrap();
                let [w, b] = [3, 4].map(|seed| on(&device, DType::F32, &normal([c], seed)).unwrap());
                if device == Device::Cpu && dtype != DType::F32 {
                    continue;
                }
                let (sum, y) = add_forward(&x, &r, &w, &b, 1e-5).unwrap();
                let apart = elementwise::add(&x, &r).unwrap();
                assert_eq!(sum.to_f64().unwrap(), apart.to_f64().unwrap());
                let y = y.to_f64().unwrap();
                assert_eq!(y, forward(&apart, &w, &b, 1e-5).unwrap().to_f64().unwrap());
                let last = on(&device, dtype, &tensor(&apart.to_f64().unwrap()[8 * c..], [1, c])).unwrap();
                assert_eq!(y[8 * c..], forward(&last, &w, &b, 1e-5).unwrap().to_f64().unwrap());
            }
        }
    }

    fn on(device: &Device, dtype: DType, values: &Tensor) -> Result<Tensor> {
        Tensor::from_f64(device, dtype, &values.to_f64()?, values.shape())
    }

    #[test]
    fn parameters_of_other_sizes_and_a_negative_epsilon_are_errors() {
        let (x, w, short) = (normal([2, 3], 1), normal([3], 1), normal([2], 1));
        assert!(matches!(forward(&x, &short, &w, 1e-5), Err(Error::Shape { operand: "weight", .. })));
        assert!(matches!(forward(&x, &w, &short, 1e-5), Err(Error::Shape { operand: "bias", .. })));
        assert!(matches!(add_forward(&x, &w, &w, &w, 1e-5), Err(Error::Shape { operand: "residual", .. })));
        assert!(matches!(backward(&w, &x, &w, 1e-5), Err(Error::Shape { operand: "dy", .. })));
        for epsilon in [-1e-5, f64::NAN, f64::INFINITY] {
            assert!(forward(&x, &w, &w, epsilon).is_err());
        }
    }
}
