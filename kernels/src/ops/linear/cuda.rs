use super::{Activation, Fused, HOPPER, LOW_BIT, NAME, Product, SOURCE, TF32};
use crate::driver::{Arch, Launch, TILE_BYTES, Tiles};
use crate::ops::launch::{index, kernel_name};
use crate::ops::matmul::cuda::{self as matmul, TILE_16X64, TILE_64X64, TILE_128X128, Tile};
use crate::quantized::{Bits, Quantized};
use crate::{Cuda, DType, Error, Result, Tensor, args};

/// As in linear.cu.
const THREADS: usize = 128;
const STAGED_BYTES: usize = 32 << 10;

/// Rows of x that a pass takes, and rows of w that a group of threads has beside them.
type Passes = [(usize, usize); 3];
const PASSES: Passes = [(1, 4), (4, 4), (16, 2)];
const CODES_PASSES: Passes = [(1, 4), (4, 4), (8, 2)];

/// Threads that share a sum over `k`, at two vectors each: decided by `k` and the type alone, as they order the sum.
fn group(k: usize, vector: usize) -> usize {
    const LEAST: usize = 8;
    k.div_ceil(2 * vector).next_power_of_two().clamp(LEAST, THREADS)
}

pub fn forward(gpu: &Cuda, y: &mut Tensor, x: &Tensor, weight: &Tensor, product: Product, fused: &Fused) -> Result<()> {
    if product == Product::Wgmma && gpu.driver().arch() == Arch(90) {
        let [rows, outputs] = [x, weight].map(|matrix| Tiles::of(matrix, WGMMA_TILE.0));
        if rows.fits() && outputs.fits() {
            return by_wgmma(gpu, y, x, (rows, outputs), fused);
        }
    }
    match product {
        Product::FewRows => few_rows(gpu, y, x, weight, fused),
        Product::Tiles | Product::Tf32x3 | Product::Wgmma => {
            let tile = Tile::choose(TILES, gpu, y.shape().rows(), weight.shape().rows());
            by_tiles(gpu, tile, product == Product::Tf32x3, y, x, weight, fused)
        }
    }
}

/// As in linear.cu.
fn kind(activation: Activation) -> i32 {
    match activation {
        Activation::None => 0,
        Activation::Gelu => 1,
        Activation::Silu => 2,
        Activation::SiluGate => 3,
    }
}

/// As in hopper.cu: a tile, the elements of K in a stage, the stages, a block's threads, and where its tiles begin.
const WGMMA_TILE: (usize, usize) = (128, 256);
const WGMMA_STAGES: usize = 4;
const WGMMA_THREADS: u32 = 384;
const WGMMA_ALIGNMENT: usize = 1024;

fn by_wgmma(gpu: &Cuda, y: &mut Tensor, x: &Tensor, (rows, outputs): (Tiles, Tiles), fused: &Fused) -> Result<()> {
    let driver = gpu.driver();
    let (x_map, w_map) = (driver.tensor_map(&rows)?, driver.tensor_map(&outputs)?);
    let (m, n) = WGMMA_TILE;
    let columns = y.shape().last_dim();
    let int = |n| matmul::int(NAME, n);
    int(outputs.rows)?;
    let width = if fused.activation == Activation::SiluGate { n / 2 } else { n };
    let count = int(rows.rows.div_ceil(m).saturating_mul(columns.div_ceil(width)))?;
    let launch = Launch {
        grid: [driver.limits().multiprocessors.min(count as u32), 1, 1],
        block: [WGMMA_THREADS, 1, 1],
        shared_bytes: (WGMMA_STAGES * (m + n) * TILE_BYTES + WGMMA_ALIGNMENT) as u32,
        cooperative: false,
    };
    let kernel = gpu.kernel(&HOPPER, &kernel_name(NAME, "linear_wgmma", x)?)?;
    let args = args![
        y,
        &x_map,
        &w_map,
        fused.bias,
        fused.scale,
        fused.residual,
        int(rows.rows)?,
        int(columns)?,
        int(rows.columns)?,
        kind(fused.activation),
    ];
    // SAFETY: the parameters of LINEAR_WGMMA; `output` has checked every extent, and the maps end where x and the weight do.
    unsafe { kernel.launch(launch, args) }
}

const TILES: &[Tile] = &[TILE_128X128, TILE_64X64, TILE_16X64];

/// All tiles sum in the same order.
fn by_tiles(gpu: &Cuda, tile: Tile, tf32: bool, y: &mut Tensor, x: &Tensor, weight: &Tensor, fused: &Fused) -> Result<()> {
    let (rows, columns) = (y.shape().rows(), y.shape().last_dim());
    let [outputs, k] = [weight.shape().rows(), weight.shape().last_dim()];
    let int = |n| matmul::int(NAME, n);
    let tf32 = tf32 && x.dtype() == DType::F32 && gpu.driver().arch() >= Arch(80);
    let (source, kind_of) = if tf32 { (&TF32, "linear_tf32x3") } else { (&SOURCE, "linear") };
    let kernel = gpu.kernel(source, &kernel_name(NAME, &format!("{kind_of}_{}x{}", tile.m, tile.n), x)?)?;
    let shared = tile.shared_bytes(tf32 || matmul::uses_tensor_cores(gpu, x.dtype()), true, true);
    let launch = matmul::grid(tile.count(rows, outputs), tile.threads(), shared)?;
    let args = args![
        y,
        x,
        weight,
        fused.bias,
        fused.scale,
        fused.residual,
        int(rows)?,
        int(outputs)?,
        int(columns)?,
        int(k)?,
        kind(fused.activation),
    ];
    // SAFETY: the parameters of LINEAR_TILE; `output` has checked every extent, the tiles cover rows and outputs.
    unsafe { kernel.launch(launch, args) }
}

