//! Operand checks that every operation makes.

use crate::{DType, Device, Error, Result, Tensor};

/// `other` is on the device of `x` and stores the same type.
pub fn alike(op: &'static str, x: &Tensor, operand: &'static str, other: &Tensor) -> Result<()> {
    stored_alike(op, x, operand, &other.device(), other.dtype())
}

/// `device` and `dtype` are those of `x`.
pub fn stored_alike(op: &'static str, x: &Tensor, operand: &'static str, device: &Device, dtype: DType) -> Result<()> {
    if *device != x.device() {
        return Err(Error::DeviceMismatch { op, operand });
    }
    if dtype != x.dtype() {
        return Err(Error::dtype(op, operand, x.dtype().name(), dtype));
    }
    Ok(())
}

/// A weight prepared for `device` suits `x`: it has its type, or, on the CPU, is bf16 beside f32, or of codes, which have none.
pub fn prepared(op: &'static str, x: &Tensor, device: &Device, dtype: Option<DType>) -> Result<()> {
    let Some(dtype) = dtype else {
        return if x.device() == *device { Ok(()) } else { Err(Error::DeviceMismatch { op, operand: "weight" }) };
    };
    let computed = if *device == Device::Cpu && dtype == DType::BF16 { DType::F32 } else { dtype };
    stored_alike(op, x, "weight", device, computed)
}

/// `dtype` is one that sums of products of values of `x` are stored in: theirs, or on CUDA f32, where kernels store sums as they are.
pub fn sums(op: &'static str, x: &Tensor, operand: &'static str, dtype: DType, as_they_are: bool) -> Result<()> {
    let wider = as_they_are && dtype == DType::F32 && x.device() != Device::Cpu && x.dtype().is_float();
    if dtype == x.dtype() || wider { Ok(()) } else { Err(Error::dtype(op, operand, x.dtype().name(), dtype)) }
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

/// `mask`, if there is one, says of each of `batch` streams on `device` whether it runs: u8 `[B]`.
pub fn mask(op: &'static str, device: &Device, batch: usize, mask: Option<&Tensor>) -> Result<()> {
    let Some(mask) = mask else { return Ok(()) };
    if mask.dtype() != DType::U8 {
        return Err(Error::dtype(op, "mask", "u8", mask.dtype()));
    }
    if *mask.shape() != [batch] {
        return Err(Error::shape(op, "mask", format!("[{batch}]"), mask.shape()));
    }
    if mask.device() != *device {
        return Err(Error::DeviceMismatch { op, operand: "mask" });
    }
    Ok(())
}
