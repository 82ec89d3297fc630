//! SNAC (Siuzdak et al. 2024, arXiv 2410.14411): DAC's layers, depthwise, with noise in the decoder and attention in windows, around a
//! quantiser whose stages differ in rate. In the names of the `snac` package, where a layer is its position in a list.

use serde::{Deserialize, Serialize};
use swara_kernels::ops::{conv_transpose1d, conv1d};

use super::Format;
use super::model::{Activation, Conv, Layer, Model, Upsample, Windowed};
use crate::config::check_ranges;
use crate::{Error, Result};

/// The numbers of a SNAC, by the keys of its `config.json`. What a file leaves out is as in the package.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    pub sampling_rate: u32,
    pub encoder_dim: usize,
    pub encoder_rates: Vec<usize>,
    pub latent_dim: Option<usize>,
    pub decoder_dim: usize,
    pub decoder_rates: Vec<usize>,
    pub attn_window_size: Option<usize>,
    pub codebook_size: usize,
    pub codebook_dim: usize,
    /// Latents that a code of each stage stands for.
    pub vq_strides: Vec<usize>,
    pub noise: bool,
    pub depthwise: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            sampling_rate: 44100,
            encoder_dim: 64,
            encoder_rates: vec![3, 3, 7, 7],
            latent_dim: None,
            decoder_dim: 1536,
            decoder_rates: vec![7, 7, 3, 3],
            attn_window_size: Some(32),
            codebook_size: 4096,
            codebook_dim: 8,
            vq_strides: vec![8, 4, 2, 1],
            noise: true,
            depthwise: true,
        }
    }
}

const HEAD_DIM: usize = 64;
const DILATIONS: [usize; 3] = [1, 3, 9];

impl Config {
    /// Largest activation of the shortest signal.
    const MAX_ELEMENTS: usize = 1 << 24;

