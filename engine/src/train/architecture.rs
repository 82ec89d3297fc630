//! What is trained: a codec of swara's own kind, a Mimi, an EnCodec or a SNAC.

use std::ops::Range;

use swara_kernels::{DType, Device, Tensor};

use super::quantize::{Averaging, Codebook};
use crate::codec::encodec::{self, Config as EncodecConfig};
use crate::codec::mimi::{self, Config as MimiConfig};
use crate::codec::model::{Model, TensorSpec};
use crate::codec::quantizer::{self, Quantizer, Rvq};
use crate::codec::snac::{self, Config as SnacConfig};
use crate::codec::{Codec, Config, QuantizerKind};
use crate::weights::Weights;
use crate::{Error, Result};

/// The codec that a run trains.
#[derive(Clone, Debug, PartialEq)]
pub enum Architecture {
    Own(Config),
    /// Weight-normed but for the layers between its rates, as `moshi` has it in training.
    Mimi(MimiConfig),
    EnCodec(EncodecConfig),
    Snac(SnacConfig),
}

/// Residual stages that may have projections of their own, `{name}.input_proj` and `{name}.output_proj`. Branches see the same latents, and
/// what they make of them is added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    pub name: &'static str,
    pub stages: Range<usize>,
    /// False where the stages search the latents themselves (EnCodec).
    pub projected: bool,
}

impl Architecture {
    pub fn model(&self) -> Result<Model> {
        match self {
            Architecture::Own(config) => Ok(Model::new(config)),
            Architecture::Mimi(config) => mimi::model(config),
            Architecture::EnCodec(config) => encodec::model(config),
            Architecture::Snac(config) => snac::model(config),
        }
    }

    /// Refuses what has no gradient, and what crops of one channel are not.
    pub fn check(&self) -> Result<()> {
        let fail = |what: String| Err(Error::Config(what));
        match self {
            Architecture::Own(config) => config.check(),
            Architecture::Mimi(config) => config.check(),
            Architecture::Snac(config) => config.check(),
            Architecture::EnCodec(c) if c.norm_type != "weight_norm" => {
                fail(format!("encodec: norm_type {:?} has no gradient, expected \"weight_norm\"", c.norm_type))
            }
            Architecture::EnCodec(c) if c.audio_channels != 1 || c.normalize => {
                fail("encodec: training wants audio_channels = 1 and normalize = false".into())
            }
            Architecture::EnCodec(config) => config.check(),
        }
    }

    /// What is learnt by gradient, in published names and layouts.
    pub fn parameters(&self, model: &Model) -> Vec<TensorSpec> {
        let mut specs = model.tensors(false);
        match self {
            Architecture::Own(config) => specs.extend(quantizer::parameter_tensors(config, false)),
            Architecture::Mimi(config) => {
                let between = |spec: &TensorSpec| spec.name.starts_with("downsample.") || spec.name.starts_with("upsample.");
                specs.retain(|spec| !between(spec));
                specs.extend(model.tensors(true).into_iter().filter(between));
                specs.extend(quantizer::split_tensors(config.hidden_size, config.codebook_dim));
            }
            Architecture::EnCodec(_) => {}
            Architecture::Snac(config) => {
                let format = &model.format;
                specs.extend(quantizer::factorised_tensors(format.latent, config.codebook_dim, &format.codebook_sizes, false));
            }
        }
        specs
    }

    /// None where every stage has its own projections (factorised).
    pub fn branches(&self) -> Vec<Branch> {
        match self {
            Architecture::Own(config) if config.quantizer == QuantizerKind::Factorised => Vec::new(),
            Architecture::Own(config) => vec![Branch { name: "quantizer", stages: 0..config.codebook_sizes.len(), projected: true }],
            Architecture::EnCodec(_) => vec![Branch { name: "quantizer", stages: 0..self.codebooks().len(), projected: false }],
            Architecture::Snac(_) => Vec::new(),
            Architecture::Mimi(config) => {
                let [semantic, acoustic] = quantizer::SPLIT;
                let first = config.num_semantic_quantizers;
                let branch = |name, stages| Branch { name, stages, projected: true };
                vec![branch(semantic, 0..first), branch(acoustic, first..config.num_quantizers)]
            }
        }
    }

