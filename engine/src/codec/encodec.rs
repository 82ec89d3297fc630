//! EnCodec (Défossez et al. 2022, arXiv 2210.13438): SEANet with a recurrent layer on either side of a plain residual quantiser, in the
//! names of `transformers`. Its ends are padded by reflection, of which a stream knows nothing, so it sees whole signals.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use swara_kernels::ops::{conv_transpose1d, conv1d};

use super::config::check_frame;
use super::format::{Chunks, Format};
use super::model::{Activation, Before, Conv, Layer, Lstm, Model, Upsample};
use super::seanet::Seanet;
use crate::config::check_ranges;
use crate::{Error, Result};

/// The numbers of an EnCodec, by the keys of `config.json` in `transformers`. What a file leaves out is as in the 24 kHz model; what it
/// has beyond these is of no consequence here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    pub sampling_rate: u32,
    pub audio_channels: usize,
    pub normalize: bool,
    pub chunk_length_s: Option<f64>,
    pub overlap: Option<f64>,
    pub hidden_size: usize,
    pub num_filters: usize,
    pub num_residual_layers: usize,
    /// Coarsest first, as the decoder has them.
    pub upsampling_ratios: Vec<usize>,
    pub norm_type: String,
    pub kernel_size: usize,
    pub last_kernel_size: usize,
    pub residual_kernel_size: usize,
    pub dilation_growth_rate: usize,
    pub use_causal_conv: bool,
    pub pad_mode: String,
    pub compress: usize,
    pub num_lstm_layers: usize,
    pub trim_right_ratio: f64,
    pub codebook_size: usize,
    pub codebook_dim: Option<usize>,
    pub use_conv_shortcut: bool,
    /// kbit/s; the last says how many codebooks there are.
    pub target_bandwidths: Vec<f64>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            sampling_rate: 24000,
            audio_channels: 1,
            normalize: false,
            chunk_length_s: None,
            overlap: None,
            hidden_size: 128,
            num_filters: 32,
            num_residual_layers: 1,
            upsampling_ratios: vec![8, 5, 4, 2],
            norm_type: "weight_norm".into(),
            kernel_size: 7,
            last_kernel_size: 7,
            residual_kernel_size: 3,
            dilation_growth_rate: 2,
            use_causal_conv: true,
            pad_mode: "reflect".into(),
            compress: 2,
            num_lstm_layers: 2,
            trim_right_ratio: 1.0,
            codebook_size: 1024,
            codebook_dim: None,
            use_conv_shortcut: true,
            target_bandwidths: vec![1.5, 3.0, 6.0, 12.0, 24.0],
        }
    }
}

impl Config {
    /// The published model of 48 kHz.
    pub fn stereo() -> Config {
        Config {
            sampling_rate: 48000,
            audio_channels: 2,
            normalize: true,
            chunk_length_s: Some(1.0),
            overlap: Some(0.01),
            norm_type: "time_group_norm".into(),
            use_causal_conv: false,
            target_bandwidths: vec![3.0, 6.0, 12.0, 24.0],
            ..Config::default()
        }
    }

