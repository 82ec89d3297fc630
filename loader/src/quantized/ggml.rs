//! ggml's blocks (ggml/src/ggml-common.h): a row is a sequence of them, numbers are little-endian.
//!
//! | type | elements | bytes | value |
//! |---|---|---|---|
//! | Q8_0 | 32 | d: f16, q: i8 x 32 | `d q` |
//! | Q4_0 | 32 | d: f16, q: 4 bits x 32 | `d (q - 8)` |
//! | Q4_K | 256 | d, dmin: f16, (s, m): 6 bits x 8 each, q: 4 bits x 256 | `d s q - dmin m` |

use half::f16;

use super::{Bits, Quantized, count, expect};
use crate::QuantizedError;
use crate::weights::Dtype;

/// Columns that share a scale, in all three.
pub(super) const GROUP: usize = 32;

impl Quantized {
    /// The blocks of ggml's `dtype`, row by row. Values are those of ggml, bit by bit: products of an f16 and small integers are
    /// exact in f32.
    ///
    /// # Errors
    /// A dtype without blocks; rows that are no whole blocks; another number of bytes; scales that are not finite.
    pub fn from_blocks(dtype: Dtype, shape: [usize; 2], blocks: &[u8]) -> Result<Self, QuantizedError> {
        let bits = match dtype {
            Dtype::Q8_0 => Bits::Eight,
            Dtype::Q4_0 | Dtype::Q4K => Bits::Four,
            _ => return Err(QuantizedError::NoBlocks { dtype: dtype.name() }),
        };
        let count = count(shape, dtype.block())?;
        expect("bytes of blocks", (count / dtype.block()).saturating_mul(dtype.size()), blocks.len())?;
        let (mut scales, mut mins) = (Vec::with_capacity(count / GROUP), None);
        let mut codes = Vec::with_capacity(bits.bytes(count));
        match dtype {
            Dtype::Q8_0 => {
                for [a, b, q @ ..] in blocks.as_chunks::<34>().0 {
                    scales.push(half(*a, *b));
                    codes.extend_from_slice(q);
                }
            }
            Dtype::Q4_0 => {
                for [a, b, q @ ..] in blocks.as_chunks::<18>().0 {
                    scales.push(half(*a, *b));
                    join(q, &mut codes);
                }
            }
            _ => {
                let mins = mins.insert(Vec::with_capacity(count / GROUP));
                for block in blocks.as_chunks::<144>().0 {
                    let (d, dmin) = (half(block[0], block[1]), half(block[2], block[3]));
                    for (s, m) in six_bits(&block[4..16]) {
                        scales.push(d * f32::from(s));
                        mins.push(dmin * f32::from(m));
                    }
                    block[16..].chunks_exact(GROUP).for_each(|q| join(q, &mut codes));
                }
            }
        }
        Self::new(shape, bits, GROUP, scales, mins, codes)
    }
}

impl Quantized {
    /// What [`Quantized::from_blocks`] reads as this.
    ///
    /// # Errors
    /// Another dtype than Q8_0 and Q4_0, which Q4_K's scales of scales are not; other bits or groups, minima, or scales that are no f16.
    pub fn to_blocks(&self, dtype: Dtype) -> Result<Vec<u8>, QuantizedError> {
        let layout = dtype.name();
        let fits = matches!((dtype, self.bits), (Dtype::Q8_0, Bits::Eight) | (Dtype::Q4_0, Bits::Four));
        if !fits || self.group != GROUP || self.mins.is_some() {
            return Err(QuantizedError::Unfit { layout });
        }
        let mut blocks = Vec::with_capacity(self.scales.len() * dtype.size());
        for (&scale, codes) in self.scales.iter().zip(self.codes.chunks_exact(self.bits.bytes(GROUP))) {
            let kept = f16::from_f32(scale);
            if kept.to_f32() != scale {
                return Err(QuantizedError::Unfit { layout });
            }
            blocks.extend(kept.to_le_bytes());
            match self.bits {
                Bits::Eight => blocks.extend(codes),
                Bits::Four => part(codes, &mut blocks),
            }
        }
        Ok(blocks)
    }

