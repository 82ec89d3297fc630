//! Softsign of a tensor of any shape, for a limit above 0: `y = x / (1 + |x| / limit)`; `dx = dy / (1 + |x| / limit)^2`.
//!
//! Storage f32, bf16, f16 on CUDA, f32 or f64 on the CPU. Source: `torch.nn.functional.softsign`, whose limit is 1.

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
use crate::{Device, Result, Tensor, dispatch_real, span};

mod cases;
mod cpu;
mod cuda;

pub static SOURCE: Source = Source { path: "ops/template/template.cu", text: include_str!("template.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "template";

/// As `x` in shape and type.
///
/// # Errors
/// A type that the device does not store.
pub fn forward(x: &Tensor, limit: f64) -> Result<Tensor> {
    let _span = span::op("template.forward");
    let mut y = x.empty_like()?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::forward::<T>(&mut y, x, limit))?,
        Device::Cuda(gpu) => cuda::forward(&gpu, &mut y, x, limit)?,
    }
    Ok(y)
}

/// `dx` of [`forward`], from its input.
///
/// # Errors
/// Those of [`forward`]; a `dy` that is not as `x`.
pub fn backward(dy: &Tensor, x: &Tensor, limit: f64) -> Result<Tensor> {
    let _span = span::op("template.backward");
    check::same(NAME, x, "dy", dy)?;
    let mut dx = x.empty_like()?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::backward::<T>(&mut dx, dy, x, limit))?,
        Device::Cuda(gpu) => cuda::backward(&gpu, &mut dx, dy, x, limit)?,
    }
    Ok(dx)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_emulator, check_gradient, tensor};

    #[test]
    fn values_are_those_of_the_formula() {
        let y = forward(&tensor(&[-6.0, 0.0, 2.0], [3]), 2.0).unwrap();
        assert_eq!(y.to_vec::<f64>().unwrap(), [-1.5, 0.0, 1.0]);
    }

    #[test]
    fn gradients_match_differences() {
        let x = tensor(&[-3.0, -0.4, 0.1, 0.7, 2.0], [5]);
        check_gradient(&[x], |i| forward(&i[0], 3.0), |i, dy| Ok(vec![Some(backward(dy, &i[0], 3.0)?)]));
    }

    #[test]
    fn the_emulator_computes_the_same() {
        check_emulator(&OP);
    }
}
