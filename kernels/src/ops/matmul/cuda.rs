//! Launches of the kernels that `gemm.cuh` makes: products, convolutions as products, and correlations over rows. The
//! structs mirror those of `gemm.cuh`.

use super::{Extents, SOURCE, Transpose};
use crate::device::Arg;
use crate::driver::{Launch, Source};
use crate::ops::elementwise;
use crate::ops::launch::kernel_name;
use crate::{Cuda, DType, Error, Result, Tensor, args};

/// Overlapping rows of `data [batches, time, channels]`: tap `k` of row `r` is time `r * step + k * tap_step - offset`.
#[derive(Clone, Copy)]
pub(crate) struct Window<'a> {
    pub data: &'a Tensor,
    /// Rows before time 0 and their position; zeros without.
    pub past: Option<(&'a Tensor, &'a Tensor)>,
    /// Of a snake before the product.
    pub alpha: Option<&'a Tensor>,
    pub prologue: i32,
    pub batches: usize,
    pub time: usize,
    pub channels: usize,
    pub rows: usize,
    pub step: usize,
    pub offset: isize,
    pub tap_step: isize,
    pub taps: usize,
}

impl<'a> Window<'a> {
    /// A plain matrix `[rows, columns]`.
    pub fn matrix(data: &'a Tensor, rows: usize, columns: usize) -> Self {
        let (batches, time, channels) = (1, rows, columns);
        Window { data, past: None, alpha: None, prologue: 0, batches, time, channels, rows, step: 1, offset: 0, tap_step: 0, taps: 1 }
    }
}

/// Weights `[taps, rows, columns]`, regrouped by output phase; tap `k` of phase `p` is stored tap `(k * phases + p) / dilation`.
#[derive(Clone, Copy)]
pub(crate) struct Taps<'a> {
    pub data: &'a Tensor,
    pub taps: usize,
    pub rows: usize,
    pub columns: usize,
    pub phases: usize,
    pub dilation: usize,
    /// The sum runs over the columns.
    pub transposed: bool,
}

/// Where the product goes: `y[batch, row * phases + phase - offset, channel]`.
pub(crate) struct Output<'a> {
    pub y: &'a Tensor,
    pub bias: Option<&'a Tensor>,
    pub residual: Option<&'a Tensor>,
    pub epilogue: i32,
    pub time: usize,
    pub channels: usize,
    pub offset: usize,
}

/// `dw[(tap, i), j] = sum over rows of x[row, (tap, i)] * rows[row, j]`, in runs of `depth` rows that are then added up in
/// order. With `swapped`, dw is `[tap, j, i]`.
pub(crate) struct Correlation<'a> {
    pub dw: &'a Tensor,
    pub x: Window<'a>,
    pub rows: &'a Tensor,
    pub columns: usize,
    pub swapped: bool,
    pub depth: usize,
}

/// A tile of C; `gemm.cuh` has the same table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tile {
    pub m: usize,
    pub n: usize,
    warps_m: usize,
    warps_n: usize,
    lanes_n: usize,
}
pub(crate) const TILE_128X128: Tile = Tile { m: 128, n: 128, warps_m: 2, warps_n: 4, lanes_n: 16 };
pub(crate) const TILE_64X64: Tile = Tile { m: 64, n: 64, warps_m: 2, warps_n: 2, lanes_n: 16 };
pub(crate) const TILE_128X32: Tile = Tile { m: 128, n: 32, warps_m: 4, warps_n: 1, lanes_n: 8 };
pub(crate) const TILE_16X64: Tile = Tile { m: 16, n: 64, warps_m: 1, warps_n: 2, lanes_n: 16 };

impl Tile {
    pub fn threads(self) -> usize {
        32 * self.warps_m * self.warps_n
    }

    pub fn count(self, m: usize, n: usize) -> usize {
        m.div_ceil(self.m) * n.div_ceil(self.n)
    }

    /// Which of `available` suits a product of `m x n`. All sum in the same order: the choice changes no bit of the result.
    pub fn choose(available: &[Tile], gpu: &Cuda, m: usize, n: usize) -> Tile {
        let large = TILE_128X128.count(m, n) >= 2 * gpu.driver().limits().multiprocessors as usize;
        let wanted = match () {
            () if m <= 16 => TILE_16X64,
            () if n <= 32 => TILE_128X32,
            () if large => TILE_128X128,
            () => TILE_64X64,
        };
        if available.contains(&wanted) { wanted } else { TILE_64X64 }
    }

