//! Token streams that run beside each other, some of them late: what a language model over audio codes reads at a step, and where what
//! it says goes.
//!
//! Column `k` of `K` is `delay[k]` steps late. The first `G` columns are generated, the others given. At step `s`
//!
//! ```text
//! feed   ring[G + q][s + delay[G + q]] = given[q]
//!        ids[k] = initial[k] if s <= delay[k], else ring[k][s]
//! take   ring[k][s + 1] = generated[k]                                       k < G
//!        out[k] = ring[k][s + 1 - D + delay[k]], UNGENERATED while s < D     D = max delay
//! ```
//! | tensor             | shape            |                                                                       |
//! |--------------------|------------------|-----------------------------------------------------------------------|
//! | `given`            | i32 `[B, K - G]` | codes of this step's frame                                            |
//! | `ids`              | i32 `[B, K]`     | what the model is fed                                                 |
//! | `generated`, `out` | i32 `[B, G]`     | what it says, and all that it has said of the frame `D` steps ago     |
//! | ring               | i32 `[B, K, D + 2]` | the index is taken modulo `D + 2`                                  |
//!
//! `s` is what [`Positions`] have counted, advanced by the caller after [`take`]. Streams whose mask is zero keep their ring, are fed
//! initial tokens and say [`UNGENERATED`]. Source: `LMGen` of moshi's `models/lm.py`.

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::attention::Positions;
use crate::ops::check;
use crate::{DType, Device, Error, Result, Tensor, span};

mod cases;
mod cpu;
mod cuda;

