//! Launch shapes and argument packing.

use super::{Geometry, NAME, SOURCE};
use crate::driver::Launch;
use crate::ops::launch::{THREADS, check_f32, threads};
use crate::{Cuda, DType, Error, Result, Tensor, args};

/// Complex points a block transforms at once, if one frame has not more.
const POINTS: usize = 1024;
const MAX_WINDOW: usize = 4096;

pub fn forward(gpu: &Cuda, x: &Tensor, g: Geometry) -> Result<Tensor> {
    let shape = Transform::new(x, g)?;
    let out = Tensor::empty(&x.device(), DType::F32, [g.batch, g.frames(), g.bins(), 2])?;
    let [frames, samples, hop] = [g.frames(), g.samples, g.hop.min(g.samples + 1)].map(|v| v as i32);
    let args = args![&out, x, shape.total as i32, shape.at_once as i32, frames, samples, shape.log_points as i32, hop];
    // SAFETY: x [batch, samples] with samples > window / 2, so that a reflection stays inside; out [total, window / 2 + 1, 2].
    unsafe { gpu.kernel(&SOURCE, "stft_forward_f32")?.launch(shape.launch(), args)? };
    Ok(out)
}

pub fn backward(gpu: &Cuda, dspec: &Tensor, g: Geometry) -> Result<Tensor> {
    let shape = Transform::new(dspec, g)?;
    let windowed = Tensor::empty(&dspec.device(), DType::F32, [g.batch, g.frames(), g.window])?;
    let dx = Tensor::empty(&dspec.device(), DType::F32, [g.batch, g.samples])?;
    check_f32(NAME, &dx)?;
    let args = args![&windowed, dspec, shape.total as i32, shape.at_once as i32, shape.log_points as i32];
    // SAFETY: dspec [total, window / 2 + 1, 2], windowed [total, window].
    unsafe { gpu.kernel(&SOURCE, "stft_frames_f32")?.launch(shape.launch(), args)? };
    let [batch, frames, samples, window, hop] =
        [g.batch, g.frames(), g.samples, g.window, g.hop.min(g.samples + g.window)].map(|v| v as i32);
    let args = args![&dx, &windowed, batch, frames, samples, window, hop];
    // SAFETY: dx [batch, samples], windowed [batch, frames, window].
    unsafe { gpu.kernel(&SOURCE, "stft_overlap_add_f32")?.launch(threads(NAME, dx.elements())?, args)? };
    Ok(dx)
}

pub fn magnitude(gpu: &Cuda, out: &mut Tensor, spec: &Tensor) -> Result<()> {
    check_f32(NAME, spec)?;
    let n = out.elements();
    // SAFETY: out [n], spec [n, 2].
    unsafe { gpu.kernel(&SOURCE, "stft_magnitude_f32")?.launch(threads(NAME, n)?, args![out, spec, n as i32]) }
}

pub fn magnitude_backward(gpu: &Cuda, dspec: &mut Tensor, dmag: &Tensor, spec: &Tensor) -> Result<()> {
    check_f32(NAME, spec)?;
    let n = dmag.elements();
    // SAFETY: dmag [n], spec and dspec [n, 2].
    unsafe { gpu.kernel(&SOURCE, "stft_magnitude_backward_f32")?.launch(threads(NAME, n)?, args![dspec, dmag, spec, n as i32]) }
}

/// How the frames are spread over blocks.
struct Transform {
    total: usize,
    at_once: usize,
    log_points: u32,
}

impl Transform {
    fn new(operand: &Tensor, g: Geometry) -> Result<Transform> {
        check_f32(NAME, operand)?;
        if !g.window.is_power_of_two() || g.window > MAX_WINDOW {
            return Err(Error::argument(NAME, format!("window {}; on CUDA a power of two up to {MAX_WINDOW}", g.window)));
        }
        if g.samples + g.window > i32::MAX as usize {
            return Err(Error::argument(NAME, format!("{} samples; on CUDA fewer than 2^31", g.samples)));
        }
        let points = g.window / 2;
        Ok(Transform { total: g.batch * g.frames(), at_once: (POINTS / points).max(1), log_points: points.ilog2() })
    }

    fn launch(&self) -> Launch {
        let points = 1 << self.log_points;
        let complex_numbers = 2 * self.at_once * points + points;
        Launch {
            grid: [self.total.div_ceil(self.at_once) as u32, 1, 1],
            block: [THREADS as u32, 1, 1],
            shared_bytes: 8 * complex_numbers as u32,
            cooperative: false,
        }
    }
}
