//! Published EnCodec checkpoints: the names of `transformers`, and those of `encodec`.

use serde_json::json;
use swara_kernels::{DType, Device, Shape, Tensor};
use swara_loader::weights;

use super::convert::{Converted, Named, in_order};
use super::{as_they_are, fold, need, read};
use crate::codec::encodec::{self, Config};
use crate::codec::model::{Layout, Model, TensorSpec};
use crate::codec::quantizer::{Quantizer, smoothed};
use crate::weights::Weights;
use crate::{Error, Result};

/// Whose names a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    HuggingFace,
    /// As Facebook first published it, without a configuration.
    Original,
}

impl Naming {
    /// None if this is no EnCodec.
    pub fn of(file: &weights::Weights) -> Option<Naming> {
        let marks =
            [(Naming::HuggingFace, "quantizer.layers.0.codebook.embed"), (Naming::Original, "quantizer.vq.layers.0._codebook.embed")];
        marks.into_iter().find_map(|(naming, mark)| file.contains(mark).then_some(naming))
    }

    /// What `json` says, or else is implicit in the original names.
    pub fn config_or(self, file: &weights::Weights, json: Option<&str>) -> Result<Config> {
        match (self, json) {
            (Naming::Original, None) if file.contains("encoder.model.0.conv.norm.weight") => Ok(Config::stereo()),
            (Naming::Original, None) => Ok(Config::default()),
            (_, json) => Config::from_json(need(file, json)?),
        }
    }

    fn published(self, name: &str) -> String {
        match self {
            Naming::HuggingFace => name.to_owned(),
            Naming::Original => original(name),
        }
    }
}

/// What `encodec` calls a tensor that `transformers` calls `name`.
fn original(name: &str) -> String {
    if let Some(codebook) = name.strip_prefix("quantizer.layers.") {
        return format!("quantizer.vq.layers.{}", codebook.replace(".codebook.", "._codebook."));
    }
    let name = name.replace("coder.layers.", "coder.model.");
    let parts: Vec<&str> = name.split('.').collect();
    // The decoder's transposed convolutions are those that no block and no number of the ends encloses; see `load`.
    match parts[..] {
        [side, "model", at, kind @ ("conv" | "norm"), part] => format!("{side}.model.{at}.conv.{kind}.{part}"),
        [side, "model", at, "block", n, kind @ ("conv" | "norm"), part] => format!("{side}.model.{at}.block.{n}.conv.{kind}.{part}"),
        [side, "model", at, "shortcut", kind @ ("conv" | "norm"), part] => format!("{side}.model.{at}.shortcut.conv.{kind}.{part}"),
        _ => name,
    }
}

pub fn load(file: &weights::Weights, naming: Naming, config: &Config, device: &Device) -> Result<(Model, Weights, Quantizer)> {
    let (model, (tensors, specs), codebooks) = find(file, naming, config, device)?;
    let codebooks = codebooks.iter().map(|spec| read(file, spec, device)).collect::<Result<Vec<_>>>()?;
    Ok((model, fold(&specs, tensors)?, Quantizer::plain(&codebooks)?))
}

/// Weights, and averages of which the codebooks that the file has are the quotients.
pub fn to_train(file: &weights::Weights, naming: Naming, config: &Config, device: &Device) -> Result<(Weights, Vec<[Tensor; 2]>)> {
    let (_, (tensors, _), codebooks) = find(file, naming, config, device)?;
    let averages = |spec: &TensorSpec| -> Result<[Tensor; 2]> {
        let (words, [size, dim]) = (read(file, spec, &Device::Cpu)?.to_f64()?, [spec.published[0], spec.published[1]]);
        let [usage, sum] = averages(file, spec, &words)?;
        let exact = |values: &[f64], shape: &[usize]| Tensor::from_f64(&Device::Cpu, DType::F64, values, Shape::try_from(shape)?);
        Ok([exact(&usage, &[size])?, exact(&sum, &[size, dim])?])
    };
    Ok((tensors, codebooks.iter().map(averages).collect::<Result<_>>()?))
}

/// Usage, and sums of which `words` are the quotients: codewords of a file that does not say how much each was used are as if all had been
/// alike.
fn averages(file: &weights::Weights, spec: &TensorSpec, words: &[f64]) -> Result<[Vec<f64>; 2]> {
    let [size, dim] = [spec.published[0], spec.published[1]];
    let name = beside(spec, "cluster_size");
    let mut usage = match file.contains(&name) {
        true => read(file, &TensorSpec::new(name, Layout::Plain, [size]), &Device::Cpu)?.to_f64()?,
        false => Vec::new(),
    };
    usage.iter_mut().for_each(|u| *u = u.max(0.0));
    if usage.iter().all(|&u| u == 0.0) {
        usage = vec![1.0; size];
    }
    let sum = words.chunks_exact(dim.max(1)).zip(smoothed(&usage)).flat_map(|(row, u)| row.iter().map(move |w| w * u)).collect();
    Ok([usage, sum])
}