    pub fn from_json(text: &str) -> Result<Config> {
        let config: Config = serde_json::from_str(text).map_err(|e| Error::Config(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// As `transformers` reads it.
    pub(crate) fn published(&self) -> Result<Value> {
        let mut json = serde_json::to_value(self).map_err(|e| Error::Config(e.to_string()))?;
        json["model_type"] = "encodec".into();
        json["architectures"] = vec!["EncodecModel"].into();
        Ok(json)
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

    /// Refuses what is not an EnCodec, and shapes that no file should be able to ask for.
    pub fn check(&self) -> Result<()> {
        let fail = |what: String| Err(Error::Config(what));
        let only = |key, found: &dyn std::fmt::Debug, expected: &str| fail(format!("{key} is {found:?}, expected {expected}"));
        match self {
            c if c.pad_mode != "reflect" => return only("pad_mode", &c.pad_mode, "\"reflect\""),
            c if c.trim_right_ratio != 1.0 => return only("trim_right_ratio", &c.trim_right_ratio, "1.0"),
            c if !["weight_norm", "time_group_norm"].contains(&c.norm_type.as_str()) => {
                return only("norm_type", &c.norm_type, "\"weight_norm\" or \"time_group_norm\"");
            }
            c if c.codebook_dim.is_some_and(|dim| dim != c.hidden_size) => return only("codebook_dim", &c.codebook_dim, "hidden_size"),
            _ => {}
        }
        let ranges = [
            ("sampling_rate", self.sampling_rate as usize, 1000, 192_000),
            ("audio_channels", self.audio_channels, 1, 2),
            ("hidden_size", self.hidden_size, 1, 4096),
            ("num_lstm_layers", self.num_lstm_layers, 0, 8),
            ("codebook_size", self.codebook_size, 2, 1 << 16),
        ];
        check_ranges(&ranges)?;
        self.seanet().check()?;
        // The gates of the recurrent layers are four.
        check_frame(self.seanet().largest(1).max(4 * self.seanet().width(self.upsampling_ratios.len())).max(self.hidden_size))?;
        self.codebooks()?;
        self.chunks().map(|_| ())
    }

    /// Stages that so many kbit/s pay for.
    fn stages(&self, bandwidth: f64) -> f64 {
        let frames = (f64::from(self.sampling_rate) / self.hop() as f64).ceil();
        let bits = (self.codebook_size as f64).log2().ceil();
        (1000.0 * bandwidth / (frames * bits)).floor()
    }

    /// Stages of each of the target bandwidths, at least one.
    pub fn bandwidths(&self) -> Vec<usize> {
        let most = super::Config::MAX_CODEBOOKS as f64;
        self.target_bandwidths.iter().map(|&bandwidth| self.stages(bandwidth).clamp(1.0, most) as usize).collect()
    }

    /// How many the largest bandwidth takes.
    fn codebooks(&self) -> Result<usize> {
        let falling = self.target_bandwidths.windows(2).any(|pair| pair[0] > pair[1]);
        if falling || !self.target_bandwidths.iter().all(|b| b.is_finite() && *b > 0.0) {
            return Err(Error::Config(format!("target_bandwidths {:?} fall, or are not above 0", self.target_bandwidths)));
        }
        let n = self.stages(self.target_bandwidths.last().copied().unwrap_or(0.0));
        match (1.0..=super::Config::MAX_CODEBOOKS as f64).contains(&n) {
            true => Ok(n as usize),
            false => Err(Error::Config(format!("target_bandwidths {:?} come to {n} codebooks", self.target_bandwidths))),
        }
    }

    /// Pieces that are coded by themselves.
    fn chunks(&self) -> Result<Option<Chunks>> {
        let (seconds, overlap) = match (self.chunk_length_s, self.overlap) {
            (None, _) if !self.normalize => return Ok(None),
            (Some(seconds), Some(overlap)) if self.normalize => (seconds, overlap),
            _ => return Err(Error::Config("expected all of normalize, chunk_length_s and overlap, or none".into())),
        };
        let samples = seconds * f64::from(self.sampling_rate);
        let whole = samples >= 1.0 && samples <= 60.0 * f64::from(self.sampling_rate) && (0.0..=0.5).contains(&overlap);
        if !whole || !(samples as usize).is_multiple_of(self.hop()) {
            let why = format!("chunks of {samples} samples that overlap by {overlap}, expected whole frames and at most a half");
            return Err(Error::Config(why));
        }
        let samples = samples.trunc();
        // As the published code rounds.
        let stride = (((1.0 - overlap) * samples) as usize).max(1);
        Ok(Some(Chunks { samples: samples as usize, stride }))
    }

    fn hop(&self) -> usize {
        self.upsampling_ratios.iter().product()
    }
}

/// The layers, in the names of `transformers`.
pub fn model(config: &Config) -> Result<Model> {
    config.check()?;
    let b = Builder { config };
    let (encoder, decoder) = (b.encoder(), b.decoder());
    let codebooks = config.codebooks()?;
    let format = Format {
        sample_rate: config.sampling_rate,
        channels: config.audio_channels,
        hop: config.hop(),
        pad_to: 1,
        chunks: config.chunks()?,
        latent: config.hidden_size,
        codebook_sizes: vec![config.codebook_size; codebooks],
        codes_per_frame: vec![1; codebooks],
        causal: false,
    };
    Ok(Model { format, encoder, decoder })
}

struct Builder<'a> {
    config: &'a Config,
}

impl Builder<'_> {
    /// The norm after the layer called `name`.
    fn norm(&self, name: &str) -> Option<String> {
        let grouped = self.config.norm_type == "time_group_norm";
        grouped.then(|| format!("{}.norm", name.strip_suffix(".conv").unwrap_or(name)))
    }

    /// How `total` rows of padding are shared out.
    fn shares(&self, total: usize) -> (usize, usize) {
        let right = if self.config.use_causal_conv { 0 } else { total / 2 };
        (total - right, right)
    }

    fn conv(&self, name: String, activation: Activation, channels: [usize; 2], taps: usize, stride: usize, dilation: usize) -> Conv {
        let geometry = conv1d::Geometry { stride, dilation, ..Default::default() };
        let (pad_left, pad_right) = self.shares(geometry.reach(taps).saturating_sub(stride));
        let geometry = conv1d::Geometry { pad_left, pad_right, ..geometry };
        Conv { norm: self.norm(&name), before: Before::Reflection, ..Conv::new(name, activation, channels, taps, geometry) }
    }

    /// Positions in SEANet's list, where activations have one of their own.
    fn encoder(&self) -> Vec<Layer> {
        let c = self.config;
        let name = |at: usize| format!("encoder.layers.{at}.conv");
        let first = self.conv(name(0), Activation::None, [c.audio_channels, c.num_filters], c.kernel_size, 1, 1);
        let (mut layers, mut at) = (vec![Layer::Conv(first)], 1);
        for (i, &ratio) in c.upsampling_ratios.iter().rev().enumerate() {
            let width = c.seanet().width(i);
            layers.extend(self.residual_units("encoder", at, width));
            at += c.num_residual_layers + 1;
            layers.push(Layer::Conv(self.conv(name(at), Activation::Elu, [width, 2 * width], 2 * ratio, ratio, 1)));
            at += 1;
        }
        let width = c.seanet().width(c.upsampling_ratios.len());
        layers.push(self.lstm(format!("encoder.layers.{at}.lstm"), width));
        layers.push(Layer::Conv(self.conv(name(at + 2), Activation::Elu, [width, c.hidden_size], c.last_kernel_size, 1, 1)));
        layers
    }

    fn decoder(&self) -> Vec<Layer> {
        let c = self.config;
        let name = |at: usize| format!("decoder.layers.{at}.conv");
        let blocks = c.upsampling_ratios.len();
        let first = self.conv(name(0), Activation::None, [c.hidden_size, c.seanet().width(blocks)], c.kernel_size, 1, 1);
        let mut layers = vec![Layer::Conv(first), self.lstm("decoder.layers.1.lstm".into(), c.seanet().width(blocks))];
        let mut at = 2;
        for (i, &ratio) in c.upsampling_ratios.iter().enumerate() {
            let (name, cout) = (name(at + 1), c.seanet().width(blocks - i - 1));
            let crop_right = if c.use_causal_conv { ratio } else { ratio / 2 };
            let geometry =
                conv_transpose1d::Geometry { stride: ratio, crop_left: ratio - crop_right, crop_right: crop_right as isize, groups: 1 };
            let norm = self.norm(&name);
            let (cin, taps, activation) = (2 * cout, 2 * ratio, Activation::Elu);
            layers.push(Layer::Upsample(Upsample { name, activation, cin, cout, taps, geometry, bias: true, norm }));
            layers.extend(self.residual_units("decoder", at + 2, cout));
            at += 2 + c.num_residual_layers;
        }
        layers.push(Layer::Conv(self.conv(name(at + 1), Activation::Elu, [c.num_filters, c.audio_channels], c.last_kernel_size, 1, 1)));
        layers
    }

    fn residual_units(&self, side: &str, at: usize, width: usize) -> Vec<Layer> {
        let c = self.config;
        let narrow = width / c.compress;
        let unit = |n: usize| {
            let name = |part: &str| format!("{side}.layers.{}.{part}.conv", at + n);
            let dilation = c.dilation_growth_rate.pow(n as u32);
            let first = self.conv(name("block.1"), Activation::Elu, [width, narrow], c.residual_kernel_size, 1, dilation);
            let second = self.conv(name("block.3"), Activation::Elu, [narrow, width], 1, 1, 1);
            match c.use_conv_shortcut {
                true => Layer::Shortcut(Box::new([first, second, self.conv(name("shortcut"), Activation::None, [width, width], 1, 1, 1)])),
                false => Layer::Residual(first, second),
            }
        };
        (0..c.num_residual_layers).map(unit).collect()
    }

    fn lstm(&self, name: String, width: usize) -> Layer {
        Layer::Lstm(Lstm { name, width, layers: self.config.num_lstm_layers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_configurations_are_taken() {
        let mono = model(&Config::default()).unwrap().format;
        assert_eq!((mono.hop, mono.codebook_sizes.len(), mono.bitrate(32)), (320, 32, 24000.0));
        let stereo = model(&Config::stereo()).unwrap().format;
        assert_eq!((stereo.channels, stereo.codebook_sizes.len()), (2, 16));
        assert_eq!(stereo.chunks, Some(Chunks { samples: 48000, stride: 47520 }));
    }

    #[test]
    fn configurations_that_are_no_encodec_are_refused() {
        for (json, why) in [
            (r#"{"pad_mode":"constant"}"#, "pad_mode"),
            (r#"{"trim_right_ratio":0.5}"#, "trim_right_ratio"),
            (r#"{"norm_type":"layer_norm"}"#, "norm_type"),
            (r#"{"codebook_dim":64}"#, "codebook_dim"),
            (r#"{"audio_channels":3}"#, "audio_channels"),
            (r#"{"num_filters":18446744073709551615}"#, "num_filters"),
            (r#"{"upsampling_ratios":[0]}"#, "1..=64"),
            (r#"{"upsampling_ratios":[64,64,64,64,64,64,64,64]}"#, "elements"),
            (r#"{"residual_kernel_size":64,"num_residual_layers":8,"dilation_growth_rate":8}"#, "elements"),
            (r#"{"target_bandwidths":[]}"#, "codebooks"),
            (r#"{"target_bandwidths":[1e300]}"#, "codebooks"),
            (r#"{"normalize":true}"#, "normalize"),
            (r#"{"chunk_length_s":1.0}"#, "normalize"),
            (r#"{"normalize":true,"chunk_length_s":1e9,"overlap":0.01}"#, "chunks"),
            (r#"{"normalize":true,"chunk_length_s":1.0001,"overlap":0.01}"#, "chunks"),
            (r#"{"normalize":true,"chunk_length_s":1.0,"overlap":1.0}"#, "chunks"),
            (r#"{"normalize":true,"chunk_length_s":-1.0,"overlap":0.01}"#, "chunks"),
        ] {
            let error = Config::from_json(json).unwrap_err().to_string();
            assert!(error.contains(why), "{json}: {error}");
        }
    }
}
