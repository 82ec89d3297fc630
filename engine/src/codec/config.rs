use serde::{Deserialize, Serialize};
use swara_kernels::ops::attention::MAX_HEAD_DIM;

use crate::config::check_ranges;
use crate::{Error, Result};

/// Shape of a DAC-style codec. The JSON form is what a checkpoint carries in its metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub sample_rate: u32,
    /// Widths before each stride and after the last one, finest first.
    pub encoder_widths: Vec<usize>,
    /// Widths before each upsampling and after the last one, coarsest first.
    pub decoder_widths: Vec<usize>,
    /// Encoder order; the decoder reverses them. A layer of stride s has `2 s` taps.
    pub strides: Vec<usize>,
    /// One residual unit each, per block.
    pub dilations: Vec<usize>,
    /// Channels between encoder and quantiser, and quantiser and decoder.
    pub latent: usize,
    /// All padding on the left (streams), or symmetric as in DAC.
    pub causal: bool,
    pub quantizer: QuantizerKind,
    /// Dimensions in which codewords are searched.
    pub codebook_dim: usize,
    /// Codewords of each stage.
    pub codebook_sizes: Vec<usize>,
    /// Between encoder and quantiser, and quantiser and decoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transformer: Option<TransformerConfig>,
    /// Modulation of the decoder's input by prosody that is predicted from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prosody: Option<ProsodyConfig>,
}

/// Causal convolutions that hear pitch, voicing and energy in the decoder's input, and modulate it by what they make of those.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProsodyConfig {
    /// Channels of its convolutions, 1 to 1024.
    pub width: usize,
    /// Residual units before the prediction, and as many behind it.
    pub units: usize,
}

/// A causal transformer of Mimi's kind over the latents: rotary positions, layer scales.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformerConfig {
    pub layers: usize,
    pub heads: usize,
    /// Width within a feed-forward layer.
    pub hidden: usize,
    /// Latents that one sees, itself among them.
    pub window: usize,
}

/// How codewords are found and learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantizerKind {
    /// Euclidean, codebooks as moving averages (Mimi's rules).
    Ema,
    /// Cosine, a projection per stage, codebooks by gradient (DAC's rules).
    Factorised,
}

impl Config {
    /// Most codebooks a model may have.
    pub const MAX_CODEBOOKS: usize = 64;

