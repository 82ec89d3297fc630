//! Quantised matrices `[rows, columns]` - outputs by inputs, as PyTorch has the weight of a linear layer - in one form for all
//! published layouts.
//!
//! | layout | read by | group | codes | minimum |
//! |---|---|---|---|---|
//! | ggml Q8_0 | [`from_blocks`](Quantized::from_blocks) | 32 | 8 bits | |
//! | ggml Q4_0 | [`from_blocks`](Quantized::from_blocks) | 32 | 4 bits | |
//! | ggml Q4_K | [`from_blocks`](Quantized::from_blocks) | 32 | 4 bits | yes |
//! | bitsandbytes int8, as moshi has it | [`from_bitsandbytes`](Quantized::from_bitsandbytes) | a row | 8 bits | |
//! | AutoGPTQ, 4 bits | [`from_gptq`](Quantized::from_gptq) | any | 4 bits | unless symmetric |
//! | AutoAWQ, 4 bits (GEMM) | [`from_awq`](Quantized::from_awq) | any | 4 bits | unless symmetric |
//! | swara's own, as CPUs multiply | [`Panels`] | any | 4 or 8 bits | any |
//!
//! [`Weights::quantized`](crate::weights::Weights::quantized) finds which one a file has.

mod ggml;
mod packed;
mod panels;
mod round;
#[cfg(test)]
mod tests;

pub use packed::Gptq;
pub use panels::Panels;
pub use round::Scale;

use std::ops::Range;

use crate::QuantizedError;

/// Of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bits {
    Four,
    Eight,
}

impl Bits {
    /// Bytes that hold `codes` codes, an even number of them where two share a byte.
    pub fn bytes(self, codes: usize) -> usize {
        match self {
            Self::Four => codes / 2,
            Self::Eight => codes,
        }
    }
}

/// A matrix of codes with a scale, and perhaps a minimum, for every group of adjacent columns.
///
/// | bits | codes | value with minimum | without |
/// |---|---|---|---|
/// | 8 | signed | `fma(scale, q, -min)` | `scale * q` |
/// | 4 | 0 to 15 | `fma(scale, q, -min)` | `scale * (q - 8)` |
///
/// Each is one rounding to f32. Scales, minima and the values of all codes are finite, and there is at least one column.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    shape: [usize; 2],
    bits: Bits,
    group: usize,
    scales: Vec<f32>,
    mins: Option<Vec<f32>>,
    codes: Vec<u8>,
}

impl Quantized {
    /// `scales`, `mins`: `[rows, columns / group]`, row-major. `codes`: row-major; of 4 bits, the even column is the low half of
    /// a byte.
    ///
    /// # Errors
    /// A group that does not divide the columns, or is odd for 4 bits; lengths other than the shape's; what is not finite.
    pub fn new(
        shape: [usize; 2],
        bits: Bits,
        group: usize,
        scales: Vec<f32>,
        mins: Option<Vec<f32>>,
        codes: Vec<u8>,
    ) -> Result<Self, QuantizedError> {
        let count = count(shape, 1)?;
        let groups = groups(shape, bits, group)?;
        expect("bytes of codes", bits.bytes(count), codes.len())?;
        let in_row = shape[1] / group;
        check(bits, groups, &scales, mins.as_deref(), |at| (at / in_row, at % in_row))?;
        Ok(Self { shape, bits, group, scales, mins, codes })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Inputs.
    pub fn columns(&self) -> usize {
        self.shape[1]
    }

    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// Columns that share a scale.
    pub fn group(&self) -> usize {
        self.group
    }

    /// `[rows, columns / group]`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// `[rows, columns / group]`; None where codes are symmetric.
    pub fn mins(&self) -> Option<&[f32]> {
        self.mins.as_deref()
    }

    /// `[rows, columns]` of 8 bits, `[rows, columns / 2]` of 4.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The values, `[rows, columns]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.shape[0] * self.shape[1]);
        for (i, codes) in self.codes.chunks_exact(self.bits.bytes(self.group)).enumerate() {
            let (scale, min) = (self.scales[i], self.mins.as_ref().map(|mins| mins[i]));
            let value = |q: i8, centre: i8| match min {
                Some(min) => scale.mul_add(f32::from(q), -min),
                None => scale * f32::from(q - centre),
            };
            match self.bits {
                Bits::Eight => values.extend(codes.iter().map(|&q| value(q as i8, 0))),
                Bits::Four => values.extend(codes.iter().flat_map(|&q| [q & 15, q >> 4]).map(|q| value(q as i8, 8))),
            }
        }
        values
    }
}

