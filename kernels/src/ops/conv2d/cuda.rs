//! Which kernel computes what. The choice of a tile changes no bit.

use super::{Geometry, NAME, SOURCE, four};
use crate::device::Arg;
use crate::ops::launch::kernel_name;
use crate::ops::matmul::cuda::{TILE_64X64, TILE_128X32, Tile, grid, int, run_length, runs, signed, uses_tensor_cores};
use crate::{Cuda, DType, Result, Tensor, args};

const TILES: [Tile; 2] = [TILE_64X64, TILE_128X32];

/// Windows of images and the taps that they are multiplied by; each along the height and the width.
struct Pass {
    rows: [usize; 2],
    step: [usize; 2],
    offset: [isize; 2],
    taps: [usize; 2],
    tap_step: [isize; 2],
    /// Tap `j` is stored tap `first + j every`.
    first: [usize; 2],
    every: [usize; 2],
    /// Row `q` becomes row `out_first + q out_step`.
    out_first: [usize; 2],
    out_step: [usize; 2],
}

impl Pass {
    /// Kernels compute positions in 32 bits.
    fn check(&self) -> Result<()> {
        for axis in 0..2 {
            let taps = self.taps[axis].saturating_mul(self.tap_step[axis].unsigned_abs());
            int(NAME, self.rows[axis].saturating_mul(self.step[axis].max(self.out_step[axis])).saturating_add(taps))?;
            signed(NAME, self.offset[axis])?;
        }
        Ok(())
    }
}

fn of_windows(g: &Geometry, rows: [usize; 2]) -> Pass {
    Pass {
        rows,
        step: g.stride,
        offset: g.padding.map(|n| n as isize),
        taps: g.kernel,
        tap_step: g.dilation.map(|n| n as isize),
        first: [0, 0],
        every: [1, 1],
        out_first: [0, 0],
        out_step: [1, 1],
    }
}

pub(super) fn forward(
    gpu: &Cuda,
    y: &mut Tensor,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    g: &Geometry,
    slope: f64,
) -> Result<()> {
    let [_, rows, columns, _] = four("y", y)?;
    product(gpu, "conv2d", y, x, (weight, g), bias, of_windows(g, [rows, columns]), slope)
}

pub(super) fn backward_input(gpu: &Cuda, dx: &mut Tensor, dy: &Tensor, weight: &Tensor, g: &Geometry) -> Result<()> {
    let [_, height, width, _] = four("dx", dx)?;
    let phases = |axis: usize, n: usize| (0..g.stride[axis].min(n)).map(|residue| g.phase(axis, residue, n)).collect::<Vec<_>>();
    let (down, across) = (phases(0, height), phases(1, width));
    if down.iter().chain(&across).any(|phase| phase.taps == 0) {
        dx.set_zero()?;
    }
    for (h, down) in down.iter().enumerate() {
        for (w, across) in across.iter().enumerate().filter(|(_, across)| down.taps * across.taps > 0) {
            let pass = Pass {
                rows: [down.rows, across.rows],
                step: [1, 1],
                offset: [-down.start, -across.start],
                taps: [down.taps, across.taps],
                tap_step: [-(down.step as isize), -(across.step as isize)],
                first: [down.first, across.first],
                every: [down.every, across.every],
                out_first: [h, w],
                out_step: g.stride,
            };
            product(gpu, "conv2d_dx", dx, dy, (weight, g), None, pass, 1.0)?;
        }
    }
    Ok(())
}

