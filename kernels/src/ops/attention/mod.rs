//! Scaled dot-product attention, of a stream over its cache ([`step`]) or of whole sequences ([`forward`]):
//! `y[i, h] = sum_j softmax_j(q[i, h] . k[j, h / G] / sqrt(D)) v[j, h / G]` over the keys `j` that query `i` sees.
//!
//! | tensor   | shape               |                                                                                |
//! |----------|---------------------|--------------------------------------------------------------------------------|
//! | `q`      | `[B, T, Hq, D]`     | the query `t` of a stream is at position `i = seen + t`; `D` at most 128         |
//! | cache    | `[B, Hkv, .., D]`   | `G = Hq / Hkv` query heads share a head of keys and values                      |
//! | `k`, `v` | `[B, S, Hkv, D]`    |                                                                                |
//! | `y`      | as `q`              | [`step`]: `[B, T, Hq D]`                                                        |
//!
//! Softmax and both sums are in f32 (f64 on the CPU for f64); on tensor cores the weights of values are rounded to the type of
//! the values. Keys enter in ascending order, in blocks that begin at multiples of their size from the start of the stream, and
//! keys that a query does not see have no weight: its bits depend on its position and the window alone, not on how many
//! tokens arrive at once, nor on its neighbours - as long as the values of all are finite.
//! Source: FlashAttention-2, arXiv 2307.08691.

mod cache;
mod cases;
pub(crate) mod cpu;
mod cuda;
mod kept;
#[cfg(test)]
mod tests;

pub use cache::{KEY_BLOCK, KvCache, Positions, Sinks};
pub use kept::Kept;
pub(crate) use kept::{Stored, factors};

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
use crate::ops::check::statistics_dtype;
use crate::{Device, Error, Result, Tensor, dispatch_real, span};

pub static SOURCE: Source = Source { path: "ops/attention/attention.cu", text: include_str!("attention.cu"), archs: ALL_ARCHS };
pub static HOPPER: Source = Source { path: "ops/attention/hopper.cu", text: include_str!("hopper.cu"), archs: &[90] };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE, &HOPPER], cases: cases::cases };

const NAME: &str = "attention";
pub const MAX_HEAD_DIM: usize = 128;

/// Which keys the query `i` of a sequence sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mask {
    /// Those up to its own, of a sequence of the same length.
    pub causal: bool,
    /// Only this many of them, its own the last: `0 <= i - j < window`. Causal only.
    pub window: Option<usize>,
}

impl Mask {
    pub const CAUSAL: Mask = Mask { causal: true, window: None };
}

/// How CUDA attends to sequences. They sum in different orders, so a model chooses for each of its layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernel {
    /// Tensor cores for bf16 and f16 (`mma.sync`).
    #[default]
    Mma,
    /// Hopper's own instructions (`wgmma`, copies by TMA): bf16 and f16 on sm_90, heads of 64 or 128, one sequence or as many keys as
    /// are a multiple of 128. Elsewhere, and for what else there
    /// is, as [`Kernel::Mma`]. No GPU has run it yet ([`crate::ops::UNPROVEN`]), so nothing chooses it by itself.
    Wgmma,
}

/// `y [B, T, Hq D]` of the last `T` tokens, which [`crate::ops::rope::append`] put into the cache; `positions` have not yet
/// advanced past them. Rows of streams whose `mask` (u8 `[B]`) is zero are zero.
///
/// Of a cache with [`Sinks`] the window is their context, and `q` is `[2 B, T, Hq, D]`: queries for the last keys, then those for the sinks.
///
/// Without a window a query sees what the ring holds, which for more than one token at a time depends on `T` once more
/// than `capacity` tokens were seen.
pub fn step(q: &Tensor, cache: &KvCache, positions: &Positions, window: Option<usize>, mask: Option<&Tensor>) -> Result<Tensor> {
    let _span = span::op("attention.step");
    let &[queries, tokens, heads, dim] = &*q.shape() else { return Err(Error::shape(NAME, "q", "[B, T, Hq, D]", q.shape())) };
    let batch = cache.batch();
    if queries != if cache.sinks().is_some() { 2 * batch } else { batch } {
        return Err(Error::shape(NAME, "q", format!("[B, T, Hq, D] for {batch} streams, 2 B beside sinks"), q.shape()));
    }
    if dim != cache.head_dim() || heads == 0 || !heads.is_multiple_of(cache.kv_heads()) {
        let expected = format!("[B, T, a multiple of {}, {}]", cache.kv_heads(), cache.head_dim());
        return Err(Error::shape(NAME, "q", expected, q.shape()));
    }
    cache.check(NAME, q, [batch, tokens], positions, mask)?;
    let window = match cache.sinks() {
        Some(sinks) if window == Some(sinks.context) => Some(sinks.window()),
        Some(sinks) => return Err(Error::argument(NAME, format!("a window of {window:?} beside sinks of a context of {}", sinks.context))),
        None => window,
    };
    let room = cache.capacity() - cache.fixed();
    let needed = window.map_or(0, |w| w.saturating_add(tokens.saturating_sub(1)));
    if window == Some(0) || needed > room {
        let what = format!("a window of {window:?} and {tokens} tokens at once want a cache of {needed}, not {room}");
        return Err(Error::argument(NAME, what));
    }
    let mut y = Tensor::empty(&q.device(), q.dtype(), [batch, tokens, heads * dim])?;
    match q.device() {
        Device::Cpu => dispatch_real!(NAME, q.dtype(), T => cpu::step::<T>(&mut y, q, cache, positions, window, mask))?,
        Device::Cuda(gpu) => cuda::step(&gpu, &mut y, q, cache, positions, window, mask)?,
    }
    Ok(y)
}

