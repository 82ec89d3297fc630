use serde::{Deserialize, Serialize};
use swara_loader::dataset::{Augmentation, Loudness};

use super::architecture::Architecture;
use super::discriminator::{AdversarialRule, DiscriminatorConfig};
use super::prosody::ProsodyRules;
use super::speaker::SpeakerRules;
use super::teacher::{Distillation, Teacher};
use crate::codec::Config;
use crate::codec::encodec::Config as EncodecConfig;
use crate::codec::mimi::Config as MimiConfig;
use crate::codec::model::{Layer, TensorSpec};
use crate::codec::snac::Config as SnacConfig;
use crate::metrics::Discriminator;
use crate::tape::Compute;
use crate::{Error, Result};

/// A training run, as its TOML file says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Name of the model, and of the preset unless a table gives its shape.
    pub model: String,
    /// The model's shape, if it is not a preset.
    pub codec: Option<Config>,
    /// A Mimi's shape instead, in the keys of `transformers`; what is left out is as published.
    pub mimi: Option<MimiConfig>,
    /// An EnCodec's shape instead, in the keys of `transformers`; what is left out is as in the 24 kHz model.
    pub encodec: Option<EncodecConfig>,
    /// A SNAC's shape instead, in the keys of `snac`; what is left out is as in the package. An `attn_window_size` of 0 is none.
    #[serde(default, with = "windowless")]
    pub snac: Option<SnacConfig>,
    #[serde(default)]
    pub train: Schedule,
    #[serde(default)]
    pub optimizer: Optimizer,
    #[serde(default)]
    pub loss: LossWeights,
    #[serde(default)]
    pub codebook: CodebookRules,
    /// Makes the weights of the losses of the wave their shares of its gradient.
    pub balancer: Option<BalancerRules>,
    /// Discriminators to train against.
    pub adversarial: Option<Adversarial>,
    /// A teacher whose features or labels are beside the dataset.
    pub teacher: Option<Teacher>,
    /// A speaker encoder that judges voices.
    pub speaker: Option<SpeakerRules>,
    /// Modulates what the decoder is given, by prosody that is heard in the codes.
    pub prosody: Option<ProsodyRules>,
    /// What is done to crops before the codec hears them.
    pub augment: Option<Augmentation>,
}

/// No window, as files say it that have no null.
mod windowless {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::SnacConfig;

    pub fn serialize<S: Serializer>(config: &Option<SnacConfig>, to: S) -> Result<S::Ok, S::Error> {
        let window = |config: &SnacConfig| config.attn_window_size.or(Some(0));
        config.as_ref().map(|config| SnacConfig { attn_window_size: window(config), ..config.clone() }).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SnacConfig>, D::Error> {
        let config = Option::<SnacConfig>::deserialize(from)?;
        Ok(config.map(|config| SnacConfig { attn_window_size: config.attn_window_size.filter(|&window| window > 0), ..config }))
    }
}

/// Steps, batches, and what is written when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    pub steps: u64,
    pub batch: usize,
    /// Batches whose gradients are averaged before a step: so many times the batch, without its memory.
    pub accumulate: usize,
    /// Frames a crop.
    pub crop_frames: usize,
    /// What products take their operands in; parameters, optimisers, averages, codebooks and losses are f32 always.
    pub compute: Compute,
    pub seed: u64,
    /// Decay of the moving average of the weights, which is what is released.
    pub average: f64,
    /// What each crop is brought to: `lufs:-16` (DAC), `rms:-16` or `none`.
    #[serde(with = "text")]
    pub loudness: Loudness,
    /// Each crop is then changed by a gain from this range, in dB.
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
            accumulate: 1,
            crop_frames: 50,
            compute: Compute::F32,
            seed: 1,
            average: 0.999,
            loudness: Loudness::Unchanged,
            gain_db: (0.0, 0.0),
            log_every: 20,
            checkpoint_every: 200,
            validate_every: 1000,
        }
    }
}

/// A loudness as the command line has it.
mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use swara_loader::dataset::Loudness;

    pub fn serialize<S: Serializer>(loudness: &Loudness, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(loudness)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Loudness, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// AdamW and its learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Optimizer {
    /// The highest: linear warm-up, then a cosine down to `final_rate` of it, times `gamma^step`.
    pub learning_rate: f64,
    pub warmup: u64,
    pub final_rate: f64,
    pub gamma: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub weight_decay: f64,
    pub decayed: Decayed,
    /// Largest norm of the whole gradient.
    pub clip: f64,
}

