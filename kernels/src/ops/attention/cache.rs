//! What a stream remembers: how many tokens it has seen, and the keys and values of the last of them.

use super::Kept;
use super::{NAME, cpu, cuda};
use crate::ops::check;
use crate::ops::elementwise::convert;
use crate::{DType, Device, Error, Result, Tensor};

/// Capacities are rounded up to this many tokens, so that a block of keys that starts at a multiple of it never wraps.
pub const KEY_BLOCK: usize = 64;

/// Tokens that each of `B` streams has seen: one for a whole session, shared by all its layers. It lives on the device, so
/// that a captured step replays. Counts up to 2^31, 2.7 years at 25 tokens a second.
pub struct Positions {
    pub(crate) seen: Tensor,
}

impl Positions {
    pub fn new(device: &Device, batch: usize) -> Result<Positions> {
        Ok(Positions { seen: Tensor::zeros(device, DType::I32, [batch])? })
    }

    /// As if `seen[b]` tokens had gone by.
    pub fn at(device: &Device, seen: &[i32]) -> Result<Positions> {
        match seen.iter().find(|n| **n < 0) {
            Some(n) => Err(Error::argument(NAME, format!("a stream cannot have seen {n} tokens"))),
            None => Ok(Positions { seen: Tensor::from_slice(device, seen, [seen.len()])? }),
        }
    }

    pub fn batch(&self) -> usize {
        self.seen.elements()
    }

    pub fn device(&self) -> Device {
        self.seen.device()
    }

    /// `tokens` more were seen by every stream whose `mask` (u8 `[B]`) is not zero: after all layers of a step.
    pub fn advance(&mut self, tokens: usize, mask: Option<&Tensor>) -> Result<()> {
        check::mask(NAME, &self.device(), self.batch(), mask)?;
        let tokens = i32::try_from(tokens).map_err(|_| Error::argument(NAME, format!("{tokens} tokens at once exceed 2^31")))?;
        match self.device() {
            Device::Cpu => cpu::advance(self.seen.as_mut_slice()?, tokens, mask),
            Device::Cuda(gpu) => cuda::advance(&gpu, &mut self.seen, tokens, mask, false),
        }
    }

    /// Streams whose `mask` (u8 `[B]`) is not zero start again. Their caches need nothing: what is in them is no longer seen.
    pub fn reset(&mut self, mask: &Tensor) -> Result<()> {
        check::mask(NAME, &self.device(), self.batch(), Some(mask))?;
        match self.device() {
            Device::Cpu => cpu::reset(self.seen.as_mut_slice()?, mask),
            Device::Cuda(gpu) => cuda::advance(&gpu, &mut self.seen, 0, Some(mask), true),
        }
    }
}

/// Attention sinks: the first `steps` of a stream stay where they are beside the last `context - steps`, and positions are those within
/// the cache. A query is then never further from a key than `context - 1`: it is turned by its own position for the last keys, whose
/// distances are what they are, and by `min(position, context - 1)` for the sinks, whose keys stay as they were turned.
///
/// Source: StreamingLLM, arXiv 2309.17453, section 3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sinks {
    pub steps: usize,
    /// What a query sees at most, sinks and itself among it.
    pub context: usize,
}

impl Sinks {
    /// Tokens up to its own that a query sees besides sinks.
    pub fn window(&self) -> usize {
        self.context.saturating_sub(self.steps)
    }
}

/// Keys and values of the last tokens of `B` streams, as rings `[B, Hkv, capacity, D]`: token `p` lies in slot `p % capacity`. Beside
/// sinks the first `fixed` slots, whole blocks of [`KEY_BLOCK`], are no part of the ring: they hold the first tokens for good, sinks or
/// not, and a later one lies in `fixed + (p - fixed) % (capacity - fixed)`.
///
/// On the CPU the keys of 16 tokens side by side are stored transposed, `[.., capacity / 16, D, 16]`, so that their scores
/// are one vector.
pub struct KvCache {
    kept: Kept,
    sinks: Option<Sinks>,
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
    /// Of the codes of keys and of values, f32 `[B, Hkv, capacity]`.
    pub(crate) factors: Option<[Tensor; 2]>,
}

impl KvCache {
    /// Room for at least `capacity` tokens of each stream. A window that `T` tokens at a time look back over wants
    /// `window + T - 1`.
    pub fn new(device: &Device, kept: impl Into<Kept>, batch: usize, kv_heads: usize, capacity: usize, head_dim: usize) -> Result<KvCache> {
        let rounded = capacity.checked_next_multiple_of(KEY_BLOCK).filter(|&n| n > 0 && n <= i32::MAX as usize);
        let capacity = rounded.ok_or_else(|| Error::argument(NAME, format!("a cache of {capacity} tokens")))?;
        if kv_heads == 0 || head_dim == 0 || head_dim > super::MAX_HEAD_DIM {
            return Err(Error::argument(NAME, format!("a cache of {kv_heads} heads of {head_dim}, at most {}", super::MAX_HEAD_DIM)));
        }
        let kept = kept.into();
        let dtype = match kept {
            Kept::Values(dtype) if dtype.is_float() => dtype,
            Kept::Values(dtype) => return Err(Error::dtype(NAME, "cache", "a floating type", dtype)),
            Kept::Int8 => DType::U8,
        };
        let ring = || Tensor::zeros(device, dtype, [batch, kv_heads, capacity, head_dim]);
        let factors = || Tensor::zeros(device, DType::F32, [batch, kv_heads, capacity]);
        let factors = (kept == Kept::Int8).then(|| Ok::<_, Error>([factors()?, factors()?])).transpose()?;
        Ok(KvCache { kept, sinks: None, keys: ring()?, values: ring()?, factors })
    }