    /// Size and dimensions of every stage's codebook.
    pub fn codebooks(&self) -> Vec<[usize; 2]> {
        match self {
            Architecture::Own(config) => config.codebook_sizes.iter().map(|&size| [size, config.codebook_dim]).collect(),
            Architecture::Mimi(config) => vec![[config.codebook_size, config.codebook_dim]; config.num_quantizers],
            Architecture::EnCodec(config) => {
                let stages = config.bandwidths().last().copied().unwrap_or(0);
                vec![[config.codebook_size, config.hidden_size]; stages]
            }
            Architecture::Snac(config) => vec![[config.codebook_size, config.codebook_dim]; config.vq_strides.len()],
        }
    }

    /// Latents that a code of every factorised stage stands for.
    pub fn strides(&self) -> Vec<usize> {
        match self {
            Architecture::Snac(config) => config.vq_strides.clone(),
            _ => vec![1; self.codebooks().len()],
        }
    }

    /// Numbers of stages that make its bitrates, where it has some that it was made for.
    pub fn bandwidths(&self) -> Vec<usize> {
        match self {
            Architecture::EnCodec(config) => config.bandwidths(),
            _ => Vec::new(),
        }
    }

    /// Moving averages of a stage's codebook: usage and sum.
    pub fn averages(&self) -> Vec<[TensorSpec; 2]> {
        let books = self.codebooks();
        let stages = self.branches().into_iter().flat_map(|branch| {
            let first = branch.stages.start;
            branch.stages.map(move |k| (k, k - first, branch.name))
        });
        let name = |own: usize, branch: &str| match self {
            Architecture::Own(_) | Architecture::EnCodec(_) | Architecture::Snac(_) => format!("{branch}.layers.{own}.codebook"),
            Architecture::Mimi(_) => format!("{branch}.vq.layers.{own}._codebook"),
        };
        stages.map(|(k, own, branch)| quantizer::average_tensors(&name(own, branch), books[k])).collect()
    }

    /// The codec of folded `weights` and, where there are branches, the codebooks of all stages.
    pub fn codec(&self, name: &str, weights: Weights, codebooks: Vec<Tensor>, device: &Device, dtype: DType) -> Result<Codec> {
        match self {
            Architecture::Own(config) => Codec::new(name, config.clone(), weights, codebooks, device, dtype),
            Architecture::Mimi(config) => {
                let (mut semantic, [first, rest]) = (codebooks, quantizer::SPLIT);
                let acoustic = semantic.split_off(config.num_semantic_quantizers.min(semantic.len()));
                let half = |name: &str, books| Ok::<_, Error>(Box::new(Rvq::new(&weights, name, books)?));
                let quantizer = Quantizer::Split { semantic: half(first, semantic)?, acoustic: half(rest, acoustic)? };
                Codec::assemble(name, self.model()?, &weights, quantizer, device, dtype.into())
            }
            Architecture::EnCodec(_) => Codec::assemble(name, self.model()?, &weights, Quantizer::plain(&codebooks)?, device, dtype.into()),
            Architecture::Snac(config) => {
                let quantizer = Quantizer::levels(&weights, &config.vq_strides)?;
                Codec::assemble(name, self.model()?, &weights, quantizer, device, dtype.into())
            }
        }
    }

    /// As a released file has it in its metadata.
    pub fn json(&self) -> Result<String> {
        let json = match self {
            Architecture::Own(config) => serde_json::to_string(config),
            Architecture::Mimi(config) => serde_json::to_string(config),
            Architecture::EnCodec(config) => return Ok(config.published()?.to_string()),
            Architecture::Snac(config) => serde_json::to_string(config),
        };
        json.map_err(|e| Error::Config(e.to_string()))
    }

    /// Codebooks that hold nothing yet; none where they are parameters.
    pub fn empty(&self, device: &Device, dtype: DType) -> Result<Vec<Codebook>> {
        let averaging = if let Architecture::EnCodec(_) = self { Averaging::Smoothed } else { Averaging::Plain };
        let book = |[size, dim]: [usize; 2]| {
            Ok(Codebook { usage: Tensor::zeros(device, dtype, [size])?, sum: Tensor::zeros(device, dtype, [size, dim])?, averaging })
        };
        match self.branches().is_empty() {
            true => Ok(Vec::new()),
            false => self.codebooks().into_iter().map(book).collect(),
        }
    }
}