/// Which parameters decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decayed {
    /// Filters and matrices: not gains, biases, norms and snakes.
    Weights,
    /// Those of transformers alone (Mimi).
    Transformer,
    /// Everything, as `torch.optim.AdamW` does by itself (DAC).
    All,
}

impl Default for Optimizer {
    fn default() -> Self {
        Optimizer {
            learning_rate: 1e-3,
            warmup: 200,
            final_rate: 0.05,
            gamma: 1.0,
            beta1: 0.8,
            beta2: 0.99,
            weight_decay: 0.01,
            decayed: Decayed::Weights,
            clip: 10.0,
        }
    }
}

impl Optimizer {
    /// The learning rate of a step of a run of `steps`.
    pub fn rate(&self, step: u64, steps: u64) -> f64 {
        let warm = ((step + 1) as f64 / self.warmup.max(1) as f64).min(1.0);
        let progress = (step as f64 / steps.max(1) as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        self.learning_rate * warm * (self.final_rate + (1.0 - self.final_rate) * cosine) * self.gamma.powf(step as f64)
    }

    fn check(&self, table: &str) -> Result<()> {
        let fail = |what: &str| Err(Error::Config(format!("{table}: {what}")));
        let rates = [self.learning_rate, self.final_rate, self.gamma, self.beta1, self.beta2, self.weight_decay, self.clip];
        if rates.iter().any(|r| !r.is_finite() || *r < 0.0) || self.beta1 >= 1.0 || self.beta2 >= 1.0 {
            return fail("rates must be finite and not negative, betas below 1");
        }
        if self.clip == 0.0 || self.gamma == 0.0 || self.gamma > 1.0 {
            return fail("clip must be positive, gamma in 0..=1 and not 0");
        }
        Ok(())
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
    /// How much a mel magnitude counts that is too large, beside one that is too small. Noise where there was none is heard
    /// (PESQ-WB weighs it so); dull sounds are heard less.
    pub mel_added: f64,
    /// Distances of power mel spectra and of their logarithms over windows of 64 to 1024 samples, as audiocraft trains EnCodec.
    pub msspec: f64,
    /// Mean absolute difference of the waves.
    pub wave: f64,
    /// Mean absolute difference of complex spectra, summed over `spectrum_windows`: unlike the mel distance it sees phase.
    pub spectrum: f64,
    pub spectrum_windows: Vec<usize>,
    /// The discriminators take the wave for a recording.
    pub adversarial: f64,
    /// Mean absolute difference of the discriminators' feature maps.
    pub feature: f64,
    /// Pulls the encoder towards the codewords.
    pub commitment: f64,
    /// Pulls the codewords towards the encoder (factorised quantisers; others average).
    pub codebook: f64,
}

impl LossWeights {
    /// Whether `mel` is measured as [`mel_distance`](crate::metrics::mel_distance) is, so that verdicts may rest on it.
    pub fn is_mel_distance(&self, crop: usize) -> bool {
        let default = LossWeights::default();
        self.mel_scales == default.mel_scales
            && self.mel_floor == default.mel_floor
            && self.mel_added == 1.0
            && self.mel_scales.iter().all(|s| s.1 <= crop)
    }
}

impl Default for LossWeights {
    fn default() -> Self {
        LossWeights {
            mel: 15.0,
            mel_scales: vec![(5, 32), (10, 64), (20, 128), (40, 256), (80, 512), (160, 1024), (320, 2048)],
            mel_floor: 1e-5,
            mel_added: 1.0,
            msspec: 0.0,
            wave: 1.0,
            spectrum: 0.0,
            spectrum_windows: vec![512],
            adversarial: 1.0,
            feature: 2.0,
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
    /// Batches that k-means sees, of more than 2^26 numbers a branch some rows that are drawn; and its iterations.
    pub kmeans_batches: usize,
    pub kmeans_iterations: usize,
    /// Decay of the moving averages.
    pub decay: f64,
    /// Every so many steps, codewords used less than `expire_below` times the mean are replaced by samples of the batch.
    pub check_every: u64,
    pub expire_below: f64,
    /// And those of which a step uses fewer than so many, on the moving average (EnCodec).
    pub expire_count: f64,
    /// Of whole batches, the probability that a step uses only the first n stages, n uniform; of items, the share of a batch's that use
    /// only so many, each its own n.
    pub dropout: f64,
    pub dropout_of: DropoutOf,
    /// Probability that an item reaches the decoder unquantised (Mimi: 0.5).
    pub no_quantization_rate: f64,
    pub initialise: Initialisation,
    pub revival: Revival,
    /// Weight of the divergence of codewords' mean use from the uniform, and of the similarity of stages that follow each other (ERVQ).
    /// Both are computed on the host.
    pub balance: f64,
    pub similarity: f64,
}

/// What has a number of stages of its own in a step with dropout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DropoutOf {
    /// The batch; all stages run and learn.
    Batch,
    /// The batch; the other stages neither run nor learn (Mimi).
    Stages,
    /// Each of the first items; all stages run and learn (DAC).
    Items,
    /// The batch: of the numbers that make the model's bitrates one; the other stages neither run nor learn (EnCodec).
    Bandwidths,
}

/// When k-means makes the codebooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Initialisation {
    /// All of them before the step `start`.
    Together,
    /// One before each step from `start` on (Mimi).
    Stepwise,
}

/// What becomes of codewords that nobody uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Revival {
    /// Samples of the batch take their place every `check_every` steps (Mimi).
    Expiry,
    /// In every step they move towards the batch's nearest row (ERVQ, from CVQ-VAE).
    Closest,
    /// In every step they move towards a row that is drawn, near ones more probably.
    Probable,
}

impl CodebookRules {
    /// Whether the codewords of a stage are checked in a step: every so many that they have been there.
    pub fn checks(&self, stage: usize, step: u64) -> bool {
        let first = match self.initialise {
            Initialisation::Together if step < self.start => 0,
            Initialisation::Together => self.start,
            Initialisation::Stepwise => self.start.saturating_add(stage as u64),
        };
        step >= first && (step - first + 1).is_multiple_of(self.check_every)
    }
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
            expire_count: 0.0,
            dropout: 0.5,
            dropout_of: DropoutOf::Batch,
            no_quantization_rate: 0.0,
            initialise: Initialisation::Together,
            revival: Revival::Expiry,
            balance: 0.0,
            similarity: 0.0,
        }
    }
}

