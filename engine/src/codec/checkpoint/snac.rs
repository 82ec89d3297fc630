//! Published SNAC checkpoints: the names of the `snac` package.

use swara_kernels::Device;
use swara_loader::weights;

use super::{as_they_are, dac, fold};
use crate::Result;
use crate::codec::model::{Layer, Model, TensorSpec, Windowed};
use crate::codec::quantizer::{Quantizer, factorised_tensors};
use crate::codec::snac::{self, Config};
use crate::weights::Weights;

/// Whether its names are those of a SNAC: DAC's original ones, without the Snake before the encoder's last convolution.
pub fn recognises(file: &weights::Weights) -> bool {
    let snake = |name: &str| name.strip_prefix("encoder.block.")?.strip_suffix(".alpha")?.parse::<usize>().ok();
    dac::Naming::of(file) == Some(dac::Naming::Descript) && file.names().find_map(snake).is_none()
}

pub fn load(file: &weights::Weights, config: &Config, device: &Device) -> Result<(Model, Weights, Quantizer)> {
    let (model, (tensors, specs)) = to_train(file, config, device)?;
    let weights = fold(&specs, tensors)?;
    let quantizer = Quantizer::levels(&weights, &config.vq_strides)?;
    Ok((model, weights, quantizer))
}

/// Name and shape of the frequencies of a layer's positions, which are not learnt.
pub fn frequencies(layer: &Windowed) -> (String, Vec<usize>) {
    (format!("{}.rel_pos.inv_freq", layer.name), vec![layer.head_dim / 2])
}

/// The layers, and their weights, weight-normed where the file has them so.
pub fn to_train(file: &weights::Weights, config: &Config, device: &Device) -> Result<(Model, (Weights, Vec<TensorSpec>))> {
    let model = snac::model(config)?;
    let mut specs = model.tensors(true);
    specs.extend(factorised_tensors(model.format.latent, config.codebook_dim, &model.format.codebook_sizes, true));
    let buffer = |layer: &Layer| if let Layer::Windowed(windowed) = layer { Some(frequencies(windowed)) } else { None };
    let buffers: Vec<_> = model.layers().filter_map(buffer).collect();
    let tensors = as_they_are(file, &specs, str::to_owned, buffers, device)?;
    Ok((model, tensors))
}
