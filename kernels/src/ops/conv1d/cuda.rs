//! Which kernel computes what. The choice depends on the layer alone, never on batch or time.

use super::{Epilogue, Fused, Geometry, Prologue, Ring, SOURCE};
use crate::device::Arg;
use crate::ops::launch::kernel_name;
use crate::ops::matmul::cuda::{
    Correlation, Kernels, Output, TILE_16X64, TILE_64X64, TILE_128X32, TILE_128X128, Taps, Window, grid, int, run_length, signed,
};
use crate::{Cuda, Result, Tensor, args};

const OP: &str = "conv1d";
const FORWARD: Kernels = Kernels { op: OP, source: &SOURCE, name: "conv1d", tiles: &[TILE_128X128, TILE_64X64, TILE_128X32, TILE_16X64] };
const INPUT_GRADIENT: Kernels = Kernels { op: OP, source: &SOURCE, name: "conv1d_dx", tiles: &[TILE_64X64, TILE_128X32] };
const WEIGHT_GRADIENT: Kernels = Kernels { op: OP, source: &SOURCE, name: "conv1d_dw", tiles: &[TILE_64X64] };

/// Shared memory that every architecture has without asking.
const SHARED: usize = 48 << 10;

impl<'a> Prologue<'a> {
    /// As `Window` in `gemm.cuh` has it.
    pub(crate) fn code(&self) -> (i32, Option<&'a Tensor>) {
        match *self {
            Prologue::None => (0, None),
            Prologue::Snake(alpha) => (1, Some(alpha)),
            Prologue::Elu => (2, None),
        }
    }
}

impl Ring {
    /// What a kernel reads before time 0; none if the layer looks at no past.
    pub(crate) fn past(&self) -> Option<(&Tensor, &Tensor)> {
        (self.rows.shape()[1] > 0).then_some((&self.rows, &self.position))
    }
}

pub(super) fn forward(
    gpu: &Cuda,
    y: &mut Tensor,
    x: &Tensor,
    ring: Option<&Ring>,
    weight: &Tensor,
    g: &Geometry,
    fused: &Fused,
) -> Result<()> {
    let past = ring.and_then(Ring::past);
    let (xs, ws, ys) = (x.shape(), weight.shape(), y.shape());
    let (taps, cout) = (ws[0], ws[2]);
    let (prologue, alpha) = fused.prologue.code();
    let epilogue = match fused.epilogue {
        Epilogue::None => 0,
        Epilogue::Tanh => 1,
        Epilogue::Elu => 2,
    };
    let x = Window {
        past,
        alpha,
        prologue,
        ..window(x, (xs[0], xs[1], xs[2]), ys[1], g.stride, g.pad_left as isize, g.dilation as isize, taps)
    };
    let direct = |name: &str, blocks: usize, shared: usize| {
        let (ring, position) = past.unzip();
        let kernel = gpu.kernel(&SOURCE, &kernel_name(OP, name, x.data)?)?;
        int(OP, x.rows.saturating_mul(x.step).saturating_add(taps.saturating_mul(g.dilation)))?;
        int(OP, x.batches.saturating_mul(x.rows))?;
        let arguments: &mut [Arg] = args![
            &*y,
            x.data,
            weight,
            fused.bias,
            fused.residual,
            ring,
            position,
            alpha,
            int(OP, x.batches)?,
            int(OP, x.time)?,
            int(OP, x.channels)?,
            ring.map_or(0, |r| r.shape()[1] as i32),
            int(OP, x.rows)?,
            int(OP, x.step)?,
            signed(OP, x.offset)?,
            signed(OP, x.tap_step)?,
            int(OP, taps)?,
            prologue,
            int(OP, cout)?,
            int(OP, g.groups)?,
            epilogue,
        ];
        // SAFETY: the parameter list of DIRECT_KERNEL; `check` and `check_fused` keep every index inside the tensors.
        unsafe { kernel.launch(grid(blocks, 256, shared)?, arguments) }
    };
    if g.groups > 1 {
        let outputs = int(OP, ys.elements())? as usize;
        return direct("conv1d_grouped", outputs.div_ceil(256), 0);
    }
    let span = |steps: usize| (steps - 1).saturating_mul(g.stride).saturating_add((taps - 1).saturating_mul(g.dilation)).saturating_add(1);
    if x.channels == 1 && span(64) <= SHARED / 4 {
        return direct("conv1d_from_one", ys[0] * ys[1].div_ceil(64), span(64) * 4);
    }
    // The eight lanes of four threads' rows, four apart, then hit all banks.
    let pitch = (x.channels.saturating_add(5) / 8).saturating_mul(8).saturating_add(2);
    let to_one = span(128).saturating_mul(pitch).saturating_add(taps.saturating_mul(x.channels));
    if cout == 1 && to_one <= SHARED / 4 {
        return direct("conv1d_to_one", ys[0] * ys[1].div_ceil(128), to_one * 4);
    }
    let weights = Taps { data: weight, taps, rows: x.channels, columns: cout, phases: 1, dilation: 1, transposed: false };
    let output = Output { y, bias: fused.bias, residual: fused.residual, epilogue, time: ys[1], channels: cout, offset: 0 };
    FORWARD.product(gpu, x, weights, output)
}