/// How the balancer follows the sizes of gradients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BalancerRules {
    /// Of the moving averages of the norms.
    pub decay: f64,
    /// Norm of the whole gradient of an item.
    pub total_norm: f64,
}

impl Default for BalancerRules {
    fn default() -> Self {
        BalancerRules { decay: 0.999, total_norm: 1.0 }
    }
}

/// Training against discriminators.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adversarial {
    /// The step at which they join.
    #[serde(default)]
    pub start: u64,
    /// They learn on every so many steps.
    #[serde(default = "one")]
    pub every: u64,
    pub rule: AdversarialRule,
    pub discriminators: DiscriminatorConfig,
    #[serde(default)]
    pub optimizer: Optimizer,
}

/// Numbers that a codec's parameters are, in all, above which a configuration is a mistake.
const MOST_PARAMETERS: usize = 1 << 30;

impl Adversarial {
    /// What is known of the discriminators by their loss in a line of the log, where they learnt.
    pub fn judged(&self, loss: f64) -> Option<Discriminator> {
        let chance = self.rule.chance(self.discriminators.count());
        loss.is_finite().then_some(Discriminator { loss, chance })
    }
}

fn one() -> u64 {
    1
}

impl TrainConfig {
    /// Defaults, of a preset or, with `codec`, of a shape of its own.
    pub fn new(model: &str, codec: Option<Config>) -> TrainConfig {
        TrainConfig {
            model: model.to_owned(),
            codec,
            mimi: None,
            encodec: None,
            snac: None,
            train: Schedule::default(),
            optimizer: Optimizer::default(),
            loss: LossWeights::default(),
            codebook: CodebookRules::default(),
            balancer: None,
            adversarial: None,
            teacher: None,
            speaker: None,
            prosody: None,
            augment: None,
        }
    }

    pub fn from_toml(text: &str) -> Result<TrainConfig> {
        let fail = |e: toml::de::Error| Error::Config(e.message().to_owned());
        let config: TrainConfig = toml::from_str(text).map_err(fail)?;
        // Published models' keys are read leniently elsewhere, from files that have more of them.
        let table: toml::Table = toml::from_str(text).map_err(fail)?;
        known_keys(&table, "mimi", &MimiConfig::default(), &["frame_rate", "_frame_rate"])?;
        known_keys(&table, "encodec", &EncodecConfig::default(), &["chunk_length_s", "overlap", "codebook_dim"])?;
        known_keys(&table, "snac", &SnacConfig::default(), &["latent_dim"])?;
        config.check()?;
        Ok(config)
    }