    /// Shared memory of one block: the stages of the pipeline, or the sums on their way out if those need more. On tensor cores of
    /// 16-bit types; of f32 with K inner as much.
    pub fn shared_bytes(self, tensor_core: bool, a_k_inner: bool, b_k_inner: bool) -> usize {
        let Tile { m, n, .. } = self;
        if tensor_core {
            let depth = 32;
            let tile = |size: usize, k_inner: bool| if k_inner { size * (depth + 8) } else { depth * (size + 8) };
            (3 * (tile(m, a_k_inner) + tile(n, b_k_inner)) * 2).max(self.warps_m * 16 * (n + 8) * 4)
        } else {
            let lanes_m = self.threads() / self.lanes_n;
            (2 * 16 * (m + 4 + n + 4) * 4).max(lanes_m * 4 * (n + 4) * 4)
        }
    }
}

pub(crate) fn uses_tensor_cores(gpu: &Cuda, dtype: DType) -> bool {
    match dtype {
        DType::F16 => true,
        DType::BF16 => gpu.driver().arch().has_ampere_features(),
        _ => false,
    }
}

/// Kernels index with 32 bits.
pub(crate) fn int(op: &'static str, n: usize) -> Result<i32> {
    // Some room above, for the edges of tiles.
    if n <= (i32::MAX - (1 << 16)) as usize {
        Ok(n as i32)
    } else {
        Err(Error::argument(op, format!("{n} exceeds what a kernel can index")))
    }
}

pub(crate) fn signed(op: &'static str, n: isize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::argument(op, format!("{n} exceeds what a kernel can index")))
}

pub(crate) fn grid(blocks: usize, threads: usize, shared_bytes: usize) -> Result<Launch> {
    let blocks = u32::try_from(blocks).map_err(|_| Error::argument("launch", format!("{blocks} blocks")))?;
    Ok(Launch { grid: [blocks, 1, 1], block: [threads as u32, 1, 1], shared_bytes: shared_bytes as u32, cooperative: false })
}

/// A family of kernels: `{name}_{tile}_{dtype}` in `source`, for these tiles.
pub(crate) struct Kernels {
    pub op: &'static str,
    pub source: &'static Source,
    pub name: &'static str,
    pub tiles: &'static [Tile],
}

impl Kernels {
    /// `y = finish(window x weights)`.
    pub fn product(&self, gpu: &Cuda, x: Window, w: Taps, y: Output) -> Result<()> {
        let (m, n) = (x.batches.saturating_mul(x.rows), w.phases.saturating_mul(y.channels));
        self.product_by(gpu, Tile::choose(self.tiles, gpu, m, n), x, w, y)
    }

    fn product_by(&self, gpu: &Cuda, tile: Tile, x: Window, w: Taps, y: Output) -> Result<()> {
        let op = self.op;
        let (m, n) = (x.batches.saturating_mul(x.rows), w.phases.saturating_mul(y.channels));
        let k = x.taps.saturating_mul(x.channels);
        for extent in [m, n, k] {
            int(op, extent)?;
        }
        int(op, x.rows.saturating_mul(x.step.max(w.phases)).saturating_add(x.taps.saturating_mul(x.tap_step.unsigned_abs())))?;
        if m == 0 || n == 0 {
            return Ok(());
        }
        if k == 0 {
            return Err(Error::argument(op, "a product over no elements"));
        }
        let kernel = gpu.kernel(self.source, &kernel_name(op, &format!("{}_{}x{}", self.name, tile.m, tile.n), x.data)?)?;
        let shared = tile.shared_bytes(uses_tensor_cores(gpu, x.data.dtype()), true, w.transposed);
        let (ring, position) = x.past.unzip();
        let past = ring.map_or(0, |r| r.shape()[1]);
        let arguments: &mut [Arg] = args![
            y.y,
            x.data,
            w.data,
            y.bias,
            y.residual,
            ring,
            position,
            x.alpha,
            int(op, x.batches)?,
            int(op, x.time)?,
            int(op, x.channels)?,
            int(op, past)?,
            int(op, x.rows)?,
            int(op, x.step)?,
            signed(op, x.offset)?,
            signed(op, x.tap_step)?,
            int(op, x.taps)?,
            x.prologue,
            int(op, w.taps)?,
            int(op, w.rows)?,
            int(op, w.columns)?,
            int(op, w.phases)?,
            int(op, w.dilation)?,
            int(op, y.time)?,
            int(op, y.channels)?,
            int(op, y.offset)?,
            y.epilogue,
        ];
        // SAFETY: the parameter list of PRODUCT_KERNEL; the callers' shape checks keep every index inside the tensors.
        unsafe { kernel.launch(grid(tile.count(m, n), tile.threads(), shared)?, arguments) }
    }

