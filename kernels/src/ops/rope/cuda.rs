use super::{NAME, Rope, SOURCE, Style};
use crate::driver::Launch;
use crate::ops::attention::{KvCache, Positions};
use crate::ops::launch::{index, kernel_name};
use crate::{Cuda, Result, Tensor, args};

/// A block a token; threads for about two of its vectors each.
fn tokens(batch: usize, tokens: usize, width: usize, bytes: usize) -> Result<Launch> {
    let threads = (width * bytes).div_ceil(32).next_multiple_of(32).clamp(32, 256);
    let grid = [index(NAME, batch.saturating_mul(tokens))? as u32, 1, 1];
    Ok(Launch { grid, block: [threads as u32, 1, 1], shared_bytes: 0, cooperative: false })
}

pub fn rotate(gpu: &Cuda, y: &mut Tensor, x: &Tensor, rope: &Rope, positions: &Positions, back: bool) -> Result<()> {
    let [batch, time, heads, dim] = x.shape()[..] else { return Ok(()) };
    let width = index(NAME, heads.saturating_mul(dim))? as usize;
    let launch = tokens(batch, time, width, x.dtype().bytes())?;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "rope_rotate", x)?)?;
    let half_split = (rope.style == Style::HalfSplit) as i32;
    let args = args![y, x, &rope.frequencies, &positions.seen, time as i32, heads as i32, dim as i32, half_split, back as i32];
    // SAFETY: the parameters of rope_rotate_*; a block for each of the B T rows of x and y, which are H D long.
    unsafe { kernel.launch(launch, args) }
}

pub fn append(
    gpu: &Cuda,
    q: &mut Tensor,
    qkv: &Tensor,
    rope: &Rope,
    cache: &mut KvCache,
    positions: &Positions,
    mask: Option<&Tensor>,
) -> Result<()> {
    let [_, time, heads, dim] = q.shape()[..] else { return Ok(()) };
    let (batch, kv_heads, capacity) = (cache.batch(), cache.kv_heads(), cache.capacity());
    let (sinks, last) = cache.sinks().map_or((0, 0), |sinks| (sinks.steps as i32, sinks.context as i32 - 1));
    let width = index(NAME, qkv.shape().last_dim())? as usize;
    let launch = tokens(batch, time, width, qkv.dtype().bytes())?;
    let (keys, values) = (&mut cache.keys, &mut cache.values);
    let (frequencies, seen, half_split) = (&rope.frequencies, &positions.seen, (rope.style == Style::HalfSplit) as i32);
    let [time, heads, kv_heads, capacity, dim] = [time as i32, heads as i32, kv_heads as i32, index(NAME, capacity)?, dim as i32];
    // SAFETY, of both: the parameters of the kernel; a block for each of the B T rows of qkv; no two of a stream's tokens, at most
    // as many as the ring has slots, have the same one.
    match &mut cache.factors {
        None => {
            let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "rope_append", qkv)?)?;
            let args = args![q, keys, values, qkv, frequencies, seen, mask, time, heads, kv_heads, capacity, dim, sinks, last, half_split];
            unsafe { kernel.launch(launch, args) }
        }
        Some([of_keys, of_values]) => {
            let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "rope_append_int8", qkv)?)?;
            let args = args![
                q,
                keys,
                values,
                of_keys,
                of_values,
                qkv,
                frequencies,
                seen,
                mask,
                time,
                heads,
                kv_heads,
                capacity,
                dim,
                sinks,
                last,
                half_split
            ];
            unsafe { kernel.launch(launch, args) }
        }
    }
}
