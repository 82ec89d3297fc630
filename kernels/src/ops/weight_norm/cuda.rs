use super::{Axis, NAME, SOURCE};
use crate::driver::Launch;
use crate::ops::launch::{index, kernel_name};
use crate::{Cuda, Result, Tensor, args};

/// Extents of `v` as kernels take them, the axis, and a block for every eight outputs or for every input.
fn geometry(v: &Tensor, axis: Axis) -> Result<([i32; 4], Launch)> {
    let &[taps, cin, cout] = &*v.shape() else { return Err(crate::Error::shape(NAME, "v", "[taps, in, out]", v.shape())) };
    index(NAME, taps.saturating_mul(cin))?;
    let blocks = match axis {
        Axis::Out => cout.div_ceil(8),
        Axis::In => cin,
    };
    let launch = Launch { grid: [index(NAME, blocks)? as u32, 1, 1], block: [8, 32, 1], shared_bytes: 0, cooperative: false };
    Ok(([index(NAME, taps)?, index(NAME, cin)?, index(NAME, cout)?, (axis == Axis::In) as i32], launch))
}

pub fn forward(gpu: &Cuda, w: &mut Tensor, v: &Tensor, g: &Tensor, axis: Axis) -> Result<()> {
    let ([taps, cin, cout, by_input], launch) = geometry(v, axis)?;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "weight_norm", v)?)?;
    // SAFETY: the parameters of weight_norm_f32, the only type that `check` lets through on CUDA.
    unsafe { kernel.launch(launch, args![w, v, g, taps, cin, cout, by_input]) }
}

pub fn backward(gpu: &Cuda, dv: &mut Tensor, dg: &mut Tensor, dw: &Tensor, v: &Tensor, g: &Tensor, axis: Axis) -> Result<()> {
    let ([taps, cin, cout, by_input], launch) = geometry(v, axis)?;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "weight_norm_backward", v)?)?;
    // SAFETY: the parameters of weight_norm_backward_f32.
    unsafe { kernel.launch(launch, args![dv, dg, dw, v, g, taps, cin, cout, by_input]) }
}
