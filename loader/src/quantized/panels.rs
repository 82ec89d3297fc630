//! The layout that CPUs multiply by: so many rows side by side, column after column.

use std::borrow::Cow;

use super::{Bits, Quantized, check, count, expect, groups};
use crate::QuantizedError;

/// A matrix in panels of [`ROWS`](Self::ROWS) rows.
///
/// | part | shape | |
/// |---|---|---|
/// | codes | `[panels, columns, 32]`, or 16 bytes of 4 bits | of 4 bits, the row 16 further on is the high half of a byte |
/// | scales, minima | `[panels, columns / group, 32]` | as [`Quantized`] has them |
#[derive(Debug, Clone, PartialEq)]
pub struct Panels<'a> {
    shape: [usize; 2],
    bits: Bits,
    group: usize,
    scales: Cow<'a, [f32]>,
    mins: Option<Cow<'a, [f32]>>,
    codes: Cow<'a, [u8]>,
}

impl<'a> Panels<'a> {
    /// Rows of a panel.
    pub const ROWS: usize = 32;

    /// # Errors
    /// Rows that fill no panels; a group that does not divide the columns; lengths other than the shape's; what is not finite.
    pub fn new(
        shape: [usize; 2],
        bits: Bits,
        group: usize,
        scales: Cow<'a, [f32]>,
        mins: Option<Cow<'a, [f32]>>,
        codes: Cow<'a, [u8]>,
    ) -> Result<Self, QuantizedError> {
        let count = count(shape, 1)?;
        if !shape[0].is_multiple_of(Self::ROWS) {
            return Err(QuantizedError::Rows { found: shape[0], multiple: Self::ROWS });
        }
        let groups = groups(shape, bits, group)?;
        expect("bytes of codes", bits.bytes(count), codes.len())?;
        let in_row = shape[1] / group;
        check(bits, groups, &scales, mins.as_deref(), |at| {
            (at / (in_row * Self::ROWS) * Self::ROWS + at % Self::ROWS, at / Self::ROWS % in_row)
        })?;
        Ok(Self { shape, bits, group, scales, mins, codes })
    }

    /// Outputs, a multiple of [`ROWS`](Self::ROWS).
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

    /// `[panels, columns / group, 32]`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// As the scales; None where codes are symmetric.
    pub fn mins(&self) -> Option<&[f32]> {
        self.mins.as_deref()
    }

    /// `[panels, columns, 32]` of 8 bits, `[panels, columns, 16]` of 4.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The same, row by row.
    ///
    /// # Errors
    /// None that are known: what panels and rows may hold is the same.
    pub fn to_rows(&self) -> Result<Quantized, QuantizedError> {
        let [rows, columns] = self.shape;
        let mut codes = vec![0; self.codes.len()];
        let width = self.bits.bytes(Self::ROWS);
        for (at, row) in codes.chunks_exact_mut(self.bits.bytes(columns).max(1)).enumerate() {
            let (panel, lane) = (&self.codes[at / Self::ROWS * columns * width..], at % Self::ROWS);
            match self.bits {
                Bits::Eight => row.iter_mut().enumerate().for_each(|(k, code)| *code = panel[k * width + lane]),
                Bits::Four => {
                    let code = |k: usize| panel[k * width + lane % width] >> (4 * (lane / width)) & 15;
                    row.iter_mut().enumerate().for_each(|(k, pair)| *pair = code(2 * k) | code(2 * k + 1) << 4);
                }
            }
        }
        let groups = columns / self.group;
        let by_row = |of: &[f32]| {
            let place = |at: usize| ((at / groups / Self::ROWS) * groups + at % groups) * Self::ROWS + at / groups % Self::ROWS;
            (0..rows * groups).map(|at| of[place(at)]).collect::<Vec<f32>>()
        };
        Quantized::new(self.shape, self.bits, self.group, by_row(&self.scales), self.mins.as_deref().map(by_row), codes)
    }
}

impl Quantized {
    /// The same, in panels.
    ///
    /// # Errors
    /// Rows that fill no panels.
    pub fn to_panels(&self) -> Result<Panels<'static>, QuantizedError> {
        const ROWS: usize = Panels::ROWS;
        let [rows, columns] = self.shape;
        if !rows.is_multiple_of(ROWS) {
            return Err(QuantizedError::Rows { found: rows, multiple: ROWS });
        }
        let (width, row_bytes) = (self.bits.bytes(ROWS), self.bits.bytes(columns));
        let mut codes = vec![0; self.codes.len()];
        for (i, panel) in codes.chunks_exact_mut((columns * width).max(1)).enumerate() {
            let row = |lane: usize| &self.codes[(i * ROWS + lane) * row_bytes..][..row_bytes];
            for (at, code) in panel.iter_mut().enumerate() {
                let (k, lane) = (at / width, at % width);
                let nibble = |lane: usize| row(lane)[k / 2] >> (4 * (k % 2)) & 15;
                *code = match self.bits {
                    Bits::Eight => row(lane)[k],
                    Bits::Four => nibble(lane) | nibble(lane + width) << 4,
                };
            }
        }
        let groups = columns / self.group;
        let by_panel = |of: &[f32]| {
            let place = |at: usize| (at / (groups * ROWS) * ROWS + at % ROWS) * groups + at / ROWS % groups;
            Cow::Owned((0..rows * groups).map(|at| of[place(at)]).collect::<Vec<f32>>())
        };
        let (scales, mins) = (by_panel(&self.scales), self.mins.as_deref().map(by_panel));
        Ok(Panels { shape: self.shape, bits: self.bits, group: self.group, scales, mins, codes: codes.into() })
    }
}
