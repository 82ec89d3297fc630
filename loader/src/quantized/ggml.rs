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

fn half(low: u8, high: u8) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}

/// Low halves are the first elements, high ones those after them; in codes, two halves of a byte are neighbours.
fn join(halves: &[u8], codes: &mut Vec<u8>) {
    let pairs = halves.as_chunks::<2>().0;
    codes.extend(pairs.iter().map(|[a, b]| a & 15 | b << 4));
    codes.extend(pairs.iter().map(|[a, b]| a >> 4 | b & 0xf0));
}

/// The eight scales and minima of a Q4_K block. The last four have their lower bits in the last four bytes, and their upper ones
/// above the six of the first four.
fn six_bits(bytes: &[u8]) -> impl Iterator<Item = (u8, u8)> {
    (0..8).map(|i| match i {
        0..4 => (bytes[i] & 63, bytes[i + 4] & 63),
        _ => (bytes[i + 4] & 15 | bytes[i - 4] >> 6 << 4, bytes[i + 4] >> 4 | bytes[i] >> 6 << 4),
    })
}
