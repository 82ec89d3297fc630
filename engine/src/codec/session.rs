use swara_kernels::ops::elementwise;
use swara_kernels::{Tensor, span};

use super::execute::{Observe, Past, Streams};
use super::{Codec, unobserved};
use crate::graph::Recorder;
use crate::{Error, Result};

/// `batch` streams through a causal codec, in step with each other or masked out one by one.
///
/// All state is allocated here, once. A masked stream (u8 0 in `mask [B]`) changes nothing of its own and nothing of
/// others'; what comes out for it is unspecified. Chunking changes no result, not in the last bit.
///
/// On CUDA a step whose size was that of the one before it, too, is recorded as a graph, and from then on a step of that size is
/// a single launch; where no graph can be had ([`Session::no_graph`]), every kernel is launched by itself.
pub struct Session<'a> {
    codec: &'a Codec,
    batch: usize,
    frames: usize,
    encoder: Past,
    decoder: Past,
    encoding: Recorder<Tensor>,
    decoding: Recorder<Tensor>,
}

impl<'a> Session<'a> {
    /// Streams that take up to [`Codec::CHUNK_FRAMES`] frames at a time.
    pub fn new(codec: &'a Codec, batch: usize) -> Result<Session<'a>> {
        Session::with_frames(codec, batch, Codec::CHUNK_FRAMES)
    }

    /// Streams that take up to `frames` frames at a time. A transformer keeps its window and what one call brings.
    pub fn with_frames(codec: &'a Codec, batch: usize, frames: usize) -> Result<Session<'a>> {
        if !codec.format().causal {
            return Err(Error::Argument(format!("{} is not causal and cannot stream", codec.name)));
        }
        let samples = frames
            .checked_mul(codec.format().hop)
            .filter(|&n| n > 0)
            .ok_or_else(|| Error::Argument(format!("a stream cannot take {frames} frames at a time")))?;
        let past = |layers: &[_], rows| Past::new(&codec.device, codec.values(), batch, layers, rows);
        let (encoder, decoder) = (past(&codec.model.encoder, samples)?, past(&codec.model.decoder, frames)?);
        Ok(Session { codec, batch, frames, encoder, decoder, encoding: Recorder::default(), decoding: Recorder::default() })
    }

    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Codes i32 `[B, frames, codebooks]` of the next samples `[B, frames * hop, 1]`.
    pub fn encode(&mut self, x: &Tensor, codebooks: usize, mask: Option<&Tensor>) -> Result<Tensor> {
        self.check_samples(x, codebooks)?;
        let (codec, past) = (self.codec, &mut self.encoder);
        self.encoding.run(&codec.device, x, codebooks, mask, |x, mask| encode(codec, past, x, codebooks, mask, &mut unobserved, None))
    }

    /// [`Session::encode`] that shows what every layer makes.
    pub fn encode_observed(&mut self, x: &Tensor, codebooks: usize, mask: Option<&Tensor>, observe: Observe) -> Result<Tensor> {
        self.check_samples(x, codebooks)?;
        encode(self.codec, &mut self.encoder, x, codebooks, mask, observe, None)
    }

    /// [`Session::encode`] that appends to `left` what is left of each frame, as [`Codec::encode_measured`] does.
    pub fn encode_measured(&mut self, x: &Tensor, codebooks: usize, left: &mut Vec<f32>) -> Result<Tensor> {
        self.check_samples(x, codebooks)?;
        encode(self.codec, &mut self.encoder, x, codebooks, None, &mut unobserved, Some(left))
    }

    fn check_samples(&self, x: &Tensor, codebooks: usize) -> Result<()> {
        self.codec.check_codebooks(codebooks)?;
        let &[batch, t, 1] = &*x.shape() else { return Err(Error::Argument(format!("samples are {x:?}, expected [batch, time, 1]"))) };
        let hop = self.codec.format().hop;
        if batch != self.batch || t % hop != 0 {
            return Err(Error::Argument(format!("samples are {x:?}, expected {} streams of whole frames of {hop}", self.batch)));
        }
        self.check_frames(t / hop)
    }

    /// Samples `[B, frames * hop, 1]` of the next codes i32 `[B, frames, codebooks]`.
    pub fn decode(&mut self, codes: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        self.check_codes(codes)?;
        let (codec, past) = (self.codec, &mut self.decoder);
        self.decoding.run(&codec.device, codes, 0, mask, |codes, mask| decode(codec, past, codes, mask, &mut unobserved))
    }

    /// [`Session::decode`] that shows what every layer makes.
    pub fn decode_observed(&mut self, codes: &Tensor, mask: Option<&Tensor>, observe: Observe) -> Result<Tensor> {
        self.check_codes(codes)?;
        decode(self.codec, &mut self.decoder, codes, mask, observe)
    }

    fn check_codes(&self, codes: &Tensor) -> Result<()> {
        let &[batch, frames, codebooks] = &*codes.shape() else {
            return Err(Error::Argument(format!("codes are {codes:?}, expected [batch, frames, codebooks]")));
        };
        self.codec.check_codebooks(codebooks)?;
        if batch != self.batch {
            return Err(Error::Argument(format!("codes are {codes:?}, expected {} streams", self.batch)));
        }
        self.check_frames(frames)
    }

    fn check_frames(&self, frames: usize) -> Result<()> {
        match frames {
            n if n <= self.frames => Ok(()),
            n => Err(Error::Argument(format!("{n} frames at a time, expected at most {}", self.frames))),
        }
    }

    /// Why steps are no graphs where they were to be.
    pub fn no_graph(&self) -> Option<&str> {
        self.encoding.refused().or(self.decoding.refused())
    }

    /// Starts the streams whose `mask` (u8 `[B]`) is not zero anew.
    pub fn reset(&mut self, mask: &Tensor) -> Result<()> {
        self.encoder.reset(mask)?;
        self.decoder.reset(mask)
    }
}

fn encode(
    codec: &Codec,
    past: &mut Past,
    x: &Tensor,
    codebooks: usize,
    mask: Option<&Tensor>,
    observe: Observe,
    left: Option<&mut Vec<f32>>,
) -> Result<Tensor> {
    let _span = span::step("encode");
    codec.device.step(|| {
        let z = codec.encoder.run(x, Some(Streams { past, mask }), observe)?;
        let (batch, frames) = (z.shape()[0], z.shape()[1]);
        Ok(codec.codes(&z, codebooks, left)?.reshape([batch, frames, codebooks])?)
    })
}

fn decode(codec: &Codec, past: &mut Past, codes: &Tensor, mask: Option<&Tensor>, observe: Observe) -> Result<Tensor> {
    let _span = span::step("decode");
    let [batch, frames, codebooks] = [0, 1, 2].map(|axis| codes.shape()[axis]);
    codec.device.step(|| {
        let z = codec.quantizer.decode(&codes.copy()?.reshape([batch * frames, codebooks])?)?;
        let z = elementwise::convert(&z.reshape([batch, frames, codec.format().latent])?, codec.values())?;
        observe("quantizer", &z)?;
        codec.decoder.run(&z, Some(Streams { past, mask }), observe)
    })
}
