//! Codec checkpoints: in published names and layouts, the configuration in the metadata or beside the file.

mod convert;
mod dac;
mod encodec;
mod mimi;
mod snac;

use std::collections::BTreeMap;
use std::path::Path;

pub(crate) use snac::frequencies;
use swara_kernels::ops::{codebook, weight_norm};
use swara_kernels::quantized::{Panels, Quantized};
use swara_kernels::{DType, Device, Shape, Tensor};
use swara_loader::{quantized as codes, weights};

pub use self::convert::{Converted, Named, Naming, convert};
use super::encodec::Config as EncodecConfig;
use super::mimi::Config as MimiConfig;
use super::model::{Layout, Model, TensorSpec};
use super::quantizer::{USAGE_EPSILON, codebook_tensors, parameter_tensors};
use super::snac::Config as SnacConfig;
use super::{Codec, Config, Stored};
use crate::rounding::Loss;
use crate::weights::{Source, Weights, in_panels, upload};
use crate::{Error, Result};

/// Metadata key of the configuration's JSON.
pub const METADATA_CONFIG: &str = "config";
/// Metadata key of the model's name.
pub const METADATA_MODEL: &str = "model";

pub(super) fn open(path: &Path, device: &Device, stored: Stored) -> Result<Codec> {
    let name = path.file_stem().map_or_else(|| "codec".into(), |s| s.to_string_lossy().into_owned());
    load(&weights::Weights::open(path)?, &name, device, stored)
}

pub(super) fn from_bytes(name: &str, bytes: &[u8], device: &Device, stored: Stored) -> Result<Codec> {
    load(&weights::Weights::from_bytes(name, bytes)?, name, device, stored)
}

pub(super) fn random_mimi(config: &MimiConfig, device: &Device, stored: Stored) -> Result<Codec> {
    let (model, weights, quantizer) = mimi::random(config, device)?;
    Codec::assemble("random Mimi", model, &weights, quantizer, device, stored)
}

/// What a file of weights is of, by its names.
enum Family<'a> {
    Mimi(mimi::Naming<'a>),
    /// As training writes it.
    Own,
    Snac,
    Dac(dac::Naming),
    Encodec(encodec::Naming),
}

impl<'a> Family<'a> {
    fn of(file: &'a weights::Weights) -> Option<Family<'a>> {
        if let Some(naming) = mimi::Naming::of(file) {
            return Some(Family::Mimi(naming));
        }
        if snac::recognises(file) {
            return Some(Family::Snac);
        }
        if let Some(naming) = encodec::Naming::of(file) {
            return Some(Family::Encodec(naming));
        }
        if file.metadata().contains_key(METADATA_CONFIG) {
            return Some(Family::Own);
        }
        dac::Naming::of(file).map(Family::Dac)
    }

    fn name(&self) -> &'static str {
        match self {
            Family::Mimi(naming) if naming.hugging_face => "Mimi, in the names of transformers",
            Family::Mimi(_) => "Mimi, in the names of moshi",
            Family::Own => "swara",
            Family::Snac => "SNAC",
            Family::Dac(dac::Naming::HuggingFace) => "DAC, in the names of transformers",
            Family::Dac(dac::Naming::Descript) => "DAC, in its original names",
            Family::Encodec(encodec::Naming::HuggingFace) => "EnCodec, in the names of transformers",
            Family::Encodec(encodec::Naming::Original) => "EnCodec, in its original names",
        }
    }
}

/// What codec a file of weights holds, by its names alone, or would hold if nothing were missing; None if that is not known.
pub fn family(file: &weights::Weights) -> Option<&'static str> {
    Some(Family::of(file)?.name())
}