/// `y [B, T, Hq, D]` of whole sequences `q [B, T, Hq, D]`, `k` and `v [B, S, Hkv, D]`; and for [`backward`] the logarithm of
/// the sum that the weights of a query were divided by, to the base 2, `[B, Hq, T]` in f32 (f64 beside f64).
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask) -> Result<(Tensor, Tensor)> {
    forward_by(Kernel::default(), q, k, v, mask)
}

/// As [`forward`], with a choice of how CUDA does it.
pub fn forward_by(kernel: Kernel, q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask) -> Result<(Tensor, Tensor)> {
    let _span = span::op("attention.forward");
    check_sequences(q, k, v, mask)?;
    let mut y = q.empty_like()?;
    let (device, dtype) = (q.device(), statistics_dtype(q.dtype()));
    let mut logsum = Tensor::empty(&device, dtype, [q.shape()[0], q.shape()[2], q.shape()[1]])?;
    match device {
        Device::Cpu => dispatch_real!(NAME, q.dtype(), T => cpu::forward::<T>(&mut y, &mut logsum, q, k, v, mask))?,
        Device::Cuda(gpu) => cuda::forward(&gpu, kernel, &mut y, &mut logsum, q, k, v, mask)?,
    }
    Ok((y, logsum))
}

/// `(dq, dk, dv)` of [`forward`], for `dy [B, T, Hq, D]` and what it returned. Deterministic.
pub fn backward(dy: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, y: &Tensor, logsum: &Tensor, mask: Mask) -> Result<[Tensor; 3]> {
    let _span = span::op("attention.backward");
    check_sequences(q, k, v, mask)?;
    check::same(NAME, q, "dy", dy)?;
    check::same(NAME, q, "y", y)?;
    let &[batch, tokens, heads, _] = &*q.shape() else { return Err(Error::shape(NAME, "q", "[B, T, Hq, D]", q.shape())) };
    if *logsum.shape() != [batch, heads, tokens] {
        return Err(Error::shape(NAME, "logsum", format!("[{batch}, {heads}, {tokens}]"), logsum.shape()));
    }
    if logsum.dtype() != statistics_dtype(q.dtype()) {
        return Err(Error::dtype(NAME, "logsum", statistics_dtype(q.dtype()).name(), logsum.dtype()));
    }
    if logsum.device() != q.device() {
        return Err(Error::DeviceMismatch { op: NAME, operand: "logsum" });
    }
    let mut gradients = [q.empty_like()?, k.empty_like()?, v.empty_like()?];
    let saved = Saved { q, k, v, y, logsum, mask };
    match q.device() {
        Device::Cpu => dispatch_real!(NAME, q.dtype(), T => cpu::backward::<T>(&mut gradients, dy, &saved))?,
        Device::Cuda(gpu) => cuda::backward(&gpu, &mut gradients, dy, &saved)?,
    }
    Ok(gradients)
}

/// What [`forward`] was given, and what it returned.
pub(crate) struct Saved<'a> {
    q: &'a Tensor,
    k: &'a Tensor,
    v: &'a Tensor,
    y: &'a Tensor,
    logsum: &'a Tensor,
    mask: Mask,
}

fn check_sequences(q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask) -> Result<()> {
    let &[batch, tokens, heads, dim] = &*q.shape() else { return Err(Error::shape(NAME, "q", "[B, T, Hq, D]", q.shape())) };
    let &[keys_batch, keys, kv_heads, keys_dim] = &*k.shape() else { return Err(Error::shape(NAME, "k", "[B, S, Hkv, D]", k.shape())) };
    if heads == 0 || dim == 0 || dim > MAX_HEAD_DIM {
        return Err(Error::shape(NAME, "q", format!("[B, T, Hq, D] with heads of 1 to {MAX_HEAD_DIM}"), q.shape()));
    }
    if keys_batch != batch || keys == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) || keys_dim != dim {
        return Err(Error::shape(NAME, "k", format!("[{batch}, S, a divisor of {heads}, {dim}], S at least 1"), k.shape()));
    }
    if (mask.causal && keys != tokens) || (mask.window.is_some() && !mask.causal) || mask.window == Some(0) {
        return Err(Error::argument(NAME, format!("{mask:?} of {tokens} queries and {keys} keys")));
    }
    check::alike(NAME, q, "k", k)?;
    check::same(NAME, k, "v", v)
}
