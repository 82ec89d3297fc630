//! Layouts of PyTorch's packages: several tensors a matrix.

use half::f16;

use super::{Bits, Quantized, count, expect, groups, transposed};
use crate::QuantizedError;

/// Codes of 4 bits in an i32.
const IN_WORD: usize = 8;

impl Quantized {
    /// `weight`: `[rows, columns]`; `scb`: `[rows]`, the greatest magnitude of each row (moshi 0.2.13, `utils/quantize.py`).
    ///
    /// The scale is `scb * f32(1/127)`, rounded before it is multiplied with the code, as in the gradient of bitsandbytes 0.49
    /// (`autograd/_functions.py`). Its `int8_vectorwise_dequant` multiplies `(q * scb) * f32(1/127)`: less than 3 ulp from
    /// here, `scb` being of f16 weights.
    ///
    /// # Errors
    /// Lengths other than the shape's; scales that are not finite.
    pub fn from_bitsandbytes(shape: [usize; 2], weight: &[i8], scb: &[f32]) -> Result<Self, QuantizedError> {
        expect("codes", count(shape, 1)?, weight.len())?;
        let scales = scb.iter().map(|absmax| absmax * (1.0 / 127.0)).collect();
        Self::new(shape, Bits::Eight, shape[1], scales, None, bytemuck::cast_slice(weight).to_vec())
    }

    /// AutoGPTQ's 4 bits: `w = scale * (q - (zero + 1))`, with
    ///
    /// - `qweight`: `[columns / 8, rows]`, 8 columns a word, the first one lowest;
    /// - `qzeros`: `[columns / group, rows / 8]`, 8 rows a word, less one;
    /// - `scales`: `[columns / group, rows]`, of f16;
    /// - `g_idx`: `[columns]`, the group of each.
    ///
    /// Values are exact in f32; AutoGPTQ has them rounded to f16 (`nn_modules/qlinear/qlinear_cuda.py`).
    ///
    /// # Errors
    /// Lengths other than the shape's; scales that are not finite; columns that are not in the order of their groups (`desc_act`).
    pub fn from_gptq(
        shape: [usize; 2],
        group: usize,
        qweight: &[i32],
        qzeros: &[i32],
        scales: &[f32],
        g_idx: Option<&[i32]>,
    ) -> Result<Self, QuantizedError> {
        let [rows, columns] = shape;
        expect("words of qweight", count(shape, IN_WORD)? / IN_WORD, qweight.len())?;
        let zeros = Zeros::new(shape, group, qzeros, scales)?;
        if let Some(g_idx) = g_idx {
            expect("elements of g_idx", columns, g_idx.len())?;
            let found = |&column: &usize| usize::try_from(g_idx[column]) != Ok(column / group);
            if let Some(column) = (0..columns).find(found) {
                return Err(QuantizedError::ActOrder { column, found: g_idx[column], expected: column / group });
            }
        }
        let words: Vec<[u8; 4]> = qweight.iter().map(|word| word.to_le_bytes()).collect();
        let codes = transposed(&words, columns / IN_WORD, rows).into_flattened();
        zeros.with(codes, |place| place, 1)
    }

    /// AutoAWQ's 4 bits (`WQLinear_GEMM`): `w = scale * (q - zero)`, with
    ///
    /// - `qweight`: `[columns, rows / 8]`, 8 rows a word, in the order 0 2 4 6 1 3 5 7 from the lowest;
    /// - `qzeros`: `[columns / group, rows / 8]`, likewise;
    /// - `scales`: `[columns / group, rows]`, of f16.
    ///
    /// Values are exact in f32; AutoAWQ has them rounded to f16 (`utils/packing_utils.py`).
    ///
    /// # Errors
    /// Lengths other than the shape's; scales that are not finite.
    pub fn from_awq(shape: [usize; 2], group: usize, qweight: &[i32], qzeros: &[i32], scales: &[f32]) -> Result<Self, QuantizedError> {
        /// Where in the word each row is.
        const PLACE: [usize; IN_WORD] = [0, 4, 1, 5, 2, 6, 3, 7];
        let [rows, columns] = shape;
        expect("words of qweight", count(shape, 2)? / IN_WORD, qweight.len())?;
        let zeros = Zeros::new(shape, group, qzeros, scales)?;
        let words = rows / IN_WORD;
        let mut codes = Vec::with_capacity(rows * columns / 2);
        for row in 0..rows {
            let code = |column: usize| nibble(qweight[column * words + row / IN_WORD], PLACE[row % IN_WORD]);
            codes.extend((0..columns).step_by(2).map(|column| code(column) | code(column + 1) << 4));
        }
        zeros.with(codes, |place| PLACE[place], 0)
    }
}

