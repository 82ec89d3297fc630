//! Neural codecs: encoder, residual vector quantiser, decoder.
//!
//! Sources: Kumar et al. 2023 (DAC; blocks, snake, factorised codes; made causal by padding on the left), Défossez et al. 2024
//! (Mimi; transformers, split quantiser, moving-average codebooks), Siuzdak et al. 2024 (SNAC; stages of several rates), Défossez et al. 2022
//! (EnCodec; recurrent layers). A causal codec has one code path: a whole file is a
//! [`Session`] fed in large chunks.

mod checkpoint;
mod config;
pub(crate) mod dac;
pub mod encodec;
mod execute;
mod format;
pub mod mimi;
pub mod model;
pub mod quantizer;
pub mod rate;
mod seanet;
mod session;
pub mod snac;
mod whole;

use std::ops::RangeInclusive;
use std::path::Path;

#[cfg(test)]
pub(crate) use checkpoint::encodec_layers;
pub use checkpoint::{Converted, METADATA_CONFIG, METADATA_MODEL, Named, Naming, Rounded, convert, family, rounded_mimi};
pub(crate) use checkpoint::{embedding_spec, encodec_to_train, fold, frequencies, mimi_to_train, read, snac_to_train};
pub use config::{Config, ProsodyConfig, QuantizerKind, TransformerConfig};
pub use format::{Chunks, Format};
pub use session::Session;
use swara_kernels::ops::elementwise;
use swara_kernels::quantized::Bits;
use swara_kernels::{DType, Device, Tensor, span};
pub use whole::Noise;

use self::execute::{Observe, Stack};
use self::model::{Layer, Model};
use self::quantizer::Quantizer;
use crate::weights::{Source, Weights, values_dtype};
use crate::{Error, Result};

/// Codes of one signal, one codebook after the other, as codes files store them: `[codebooks, frames]` unless codebooks differ in rate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Codes {
    pub codebooks: usize,
    /// Of the slowest codebook.
    pub frames: usize,
    pub values: Vec<i32>,
    /// Loudness of each piece of a signal, where the codec has [`Chunks`] that are normalised.
    pub scales: Vec<f32>,
}

/// A codec on a device, weights folded, ready to run.
pub struct Codec {
    name: String,
    model: Model,
    encoder: Stack,
    decoder: Stack,
    quantizer: Quantizer,
    device: Device,
    stored: Stored,
    /// Paths of a search for codes.
    beam: usize,
}

/// How a codec's weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Of what is no codes, and of values; on the CPU values beside bf16 are in f32.
    pub dtype: DType,
    /// Filters and matrices in codes of eight bits, a scale an output: on the CPU, where products are those of the codes' values.
    pub int8: bool,
}

impl Stored {
    /// f32 beside codes of eight bits.
    pub const INT8: Stored = Stored { dtype: DType::F32, int8: true };

    pub fn name(self) -> &'static str {
        if self.int8 { "int8" } else { self.dtype.name() }
    }

    fn bits(self) -> Option<Bits> {
        self.int8.then_some(Bits::Eight)
    }
}

impl From<DType> for Stored {
    fn from(dtype: DType) -> Stored {
        Stored { dtype, int8: false }
    }
}

impl Codec {
    /// Frames that a whole signal is cut into at a time: bounds memory, changes no result.
    pub const CHUNK_FRAMES: usize = 64;
    /// Non-causal models see the whole signal at once; beyond this many samples they are refused.
    const MAX_WHOLE: usize = 1 << 26;

    /// Reads a checkpoint written by training or `convert`, or a published Mimi: a file, or a directory that holds one.
    ///
    /// # Errors
    /// What the file lacks or contradicts; codes beside another device than the CPU.
    pub fn open(path: &Path, device: &Device, stored: impl Into<Stored>) -> Result<Codec> {
        checkpoint::open(path, device, stored.into())
    }

