//! CSM: a Llama over frames of audio codes and text, and a depth decoder over the codes of each frame.
//!
//! A row is `K` codes of one frame of sound, or one id of text, `[K + 1]` ids in all, those that are not there being
//! [`NONE`](swara_kernels::ops::embedding::NONE). The backbone reads the sum of their embeddings. What it says of the last row gives the
//! first code of the next frame, and with it the depth decoder the others, one by one: it is one transformer, which reads the projected
//! output of the backbone and then the projected embedding of each code, and begins anew in every frame. Codes may be guessed, and several
//! looked over in one pass of it ([`Draft`]).
//!
//! Sources: Sesame's `csm` (`models.py`, `generator.py`); `modeling_csm.py` and `generation_csm.py` of `transformers` 4.57.

mod checkpoint;
mod config;
mod draft;
mod model;
mod session;

use std::path::Path;

pub use checkpoint::{Layout, check, matrices};
pub use config::{Config, Llama};
pub use draft::{Draft, Drafted};
pub use session::{Session, Step};
use swara_kernels::ops::attention::Kept;
use swara_kernels::{DType, Device};

use self::model::{Backbone, Depth};
use crate::lm::{Format, Random};
use crate::weights::{Reader, Source, values_dtype};
use crate::{Error, Result};

/// A model on a device, ready to speak.
pub struct Csm {
    name: String,
    config: Config,
    backbone: Backbone,
    depth: Depth,
    device: Device,
    format: Format,
}

impl Csm {
    /// Reads a published checkpoint: a file, or a directory that holds one and its `config.json`. Its codec, if there is one beside it,
    /// is not read.
    ///
    /// `format.temporal` is the backbone's.
    ///
    /// # Errors
    /// What cannot be read, is not known, or disagrees with its configuration - all tensors that do, by name.
    pub fn open(path: &Path, device: &Device, format: impl Into<Format>) -> Result<Csm> {
        checkpoint::open(path, device, format.into())
    }

    /// Random weights, to see how fast a model would be and what it takes.
    ///
    /// # Errors
    /// A configuration that does not hold; no memory.
    pub fn random(config: Config, device: &Device, format: impl Into<Format>) -> Result<Csm> {
        config.check()?;
        let tensors = model::tensors(&config).into_iter().collect();
        Csm::assemble("random".to_owned(), config, Layout::HuggingFace, &Random { tensors, device }, device, format.into())
    }

    fn assemble(name: String, mut config: Config, layout: Layout, source: &dyn Source, device: &Device, format: Format) -> Result<Csm> {
        crate::lm::model::check_format(device, format)?;
        if format.sinks > 0 || format.int8_tables {
            return Err(Error::Argument("sinks, or tables as codes, of a CSM, which has neither".to_owned()));
        }
        config.max_position_embeddings = format.context.unwrap_or(config.max_position_embeddings);
        config.check()?;
        let (backbone, depth) = model::read(&config, layout.style(), device, format, Reader::new(source, device, format.dtype))?;
        Ok(Csm { name, config, backbone, depth, device: device.clone(), format })
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

    pub fn format(&self) -> Format {
        self.format
    }

    /// Streams that begin from here on remember, and see, no more than `rows` rows.
    pub fn limit(&mut self, rows: usize) {
        let rows = rows.clamp(1, self.config.max_position_embeddings);
        self.config.max_position_embeddings = rows;
        self.backbone.transformer.blocks.iter_mut().for_each(|block| block.layer.window = Some(rows));
    }

    /// Whether `codes` of a frame say that nothing more is said: all are `codebook_eos_token_id`. (`transformers` does not look at the
    /// last code before it stops, but leaves such a frame in what is heard.)
    pub fn ends(&self, codes: &[i32]) -> bool {
        codes.iter().all(|&code| code == self.config.codebook_eos_token_id)
    }

    /// What a step of a stream reads that has `seen` rows in memory: every matrix as often as it multiplies by it, keys and values.
    pub fn bytes_per_step(&self, seen: usize) -> usize {
        let remembered = seen.min(self.config.max_position_embeddings) * self.backbone.remembered(self.kept());
        self.backbone.bytes() + self.depth.bytes() + remembered
    }

    /// As [`Csm::bytes_per_step`], with guesses as they were.
    pub fn bytes_per_drafted_step(&self, seen: usize, draft: Draft, drafted: &Drafted) -> usize {
        self.bytes_per_step(seen) - self.depth.bytes() + self.depth.bytes_drafted(draft.layers, drafted)
    }

    /// Why the depth decoder is not one launch a frame, on a device that has launches; many streams are a further reason
    /// ([`Session::plain_depth_why`]).
    pub fn plain_depth(&self) -> Option<&str> {
        let depth = Some(&self.depth).filter(|_| self.device != Device::Cpu);
        depth.and_then(|depth| depth.in_one.as_ref().err()).map(String::as_str)
    }

    /// What keys and values are kept as.
    pub fn kept(&self) -> Kept {
        self.format.kept.unwrap_or(self.values().into())
    }

    /// Of what is between the layers: f32 beside bf16 on the CPU.
    fn values(&self) -> DType {
        values_dtype(&self.device, self.format.dtype)
    }
}