    /// The shape of the model.
    pub fn architecture(&self) -> Result<Architecture> {
        let mut architecture = match (&self.codec, &self.mimi, &self.encodec, &self.snac) {
            (Some(codec), None, None, None) => Architecture::Own(codec.clone()),
            (None, Some(mimi), None, None) => Architecture::Mimi(mimi.clone()),
            (None, None, Some(encodec), None) => Architecture::EnCodec(encodec.clone()),
            (None, None, None, Some(snac)) => Architecture::Snac(snac.clone()),
            (None, None, None, None) if self.model == "mimi" => Architecture::Mimi(MimiConfig::default()),
            (None, None, None, None) if self.model == "encodec" => Architecture::EnCodec(EncodecConfig::default()),
            (None, None, None, None) => Architecture::Own(Config::preset(&self.model)?),
            _ => return Err(Error::Config("codec, mimi, encodec and snac: one of them".into())),
        };
        match (&mut architecture, &self.prosody) {
            (Architecture::Own(config), Some(rules)) => config.prosody = Some(rules.shape()),
            (Architecture::Own(config), None) if config.prosody.is_some() => {
                return Err(Error::Config("codec.prosody: the table [prosody] says its shape, and what supervises it".into()));
            }
            (_, Some(_)) => return Err(Error::Config("prosody: of a codec of swara's own alone".into())),
            _ => {}
        }
        architecture.check()?;
        Ok(architecture)
    }

    /// Samples of a crop.
    pub fn crop(&self) -> Result<usize> {
        Ok(self.train.crop_frames.saturating_mul(self.architecture()?.model()?.format.hop))
    }

