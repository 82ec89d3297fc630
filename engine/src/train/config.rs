use serde::{Deserialize, Serialize};

use crate::codec::Config;
use crate::{Error, Result};

/// A training run, as its TOML file says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Name of the model, and of the preset unless `codec` is given.
    pub model: String,
    /// The model's shape, if it is not a preset.
    pub codec: Option<Config>,
    #[serde(default)]
    pub train: Schedule,
    #[serde(default)]
    pub loss: LossWeights,
    #[serde(default)]
    pub codebook: CodebookRules,
}

/// Steps, batches and the optimiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    pub steps: u64,
    pub batch: usize,
    /// Frames a crop.
    pub crop_frames: usize,
    pub seed: u64,
    /// Peak learning rate: linear warm-up, then a cosine down to `final_rate` of it.
    pub learning_rate: f64,
    pub final_rate: f64,
    pub warmup: u64,
    pub beta1: f64,
    pub beta2: f64,
    pub weight_decay: f64,
    /// Largest norm of the whole gradient.
    pub clip: f64,
    /// Decay of the moving average of the weights, which is what is released.
    pub average: f64,
    /// Each crop is changed by a gain from this range, in dB.
    pub gain_db: (f64, f64),
    pub log_every: u64,
    pub checkpoint_every: u64,
    pub validate_every: u64,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule {
            steps: 20_000,
            batch: 8,
            crop_frames: 50,
            seed: 1,
            learning_rate: 1e-3,
            final_rate: 0.05,
            warmup: 200,
            beta1: 0.8,
            beta2: 0.99,
            weight_decay: 0.01,
            clip: 10.0,
            average: 0.999,
            gain_db: (0.0, 0.0),
            log_every: 20,
            checkpoint_every: 200,
            validate_every: 1000,
        }
    }
}

/// Weights of the loss terms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossWeights {
    /// Multi-scale log-mel distance, summed over `mel_scales`.
    pub mel: f64,
    /// `(mel bands, window)`; a window longer than the crop is left out.
    pub mel_scales: Vec<(usize, usize)>,
    /// Smallest mel magnitude that counts. The logarithm's gradient grows as a magnitude falls, so this says down to where
    /// silence is heard; speech stands near 1e-2.
    pub mel_floor: f64,
    /// Mean absolute difference of the waves.
    pub wave: f64,
    /// Mean absolute difference of complex spectra, summed over `spectrum_windows`: unlike the mel distance it sees phase.
    pub spectrum: f64,
    pub spectrum_windows: Vec<usize>,
    /// Pulls the encoder towards the codewords.
    pub commitment: f64,
    /// Pulls the codewords towards the encoder (factorised quantisers; others average).
    pub codebook: f64,
}

impl Default for LossWeights {
    fn default() -> Self {
        LossWeights {
            mel: 15.0,
            mel_scales: vec![(5, 32), (10, 64), (20, 128), (40, 256), (80, 512), (160, 1024), (320, 2048)],
            mel_floor: 1e-5,
            wave: 1.0,
            spectrum: 0.0,
            spectrum_windows: vec![512],
            commitment: 0.25,
            codebook: 1.0,
        }
    }
}

/// How codebooks come to be and stay alive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CodebookRules {
    /// Steps of plain autoencoding before the codebooks are initialised by k-means.
    pub start: u64,
    /// Batches that k-means sees, and its iterations.
    pub kmeans_batches: usize,
    pub kmeans_iterations: usize,
    /// Decay of the moving averages.
    pub decay: f64,
    /// Every so many steps, codewords used less than `expire_below` times the mean are replaced by samples of the batch.
    pub check_every: u64,
    pub expire_below: f64,
    /// Probability that a step uses only the first n stages, n uniform.
    pub dropout: f64,
}

impl Default for CodebookRules {
    fn default() -> Self {
        CodebookRules {
            start: 500,
            kmeans_batches: 32,
            kmeans_iterations: 20,
            decay: 0.99,
            check_every: 5,
            expire_below: 0.1,
            dropout: 0.5,
        }
    }
}

impl TrainConfig {
    pub fn from_toml(text: &str) -> Result<TrainConfig> {
        let config: TrainConfig = toml::from_str(text).map_err(|e| Error::Config(e.message().to_owned()))?;
        config.check()?;
        Ok(config)
    }

    /// The shape of the model.
    pub fn codec(&self) -> Result<Config> {
        match &self.codec {
            Some(codec) => codec.check().map(|()| codec.clone()),
            None => Config::preset(&self.model),
        }
    }

    pub fn crop(&self) -> Result<usize> {
        Ok(self.train.crop_frames.saturating_mul(self.codec()?.hop()))
    }

    fn check(&self) -> Result<()> {
        let fail = |what: &str| Err(Error::Config(what.to_owned()));
        let t = &self.train;
        let codec = self.codec()?;
        if codec.transformer.is_some() {
            return fail("a codec with a transformer runs, but cannot be trained yet");
        }
        let hop = codec.hop();
        if t.batch == 0 || t.crop_frames == 0 || t.batch.saturating_mul(t.crop_frames).saturating_mul(hop) > 1 << 26 {
            return fail("train.batch x train.crop_frames must be between one frame and 2^26 samples");
        }
        if t.log_every == 0 || t.checkpoint_every == 0 || t.validate_every == 0 || self.codebook.check_every == 0 {
            return fail("log_every, checkpoint_every, validate_every and check_every must be positive");
        }
        if t.steps == 0 || t.clip <= 0.0 {
            return fail("train.steps and train.clip must be positive");
        }
        let c = &self.codebook;
        if !(1..=4096).contains(&c.kmeans_batches) || !(1..=1000).contains(&c.kmeans_iterations) {
            return fail("kmeans_batches must lie in 1..=4096, kmeans_iterations in 1..=1000");
        }
        if !(0.0..=1.0).contains(&c.dropout) || !(0.0..=1.0).contains(&c.expire_below) {
            return fail("dropout and expire_below must lie in 0..=1");
        }
        let rates = [
            t.learning_rate,
            t.final_rate,
            t.beta1,
            t.beta2,
            t.weight_decay,
            t.clip,
            t.average,
            self.codebook.decay,
            self.codebook.dropout,
        ];
        if rates.iter().any(|r| !r.is_finite() || *r < 0.0) || [t.beta1, t.beta2, t.average, self.codebook.decay].iter().any(|d| *d >= 1.0)
        {
            return fail("rates must be finite and not negative, decays below 1");
        }
        let windows = self.loss.mel_scales.iter().map(|s| s.1).chain(self.loss.spectrum_windows.iter().copied());
        if windows.clone().any(|w| !(8..=1 << 15).contains(&w) || w % 4 != 0)
            || self.loss.mel_scales.iter().any(|s| !(1..=512).contains(&s.0))
        {
            return fail("windows must be multiples of 4 in 8..=32768, mel bands in 1..=512");
        }
        let l = &self.loss;
        if [l.mel, l.wave, l.spectrum, l.commitment, l.codebook].iter().any(|w| !w.is_finite() || *w < 0.0) {
            return fail("loss weights must be finite and not negative");
        }
        if !(l.mel_floor.is_finite() && l.mel_floor > 0.0) {
            return fail("mel_floor must be positive");
        }
        Ok(())
    }
}
