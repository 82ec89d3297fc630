//! Mimi (Défossez et al. 2024, section 3.3): SEANet with a transformer on either side of a split quantiser, all of it causal.

use serde::{Deserialize, Serialize};
use swara_kernels::ops::rope::Style;
use swara_kernels::ops::{conv_transpose1d, conv1d};

use super::Format;
use super::config::check_frame;
use super::model::{Activation, Before, Conv, Layer, Model, Upsample};
use super::seanet::Seanet;
use crate::config::check_ranges;
use crate::transformer::{Block, FeedForward, Norm, Rotary};
use crate::{Error, Result};

/// The numbers of a Mimi, by the keys of `config.json` in `transformers`. What a file leaves out is as published; what it has
/// beyond these is of no consequence here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    pub sampling_rate: u32,
    /// Without one, or null, the ratios say it.
    pub frame_rate: Option<f64>,
    /// As transformers writes it since 4.57.
    #[serde(rename = "_frame_rate")]
    pub frame_rate_since: Option<f64>,
    pub audio_channels: usize,
    pub hidden_size: usize,
    pub num_filters: usize,
    pub num_residual_layers: usize,
    /// Coarsest first, as the decoder has them.
    pub upsampling_ratios: Vec<usize>,
    pub kernel_size: usize,
    pub last_kernel_size: usize,
    pub residual_kernel_size: usize,
    pub dilation_growth_rate: usize,
    pub use_causal_conv: bool,
    pub pad_mode: String,
    pub compress: usize,
    pub use_conv_shortcut: bool,
    pub codebook_size: usize,
    pub codebook_dim: usize,
    pub num_quantizers: usize,
    pub num_semantic_quantizers: usize,
    pub num_hidden_layers: usize,
    pub intermediate_size: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub hidden_act: String,
    pub norm_eps: f64,
    pub rope_theta: f64,
    pub sliding_window: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            sampling_rate: 24000,
            frame_rate: None,
            frame_rate_since: None,
            audio_channels: 1,
            hidden_size: 512,
            num_filters: 64,
            num_residual_layers: 1,
            upsampling_ratios: vec![8, 6, 5, 4],
            kernel_size: 7,
            last_kernel_size: 3,
            residual_kernel_size: 3,
            dilation_growth_rate: 2,
            use_causal_conv: true,
            pad_mode: "constant".into(),
            compress: 2,
            use_conv_shortcut: false,
            codebook_size: 2048,
            codebook_dim: 256,
            num_quantizers: 32,
            num_semantic_quantizers: 1,
            num_hidden_layers: 8,
            intermediate_size: 2048,
            num_attention_heads: 8,
            num_key_value_heads: 8,
            hidden_act: "gelu".into(),
            norm_eps: 1e-5,
            rope_theta: 10000.0,
            sliding_window: 250,
        }
    }
}