    /// As [`Codec::open`], from a whole safetensors file in memory.
    pub fn from_bytes(name: &str, bytes: &[u8], device: &Device, stored: impl Into<Stored>) -> Result<Codec> {
        checkpoint::from_bytes(name, bytes, device, stored.into())
    }

    /// A Mimi of random weights, to see how fast it would be.
    pub fn random_mimi(config: &mimi::Config, device: &Device, stored: impl Into<Stored>) -> Result<Codec> {
        checkpoint::random_mimi(config, device, stored.into())
    }

    /// A DAC-style codec, from folded `weights` in memory layout and, for `ema` quantisers, the embeddings `[K, D]` of every stage.
    pub fn new(
        name: &str,
        config: Config,
        weights: Weights,
        codebooks: Vec<Tensor>,
        device: &Device,
        stored: impl Into<Stored>,
    ) -> Result<Codec> {
        config.check()?;
        let quantizer = Quantizer::new(&config, &weights, codebooks)?;
        Codec::assemble(name, Model::new(&config), &weights, quantizer, device, stored.into())
    }

    pub(crate) fn assemble(
        name: &str,
        model: Model,
        weights: &dyn Source,
        quantizer: Quantizer,
        device: &Device,
        stored: Stored,
    ) -> Result<Codec> {
        if stored.int8 && *device != Device::Cpu {
            return Err(Error::Argument(format!("a codec in 8 bits on {}: the CPU alone has convolutions of codes", device.name())));
        }
        let stack = |layers: &[Layer]| Stack::new(layers, weights, device, stored);
        let (encoder, decoder) = (stack(&model.encoder)?, stack(&model.decoder)?);
        Ok(Codec { name: name.to_owned(), model, encoder, decoder, quantizer, device: device.clone(), stored, beam: 1 })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn format(&self) -> &Format {
        &self.model.format
    }

    /// The encoder's layers, then the decoder's.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.model.layers()
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Of the weights.
    pub fn stored(&self) -> Stored {
        self.stored
    }

    /// What a decoder with layers of noise is given from now on; without them of no consequence.
    pub fn set_noise(&mut self, noise: Noise) {
        self.decoder.set_noise(noise);
    }

    /// Codes are from now on those of the best of `beam` paths through the stages; 1, as it is at first, takes the nearest codeword in
    /// each. On the CPU only.
    ///
    /// # Errors
    /// Why there is no such search in this codec.
    pub fn set_beam(&mut self, beam: usize) -> Result<()> {
        self.quantizer.check_beam(beam, &self.device)?;
        self.beam = beam;
        Ok(())
    }

    /// That [`encode_measured`](Self::encode_measured) can say what is left of each frame.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check_measured(&self) -> Result<()> {
        self.quantizer.check_left(&self.device)
    }

    /// Of what is between the layers: f32 beside bf16 on the CPU.
    pub(crate) fn values(&self) -> DType {
        values_dtype(&self.device, self.stored.dtype)
    }

    /// Size of all weights and of the first `codebooks` codebooks, which a frame of so many reads once.
    pub fn bytes(&self, codebooks: usize) -> usize {
        self.encoder.bytes() + self.decoder.bytes() + self.quantizer.bytes(codebooks)
    }

    /// Number of codebooks.
    pub fn codebooks(&self) -> usize {
        self.format().codebook_sizes.len()
    }

