//! Which of a file's tensors make a quantised matrix.

use std::borrow::Cow;
use std::ops::Range;

use super::{Dtype, TensorView, Weights};
use crate::quantized::{Bits, Panels, Quantized};
use crate::{QuantizedError, Result, WeightsError};

impl Weights {
    /// The matrix `name` as codes and scales, in whichever layout the file has it; None where it is not quantised. Dimensions
    /// before the last are rows.
    ///
    /// - A tensor of ggml's blocks.
    /// - An I8 tensor `name` with `{name}_scb` beside it: bitsandbytes, as moshi saves it.
    /// - In place of a missing `*weight`: `*qweight`, `*qzeros`, `*scales` and perhaps `*g_idx`, which by their shapes are
    ///   AutoGPTQ's or AutoAWQ's.
    /// - In place of a missing `*weight`: `*panels`, `*scales` and perhaps `*mins`, which are [`Panels`].
    ///
    /// # Errors
    /// No such tensor; tensors that do not fit each other, with what [`Quantized`] says to them; a `config.json` that declares
    /// zero points as `gptq_v2` has them, which the tensors do not show.
    pub fn quantized(&self, name: &str) -> Result<Option<Quantized>> {
        match (self.info(name), name.strip_suffix("weight")) {
            (Some((_, shape)), _) => self.quantized_rows(name, 0..matrix(shape)[0]),
            (None, Some(layer)) if self.contains(&format!("{layer}qweight")) => self.packed(layer).map(Some),
            (None, Some(layer)) if self.contains(&format!("{layer}panels")) => {
                let panels = self.panels(name, None)?.map(|panels| panels.to_rows());
                panels.transpose().map_err(|why| self.misfit(name, why))
            }
            (None, _) => Err(self.fail(WeightsError::NoTensor(name.into()))),
        }
    }

    /// [`quantized`](Self::quantized) of some rows, and no others are read: of blocks and of bitsandbytes' codes.
    ///
    /// # Errors
    /// As there; rows beyond the last.
    pub fn quantized_rows(&self, name: &str, rows: Range<usize>) -> Result<Option<Quantized>> {
        let view = self.view(name)?;
        if view.dtype.block() > 1 {
            return self.blocks(name, &view, rows).map(Some);
        }
        let scb = format!("{name}_scb");
        if view.dtype != Dtype::I8 || !self.contains(&scb) {
            return Ok(None);
        }
        let (codes, scb) = (bytemuck::cast_slice(self.rows(name, &view, &rows)?), self.to_f32(&scb)?);
        let [all, columns] = matrix(view.shape);
        if scb.len() != all {
            return Err(self.misfit(name, QuantizedError::Length { what: "scales", expected: all, found: scb.len() }));
        }
        Quantized::from_bitsandbytes([rows.len(), columns], codes, &scb[rows]).map(Some).map_err(|why| self.misfit(name, why))
    }

