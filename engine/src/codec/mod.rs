//! A DAC-style neural codec: convolutional encoder, residual vector quantiser, convolutional decoder.
//!
//! Sources: Kumar et al. 2023 (DAC; blocks, snake, factorised codes), Défossez et al. 2024 (Mimi; moving-average codebooks),
//! made causal by padding on the left. A causal codec has one code path: a whole file is a [`Session`] fed in large chunks.

mod checkpoint;
mod config;
pub mod execute;
pub mod model;
pub mod quantizer;
mod session;

use std::path::Path;

pub use checkpoint::{METADATA_CONFIG, METADATA_MODEL};
pub(crate) use checkpoint::{embedding_spec, fold, read};
pub use config::{Config, QuantizerKind};
pub use session::Session;
use swara_kernels::ops::elementwise;
use swara_kernels::{DType, Device, Tensor, span};

use self::execute::{Offline, Weights};
use self::model::Model;
use self::quantizer::Quantizer;
use crate::{Error, Result};

/// Codes of one signal: `[codebooks, frames]`, row-major, as codes files store them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Codes {
    pub codebooks: usize,
    pub frames: usize,
    pub values: Vec<i32>,
}

/// A codec on a device, weights folded, ready to run.
pub struct Codec {
    name: String,
    config: Config,
    model: Model,
    weights: Weights,
    quantizer: Quantizer,
    device: Device,
    dtype: DType,
}

impl Codec {
    /// Frames that a whole signal is cut into at a time: bounds memory, changes no result.
    const CHUNK_FRAMES: usize = 64;
    /// Non-causal models see the whole signal at once; beyond this many samples they are refused.
    const MAX_WHOLE: usize = 1 << 26;

    /// Reads a checkpoint written by training or `convert`: a safetensors file, or a directory that holds one.
    pub fn open(path: &Path, device: &Device, dtype: DType) -> Result<Codec> {
        checkpoint::open(path, device, dtype)
    }

    /// As [`Codec::open`], from a whole safetensors file in memory.
    pub fn from_bytes(name: &str, bytes: &[u8], device: &Device, dtype: DType) -> Result<Codec> {
        checkpoint::from_bytes(name, bytes, device, dtype)
    }

