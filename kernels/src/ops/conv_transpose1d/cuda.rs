use super::{Extents, Geometry};
use crate::ops::conv1d::Ring;
use crate::{Cuda, Error, Result, Tensor};

fn missing<T>() -> Result<T> {
    Err(Error::argument("conv_transpose1d", "no CUDA kernel yet"))
}
pub(super) fn forward(_: &Cuda, _: &mut Tensor, _: &Tensor, _: &Tensor, _: Option<&Tensor>, _: &Geometry, _: &Extents) -> Result<()> {
    missing()
}
#[allow(clippy::too_many_arguments)]
pub(super) fn step(
    _: &Cuda, _: &mut Tensor, _: &Tensor, _: &mut Ring, _: &Tensor, _: Option<&Tensor>, _: &Geometry, _: &Extents, _: Option<&Tensor>,
) -> Result<()> {
    missing()
}
pub(super) fn backward_input(_: &Cuda, _: &mut Tensor, _: &Tensor, _: &Tensor, _: &Geometry) -> Result<()> {
    missing()
}
pub(super) fn backward_weight(_: &Cuda, _: &mut Tensor, _: &Tensor, _: &Tensor, _: &Geometry) -> Result<()> {
    missing()
}