pub(crate) fn window(
    data: &Tensor,
    (batches, time, channels): (usize, usize, usize),
    rows: usize,
    step: usize,
    offset: isize,
    tap_step: isize,
    taps: usize,
) -> Window<'_> {
    Window { data, past: None, alpha: None, prologue: 0, batches, time, channels, rows, step, offset, tap_step, taps }
}

/// Appends the rows of `x` to the rings of the streams that `mask` lets run.
pub(super) fn append(gpu: &Cuda, ring: &mut Ring, x: &Tensor, mask: Option<&Tensor>) -> Result<()> {
    let [batch, past, channels] = ring.rows.shape()[..] else { return Ok(()) };
    let time = x.shape()[1];
    if past == 0 {
        return Ok(());
    }
    int(OP, past.max(time).saturating_mul(channels))?;
    int(OP, past.saturating_add(time))?;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(OP, "conv1d_append", x)?)?;
    let arguments: &mut [Arg] = args![&mut ring.rows, &mut ring.position, x, mask, past as i32, time as i32, int(OP, channels)?];
    // SAFETY: the parameter list of conv1d_append; shapes were checked by `step`, the position is below `past` by induction.
    unsafe { kernel.launch(grid(batch, 256, 0)?, arguments) }
}

/// Fills the rings of the streams that nothing has primed yet and that `mask` lets run with the first row of `x`.
pub(super) fn prime(gpu: &Cuda, ring: &mut Ring, x: &Tensor, mask: Option<&Tensor>) -> Result<()> {
    let [batch, past, channels] = ring.rows.shape()[..] else { return Ok(()) };
    let kernel = gpu.kernel(&SOURCE, &kernel_name(OP, "conv1d_prime", x)?)?;
    int(OP, past.saturating_mul(channels))?;
    let arguments: &mut [Arg] = args![&mut ring.rows, &mut ring.primed, x, mask, past as i32, int(OP, x.shape()[1])?, channels as i32];
    // SAFETY: the parameter list of conv1d_prime; `prime` checked the shapes and that x has a row.
    unsafe { kernel.launch(grid(batch, 256, 0)?, arguments) }
}

pub(super) fn reset(gpu: &Cuda, ring: &mut Ring, mask: &Tensor) -> Result<()> {
    let [batch, past, channels] = ring.rows.shape()[..] else { return Ok(()) };
    let kernel = gpu.kernel(&SOURCE, &kernel_name(OP, "conv1d_reset", &ring.rows)?)?;
    let size = int(OP, past.saturating_mul(channels))?;
    // SAFETY: the parameter list of conv1d_reset; ring and mask have `batch` streams.
    unsafe { kernel.launch(grid(batch, 256, 0)?, args![&mut ring.rows, &mut ring.position, &mut ring.primed, mask, size]) }
}

