//! Codec checkpoints: safetensors in published names and layouts, the configuration in the metadata.

use std::collections::BTreeMap;
use std::path::Path;

use swara_kernels::ops::{codebook, weight_norm};
use swara_kernels::{DType, Device, Shape, Tensor};
use swara_loader::weights;

use super::execute::Weights;
use super::model::{Layout, Model, TensorSpec};
use super::quantizer::{USAGE_EPSILON, codebook_tensors, parameter_tensors};
use super::{Codec, Config};
use crate::{Error, Result};

/// Metadata key of the configuration's JSON.
pub const METADATA_CONFIG: &str = "config";
/// Metadata key of the model's name.
pub const METADATA_MODEL: &str = "model";

pub(super) fn open(path: &Path, device: &Device, dtype: DType) -> Result<Codec> {
    let name = path.file_stem().map_or_else(|| "codec".into(), |s| s.to_string_lossy().into_owned());
    load(&weights::Weights::open(path)?, &name, device, dtype)
}

pub(super) fn from_bytes(name: &str, bytes: &[u8], device: &Device, dtype: DType) -> Result<Codec> {
    load(&weights::Weights::from_bytes(name, bytes)?, name, device, dtype)
}

fn load(file: &weights::Weights, name: &str, device: &Device, dtype: DType) -> Result<Codec> {
    let config = file.metadata().get(METADATA_CONFIG).ok_or_else(|| Error::File {
        path: file.path().to_owned(),
        why: format!("no {METADATA_CONFIG:?} in its metadata: not a swara codec"),
    })?;
    let config = Config::from_json(config)?;
    let name = file.metadata().get(METADATA_MODEL).map_or(name, String::as_str).to_owned();
    let model = Model::new(&config);
    // Weights are folded in a released model and weight-normed in one that trains.
    let folded = !file.names().any(|n| n.ends_with(".weight_g"));
    let mut specs = model.tensors(folded);
    specs.extend(parameter_tensors(&config, folded));
    let mut expected: Vec<TensorSpec> = specs.clone();
    // Codebooks are their moving averages, or - released - the embeddings themselves.
    let averages = codebook_tensors(&config);
    let released = averages.first().is_some_and(|first| !file.contains(&first.name));
    let embeddings: Vec<TensorSpec> = match released {
        true => config.codebook_sizes.iter().enumerate().map(|(k, &size)| embedding_spec(k, size, config.codebook_dim)).collect(),
        false => averages,
    };
    expected.extend(embeddings.iter().cloned());
    file.check(expected.iter().map(|s| (s.name.clone(), s.published.clone())))?;

    let read = |spec: &TensorSpec| read(file, spec, device);
    let mut tensors: BTreeMap<String, Tensor> = specs.iter().map(|s| Ok((s.name.clone(), read(s)?))).collect::<Result<_>>()?;
    if !folded {
        tensors = fold(&specs, tensors)?;
    }
    let codebooks = match released {
        true => embeddings.iter().map(read).collect::<Result<Vec<_>>>()?,
        false => embeddings
            .chunks_exact(2)
            .map(|pair| Ok(codebook::embedding(&read(&pair[0])?, &read(&pair[1])?, USAGE_EPSILON)?))
            .collect::<Result<Vec<_>>>()?,
    };
    Codec::new(&name, config, tensors, codebooks, device, dtype)
}

pub(crate) fn embedding_spec(k: usize, size: usize, dim: usize) -> TensorSpec {
    TensorSpec::new(format!("quantizer.layers.{k}.codebook.embedding"), Layout::Plain, [size, dim])
}

/// A tensor of the file as f32 in memory layout.
pub(crate) fn read(file: &weights::Weights, spec: &TensorSpec, device: &Device) -> Result<Tensor> {
    let values = file.to_f32(&spec.name)?;
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        let why = format!("element {at} of tensor {} is {}", spec.name, values[at]);
        return Err(Error::File { path: file.path().to_owned(), why });
    }
    let values = spec.import(&values);
    Ok(Tensor::from_slice(device, &values, Shape::try_from(&spec.shape()[..])?)?)
}

/// Replaces every `weight_g`, `weight_v` by `weight`.
pub(crate) fn fold(specs: &[TensorSpec], mut tensors: BTreeMap<String, Tensor>) -> Result<Weights> {
    for spec in specs {
        let Some(layer) = spec.name.strip_suffix(".weight_v") else { continue };
        let (v, g) = (tensors.remove(&spec.name), tensors.remove(&format!("{layer}.weight_g")));
        let (Some(v), Some(g)) = (v, g) else { return Err(Error::MissingTensor(format!("{layer}.weight_g"))) };
        tensors.insert(format!("{layer}.weight"), weight_norm::forward(&v, &g, spec.norm_axis())?);
    }
    Ok(tensors)
}
