//! Published SNAC checkpoints: the names of the `snac` package.

use swara_kernels::Device;
use swara_loader::weights;

use super::{dac, named};
use crate::Result;
use crate::codec::model::{Layer, Model};
use crate::codec::quantizer::{Quantizer, factorised_tensors};
use crate::codec::snac::{self, Config};
use crate::weights::Weights;

/// Whether its names are those of a SNAC: DAC's original ones, without the Snake before the encoder's last convolution.
pub fn recognises(file: &weights::Weights) -> bool {
    let snake = |name: &str| name.strip_prefix("encoder.block.")?.strip_suffix(".alpha")?.parse::<usize>().ok();
    dac::Naming::of(file) == Some(dac::Naming::Descript) && file.names().find_map(snake).is_none()
}

pub fn load(file: &weights::Weights, config: &Config, device: &Device) -> Result<(Model, Weights, Quantizer)> {
    let model = snac::model(config)?;
    let mut specs = model.tensors(true);
    specs.extend(factorised_tensors(model.format.latent, config.codebook_dim, &model.format.codebook_sizes, true));
    // Frequencies, which are not learnt.
    let buffer = |layer: &Layer| match layer {
        Layer::Windowed(w) => Some((format!("{}.rel_pos.inv_freq", w.name), vec![w.head_dim / 2])),
        _ => None,
    };
    let buffers: Vec<_> = model.layers().filter_map(buffer).collect();
    let weights = named(file, &specs, str::to_owned, buffers, device)?;
    let quantizer = Quantizer::levels(&weights, &config.vq_strides)?;
    Ok((model, weights, quantizer))
}
