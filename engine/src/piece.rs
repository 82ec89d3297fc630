//! Tensors of a file, or some rows of them, that a model's tensors are made of: values, codes, or codes in panels.

use std::borrow::Cow;
use std::ops::Range;

use swara_kernels::Device;
use swara_kernels::quantized::{Panels, Quantized};
use swara_loader::quantized::Quantized as Codes;
use swara_loader::{quantized as codes, weights};

use crate::weights::{in_panels, upload};
use crate::{Error, Result};

/// A tensor of a file, whose dimensions before the last are rows.
pub(crate) struct Piece {
    pub name: String,
    pub shape: Vec<usize>,
    /// If not all.
    pub rows: Option<Range<usize>>,
}

impl Piece {
    /// Rows and columns of the tensor; None of a vector.
    fn matrix(&self) -> Option<[usize; 2]> {
        let (&columns, outer) = self.shape.split_last()?;
        (!outer.is_empty()).then(|| [outer.iter().fold(1, |a: usize, &b| a.saturating_mul(b)), columns])
    }

    fn fail(&self, file: &weights::Weights, why: impl std::fmt::Display) -> Error {
        Error::File { path: file.path().to_owned(), why: format!("tensor {}: {why}", self.name) }
    }

    /// The tensors that a file has it in, with their shapes: it, or codes and what makes values of them. How many groups there are, and of
    /// how many bits codes are, is the file's to say.
    pub fn stored(&self, file: &weights::Weights) -> Vec<(String, Vec<usize>)> {
        const ROWS: usize = Panels::ROWS;
        let beside = |part: &str| self.name.strip_suffix("weight").unwrap_or(&self.name).to_owned() + part;
        let found = |part: &str| file.info(&beside(part)).map(|(_, shape)| shape.to_vec());
        let own = || vec![(self.name.clone(), self.shape.clone())];
        let Some([rows, columns]) = self.matrix() else { return own() };
        if file.contains(&beside("qweight")) && packed(file, &self.name) {
            let parts = ["qweight", "qzeros", "scales", "g_idx"];
            return parts.into_iter().filter_map(|part| Some((beside(part), found(part)?))).collect();
        }
        if packed(file, &self.name) {
            let last = |part: &str, axis: usize| found(part).and_then(|shape| shape.get(axis).copied()).unwrap_or(0);
            let width = if last("panels", 2) == ROWS / 2 { ROWS / 2 } else { ROWS };
            let scales = vec![rows / ROWS, last("scales", 1), ROWS];
            let mins = found("mins").map(|_| (beside("mins"), scales.clone()));
            let parts = [(beside("panels"), vec![rows / ROWS, columns, width]), (beside("scales"), scales)];
            return parts.into_iter().chain(mins).collect();
        }
        let scales = format!("{}_scb", self.name);
        own().into_iter().chain(file.contains(&scales).then(|| (scales, vec![rows]))).collect()
    }

    /// As codes; None where it has none.
    pub fn codes(&self, file: &weights::Weights) -> Result<Option<Codes>> {
        let Some([all, columns]) = self.matrix() else { return Ok(None) };
        if let (Some(_), Some(panels)) = (&self.rows, self.panels(file)?) {
            return panels.to_rows().map(Some).map_err(|why| self.fail(file, why));
        }
        let whole = packed(file, &self.name);
        let (found, expected) = match &self.rows {
            Some(rows) if !whole => (file.quantized_rows(&self.name, rows.clone())?, rows.len()),
            _ => (file.quantized(&self.name)?, all),
        };
        let Some(found) = found else { return Ok(None) };
        if [found.rows(), found.columns()] != [expected, columns] {
            return Err(self.fail(file, format!("codes {:?}, expected {:?}", [found.rows(), found.columns()], [expected, columns])));
        }
        match self.rows.clone().filter(|_| whole) {
            Some(rows) => found.some_rows(rows).map(Some).map_err(|why| self.fail(file, why)),
            None => Ok(Some(found)),
        }
    }

    /// In panels, where the file has whole ones of it.
    fn panels<'f>(&self, file: &'f weights::Weights) -> Result<Option<codes::Panels<'f>>> {
        let Some(panels) = self.matrix().map_or(Ok(None), |_| file.panels(&self.name, self.rows.as_ref()))? else { return Ok(None) };
        let (found, expected) =
            ([panels.rows(), panels.columns()], self.matrix().map(|[all, columns]| [self.rows.as_ref().map_or(all, Range::len), columns]));
        match expected {
            Some(expected) if expected != found => Err(self.fail(file, format!("codes {found:?}, expected {expected:?}"))),
            _ => Ok(Some(panels)),
        }
    }

    /// # Errors
    /// What is not finite.
    pub fn values<'f>(&self, file: &'f weights::Weights) -> Result<Cow<'f, [f32]>> {
        let values = match (self.codes(file)?, &self.rows) {
            (Some(codes), _) => codes.dequantize().into(),
            (None, Some(rows)) => file.to_f32_rows(&self.name, rows.clone())?,
            (None, None) => file.to_f32(&self.name)?,
        };
        self.finite(file, values.iter().copied())?;
        Ok(values)
    }

    pub fn finite(&self, file: &weights::Weights, mut values: impl Iterator<Item = f32> + Clone) -> Result<()> {
        let Some(at) = values.clone().position(|v| !v.is_finite()) else { return Ok(()) };
        let of = self.rows.as_ref().map_or_else(String::new, |rows| format!(" of rows {rows:?}"));
        let why = format!("element {at}{of} of tensor {} is {}", self.name, values.nth(at).unwrap_or_default());
        Err(Error::File { path: file.path().to_owned(), why })
    }
}

/// Whether a matrix is there as GPTQ or AWQ have it, or in panels, and not as it is.
pub(crate) fn packed(file: &weights::Weights, name: &str) -> bool {
    let has = |layer: &str| ["qweight", "panels"].iter().any(|part| file.contains(&format!("{layer}{part}")));
    !file.contains(name) && name.strip_suffix("weight").is_some_and(has)
}

/// Pieces one below the other as codes; None where one has none, or they are not alike.
pub(crate) fn quantized<'p>(
    pieces: impl IntoIterator<Item = &'p Piece>,
    file: &weights::Weights,
    device: &Device,
) -> Result<Option<Quantized>> {
    let codes = pieces.into_iter().map(|piece| piece.codes(file)).collect::<Result<Option<Vec<_>>>>()?;
    let stacked = match codes.unwrap_or_default() {
        mut one if one.len() == 1 => one.pop(),
        several => Codes::stack(&several).ok(),
    };
    stacked.map(|codes| upload(device, &codes)).transpose()
}

/// Likewise in panels, on the CPU.
pub(crate) fn panels<'p>(pieces: impl IntoIterator<Item = &'p Piece>, file: &weights::Weights, device: &Device) -> Result<Option<Panels>> {
    if *device != Device::Cpu {
        return Ok(None);
    }
    let panels = pieces.into_iter().map(|piece| piece.panels(file)).collect::<Result<Option<Vec<_>>>>()?;
    panels.map_or(Ok(None), |panels| in_panels(&panels))
}