    /// That a model can speak through this codec: a causal one of one voice, whose first `codebooks` codebooks have sizes within `sizes`.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check_voice(&self, codebooks: usize, sizes: RangeInclusive<usize>) -> Result<()> {
        let format = self.format();
        let why = if !format.causal || format.channels != 1 || format.multi_rate() {
            "is no causal codec of one channel and one rate".to_owned()
        } else if self.codebooks() < codebooks {
            format!("has {} codebooks, the model wants {codebooks}", self.codebooks())
        } else if let Some(size) = format.codebook_sizes[..codebooks].iter().find(|size| !sizes.contains(size)) {
            let wanted = if sizes.start() == sizes.end() { "wants" } else { "knows at most" };
            format!("has codebooks of {size}, the model {wanted} {}", sizes.end())
        } else {
            return Ok(());
        };
        Err(Error::Argument(format!("{} {why}", self.name)))
    }

    fn check_codebooks(&self, codebooks: usize) -> Result<()> {
        match codebooks {
            n if (1..=self.codebooks()).contains(&n) => Ok(()),
            n => Err(Error::Argument(format!("{n} codebooks asked for, model {} has {}", self.name, self.codebooks()))),
        }
    }

    /// Codes of `samples` (at the model's rate, of its channels in turn) with the first `codebooks` stages; the end is padded with
    /// zeros to [`Format::pad_to`].
    pub fn encode(&self, samples: &[f32], codebooks: usize) -> Result<Codes> {
        self.encode_and(samples, codebooks, None)
    }

    /// [`Codec::encode`] that says what is left of each frame, `[frames, codebooks + 1]`, as [`Quantizer::left`] does.
    pub fn encode_measured(&self, samples: &[f32], codebooks: usize) -> Result<(Codes, Vec<f32>)> {
        let mut left = Vec::new();
        Ok((self.encode_and(samples, codebooks, Some(&mut left))?, left))
    }

    fn encode_and(&self, samples: &[f32], codebooks: usize, mut left: Option<&mut Vec<f32>>) -> Result<Codes> {
        self.check_codebooks(codebooks)?;
        let format = self.format();
        let channels = format.channels;
        if !samples.len().is_multiple_of(channels) {
            return Err(Error::Argument(format!("{} samples of {channels} channels", samples.len())));
        }
        let padded = |samples: &[f32]| {
            let mut padded = samples.to_vec();
            padded.resize(samples.len().next_multiple_of(format.pad_to * channels), 0.0);
            padded
        };
        let mut rows = Vec::with_capacity(samples.len().div_ceil(format.hop) * format.columns(codebooks));
        let mut scales = Vec::new();
        if format.causal {
            let mut session = Session::new(self, 1)?;
            for chunk in samples.chunks(Self::CHUNK_FRAMES * format.hop) {
                let x = self.signal(&padded(chunk), 1)?;
                let codes = match left.as_deref_mut() {
                    None => session.encode(&x, codebooks, None)?,
                    Some(left) => session.encode_measured(&x, codebooks, left)?,
                };
                rows.extend(codes.to_vec::<i32>()?);
            }
        } else {
            for piece in format.pieces(samples.len() / channels) {
                let mut x = padded(&samples[piece.start * channels..piece.end * channels]);
                if format.chunks.is_some() {
                    let scale = loudness(&x, channels);
                    x.iter_mut().for_each(|v| *v /= scale);
                    scales.push(scale);
                }
                rows.extend(self.encode_whole_and(&self.signal(&x, 1)?, codebooks, &mut unobserved, left.as_deref_mut())?.to_vec::<i32>()?);
            }
        }
        let frames = rows.len() / format.columns(codebooks);
        Ok(Codes { codebooks, frames, values: format.by_codebook(&rows, codebooks), scales })
    }

    /// Samples of `codes`, of the channels in turn, `hop` a frame (a few fewer for symmetric models with odd strides; where pieces
    /// overlap, as many fewer). Where codebooks are of one rate, a frame may do without the last ones: its codes are [`rate::NONE`].
    pub fn decode(&self, codes: &Codes) -> Result<Vec<f32>> {
        self.check_codebooks(codes.codebooks)?;
        let (format, codebooks) = (self.format(), codes.codebooks);
        let columns = format.columns(codebooks);
        if columns.checked_mul(codes.frames) != Some(codes.values.len()) {
            return Err(Error::Argument(format!("{} codes are not {columns} x {}", codes.values.len(), codes.frames)));
        }
        let mut values = codes.values.iter();
        // Frames that have no more codes.
        let mut over = vec![false; codes.frames];
        for (k, (&size, &per_frame)) in format.codebook_sizes.iter().zip(&format.codes_per_frame).enumerate().take(codebooks) {
            for (i, &code) in values.by_ref().take(per_frame * codes.frames).enumerate() {
                let over = &mut over[i / per_frame];
                *over |= code == rate::NONE && k > 0 && !format.multi_rate();
                if *over && code != rate::NONE {
                    let why = format!("code {code} of codebook {k}, frame {i}, follows codebooks that the frame does without");
                    return Err(Error::Argument(why));
                }
                if !*over && usize::try_from(code).map_or(true, |code| code >= size) {
                    return Err(Error::Argument(format!("code {code} of codebook {k}, frame {}, is not below {size}", i / per_frame)));
                }
            }
        }
        let rows = format.by_frame(&codes.values, codebooks);
        let tensor = |rows: &[i32]| Tensor::from_slice(&self.device, rows, [1, rows.len() / columns, columns]);
        let mut samples = Vec::new();
        if format.causal {
            samples.reserve(codes.frames.saturating_mul(format.hop));
            let mut session = Session::new(self, 1)?;
            for chunk in rows.chunks(Self::CHUNK_FRAMES * columns) {
                samples.extend(self.samples(&session.decode(&tensor(chunk)?, None)?)?);
            }
        } else if let Some(chunks) = &format.chunks {
            let frames = format.frames_of_pieces(codes.frames, codes.scales.len()).filter(|_| codes.scales.iter().all(|s| s.is_finite()));
            let Some(frames) = frames else {
                return Err(Error::Argument(format!("{} frames and {} loudnesses fit no signal", codes.frames, codes.scales.len())));
            };
            let (mut rest, mut pieces) = (&rows[..], Vec::with_capacity(frames.len()));
            for (frames, &scale) in frames.into_iter().zip(&codes.scales) {
                let piece;
                (piece, rest) = rest.split_at(frames * columns);
                let mut y = self.samples(&self.decode_whole(&tensor(piece)?, codebooks, &mut unobserved)?)?;
                y.iter_mut().for_each(|v| *v *= scale);
                pieces.push(y);
            }
            samples = overlap_add(&pieces, chunks, format.channels);
        } else if codes.frames > 0 {
            samples = self.samples(&self.decode_whole(&tensor(&rows)?, codebooks, &mut unobserved)?)?;
        }
        Ok(samples)
    }

    /// Codes i32 `[B, frames, columns]` of whole signals or pieces of such `[B, T, channels]`, `T` a multiple of [`Format::pad_to`], and what every layer
    /// makes. For models that are not causal; the others have [`Session`]s.
    pub fn encode_whole(&self, x: &Tensor, codebooks: usize, observe: Observe) -> Result<Tensor> {
        self.encode_whole_and(x, codebooks, observe, None)
    }

    fn encode_whole_and(&self, x: &Tensor, codebooks: usize, observe: Observe, left: Option<&mut Vec<f32>>) -> Result<Tensor> {
        let _span = span::step("encode");
        self.check_codebooks(codebooks)?;
        let format = self.format();
        let fail = || Error::Argument(format!("samples are {x:?}, expected [batch, a multiple of {}, {}]", format.pad_to, format.channels));
        let &[batch, t, channels] = &*x.shape() else { return Err(fail()) };
        if t == 0 || t % format.pad_to != 0 || channels != format.channels {
            return Err(fail());
        }
        self.check_whole(batch.saturating_mul(t))?;
        let z = self.encoder.run(x, None, observe)?;
        let frames = z.shape()[1] / format.latents();
        Ok(self.codes(&z, codebooks, left)?.reshape([batch, frames, format.columns(codebooks)])?)
    }

    /// Of latents, and what is left of those if that is wanted.
    fn codes(&self, z: &Tensor, codebooks: usize, left: Option<&mut Vec<f32>>) -> Result<Tensor> {
        let z = elementwise::convert(z, DType::F32)?;
        let codes = self.quantizer.encode(&z, codebooks, self.beam)?;
        if let Some(left) = left {
            left.extend(self.quantizer.left(&z, &codes)?);
        }
        Ok(codes)
    }

    /// Samples `[B, T, channels]` of whole signals' codes i32 `[B, frames, columns]`; the reverse of [`Codec::encode_whole`].
    pub fn decode_whole(&self, codes: &Tensor, codebooks: usize, observe: Observe) -> Result<Tensor> {
        let _span = span::step("decode");
        self.check_codebooks(codebooks)?;
        let (format, columns) = (self.format(), self.format().columns(codebooks));
        let &[batch, frames, n] = &*codes.shape() else {
            return Err(Error::Argument(format!("codes are {codes:?}, expected [batch, frames, {columns}]")));
        };
        if n != columns || frames == 0 {
            return Err(Error::Argument(format!("codes are {codes:?}, expected [batch, frames, {columns}]")));
        }
        self.check_whole(batch.saturating_mul(frames).saturating_mul(format.hop))?;
        let z = self.quantizer.decode(&codes.copy()?.reshape([batch * frames, columns])?)?;
        let z = z.reshape([batch, frames * format.latents(), format.latent])?;
        let z = elementwise::convert(&z, self.stored.dtype)?;
        observe("quantizer", &z)?;
        self.decoder.run(&z, None, observe)
    }

    /// An error if this many samples are more than a model that is not causal can take.
    pub fn check_whole(&self, samples: usize) -> Result<()> {
        if samples <= Self::MAX_WHOLE {
            return Ok(());
        }
        Err(Error::Argument(format!(
            "{} is not causal and sees the whole signal at once; {samples} samples exceed {}",
            self.name,
            Self::MAX_WHOLE
        )))
    }

    /// Samples `[B, T, channels]` as a tensor of the model's dtype.
    pub fn signal(&self, samples: &[f32], batch: usize) -> Result<Tensor> {
        let channels = self.format().channels;
        let x = Tensor::from_slice(&self.device, samples, [batch, samples.len() / (batch * channels).max(1), channels])?;
        Ok(elementwise::convert(&x, self.values())?)
    }

    /// The reverse of [`Codec::signal`].
    pub fn samples(&self, y: &Tensor) -> Result<Vec<f32>> {
        Ok(elementwise::convert(y, DType::F32)?.to_vec::<f32>()?)
    }
}

