use swara_kernels::ops::elementwise;
use swara_kernels::{DType, Tensor, span};

use super::Codec;
use super::execute::{Past, Streaming};
use super::model;
use crate::{Error, Result};

/// `batch` streams through a causal codec, in step with each other or masked out one by one.
///
/// All state is allocated here, once. A masked stream (u8 0 in `mask [B]`) changes nothing of its own and nothing of
/// others'; what comes out for it is unspecified. Chunking changes no result, not in the last bit.
pub struct Session<'a> {
    codec: &'a Codec,
    batch: usize,
    encoder: Past,
    decoder: Past,
}

impl<'a> Session<'a> {
    pub fn new(codec: &'a Codec, batch: usize) -> Result<Session<'a>> {
        if !codec.config.causal {
            return Err(Error::Argument(format!("{} is not causal and cannot stream", codec.name)));
        }
        let past = |layers: &[_]| Past::new(&codec.device, codec.dtype, batch, codec.model.layers, layers);
        Ok(Session { codec, batch, encoder: past(&codec.model.encoder)?, decoder: past(&codec.model.decoder)? })
    }

    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Codes i32 `[B, frames, codebooks]` of the next samples `[B, frames * hop, 1]`.
    pub fn encode(&mut self, x: &Tensor, codebooks: usize, mask: Option<&Tensor>) -> Result<Tensor> {
        let _span = span::step("encode");
        let codec = self.codec;
        codec.check_codebooks(codebooks)?;
        let &[batch, t, 1] = &*x.shape() else { return Err(Error::Argument(format!("samples are {x:?}, expected [batch, time, 1]"))) };
        if batch != self.batch || t % codec.config.hop() != 0 {
            return Err(Error::Argument(format!(
                "samples are {x:?}, expected {} streams of whole frames of {}",
                self.batch,
                codec.config.hop()
            )));
        }
        let mut streaming = Streaming { weights: &codec.weights, past: &mut self.encoder, mask };
        let z = model::run(&codec.model.encoder, &mut streaming, x.copy()?)?;
        let frames = z.shape()[1];
        let codes = codec.quantizer.encode(&elementwise::convert(&z, DType::F32)?, codebooks)?;
        Ok(codes.reshape([batch, frames, codebooks])?)
    }

    /// Samples `[B, frames * hop, 1]` of the next codes i32 `[B, frames, codebooks]`.
    pub fn decode(&mut self, codes: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let _span = span::step("decode");
        let codec = self.codec;
        let &[batch, frames, codebooks] = &*codes.shape() else {
            return Err(Error::Argument(format!("codes are {codes:?}, expected [batch, frames, codebooks]")));
        };
        codec.check_codebooks(codebooks)?;
        if batch != self.batch {
            return Err(Error::Argument(format!("codes are {codes:?}, expected {} streams", self.batch)));
        }
        let z = codec.quantizer.decode(&codes.copy()?.reshape([batch * frames, codebooks])?)?;
        let z = elementwise::convert(&z.reshape([batch, frames, codec.config.latent])?, codec.dtype)?;
        let mut streaming = Streaming { weights: &codec.weights, past: &mut self.decoder, mask };
        model::run(&codec.model.decoder, &mut streaming, z)
    }

    /// Starts the streams whose `mask` (u8 `[B]`) is not zero anew.
    pub fn reset(&mut self, mask: &Tensor) -> Result<()> {
        self.encoder.reset(mask)?;
        self.decoder.reset(mask)
    }
}