impl Config {
    pub fn from_json(text: &str) -> Result<Config> {
        let config: Config = serde_json::from_str(text).map_err(|e| Error::Config(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    fn seanet(&self) -> Seanet<'_> {
        Seanet {
            num_filters: self.num_filters,
            num_residual_layers: self.num_residual_layers,
            kernel_size: self.kernel_size,
            last_kernel_size: self.last_kernel_size,
            residual_kernel_size: self.residual_kernel_size,
            dilation_growth_rate: self.dilation_growth_rate,
            compress: self.compress,
            upsampling_ratios: &self.upsampling_ratios,
        }
    }

    /// Refuses what is not a Mimi, and shapes that no file should be able to ask for.
    pub fn check(&self) -> Result<()> {
        let fail = |what: String| Err(Error::Config(what));
        let only = |key, found: &dyn std::fmt::Debug, expected: &str| fail(format!("{key} is {found:?}, expected {expected}"));
        match self {
            c if c.audio_channels != 1 => return only("audio_channels", &c.audio_channels, "1"),
            c if !c.use_causal_conv => return only("use_causal_conv", &c.use_causal_conv, "true"),
            c if c.use_conv_shortcut => return only("use_conv_shortcut", &c.use_conv_shortcut, "false"),
            c if c.pad_mode != "constant" => return only("pad_mode", &c.pad_mode, "\"constant\""),
            c if c.hidden_act != "gelu" => return only("hidden_act", &c.hidden_act, "\"gelu\""),
            c if c.num_semantic_quantizers != 1 => return only("num_semantic_quantizers", &c.num_semantic_quantizers, "1"),
            _ => {}
        }
        let ranges = [
            ("sampling_rate", self.sampling_rate as usize, 1000, 192_000),
            ("hidden_size", self.hidden_size, 1, 8192),
            ("codebook_size", self.codebook_size, 2, 1 << 16),
            ("codebook_dim", self.codebook_dim, 1, 4096),
            ("num_quantizers", self.num_quantizers, 2, super::Config::MAX_CODEBOOKS),
            ("num_hidden_layers", self.num_hidden_layers, 0, 128),
            ("intermediate_size", self.intermediate_size, 1, 1 << 16),
            ("num_attention_heads", self.num_attention_heads, 1, 256),
            ("num_key_value_heads", self.num_key_value_heads, 1, 256),
            ("sliding_window", self.sliding_window, 1, 1 << 16),
        ];
        check_ranges(&ranges)?;
        self.seanet().check()?;
        let heads = self.num_attention_heads;
        if !self.hidden_size.is_multiple_of(2 * heads) || !heads.is_multiple_of(self.num_key_value_heads) {
            return fail(format!(
                "hidden_size {}, {heads} heads and {} key-value heads do not divide each other",
                self.hidden_size, self.num_key_value_heads
            ));
        }
        let (eps, theta) = (self.norm_eps, self.rope_theta);
        if !(eps > 0.0 && eps < 1.0 && theta > 1.0 && theta < 1e12) {
            return fail(format!("norm_eps {} or rope_theta {} out of range", self.norm_eps, self.rope_theta));
        }
        let stride = self.downsampling()?;
        check_frame(self.seanet().largest(stride).max(self.hidden_size))
    }

    /// Stride between the transformers and the quantiser.
    fn downsampling(&self) -> Result<usize> {
        let latents = self.upsampling_ratios.iter().fold(self.sampling_rate as f64, |rate, &ratio| rate / ratio as f64);
        let frame_rate = self.frame_rate.or(self.frame_rate_since).unwrap_or(latents / 2.0);
        let stride = latents / frame_rate;
        match stride.round() {
            whole if (1.0..=64.0).contains(&whole) && (stride - whole).abs() < 1e-6 => Ok(whole as usize),
            _ => Err(Error::Config(format!("frame_rate {frame_rate} does not divide the {latents} latents a second"))),
        }
    }

    /// Codebooks beyond the semantic one.
    pub fn acoustic(&self) -> usize {
        self.num_quantizers - self.num_semantic_quantizers
    }
}

/// The layers, in the names of `moshi` (kyutai's own).
pub fn model(config: &Config) -> Result<Model> {
    config.check()?;
    let stride = config.downsampling()?;
    let b = Builder { config };
    let mut encoder = b.encoder();
    encoder.extend(b.transformer("encoder_transformer"));
    encoder.push(b.downsample(stride));
    let mut decoder = vec![b.upsample_latents(stride)];
    decoder.extend(b.transformer("decoder_transformer"));
    decoder.extend(b.decoder());
    let hop = config.upsampling_ratios.iter().product::<usize>() * stride;
    let format = Format {
        sample_rate: config.sampling_rate,
        channels: 1,
        hop,
        pad_to: hop,
        chunks: None,
        latent: config.hidden_size,
        codebook_sizes: vec![config.codebook_size; config.num_quantizers],
        codes_per_frame: vec![1; config.num_quantizers],
        causal: true,
    };
    Ok(Model { format, encoder, decoder })
}

struct Builder<'a> {
    config: &'a Config,
}

impl Builder<'_> {
    fn conv(&self, name: String, activation: Activation, cin: usize, cout: usize, geometry: conv1d::Geometry, taps: usize) -> Conv {
        Conv::new(name, activation, [cin, cout], taps, geometry)
    }

    /// Positions in SEANet's list, where activations have one of their own.
    fn encoder(&self) -> Vec<Layer> {
        let c = self.config;
        let name = |at: usize| format!("encoder.model.{at}.conv.conv");
        let plain = |taps| conv1d::Geometry::causal(taps, 1, 1);
        let mut layers = vec![Layer::Conv(self.conv(name(0), Activation::None, 1, c.num_filters, plain(c.kernel_size), c.kernel_size))];
        let mut at = 1;
        for (i, &ratio) in c.upsampling_ratios.iter().rev().enumerate() {
            let width = c.seanet().width(i);
            layers.extend(self.residual_units("encoder", at, width));
            at += c.num_residual_layers + 1;
            let geometry = conv1d::Geometry::causal(2 * ratio, ratio, 1);
            layers.push(Layer::Conv(self.conv(name(at), Activation::Elu, width, c.seanet().width(i + 1), geometry, 2 * ratio)));
            at += 1;
        }
        let (width, taps) = (c.seanet().width(c.upsampling_ratios.len()), c.last_kernel_size);
        layers.push(Layer::Conv(self.conv(name(at + 1), Activation::Elu, width, c.hidden_size, plain(taps), taps)));
        layers
    }

