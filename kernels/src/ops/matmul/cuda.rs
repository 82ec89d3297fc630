use super::{Extents, Transpose};
use crate::{Cuda, Error, Result, Tensor};

pub(super) fn forward(_: &Cuda, _: &mut Tensor, _: &Tensor, _: &Tensor, _: Transpose, _: &Extents) -> Result<()> {
    Err(Error::argument("matmul", "no CUDA kernel yet"))
}