    /// Sums over rows, by the kernels `{name}_64x64` and `{name}_sum`.
    pub fn correlation(&self, gpu: &Cuda, sum: Correlation) -> Result<()> {
        let op = self.op;
        let Correlation { dw, x, rows, columns, swapped, depth } = sum;
        let (m, n) = (x.taps.saturating_mul(x.channels), columns);
        let total = x.batches.saturating_mul(x.rows);
        int(op, total)?;
        int(op, m.saturating_mul(n))?;
        int(op, x.rows.saturating_mul(x.step).saturating_add(x.taps.saturating_mul(x.tap_step.unsigned_abs())))?;
        if m == 0 || n == 0 {
            return Ok(());
        }
        let (depth, splits) = runs(total, depth);
        // The sums of a single run are the result, if they are stored as such.
        let direct = splits == 1 && !swapped && dw.dtype() == DType::F32;
        let workspace;
        let partial = if direct {
            dw
        } else {
            workspace = Tensor::empty(&dw.device(), DType::F32, [splits, m, n])?;
            &workspace
        };
        let tile = TILE_64X64;
        let kernel = gpu.kernel(self.source, &kernel_name(op, &format!("{}_{}x{}", self.name, tile.m, tile.n), x.data)?)?;
        let mut launch = grid(tile.count(m, n), tile.threads(), tile.shared_bytes(uses_tensor_cores(gpu, x.data.dtype()), false, false))?;
        launch.grid[1] = splits as u32;
        let arguments: &mut [Arg] = args![
            partial,
            x.data,
            rows,
            int(op, x.batches)?,
            int(op, x.time)?,
            int(op, x.channels)?,
            int(op, x.step)?,
            signed(op, x.offset)?,
            signed(op, x.tap_step)?,
            int(op, x.taps)?,
            int(op, x.rows)?,
            int(op, columns)?,
            int(op, depth)?,
        ];
        // SAFETY: the parameter list of CORRELATION_KERNEL; `partial` has room for every split, the callers check the rest.
        unsafe { kernel.launch(launch, arguments)? };
        if direct {
            return Ok(());
        }
        let (inputs, outputs) = if swapped { (columns, x.channels) } else { (x.channels, columns) };
        let kernel = gpu.kernel(self.source, &kernel_name(op, &format!("{}_sum", self.name), dw)?)?;
        let arguments: &mut [Arg] =
            args![dw, partial, splits as i32, int(op, x.taps)?, int(op, inputs)?, int(op, outputs)?, i32::from(swapped)];
        let tiles = x.taps * inputs.div_ceil(16) * outputs.div_ceil(16);
        // SAFETY: the parameter list of SUM_PARTIALS_KERNEL; dw has m * n elements.
        unsafe { kernel.launch(grid(if swapped { tiles } else { (m * n).div_ceil(256) }, 256, 0)?, arguments) }
    }
}

/// Rows of one run of a weight gradient: enough runs to fill a device, few enough that their sums stay small.
pub(crate) fn run_length(total: usize, m: usize, n: usize) -> usize {
    const BLOCKS: usize = 512;
    let splits = (BLOCKS / TILE_64X64.count(m, n).max(1)).clamp(1, total.div_ceil(128).max(1));
    total.div_ceil(splits).max(1)
}

/// Rows of a run, whole steps of the kernel, and how many runs there are.
pub(crate) fn runs(total: usize, depth: usize) -> (usize, usize) {
    let depth = depth.next_multiple_of(32);
    (depth, total.div_ceil(depth))
}