    /// Blocks of Q4_K for `values`, whose nearest codes they hold: the minimum of 32 adjacent values, if below 0, and a 15th of their
    /// range, in 63rds of the greatest of each in 256. The format is ggml's, the choice of scales is not: its `quantize_row_q4_K_ref`
    /// searches for better ones.
    ///
    /// # Errors
    /// Rows that are no multiple of 256; another number of values; a value that is not finite, or gives no finite f16 scale.
    pub fn q4_k_blocks(shape: [usize; 2], values: &[f32]) -> Result<Vec<u8>, QuantizedError> {
        let (block, size) = (Dtype::Q4K.block(), Dtype::Q4K.size());
        let count = count(shape, block)?;
        expect("values", count, values.len())?;
        let fail =
            |at: usize| QuantizedError::NonFinite { what: "value", row: at / shape[1], group: at % shape[1] / GROUP, value: values[at] };
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(fail(at));
        }
        let mut blocks = Vec::with_capacity(count / block * size);
        for (at, values) in values.chunks_exact(block).enumerate() {
            let bounds = |group: &[f32]| group.iter().fold((0.0f32, 0.0f32), |(low, high), &v| (low.min(v), high.max(v)));
            let groups: Vec<(f32, f32)> = values.chunks_exact(GROUP).map(bounds).map(|(low, high)| ((high - low) / 15.0, -low)).collect();
            let greatest = groups.iter().fold((0.0f32, 0.0f32), |(s, m), &(scale, min)| (s.max(scale), m.max(min)));
            let [d, dmin] = [greatest.0, greatest.1].map(|v| f16::from_f32(v / 63.0));
            if !d.is_finite() || !dmin.is_finite() {
                return Err(fail(at * block));
            }
            let sixth = |v: f32, unit: f16| if unit == f16::ZERO { 0 } else { (v / unit.to_f32()).round().min(63.0) as u8 };
            let steps: Vec<(u8, u8)> = groups.iter().map(|&(scale, min)| (sixth(scale, d), sixth(min, dmin))).collect();
            blocks.extend([d, dmin].map(f16::to_le_bytes).concat());
            blocks.extend(twelve_bytes(&steps));
            let mut codes = Vec::with_capacity(block / 2);
            for (values, &(s, m)) in values.chunks_exact(GROUP).zip(&steps) {
                let (scale, min) = (d.to_f32() * f32::from(s), dmin.to_f32() * f32::from(m));
                let code = |v: f32| if scale == 0.0 { 0 } else { ((v + min) / scale).round().clamp(0.0, 15.0) as u8 };
                codes.extend(values.as_chunks::<2>().0.iter().map(|&[a, b]| code(a) | code(b) << 4));
            }
            codes.chunks_exact(GROUP).for_each(|codes| part(codes, &mut blocks));
        }
        Ok(blocks)
    }
}

/// Six bits of eight scales and minima, where [`six_bits`] finds them.
fn twelve_bytes(steps: &[(u8, u8)]) -> [u8; 12] {
    let mut bytes = [0; 12];
    for (i, &(s, m)) in steps.iter().enumerate() {
        match i {
            0..4 => {
                bytes[i] |= s;
                bytes[i + 4] |= m;
            }
            _ => {
                bytes[i + 4] |= s & 15 | m << 4;
                bytes[i - 4] |= s >> 4 << 6;
                bytes[i] |= m >> 4 << 6;
            }
        }
    }
    bytes
}

fn half(low: u8, high: u8) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}

/// Low halves are the first elements, high ones those after them; in codes, two halves of a byte are neighbours.
fn join(halves: &[u8], codes: &mut Vec<u8>) {
    let pairs = halves.as_chunks::<2>().0;
    codes.extend(pairs.iter().map(|[a, b]| a & 15 | b << 4));
    codes.extend(pairs.iter().map(|[a, b]| a >> 4 | b & 0xf0));
}

/// The opposite of [`join`].
fn part(codes: &[u8], halves: &mut Vec<u8>) {
    let (low, high) = codes.split_at(codes.len() / 2);
    let at = |codes: &[u8], i: usize| codes[i / 2] >> (4 * (i % 2)) & 15;
    halves.extend((0..codes.len()).map(|i| at(low, i) | at(high, i) << 4));
}

/// The eight scales and minima of a Q4_K block. The last four have their lower bits in the last four bytes, and their upper ones
/// above the six of the first four.
fn six_bits(bytes: &[u8]) -> impl Iterator<Item = (u8, u8)> {
    (0..8).map(|i| match i {
        0..4 => (bytes[i] & 63, bytes[i + 4] & 63),
        _ => (bytes[i + 4] & 15 | bytes[i - 4] >> 6 << 4, bytes[i + 4] >> 4 | bytes[i] >> 6 << 4),
    })
}