    pub fn from_json(text: &str) -> Result<Config> {
        let config: Config = serde_json::from_str(text).map_err(|e| Error::Config(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Refuses what is not a SNAC, and shapes that no file should be able to ask for.
    pub fn check(&self) -> Result<()> {
        let fail = |what: String| Err(Error::Config(what));
        let blocks = self.encoder_rates.len();
        let window = self.attn_window_size.unwrap_or(1);
        let ranges = [
            ("sampling_rate", self.sampling_rate as usize, 1000, 192_000),
            ("encoder_rates' length", blocks, 1, 8),
            ("encoder_dim", self.encoder_dim, 1, 1024),
            ("decoder_dim", self.decoder_dim, 1, 8192),
            ("attn_window_size", window, 1, 4096),
            ("codebook_size", self.codebook_size, 2, 1 << 16),
            ("codebook_dim", self.codebook_dim, 1, 4096),
            ("vq_strides' length", self.vq_strides.len(), 1, super::Config::MAX_CODEBOOKS),
            ("vq_strides' first", self.vq_strides.first().copied().unwrap_or(0), 1, 4096),
        ];
        check_ranges(&ranges)?;
        if self.encoder_rates.iter().any(|r| !(1..=64).contains(r)) || !self.encoder_rates.iter().eq(self.decoder_rates.iter().rev()) {
            let rates = (&self.encoder_rates, &self.decoder_rates);
            return fail(format!("encoder_rates and decoder_rates are {rates:?}, expected numbers in 1..=64 and their reverse"));
        }
        let finer = |pair: &[usize]| pair[1] > 0 && pair[0].is_multiple_of(pair[1]);
        if self.vq_strides.last() != Some(&1) || !self.vq_strides.windows(2).all(finer) {
            return fail(format!("vq_strides are {:?}, expected each to divide the one before it, and 1 at the end", self.vq_strides));
        }
        let latent = self.encoder_dim << blocks;
        if self.latent_dim.is_some_and(|dim| dim != latent) {
            return fail(format!("latent_dim is {:?}, expected {latent}", self.latent_dim));
        }
        if self.decoder_dim >> blocks == 0 {
            return fail(format!("decoder_dim {} cannot be halved {blocks} times", self.decoder_dim));
        }
        if self.attn_window_size.is_some() && !(latent.is_multiple_of(HEAD_DIM) && self.decoder_dim.is_multiple_of(HEAD_DIM)) {
            return fail(format!("attention over {latent} and {} channels, expected multiples of {HEAD_DIM}", self.decoder_dim));
        }
        let (mut rows, mut largest) = (self.latents(), latent.max(self.decoder_dim).saturating_mul(self.latents()));
        for (i, &rate) in self.encoder_rates.iter().enumerate().rev() {
            rows = rows.saturating_mul(rate);
            largest = largest.max(rows.saturating_mul((self.encoder_dim << i).max(self.decoder_dim >> (blocks - i))));
        }
        match largest {
            n if n <= Self::MAX_ELEMENTS => Ok(()),
            n => fail(format!("the shortest signal needs activations of {n} elements, expected at most {}", Self::MAX_ELEMENTS)),
        }
    }

    /// Latents of the shortest signal: whole codes of the slowest stage, whole windows.
    fn latents(&self) -> usize {
        let (stride, window) = (self.vq_strides.first().copied().unwrap_or(1), self.attn_window_size.unwrap_or(1));
        (1..=window).map(|n| n * stride).find(|n| n.is_multiple_of(window)).unwrap_or(stride * window)
    }

    fn hop(&self) -> usize {
        self.encoder_rates.iter().product()
    }
}

/// The layers, in the names of the package.
pub fn model(config: &Config) -> Result<Model> {
    config.check()?;
    let b = Builder { config };
    let (encoder, decoder) = (b.encoder(), b.decoder());
    let slowest = config.vq_strides[0];
    let format = Format {
        sample_rate: config.sampling_rate,
        channels: 1,
        hop: config.hop() * slowest,
        pad_to: config.hop() * config.latents(),
        chunks: None,
        latent: config.encoder_dim << config.encoder_rates.len(),
        codebook_sizes: vec![config.codebook_size; config.vq_strides.len()],
        codes_per_frame: config.vq_strides.iter().map(|stride| slowest / stride).collect(),
        causal: false,
    };
    Ok(Model { format, encoder, decoder })
}

struct Builder<'a> {
    config: &'a Config,
}

impl Builder<'_> {
    /// With as much padding on either side.
    fn conv(&self, name: String, activation: Activation, channels: [usize; 2], taps: usize, dilation: usize) -> Conv {
        let pad = (taps - 1) * dilation / 2;
        let geometry = conv1d::Geometry { dilation, pad_left: pad, pad_right: pad, ..Default::default() };
        Conv::new(name, activation, channels, taps, geometry)
    }

    /// A convolution over time alone, where the configuration says so.
    fn depthwise(&self, name: String, activation: Activation, width: usize, dilation: usize) -> Conv {
        let conv = self.conv(name, activation, [width, width], 7, dilation);
        let groups = if self.config.depthwise { width } else { 1 };
        Conv { geometry: conv1d::Geometry { groups, ..conv.geometry }, ..conv }
    }

    fn encoder(&self) -> Vec<Layer> {
        let c = self.config;
        let mut layers = vec![Layer::Conv(self.conv("encoder.block.0".into(), Activation::None, [1, c.encoder_dim], 7, 1))];
        for (i, &stride) in c.encoder_rates.iter().enumerate() {
            let (block, width) = (format!("encoder.block.{}.block", i + 1), c.encoder_dim << i);
            layers.extend(self.units(&block, 0, width));
            let conv = self.conv(format!("{block}.4"), snake(&block, 3), [width, 2 * width], 2 * stride, 1);
            let pad = stride.div_ceil(2);
            let geometry = conv1d::Geometry { stride, pad_left: pad, pad_right: pad, ..conv.geometry };
            layers.push(Layer::Conv(Conv { geometry, ..conv }));
        }
        let (at, width) = (c.encoder_rates.len() + 1, c.encoder_dim << c.encoder_rates.len());
        layers.extend(self.windowed(format!("encoder.block.{at}"), width));
        let at = at + usize::from(c.attn_window_size.is_some());
        layers.push(Layer::Conv(self.depthwise(format!("encoder.block.{at}"), Activation::None, width, 1)));
        layers
    }

    fn decoder(&self) -> Vec<Layer> {
        let c = self.config;
        let (blocks, latent) = (c.decoder_rates.len(), c.encoder_dim << c.encoder_rates.len());
        let name = |at: usize| format!("decoder.model.{at}");
        let mut layers = match c.depthwise {
            true => {
                let first = self.depthwise(name(0), Activation::None, latent, 1);
                vec![Layer::Conv(first), Layer::Conv(self.conv(name(1), Activation::None, [latent, c.decoder_dim], 1, 1))]
            }
            false => vec![Layer::Conv(self.conv(name(0), Activation::None, [latent, c.decoder_dim], 7, 1))],
        };
        layers.extend(self.windowed(name(layers.len()), c.decoder_dim));
        let first = layers.len();
        for (i, &stride) in c.decoder_rates.iter().enumerate() {
            let (block, cin, cout) = (format!("decoder.model.{}.block", first + i), c.decoder_dim >> i, c.decoder_dim >> (i + 1));
            layers.push(Layer::Upsample(Upsample {
                name: format!("{block}.1"),
                activation: snake(&block, 0),
                cin,
                cout,
                taps: 2 * stride,
                geometry: conv_transpose1d::Geometry::padded(stride, stride.div_ceil(2), stride % 2),
                bias: true,
                norm: None,
            }));
            if c.noise {
                let linear = self.conv(format!("{block}.2.linear"), Activation::None, [cout, cout], 1, 1);
                layers.push(Layer::Noise(Conv { bias: false, ..linear }));
            }
            layers.extend(self.units(&block, 2 + usize::from(c.noise), cout));
        }
        let at = first + blocks;
        let last = self.conv(name(at + 1), Activation::Snake(name(at)), [c.decoder_dim >> blocks, 1], 7, 1);
        layers.push(Layer::Conv(Conv { tanh: true, ..last }));
        layers
    }

    fn units(&self, block: &str, at: usize, width: usize) -> Vec<Layer> {
        let unit = |(n, &dilation): (usize, &usize)| {
            let unit = format!("{block}.{}.block", at + n);
            let first = self.depthwise(format!("{unit}.1"), snake(&unit, 0), width, dilation);
            Layer::Residual(first, self.conv(format!("{unit}.3"), snake(&unit, 2), [width, width], 1, 1))
        };
        DILATIONS.iter().enumerate().map(unit).collect()
    }

    fn windowed(&self, name: String, width: usize) -> Option<Layer> {
        let window = self.config.attn_window_size?;
        Some(Layer::Windowed(Windowed { name, width, head_dim: HEAD_DIM, window, theta: 10000.0, epsilon: 1e-5 }))
    }
}

fn snake(list: &str, at: usize) -> Activation {
    Activation::Snake(format!("{list}.{at}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_configurations_are_taken() {
        let small = Config {
            sampling_rate: 24000,
            encoder_dim: 48,
            encoder_rates: vec![2, 4, 8, 8],
            decoder_dim: 1024,
            decoder_rates: vec![8, 8, 4, 2],
            attn_window_size: None,
            vq_strides: vec![4, 2, 1],
            ..Config::default()
        };
        let format = model(&small).unwrap().format;
        assert_eq!((format.hop, format.pad_to, format.latents(), &format.codes_per_frame[..]), (2048, 2048, 4, &[1, 2, 4][..]));
        assert!((format.bitrate(3) / 984.375 - 1.0).abs() < 1e-12, "{}", format.bitrate(3));
        let large = model(&Config::default()).unwrap();
        assert_eq!((large.format.hop, large.format.pad_to), (441 * 8, 441 * 32));
        let wide = Config { sampling_rate: 32000, encoder_rates: vec![2, 3, 8, 8], decoder_rates: vec![8, 8, 3, 2], ..Config::default() };
        assert_eq!(model(&wide).unwrap().format.pad_to, 384 * 32);
    }

    #[test]
    fn configurations_that_are_no_snac_are_refused() {
        let huge = usize::MAX;
        for (json, why) in [
            (r#"{"encoder_rates":[3,3],"decoder_rates":[3]}"#.to_owned(), "their reverse"),
            (r#"{"encoder_rates":[0],"decoder_rates":[0]}"#.into(), "1..=64"),
            (r#"{"encoder_rates":[]}"#.into(), "encoder_rates' length"),
            (r#"{"vq_strides":[]}"#.into(), "vq_strides' length"),
            (r#"{"vq_strides":[4,2]}"#.into(), "1 at the end"),
            (r#"{"vq_strides":[4,3,1]}"#.into(), "divide"),
            (r#"{"vq_strides":[2,0,1]}"#.into(), "divide"),
            (format!(r#"{{"encoder_dim":{huge}}}"#), "encoder_dim"),
            (format!(r#"{{"attn_window_size":{huge}}}"#), "attn_window_size"),
            (r#"{"encoder_dim":63,"attn_window_size":8}"#.into(), "multiples of 64"),
            (r#"{"latent_dim":128}"#.into(), "latent_dim"),
            (r#"{"decoder_dim":8,"attn_window_size":null}"#.into(), "halved"),
            (r#"{"attn_window_size":4095}"#.into(), "elements"),
        ] {
            let error = Config::from_json(&json).unwrap_err().to_string();
            assert!(error.contains(why), "{json}: {error}");
        }
    }
}