#[allow(clippy::too_many_arguments, reason = "a product's operands")]
fn product(
    gpu: &Cuda,
    name: &str,
    y: &Tensor,
    x: &Tensor,
    (weight, g): (&Tensor, &Geometry),
    bias: Option<&Tensor>,
    pass: Pass,
    slope: f64,
) -> Result<()> {
    let ([batch, height, width, channels], [_, out_height, out_width, out_channels]) = (four("x", x)?, four("y", y)?);
    let (m, k) = (batch.saturating_mul(pass.rows[0]).saturating_mul(pass.rows[1]), weight.shape()[0].saturating_mul(channels));
    pass.check()?;
    for extent in [m, k, out_channels, height, width, out_height, out_width] {
        int(NAME, extent)?;
    }
    let tile = Tile::choose(&TILES, gpu, m, out_channels);
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, &format!("{name}_{}x{}", tile.m, tile.n), x)?)?;
    let shared = tile.shared_bytes(uses_tensor_cores(gpu, x.dtype()), true, name == "conv2d_dx");
    let arguments: &mut [Arg] = args![
        y,
        x,
        weight,
        bias,
        batch as i32,
        height as i32,
        width as i32,
        channels as i32,
        pass.rows[0] as i32,
        pass.rows[1] as i32,
        pass.step[0] as i32,
        pass.step[1] as i32,
        pass.offset[0] as i32,
        pass.offset[1] as i32,
        pass.tap_step[0] as i32,
        pass.tap_step[1] as i32,
        pass.taps[0] as i32,
        pass.taps[1] as i32,
        g.kernel[1] as i32,
        pass.first[0] as i32,
        pass.first[1] as i32,
        pass.every[0] as i32,
        pass.every[1] as i32,
        out_height as i32,
        out_width as i32,
        out_channels as i32,
        pass.out_first[0] as i32,
        pass.out_first[1] as i32,
        pass.out_step[0] as i32,
        pass.out_step[1] as i32,
        slope as f32,
    ];
    // SAFETY: the parameter list of CONV2D_KERNEL; `check` has the weight suit x and y, and a `Pass` writes rows of y that it has.
    unsafe { kernel.launch(grid(tile.count(m, out_channels), tile.threads(), shared)?, arguments) }
}

pub(super) fn backward_weight(gpu: &Cuda, dw: &mut Tensor, dy: &Tensor, x: &Tensor, g: &Geometry) -> Result<()> {
    let ([batch, height, width, channels], [_, rows, columns, cout]) = (four("x", x)?, four("dy", dy)?);
    let (total, m) = (batch.saturating_mul(rows).saturating_mul(columns), g.taps().saturating_mul(channels));
    let pass = of_windows(g, [rows, columns]);
    pass.check()?;
    for extent in [total, m.saturating_mul(cout), height, width] {
        int(NAME, extent)?;
    }
    let (depth, splits) = runs(total, run_length(total, m, cout));
    // The sums of a single run are the result, if they are stored as such.
    let direct = splits == 1 && dw.dtype() == DType::F32;
    let workspace;
    let partial = if direct {
        &*dw
    } else {
        workspace = Tensor::empty(&dw.device(), DType::F32, [splits, m, cout])?;
        &workspace
    };
    let tile = TILE_64X64;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "conv2d_dw_64x64", x)?)?;
    let shared = tile.shared_bytes(uses_tensor_cores(gpu, x.dtype()), false, false);
    let mut launch = grid(tile.count(m, cout), tile.threads(), shared)?;
    launch.grid[1] = splits as u32;
    let arguments: &mut [Arg] = args![
        partial,
        x,
        dy,
        batch as i32,
        height as i32,
        width as i32,
        channels as i32,
        rows as i32,
        columns as i32,
        pass.step[0] as i32,
        pass.step[1] as i32,
        pass.offset[0] as i32,
        pass.offset[1] as i32,
        pass.tap_step[0] as i32,
        pass.tap_step[1] as i32,
        pass.taps[0] as i32,
        pass.taps[1] as i32,
        cout as i32,
        int(NAME, depth)?,
    ];
    // SAFETY: the parameter list of CONV2D_DW_KERNEL; `partial` has room for every split.
    unsafe { kernel.launch(launch, arguments)? };
    if direct {
        return Ok(());
    }
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "conv2d_dw_sum", dw)?)?;
    let arguments: &mut [Arg] = args![&*dw, partial, splits as i32, g.taps() as i32, channels as i32, cout as i32, 0i32];
    // SAFETY: the parameter list of SUM_PARTIALS_KERNEL; dw has m * cout elements.
    unsafe { kernel.launch(grid((m * cout).div_ceil(256), 256, 0)?, arguments) }
}
