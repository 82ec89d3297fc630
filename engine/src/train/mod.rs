//! Training a codec from audio.
//!
//! A step is a function of the state and the step's number alone: batches, dropout and revived codewords come from counters,
//! not from generators with a memory. So a resumed run is bit-exact with one that was never stopped.

mod config;
mod discriminator;
mod initial;
mod losses;
pub mod quantize;
mod recording;
mod run;
mod state;

use std::rc::Rc;

pub use config::{CodebookRules, LossWeights, Schedule, TrainConfig};
pub use discriminator::{
    AdversarialForm, AdversarialRule, BandConfig, DiscriminatorConfig, Discriminators, PeriodConfig, PeriodRules, Reduction, ScaleConfig,
    StftConfig, adversarial_loss, discriminator_loss, feature_loss,
};
pub use recording::Recording;
pub use run::{Event, Report, Start, Validation, run};
use swara_kernels::case::SplitMix;
use swara_kernels::ops::adamw::{self, AdamW};
use swara_kernels::ops::{elementwise, reduce};
use swara_kernels::{DType, Device, Shape, Tensor, span};

use self::losses::{Reconstruction, Terms};
use self::quantize::{Codebook, Quantised, Stages, mix};
use crate::codec::model::{Layout, Model, TensorSpec};
use crate::codec::{Codec, Config, QuantizerKind, quantizer};
use crate::tape::{Tape, Var};
use crate::weights::Weights;
use crate::{Error, Result};

/// A learnt tensor with its optimiser state.
pub struct Parameter {
    pub spec: TensorSpec,
    pub value: Rc<Tensor>,
    pub first_moment: Tensor,
    pub second_moment: Tensor,
    /// Moving average of the value.
    pub average: Tensor,
}

/// A codec being trained.
pub struct Trainer {
    config: TrainConfig,
    codec: Config,
    model: Model,
    device: Device,
    parameters: Vec<Parameter>,
    codebooks: Vec<Codebook>,
    /// Whether the codebooks hold anything yet.
    initialised: bool,
    reconstruction: Reconstruction,
    step: u64,
}

/// What one step measured. Reading a value waits for the device.
pub struct Step {
    pub number: u64,
    pub learning_rate: f64,
    terms: Terms,
    commitment: Option<Var>,
    codebook: Option<Var>,
    gradient_energy: Tensor,
    /// The reconstruction `[B, T, 1]`.
    pub output: Tensor,
}

/// Loss terms of a step, unweighted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Losses {
    pub mel: f64,
    pub wave: f64,
    pub spectrum: f64,
    pub commitment: f64,
    pub codebook: f64,
    pub gradient_norm: f64,
}

impl Step {
    pub fn losses(&self) -> Result<Losses> {
        let value = |v: &Var| Ok::<f64, Error>(v.value().to_f64()?[0]);
        let sum = |vars: &[Var]| vars.iter().try_fold(0.0, |sum, v| Ok::<f64, Error>(sum + value(v)?));
        Ok(Losses {
            mel: sum(&self.terms.mel)?,
            wave: value(&self.terms.wave)?,
            spectrum: sum(&self.terms.spectrum)?,
            commitment: self.commitment.as_ref().map_or(Ok(0.0), value)?,
            codebook: self.codebook.as_ref().map_or(Ok(0.0), value)?,
            gradient_norm: self.gradient_energy.to_f64()?[0].sqrt(),
        })
    }
}

impl Trainer {
    pub fn new(config: TrainConfig, device: &Device) -> Result<Trainer> {
        Self::with_dtype(config, device, DType::F32)
    }

