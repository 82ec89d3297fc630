use super::cpu::extents;
use super::{HOPPER, Kernel, KvCache, Mask, NAME, Positions, SOURCE, Saved};
use crate::driver::{Arch, Launch, Tiles};
use crate::ops::launch::{self, index, kernel_name};
use crate::ops::matmul::cuda::uses_tensor_cores;
use crate::{Cuda, DType, Device, Result, Tensor, args};

/// Keys that one block takes of a longer cache, and how many it takes at most before that is done.
const SPAN: usize = 512;
const LONGEST: usize = 1024;

pub fn advance(gpu: &Cuda, seen: &mut Tensor, tokens: i32, mask: Option<&Tensor>, reset: bool) -> Result<()> {
    let batch = seen.elements();
    let launch = launch::threads(NAME, batch)?;
    let args = args![seen, mask, index(NAME, batch)?, tokens, reset as i32];
    // SAFETY: the parameters of attention_advance; seen and mask are [batch].
    unsafe { gpu.kernel(&SOURCE, "attention_advance")?.launch(launch, args) }
}

/// What one launch attends to: `attention.cu`'s `Problem`.
struct Problem<'a> {
    q: &'a Tensor,
    k: &'a Tensor,
    v: &'a Tensor,
    /// Of codes.
    factors: Option<&'a [Tensor; 2]>,
    /// Of rings.
    seen: Option<&'a Tensor>,
    mask: Option<&'a Tensor>,
    kv_heads: usize,
    keys: usize,
    window: usize,
    causal: bool,
    sinks: usize,
}

impl Problem<'_> {
    /// `spans` is how many runs of [`SPAN`] keys a tile's rows may see; 1 for no limit.
    fn launch(&self, gpu: &Cuda, y: &mut Tensor, logsum: Option<&Tensor>, spans: usize) -> Result<()> {
        let [queries, tokens, heads, dim] = self.q.shape()[..] else { return Ok(()) };
        let batch = if self.sinks > 0 { queries / 2 } else { queries };
        let far = (self.sinks > 0).then(|| self.q.device_ptr() + (batch * tokens * heads * dim * self.q.dtype().bytes()) as u64);
        let rows = tokens.saturating_mul(heads / self.kv_heads);
        let padded = if dim <= 64 { 64 } else { 128 };
        let tensor_core = uses_tensor_cores(gpu, self.q.dtype());
        let many = rows > if tensor_core { 16 } else { 4 };
        let warps = if many { 4 } else { 1 };
        let (tile, shared_bytes) = if tensor_core {
            let (tiles, codes) = if self.factors.is_some() { (1, 2 * 64 * (padded + 4)) } else { (2, 0) };
            (16 * warps, (tiles * 64 + 16 * warps) * (padded + 8) * 2 + codes)
        } else {
            let tile = if many { 8 * warps } else { 2 };
            (tile, (2 * 32 * (padded + 4) + tile * (padded + 32)) * 4)
        };
        let streams = batch * self.kv_heads;
        let partial = match spans {
            1 => None,
            _ => Some(Tensor::empty(&Device::Cuda(gpu.clone()), DType::F32, [streams, rows, spans, partial_pitch(dim)])?),
        };
        let codes = if self.factors.is_some() { "_int8" } else { "" };
        let name = format!("attention_{}_{padded}{codes}", if many { "many" } else { "few" });
        let grid = [index(NAME, streams.saturating_mul(rows.div_ceil(tile)))? as u32, spans as u32, 1];
        let launch = Launch { grid, block: [32 * warps as u32, 1, 1], shared_bytes: shared_bytes as u32, cooperative: false };
        let extents = [tokens, heads, self.kv_heads, self.keys, dim, self.window];
        let [tokens, heads, kv_heads, keys, dim, window] = extents;
        index(NAME, rows.saturating_add(tile).max(keys.saturating_add(tile)))?;
        let args = args![
            &mut *y,
            logsum,
            partial.as_ref(),
            self.q,
            far.unwrap_or(0),
            self.k,
            self.v,
            self.factors.map(|[keys, _]| keys),
            self.factors.map(|[_, values]| values),
            self.seen,
            self.mask,
            index(NAME, tokens)?,
            index(NAME, heads)?,
            index(NAME, kv_heads)?,
            index(NAME, keys)?,
            dim as i32,
            index(NAME, window)?,
            self.causal as i32,
            index(NAME, self.sinks)?,
            if spans == 1 { 0 } else { SPAN as i32 },
            (std::f64::consts::LOG2_E / (dim as f64).sqrt()) as f32,
        ];
        // SAFETY: the parameters of attention_*; shapes were checked by `step` and `forward`, and `partial` has a row for
        // every span of every row.
        unsafe { gpu.kernel(&SOURCE, &kernel_name(NAME, &name, self.q)?)?.launch(launch, args)? };
        let Some(partial) = partial else { return Ok(()) };
        let launch = Launch {
            grid: [index(NAME, streams.saturating_mul(rows))? as u32, 1, 1],
            block: [padded as u32, 1, 1],
            shared_bytes: 0,
            cooperative: false,
        };
        let args = args![y, &partial, self.mask, tokens as i32, heads as i32, kv_heads as i32, dim as i32, spans as i32];
        // SAFETY: the parameters of attention_combine_*; a block for each row.
        unsafe { gpu.kernel(&SOURCE, &kernel_name(NAME, "attention_combine", self.q)?)?.launch(launch, args) }
    }
}

