//! Elementwise activations without parameters, of tensors of any shape, and gates with them: `f(u) v` of rows `[u; v]`.
//!
//! | kind       | `y`                                                   | `dx / dy`                                   |
//! |------------|-------------------------------------------------------|---------------------------------------------|
//! | `Identity` | `x`                                                   | `1`                                         |
//! | `Elu`      | `x` if `x > 0`, else `e^x - 1`                        | `1` if `x > 0`, else `e^x`                  |
//! | `Silu`     | `x s`, `s = 1 / (1 + e^-x)`                           | `s (1 + x (1 - s))`                         |
//! | `Gelu`     | `x (1 + erf(x / sqrt 2)) / 2`                         | `(1 + erf) / 2 + x e^(-x^2/2) / sqrt(2 pi)` |
//! | `GeluTanh` | `x (1 + t) / 2`, `t = tanh(sqrt(2/pi) (x + 0.044715 x^3))` | the same, differentiated               |
//! | `Tanh`     | `tanh x`                                              | `1 - tanh^2 x`                              |
//! | `Sigmoid`  | `s`                                                   | `s (1 - s)`                                 |
//! | `Relu`     | `0` if `x < 0`, else `x`                              | `1` if `x > 0`, else `0`                    |
//! | `LeakyRelu` | `x / 100` if `x < 0`, else `x`                       | `1` if `x > 0`, else `1 / 100`              |
//! | `Mish`     | `x t`, `t = tanh ln(1 + e^x)`                         | `t + x s (1 - t^2)`                         |
//! | `Softsign` | `x / (1 + abs x)`                                     | `1 / (1 + abs x)^2`                         |
//!
//! Written so that nothing cancels: `(1 + tanh u) / 2` is the sigmoid of `2 u`, `s (1 - s) = e / (1 + e)^2` with
//! `e = e^-|x|`, and `t = n / (n + 2)` with `n = e^x (e^x + 2)`, so tails keep their relative accuracy in f32.
//!
//! [`leaky_relu`] has the slope that it is given, `slope x` if `x < 0`; its backward goes by its output.
//!
//! Storage f32, bf16, f16 on CUDA, f32 or f64 on the CPU. Source: `torch.nn.functional`, default arguments.

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
use crate::{Device, Error, Result, Shape, Tensor, dispatch_real, span};

mod cases;
pub(crate) mod cpu;
mod cuda;

pub static SOURCE: Source = Source { path: "ops/activation/activation.cu", text: include_str!("activation.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "activation";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Identity,
    Elu,
    Silu,
    /// With the error function.
    Gelu,
    /// With the hyperbolic tangent that approximates it.
    GeluTanh,
    Tanh,
    Sigmoid,
    Relu,
    /// With a slope of 1 / 100.
    LeakyRelu,
    Mish,
    Softsign,
}

impl Activation {
    pub const ALL: [Activation; 11] = [
        Activation::Identity,
        Activation::Elu,
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Tanh,
        Activation::Sigmoid,
        Activation::Relu,
        Activation::LeakyRelu,
        Activation::Mish,
        Activation::Softsign,
    ];
}

pub fn forward(kind: Activation, x: &Tensor) -> Result<Tensor> {
    let _span = span::op("activation.forward");
    let mut y = x.empty_like()?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::forward::<T>(kind, &mut y, x))?,
        Device::Cuda(gpu) => cuda::forward(&gpu, kind, &mut y, x)?,
    }
    Ok(y)
}

/// `y [.., H] = f(u) v` of rows `[u; v]` of `x [.., 2 H]`.
///
/// # Errors
/// Rows that have no halves.
pub fn gate(kind: Activation, x: &Tensor) -> Result<Tensor> {
    let _span = span::op("activation.gate");
    let shape = x.shape();
    let Some((&wide, outer)) = shape.split_last().filter(|(wide, _)| wide.is_multiple_of(2)) else {
        return Err(Error::shape(NAME, "x", "[.., 2 H]", shape));
    };
    let mut y = Tensor::empty(&x.device(), x.dtype(), Shape::try_from(&[outer, &[wide / 2]].concat()[..])?)?;
    if y.elements() == 0 {
        return Ok(y);
    }
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::gate::<T>(kind, &mut y, x))?,
        Device::Cuda(gpu) => cuda::gate(&gpu, kind, &mut y, x)?,
    }
    Ok(y)
}

/// `dx` of [`forward`], from its input.
pub fn backward(kind: Activation, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let _span = span::op("activation.backward");
    check::same(NAME, x, "dy", dy)?;
    let mut dx = x.empty_like()?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::backward::<T>(kind, &mut dx, dy, x))?,
        Device::Cuda(gpu) => cuda::backward(&gpu, kind, &mut dx, dy, x)?,
    }
    Ok(dx)
}