    /// f64 (on the CPU) exists for checking gradients.
    pub fn with_dtype(config: TrainConfig, device: &Device, dtype: DType) -> Result<Trainer> {
        let codec = config.codec()?;
        let model = Model::new(&codec);
        let mut specs = model.tensors(false);
        specs.extend(quantizer::parameter_tensors(&codec, false));
        let values = initial::values(&codec, &model, &specs, config.train.seed);
        let parameter = |spec: TensorSpec| -> Result<Parameter> {
            let values = values.get(&spec.name).ok_or_else(|| Error::MissingTensor(spec.name.clone()))?;
            let shape = Shape::try_from(&spec.shape()[..])?;
            let tensor = || Tensor::from_f64(device, dtype, values, shape);
            let zeros = || Tensor::zeros(device, dtype, shape);
            Ok(Parameter { value: Rc::new(tensor()?), first_moment: zeros()?, second_moment: zeros()?, average: tensor()?, spec })
        };
        let crop = config.crop()?;
        Ok(Trainer {
            reconstruction: Reconstruction::new(&config.loss, codec.sample_rate, crop, device, dtype)?,
            parameters: specs.into_iter().map(parameter).collect::<Result<_>>()?,
            codebooks: quantize::empty(&codec, device, dtype)?,
            device: device.clone(),
            model,
            codec,
            config,
            initialised: false,
            step: 0,
        })
    }

    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    pub fn codec_config(&self) -> &Config {
        &self.codec
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Moving averages of an `ema` quantiser, once k-means has run.
    pub fn codebooks(&self) -> &[Codebook] {
        &self.codebooks
    }

    fn dtype(&self) -> DType {
        self.parameters[0].value.dtype()
    }

    /// Warm-up, then a cosine.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let t = &self.config.train;
        let warm = ((step + 1) as f64 / t.warmup.max(1) as f64).min(1.0);
        let progress = step as f64 / t.steps.max(1) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos());
        t.learning_rate * warm * (t.final_rate + (1.0 - t.final_rate) * cosine)
    }

    /// Whether steps quantise: always, or once k-means has run or a model was loaded.
    pub fn has_codebooks(&self) -> bool {
        self.codec.quantizer == QuantizerKind::Factorised || self.initialised
    }

    /// Whether the next step needs [`Trainer::initialise_codebooks`] first.
    pub fn needs_codebooks(&self) -> bool {
        !self.has_codebooks() && self.step >= self.config.codebook.start
    }

    /// k-means over the latents of `batches`, each `[batch * crop]` samples.
    pub fn initialise_codebooks(&mut self, batches: impl IntoIterator<Item = Vec<f32>>) -> Result<()> {
        let mut rows: Vec<f32> = Vec::new();
        let mut batch_rows = 0;
        for batch in batches {
            let tape = Tape::new();
            let parameters = self.parameters.iter().map(|p| (p.spec.name.clone(), Var::from_shared(&p.value))).collect();
            let recording = Recording { tape: &tape, parameters: &parameters };
            let z = recording.run(&self.model.encoder, self.signal(&batch)?)?;
            let x = quantize::pass_through(&recording, &z)?.0;
            batch_rows = x.value().shape().rows();
            rows.extend(elementwise::convert(x.value(), DType::F32)?.to_vec::<f32>()?);
        }
        let dim = self.codec.codebook_dim;
        let n = rows.len() / dim;
        if n == 0 {
            return Err(Error::Argument("k-means needs at least one batch".into()));
        }
        let x = elementwise::convert(&Tensor::from_slice(&self.device, &rows, [n, dim])?, self.dtype())?;
        self.codebooks = quantize::kmeans(x, &self.codec.codebook_sizes, self.config.codebook.kmeans_iterations, self.config.train.seed)?;
        self.codebooks.iter_mut().try_for_each(|book| quantize::rescale(book, batch_rows, n))?;
        self.initialised = true;
        Ok(())
    }

    fn signal(&self, samples: &[f32]) -> Result<Var> {
        let crop = self.config.crop()?;
        if samples.is_empty() || !samples.len().is_multiple_of(crop) {
            return Err(Error::Argument(format!("a batch of {} samples is not whole crops of {crop}", samples.len())));
        }
        self.batch(samples, samples.len() / crop)
    }

    fn batch(&self, samples: &[f32], items: usize) -> Result<Var> {
        let x = Tensor::from_slice(&self.device, samples, [items, samples.len() / items, 1])?;
        Ok(Var::from(elementwise::convert(&x, self.dtype())?))
    }

    /// How many stages a step's decoder sees.
    fn stages_used(&self, step: u64) -> usize {
        let all = self.codec.codebook_sizes.len();
        let mut rng = SplitMix(mix(self.config.train.seed, step, 0xd0));
        if rng.uniform() < self.config.codebook.dropout { 1 + (rng.next() % all as u64) as usize } else { all }
    }

    /// Gradients of the weighted loss of one batch `[batch * crop]`, by parameter, without changing anything.
    pub fn gradients(&self, samples: &[f32]) -> Result<(Step, Vec<Tensor>, Stages)> {
        let forward = span::step("forward");
        let tape = Tape::new();
        let leaves: Vec<Var> = self.parameters.iter().map(|p| tape.leaf(p.value.clone())).collect();
        let parameters = self.parameters.iter().zip(&leaves).map(|(p, leaf)| (p.spec.name.clone(), leaf.clone())).collect();
        let recording = Recording { tape: &tape, parameters: &parameters };
        let x = self.signal(samples)?;
        let z = recording.run(&self.model.encoder, x.clone())?;
        let (used, weights) = (self.stages_used(self.step), &self.config.loss);
        let (z, commitment, codebook, stages) = if !self.has_codebooks() {
            (quantize::pass_through(&recording, &z)?.1, None, None, Vec::new())
        } else {
            let q: Quantised = match self.codec.quantizer {
                QuantizerKind::Ema => quantize::ema(&recording, &z, &self.codebooks, used, weights.commitment)?,
                QuantizerKind::Factorised => quantize::factorised(&recording, &z, &self.codec, used, weights.commitment, weights.codebook)?,
            };
            (q.z, Some(q.commitment), q.codebook, q.stages)
        };
        let y = recording.run(&self.model.decoder, z)?;
        // Symmetric decoders with odd strides fall short of their input; its end is left out.
        let [batch, t, _] = y.value().shape()[..] else { return Err(Error::Argument(format!("decoder made {:?}", y.value()))) };
        let crop = samples.len() / batch.max(1);
        let target = match t {
            t if t == crop => x,
            t => self.batch(&samples.chunks_exact(crop).flat_map(|item| item[..t.min(crop)].iter().copied()).collect::<Vec<_>>(), batch)?,
        };
        let terms = self.reconstruction.record(&tape, &y, &target)?;
        drop(forward);
        let _span = span::step("backward");
        let mut found = tape.backward()?;
        let gradients = leaves
            .iter()
            .map(|leaf| found.take(leaf).map_or_else(|| Tensor::zeros(&self.device, self.dtype(), leaf.value().shape()), Ok))
            .collect::<swara_kernels::Result<Vec<_>>>()?;
        let mut energy = Tensor::zeros(&self.device, self.dtype(), [1])?;
        for gradient in &gradients {
            elementwise::add_assign(&mut energy, &reduce::sum_squares(gradient)?)?;
        }
        let learning_rate = self.learning_rate(self.step);
        let output = y.value().copy()?;
        let step = Step { number: self.step, learning_rate, terms, commitment, codebook, gradient_energy: energy, output };
        Ok((step, gradients, stages))
    }

    /// One step on a batch `[batch * crop]` of samples.
    pub fn train(&mut self, samples: &[f32]) -> Result<Step> {
        let _span = span::step("train");
        let (step, gradients, stages) = self.gradients(samples)?;
        let update = span::step("update");
        let t = &self.config.train;
        let scale = adamw::clip_scale(&step.gradient_energy, t.clip)?;
        // Early averages follow closely: they would remember the starting values otherwise.
        let average = t.average.min((self.step + 1) as f64 / (self.step + 10) as f64);
        let rules = AdamW { lr: step.learning_rate, beta1: t.beta1, beta2: t.beta2, eps: 1e-8, weight_decay: t.weight_decay };
        for (parameter, gradient) in self.parameters.iter_mut().zip(&gradients) {
            let value = Rc::get_mut(&mut parameter.value).ok_or_else(|| Error::Argument("a parameter is still on a tape".into()))?;
            // Gains, biases and snakes are not decayed.
            let decayed = matches!(parameter.spec.layout, Layout::Conv | Layout::ConvTranspose);
            let rules = AdamW { weight_decay: if decayed { rules.weight_decay } else { 0.0 }, ..rules };
            adamw::step(value, gradient, &mut parameter.first_moment, &mut parameter.second_moment, &rules, self.step + 1, Some(&scale))?;
            adamw::ema(&mut parameter.average, value, average)?;
        }
        if self.initialised {
            quantize::update(&mut self.codebooks, &stages, &self.config.codebook, self.step, t.seed)?;
        }
        drop(update);
        self.step += 1;
        Ok(step)
    }

    /// Share of each codebook that the moving averages say is in use, as perplexity.
    pub fn perplexities(&self) -> Result<Vec<f64>> {
        let perplexity = |book: &Codebook| {
            let usage = book.usage.to_f64()?;
            let total: f64 = usage.iter().sum();
            let entropy: f64 = usage.iter().filter(|&&u| u > 0.0).map(|u| -(u / total) * (u / total).ln()).sum();
            Ok(if total > 0.0 { entropy.exp() } else { 0.0 })
        };
        self.codebooks.iter().map(perplexity).collect()
    }

    /// The codec as it stands: averaged weights, folded.
    pub fn codec(&self) -> Result<Codec> {
        let (weights, codebooks) = self.released()?;
        Codec::new(&self.config.model, self.codec.clone(), weights, codebooks, &self.device, self.dtype())
    }

    fn released(&self) -> Result<(Weights, Vec<Tensor>)> {
        let specs: Vec<TensorSpec> = self.parameters.iter().map(|p| p.spec.clone()).collect();
        let tensors = self.parameters.iter().map(|p| Ok((p.spec.name.clone(), p.average.copy()?))).collect::<Result<_>>()?;
        let codebooks = self.codebooks.iter().map(Codebook::embedding).collect::<Result<_>>()?;
        Ok((crate::codec::fold(&specs, tensors)?, codebooks))
    }
}