pub static SOURCE: Source = Source { path: "ops/delay/delay.cu", text: include_str!("delay.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "delay";

/// A token that is not there yet.
pub const UNGENERATED: i32 = -2;

/// The last tokens of every column of `B` streams.
pub struct Tokens {
    ring: Tensor,
    /// i32 `[K]`.
    delays: Tensor,
    initial: Tensor,
    longest: usize,
    generated: usize,
}

/// What the kernels count by.
#[derive(Clone, Copy)]
struct Extents {
    columns: usize,
    generated: usize,
    longest: usize,
}

impl Tokens {
    /// `generated` of the columns are generated, the first ones.
    ///
    /// # Errors
    /// Delays and initial tokens of different columns; none generated; a delay beyond 2^16.
    pub fn new(device: &Device, batch: usize, delays: &[usize], initial: &[i32], generated: usize) -> Result<Tokens> {
        let columns = delays.len();
        let longest = delays.iter().copied().max().unwrap_or(0);
        if initial.len() != columns || !(1..=columns).contains(&generated) || longest > 1 << 16 {
            let what = format!("{columns} delays up to {longest}, {} initial tokens, {generated} columns generated", initial.len());
            return Err(Error::argument(NAME, what));
        }
        let length = longest + 2;
        let elements = batch.checked_mul(columns).and_then(|n| n.checked_mul(length)).filter(|&n| n <= i32::MAX as usize);
        let elements = elements.ok_or_else(|| Error::argument(NAME, format!("{batch} streams of {columns} columns late by {longest}")))?;
        let delays: Vec<i32> = delays.iter().map(|&d| d as i32).collect();
        Ok(Tokens {
            ring: Tensor::from_slice(device, &vec![UNGENERATED; elements], [batch, columns, length])?,
            delays: Tensor::from_slice(device, &delays, [columns])?,
            initial: Tensor::from_slice(device, initial, [columns])?,
            longest,
            generated,
        })
    }

    /// Steps after which a frame is complete.
    pub fn longest(&self) -> usize {
        self.longest
    }

    fn extents(&self) -> Extents {
        Extents { columns: self.delays.elements(), generated: self.generated, longest: self.longest }
    }

    fn check(&self, operand: &'static str, t: &Tensor, columns: usize, positions: &Positions, mask: Option<&Tensor>) -> Result<()> {
        let batch = self.ring.shape()[0];
        if *t.shape() != [batch, columns] {
            return Err(Error::shape(NAME, operand, format!("[{batch}, {columns}]"), t.shape()));
        }
        if t.dtype() != DType::I32 {
            return Err(Error::dtype(NAME, operand, "i32", t.dtype()));
        }
        if t.device() != self.ring.device() {
            return Err(Error::DeviceMismatch { op: NAME, operand });
        }
        if positions.batch() != batch {
            return Err(Error::shape(NAME, "positions", format!("[{batch}]"), positions.seen.shape()));
        }
        if positions.device() != self.ring.device() {
            return Err(Error::DeviceMismatch { op: NAME, operand: "positions" });
        }
        check::mask(NAME, &self.ring.device(), batch, mask)
    }
}

/// The ids `[B, K]` that the model is fed at this step, in which `given [B, K - G]` arrives.
pub fn feed(tokens: &mut Tokens, given: &Tensor, positions: &Positions, mask: Option<&Tensor>) -> Result<Tensor> {
    let _span = span::op("delay.feed");
    let extents = tokens.extents();
    tokens.check("given", given, extents.columns - extents.generated, positions, mask)?;
    let batch = given.shape()[0];
    let mut ids = Tensor::empty(&given.device(), DType::I32, [batch, extents.columns])?;
    match given.device() {
        Device::Cpu => cpu::feed(&mut ids, tokens, given, positions, mask)?,
        Device::Cuda(gpu) => cuda::feed(&gpu, &mut ids, tokens, given, positions, mask)?,
    }
    Ok(ids)
}

/// Takes what the model says at this step, `generated [B, G]`, and gives what is complete.
pub fn take(tokens: &mut Tokens, generated: &Tensor, positions: &Positions, mask: Option<&Tensor>) -> Result<Tensor> {
    let _span = span::op("delay.take");
    tokens.check("generated", generated, tokens.generated, positions, mask)?;
    let mut out = generated.empty_like()?;
    match generated.device() {
        Device::Cpu => cpu::take(&mut out, tokens, generated, positions, mask)?,
        Device::Cuda(gpu) => cuda::take(&gpu, &mut out, tokens, generated, positions, mask)?,
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_emulator, devices};

    /// What is generated at step `s` is 100 s + column, what is given 1000 s + column.
    #[test]
    fn columns_are_read_late_and_come_out_in_step() {
        let delays = [0, 0, 2, 0, 1];
        for device in devices().unwrap() {
            let mut tokens = Tokens::new(&device, 1, &delays, &[-7; 5], 3).unwrap();
            for s in 0..20i32 {
                let positions = Positions::at(&device, &[s]).unwrap();
                let row = |base: i32, columns: std::ops::Range<i32>| {
                    let values: Vec<i32> = columns.map(|k| base * s + k).collect();
                    Tensor::from_slice(&device, &values, [1, values.len()]).unwrap()
                };
                let ids = feed(&mut tokens, &row(1000, 3..5), &positions, None).unwrap().to_vec::<i32>().unwrap();
                for (k, &delay) in delays.iter().enumerate() {
                    let expected = match k {
                        _ if s <= delay as i32 => -7,
                        // Said the step before; given so many steps ago.
                        0..3 => 100 * (s - 1) + k as i32,
                        _ => 1000 * (s - delay as i32) + k as i32,
                    };
                    assert_eq!(ids[k], expected, "column {k} at step {s}");
                }
                let out = take(&mut tokens, &row(100, 0..3), &positions, None).unwrap().to_vec::<i32>().unwrap();
                for (k, &delay) in delays[..3].iter().enumerate() {
                    let expected = if s < 2 { UNGENERATED } else { 100 * (s - 2 + delay as i32) + k as i32 };
                    assert_eq!(out[k], expected, "said in column {k} at step {s}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let new = |delays: &[usize], initial: &[i32], generated| Tokens::new(&Device::Cpu, 2, delays, initial, generated);
        for (delays, initial, generated) in
            [(&[0, 1][..], &[0][..], 1), (&[0, 1], &[0, 0], 0), (&[0, 1], &[0, 0], 3), (&[1 << 17], &[0], 1)]
        {
            assert!(new(delays, initial, generated).is_err());
        }
        assert!(Tokens::new(&Device::Cpu, usize::MAX, &[0, 1], &[0, 0], 1).is_err());
        let mut tokens = new(&[0, 1, 1], &[5; 3], 1).unwrap();
        let positions = Positions::new(&Device::Cpu, 2).unwrap();
        let ids = |shape: [usize; 2]| Tensor::from_slice(&Device::Cpu, &vec![1i32; shape[0] * shape[1]], shape).unwrap();
        assert!(matches!(feed(&mut tokens, &ids([2, 3]), &positions, None), Err(Error::Shape { operand: "given", .. })));
        assert!(matches!(take(&mut tokens, &ids([1, 1]), &positions, None), Err(Error::Shape { operand: "generated", .. })));
        let floats = Tensor::zeros(&Device::Cpu, DType::F32, [2, 2]).unwrap();
        assert!(matches!(feed(&mut tokens, &floats, &positions, None), Err(Error::DType { .. })));
        let one = Positions::new(&Device::Cpu, 1).unwrap();
        assert!(matches!(feed(&mut tokens, &ids([2, 2]), &one, None), Err(Error::Shape { operand: "positions", .. })));
        assert!(feed(&mut tokens, &ids([2, 2]), &positions, Some(&ids([2, 1]))).is_err());
    }

    #[test]
    fn the_emulator_computes_the_same() {
        check_emulator(&OP);
    }
}