/// A matrix as AutoGPTQ has it; see [`Quantized::from_gptq`].
#[derive(Debug, Clone, PartialEq)]
pub struct Gptq {
    pub qweight: Vec<i32>,
    pub qzeros: Vec<i32>,
    pub scales: Vec<f16>,
}

impl Quantized {
    /// What [`Quantized::from_bitsandbytes`] reads as this: codes, and the greatest magnitude of each row.
    ///
    /// # Errors
    /// Codes of 4 bits; several groups in a row; minima.
    pub fn to_bitsandbytes(&self) -> Result<(&[u8], Vec<f32>), QuantizedError> {
        let [_, columns] = self.shape;
        if self.bits != Bits::Eight || self.group != columns || self.mins.is_some() {
            return Err(QuantizedError::Unfit { layout: "bitsandbytes" });
        }
        // The number whose product with 1/127 is the scale, near that with 127.
        let greatest = |&scale: &f32| {
            let near = scale * 127.0;
            [near, near.next_up(), near.next_down()].into_iter().find(|v| v * (1.0 / 127.0) == scale).unwrap_or(near)
        };
        Ok((&self.codes, self.scales.iter().map(greatest).collect()))
    }

    /// What [`Quantized::from_gptq`] reads as this, but for scales, which are rounded to f16.
    ///
    /// # Errors
    /// Codes of 8 bits; minima; rows or columns that do not fill words; scales beyond f16.
    pub fn to_gptq(&self) -> Result<Gptq, QuantizedError> {
        let ([rows, columns], groups) = (self.shape, self.shape[1] / self.group);
        if self.bits != Bits::Four || self.mins.is_some() {
            return Err(QuantizedError::Unfit { layout: "AutoGPTQ" });
        }
        count(self.shape, IN_WORD)?;
        if !rows.is_multiple_of(IN_WORD) {
            return Err(QuantizedError::Rows { found: rows, multiple: IN_WORD });
        }
        let word = |at: usize| {
            let first = (at % rows * columns + at / rows * IN_WORD) / 2;
            i32::from_le_bytes(std::array::from_fn(|i| self.codes[first + i]))
        };
        let scale = |at: usize| {
            let (row, group) = (at % rows, at / rows);
            let scale = f16::from_f32(self.scales[row * groups + group]);
            let lost = || QuantizedError::NonFinite { what: "scale", row, group, value: scale.to_f32() };
            if scale.is_finite() { Ok(scale) } else { Err(lost()) }
        };
        /// A zero of 8 in every place, less one.
        const ZEROS: i32 = 0x7777_7777;
        Ok(Gptq {
            qweight: (0..columns / IN_WORD * rows).map(word).collect(),
            qzeros: vec![ZEROS; groups * rows / IN_WORD],
            scales: (0..groups * rows).map(scale).collect::<Result<_, _>>()?,
        })
    }
}

fn nibble(word: i32, place: usize) -> u8 {
    (word >> (4 * place)) as u8 & 15
}

/// Zero points and scales, `[columns / group, rows / 8]` and `[columns / group, rows]`.
struct Zeros<'a> {
    shape: [usize; 2],
    group: usize,
    qzeros: &'a [i32],
    scales: &'a [f32],
}

impl<'a> Zeros<'a> {
    fn new(shape: [usize; 2], group: usize, qzeros: &'a [i32], scales: &'a [f32]) -> Result<Self, QuantizedError> {
        let groups = groups(shape, Bits::Four, group)?;
        if !shape[0].is_multiple_of(IN_WORD) {
            return Err(QuantizedError::Rows { found: shape[0], multiple: IN_WORD });
        }
        expect("words of qzeros", groups / IN_WORD, qzeros.len())?;
        expect("scales", groups, scales.len())?;
        Ok(Self { shape, group, qzeros, scales })
    }

    /// `place`: of a row in its word. `add`: to what is stored.
    fn with(&self, codes: Vec<u8>, place: impl Fn(usize) -> usize, add: u8) -> Result<Quantized, QuantizedError> {
        let [rows, columns] = self.shape;
        let groups = columns / self.group;
        let (mut scales, mut zeros) = (Vec::with_capacity(self.scales.len()), Vec::with_capacity(self.scales.len()));
        for row in 0..rows {
            for group in 0..groups {
                scales.push(self.scales[group * rows + row]);
                zeros.push(add + nibble(self.qzeros[group * (rows / IN_WORD) + row / IN_WORD], place(row % IN_WORD)));
            }
        }
        let symmetric = zeros.iter().all(|&zero| zero == 8);
        let mins = || scales.iter().zip(&zeros).map(|(scale, &zero)| scale * f32::from(zero)).collect();
        let mins = (!symmetric).then(mins);
        Quantized::new(self.shape, Bits::Four, self.group, scales, mins, codes)
    }
}
