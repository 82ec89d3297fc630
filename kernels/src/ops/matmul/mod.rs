//! Matrix product `C = op(A) op(B)`, where `op` may transpose.
//!
//! | tensor | shape                                  |                                      |
//! |--------|----------------------------------------|--------------------------------------|
//! | `a`    | `[.., M, K]`, or `[K, M]` transposed   | leading axes are more rows           |
//! | `b`    | `[K, N]`, or `[N, K]` transposed       | shared by all rows                   |
//! | `c`    | `[.., M, N]`                           |                                      |
//!
//! Every output is one sum over `k` in ascending order, whatever `M` (with `a` transposed, on CUDA: sums over runs of `k` of a
//! length that depends on `K` alone, then over the runs). Storage f32, bf16 or f16 on CUDA with f32 accumulation,
//! f32 or f64 on the CPU.

mod cases;
mod cpu;
pub(crate) mod cuda;

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
use crate::{DType, Device, Error, Result, Shape, Tensor, dispatch_real, span};

pub static SOURCE: Source = Source { path: "ops/matmul/matmul.cu", text: include_str!("matmul.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: "matmul", sources: &[&SOURCE], cases: cases::cases };

/// Which operands are stored transposed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transpose {
    pub a: bool,
    pub b: bool,
}

struct Extents {
    m: usize,
    n: usize,
    k: usize,
}

pub fn forward(a: &Tensor, b: &Tensor, transpose: Transpose) -> Result<Tensor> {
    forward_in(a.dtype(), a, b, transpose)
}

/// As [`forward`], in `dtype`: that of `a`, or on CUDA, with `a` transposed, f32, without the rounding of a store.
pub fn forward_in(dtype: DType, a: &Tensor, b: &Tensor, transpose: Transpose) -> Result<Tensor> {
    let _span = span::op("matmul.forward");
    const OP: &str = "matmul";
    let (sa, sb) = (a.shape(), b.shape());
    if sa.len() < 2 || (transpose.a && sa.len() != 2) {
        return Err(Error::shape(OP, "a", if transpose.a { "[K, M]" } else { "[.., M, K]" }, sa));
    }
    let &[b0, b1] = &*sb else { return Err(Error::shape(OP, "b", "two axes", sb)) };
    let (k, n) = if transpose.b { (b1, b0) } else { (b0, b1) };
    let (m, found) = if transpose.a { (sa[1], sa[0]) } else { (sa.rows(), sa.last_dim()) };
    if found != k {
        return Err(Error::shape(OP, "a", format!("{k} along the summed axis"), sa));
    }
    if a.device() != b.device() {
        return Err(Error::DeviceMismatch { op: OP, operand: "b" });
    }
    if a.dtype() != b.dtype() {
        return Err(Error::dtype(OP, "b", a.dtype().name(), b.dtype()));
    }
    let mut shape = [0; Shape::MAX_RANK];
    shape[..sa.len()].copy_from_slice(&sa);
    shape[sa.len() - 2] = if transpose.a { m } else { sa[sa.len() - 2] };
    shape[sa.len() - 1] = n;
    check::sums(OP, a, "c", dtype, transpose.a)?;
    let mut c = Tensor::empty(&a.device(), dtype, Shape::try_from(&shape[..sa.len()])?)?;
    let e = Extents { m, n, k };
    match a.device() {
        Device::Cpu => dispatch_real!(OP, a.dtype(), T => cpu::forward::<T>(&mut c, a, b, transpose, &e))?,
        Device::Cuda(gpu) => cuda::forward(&gpu, &mut c, a, b, transpose, &e)?,
    }
    Ok(c)
}