/// What a correlation of `elements` sums over `total` rows moves beside its operands: every run's sums, written and read, unless
/// there is one run and its sums may be stored `as_is`.
pub(crate) fn partial_bytes(total: usize, depth: usize, elements: usize, as_is: bool) -> usize {
    match runs(total, depth).1 {
        1 if as_is => 0,
        splits => 2 * 4 * splits * elements,
    }
}

/// Rows of one run of a product with `a` transposed; decided by their number alone.
pub(super) fn tn_run_length(k: usize) -> usize {
    k.div_ceil(64).max(1024)
}

const NN: Kernels = Kernels { op: "matmul", source: &SOURCE, name: "matmul_nn", tiles: &[TILE_128X128, TILE_64X64, TILE_16X64] };
const NT: Kernels = Kernels { op: "matmul", source: &SOURCE, name: "matmul_nt", tiles: &[TILE_64X64, TILE_16X64] };
const TN: Kernels = Kernels { op: "matmul", source: &SOURCE, name: "matmul_tn", tiles: &[TILE_64X64] };

pub(super) fn forward(gpu: &Cuda, c: &mut Tensor, a: &Tensor, b: &Tensor, transpose: Transpose, e: &Extents) -> Result<()> {
    let &Extents { m, n, k } = e;
    if k == 0 {
        return c.set_zero();
    }
    if transpose.a {
        let turned;
        let b = if transpose.b {
            let mut out = Tensor::empty(&b.device(), b.dtype(), [k, n])?;
            elementwise::cuda::transpose(gpu, &mut out, b, [1, n, k])?;
            turned = out;
            &turned
        } else {
            b
        };
        let x = Window::matrix(a, k, m);
        return TN.correlation(gpu, Correlation { dw: c, x, rows: b, columns: n, swapped: false, depth: tn_run_length(k) });
    }
    let (rows, columns) = if transpose.b { (n, k) } else { (k, n) };
    let weights = Taps { data: b, taps: 1, rows, columns, phases: 1, dilation: 1, transposed: transpose.b };
    let output = Output { y: c, bias: None, residual: None, epilogue: 0, time: m, channels: n, offset: 0 };
    if transpose.b { &NT } else { &NN }.product(gpu, Window::matrix(a, m, k), weights, output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::case::SplitMix;
    use crate::driver::Arch;
    use crate::driver::emulator::{Emulator, Options};

    #[test]
    fn the_choice_of_a_tile_changes_no_bit() -> Result<()> {
        let (m, n, k) = (133, 141, 77);
        for arch in [75, 90] {
            let emulator = match Emulator::new(Options { arch: Arch(arch), ..Options::default() }) {
                Err(Error::Unavailable { why, .. }) => {
                    println!("skipped: the emulator, {why}");
                    return Ok(());
                }
                emulator => emulator?,
            };
            let device = Device::on(Box::new(emulator));
            let Device::Cuda(gpu) = &device else { return Err(Error::argument("test", "the emulator is a CUDA device")) };
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let mut rng = SplitMix(3);
                let mut random = |rows: usize, columns: usize| {
                    let values: Vec<f64> = (0..rows * columns).map(|_| rng.uniform() - 0.5).collect();
                    Tensor::from_f64(&device, dtype, &values, [rows, columns])
                };
                let (a, b, bt) = (random(m, k)?, random(k, n)?, random(n, k)?);
                for (kernels, b, transposed) in [(&NN, &b, false), (&NT, &bt, true)] {
                    let mut results = Vec::new();
                    for &tile in kernels.tiles {
                        let c = Tensor::empty(&device, dtype, [m, n])?;
                        let (rows, columns) = if transposed { (n, k) } else { (k, n) };
                        let weights = Taps { data: b, taps: 1, rows, columns, phases: 1, dilation: 1, transposed };
                        let output = Output { y: &c, bias: None, residual: None, epilogue: 0, time: m, channels: n, offset: 0 };
                        kernels.product_by(gpu, tile, Window::matrix(&a, m, k), weights, output)?;
                        results.push(c.to_f64()?);
                    }
                    assert!(results[0].iter().all(|v| v.is_finite()));
                    assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "sm_{arch} {dtype} transposed {transposed}");
                }
            }
        }
        Ok(())
    }
}