impl Quantized {
    /// Matrices of as many columns, bits and groups, one below the other.
    ///
    /// # Errors
    /// None, or matrices that are not alike.
    pub fn stack(parts: &[Quantized]) -> Result<Quantized, QuantizedError> {
        let Some(first) = parts.first() else { return Err(QuantizedError::Columns { found: 0, multiple: 1 }) };
        let kind = |part: &Quantized| (part.shape[1], part.bits, part.group, part.mins.is_some());
        if parts.iter().any(|part| kind(part) != kind(first)) {
            return Err(QuantizedError::Unfit { layout: "one matrix" });
        }
        let rows = parts.iter().map(Quantized::rows).sum();
        let mins = parts.iter().map(|part| part.mins.as_deref()).collect::<Option<Vec<_>>>();
        let all = |of: fn(&Quantized) -> &[f32]| parts.iter().flat_map(of).copied().collect();
        let codes = parts.iter().flat_map(|part| &part.codes).copied().collect();
        Quantized::new([rows, first.shape[1]], first.bits, first.group, all(Quantized::scales), mins.map(|m| m.concat()), codes)
    }
}

impl Quantized {
    /// # Errors
    /// Rows beyond the last.
    pub fn some_rows(&self, rows: Range<usize>) -> Result<Quantized, QuantizedError> {
        if rows.start > rows.end || rows.end > self.rows() {
            return Err(QuantizedError::Length { what: "rows", expected: rows.end, found: self.rows() });
        }
        let (groups, bytes) = (self.shape[1] / self.group, self.bits.bytes(self.shape[1]));
        let scales = |of: &[f32]| of[rows.start * groups..rows.end * groups].to_vec();
        let codes = self.codes[rows.start * bytes..rows.end * bytes].to_vec();
        let (scales, mins) = (scales(&self.scales), self.mins.as_deref().map(scales));
        Quantized::new([rows.len(), self.shape[1]], self.bits, self.group, scales, mins, codes)
    }
}

/// `[columns, rows]` of `[rows, columns]`, block by block, so that what is fetched is used.
pub fn transposed<T: Copy + Default>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    const BLOCK: usize = 16;
    let mut out = vec![T::default(); values.len()];
    for row in (0..rows).step_by(BLOCK) {
        for column in (0..columns).step_by(BLOCK) {
            for c in column..columns.min(column + BLOCK) {
                for r in row..rows.min(row + BLOCK) {
                    out[c * rows + r] = values[r * columns + c];
                }
            }
        }
    }
    out
}

/// Elements of a matrix whose columns are a multiple of `multiple`.
fn count(shape: [usize; 2], multiple: usize) -> Result<usize, QuantizedError> {
    let [rows, columns] = shape;
    if columns == 0 || !columns.is_multiple_of(multiple) {
        return Err(QuantizedError::Columns { found: columns, multiple });
    }
    rows.checked_mul(columns).ok_or(QuantizedError::Overflow { shape })
}

/// Of a matrix that was counted.
fn groups([rows, columns]: [usize; 2], bits: Bits, group: usize) -> Result<usize, QuantizedError> {
    let whole = bits == Bits::Eight || group.is_multiple_of(2);
    match columns.checked_rem(group) {
        Some(0) if whole => Ok(rows * (columns / group)),
        _ => Err(QuantizedError::Group { group, columns }),
    }
}

/// So many scales and minima, all of them finite and the values that they give. `place`: row and group of each.
fn check(
    bits: Bits,
    groups: usize,
    scales: &[f32],
    mins: Option<&[f32]>,
    place: impl Fn(usize) -> (usize, usize),
) -> Result<(), QuantizedError> {
    let fail = |what, at: usize, value| {
        let (row, group) = place(at);
        Err(QuantizedError::NonFinite { what, row, group, value })
    };
    for (what, several, values) in [("scale", "scales", Some(scales)), ("minimum", "minima", mins)] {
        let Some(values) = values else { continue };
        expect(several, groups, values.len())?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return fail(what, at, values[at]);
        }
    }
    // The code furthest from zero.
    let furthest = |at: usize| match (bits, mins) {
        (Bits::Eight, mins) => 128.0 * scales[at].abs() + mins.map_or(0.0, |mins| mins[at].abs()),
        (Bits::Four, Some(mins)) => 15.0 * scales[at].abs() + mins[at].abs(),
        (Bits::Four, None) => 8.0 * scales[at].abs(),
    };
    match (0..groups).map(|at| (at, furthest(at))).find(|(_, value)| !value.is_finite()) {
        None => Ok(()),
        Some((at, value)) => fail("value", at, value),
    }
}

fn expect(what: &'static str, expected: usize, found: usize) -> Result<(), QuantizedError> {
    match found == expected {
        true => Ok(()),
        false => Err(QuantizedError::Length { what, expected, found }),
    }
}
