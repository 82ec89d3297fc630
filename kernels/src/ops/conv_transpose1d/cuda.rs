use super::{Extents, Geometry, NAME, SOURCE};
use crate::ops::conv1d::Ring;
use crate::ops::conv1d::cuda::window;
use crate::ops::matmul::cuda::{Correlation, Kernels, Output, TILE_16X64, TILE_64X64, TILE_128X32, Taps, run_length};
use crate::{Cuda, Result, Tensor};

const FORWARD: Kernels = Kernels { op: NAME, source: &SOURCE, name: "conv_transpose1d", tiles: &[TILE_64X64, TILE_128X32, TILE_16X64] };
const INPUT_GRADIENT: Kernels = Kernels { op: NAME, source: &SOURCE, name: "conv_transpose1d_dx", tiles: &[TILE_64X64] };
const WEIGHT_GRADIENT: Kernels = Kernels { op: NAME, source: &SOURCE, name: "conv_transpose1d_dw", tiles: &[TILE_64X64] };

/// Output `o = q * stride + phase - crop` reads inputs `q - j` through taps `j * stride + phase`.
#[allow(clippy::too_many_arguments, reason = "the operands of the convolution")]
pub(super) fn forward(
    gpu: &Cuda,
    y: &mut Tensor,
    x: &Tensor,
    ring: Option<&Ring>,
    weight: &Tensor,
    bias: Option<&Tensor>,
    g: &Geometry,
    e: &Extents,
) -> Result<()> {
    if e.tout == 0 {
        return Ok(());
    }
    let first = g.crop_left / g.stride;
    let rows = (e.tout - 1 + g.crop_left) / g.stride - first + 1;
    let mut x = window(x, (e.batch, e.t, e.cin), rows, 1, -(first as isize), -1, e.taps.div_ceil(g.stride));
    x.past = ring.and_then(Ring::past);
    let weights = Taps { data: weight, taps: e.taps, rows: e.cin, columns: e.cout, phases: g.stride, dilation: 1, transposed: false };
    let offset = g.crop_left % g.stride;
    FORWARD.product(gpu, x, weights, Output { y, bias, residual: None, epilogue: 0, time: e.tout, channels: e.cout, offset })
}

pub(super) fn backward_input(gpu: &Cuda, dx: &mut Tensor, dy: &Tensor, weight: &Tensor, g: &Geometry) -> Result<()> {
    let (xs, ys, taps) = (dx.shape(), dy.shape(), weight.shape()[0]);
    if dx.elements() == 0 || dy.elements() == 0 {
        return dx.set_zero();
    }
    let rows = window(dy, (ys[0], ys[1], ys[2]), xs[1], g.stride, g.crop_left as isize, 1, taps);
    let weights = Taps { data: weight, taps, rows: xs[2], columns: ys[2], phases: 1, dilation: 1, transposed: true };
    let output = Output { y: dx, bias: None, residual: None, epilogue: 0, time: xs[1], channels: xs[2], offset: 0 };
    INPUT_GRADIENT.product(gpu, rows, weights, output)
}

pub(super) fn backward_weight(gpu: &Cuda, dw: &mut Tensor, dy: &Tensor, x: &Tensor, g: &Geometry) -> Result<()> {
    let (xs, ys, taps) = (x.shape(), dy.shape(), dw.shape()[0]);
    if x.elements() == 0 || dy.elements() == 0 {
        return dw.set_zero();
    }
    // Windows of dy against rows of x give [(tap, out), in].
    let rows = window(dy, (ys[0], ys[1], ys[2]), xs[1], g.stride, g.crop_left as isize, 1, taps);
    let depth = run_length(xs[0].saturating_mul(xs[1]), taps * ys[2], xs[2]);
    WEIGHT_GRADIENT.correlation(gpu, Correlation { dw, x: rows, rows: x, columns: xs[2], swapped: true, depth })
}
