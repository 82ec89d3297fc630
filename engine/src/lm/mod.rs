//! Language models over audio codes: Moshi and its family, a temporal transformer over steps of 80 ms and a depth transformer over
//! the codes of each.
//!
//! Source: Défossez et al. 2024 (Moshi); `LMModel` and `LMGen` of the package `moshi`.

mod calibration;
mod checkpoint;
mod conditions;
mod config;
mod lora;
pub(crate) mod model;
mod prompt;
pub(crate) mod session;
mod transformers;

use std::collections::BTreeMap;
use std::path::Path;

pub use calibration::{Conversation, Seen, Site, observe};
pub use checkpoint::{Layout, Part, check, matrices, named_lora, tables, unread};
pub use conditions::{Condition, ConditionRows, Conditions};
pub use config::{Config, Drawn, Fuser, Widths};
pub use prompt::{Prompt, Quiet};
pub use session::{Drawing, Given, Session, Step};
use swara_kernels::case::SplitMix;
use swara_kernels::ops::attention::Kept;
use swara_kernels::quantized::Bits;
use swara_kernels::{DType, Device, Shape, Tensor};

use self::model::{Depth, Layers, Temporal};
use crate::weights::{Reader, Source, as_type, values_dtype};
use crate::{Error, Result};

/// How a model's numbers are kept. Matrices that a file has as codes stay what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Of what is no codes. The CPU computes in f32 beside bf16.
    pub dtype: DType,
    /// Bits of codes that the matrices of the temporal transformer, of the depth transformer, and those that give logits are rounded
    /// to; none: `dtype`.
    pub temporal: Option<Bits>,
    pub depth: Option<Bits>,
    pub heads: Option<Bits>,
    /// Keys and values of the steps that are remembered; by default as what is between the layers.
    pub kept: Option<Kept>,
    /// Steps that one sees, instead of the configuration's.
    pub context: Option<usize>,
    /// Of these, the first of a stream that it sees for good (attention sinks): without them a stream that is past its context has lost what
    /// attention leans on when it has nothing to say. Distances beyond the context, which the model has never seen, do not come up
    /// ([`Sinks`](swara_kernels::ops::attention::Sinks)). None is what moshi does.
    pub sinks: usize,
    /// Whether the tables of what the temporal transformer is fed are rounded to codes of 8 bits with a scale a row; those that a file has
    /// so stay what they are.
    pub int8_tables: bool,
}

impl Format {
    pub fn int8(dtype: DType) -> Format {
        let bits = Some(Bits::Eight);
        Format { temporal: bits, depth: bits, heads: bits, ..dtype.into() }
    }

    /// The depth transformer and what gives logits in 8 bits.
    pub fn int4(dtype: DType) -> Format {
        Format { temporal: Some(Bits::Four), ..Format::int8(dtype) }
    }

    /// What gives logits in 8 bits.
    pub fn int4_all(dtype: DType) -> Format {
        Format { depth: Some(Bits::Four), ..Format::int4(dtype) }
    }

    /// That a model of this configuration can keep its sinks.
    ///
    /// # Errors
    /// As many as the steps that it sees, or more; a model whose positions are sines.
    pub fn check_sinks(&self, config: &Config) -> Result<()> {
        if self.sinks == 0 {
            return Ok(());
        }
        if let Some(context) = self.context.or(config.context).filter(|&context| self.sinks >= context) {
            return Err(Error::Argument(format!("{} sinks of a context of {context}", self.sinks)));
        }
        match config.temporal()?.sines {
            Some(_) => Err(Error::Argument("sinks of a model whose positions are sines, which are not those within the cache".into())),
            None => Ok(()),
        }
    }
}

impl From<DType> for Format {
    fn from(dtype: DType) -> Format {
        Format { dtype, temporal: None, depth: None, heads: None, kept: None, context: None, sinks: 0, int8_tables: false }
    }
}

/// A language model on a device, ready to run.
pub struct Lm {
    name: String,
    config: Config,
    temporal: Temporal,
    depth: Option<Depth>,
    device: Device,
    format: Format,
}

