//! Which of a file's tensors make a quantised matrix.

use super::{Dtype, TensorView, Weights};
use crate::quantized::Quantized;
use crate::{QuantizedError, Result, WeightsError};

impl Weights {
    /// The matrix `name` as codes and scales, in whichever layout the file has it; None where it is not quantised. Dimensions
    /// before the last are rows.
    ///
    /// - A tensor of ggml's blocks.
    /// - An I8 tensor `name` with `{name}_scb` beside it: bitsandbytes, as moshi saves it.
    /// - In place of a missing `*weight`: `*qweight`, `*qzeros`, `*scales` and perhaps `*g_idx`, which by their shapes are
    ///   AutoGPTQ's or AutoAWQ's.
    ///
    /// # Errors
    /// No such tensor; tensors that do not fit each other, with what [`Quantized`] says to them; a `config.json` that declares
    /// zero points as `gptq_v2` has them, which the tensors do not show.
    pub fn quantized(&self, name: &str) -> Result<Option<Quantized>> {
        let Some((dtype, shape)) = self.info(name) else {
            return match name.strip_suffix("weight") {
                Some(layer) if self.contains(&format!("{layer}qweight")) => self.packed(layer).map(Some),
                _ => Err(self.fail(WeightsError::NoTensor(name.into()))),
            };
        };
        let scb = format!("{name}_scb");
        if dtype.block() > 1 {
            return self.blocks(name, &self.view(name)?).map(Some);
        }
        if dtype != Dtype::I8 || !self.contains(&scb) {
            return Ok(None);
        }
        let (codes, scb) = (bytemuck::cast_slice(self.view(name)?.bytes), self.to_f32(&scb)?);
        Quantized::from_bitsandbytes(matrix(shape), codes, &scb).map(Some).map_err(|why| self.misfit(name, why))
    }

    pub(super) fn blocks(&self, name: &str, view: &TensorView) -> Result<Quantized> {
        Quantized::from_blocks(view.dtype, matrix(view.shape), view.bytes).map_err(|why| self.misfit(name, why))
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

    fn misfit(&self, name: &str, why: QuantizedError) -> crate::Error {
        self.fail(WeightsError::Quantized { tensor: name.into(), why })
    }
}

fn matrix(shape: &[usize]) -> [usize; 2] {
    let (columns, outer) = shape.split_last().unwrap_or((&1, &[]));
    [outer.iter().fold(1, |a, &b| a.saturating_mul(b)), *columns]
}