    /// From folded `weights` in memory layout and, for `ema` quantisers, the embeddings `[K, D]` of every stage.
    pub fn new(name: &str, config: Config, weights: Weights, codebooks: Vec<Tensor>, device: &Device, dtype: DType) -> Result<Codec> {
        config.check()?;
        let quantizer = Quantizer::new(&config, &weights, codebooks)?;
        let model = Model::new(&config);
        // Snakes take their parameters in f32 beside narrower types.
        let stored = |name: &str| if name.ends_with(".alpha") && dtype != DType::F64 { DType::F32 } else { dtype };
        let weights = weights.into_iter().map(|(n, t)| Ok((n.clone(), elementwise::convert(&t, stored(&n))?))).collect::<Result<_>>()?;
        Ok(Codec { name: name.to_owned(), config, model, weights, quantizer, device: device.clone(), dtype })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Size of all weights and codebooks, which a frame reads once.
    pub fn bytes(&self) -> usize {
        let embeddings: &[Tensor] = match &self.quantizer {
            Quantizer::Ema { codebooks, .. } => codebooks,
            Quantizer::Factorised { .. } => &[], // among the weights
        };
        self.weights.values().chain(embeddings).map(|t| t.elements() * t.dtype().bytes()).sum()
    }

    /// Number of codebooks.
    pub fn codebooks(&self) -> usize {
        self.config.codebook_sizes.len()
    }

    fn check_codebooks(&self, codebooks: usize) -> Result<()> {
        match codebooks {
            n if (1..=self.codebooks()).contains(&n) => Ok(()),
            n => Err(Error::Argument(format!("{n} codebooks asked for, model {} has {}", self.name, self.codebooks()))),
        }
    }

    /// Codes of `samples` (mono, at the model's rate) with the first `codebooks` stages; the end is padded with zeros to a frame.
    pub fn encode(&self, samples: &[f32], codebooks: usize) -> Result<Codes> {
        self.check_codebooks(codebooks)?;
        let hop = self.config.hop();
        let frames = samples.len().div_ceil(hop);
        let mut rows = Vec::with_capacity(frames * codebooks);
        if self.config.causal {
            let mut session = Session::new(self, 1)?;
            let mut padded = Vec::new();
            for chunk in samples.chunks(Self::CHUNK_FRAMES * hop) {
                padded.clear();
                padded.extend_from_slice(chunk);
                padded.resize(chunk.len().next_multiple_of(hop), 0.0);
                let x = self.signal(&padded, 1)?;
                rows.extend(session.encode(&x, codebooks, None)?.to_vec::<i32>()?);
            }
        } else if frames > 0 {
            let _span = span::step("encode");
            self.check_whole(frames * hop)?;
            let mut padded = samples.to_vec();
            padded.resize(frames * hop, 0.0);
            let z = model::run(&self.model.encoder, &mut Offline { weights: &self.weights }, self.signal(&padded, 1)?)?;
            rows = self.quantizer.encode(&elementwise::convert(&z, DType::F32)?, codebooks)?.to_vec::<i32>()?;
        }
        let frames = rows.len() / codebooks;
        let values = (0..codebooks).flat_map(|k| rows.iter().skip(k).step_by(codebooks).copied()).collect();
        Ok(Codes { codebooks, frames, values })
    }

    /// Samples of `codes`, `hop` a frame (a few fewer for symmetric models with odd strides).
    pub fn decode(&self, codes: &Codes) -> Result<Vec<f32>> {
        self.check_codebooks(codes.codebooks)?;
        if codes.codebooks.checked_mul(codes.frames) != Some(codes.values.len()) {
            return Err(Error::Argument(format!("{} codes are not {} x {}", codes.values.len(), codes.codebooks, codes.frames)));
        }
        for (i, &code) in codes.values.iter().enumerate() {
            let (k, size) = (i / codes.frames, self.config.codebook_sizes[i / codes.frames]);
            if usize::try_from(code).map_or(true, |code| code >= size) {
                return Err(Error::Argument(format!("code {code} of codebook {k}, frame {}, is not below {size}", i % codes.frames)));
            }
        }
        let row = |t: usize| (0..codes.codebooks).map(move |k| codes.values[k * codes.frames + t]);
        let rows: Vec<i32> = (0..codes.frames).flat_map(row).collect();
        let mut samples = Vec::with_capacity(codes.frames * self.config.hop());
        if self.config.causal {
            let mut session = Session::new(self, 1)?;
            for chunk in rows.chunks(Self::CHUNK_FRAMES * codes.codebooks) {
                let chunk = Tensor::from_slice(&self.device, chunk, [1, chunk.len() / codes.codebooks, codes.codebooks])?;
                samples.extend(self.samples(&session.decode(&chunk, None)?)?);
            }
        } else if codes.frames > 0 {
            let _span = span::step("decode");
            self.check_whole(codes.frames * self.config.hop())?;
            let rows = Tensor::from_slice(&self.device, &rows, [codes.frames, codes.codebooks])?;
            let z = self.quantizer.decode(&rows)?.reshape([1, codes.frames, self.config.latent])?;
            let z = elementwise::convert(&z, self.dtype)?;
            samples = self.samples(&model::run(&self.model.decoder, &mut Offline { weights: &self.weights }, z)?)?;
        }
        Ok(samples)
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

    /// Samples `[B, T]` as a tensor `[B, T, 1]` of the model's dtype.
    pub fn signal(&self, samples: &[f32], batch: usize) -> Result<Tensor> {
        let x = Tensor::from_slice(&self.device, samples, [batch, samples.len() / batch.max(1), 1])?;
        Ok(elementwise::convert(&x, self.dtype)?)
    }

    /// The reverse of [`Codec::signal`].
    pub fn samples(&self, y: &Tensor) -> Result<Vec<f32>> {
        Ok(elementwise::convert(y, DType::F32)?.to_vec::<f32>()?)
    }
}