    fn check(&self) -> Result<()> {
        let fail = |what: &str| Err(Error::Config(what.to_owned()));
        let t = &self.train;
        let architecture = self.architecture()?;
        let model = architecture.model()?;
        let (hop, crop) = (model.format.hop, self.crop()?);
        if !crop.is_multiple_of(model.format.pad_to) {
            return Err(Error::Config(format!("crops of {crop} samples, expected a multiple of {}: whole windows", model.format.pad_to)));
        }
        let samples = [t.batch, t.accumulate, t.crop_frames, hop].into_iter().fold(1, usize::saturating_mul);
        if samples == 0 || samples > 1 << 26 {
            return fail("train.batch x train.accumulate x train.crop_frames must be between one frame and 2^26 samples");
        }
        let numbers = |spec: &TensorSpec| spec.published.iter().fold(1, |product: usize, &n| product.saturating_mul(n));
        let parameters = architecture.parameters(&model).iter().map(numbers).fold(0, usize::saturating_add);
        if parameters > MOST_PARAMETERS {
            return Err(Error::Config(format!("a codec of {parameters} parameters, expected at most {MOST_PARAMETERS}")));
        }
        if t.log_every == 0 || t.checkpoint_every == 0 || t.validate_every == 0 || self.codebook.check_every == 0 {
            return fail("log_every, checkpoint_every, validate_every and check_every must be positive");
        }
        if t.steps == 0 || !(1..=1024).contains(&t.accumulate) {
            return fail("train.steps must be positive, train.accumulate in 1..=1024");
        }
        let c = &self.codebook;
        if !(1..=4096).contains(&c.kmeans_batches) || !(1..=1000).contains(&c.kmeans_iterations) {
            return fail("kmeans_batches must lie in 1..=4096, kmeans_iterations in 1..=1000");
        }
        if !(c.expire_count.is_finite() && c.expire_count >= 0.0) {
            return fail("codebook.expire_count must be finite and not negative");
        }
        if c.dropout_of == DropoutOf::Bandwidths && architecture.bandwidths().is_empty() {
            return fail("codebook.dropout_of = \"bandwidths\" is of an EnCodec, which has some");
        }
        if [c.dropout, c.expire_below, c.no_quantization_rate].iter().any(|share| !(0.0..=1.0).contains(share)) {
            return fail("dropout, expire_below and no_quantization_rate must lie in 0..=1");
        }
        if ![c.balance, c.similarity].iter().all(|w| w.is_finite() && *w >= 0.0) {
            return fail("codebook.balance and codebook.similarity must be finite and not negative");
        }
        let mut alone = CodebookRules { dropout: c.dropout, dropout_of: c.dropout_of, ..CodebookRules::default() };
        if self.teacher.as_ref().is_some_and(|teacher| teacher.loss == Distillation::Clusters) {
            (alone.kmeans_batches, alone.kmeans_iterations) = (c.kmeans_batches, c.kmeans_iterations);
        }
        if architecture.branches().is_empty() && (*c != alone || c.dropout_of == DropoutOf::Stages) {
            return fail(
                "codebook: of codebooks that are learnt by gradient (factorised) only dropout and dropout_of, of batches or items",
            );
        }
        if [t.average, c.decay].iter().any(|d| !(0.0..1.0).contains(d)) {
            return fail("average and decay must lie in 0..1");
        }
        let (low, high) = t.gain_db;
        if !(low <= high && low.abs() < 200.0 && high.abs() < 200.0) {
            return fail("train.gain_db must be two gains, the lower one first, within 200 dB");
        }
        if let Some(augment) = &self.augment {
            augment.check().map_err(|why| Error::Config(why.to_string()))?;
        }
        if self.speaker.as_ref().is_some_and(|s| !(s.weight.is_finite() && s.weight >= 0.0)) {
            return fail("speaker.weight must be finite and not negative");
        }
        self.optimizer.check("optimizer")?;
        if let Some(b) = &self.balancer
            && !((0.0..1.0).contains(&b.decay) && b.total_norm.is_finite() && b.total_norm > 0.0)
        {
            return fail("balancer.decay must lie in 0..1, balancer.total_norm must be positive");
        }
        if let Some(a) = &self.adversarial {
            if a.every == 0 {
                return fail("adversarial.every must be positive");
            }
            a.optimizer.check("adversarial.optimizer")?;
            a.discriminators.check()?;
            // A symmetric decoder with odd strides falls a few samples short of a crop.
            let least = a.discriminators.shortest();
            if crop < least {
                return Err(Error::Config(format!("crops of {crop} samples, the discriminators want {least} at least")));
            }
        }
        self.teacher.as_ref().map_or(Ok(()), Teacher::check)?;
        if let Some(prosody) = &self.prosody {
            let latents = model.encoder.iter().fold(crop, |rows, layer| match layer {
                Layer::Conv(conv) => conv.geometry.output_len(rows, conv.taps),
                _ => rows,
            });
            prosody.check(model.format.sample_rate, crop, [latents, hop / model.format.latents()])?;
        }
        let l = &self.loss;
        let judged = self.adversarial.as_ref().is_some_and(|a| a.start == 0) && l.adversarial + l.feature > 0.0;
        if self.balancer.is_some() && l.mel + l.wave + l.spectrum + l.msspec == 0.0 && !judged {
            return fail("balancer: no loss of the wave has a weight from the first step on");
        }
        if l.mel_scales.len() > 16 || l.spectrum_windows.len() > 16 {
            return fail("at most 16 mel_scales and 16 spectrum_windows");
        }
        let windows = self.loss.mel_scales.iter().map(|s| s.1).chain(self.loss.spectrum_windows.iter().copied());
        if windows.clone().any(|w| !(8..=1 << 15).contains(&w) || w % 4 != 0)
            || self.loss.mel_scales.iter().any(|s| !(1..=512).contains(&s.0))
        {
            return fail("windows must be multiples of 4 in 8..=32768, mel bands in 1..=512");
        }
        if [l.mel, l.wave, l.spectrum, l.msspec, l.adversarial, l.feature, l.commitment, l.codebook]
            .iter()
            .any(|w| !w.is_finite() || *w < 0.0)
        {
            return fail("loss weights must be finite and not negative");
        }
        // In f32, where they are computed with.
        let positive = |v: f64| v as f32 >= f32::MIN_POSITIVE && (v as f32).is_finite();
        if ![l.mel_floor, l.mel_added].into_iter().all(positive) {
            return fail("mel_floor and mel_added must be positive");
        }
        Ok(())
    }
}

/// Refuses keys of the table `name` that neither `known`, its defaults, nor `optional` has.
fn known_keys(text: &toml::Table, name: &str, known: &impl Serialize, optional: &[&str]) -> Result<()> {
    let known = toml::Table::try_from(known).map_err(|e| Error::Config(e.to_string()))?;
    let mut given = text.get(name).and_then(|table| table.as_table()).into_iter().flat_map(toml::Table::keys);
    match given.find(|key| !known.contains_key(*key) && !optional.contains(&key.as_str())) {
        Some(key) => Err(Error::Config(format!("{name}: unknown key {key:?}"))),
        None => Ok(()),
    }
}