/// Floats of one partial sum: `attention.cu` has the same.
fn partial_pitch(dim: usize) -> usize {
    (dim + 2).next_multiple_of(8)
}

/// In how many spans `tokens` look back over `reach` keys, and one more for sinks; it depends on the layer alone whether there are any.
pub(super) fn spans(reach: usize, tokens: usize, sinks: usize) -> usize {
    if reach <= LONGEST { 1 } else { (reach + tokens.saturating_sub(1)).div_ceil(SPAN) + 1 + usize::from(sinks > 0) }
}

pub fn step(
    gpu: &Cuda,
    y: &mut Tensor,
    q: &Tensor,
    cache: &KvCache,
    positions: &Positions,
    window: Option<usize>,
    mask: Option<&Tensor>,
) -> Result<()> {
    let (keys, kv_heads) = (cache.capacity(), cache.kv_heads());
    let problem = Problem {
        q,
        k: &cache.keys,
        v: &cache.values,
        factors: cache.factors.as_ref(),
        seen: Some(&positions.seen),
        mask,
        kv_heads,
        keys,
        window: window.unwrap_or(0),
        causal: true,
        sinks: cache.sinks().map_or(0, |sinks| sinks.steps),
    };
    problem.launch(gpu, y, None, spans(window.unwrap_or(keys), q.shape()[1], problem.sinks))
}

#[allow(clippy::too_many_arguments)]
pub fn forward(
    gpu: &Cuda,
    kernel: Kernel,
    y: &mut Tensor,
    logsum: &mut Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Mask,
) -> Result<()> {
    let [batch, keys, kv_heads, dim] = extents(k);
    // Else a tile would bring keys of the next stream, and what is not finite in them.
    let apart = batch == 1 || keys.is_multiple_of(WGMMA_ROWS);
    if kernel == Kernel::Wgmma && gpu.driver().arch() == Arch(90) && matches!(dim, 64 | 128) && apart {
        let tiles = [q, k, v].map(tiles);
        if tiles.iter().all(Tiles::fits) {
            return by_wgmma(gpu, y, logsum, [extents(q), extents(k)], tiles, mask);
        }
    }
    let problem = Problem {
        q,
        k,
        v,
        factors: None,
        seen: None,
        mask: None,
        kv_heads,
        keys,
        window: mask.window.unwrap_or(0).min(keys),
        causal: mask.causal,
        sinks: 0,
    };
    problem.launch(gpu, y, Some(&*logsum), 1)
}

/// As in hopper.cu: queries of a block and keys that it takes at a time, keys and values on their way, a block's threads, and where tiles
/// begin.
const WGMMA_ROWS: usize = 128;
const WGMMA_SLOTS: usize = 4;
const WGMMA_WARPS: usize = 8;
const WGMMA_THREADS: u32 = 384;
const WGMMA_ALIGNMENT: usize = 1024;

/// Of all heads side by side.
fn tiles(tensor: &Tensor) -> Tiles {
    let [batch, tokens, heads, dim] = extents(tensor);
    Tiles { rows: batch * tokens, columns: heads * dim, ..Tiles::of(tensor, WGMMA_ROWS) }
}

