use super::{EPSILON, NAME, SOURCE};
use crate::driver::Launch;
use crate::ops::launch::index;
use crate::{Cuda, Result, Tensor, args};

/// A block a row, and the elements of one.
fn rows(x: &Tensor) -> Result<(Launch, i32)> {
    let width = x.shape().last_dim();
    // A thread beyond the end still counts in 32 bits.
    index(NAME, width.saturating_add(1024))?;
    let grid = [index(NAME, x.elements() / width)? as u32, 1, 1];
    Ok((Launch { grid, block: [1024, 1, 1], shared_bytes: 0, cooperative: false }, width as i32))
}

pub fn forward(gpu: &Cuda, y: &mut Tensor, x: &Tensor, level: f64) -> Result<()> {
    let (launch, width) = rows(x)?;
    let kernel = gpu.kernel(&SOURCE, "peak_norm_f32")?;
    // SAFETY: the parameters of peak_norm_f32; `check` lets no other type through on CUDA, rows have `width` elements.
    unsafe { kernel.launch(launch, args![y, x, width, level as f32, EPSILON as f32]) }
}

pub fn backward(gpu: &Cuda, dx: &mut Tensor, dy: &Tensor, x: &Tensor, level: f64) -> Result<()> {
    let (launch, width) = rows(x)?;
    let kernel = gpu.kernel(&SOURCE, "peak_norm_backward_f32")?;
    // SAFETY: the parameters of peak_norm_backward_f32; as above.
    unsafe { kernel.launch(launch, args![dx, dy, x, width, level as f32, EPSILON as f32]) }
}
