//! Launches.

use crate::{Cuda, Error, Result, Tensor};

fn pending<T>() -> Result<T> {
    Err(Error::argument(super::NAME, "no CUDA kernel yet"))
}

pub fn nearest(_: &Cuda, _: &Tensor, _: &Tensor, _: super::Metric) -> Result<Tensor> {
    pending()
}

pub fn stage(_: &Cuda, _: &Tensor, _: &Tensor) -> Result<(Tensor, Tensor)> {
    pending()
}

pub fn search(_: &Cuda, _: &Tensor, _: &[&Tensor]) -> Result<(Tensor, Tensor)> {
    pending()
}

pub fn decode(_: &Cuda, _: &Tensor, _: &[&Tensor]) -> Result<Tensor> {
    pending()
}