impl Lm {
    /// Reads a published checkpoint: a file, or a directory that holds one and its `config.json`.
    ///
    /// # Errors
    /// What cannot be read, is not known, or disagrees with its configuration - all tensors that do, by name; a LoRA that the
    /// configuration names (`lora_name`), and that is not beside it: else it is merged, as in [`open_with_lora`](Self::open_with_lora).
    pub fn open(path: &Path, device: &Device, format: impl Into<Format>) -> Result<Lm> {
        checkpoint::open(path, None, device, format.into())
    }

    /// As [`open`](Self::open), with the matrices of a LoRA of the package `moshi` merged into its own before they are rounded to
    /// anything; instead of one that the configuration names.
    ///
    /// # Errors
    /// As there; a LoRA that is not of this model.
    pub fn open_with_lora(path: &Path, lora: &Path, device: &Device, format: impl Into<Format>) -> Result<Lm> {
        checkpoint::open(path, Some(lora), device, format.into())
    }

    /// Random weights, to see how fast a model would be and what it takes.
    ///
    /// # Errors
    /// A configuration that does not hold; no memory.
    pub fn random(config: Config, device: &Device, format: impl Into<Format>) -> Result<Lm> {
        config.check()?;
        let tensors = Layers::new(&config)?.tensors(&config)?.into_iter().collect();
        Lm::assemble("random".to_owned(), config, &Random { tensors, device }, device, format.into())
    }

    fn assemble(name: String, mut config: Config, source: &dyn Source, device: &Device, format: Format) -> Result<Lm> {
        model::check_format(device, format)?;
        format.check_sinks(&config)?;
        config.context = format.context.or(config.context);
        let layers = Layers::new(&config)?;
        let (temporal, depth) = model::read(&layers, &config, device, format, Reader::new(source, device, format.dtype))?;
        Ok(Lm { name, config, temporal, depth, device: device.clone(), format })
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

    /// What a step of a stream reads that has `seen` steps in memory: every matrix that it multiplies by, keys and values; of what it is
    /// conditioned on and attends to a row each, as where nobody asks.
    pub fn bytes_per_step(&self, seen: usize) -> usize {
        let depth = |depth: &Depth| (0..self.config.dep_q).map(|k| depth.bytes(&self.config, k)).sum::<usize>();
        let remembered = self.config.context.map_or(1, |context| seen.min(context)) * self.temporal.remembered(self.kept());
        let attended = self.config.fuser.as_ref().map_or(0, |fuser| fuser.cross.len()) * self.temporal.attended(self.values());
        self.temporal.bytes() + self.depth.as_ref().map_or(0, depth) + remembered + attended
    }

    /// Of the tables of what the temporal transformer is fed.
    pub fn table_bytes(&self) -> usize {
        self.temporal.fed.bytes()
    }

    /// Why the depth transformer is not one launch a step, on a device that has launches; guidance and many streams are further reasons
    /// ([`Session::plain_depth_why`]).
    pub fn plain_depth(&self) -> Option<&str> {
        let depth = self.depth.as_ref().filter(|_| self.device != Device::Cpu);
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

/// Uniform weights of the variance that keeps a signal's, and factors of one.
pub(crate) struct Random<'a> {
    pub tensors: BTreeMap<String, Vec<usize>>,
    pub device: &'a Device,
}

impl Source for Random<'_> {
    fn read(&self, name: &str, dtype: DType) -> Result<Tensor> {
        /// Numbers until they repeat: no memory is read twice for that.
        const PERIOD: usize = (1 << 20) - 3;
        let shape = self.tensors.get(name).ok_or_else(|| Error::MissingTensor(name.to_owned()))?;
        let elements = shape.iter().fold(1usize, |a, &b| a.saturating_mul(b));
        let mut values = model::room(elements)?;
        match shape[..] {
            [_, inputs] => {
                let largest = (3.0 / inputs as f64).sqrt();
                let mut rng = SplitMix(name.bytes().fold(0, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into())));
                let some: Vec<f32> = (0..elements.min(PERIOD)).map(|_| ((2.0 * rng.uniform() - 1.0) * largest) as f32).collect();
                values.extend(some.iter().cycle().take(elements));
            }
            _ => values.resize(elements, if name.ends_with(".bias") { 0.0 } else { 1.0 }),
        }
        let tensor = Tensor::from_slice(self.device, &values, Shape::try_from(&shape[..])?)?;
        drop(values);
        as_type(tensor, dtype)
    }
}
