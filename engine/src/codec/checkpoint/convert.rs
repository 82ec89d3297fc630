//! Codecs in the names, layouts and configurations of others.

use serde_json::Value;
use swara_loader::weights;

use super::{Family, config_of, dac, encodec, mimi, need};
use crate::codec::Config;
use crate::codec::mimi::Config as MimiConfig;
use crate::codec::model::TensorSpec;
use crate::weights::Weights;
use crate::{Error, Result};

/// Whose names a codec is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// `transformers`: Mimi, DAC, EnCodec.
    HuggingFace,
    /// `moshi`: Mimi.
    Kyutai,
}

/// A codec as others read it.
pub struct Converted {
    /// `config.json`.
    pub config: Value,
    /// `preprocessor_config.json` of `transformers`.
    pub preprocessor: Value,
    pub tensors: Vec<Named>,
}

/// A tensor in published order.
pub struct Named {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// The codec that a file holds, in the names of `naming`. Weight norm is folded, but for an EnCodec's.
///
/// # Errors
/// What is no codec, or none that is known by such names.
pub fn convert(file: &weights::Weights, naming: Naming) -> Result<Converted> {
    let fail = |why: &str| Err(Error::File { path: file.path().to_owned(), why: why.to_owned() });
    let config = config_of(file)?;
    let config = config.as_deref();
    let Some(family) = Family::of(file) else { return fail("not a codec") };
    match (family, naming) {
        (Family::Mimi(found), _) => mimi::convert(file, &found, config.map(MimiConfig::from_json).transpose()?, naming),
        (_, Naming::Kyutai) => fail("no Mimi, and moshi has no other codec"),
        (Family::Own, Naming::HuggingFace) => dac::convert(file, dac::Naming::HuggingFace, &Config::from_json(need(file, config)?)?),
        (Family::Dac(found), Naming::HuggingFace) => dac::convert(file, found, &dac::config(need(file, config)?)?),
        (Family::Encodec(found), Naming::HuggingFace) => encodec::convert(file, found, &found.config_or(file, config)?),
        (Family::Snac, Naming::HuggingFace) => fail("transformers has no SNAC"),
    }
}

/// A tensor of memory order in published order.
pub(super) fn in_order(spec: &TensorSpec, name: String, tensors: &Weights) -> Result<Named> {
    let Some(tensor) = tensors.get(&spec.name) else { return Err(Error::MissingTensor(spec.name.clone())) };
    Ok(Named { name, shape: spec.published.clone(), values: spec.export(tensor.as_slice::<f32>()?) })
}
