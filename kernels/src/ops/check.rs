//! Operand checks that every operation makes.

use crate::{DType, Error, Result, Tensor};

/// `other` is on the device of `x` and stores the same type.
pub fn alike(op: &'static str, x: &Tensor, operand: &'static str, other: &Tensor) -> Result<()> {
    if other.device() != x.device() {
        return Err(Error::DeviceMismatch { op, operand });
    }
    if other.dtype() != x.dtype() {
        return Err(Error::dtype(op, operand, x.dtype().name(), other.dtype()));
    }
    Ok(())
}

/// `other` is on the device of `x` and has its shape and type.
pub fn same(op: &'static str, x: &Tensor, operand: &'static str, other: &Tensor) -> Result<()> {
    if other.shape() != x.shape() {
        return Err(Error::shape(op, operand, format!("{:?}", x.shape()), other.shape()));
    }
    alike(op, x, operand, other)
}

/// `v` is a `[n]` of parameters or statistics for `x`: see [`statistics_dtype`].
pub fn parameter(op: &'static str, x: &Tensor, operand: &'static str, v: &Tensor, n: usize) -> Result<()> {
    if *v.shape() != [n] {
        return Err(Error::shape(op, operand, format!("[{n}]"), v.shape()));
    }
    if v.device() != x.device() {
        return Err(Error::DeviceMismatch { op, operand });
    }
    match statistics_dtype(x.dtype()) {
        expected if v.dtype() != expected => Err(Error::dtype(op, operand, expected.name(), v.dtype())),
        _ => Ok(()),
    }
}

/// What sums over, and per-channel parameters beside, values of type `dtype` are stored in: f32, or f64 beside f64.
pub fn statistics_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