fn load(file: &weights::Weights, name: &str, device: &Device, stored: Stored) -> Result<Codec> {
    let name = file.metadata().get(METADATA_MODEL).map_or(name, String::as_str);
    let config = config_of(file)?;
    let config = config.as_deref();
    let Some(family) = Family::of(file) else {
        let why = format!("neither names that are known nor {METADATA_CONFIG:?} in its metadata: not a codec");
        return Err(Error::File { path: file.path().to_owned(), why });
    };
    let (model, weights, quantizer) = match family {
        Family::Mimi(naming) => {
            let (model, weights, quantizer) = mimi::load(file, &naming, config.map(MimiConfig::from_json).transpose()?, device)?;
            // What the file has no codes of is rounded as well.
            let stored = if weights.panels.is_empty() { stored } else { Stored::INT8 };
            return Codec::assemble(name, model, &weights, quantizer, device, stored);
        }
        Family::Own => return own(file, name, Config::from_json(need(file, config)?)?, device, stored),
        Family::Snac => snac::load(file, &SnacConfig::from_json(need(file, config)?)?, device)?,
        Family::Encodec(naming) => {
            let config = naming.config_or(file, config)?;
            encodec::load(file, naming, &config, device)?
        }
        Family::Dac(naming) => {
            let config = dac::config(need(file, config)?)?;
            let weights = dac::load(file, naming, &config, device)?;
            return Codec::new(name, config, weights, Vec::new(), device, stored);
        }
    };
    Codec::assemble(name, model, &weights, quantizer, device, stored)
}

/// What training starts from in a published Mimi: folded weights, and usage and sum of every codebook.
pub(crate) fn mimi_to_train(file: &weights::Weights, config: &MimiConfig, device: &Device) -> Result<(Weights, Vec<[Tensor; 2]>)> {
    match Family::of(file) {
        Some(Family::Mimi(naming)) => mimi::to_train(file, &naming, config, device),
        _ => Err(Error::File { path: file.path().to_owned(), why: "no Mimi".into() }),
    }
}

/// What training starts from in a published EnCodec: weights, weight-normed as they are in the file, and usage and sum of every codebook.
pub(crate) fn encodec_to_train(file: &weights::Weights, config: &EncodecConfig, device: &Device) -> Result<(Weights, Vec<[Tensor; 2]>)> {
    match Family::of(file) {
        Some(Family::Encodec(naming)) => encodec::to_train(file, naming, config, device),
        _ => Err(Error::File { path: file.path().to_owned(), why: "no EnCodec".into() }),
    }
}

/// As [`encodec_to_train`]; codebooks are weights.
pub(crate) fn snac_to_train(file: &weights::Weights, config: &SnacConfig, device: &Device) -> Result<Weights> {
    match Family::of(file) {
        Some(Family::Snac) => Ok(snac::to_train(file, config, device)?.1.0),
        _ => Err(Error::File { path: file.path().to_owned(), why: "no SNAC".into() }),
    }
}

/// The layers of a published EnCodec, and their weights.
#[cfg(test)]
pub(crate) fn encodec_layers(file: &weights::Weights, device: &Device) -> Result<(Model, Weights)> {
    let Some(Family::Encodec(naming)) = Family::of(file) else { return Err(Error::Argument("no EnCodec".into())) };
    let config = config_of(file)?;
    let (model, weights, _) = encodec::load(file, naming, &EncodecConfig::from_json(need(file, config.as_deref())?)?, device)?;
    Ok((model, weights))
}

fn config_of(file: &weights::Weights) -> Result<Option<String>> {
    Ok(match file.metadata().get(METADATA_CONFIG) {
        Some(config) => Some(config.clone()),
        // The original DAC keeps its arguments in the file. A larger model's configuration
        // has its codec's within it.
        None => file
            .config()?
            .map(|config| ["codec_config", "audio_encoder_config"].iter().find_map(|key| config.get(key)).unwrap_or(&config).to_string())
            .or_else(|| kwargs(file)),
    })
}

/// Tensors, and the matrices beside them that a file has in panels: those the CPU multiplies by, as they are.
struct Coded<'a> {
    tensors: Weights,
    panels: BTreeMap<String, codes::Panels<'a>>,
}