    pub fn from_json(text: &str) -> Result<Config> {
        let config: Config = serde_json::from_str(text).map_err(|e| Error::Config(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// A preset: `te200`, `te50`, `te12`, `hybrid12` or `te50-small`.
    pub fn preset(name: &str) -> Result<Config> {
        let doubling = |first: usize, n: usize| (0..=n).map(|i| first << i).collect::<Vec<_>>();
        let reversed = |mut widths: Vec<usize>| {
            widths.reverse();
            widths
        };
        let dac = |sample_rate, strides: &[usize], codebook_sizes: &[usize]| Config {
            sample_rate,
            encoder_widths: doubling(64, strides.len()),
            decoder_widths: reversed(doubling(1024 >> strides.len(), strides.len())),
            strides: strides.to_vec(),
            dilations: vec![1, 3, 9],
            latent: 1024,
            causal: true,
            quantizer: QuantizerKind::Ema,
            codebook_dim: 256,
            codebook_sizes: codebook_sizes.to_vec(),
            transformer: None,
            prosody: None,
        };
        let split = [2048, 1024, 1024, 1024, 1024, 1024, 1024, 1024];
        Ok(match name {
            "te200" => dac(16000, &[2, 2, 4, 5], &[1024; 8]),
            "te50" => dac(16000, &[2, 4, 5, 8], &split),
            "te12" => Config { encoder_widths: vec![64, 128, 256, 512, 1024, 1024], ..dac(24000, &[4, 5, 6, 8, 2], &split) },
            "hybrid12" => Config {
                latent: 512,
                // Twenty seconds.
                transformer: Some(TransformerConfig { layers: 8, heads: 8, hidden: 2048, window: 250 }),
                ..Config::preset("te12")?
            },
            // Runs that were begun when the bundled codec had this shape know it by that name.
            "te50-small" | "swara-te50" => Config {
                sample_rate: 16000,
                encoder_widths: vec![16, 48, 96, 160, 224],
                decoder_widths: vec![224, 192, 96, 64, 24],
                strides: vec![8, 5, 4, 2],
                dilations: vec![1, 3, 9],
                latent: 192,
                causal: true,
                quantizer: QuantizerKind::Ema,
                codebook_dim: 32,
                codebook_sizes: split.to_vec(),
                transformer: None,
                prosody: None,
            },
            _ => return Err(Error::Config(format!("unknown preset {name:?}; expected te200, te50, te12, hybrid12 or te50-small"))),
        })
    }

    /// Refuses shapes that no file should be able to ask for.
    pub fn check(&self) -> Result<()> {
        let fail = |what: String| Err(Error::Config(what));
        let widths = |name, widths: &[usize]| match widths {
            w if w.len() != self.strides.len() + 1 => fail(format!("{name} has {} entries, expected one more than strides", w.len())),
            w if w.iter().any(|w| !(1..=8192).contains(w)) => fail(format!("{name} must lie in 1..=8192: {w:?}")),
            _ => Ok(()),
        };
        if !(1000..=192_000).contains(&self.sample_rate) {
            return fail(format!("sample_rate {} is not in 1000..=192000", self.sample_rate));
        }
        if self.strides.is_empty() || self.strides.len() > 8 || self.strides.iter().any(|s| !(1..=64).contains(s)) {
            return fail(format!("strides must be 1 to 8 numbers in 1..=64: {:?}", self.strides));
        }
        widths("encoder_widths", &self.encoder_widths)?;
        widths("decoder_widths", &self.decoder_widths)?;
        if self.dilations.len() > 8 || self.dilations.iter().any(|d| !(1..=1024).contains(d)) {
            return fail(format!("dilations must be at most 8 numbers in 1..=1024: {:?}", self.dilations));
        }
        if !(1..=8192).contains(&self.latent) || !(1..=4096).contains(&self.codebook_dim) {
            return fail(format!("latent {} or codebook_dim {} out of range", self.latent, self.codebook_dim));
        }
        if self.codebook_sizes.is_empty()
            || self.codebook_sizes.len() > Self::MAX_CODEBOOKS
            || self.codebook_sizes.iter().any(|k| !(2..=1 << 16).contains(k))
        {
            return fail(format!("codebook_sizes must be 1 to 64 numbers in 2..=65536: {:?}", self.codebook_sizes));
        }
        if let Some(t) = &self.transformer {
            t.check(self)?;
        }
        if let Some(p) = &self.prosody {
            check_ranges(&[("prosody.width", p.width, 1, 1024), ("prosody.units", p.units, 0, 6)])?;
        }
        check_frame(self.frame_elements())
    }

    /// Elements of the largest activation that one frame passes through, after [`Config::check`]'s other checks.
    fn frame_elements(&self) -> usize {
        let mut largest = self.latent.max(self.transformer.as_ref().map_or(0, |t| t.hidden));
        let mut rows = 1usize;
        for (i, &stride) in self.strides.iter().enumerate().rev() {
            rows = rows.saturating_mul(stride);
            let width = self.encoder_widths[i].max(self.decoder_widths[self.strides.len() - i]);
            largest = largest.max(rows.saturating_mul(width));
        }
        largest
    }

    /// Samples a frame.
    pub fn hop(&self) -> usize {
        self.strides.iter().product()
    }
}

impl TransformerConfig {
    fn check(&self, config: &Config) -> Result<()> {
        check_ranges(&[
            ("transformer.layers", self.layers, 1, 64),
            ("transformer.heads", self.heads, 1, 256),
            ("transformer.hidden", self.hidden, 1, 1 << 16),
            ("transformer.window", self.window, 1, 1 << 16),
        ])?;
        let fail = |what: String| Err(Error::Config(what));
        if !config.latent.is_multiple_of(2 * self.heads) || config.latent / self.heads > MAX_HEAD_DIM {
            return fail(format!("latent {} is not {} heads of an even size up to {MAX_HEAD_DIM}", config.latent, self.heads));
        }
        match config.causal {
            true => Ok(()),
            false => fail("a transformer in a codec that is not causal".into()),
        }
    }
}

/// Refuses a frame whose largest activation has so many `elements`. The weights of a few wide layers are small beside what they make
/// of a long frame, so a file's size bounds it not.
pub(super) fn check_frame(elements: usize) -> Result<()> {
    const MOST: usize = 1 << 20;
    match elements {
        n if n <= MOST => Ok(()),
        n => Err(Error::Config(format!("a frame needs activations of {n} elements, expected at most {MOST}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights of a few hundred bytes, all of them.
    fn thin(strides: &[usize], widest: usize) -> Config {
        let mut encoder_widths = vec![1; strides.len() + 1];
        encoder_widths[0] = widest;
        let decoder_widths = vec![1; strides.len() + 1];
        let strides = strides.to_vec();
        Config { encoder_widths, decoder_widths, strides, dilations: Vec::new(), latent: 1, ..Config::preset("te50").unwrap() }
    }

    #[test]
    fn presets_are_shapes_that_are_taken() {
        for name in ["te200", "te50", "te12", "te50-small", "swara-te50"] {
            Config::preset(name).unwrap().check().unwrap();
        }
    }

    #[test]
    fn frames_that_small_weights_blow_up_are_refused() {
        thin(&[8, 8, 8], 2048).check().unwrap();
        for config in [thin(&[64; 8], 1), thin(&[64; 4], 1), thin(&[64, 64], 8192), thin(&[8, 8, 8], 2049)] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains("expected at most 1048576"), "{error}");
        }
    }
}
