//! Sums, products, scaling, transposition and conversion: what a tape needs between the operations that matter.
//!
//! ```text
//! add a + b      sub a - b      mul a b      scale f x      add_row x[.., c] + bias[c]      transpose y[b, n, m] = x[b, m, n]
//! ```
//! Any shape unless stated; no broadcasting but [`add_row`]'s. f32, bf16 or f16 on CUDA (one rounding, after f32
//! arithmetic), f32 or f64 on the CPU.

use half::bf16;

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
use crate::{DType, Device, Error, Result, Tensor, dispatch_real, span};

mod cases;
mod cpu;
pub(super) mod cuda;

pub static SOURCE: Source = Source { path: "ops/elementwise/elementwise.cu", text: include_str!("elementwise.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "elementwise";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Binary {
    Add,
    Sub,
    Mul,
}

pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let _span = span::op("elementwise.add");
    binary(Binary::Add, a, b)
}

pub fn sub(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let _span = span::op("elementwise.sub");
    binary(Binary::Sub, a, b)
}

pub fn mul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let _span = span::op("elementwise.mul");
    binary(Binary::Mul, a, b)
}

fn binary(kind: Binary, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check::same(NAME, a, "b", b)?;
    let mut y = a.empty_like()?;
    match a.device() {
        Device::Cpu => dispatch_real!(NAME, a.dtype(), T => cpu::binary::<T>(kind, &mut y, a, b))?,
        Device::Cuda(gpu) => cuda::binary(&gpu, kind, &mut y, a, b)?,
    }
    Ok(y)
}

/// `factor x`.
pub fn scale(x: &Tensor, factor: f64) -> Result<Tensor> {
    let _span = span::op("elementwise.scale");
    let mut y = x.empty_like()?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::scale::<T>(&mut y, x, factor))?,
        Device::Cuda(gpu) => cuda::scale(&gpu, &mut y, x, factor)?,
    }
    Ok(y)
}

/// `a += b`.
pub fn add_assign(a: &mut Tensor, b: &Tensor) -> Result<()> {
    let _span = span::op("elementwise.add_assign");
    check::same(NAME, a, "b", b)?;
    match a.device() {
        Device::Cpu => dispatch_real!(NAME, a.dtype(), T => cpu::add_assign::<T>(a, b)),
        Device::Cuda(gpu) => cuda::add_assign(&gpu, a, b),
    }
}

/// `bias [C]`, of the type of `x [.., C]`, added to every row.
pub fn add_row(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let _span = span::op("elementwise.add_row");
    if *bias.shape() != [x.shape().last_dim()] {
        return Err(Error::shape(NAME, "bias", format!("[{}]", x.shape().last_dim()), bias.shape()));
    }
    check::alike(NAME, x, "bias", bias)?;
    let mut y = x.empty_like()?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::add_row::<T>(&mut y, x, bias))?,
        Device::Cuda(gpu) => cuda::add_row(&gpu, &mut y, x, bias)?,
    }
    Ok(y)
}

/// `[B, M, N]` to `[B, N, M]`.
pub fn transpose(x: &Tensor) -> Result<Tensor> {
    let _span = span::op("elementwise.transpose");
    let &[batch, m, n] = &*x.shape() else { return Err(Error::shape(NAME, "x", "[B, M, N]", x.shape())) };
    let mut y = Tensor::empty(&x.device(), x.dtype(), [batch, n, m])?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::transpose::<T>(&mut y, x, m, n))?,
        Device::Cuda(gpu) => cuda::transpose(&gpu, &mut y, x, [batch, m, n])?,
    }
    Ok(y)
}