fn by_wgmma(
    gpu: &Cuda,
    y: &mut Tensor,
    logsum: &mut Tensor,
    [[batch, tokens, heads, dim], [_, keys, kv_heads, _]]: [[usize; 4]; 2],
    tiles: [Tiles; 3],
    mask: Mask,
) -> Result<()> {
    let driver = gpu.driver();
    let [q, k, v] = [driver.tensor_map(&tiles[0])?, driver.tensor_map(&tiles[1])?, driver.tensor_map(&tiles[2])?];
    // No row that a tile asks for overflows.
    index(NAME, tiles[0].rows.max(tiles[1].rows).saturating_add(WGMMA_ROWS))?;
    let blocks = index(NAME, (batch * heads).saturating_mul(tokens.div_ceil(WGMMA_ROWS)))?;
    let row = dim * y.dtype().bytes();
    let out = WGMMA_WARPS * 16 * (row + 16);
    let launch = Launch {
        grid: [blocks as u32, 1, 1],
        block: [WGMMA_THREADS, 1, 1],
        shared_bytes: ((1 + WGMMA_SLOTS) * WGMMA_ROWS * row + out + WGMMA_ALIGNMENT) as u32,
        cooperative: false,
    };
    let window = index(NAME, mask.window.unwrap_or(0).min(keys))?;
    let scale = (std::f64::consts::LOG2_E / (dim as f64).sqrt()) as f32;
    let [tokens, heads, kv_heads, keys] = [tokens, heads, kv_heads, keys].map(|n| n as i32);
    let kernel = gpu.kernel(&HOPPER, &kernel_name(NAME, &format!("attention_wgmma_{dim}"), y)?)?;
    let args = args![y, logsum, &q, &k, &v, tokens, heads, kv_heads, keys, window, mask.causal as i32, scale];
    // SAFETY: the parameters of ATTENTION_WGMMA; shapes were checked by `forward`, and the maps end where q, k and v do.
    unsafe { kernel.launch(launch, args) }
}

pub fn backward(gpu: &Cuda, [dq, dk, dv]: &mut [Tensor; 3], dy: &Tensor, saved: &Saved) -> Result<()> {
    /// Rows or keys of a block, and others that it takes at a time.
    const OWN: usize = 32;
    const OTHERS: usize = 16;
    let &Saved { q, k, v, y, logsum, mask } = saved;
    let ([batch, tokens, heads, dim], [_, keys, kv_heads, _]) = (extents(q), extents(k));
    let rows = tokens.saturating_mul(heads / kv_heads);
    index(NAME, rows.saturating_add(OWN).max(keys.saturating_add(OWN)))?;
    let window = index(NAME, mask.window.unwrap_or(0).min(keys))?;
    if rows == 0 {
        dk.set_zero()?;
        return dv.set_zero();
    }
    let delta = Tensor::empty(&q.device(), DType::F32, [batch, heads, tokens])?;
    let count = batch * tokens * heads;
    let args = args![&delta, dy, y, count as u64, tokens as i32, heads as i32, dim as i32];
    // SAFETY: the parameters of attention_delta_*: a warp for each of the `count` rows.
    unsafe { gpu.kernel(&SOURCE, &kernel_name(NAME, "attention_delta", q)?)?.launch(launch::blocks(NAME, count.div_ceil(8))?, args)? };

    let padded = if dim <= 64 { 64 } else { 128 };
    let shared_bytes = 4 * (2 * (OWN + OTHERS) * (padded + 4) + 2 * OWN * (OTHERS + 1) + 2 * OWN);
    let scale = (1.0 / (dim as f64).sqrt()) as f32;
    for (kind, own, first, second) in [("dq", rows, &*dq, None), ("dkv", keys, &*dk, Some(&*dv))] {
        let blocks = (batch * kv_heads).saturating_mul(own.div_ceil(OWN));
        let launch = Launch { shared_bytes: shared_bytes as u32, ..launch::blocks(NAME, blocks)? };
        let extents = [tokens, heads, kv_heads, keys, dim].map(|n| n as i32);
        let [tokens, heads, kv_heads, keys, dim] = extents;
        let args = args![first, second, q, k, v, dy, logsum, &delta, tokens, heads, kv_heads, keys, dim, window, mask.causal as i32, scale];
        let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, &format!("attention_{kind}_{padded}"), q)?)?;
        // SAFETY: the parameters of attention_dq_* and attention_dkv_*; shapes were checked by `backward`, and every extent is
        // below 2^31.
        unsafe { kernel.launch(launch, args)? };
    }
    Ok(())
}