    fn decoder(&self) -> Vec<Layer> {
        let c = self.config;
        let name = |at: usize| format!("decoder.model.{at}.conv.conv");
        let plain = |taps| conv1d::Geometry::causal(taps, 1, 1);
        let (blocks, taps) = (c.upsampling_ratios.len(), c.kernel_size);
        let mut layers =
            vec![Layer::Conv(self.conv(name(0), Activation::None, c.hidden_size, c.seanet().width(blocks), plain(taps), taps))];
        let mut at = 1;
        for (i, &ratio) in c.upsampling_ratios.iter().enumerate() {
            let (cin, cout) = (c.seanet().width(blocks - i), c.seanet().width(blocks - i - 1));
            layers.push(Layer::Upsample(Upsample {
                name: format!("decoder.model.{}.convtr.convtr", at + 1),
                activation: Activation::Elu,
                cin,
                cout,
                taps: 2 * ratio,
                geometry: conv_transpose1d::Geometry::causal(2 * ratio, ratio),
                bias: true,
                norm: None,
            }));
            layers.extend(self.residual_units("decoder", at + 2, cout));
            at += 2 + c.num_residual_layers;
        }
        let taps = c.last_kernel_size;
        layers.push(Layer::Conv(self.conv(name(at + 1), Activation::Elu, c.num_filters, 1, plain(taps), taps)));
        layers
    }

    fn residual_units(&self, side: &str, at: usize, width: usize) -> Vec<Layer> {
        let c = self.config;
        let unit = |n: usize| {
            let name = |part: usize| format!("{side}.model.{}.block.{part}.conv.conv", at + n);
            let (taps, narrow) = (c.residual_kernel_size, width / c.compress);
            let geometry = conv1d::Geometry::causal(taps, 1, c.dilation_growth_rate.pow(n as u32));
            let first = self.conv(name(1), Activation::Elu, width, narrow, geometry, taps);
            Layer::Residual(first, self.conv(name(3), Activation::Elu, narrow, width, conv1d::Geometry::causal(1, 1, 1), 1))
        };
        (0..c.num_residual_layers).map(unit).collect()
    }

    fn transformer(&self, name: &str) -> Vec<Layer> {
        let c = self.config;
        let block = |n: usize| {
            Layer::Block(Block {
                name: format!("{name}.transformer.layers.{n}"),
                width: c.hidden_size,
                heads: c.num_attention_heads,
                kv_heads: c.num_key_value_heads,
                head_dim: c.hidden_size / c.num_attention_heads,
                hidden: c.intermediate_size,
                window: Some(c.sliding_window),
                rotary: Some(Rotary::new(c.rope_theta, Style::Interleaved)),
                norm: Norm::Layer,
                epsilon: c.norm_eps,
                feed_forward: FeedForward::Gelu,
                scaled: true,
                crossed: false,
            })
        };
        (0..c.num_hidden_layers).map(block).collect()
    }

    fn downsample(&self, stride: usize) -> Layer {
        let (width, geometry) = (self.config.hidden_size, conv1d::Geometry::causal(2 * stride, stride, 1));
        let conv = self.conv("downsample.conv.conv.conv".into(), Activation::None, width, width, geometry, 2 * stride);
        Layer::Conv(Conv { before: Before::First, bias: false, ..conv })
    }

    /// Depthwise, though it was meant to mix channels: the published weights are so.
    fn upsample_latents(&self, stride: usize) -> Layer {
        let width = self.config.hidden_size;
        Layer::Upsample(Upsample {
            name: "upsample.convtr.convtr.convtr".into(),
            activation: Activation::None,
            cin: width,
            cout: width,
            taps: 2 * stride,
            geometry: conv_transpose1d::Geometry { groups: width, ..conv_transpose1d::Geometry::causal(2 * stride, stride) },
            bias: false,
            norm: None,
        })
    }
}