pub(super) fn backward_input(gpu: &Cuda, dx: &mut Tensor, dy: &Tensor, weight: &Tensor, g: &Geometry) -> Result<()> {
    let (xs, ys, ws) = (dx.shape(), dy.shape(), weight.shape());
    let ([batch, t, cin], [_, tout, cout], taps) = ([xs[0], xs[1], xs[2]], [ys[0], ys[1], ys[2]], ws[0]);
    if dx.elements() == 0 || dy.elements() == 0 {
        return dx.set_zero();
    }
    if g.groups > 1 {
        let kernel = gpu.kernel(&SOURCE, &kernel_name(OP, "conv1d_grouped_dx", dy)?)?;
        let elements = int(OP, dx.elements())? as usize;
        int(OP, t.saturating_add(g.pad_left).saturating_add(taps.saturating_mul(g.dilation)))?;
        let arguments: &mut [Arg] = args![
            &*dx,
            dy,
            weight,
            int(OP, batch)?,
            int(OP, t)?,
            int(OP, cin)?,
            int(OP, taps)?,
            int(OP, tout)?,
            int(OP, cout)?,
            int(OP, g.groups)?,
            int(OP, g.stride)?,
            int(OP, g.dilation)?,
            int(OP, g.pad_left)?,
        ];
        // SAFETY: the parameter list of conv1d_grouped_dx; shapes were checked by `backward_input`.
        return unsafe { kernel.launch(grid(elements.div_ceil(256), 256, 0)?, arguments) };
    }
    let (x, phases, dilation, offset) = if g.stride == 1 {
        let x = window(dy, (batch, tout, cout), t, 1, -(g.pad_left as isize), -(g.dilation as isize), taps);
        (x, 1, 1, 0)
    } else {
        // Input s = q * stride + phase - pad_left is read by outputs q - j through tap j * stride + phase (in steps of one
        // sample, of which only multiples of the dilation are taps).
        let first = g.pad_left / g.stride;
        let rows = (t - 1 + g.pad_left) / g.stride - first + 1;
        let x = window(dy, (batch, tout, cout), rows, 1, -(first as isize), -1, g.reach(taps).div_ceil(g.stride));
        (x, g.stride, g.dilation, g.pad_left % g.stride)
    };
    let weights = Taps { data: weight, taps, rows: cin, columns: cout, phases, dilation, transposed: true };
    let output = Output { y: dx, bias: None, residual: None, epilogue: 0, time: t, channels: cin, offset };
    INPUT_GRADIENT.product(gpu, x, weights, output)
}

pub(super) fn backward_weight(gpu: &Cuda, dw: &mut Tensor, dy: &Tensor, x: &Tensor, g: &Geometry) -> Result<()> {
    let (xs, ys, taps) = (x.shape(), dy.shape(), dw.shape()[0]);
    let total = ys[0].saturating_mul(ys[1]);
    if total == 0 || x.elements() == 0 {
        return dw.set_zero();
    }
    let cout = ys[2];
    let rows = window(x, (xs[0], xs[1], xs[2]), ys[1], g.stride, g.pad_left as isize, g.dilation as isize, taps);
    if g.groups > 1 {
        let kernel = gpu.kernel(&SOURCE, &kernel_name(OP, "conv1d_grouped_dw", dy)?)?;
        int(OP, total)?;
        int(OP, ys[1].saturating_mul(g.stride).saturating_add(taps.saturating_mul(g.dilation)))?;
        let arguments: &mut [Arg] = args![
            &*dw,
            x,
            dy,
            int(OP, xs[0])?,
            int(OP, xs[1])?,
            int(OP, xs[2])?,
            int(OP, g.stride)?,
            int(OP, g.pad_left)?,
            int(OP, g.dilation)?,
            int(OP, taps)?,
            int(OP, ys[1])?,
            int(OP, cout)?,
            int(OP, g.groups)?,
        ];
        // SAFETY: the parameter list of conv1d_grouped_dw; shapes were checked by `backward_weight`.
        return unsafe { kernel.launch(grid(taps * dw.shape()[1] * cout.div_ceil(16), 256, 0)?, arguments) };
    }
    let depth = run_length(total, taps * xs[2], cout);
    WEIGHT_GRADIENT.correlation(gpu, Correlation { dw, x: rows, rows: dy, columns: cout, swapped: false, depth })
}