/// `x`, or `slope x` where that is negative. `slope` is positive.
pub fn leaky_relu(x: &Tensor, slope: f64) -> Result<Tensor> {
    let _span = span::op("activation.leaky_relu");
    check_slope(slope)?;
    let mut y = x.empty_like()?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::leaky_relu::<T>(&mut y, x, slope))?,
        Device::Cuda(gpu) => cuda::leaky_relu(&gpu, &mut y, x, slope)?,
    }
    Ok(y)
}

/// `dx` of [`leaky_relu`], from its output, which has the sign of its input.
pub fn leaky_relu_backward(dy: &Tensor, y: &Tensor, slope: f64) -> Result<Tensor> {
    let _span = span::op("activation.leaky_relu_backward");
    check_slope(slope)?;
    check::same(NAME, y, "dy", dy)?;
    let mut dx = y.empty_like()?;
    match y.device() {
        Device::Cpu => dispatch_real!(NAME, y.dtype(), T => cpu::leaky_relu_backward::<T>(&mut dx, dy, y, slope))?,
        Device::Cuda(gpu) => cuda::leaky_relu_backward(&gpu, &mut dx, dy, y, slope)?,
    }
    Ok(dx)
}

fn check_slope(slope: f64) -> Result<()> {
    if slope > 0.0 && slope.is_finite() { Ok(()) } else { Err(Error::argument(NAME, format!("a slope of {slope} is not positive"))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::testing::{check_gradient, normal};

    #[test]
    fn a_leaky_relu_has_its_slope_and_its_gradient() {
        let y = leaky_relu(&crate::ops::testing::tensor(&[-2.0, 0.0, 3.0], [3]), 0.2).unwrap();
        assert_eq!(y.to_f64().unwrap(), [-0.4, 0.0, 3.0]);
        let backward = |i: &[Tensor], dy: &Tensor| Ok(vec![Some(leaky_relu_backward(dy, &leaky_relu(&i[0], 0.2)?, 0.2)?)]);
        check_gradient(&[normal([3, 31], 3)], |i| leaky_relu(&i[0], 0.2), backward);
        for slope in [0.0, -0.1, f64::NAN, f64::INFINITY] {
            assert!(leaky_relu(&normal([2], 1), slope).is_err() && leaky_relu_backward(&y, &y, slope).is_err());
        }
    }

    #[test]
    fn gradients_match_differences() {
        for kind in Activation::ALL {
            check_gradient(&[normal([3, 31], 3)], |i| forward(kind, &i[0]), |i, dy| Ok(vec![Some(backward(kind, dy, &i[0])?)]));
        }
    }

    #[test]
    fn a_gate_is_a_product() {
        let x = normal([5, 66], 4);
        for kind in Activation::ALL {
            let (active, found) = (forward(kind, &x).unwrap().to_f64().unwrap(), gate(kind, &x).unwrap());
            let (x, found, shape) = (x.to_f64().unwrap(), found.to_f64().unwrap(), found.shape());
            assert_eq!(*shape, [5, 33]);
            assert!((0..165).all(|i| found[i] == active[i / 33 * 66 + i % 33] * x[i / 33 * 66 + 33 + i % 33]), "{kind:?}");
        }
        assert!(gate(Activation::Silu, &normal([2, 33], 1)).is_err());
        assert_eq!(*gate(Activation::Silu, &normal([0, 8], 1)).unwrap().shape(), [0, 4]);
    }

    #[test]
    fn nan_stays_nan() {
        let x = Tensor::from_slice(&Device::Cpu, &[f32::NAN, 1.0], [2]).unwrap();
        for kind in Activation::ALL {
            let first = |t: Result<Tensor>| t.unwrap().to_vec::<f32>().unwrap()[0];
            assert!(first(forward(kind, &x)).is_nan(), "{kind:?}");
            // A slope that `x` only chooses is a number for NaN too.
            let piecewise = [Activation::Identity, Activation::Relu, Activation::LeakyRelu].contains(&kind);
            let dy = Tensor::from_slice(&Device::Cpu, &[1f32, 1.0], [2]).unwrap();
            assert_eq!(first(backward(kind, &dy, &x)).is_nan(), !piecewise, "{kind:?}");
        }
    }

    /// Where exponentials are neither normal nor finite in f32.
    #[test]
    fn tails_are_finite_and_those_of_f64() {
        let x = [20.0, 88.9, 104.0, 1000.0].map(|x| [x, -x]).concat();
        let tensor = |dtype, values: &[f64]| Tensor::from_f64(&Device::Cpu, dtype, values, [values.len()]).unwrap();
        for kind in Activation::ALL {
            for slope in [false, true] {
                let of = |dtype| {
                    let x = tensor(dtype, &x);
                    let y = if slope { backward(kind, &tensor(dtype, &[1.0; 8]), &x) } else { forward(kind, &x) };
                    y.unwrap().to_f64().unwrap()
                };
                for ((x, found), exact) in x.iter().zip(of(DType::F32)).zip(of(DType::F64)) {
                    assert!((found - exact).abs() <= 1e-5 * exact.abs() + 1e-36, "{kind:?} at {x}: {found}, expected {exact}");
                }
            }
        }
    }
}
