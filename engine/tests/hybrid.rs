//! A codec of convolutions and transformers, random weights: from its file, over streams, on either device.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use swara_engine::codec::model::Model;
use swara_engine::codec::quantizer::parameter_tensors;
use swara_engine::codec::{Codec, Config, METADATA_CONFIG, QuantizerKind, TransformerConfig};
use swara_kernels::case::SplitMix;
use swara_kernels::{DType, Device};
use swara_loader::weights::{TensorRef, save};

fn config() -> Config {
    Config {
        sample_rate: 8000,
        encoder_widths: vec![4, 6, 8],
        decoder_widths: vec![8, 6, 4],
        strides: vec![2, 4],
        dilations: vec![1, 3],
        latent: 16,
        causal: true,
        quantizer: QuantizerKind::Ema,
        codebook_dim: 4,
        codebook_sizes: vec![16, 8],
        transformer: Some(TransformerConfig { layers: 2, heads: 2, hidden: 24, window: 5 }),
        prosody: None,
    }
}

fn write(path: &Path, config: &Config) {
    let mut rng = SplitMix(11);
    let specs = Model::new(config).tensors(true).into_iter().chain(parameter_tensors(config, true));
    let mut tensors: Vec<(String, Vec<usize>)> = specs.map(|spec| (spec.name, spec.published)).collect();
    for (k, &size) in config.codebook_sizes.iter().enumerate() {
        tensors.push((format!("quantizer.layers.{k}.codebook.embedding"), vec![size, config.codebook_dim]));
    }
    let values = |(name, shape): (String, Vec<usize>)| {
        let inputs: usize = shape[1..].iter().product();
        let scale = if name.contains("norm") || name.contains("alpha") { 1.0 } else { 1.0 / (inputs as f32).sqrt() };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| scale * (rng.uniform() as f32 * 2.0 - 1.0)).collect();
        (name, shape, values)
    };
    let tensors: Vec<_> = tensors.into_iter().map(values).collect();
    let refs: Vec<TensorRef> = tensors.iter().map(|(name, shape, values)| TensorRef::f32(name, shape, values)).collect();
    let config = serde_json::to_string(config).unwrap();
    save(path, &refs, &BTreeMap::from([(METADATA_CONFIG.to_owned(), config)])).unwrap();
}

#[test]
fn streams_equal_whole_signals_past_the_window() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hybrid.safetensors");
    write(&path, &config());
    for device in [Device::Cpu, Device::open("emulator").unwrap()] {
        let codec = Codec::open(&path, &device, DType::F32).unwrap();
        assert_eq!(codec.layers().filter(|layer| layer.name().contains("transformer")).count(), 4);
        assert_eq!(common::streaming_error(&codec, 23), 0.0, "on {device:?}");
    }
}

#[test]
fn both_devices_agree() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hybrid.safetensors");
    write(&path, &config());
    let mut rng = SplitMix(3);
    let samples: Vec<f32> = (0..20 * 8).map(|_| rng.uniform() as f32 - 0.5).collect();
    let [cpu, gpu] = [Device::Cpu, Device::open("emulator").unwrap()].map(|device| Codec::open(&path, &device, DType::F32).unwrap());
    let codes = cpu.encode(&samples, 2).unwrap();
    assert_eq!(gpu.encode(&samples, 2).unwrap(), codes);
    let waves = [&cpu, &gpu].map(|codec| codec.decode(&codes).unwrap());
    let worst = waves[0].iter().zip(&waves[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-5, "waves differ by {worst}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let with = |change: fn(&mut TransformerConfig)| {
        let mut config = config();
        config.transformer.as_mut().map(change);
        config
    };
    let refused = |config: &Config, why: &str| {
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    refused(&with(|t| t.heads = 3), "heads of an even size");
    refused(&with(|t| t.heads = 16), "heads of an even size");
    refused(&with(|t| t.layers = 0), "transformer.layers");
    refused(&with(|t| t.window = usize::MAX), "transformer.window");
    refused(&with(|t| t.hidden = 1 << 30), "transformer.hidden");
    refused(&Config { causal: false, ..config() }, "not causal");
    assert_eq!(Config::preset("hybrid12").unwrap().hop(), 1920);
}
