//! Rotary position embedding: pair `i` of a head is turned by `position * frequency[i]`.
//!
//! ```text
//! (y_a, y_b) = (x_a cos - x_b sin, x_a sin + x_b cos)     (a, b) = (2 i, 2 i + 1)        Style::Interleaved (Moshi, Mimi)
//!                                                         (a, b) = (i, i + D / 2)        Style::HalfSplit   (Llama)
//! ```
//! `frequency[i] = theta^(-2 i / D)` radians a token, kept as a 64-bit fraction of a turn: its product with the position wraps
//! modulo one turn in integers, so a phase is as exact after years as at the start, and there is no table of positions.
//! Source: RoFormer, arXiv 2104.09864.

mod cases;
mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::attention::{KvCache, MAX_HEAD_DIM, Positions};
use crate::{Device, Error, Result, Tensor, dispatch_real, span};

pub static SOURCE: Source = Source { path: "ops/rope/rope.cu", text: include_str!("rope.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "rope";

/// Which elements of a head are a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `(2 i, 2 i + 1)`.
    Interleaved,
    /// `(i, i + D / 2)`.
    HalfSplit,
}

/// The frequencies of one kind of layer.
pub struct Rope {
    /// `[D / 2, 2]` i32: low and high half of the fraction of a turn a token.
    frequencies: Tensor,
    style: Style,
}

impl Rope {
    /// `theta^(-2 i / D)`, the usual base being 10 000.
    pub fn new(device: &Device, head_dim: usize, theta: f64, style: Style) -> Result<Rope> {
        if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
            return Err(Error::argument(NAME, format!("a head of {head_dim}; pairs of at most {MAX_HEAD_DIM} elements are turned")));
        }
        if !(theta > 0.0 && theta.is_finite()) {
            return Err(Error::argument(NAME, format!("a base of {theta}")));
        }
        Rope::with_frequencies(device, &frequencies(head_dim, theta), style)
    }

    /// One frequency a pair, in radians a token, for scaled variants.
    pub fn with_frequencies(device: &Device, frequencies: &[f64], style: Style) -> Result<Rope> {
        let pairs = frequencies.len();
        if pairs == 0 || pairs > MAX_HEAD_DIM / 2 || frequencies.iter().any(|f| !f.is_finite()) {
            return Err(Error::argument(NAME, format!("{pairs} frequencies, finite ones for at most {MAX_HEAD_DIM} elements")));
        }
        let halves: Vec<i32> = frequencies.iter().copied().flat_map(halves).collect();
        Ok(Rope { frequencies: Tensor::from_slice(device, &halves, [pairs, 2])?, style })
    }

    /// Which elements it turns together.
    pub fn style(&self) -> Style {
        self.style
    }

    pub fn head_dim(&self) -> usize {
        2 * self.frequencies.shape()[0]
    }

    fn check(&self, x: &Tensor) -> Result<()> {
        if self.frequencies.device() != x.device() {
            return Err(Error::DeviceMismatch { op: NAME, operand: "frequencies" });
        }
        Ok(())
    }
}

/// `theta^(-2 i / D)` of each pair.
pub fn frequencies(head_dim: usize, theta: f64) -> Vec<f64> {
    (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect()
}

/// The lower and the upper half of a frequency as a 64-bit fraction of a turn.
fn halves(frequency: f64) -> [i32; 2] {
    let turn = ((frequency / std::f64::consts::TAU).rem_euclid(1.0) * 2f64.powi(64)) as u64;
    [turn as i32, (turn >> 32) as i32]
}

/// `x [B, T, H, D]` turned; row `t` of stream `b` is at position `positions[b] + t`.
pub fn forward(x: &Tensor, rope: &Rope, positions: &Positions) -> Result<Tensor> {
    let _span = span::op("rope.forward");
    rotate(x, rope, positions, false)
}

/// Gradient of [`forward`] with respect to `x`: `dy [B, T, H, D]` turned back.
pub fn backward(dy: &Tensor, rope: &Rope, positions: &Positions) -> Result<Tensor> {
    let _span = span::op("rope.backward");
    rotate(dy, rope, positions, true)
}

fn rotate(x: &Tensor, rope: &Rope, positions: &Positions, back: bool) -> Result<Tensor> {
    let &[batch, _, _, dim] = &*x.shape() else { return Err(Error::shape(NAME, "x", "[B, T, H, D]", x.shape())) };
    if dim != rope.head_dim() || batch != positions.batch() {
        return Err(Error::shape(NAME, "x", format!("[{}, T, H, {}]", positions.batch(), rope.head_dim()), x.shape()));
    }
    rope.check(x)?;
    if positions.device() != x.device() {
        return Err(Error::DeviceMismatch { op: NAME, operand: "positions" });
    }
    let mut y = x.empty_like()?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::rotate::<T>(&mut y, x, rope, positions, back))?,
        Device::Cuda(gpu) => cuda::rotate(&gpu, &mut y, x, rope, positions, back)?,
    }
    Ok(y)
}

/// Turns queries and keys of `qkv [B, T, (Hq + 2 Hkv) D]` (queries, then keys, then values), puts keys and values into
/// the cache and returns the queries `[B, T, Hq, D]`; beside [`attention::Sinks`](super::attention::Sinks) `[2 B, T, Hq, D]`, those for the
/// sinks behind the others. Streams whose `mask` (u8 `[B]`) is zero keep their cache.
///
/// `positions` is advanced by the caller, after all layers of the step.
pub fn append(qkv: &Tensor, rope: &Rope, cache: &mut KvCache, positions: &Positions, mask: Option<&Tensor>) -> Result<Tensor> {
    let _span = span::op("rope.append");
    let &[batch, tokens, width] = &*qkv.shape() else { return Err(Error::shape(NAME, "qkv", "[B, T, (Hq + 2 Hkv) D]", qkv.shape())) };
    let (kv_heads, dim) = (cache.kv_heads(), cache.head_dim());
    if dim != rope.head_dim() {
        return Err(Error::argument(NAME, format!("frequencies for heads of {}, a cache of heads of {dim}", rope.head_dim())));
    }
    let heads = (width / dim).saturating_sub(2 * kv_heads);
    if !width.is_multiple_of(dim) || heads == 0 {
        return Err(Error::shape(NAME, "qkv", format!("[B, T, (Hq + 2 * {kv_heads}) * {dim}]"), qkv.shape()));
    }
    rope.check(qkv)?;
    cache.check(NAME, qkv, [batch, tokens], positions, mask)?;
    let queries = if cache.sinks().is_some() { 2 * batch } else { batch };
    let mut q = Tensor::empty(&qkv.device(), qkv.dtype(), [queries, tokens, heads, dim])?;
    match qkv.device() {
        Device::Cpu => dispatch_real!(NAME, qkv.dtype(), T => cpu::append::<T>(&mut q, qkv, rope, cache, positions, mask))?,
        Device::Cuda(gpu) => cuda::append(&gpu, &mut q, qkv, rope, cache, positions, mask)?,
    }
    Ok(q)
}
