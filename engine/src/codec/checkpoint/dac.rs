//! Published DAC checkpoints: the names and the configuration of `transformers`, and those of `descript-audio-codec`.

use serde::{Deserialize, Serialize};
use serde_json::json;
use swara_kernels::Device;
use swara_loader::weights;

use super::convert::{Converted, in_order};
use super::named;
use crate::codec::model::{Model, TensorSpec};
use crate::codec::quantizer::parameter_tensors;
use crate::codec::{Config, QuantizerKind};
use crate::weights::Weights;
use crate::{Error, Result};

/// Whose names a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    HuggingFace,
    Descript,
}

impl Naming {
    /// None if this is no DAC.
    pub fn of(file: &weights::Weights) -> Option<Naming> {
        let marks = [(Naming::HuggingFace, "encoder.conv1.bias"), (Naming::Descript, "encoder.block.0.bias")];
        let codebook = file.contains("quantizer.quantizers.0.codebook.weight");
        marks.into_iter().find_map(|(naming, mark)| (codebook && file.contains(mark)).then_some(naming))
    }

    fn published(self, name: &str, blocks: usize) -> String {
        match self {
            Naming::HuggingFace => name.to_owned(),
            Naming::Descript => descript(name, blocks),
        }
    }
}

/// What `descript-audio-codec` calls a tensor of a codec with so many blocks that `transformers` calls `name`.
fn descript(name: &str, blocks: usize) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    // Positions in a list of layers.
    let unit = |layer: &str| ["snake1", "conv1", "snake2", "conv2"].iter().position(|part| *part == layer).unwrap_or(0);
    let (side, list) = match parts[0] {
        "encoder" => ("encoder", "block"),
        "decoder" => ("decoder", "model"),
        _ => return name.to_owned(),
    };
    let within = match parts[1..] {
        ["conv1", part] => format!("0.{part}"),
        ["snake1", part] => format!("{}.{part}", blocks + 1),
        ["conv2", part] => format!("{}.{part}", blocks + 2),
        ["block", block, ref layer @ ..] => {
            let block = block.parse::<usize>().map_or(0, |block| block + 1);
            let decodes = side == "decoder";
            match *layer {
                [at, layer, part] => {
                    let at = at.trim_start_matches("res_unit").parse().unwrap_or(1) - 1 + 2 * usize::from(decodes);
                    format!("{block}.block.{at}.block.{}.{part}", unit(layer))
                }
                [layer, part] => {
                    let at = usize::from(layer != "snake1") + 3 * usize::from(!decodes);
                    format!("{block}.block.{at}.{part}")
                }
                _ => return name.to_owned(),
            }
        }
        _ => return name.to_owned(),
    };
    format!("{side}.{list}.{within}")
}

/// The numbers of a published DAC, by the keys of `config.json` in `transformers` or of the original's `kwargs`. What a file leaves out
/// is as published; what it has beyond these is of no consequence here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Published {
    #[serde(alias = "sample_rate")]
    sampling_rate: u32,
    #[serde(alias = "encoder_dim", default = "encoder_width")]
    encoder_hidden_size: usize,
    #[serde(alias = "encoder_rates", default = "strides")]
    downsampling_ratios: Vec<usize>,
    #[serde(alias = "decoder_dim", default = "decoder_width")]
    decoder_hidden_size: usize,
    #[serde(alias = "decoder_rates")]
    upsampling_ratios: Option<Vec<usize>>,
    #[serde(alias = "latent_dim")]
    hidden_size: Option<usize>,
    #[serde(default = "codebooks")]
    n_codebooks: usize,
    #[serde(default = "codewords")]
    codebook_size: usize,
    #[serde(default = "codebook_dim")]
    codebook_dim: usize,
}

fn encoder_width() -> usize {
    64
}

fn strides() -> Vec<usize> {
    vec![2, 4, 8, 8]
}

fn decoder_width() -> usize {
    1536
}

fn codebooks() -> usize {
    9
}

fn codewords() -> usize {
    1024
}

fn codebook_dim() -> usize {
    8
}

