use super::{Extents, Fused, Geometry, NAME, SOURCE};
use crate::device::Arg;
use crate::ops::conv1d::Ring;
use crate::ops::conv1d::cuda::window;
use crate::ops::launch::kernel_name;
use crate::ops::matmul::cuda::{
    Correlation, Kernels, Output, TILE_16X64, TILE_64X64, TILE_128X32, Taps, Window, grid, int, run_length, signed,
};
use crate::{Cuda, Result, Tensor, args};

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
    g: &Geometry,
    fused: &Fused,
    e: &Extents,
) -> Result<()> {
    if e.tout == 0 || e.batch == 0 {
        return Ok(());
    }
    let first = g.crop_left / g.stride;
    let rows = (e.tout - 1 + g.crop_left) / g.stride - first + 1;
    let (prologue, alpha) = fused.prologue.code();
    let past = ring.and_then(Ring::past);
    let x = window(x, (e.batch, e.t, e.cin), rows, 1, -(first as isize), -1, e.taps.div_ceil(g.stride));
    let x = Window { past, prologue, alpha, ..x };
    let offset = g.crop_left % g.stride;
    if g.groups > 1 {
        let (ring, position) = past.unzip();
        let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "conv_transpose1d_depthwise", x.data)?)?;
        let outputs = int(NAME, e.batch.saturating_mul(e.tout).saturating_mul(e.cout))? as usize;
        int(NAME, rows.saturating_add(e.taps).saturating_mul(g.stride))?;
        let arguments: &mut [Arg] = args![
            &*y,
            x.data,
            weight,
            fused.bias,
            ring,
            position,
            alpha,
            int(NAME, x.batches)?,
            int(NAME, x.time)?,
            int(NAME, x.channels)?,
            ring.map_or(0, |r| r.shape()[1] as i32),
            int(NAME, x.rows)?,
            signed(NAME, x.offset)?,
            int(NAME, x.taps)?,
            prologue,
            int(NAME, e.tout)?,
            int(NAME, e.taps)?,
            int(NAME, g.stride)?,
            int(NAME, offset)?,
        ];
        // SAFETY: the parameter list of conv_transpose1d_depthwise; `check` keeps every index inside the tensors.
        return unsafe { kernel.launch(grid(outputs.div_ceil(256), 256, 0)?, arguments) };
    }
    let weights = Taps { data: weight, taps: e.taps, rows: e.cin, columns: e.cout, phases: g.stride, dilation: 1, transposed: false };
    FORWARD.product(gpu, x, weights, Output { y, bias: fused.bias, residual: None, epilogue: 0, time: e.tout, channels: e.cout, offset })
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