impl Source for Coded<'_> {
    fn there(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    fn read(&self, name: &str, dtype: DType) -> Result<Tensor> {
        self.tensors.read(name, dtype)
    }

    fn quantized(&self, name: &str) -> Result<Option<Quantized>> {
        let rows = self.panels.get(name).map(|panels| panels.to_rows().map_err(|why| Error::Argument(format!("tensor {name}: {why}"))));
        rows.map(|rows| upload(&Device::Cpu, &rows?)).transpose()
    }

    fn panels(&self, name: &str) -> Result<Option<Panels>> {
        self.panels.get(name).map_or(Ok(None), |panels| in_panels(std::slice::from_ref(panels)))
    }
}

/// A tensor of a codec whose matrices are rounded.
pub enum Rounded {
    /// As published.
    Values { shape: Vec<usize>, values: Vec<f32> },
    /// Outputs by inputs, taps before channels, codes of eight bits with a scale an output.
    Codes { codes: codes::Quantized, loss: Loss },
}

/// The tensors of the Mimi that a file holds, in the names of `moshi`: matrices and filters as [`Stored::INT8`] has them, but for
/// those that fill no panels.
///
/// # Errors
/// What is no Mimi, or has codes already.
pub fn rounded_mimi(file: &weights::Weights) -> Result<BTreeMap<String, Rounded>> {
    let Some(Family::Mimi(naming)) = Family::of(file) else {
        return Err(Error::File { path: file.path().to_owned(), why: "no Mimi, and of other codecs no matrices are rounded".into() });
    };
    mimi::rounded(file, &naming, config_of(file)?.as_deref().map(MimiConfig::from_json).transpose()?)
}

fn need<'c>(file: &weights::Weights, config: Option<&'c str>) -> Result<&'c str> {
    let why = || "a codec without its configuration, which is read from config.json in the same folder".to_owned();
    config.ok_or_else(|| Error::File { path: file.path().to_owned(), why: why() })
}

/// What the original DAC was made with.
fn kwargs(file: &weights::Weights) -> Option<String> {
    let beside: serde_json::Value = serde_json::from_str(file.metadata().get("metadata")?).ok()?;
    Some(beside.get("kwargs")?.to_string())
}

/// A codec as training writes it.
fn own(file: &weights::Weights, name: &str, config: Config, device: &Device, stored: Stored) -> Result<Codec> {
    let model = Model::new(&config);
    let mut specs = model.tensors(true);
    specs.extend(parameter_tensors(&config, true));
    // Codebooks are their moving averages, or - released - the embeddings themselves.
    let averages = codebook_tensors(&config);
    let released = averages.first().is_some_and(|first| !file.contains(&first.name));
    let embeddings: Vec<TensorSpec> = match released {
        true => config.codebook_sizes.iter().enumerate().map(|(k, &size)| embedding_spec(k, size, config.codebook_dim)).collect(),
        false => averages,
    };
    let beside = embeddings.iter().map(|s| (s.name.clone(), s.published.clone()));
    let tensors = named(file, &specs, str::to_owned, beside, device)?;
    let read = |spec: &TensorSpec| read(file, spec, device);
    let codebooks = match released {
        true => embeddings.iter().map(read).collect::<Result<Vec<_>>>()?,
        false => embeddings
            .chunks_exact(2)
            .map(|pair| Ok(codebook::embedding(&read(&pair[0])?, &read(&pair[1])?, USAGE_EPSILON)?))
            .collect::<Result<Vec<_>>>()?,
    };
    Codec::new(name, config, tensors, codebooks, device, stored)
}

pub(crate) fn embedding_spec(k: usize, size: usize, dim: usize) -> TensorSpec {
    TensorSpec::new(format!("quantizer.layers.{k}.codebook.embedding"), Layout::Plain, [size, dim])
}

/// Reads the tensors of `specs`, which the file calls `published` and may have weight-normed. `beside`: what else it has.
fn named(
    file: &weights::Weights,
    specs: &[TensorSpec],
    published: impl Fn(&str) -> String,
    beside: impl IntoIterator<Item = (String, Vec<usize>)>,
    device: &Device,
) -> Result<Weights> {
    let (tensors, specs) = as_they_are(file, specs, published, beside, device)?;
    fold(&specs, tensors)
}

