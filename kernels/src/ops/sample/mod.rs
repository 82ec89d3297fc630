//! One id for each row of logits `[B, V]`: the largest, or drawn with temperature and top-k.
//!
//! ```text
//! greedy   argmax x                                                        temperature <= 0, or an infinite largest logit
//! draw     argmax over the k largest x_i of (x_i - max x) / temperature + gumbel_i
//! ```
//! A draw has the probabilities `softmax(x / temperature)` among those `k`, as `argmax(p_i / Exp(1)_i)` has (`gumbel = -log Exp(1)`).
//! `gumbel_i` is made of the first word of Philox4x32-10 with the counter (`i`, `sequence`, `counter`) and the key `seed`, so draws
//! of different seeds, sequences and counters are independent, and a row's draws do not depend on the other rows. Of equal logits the
//! first counts as larger; NaN counts as -infinity, and a row of nothing else gives 0.
//!
//! | tensor   | shape    |                                                                                                           |
//! |----------|----------|-----------------------------------------------------------------------------------------------------------|
//! | `logits` | `[B, V]` | f32, bf16 or f16 on CUDA, f32 or f64 on the CPU; `V` from 1 to 2^21 - 1                                   |
//! | `mask`   | `[B]`    | optional, u8: rows whose flag is zero keep id and counter                                                 |
//! | `ids`    | `[B, W]` | i32; one column is written                                                                                |
//!
//! What a row draws with and how often it drew ([`Sampler`]) is on the device, and the launch itself counts: a replayed graph draws
//! afresh, with the settings of its own time. Every operation is one that rounds the same everywhere, in f32 (f64 logits are rounded
//! to it), so that ids are the same on every device, bit for bit.
//! Sources: Moshi's `utils/sampling.py`; Philox: Salmon et al., SC 2011.

mod cases;
mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
use crate::{DType, Device, Error, Result, Tensor, dispatch_real, span};

pub static SOURCE: Source = Source { path: "ops/sample/sample.cu", text: include_str!("sample.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "sample";
/// Logits of a row are fewer: an index has 21 bits.
pub(crate) const MAX_LOGITS: usize = (1 << 21) - 1;

/// What one row draws with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Greedy if not above 0.
    pub temperature: f32,
    /// How many of the largest logits are kept; 0 for all.
    pub top_k: usize,
    pub seed: u64,
    /// Tells apart what has the same seed: rows, and samplers of one model.
    pub sequence: u32,
}

/// Words of [`Settings`] on the device.
const WORDS: usize = 5;

impl Settings {
    /// The largest logit.
    pub const GREEDY: Settings = Settings { temperature: 0.0, top_k: 0, seed: 0, sequence: 0 };

    /// As the kernel reads them.
    fn words(&self) -> Result<[i32; WORDS]> {
        if !self.temperature.is_finite() {
            return Err(Error::argument(NAME, format!("a temperature of {}", self.temperature)));
        }
        let top_k = i32::try_from(self.top_k).unwrap_or(i32::MAX);
        Ok([self.temperature.to_bits() as i32, top_k, self.sequence as i32, self.seed as i32, (self.seed >> 32) as i32])
    }
}

/// How each of `B` rows draws, and how often it did.
pub struct Sampler {
    /// `[B, 5]` i32: see [`Settings::words`].
    pub(crate) settings: Tensor,
    /// `[B, 2]` i32: low and high half.
    pub(crate) counters: Tensor,
}

impl Sampler {
    /// Of rows that have not drawn yet.
    ///
    /// # Errors
    /// A temperature that is no number.
    pub fn new(device: &Device, settings: &[Settings]) -> Result<Sampler> {
        Sampler::at(device, settings, &vec![0; settings.len()])
    }

    /// Of rows that drew so often: what [`Sampler::counters`] gave.
    ///
    /// # Errors
    /// As [`Sampler::new`]; another number of counters.
    pub fn at(device: &Device, settings: &[Settings], counters: &[u64]) -> Result<Sampler> {
        let batch = settings.len();
        if counters.len() != batch {
            return Err(Error::argument(NAME, format!("{} counters for {batch} rows", counters.len())));
        }
        let halves: Vec<i32> = counters.iter().flat_map(|&n| [n as i32, (n >> 32) as i32]).collect();
        Ok(Sampler {
            settings: Tensor::from_slice(device, &words(settings)?, [batch, WORDS])?,
            counters: Tensor::from_slice(device, &halves, [batch, 2])?,
        })
    }

    /// Settings from the next draw on, of all rows.
    ///
    /// # Errors
    /// As [`Sampler::new`]; another number of rows.
    pub fn set(&mut self, settings: &[Settings]) -> Result<()> {
        self.settings.write(&words(settings)?)
    }

    /// How often each row drew. Waits for the device.
    pub fn counters(&self) -> Result<Vec<u64>> {
        let halves = self.counters.to_vec::<i32>()?;
        Ok(halves.chunks_exact(2).map(|half| half[0] as u32 as u64 | (half[1] as u32 as u64) << 32).collect())
    }

    /// One that draws next what this one draws next, from the same logits: to see it without counting it.
    pub fn copy(&self) -> Result<Sampler> {
        Ok(Sampler { settings: self.settings.copy()?, counters: self.counters.copy()? })
    }

    /// Rows whose `mask` (u8 `[B]`) is not zero draw as at the start again.
    ///
    /// # Errors
    /// A mask that does not fit.
    pub fn reset(&mut self, mask: &Tensor) -> Result<()> {
        let device = self.counters.device();
        check::mask(NAME, &device, self.counters.shape()[0], Some(mask))?;
        match &device {
            Device::Cpu => cpu::reset(&mut self.counters, mask),
            Device::Cuda(gpu) => cuda::reset(gpu, &mut self.counters, mask),
        }
    }
}

fn words(settings: &[Settings]) -> Result<Vec<i32>> {
    Ok(settings.iter().map(Settings::words).collect::<Result<Vec<_>>>()?.concat())
}

/// Writes one id of each row into column `column` of `ids [B, W]`, and counts the draw.
///
/// # Errors
/// Operands that do not fit each other; no logits or too many; a type that the device does not store.
pub fn draw(ids: &mut Tensor, column: usize, logits: &Tensor, sampler: &mut Sampler, mask: Option<&Tensor>) -> Result<()> {
    let _span = span::op("sample.draw");
    let &[batch, 1..=MAX_LOGITS] = &*logits.shape() else {
        return Err(Error::shape(NAME, "logits", format!("[B, 1 to {MAX_LOGITS}]"), logits.shape()));
    };
    if !matches!(*ids.shape(), [rows, width] if rows == batch && column < width) {
        return Err(Error::shape(NAME, "ids", format!("[{batch}, more than {column}]"), ids.shape()));
    }
    if ids.dtype() != DType::I32 {
        return Err(Error::dtype(NAME, "ids", "i32", ids.dtype()));
    }
    if sampler.counters.shape()[0] != batch {
        return Err(Error::shape(NAME, "logits", format!("[{}, V]", sampler.counters.shape()[0]), logits.shape()));
    }
    let device = logits.device();
    for (operand, tensor) in [("ids", &*ids), ("sampler", &sampler.counters)] {
        if tensor.device() != device {
            return Err(Error::DeviceMismatch { op: NAME, operand });
        }
    }
    check::mask(NAME, &device, batch, mask)?;
    match &device {
        Device::Cpu => dispatch_real!(NAME, logits.dtype(), T => cpu::draw::<T>(ids, column, logits, sampler, mask)),
        Device::Cuda(gpu) => cuda::draw(gpu, ids, column, logits, sampler, mask),
    }
}