/// What a codebook of the training has beside its codewords `[size, dim]`.
fn buffers(size: usize, dim: usize) -> [(&'static str, Vec<usize>); 3] {
    [("inited", vec![1]), ("cluster_size", vec![size]), ("embed_avg", vec![size, dim])]
}

/// Name of the part `part` of the codebook whose codewords are `spec`.
fn beside(spec: &TensorSpec, part: &str) -> String {
    spec.name.replace("codebook.embed", &format!("codebook.{part}"))
}

/// An EnCodec in the names of `transformers`: gains and directions as the file has them, or of what it has folded.
pub fn convert(file: &weights::Weights, naming: Naming, config: &Config) -> Result<Converted> {
    if config.num_lstm_layers == 0 {
        let why = "num_lstm_layers is 0, and transformers has no EnCodec without a recurrent layer".to_owned();
        return Err(Error::File { path: file.path().to_owned(), why });
    }
    let (model, (mut tensors, mut specs), codebooks) = find(file, naming, config, &Device::Cpu)?;
    if config.norm_type != "weight_norm" {
        tensors = fold(&specs, tensors)?;
        specs = model.tensors(true);
    }
    let mut named = Vec::new();
    for spec in &specs {
        let mut found = in_order(spec, spec.name.clone(), &tensors)?;
        let filters = matches!(spec.layout, Layout::Conv | Layout::ConvTranspose);
        match spec.name.strip_suffix(".weight").filter(|_| filters && config.norm_type == "weight_norm") {
            None => named.push(found),
            Some(layer) => {
                let each = (found.values.len() / found.shape[0].max(1)).max(1);
                let norm = |row: &[f32]| row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt() as f32;
                let gains: Vec<f32> = found.values.chunks_exact(each).map(norm).collect();
                // Zeros have no direction, and with a gain of 0 any will do.
                let silent = found.values.chunks_exact_mut(each).zip(&gains).filter(|(_, gain)| **gain == 0.0);
                silent.for_each(|(row, _)| row.fill(1.0));
                named.push(Named { name: format!("{layer}.weight_g"), shape: vec![found.shape[0], 1, 1], values: gains });
                named.push(Named { name: format!("{layer}.weight_v"), ..found });
            }
        }
    }
    for (k, spec) in codebooks.iter().enumerate() {
        let name = |part: &str| format!("quantizer.layers.{k}.codebook.{part}");
        let words = read(file, spec, &Device::Cpu)?;
        let [usage, sum] = averages(file, spec, &words.to_f64()?)?;
        named.push(Named { name: name("embed"), shape: spec.published.clone(), values: words.to_vec()? });
        for (part, shape) in buffers(spec.published[0], spec.published[1]) {
            let at = TensorSpec { name: beside(spec, part), layout: Layout::Plain, published: shape.clone() };
            let narrow = |values: &[f64]| values.iter().map(|&v| v as f32).collect();
            let values = match part {
                _ if file.contains(&at.name) => read(file, &at, &Device::Cpu)?.to_vec()?,
                "cluster_size" => narrow(&usage),
                "embed_avg" => narrow(&sum),
                _ => vec![1.0],
            };
            named.push(Named { name: name(part), shape, values });
        }
    }
    Ok(Converted {
        config: config.published()?,
        preprocessor: json!({
            "feature_extractor_type": "EncodecFeatureExtractor",
            "feature_size": config.audio_channels,
            "chunk_length_s": config.chunk_length_s,
            "overlap": config.overlap,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": true,
            "sampling_rate": config.sampling_rate,
        }),
        tensors: named,
    })
}

/// The layers, their weights as the file has them, and its codebooks.
#[allow(clippy::type_complexity)]
fn find(
    file: &weights::Weights,
    naming: Naming,
    config: &Config,
    device: &Device,
) -> Result<(Model, (Weights, Vec<TensorSpec>), Vec<TensorSpec>)> {
    let model = encodec::model(config)?;
    let published = |name: &str| {
        let name = naming.published(name);
        let transposed = name.replacen(".conv.", ".convtr.", 1);
        // A transposed convolution is called so twice, its norm once.
        let name_of_transposed = transposed.replace(".convtr.conv.", ".convtr.convtr.");
        let stem = |name: &str| name.rsplit_once('.').map_or_else(String::new, |(stem, _)| format!("{stem}."));
        let there = |name: &str| file.names().any(|n| n.starts_with(&stem(name)));
        if naming == Naming::Original && !there(&name) && there(&name_of_transposed) { name_of_transposed } else { name }
    };
    let codebook = |k: usize| naming.published(&format!("quantizer.layers.{k}.codebook.embed"));
    let (size, dim) = (config.codebook_size, config.hidden_size);
    let codebooks: Vec<TensorSpec> =
        (0..model.format.codebook_sizes.len()).map(|k| TensorSpec::new(codebook(k), Layout::Plain, [size, dim])).collect();
    // Moving averages of the training, which ended with `embed`.
    let buffers = codebooks.iter().flat_map(|spec| buffers(size, dim).map(|(part, shape)| (beside(spec, part), shape)));
    let found = codebooks.iter().map(|spec| (spec.name.clone(), spec.published.clone()));
    let found = found.chain(buffers.filter(|(name, _)| file.contains(name)));
    let tensors = as_they_are(file, &model.tensors(true), published, found, device)?;
    Ok((model, tensors, codebooks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_those_of_the_original() {
        for (ours, theirs) in [
            ("encoder.layers.0.conv.weight", "encoder.model.0.conv.conv.weight"),
            ("encoder.layers.1.block.3.norm.bias", "encoder.model.1.block.3.conv.norm.bias"),
            ("decoder.layers.4.shortcut.conv.weight", "decoder.model.4.shortcut.conv.conv.weight"),
            ("encoder.layers.13.lstm.weight_hh_l1", "encoder.model.13.lstm.weight_hh_l1"),
            ("quantizer.layers.31.codebook.embed", "quantizer.vq.layers.31._codebook.embed"),
        ] {
            assert_eq!(original(ours), theirs);
        }
    }
}