/// The configuration in the form of our own.
pub fn config(json: &str) -> Result<Config> {
    let published: Published = serde_json::from_str(json).map_err(|e| Error::Config(e.to_string()))?;
    published.check()?;
    let p = &published;
    let blocks = p.downsampling_ratios.len();
    let encoder_widths: Vec<usize> = (0..=blocks).map(|i| p.encoder_hidden_size << i).collect();
    let config = Config {
        sample_rate: p.sampling_rate,
        latent: p.hidden_size.unwrap_or(encoder_widths[blocks]),
        decoder_widths: (0..=blocks).map(|i| p.decoder_hidden_size >> i).collect(),
        encoder_widths,
        strides: p.downsampling_ratios.clone(),
        dilations: vec![1, 3, 9],
        causal: false,
        quantizer: QuantizerKind::Factorised,
        codebook_dim: p.codebook_dim,
        codebook_sizes: vec![p.codebook_size; p.n_codebooks],
        transformer: None,
        prosody: None,
    };
    config.check()?;
    Ok(config)
}

impl Published {
    /// What has no place in our own configuration, and what must hold before widths are doubled.
    fn check(&self) -> Result<()> {
        let fail = |what: String| Err(Error::Config(what));
        let reversed: Vec<usize> = self.downsampling_ratios.iter().rev().copied().collect();
        if let Some(up) = self.upsampling_ratios.as_ref().filter(|up| **up != reversed) {
            return fail(format!("upsampling_ratios are {up:?}, expected downsampling_ratios in reverse: {reversed:?}"));
        }
        if self.downsampling_ratios.len() > 8 {
            return fail(format!("downsampling_ratios must be 1 to 8 numbers: {:?}", self.downsampling_ratios));
        }
        for (key, width) in [("encoder_hidden_size", self.encoder_hidden_size), ("decoder_hidden_size", self.decoder_hidden_size)] {
            if !(1..=8192).contains(&width) {
                return fail(format!("{key} is {width}, expected 1 to 8192"));
            }
        }
        match self.n_codebooks {
            1..=Config::MAX_CODEBOOKS => Ok(()),
            n => fail(format!("n_codebooks is {n}, expected 1 to {}", Config::MAX_CODEBOOKS)),
        }
    }
}

fn specs(config: &Config) -> Vec<TensorSpec> {
    let mut specs = Model::new(config).tensors(true);
    specs.extend(parameter_tensors(config, true));
    specs
}

/// Reads the tensors into the names of `transformers`, which are ours.
pub fn load(file: &weights::Weights, naming: Naming, config: &Config, device: &Device) -> Result<Weights> {
    named(file, &specs(config), |name| naming.published(name, config.strides.len()), [], device)
}