    /// Room for sinks, and for what is seen beside them by `at_once` tokens at a time.
    ///
    /// # Errors
    /// No sinks, or as many as the context.
    pub fn with_sinks(
        device: &Device,
        kept: impl Into<Kept>,
        batch: usize,
        kv_heads: usize,
        sinks: Sinks,
        at_once: usize,
        head_dim: usize,
    ) -> Result<KvCache> {
        let Sinks { steps, context } = sinks;
        if steps == 0 || steps >= context || context > i32::MAX as usize {
            return Err(Error::argument(NAME, format!("{steps} sinks of a context of {context}")));
        }
        let ring = sinks.window().saturating_add(at_once.saturating_sub(1)).checked_next_multiple_of(KEY_BLOCK).unwrap_or(usize::MAX);
        let capacity = ring.saturating_add(steps.next_multiple_of(KEY_BLOCK));
        Ok(KvCache { sinks: Some(sinks), ..KvCache::new(device, kept, batch, kv_heads, capacity, head_dim)? })
    }

    /// Steps that stay, and of how many.
    pub fn sinks(&self) -> Option<Sinks> {
        self.sinks
    }

    /// Slots before those of the ring.
    pub(crate) fn fixed(&self) -> usize {
        self.sinks.map_or(0, |sinks| sinks.steps.next_multiple_of(KEY_BLOCK))
    }

    pub fn kept(&self) -> Kept {
        self.kept
    }

    pub fn batch(&self) -> usize {
        self.keys.shape()[0]
    }

    pub fn kv_heads(&self) -> usize {
        self.keys.shape()[1]
    }

    /// Slots a stream, those beside the ring among them: what was asked for, or a few more.
    pub fn capacity(&self) -> usize {
        self.keys.shape()[2]
    }

    pub fn head_dim(&self) -> usize {
        self.keys.shape()[3]
    }

    /// With these keys and values, `[B, Hkv, capacity, D]` of whole blocks; codes with their factors.
    pub(crate) fn of(keys: &Tensor, values: &Tensor, factors: Option<[&Tensor; 2]>, sinks: Option<Sinks>) -> Result<KvCache> {
        let keys = match keys.device() {
            Device::Cpu => cpu::stored(keys)?,
            Device::Cuda(_) => keys.copy()?,
        };
        let kept = if factors.is_some() { Kept::Int8 } else { keys.dtype().into() };
        let factors =
            factors.map(|[keys, values]| Ok::<_, Error>([convert(keys, DType::F32)?, convert(values, DType::F32)?])).transpose()?;
        Ok(KvCache { kept, sinks, keys, values: values.copy()?, factors })
    }

    /// The keys, or their codes, `[B, Hkv, capacity, D]` on every device.
    pub(crate) fn keys(&self) -> Result<Tensor> {
        match self.keys.device() {
            Device::Cpu => cpu::keys(&self.keys),
            Device::Cuda(_) => self.keys.copy(),
        }
    }

    pub fn bytes(&self) -> usize {
        [&self.keys, &self.values].into_iter().chain(self.factors.iter().flatten()).map(Tensor::bytes).sum()
    }

    /// That it takes `tokens` more of `batch` streams of the type of `x` at `positions`.
    pub(crate) fn check(
        &self,
        op: &'static str,
        x: &Tensor,
        [batch, tokens]: [usize; 2],
        positions: &Positions,
        mask: Option<&Tensor>,
    ) -> Result<()> {
        if self.batch() != batch {
            return Err(Error::shape(op, "cache", format!("{batch} streams"), self.keys.shape()));
        }
        let room = self.capacity() - self.fixed();
        if tokens > room {
            return Err(Error::argument(op, format!("{tokens} tokens at once do not fit a cache of {room}")));
        }
        if self.keys.device() != x.device() {
            return Err(Error::DeviceMismatch { op, operand: "cache" });
        }
        match self.kept {
            Kept::Values(dtype) if dtype != x.dtype() && !(dtype == DType::BF16 && x.device() == Device::Cpu) => {
                return Err(Error::dtype(op, "cache", x.dtype().name(), dtype));
            }
            _ => {}
        }
        if positions.batch() != batch {
            return Err(Error::shape(op, "positions", format!("[{batch}]"), positions.seen.shape()));
        }
        if positions.device() != x.device() {
            return Err(Error::DeviceMismatch { op, operand: "positions" });
        }
        check::mask(op, &x.device(), batch, mask)
    }
}
