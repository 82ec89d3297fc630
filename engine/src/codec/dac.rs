//! The layers of a DAC-style codec, in the names of `transformers`; transformers beside the quantiser are called as in Mimi.

use swara_kernels::ops::rope::Style;
use swara_kernels::ops::{conv_transpose1d, conv1d};

use super::model::{Activation, Conv, Film, Layer, Model, Upsample};
use super::{Config, Format, ProsodyConfig};
use crate::transformer::{Block, FeedForward, Norm, Rotary};

pub fn model(config: &Config) -> Model {
    let b = Builder { causal: config.causal };
    let blocks = config.strides.len();
    let (enc, dec) = (&config.encoder_widths, &config.decoder_widths);

    let mut encoder = vec![Layer::Conv(b.conv("encoder.conv1", Activation::None, 1, enc[0], 7, 1))];
    for (i, &stride) in config.strides.iter().enumerate() {
        let block = format!("encoder.block.{i}");
        encoder.extend(b.residual_units(&block, enc[i], &config.dilations));
        encoder.push(Layer::Conv(b.strided(&block, enc[i], enc[i + 1], stride)));
    }
    encoder.push(Layer::Conv(b.conv("encoder.conv2", snake("encoder.snake1"), enc[blocks], config.latent, 3, 1)));
    encoder.extend(transformer(config, "encoder_transformer"));

    let mut decoder: Vec<Layer> = config.prosody.iter().map(|p| Layer::Film(Box::new(prosody(p, config.latent)))).collect();
    decoder.extend(transformer(config, "decoder_transformer"));
    decoder.push(Layer::Conv(b.conv("decoder.conv1", Activation::None, config.latent, dec[0], 7, 1)));
    for (i, &stride) in config.strides.iter().rev().enumerate() {
        let block = format!("decoder.block.{i}");
        decoder.push(Layer::Upsample(b.upsample(&block, dec[i], dec[i + 1], stride)));
        decoder.extend(b.residual_units(&block, dec[i + 1], &config.dilations));
    }
    let last = b.conv("decoder.conv2", snake("decoder.snake1"), dec[blocks], 1, 7, 1);
    decoder.push(Layer::Conv(Conv { tanh: true, ..last }));
    Model { format: format(config), encoder, decoder }
}

fn format(config: &Config) -> Format {
    Format {
        sample_rate: config.sample_rate,
        channels: 1,
        hop: config.hop(),
        pad_to: config.hop(),
        chunks: None,
        latent: config.latent,
        codebook_sizes: config.codebook_sizes.clone(),
        codes_per_frame: vec![1; config.codebook_sizes.len()],
        causal: config.causal,
    }
}

/// What names of a [`ProsodyConfig`]'s tensors begin with.
pub const PROSODY: &str = "decoder.prosody.";
/// What is predicted of a frame: the logarithm of its pitch, that of its level, and logits of being voiceless and voiced.
pub const FEATURES: usize = 4;

/// Causal whatever the codec is.
fn prosody(config: &ProsodyConfig, latent: usize) -> Film {
    let conv = |name: &str, activation, [cin, cout]: [usize; 2], taps, dilation| {
        Conv::new(format!("{PROSODY}{name}"), activation, [cin, cout], taps, conv1d::Geometry::causal(taps, 1, dilation))
    };
    let width = config.width;
    let stack = |name: &str, cin: usize| -> Vec<Layer> {
        let unit = |n: usize| {
            let first = conv(&format!("{name}.units.{n}.conv1"), Activation::Elu, [width; 2], 3, 2 << n);
            Layer::Residual(first, conv(&format!("{name}.units.{n}.conv2"), Activation::Elu, [width; 2], 1, 1))
        };
        let first = Layer::Conv(conv(&format!("{name}.conv"), Activation::None, [cin, width], 3, 1));
        std::iter::once(first).chain((0..config.units).map(unit)).collect()
    };
    let mut predict = stack("predict", latent);
    predict.push(Layer::Conv(conv("predict.features", Activation::Elu, [width, FEATURES], 1, 1)));
    let modulate = |name: &str| conv(name, Activation::Elu, [width, latent], 1, 1);
    let name = PROSODY.strip_suffix('.').unwrap_or(PROSODY).to_owned();
    Film { name, predict, encode: stack("encode", FEATURES), gamma: modulate("gamma"), beta: modulate("beta") }
}

fn transformer(config: &Config, name: &str) -> Vec<Layer> {
    let Some(t) = &config.transformer else { return Vec::new() };
    let block = |n: usize| {
        Layer::Block(Block {
            name: format!("{name}.layers.{n}"),
            width: config.latent,
            heads: t.heads,
            kv_heads: t.heads,
            head_dim: config.latent / t.heads,
            hidden: t.hidden,
            window: Some(t.window),
            rotary: Some(Rotary::new(10_000.0, Style::Interleaved)),
            norm: Norm::Layer,
            epsilon: 1e-5,
            feed_forward: FeedForward::Gelu,
            scaled: true,
            crossed: false,
        })
    };
    (0..t.layers).map(block).collect()
}

fn snake(name: &str) -> Activation {
    Activation::Snake(name.to_owned())
}

struct Builder {
    causal: bool,
}

impl Builder {
    fn conv(&self, name: &str, activation: Activation, cin: usize, cout: usize, taps: usize, dilation: usize) -> Conv {
        let each = (taps - 1) * dilation / 2;
        let geometry = match self.causal {
            true => conv1d::Geometry::causal(taps, 1, dilation),
            false => conv1d::Geometry { dilation, pad_left: each, pad_right: each, ..Default::default() },
        };
        Conv::new(name.to_owned(), activation, [cin, cout], taps, geometry)
    }

    fn strided(&self, block: &str, cin: usize, cout: usize, stride: usize) -> Conv {
        let (taps, each) = (2 * stride, stride.div_ceil(2));
        let geometry = match self.causal {
            true => conv1d::Geometry::causal(taps, stride, 1),
            false => conv1d::Geometry { stride, pad_left: each, pad_right: each, ..Default::default() },
        };
        Conv::new(format!("{block}.conv1"), snake(&format!("{block}.snake1")), [cin, cout], taps, geometry)
    }

    fn upsample(&self, block: &str, cin: usize, cout: usize, stride: usize) -> Upsample {
        let taps = 2 * stride;
        let geometry = match self.causal {
            true => conv_transpose1d::Geometry::causal(taps, stride),
            false => conv_transpose1d::Geometry::padded(stride, stride.div_ceil(2), 0),
        };
        let (name, activation) = (format!("{block}.conv_t1"), snake(&format!("{block}.snake1")));
        Upsample { name, activation, cin, cout, taps, geometry, bias: true, norm: None }
    }

    fn residual_units(&self, block: &str, width: usize, dilations: &[usize]) -> Vec<Layer> {
        let unit = |(n, &dilation): (usize, &usize)| {
            let unit = format!("{block}.res_unit{}", n + 1);
            let first = self.conv(&format!("{unit}.conv1"), snake(&format!("{unit}.snake1")), width, width, 7, dilation);
            Layer::Residual(first, self.conv(&format!("{unit}.conv2"), snake(&format!("{unit}.snake2")), width, width, 1, 1))
        };
        dilations.iter().enumerate().map(unit).collect()
    }
}