/// How few rows are taken: passes of `rows` rows of x, and what a launch and a kernel are told.
struct FewRows {
    rows: usize,
    group: usize,
    passes: usize,
    launch: Launch,
}

fn few(y: &Tensor, k: usize, group: usize, passes: Passes, activation: Activation) -> Result<FewRows> {
    let (rows, columns) = (y.shape().rows(), y.shape().last_dim());
    let (pass_rows, weight_rows) = passes.into_iter().find(|&(m, _)| rows <= m).unwrap_or(passes[2]);
    let own = if activation == Activation::SiluGate { weight_rows / 2 } else { weight_rows };
    let passes = rows.div_ceil(pass_rows);
    let blocks = index(NAME, columns.div_ceil(THREADS / group * own).saturating_mul(passes))?;
    // None overflows with a pass or a chunk on top.
    index(NAME, rows.saturating_add(pass_rows))?;
    index(NAME, k.saturating_add(STAGED_BYTES))?;
    let launch =
        Launch { grid: [blocks as u32, 1, 1], block: [THREADS as u32, 1, 1], shared_bytes: STAGED_BYTES as u32, cooperative: false };
    Ok(FewRows { rows: pass_rows, group, passes, launch })
}

fn few_rows(gpu: &Cuda, y: &mut Tensor, x: &Tensor, weight: &Tensor, fused: &Fused) -> Result<()> {
    let (rows, columns) = (y.shape().rows(), y.shape().last_dim());
    let [outputs, k] = [weight.shape().rows(), weight.shape().last_dim()];
    let vector = vector_of(k, x.dtype());
    let few = few(y, k, group(k, vector), PASSES, fused.activation)?;
    let int = |n| index(NAME, n);
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, &format!("linear_{}", few.rows), x)?)?;
    let args = args![
        y,
        x,
        weight,
        fused.bias,
        fused.scale,
        fused.residual,
        int(rows)?,
        int(outputs)?,
        int(columns)?,
        int(k)?,
        kind(fused.activation),
        few.group as i32,
        int(few.passes)?,
        (vector > 1) as i32,
    ];
    // SAFETY: the parameters of LINEAR; `output` has checked every extent, and `few` that none overflows.
    unsafe { kernel.launch(few.launch, args) }
}

/// Columns that a thread takes at a time, and that a group must be a multiple of.
const LEAST_SCALED: usize = 32;

/// A copy, whose rows are whole vectors of codes.
pub fn codes(weight: &Quantized, k: usize) -> Result<Quantized> {
    let scaled = k / weight.scales.shape().last_dim();
    if !k.is_multiple_of(LEAST_SCALED) || !scaled.is_multiple_of(LEAST_SCALED) {
        return Err(Error::argument(NAME, format!("{k} columns in groups of {scaled}: CUDA takes multiples of {LEAST_SCALED}")));
    }
    let mins = weight.mins.as_ref().map(Tensor::copy).transpose()?;
    Ok(Quantized { bits: weight.bits, codes: weight.codes.copy()?, scales: weight.scales.copy()?, mins })
}

pub fn by_codes(gpu: &Cuda, y: &mut Tensor, x: &Tensor, weight: &Quantized, fused: &Fused) -> Result<()> {
    let (rows, columns, k) = (y.shape().rows(), y.shape().last_dim(), x.shape().last_dim());
    let (outputs, scaled) = (weight.codes.shape().rows(), k / weight.scales.shape().last_dim());
    let few = few(y, k, codes_group(k, weight.bits, x.dtype()), CODES_PASSES, fused.activation)?;
    let int = |n| index(NAME, n);
    let bits = 128 / codes_vector(weight.bits);
    let kernel = gpu.kernel(&LOW_BIT, &kernel_name(NAME, &format!("linear_int{bits}_{}", few.rows), x)?)?;
    let args = args![
        y,
        x,
        &weight.codes,
        &weight.scales,
        weight.mins.as_ref(),
        fused.bias,
        fused.scale,
        fused.residual,
        int(rows)?,
        int(outputs)?,
        int(columns)?,
        int(k)?,
        int(scaled)?,
        kind(fused.activation),
        few.group as i32,
        int(few.passes)?,
    ];
    // SAFETY: the parameters of LINEAR_CODES; `output` has checked every extent, `codes` the rows of codes, `few` that none overflows.
    unsafe { kernel.launch(few.launch, args) }
}

/// Of rows of values that are whole vectors.
pub fn values_group(k: usize, dtype: DType) -> Option<usize> {
    Some(vector_of(k, dtype)).filter(|&vector| vector > 1).map(|vector| group(k, vector))
}

pub fn codes_group(k: usize, bits: Bits, dtype: DType) -> usize {
    let vector = codes_vector(bits);
    // A turn of a group is no more than the shortest chunk of x, so that chunks change no order.
    let turn = STAGED_BYTES / (CODES_PASSES[2].0 * dtype.bytes()) / vector;
    group(k, vector).min(turn)
}

/// Codes in 16 bytes.
fn codes_vector(bits: Bits) -> usize {
    match bits {
        Bits::Four => 32,
        Bits::Eight => 16,
    }
}

fn vector_of(k: usize, dtype: DType) -> usize {
    let lanes = 16 / dtype.bytes();
    if k.is_multiple_of(lanes) { lanes } else { 1 }
}