/// Root mean square of the mean of the channels, and a little, as the published EnCodec divides by it.
fn loudness(samples: &[f32], channels: usize) -> f32 {
    let mono = samples.chunks_exact(channels).map(|row| row.iter().map(|&v| f64::from(v)).sum::<f64>() / channels as f64);
    let energy: f64 = mono.map(|v| v * v).sum();
    ((energy / (samples.len() / channels).max(1) as f64).sqrt() + 1e-8) as f32
}

/// The mean of the pieces where they overlap, by the weights of [`Chunks`].
fn overlap_add(pieces: &[Vec<f32>], chunks: &Chunks, channels: usize) -> Vec<f32> {
    let end = |(i, piece): (usize, &Vec<f32>)| i * chunks.stride * channels + piece.len();
    let mut sum = vec![0.0; pieces.iter().enumerate().map(end).max().unwrap_or(0)];
    let mut total = vec![0.0; sum.len() / channels];
    let weights: Vec<f32> = chunks.weights().collect();
    for (i, piece) in pieces.iter().enumerate() {
        let start = i * chunks.stride;
        let rows = sum[start * channels..].chunks_exact_mut(channels).zip(&mut total[start..]);
        for ((row, total), (piece, weight)) in rows.zip(piece.chunks_exact(channels).zip(&weights)) {
            row.iter_mut().zip(piece).for_each(|(sum, v)| *sum += weight * v);
            *total += weight;
        }
    }
    sum.chunks_exact_mut(channels).zip(total).for_each(|(row, total)| row.iter_mut().for_each(|v| *v /= total));
    sum
}

pub(crate) fn unobserved(_: &str, _: &Tensor) -> Result<()> {
    Ok(())
}