/// The values of `x` rounded to nearest even in `dtype`. Floating types only on CUDA.
pub fn convert(x: &Tensor, dtype: DType) -> Result<Tensor> {
    let _span = span::op("elementwise.convert");
    if x.dtype() == dtype {
        return x.copy();
    }
    match x.device() {
        Device::Cpu => match (x.dtype(), dtype) {
            (DType::F32, DType::BF16) => cpu::convert(x, bf16::from_f32),
            (DType::BF16, DType::F32) => cpu::convert(x, bf16::to_f32),
            _ => Tensor::from_f64(&Device::Cpu, dtype, &x.to_f64()?, x.shape()),
        },
        Device::Cuda(gpu) => {
            let mut y = Tensor::empty(&x.device(), dtype, x.shape())?;
            cuda::convert(&gpu, &mut y, x)?;
            Ok(y)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_gradient, normal};

    #[test]
    fn sums_and_products_are_those_of_the_elements() {
        let (a, b) = (normal([3, 127], 1), normal([3, 127], 2));
        let (av, bv) = (a.to_f64().unwrap(), b.to_f64().unwrap());
        let expect = |y: Tensor, f: fn(f64, f64) -> f64| {
            assert_eq!(y.to_f64().unwrap(), av.iter().zip(&bv).map(|(&a, &b)| f(a, b)).collect::<Vec<_>>());
        };
        expect(add(&a, &b).unwrap(), |a, b| a + b);
        expect(sub(&a, &b).unwrap(), |a, b| a - b);
        expect(mul(&a, &b).unwrap(), |a, b| a * b);
        expect(scale(&a, -0.5).unwrap(), |a, _| a * -0.5);
        let mut sum = a.copy().unwrap();
        add_assign(&mut sum, &b).unwrap();
        expect(sum, |a, b| a + b);
    }

    #[test]
    fn a_product_is_differentiated_by_products() {
        check_gradient(
            &[normal([33], 1), normal([33], 2)],
            |i| mul(&i[0], &i[1]),
            |i, dy| Ok(vec![Some(mul(dy, &i[1])?), Some(mul(dy, &i[0])?)]),
        );
    }

    #[test]
    fn a_row_is_added_to_every_row() {
        for c in [1, 3, 64, 100] {
            let (x, bias) = (normal([2, 50, c], 1), normal([c], 2));
            let y = add_row(&x, &bias).unwrap().to_f64().unwrap();
            let (xv, bv) = (x.to_f64().unwrap(), bias.to_f64().unwrap());
            assert!(y.iter().enumerate().all(|(i, y)| *y == xv[i] + bv[i % c]));
        }
    }

    #[test]
    fn a_transpose_moves_every_element_and_is_its_own_inverse() {
        for (m, n) in [(1, 1), (1, 31), (33, 127), (500, 3), (64, 64), (0, 5)] {
            let x = normal([2, m, n], 1);
            let y = transpose(&x).unwrap();
            assert_eq!(*y.shape(), [2, n, m]);
            let (xv, yv) = (x.to_f64().unwrap(), y.to_f64().unwrap());
            assert!((0..2 * m * n).all(|i| yv[i / (m * n) * m * n + i % n * m + i / n % m] == xv[i]));
            assert_eq!(transpose(&y).unwrap().to_f64().unwrap(), xv);
        }
    }

    #[test]
    fn conversion_rounds_to_nearest_even() {
        let x = Tensor::from_slice(&Device::Cpu, &[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::NAN], [3]).unwrap();
        let y = convert(&x, DType::BF16).unwrap().to_f64().unwrap();
        assert_eq!(y[..2], [1.0, 1.015625]);
        assert!(y[2].is_nan());
    }

    #[test]
    fn operands_of_different_shapes_are_an_error() {
        assert!(matches!(add(&normal([2, 3], 1), &normal([3, 2], 1)), Err(Error::Shape { operand: "b", .. })));
        assert!(matches!(add_row(&normal([2, 3], 1), &normal([2], 1)), Err(Error::Shape { operand: "bias", .. })));
        assert!(matches!(transpose(&normal([2, 3], 1)), Err(Error::Shape { operand: "x", .. })));
    }
}