/// A DAC in the names of `transformers`.
pub fn convert(file: &weights::Weights, naming: Naming, shape: &Config) -> Result<Converted> {
    if shape.prosody.is_some() {
        let why = "its decoder is modulated by prosody, which no model of transformers is".to_owned();
        return Err(Error::File { path: file.path().to_owned(), why });
    }
    let published = Published {
        sampling_rate: shape.sample_rate,
        encoder_hidden_size: shape.encoder_widths[0],
        downsampling_ratios: shape.strides.clone(),
        decoder_hidden_size: shape.decoder_widths[0],
        upsampling_ratios: Some(shape.strides.iter().rev().copied().collect()),
        hidden_size: Some(shape.latent),
        n_codebooks: shape.codebook_sizes.len(),
        codebook_size: shape.codebook_sizes[0],
        codebook_dim: shape.codebook_dim,
    };
    let invalid = |e: serde_json::Error| Error::Config(e.to_string());
    let mut json = serde_json::to_value(published).map_err(invalid)?;
    if config(&json.to_string()).ok().as_ref() != Some(shape) {
        let why = "transformers has DAC alone of such codecs: not causal, factorised codes, widths that double, codebooks of one size";
        return Err(Error::File { path: file.path().to_owned(), why: why.to_owned() });
    }
    json["architectures"] = json!(["DacModel"]);
    json["model_type"] = json!("dac");
    json["hop_length"] = json!(shape.hop());
    let tensors = load(file, naming, shape, &Device::Cpu)?;
    Ok(Converted {
        config: json,
        preprocessor: json!({
            "feature_extractor_type": "DacFeatureExtractor",
            "feature_size": 1,
            "hop_length": shape.hop(),
            "padding_side": "right",
            "padding_value": 0.0,
            "sampling_rate": shape.sample_rate,
        }),
        tensors: specs(shape).iter().map(|spec| in_order(spec, spec.name.clone(), &tensors)).collect::<Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_those_of_the_original() {
        for (ours, theirs) in [
            ("encoder.conv1.weight", "encoder.block.0.weight"),
            ("encoder.block.0.res_unit1.snake1.alpha", "encoder.block.1.block.0.block.0.alpha"),
            ("encoder.block.3.res_unit3.conv2.bias", "encoder.block.4.block.2.block.3.bias"),
            ("encoder.block.1.snake1.alpha", "encoder.block.2.block.3.alpha"),
            ("encoder.block.1.conv1.weight", "encoder.block.2.block.4.weight"),
            ("encoder.snake1.alpha", "encoder.block.5.alpha"),
            ("encoder.conv2.bias", "encoder.block.6.bias"),
            ("decoder.conv1.weight", "decoder.model.0.weight"),
            ("decoder.block.0.snake1.alpha", "decoder.model.1.block.0.alpha"),
            ("decoder.block.2.conv_t1.weight", "decoder.model.3.block.1.weight"),
            ("decoder.block.2.res_unit1.conv1.bias", "decoder.model.3.block.2.block.1.bias"),
            ("decoder.block.3.res_unit3.snake2.alpha", "decoder.model.4.block.4.block.2.alpha"),
            ("decoder.snake1.alpha", "decoder.model.5.alpha"),
            ("decoder.conv2.bias", "decoder.model.6.bias"),
            ("quantizer.quantizers.3.in_proj.weight", "quantizer.quantizers.3.in_proj.weight"),
        ] {
            assert_eq!(descript(ours, 4), theirs);
        }
    }

    #[test]
    fn both_kinds_of_configuration_are_read() {
        let theirs = config(r#"{"sampling_rate":44100,"model_type":"dac","hidden_size":1024,"upsampling_ratios":[8,8,4,2]}"#).unwrap();
        assert_eq!(theirs.encoder_widths, [64, 128, 256, 512, 1024]);
        assert_eq!(theirs.decoder_widths, [1536, 768, 384, 192, 96]);
        let original = config(r#"{"encoder_dim":64,"encoder_rates":[2,4,8,8],"latent_dim":null,"sample_rate":44100}"#).unwrap();
        assert_eq!(original, theirs);
        let narrow = config(r#"{"sample_rate":44100,"latent_dim":128}"#).unwrap();
        assert_eq!((narrow.latent, narrow.hop(), narrow.codebook_sizes.len()), (128, 512, 9));
    }

    #[test]
    fn configurations_that_are_no_dac_are_refused() {
        for (json, why) in [
            (r#"{}"#, "sampling_rate"),
            (r#"{"sampling_rate":16000,"upsampling_ratios":[2,4,8,8]}"#, "in reverse"),
            (r#"{"sampling_rate":16000,"encoder_hidden_size":18446744073709551615}"#, "encoder_hidden_size"),
            (r#"{"sampling_rate":16000,"downsampling_ratios":[]}"#, "strides"),
            (r#"{"sampling_rate":16000,"downsampling_ratios":[2,2,2,2,2,2,2,2,2]}"#, "downsampling_ratios"),
            (r#"{"sampling_rate":16000,"decoder_hidden_size":8}"#, "decoder_widths"),
            (r#"{"sampling_rate":16000,"n_codebooks":1000000000000}"#, "n_codebooks"),
            (r#"{"sampling_rate":16000,"codebook_size":1}"#, "codebook_sizes"),
        ] {
            let error = config(json).unwrap_err().to_string();
            assert!(error.contains(why), "{json}: {error}");
        }
    }
}