/// As [`named`], where weight norms are not folded: what the file has, and what it is of.
fn as_they_are(
    file: &weights::Weights,
    specs: &[TensorSpec],
    published: impl Fn(&str) -> String,
    beside: impl IntoIterator<Item = (String, Vec<usize>)>,
    device: &Device,
) -> Result<(Weights, Vec<TensorSpec>)> {
    let source = |spec: &TensorSpec| {
        let name = published(&spec.name);
        weight_normed(file, spec, &name).map_or_else(|| vec![(spec.clone(), name)], Vec::from)
    };
    let sources: Vec<(TensorSpec, String)> = specs.iter().flat_map(source).collect();
    file.check(sources.iter().map(|(spec, name)| (name.clone(), spec.published.clone())).chain(beside))?;
    let read = |(spec, name): &(TensorSpec, String)| Ok((spec.name.clone(), read_as(file, name, spec, &file.to_f32(name)?, device)?));
    let tensors = sources.iter().map(read).collect::<Result<_>>()?;
    Ok((tensors, sources.into_iter().map(|(spec, _)| spec).collect()))
}

/// Gain and direction of `spec`, which the file calls `name`, if it has them instead: by PyTorch's names of before and since 2.0.
fn weight_normed(file: &weights::Weights, spec: &TensorSpec, name: &str) -> Option<[(TensorSpec, String); 2]> {
    let (layer, stem) = (spec.name.strip_suffix(".weight")?, name.strip_suffix(".weight")?);
    let names = [["weight_g", "weight_v"], ["parametrizations.weight.original0", "parametrizations.weight.original1"]];
    let [gain, direction] = names.map(|pair| pair.map(|part| format!("{stem}.{part}"))).into_iter().find(|[_, v]| file.contains(v))?;
    let spec_of_gain = TensorSpec::new(format!("{layer}.weight_g"), Layout::Gain, [spec.published[0], 1, 1]);
    Some([(spec_of_gain, gain), (TensorSpec { name: format!("{layer}.weight_v"), ..spec.clone() }, direction)])
}

/// A tensor of the file as f32 in memory layout.
pub(crate) fn read(file: &weights::Weights, spec: &TensorSpec, device: &Device) -> Result<Tensor> {
    read_as(file, &spec.name, spec, &file.to_f32(&spec.name)?, device)
}

/// `values`, in published order, as f32 in memory layout; `name` is the tensor they are of.
fn read_as(file: &weights::Weights, name: &str, spec: &TensorSpec, values: &[f32], device: &Device) -> Result<Tensor> {
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        let why = format!("element {at} of tensor {name} is {}", values[at]);
        return Err(Error::File { path: file.path().to_owned(), why });
    }
    let shape = Shape::try_from(&spec.shape()[..])?;
    Ok(match spec.layout {
        Layout::Plain | Layout::Alpha | Layout::Gain => Tensor::from_slice(device, values, shape)?,
        Layout::Conv | Layout::ConvTranspose => Tensor::from_slice(device, &spec.import(values), shape)?,
    })
}

/// Replaces every `weight_g`, `weight_v` by `weight`.
pub(crate) fn fold<'a>(specs: impl IntoIterator<Item = &'a TensorSpec>, mut tensors: BTreeMap<String, Tensor>) -> Result<Weights> {
    for spec in specs {
        let Some(layer) = spec.name.strip_suffix(".weight_v") else { continue };
        let (v, g) = (tensors.remove(&spec.name), tensors.remove(&format!("{layer}.weight_g")));
        let (Some(v), Some(g)) = (v, g) else { return Err(Error::MissingTensor(format!("{layer}.weight_g"))) };
        tensors.insert(format!("{layer}.weight"), weight_norm::forward(&v, &g, spec.norm_axis())?);
    }
    Ok(tensors)
}