    /// [`to_f32`](Self::to_f32) of some rows, and no others are read.
    ///
    /// # Errors
    /// As there; rows beyond the last.
    pub fn to_f32_rows(&self, name: &str, rows: Range<usize>) -> Result<Cow<'_, [f32]>> {
        let view = self.view(name)?;
        if view.dtype.block() > 1 {
            return Ok(Cow::Owned(self.blocks(name, &view, rows)?.dequantize()));
        }
        let part = TensorView { bytes: self.rows(name, &view, &rows)?, ..view };
        part.to_f32().ok_or_else(|| self.dtype_error(name, "one that converts to f32", view.dtype))
    }

    /// Some rows as they are, if they are bf16; else None.
    ///
    /// # Errors
    /// No such tensor; rows beyond the last.
    pub fn bf16_rows(&self, name: &str, rows: Range<usize>) -> Result<Option<Cow<'_, [half::bf16]>>> {
        let view = self.view(name)?;
        let part = TensorView { bytes: self.rows(name, &view, &rows)?, ..view };
        Ok((view.dtype == Dtype::Bf16).then(|| part.to_pod()))
    }

    fn rows<'v>(&self, name: &str, view: &TensorView<'v>, rows: &Range<usize>) -> Result<&'v [u8]> {
        let all = matrix(view.shape)[0];
        let row = view.bytes.len().checked_div(all).unwrap_or(0);
        let part = (rows.start <= rows.end && rows.end <= all).then(|| view.bytes.get(rows.start * row..rows.end * row)).flatten();
        part.ok_or_else(|| self.misfit(name, QuantizedError::Length { what: "rows", expected: rows.end, found: all }))
    }

    fn blocks(&self, name: &str, view: &TensorView, rows: Range<usize>) -> Result<Quantized> {
        let shape = [rows.len(), matrix(view.shape)[1]];
        Quantized::from_blocks(view.dtype, shape, self.rows(name, view, &rows)?).map_err(|why| self.misfit(name, why))
    }

    fn packed(&self, layer: &str) -> Result<Quantized> {
        let name = |part: &str| format!("{layer}{part}");
        let fail = |why| self.misfit(&name("qweight"), why);
        let (qweight, qzeros) = (self.to_i32(&name("qweight"))?, self.to_i32(&name("qzeros"))?);
        let scales = self.to_f32(&name("scales"))?;
        let shape = |part: &str| self.info(&name(part)).map_or(&[][..], |(_, shape)| shape);
        let ([height, width], [groups, rows]) = (shape("qweight"), shape("scales")) else {
            return Err(fail(QuantizedError::Layout { qweight: shape("qweight").into(), scales: shape("scales").into() }));
        };
        let gptq = width == rows;
        if !gptq && width.checked_mul(8) != Some(*rows) {
            return Err(fail(QuantizedError::Layout { qweight: shape("qweight").into(), scales: shape("scales").into() }));
        }
        let columns = if gptq { height.saturating_mul(8) } else { *height };
        let (shape, group) = ([*rows, columns], columns.checked_div(*groups).unwrap_or(0));
        if !gptq {
            return Quantized::from_awq(shape, group, &qweight, &qzeros, &scales).map_err(fail);
        }
        let config = self.config()?.unwrap_or_default();
        if let Some(format) = config["quantization_config"]["checkpoint_format"].as_str().filter(|format| *format != "gptq") {
            return Err(fail(QuantizedError::CheckpointFormat(format.into())));
        }
        let g_idx = self.contains(&name("g_idx")).then(|| self.to_i32(&name("g_idx"))).transpose()?;
        Quantized::from_gptq(shape, group, &qweight, &qzeros, &scales, g_idx.as_deref()).map_err(fail)
    }

    /// The matrix `name` where it is [`Panels`], all of it or some rows, and no others are read; None where it is not, or the rows are
    /// no whole panels.
    ///
    /// # Errors
    /// Tensors that do not fit each other, with what [`Panels`] says to them; rows beyond the last.
    pub fn panels(&self, name: &str, rows: Option<&Range<usize>>) -> Result<Option<Panels<'_>>> {
        let beside = |layer: &&str| self.contains(&format!("{layer}panels")) && !self.contains(&format!("{layer}qweight"));
        let Some(layer) = name.strip_suffix("weight").filter(|_| !self.contains(name)).filter(beside) else { return Ok(None) };
        let name = |part: &str| format!("{layer}{part}");
        let codes = self.view(&name("panels"))?;
        let &[panels, columns, width] = codes.shape else {
            return Err(self.misfit(&name("panels"), QuantizedError::Panels { shape: codes.shape.into() }));
        };
        let bits = [Bits::Eight, Bits::Four].into_iter().find(|bits| bits.bytes(Panels::ROWS) == width);
        let Some(bits) = bits.filter(|_| codes.dtype == Dtype::U8) else {
            return Err(self.misfit(&name("panels"), QuantizedError::Panels { shape: codes.shape.into() }));
        };
        let all = 0..panels.saturating_mul(Panels::ROWS);
        let rows = rows.unwrap_or(&all);
        if !rows.start.is_multiple_of(Panels::ROWS) || !rows.end.is_multiple_of(Panels::ROWS) {
            return Ok(None);
        }
        // Tensors of as many parts as there are panels.
        let part = |name: &str, of: &TensorView<'_>| -> Result<Range<usize>> {
            let each = of.bytes.len().checked_div(panels).unwrap_or(0);
            let part = rows.start / Panels::ROWS * each..rows.end / Panels::ROWS * each;
            match rows.start <= rows.end && rows.end <= all.end && of.shape.first() == Some(&panels) {
                true => Ok(part),
                false => Err(self.misfit(name, QuantizedError::Length { what: "rows", expected: rows.end, found: all.end })),
            }
        };
        let values = |which: &str| -> Result<(usize, Cow<'_, [f32]>)> {
            let name = name(which);
            let view = self.view(&name)?;
            let (Dtype::F32, &[_, groups, Panels::ROWS]) = (view.dtype, view.shape) else {
                return Err(self.misfit(&name, QuantizedError::Panels { shape: view.shape.into() }));
            };
            let bytes = &view.bytes[part(&name, &view)?];
            Ok((groups, TensorView { bytes, ..view }.to_pod()))
        };
        let (groups, scales) = values("scales")?;
        let mins = self.contains(&name("mins")).then(|| values("mins")).transpose()?.map(|(_, mins)| mins);
        let codes = Cow::Borrowed(&codes.bytes[part(&name("panels"), &codes)?]);
        let group = columns.checked_div(groups).unwrap_or(0);
        let found = Panels::new([rows.len(), columns], bits, group, scales, mins, codes);
        found.map(Some).map_err(|why| self.misfit(&name("panels"), why))
    }

    fn misfit(&self, name: &str, why: QuantizedError) -> crate::Error {
        self.fail(WeightsError::Quantized { tensor: name.into(), why })
    }
}

pub(super) fn matrix(shape: &[usize]) -> [usize; 2] {
    let (columns, outer) = shape.split_last().unwrap_or((&1, &[]));
    [outer.iter().fold(1, |a, &b| a.saturating_mul(b)), *columns]
}
