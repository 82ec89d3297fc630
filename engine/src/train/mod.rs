//! Training a codec from audio.
//!
//! A step is a function of the state and the step's number alone: batches, dropout and revived codewords come from counters,
//! not from generators with a memory. So a resumed run is bit-exact with one that was never stopped.

mod adversary;
mod architecture;
mod balancer;
mod config;
mod discriminator;
mod initial;
mod kmeans;
mod losses;
mod parameters;
mod prosody;
pub mod quantize;
mod recording;
mod run;
mod speaker;
mod state;
mod step;
mod teacher;

use std::ops::Range;
use std::rc::Rc;

pub use architecture::Architecture;
pub use config::{
    Adversarial, BalancerRules, CodebookRules, Decayed, DropoutOf, Initialisation, LossWeights, Optimizer, Revival, Schedule, TrainConfig,
};
pub use discriminator::{
    AdversarialForm, AdversarialRule, BandConfig, DiscriminatorConfig, Discriminators, PeriodConfig, PeriodRules, Reduction, ScaleConfig,
    StftConfig, adversarial_loss, discriminator_loss, feature_loss,
};
pub use parameters::Parameter;
pub use prosody::{ProsodyFeatures, ProsodyRules};
pub use recording::Recording;
pub use run::{Event, Report, Sample, Start, Validation, run};
pub use speaker::SpeakerRules;
pub use step::{Losses, Step};
use swara_kernels::ops::{adamw, elementwise};
use swara_kernels::{DType, Device, Tensor, span};
use swara_loader::dataset::TeacherRows;
pub use teacher::{Distillation, Teacher};

use self::adversary::Adversary;
use self::architecture::Branch;
use self::balancer::{Balancer, Share};
use self::losses::{Reconstruction, Terms};
use self::prosody::Shared;
use self::quantize::{Codebook, Plan, Quantised, Stages, mix};
use self::speaker::Speaker;
use self::step::Measured;
use crate::codec::model::{Layer, Model, TensorSpec};
use crate::codec::{Codec, Noise};
use crate::tape::{Tape, Var};
use crate::weights::Weights;
use crate::{Error, Result};

/// A codec being trained.
pub struct Trainer {
    config: TrainConfig,
    architecture: Architecture,
    model: Model,
    branches: Vec<Branch>,
    /// Samples.
    crop: usize,
    device: Device,
    parameters: Vec<Parameter>,
    /// Moving averages of their values.
    averages: Vec<Tensor>,
    codebooks: Vec<Codebook>,
    /// Whether the codebooks hold anything yet.
    initialised: bool,
    /// Stages that k-means has made one by one.
    made: usize,
    reconstruction: Reconstruction,
    balancer: Balancer,
    adversary: Option<Adversary>,
    /// In place of what a step draws.
    noise: Option<Noise>,
    /// Of a teacher's features, where their clusters are learnt.
    centroids: Option<Tensor>,
    speaker: Option<Speaker>,
    step: u64,
}

/// What a step learns from: `[accumulate * batch * crop]` samples.
#[derive(Clone, Copy)]
pub struct Examples<'a> {
    pub samples: &'a [f32],
    /// What they are to become: themselves, unless noise is to be taken away.
    pub targets: &'a [f32],
    /// What a teacher says of every crop, [`Trainer::teacher_frames`] rows each.
    pub rows: Option<&'a TeacherRows>,
}

/// What supervises a step beside its waves.
#[derive(Clone, Copy, Default)]
struct Said<'a> {
    rows: Option<&'a TeacherRows>,
    prosody: Option<&'a ProsodyFeatures>,
}

/// A batch that has gone through the codec.
struct Pass {
    tape: Tape,
    leaves: Vec<Var>,
    /// What the reconstruction is to be, and as long.
    x: Var,
    y: Var,
    commitment: Vec<Var>,
    codebook: Vec<Var>,
    /// Its share of the step's, and the loss.
    teacher: Option<(f64, Var)>,
    prosody: [Option<Shared>; 3],
    stages: Stages,
    /// Of the step's losses.
    share: f64,
}

/// Some of a step's items.
#[derive(Clone, Debug)]
struct Part {
    items: usize,
    own: Range<usize>,
}

impl Part {
    fn share(&self) -> f64 {
        self.own.len() as f64 / self.items as f64
    }
}

impl Trainer {
    pub fn new(config: TrainConfig, device: &Device) -> Result<Trainer> {
        Self::with_dtype(config, device, DType::F32)
    }

    /// f64 (on the CPU) exists for checking gradients.
    pub fn with_dtype(config: TrainConfig, device: &Device, dtype: DType) -> Result<Trainer> {
        let architecture = config.architecture()?;
        let model = architecture.model()?;
        let mut specs = architecture.parameters(&model);
        if let Some(teacher) = &config.teacher {
            specs.extend(teacher.parameters(architecture.codebooks().first().map_or(1, |book| book[1]))?);
        }
        let values = initial::values(&architecture, &model, &specs, config.train.seed);
        let parameters: Vec<Parameter> =
            specs.into_iter().map(|spec| Parameter::new(spec, &values, device, dtype)).collect::<Result<_>>()?;
        let (rate, crop) = (model.format.sample_rate, config.crop()?);
        let trainer = Trainer {
            reconstruction: Reconstruction::new(&config.loss, rate, crop, device, dtype)?,
            averages: parameters.iter().map(|p| p.value.copy()).collect::<swara_kernels::Result<_>>()?,
            parameters,
            codebooks: architecture.empty(device, dtype)?,
            branches: architecture.branches(),
            crop,
            balancer: Balancer::default(),
            adversary: Adversary::new(&config, device, dtype)?,
            speaker: config.speaker.as_ref().map(|rules| Speaker::new(rules, rate, device, dtype)).transpose()?,
            device: device.clone(),
            model,
            architecture,
            config,
            initialised: false,
            made: 0,
            noise: None,
            centroids: None,
            step: 0,
        };
        match trainer.teacher_frames() {
            Some([0, samples]) => {
                let why = format!("teacher: train.crop_frames is too few: crops of {crop} samples, one prediction is of {samples}");
                Err(Error::Config(why))
            }
            _ => Ok(trainer),
        }
    }

    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Samples of a crop.
    pub fn crop(&self) -> usize {
        self.crop
    }

    pub fn codebook_sizes(&self) -> &[usize] {
        &self.model.format.codebook_sizes
    }

    /// Samples a second.
    pub fn sample_rate(&self) -> u32 {
        self.model.format.sample_rate
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Gives parameter `n` other values, in memory order.
    ///
    /// # Errors
    /// As many values as it has not.
    pub fn set_parameter(&mut self, n: usize, values: &[f64]) -> Result<()> {
        let dtype = self.dtype();
        let parameter = self.parameters.get_mut(n).ok_or_else(|| Error::Argument(format!("there is no parameter {n}")))?;
        parameter.value = Rc::new(Tensor::from_f64(&self.device, dtype, values, parameter.value.shape())?);
        Ok(())
    }

    /// What layers of noise are given from now on, in place of what each step draws.
    pub fn set_noise(&mut self, noise: Noise) {
        self.noise = Some(noise);
    }

    /// Moving averages of an `ema` quantiser, once k-means has run.
    pub fn codebooks(&self) -> &[Codebook] {
        &self.codebooks
    }

    fn dtype(&self) -> DType {
        self.parameters[0].value.dtype()
    }

    /// Whether steps quantise: always, or once k-means has run or a model was loaded.
    pub fn has_codebooks(&self) -> bool {
        self.branches.is_empty() || self.initialised
    }

    /// What the teacher is asked for: predictions a crop, and samples of each.
    pub fn teacher_frames(&self) -> Option<[usize; 2]> {
        let (hop, pool) = (self.latent_hop(), self.teacher_pool()?);
        Some([self.crop / hop / pool, hop * pool])
    }

    /// Samples of a latent.
    fn latent_hop(&self) -> usize {
        self.model.format.hop / self.model.format.latents()
    }

    /// Latents of a prediction.
    fn teacher_pool(&self) -> Option<usize> {
        Some(self.config.teacher.as_ref()?.pool(f64::from(self.sample_rate()) / self.latent_hop() as f64))
    }

    /// The teacher's rows of some of a step's items, and their share of the step's loss: of labels, of those that are any.
    fn lesson(&self, rows: Option<&TeacherRows>, part: &Part) -> Result<Option<(TeacherRows, f64)>> {
        let Some([frames, _]) = self.teacher_frames() else { return Ok(None) };
        let without = || Error::Argument("a step without what the teacher says of it: with [teacher], train_on has the rows".into());
        let rows = rows.ok_or_else(without)?;
        let own = |len: usize| -> Result<Range<usize>> {
            match frames > 0 && len.is_multiple_of(part.items.max(1) * frames) {
                true => Ok(len / part.items * part.own.start..len / part.items * part.own.end),
                false => Err(Error::Argument(format!("{len} of a teacher for {} crops of {frames} frames", part.items))),
            }
        };
        Ok(Some(match rows {
            TeacherRows::Features(values) => (TeacherRows::Features(values[own(values.len())?].to_vec()), part.share()),
            TeacherRows::Labels(labels) => {
                let own = labels[own(labels.len())?].to_vec();
                let any = |labels: &[i32]| labels.iter().filter(|&&label| label >= 0).count() as f64;
                let share = any(&own) / any(labels).max(1.0);
                (TeacherRows::Labels(own), share)
            }
        }))
    }

    /// What is to be heard in a step's latents.
    fn prosody(&self, targets: &[f32]) -> Option<ProsodyFeatures> {
        let _span = span::step("prosody");
        self.config.prosody.as_ref().map(|_| ProsodyFeatures::of(targets, self.crop, self.latent_hop(), self.sample_rate()))
    }

    fn signal(&self, samples: &[f32]) -> Result<Var> {
        if samples.is_empty() || !samples.len().is_multiple_of(self.crop) {
            return Err(Error::Argument(format!("a batch of {} samples is not whole crops of {}", samples.len(), self.crop)));
        }
        self.batch(samples, samples.len() / self.crop)
    }

    fn batch(&self, samples: &[f32], items: usize) -> Result<Var> {
        let x = Tensor::from_slice(&self.device, samples, [items, samples.len() / items, 1])?;
        Ok(Var::from(elementwise::convert(&x, self.dtype())?))
    }

    /// Stages of the longest branch.
    fn longest(&self) -> usize {
        self.branches.iter().map(|branch| branch.stages.len()).max().unwrap_or(0)
    }

    /// How a step quantises some of its items: with `stages` stages, the `n`th draws of their kind.
    fn plan(&self, part: &Part, stages: usize, n: usize) -> Plan {
        let seed = self.config.train.seed ^ (n as u64).rotate_left(32);
        let bandwidths = self.architecture.bandwidths();
        Plan::new(&self.config.codebook, part.items, stages, &bandwidths, seed, self.step).of(part.own.clone())
    }

    /// A batch `[batch * crop]`, all or some of a step's, through the codec, to become `targets`; `learning` its parameters or not.
    /// What is `said` is of the whole step.
    fn forward(&self, [samples, targets]: [&[f32]; 2], part: Part, learning: bool, said: Said) -> Result<Pass> {
        let _span = span::step("forward");
        let tape = Tape::computing(self.config.train.compute);
        let leaves = if learning { parameters::leaves(&self.parameters, &tape) } else { Vec::new() };
        let parameters = match learning {
            true => parameters::by_name(&self.parameters, &leaves),
            false => parameters::constants(&self.parameters),
        };
        let recording = Recording { tape: &tape, parameters: &parameters };
        let x = self.signal(samples)?;
        let z = recording.run(&self.model.encoder, x.clone())?;
        let share = part.share();
        let all = &self.config.codebook;
        let rules = &CodebookRules { balance: share * all.balance, similarity: share * all.similarity, ..all.clone() };
        let all = &self.config.loss;
        let weights = &LossWeights { commitment: share * all.commitment, codebook: share * all.codebook, ..all.clone() };
        let (z, commitment, codebook, semantic, stages) = if !self.has_codebooks() {
            let first = self.branches.first().filter(|_| self.config.teacher.is_some());
            let semantic = first.map(|first| quantize::project(&recording, &z, first, "input_proj")).transpose()?;
            (quantize::pass_through(&recording, &z, &self.branches)?, Vec::new(), Vec::new(), semantic, Vec::new())
        } else {
            let q: Quantised = match self.branches.is_empty() {
                true => {
                    let (strides, books) = (self.architecture.strides(), self.architecture.codebooks());
                    let plan = self.plan(&part, strides.len(), 0);
                    quantize::factorised(&recording, &z, &strides, books.first().map_or(1, |book| book[1]), &plan, weights)?
                }
                false => {
                    let branches = self.branches.iter().enumerate();
                    let plans: Vec<_> = branches.map(|(n, b)| (b.clone(), self.plan(&part, b.stages.len(), n))).collect();
                    quantize::ema(&recording, &z, &self.codebooks, &plans, weights, rules)?
                }
            };
            (q.z, vec![q.commitment], q.codebook.into_iter().collect(), q.semantic, q.stages)
        };
        let (z, decoder, heard) = match &self.model.decoder[..] {
            [Layer::Film(film), rest @ ..] => {
                let (z, heard) = recording.film(film, &z)?;
                (z, rest, Some(heard))
            }
            decoder => (z, decoder, None),
        };
        let prosody = match (&self.config.prosody, heard, said.prosody) {
            (Some(rules), Some(heard), Some(features)) => prosody::record(&tape, &heard, features, &part, rules)?,
            _ => Default::default(),
        };
        // The same noise however a step's items are shared out.
        let drawn = Noise::Items { seed: mix(self.config.train.seed, self.step, 0x6e), first: part.own.start };
        let y = recording.run_with(decoder, z, self.noise.as_ref().unwrap_or(&drawn))?;
        // Symmetric decoders with odd strides fall short of their input; its end is left out.
        let [batch, t, _] = y.value().shape()[..] else { return Err(Error::Argument(format!("decoder made {:?}", y.value()))) };
        let crop = samples.len() / batch.max(1);
        let x = match t {
            t if t == crop && samples == targets => x,
            t if t == crop => self.signal(targets)?,
            t => self.batch(&targets.chunks_exact(crop).flat_map(|item| item[..t.min(crop)].iter().copied()).collect::<Vec<_>>(), batch)?,
        };
        let lesson = if learning { self.lesson(said.rows, &part)? } else { None };
        let teacher = match (&self.config.teacher, &semantic, lesson, self.teacher_pool()) {
            (Some(teacher), Some(q), Some((rows, share)), Some(pool)) => {
                let loss = teacher.record(&recording, q, pool, &rows, self.centroids.as_ref(), share)?;
                loss.map(|loss| (share, loss))
            }
            _ => None,
        };
        drop(parameters);
        Ok(Pass { tape, leaves, x, y, commitment, codebook, teacher, prosody, stages, share })
    }

    /// The losses of the wave, and their gradient with respect to it: apart from the codec's own tape, so that they can be balanced.
    fn judge(&self, pass: &Pass, balancer: &mut Balancer) -> Result<(Terms, Tensor)> {
        let (tape, weights) = (Tape::computing(self.config.train.compute), &self.config.loss);
        let y = tape.leaf(pass.y.shared());
        let mut terms = self.reconstruction.record(&tape, &y, &pass.x)?;
        if let Some(adversary) = self.adversary.as_ref().filter(|a| a.judges(self.step)) {
            terms.judgement = adversary.judge(&tape, &pass.x, &y, [weights.adversarial, weights.feature])?;
        }
        let speaker = self.speaker.as_ref().filter(|speaker| speaker.hears(self.step));
        if let Some(speaker) = speaker {
            terms.speaker.push(speaker.record(&tape, &y, &pass.x)?);
        }
        let zeros = || Tensor::zeros(&self.device, self.dtype(), y.value().shape());
        let gradient = match &self.config.balancer {
            None => tape.backward()?.take(&y).map_or_else(zeros, Ok)?,
            Some(rules) => {
                let wave = [terms.wave.clone()];
                let groups: [(_, _, &[Var]); 7] = [
                    ("mel", weights.mel, &terms.mel),
                    ("wave", weights.wave, &wave),
                    ("spectrum", weights.spectrum, &terms.spectrum),
                    ("msspec", weights.msspec, &terms.msspec),
                    ("adversarial", weights.adversarial, &terms.judgement.adversarial),
                    ("feature", weights.feature, &terms.judgement.feature),
                    ("speaker", speaker.map_or(0.0, Speaker::weight), &terms.speaker),
                ];
                let mut shares = Vec::new();
                for (name, weight, losses) in groups {
                    if let Some(gradient) = tape.backward_from(losses)?.take(&y) {
                        shares.push(Share { name, weight, gradient });
                    }
                }
                balancer.combine(rules, &shares, pass.share)?
            }
        };
        Ok((terms, gradient))
    }

    /// Gradients of the losses of one batch, all or some of a step's, by parameter.
    fn backward(&self, pass: Pass, balancer: &mut Balancer) -> Result<(Step, Vec<Tensor>, Stages)> {
        let _span = span::step("backward");
        let (terms, gradient) = self.judge(&pass, balancer)?;
        // A balanced one is of the same size for every item, however many there are.
        let gradient = match &self.config.balancer {
            None if pass.share != 1.0 => elementwise::scale(&gradient, pass.share)?,
            _ => gradient,
        };
        pass.tape.pull(&pass.y, gradient);
        let gradients = parameters::gradients(&pass.leaves, &mut pass.tape.backward()?)?;
        let step = Step {
            number: self.step,
            learning_rate: self.config.optimizer.rate(self.step, self.config.train.steps),
            measured: vec![Measured {
                share: pass.share,
                terms,
                commitment: pass.commitment,
                codebook: pass.codebook,
                teacher: pass.teacher,
                prosody: pass.prosody,
            }],
            discriminator: Vec::new(),
            gradient_energy: parameters::energy(&gradients)?,
            output: pass.y.value().copy()?,
        };
        Ok((step, gradients, pass.stages))
    }

    /// Gradients of the weighted loss of one batch `[batch * crop]`, by parameter, without changing anything.
    ///
    /// # Errors
    /// With `[teacher]` always, as nothing is said of the batch; samples that are no whole crops.
    pub fn gradients(&self, samples: &[f32]) -> Result<(Step, Vec<Tensor>, Stages)> {
        let items = samples.len() / self.crop;
        let prosody = self.prosody(samples);
        let said = Said { rows: None, prosody: prosody.as_ref() };
        self.backward(self.forward([samples; 2], Part { items, own: 0..items }, true, said)?, &mut self.balancer.clone())
    }

    /// One step on a batch `[accumulate * batch * crop]` of samples: of the discriminators first, if they learn, then of the codec, which
    /// hears what they have learnt.
    ///
    /// # Errors
    /// As [`Trainer::train_on`], and with `[teacher]` always: there are no rows to learn from.
    pub fn train(&mut self, samples: &[f32]) -> Result<Step> {
        self.train_on(Examples { samples, targets: samples, rows: None })
    }

    /// The same of what samples are to become, and with what a teacher says of them.
    ///
    /// # Errors
    /// Samples that are no whole crops or not as many as targets; with `[teacher]`, no rows or not as many as the crops need.
    pub fn train_on(&mut self, examples: Examples) -> Result<Step> {
        let Examples { samples, targets, rows } = examples;
        if samples.len() != targets.len() {
            return Err(Error::Argument(format!("{} samples and {} targets", samples.len(), targets.len())));
        }
        let _span = span::step("train");
        let items = samples.len() / self.crop;
        let each = items.div_ceil(self.config.train.accumulate).max(1);
        let of = |first: usize| Part { items, own: first..(first + each).min(items) };
        let crops = samples.chunks(each * self.crop).zip(targets.chunks(each * self.crop)).map(|(x, y)| [x, y]);
        let parts: Vec<([&[f32]; 2], Part)> = crops.zip((0..).step_by(each).map(of)).collect();
        let prosody = self.prosody(targets);
        let said = Said { rows, prosody: prosody.as_ref() };
        let mut pass = if let [(only, part)] = &parts[..] { Some(self.forward(*only, part.clone(), true, said)?) } else { None };

        let mut discriminator = Vec::new();
        if let Some(adversary) = self.adversary.as_ref().filter(|a| a.learns(self.step)) {
            let mut sum = None;
            for (samples, part) in &parts {
                let (losses, gradients) = match &pass {
                    Some(pass) => adversary.gradients(&pass.x, &pass.y, pass.share)?,
                    None => {
                        let pass = self.forward(*samples, part.clone(), false, Said::default())?;
                        adversary.gradients(&pass.x, &pass.y, pass.share)?
                    }
                };
                discriminator.push((part.share(), losses));
                parameters::accumulate(&mut sum, gradients)?;
            }
            let (step, steps) = (self.step, self.config.train.steps);
            if let (Some(adversary), Some(gradients)) = (&mut self.adversary, sum) {
                adversary.learn(&gradients, step, steps)?;
            }
        }

        let mut balancer = self.balancer.clone();
        let (mut sum, mut seen, mut measured, mut last) = (None, Vec::new(), Vec::new(), None);
        for (samples, part) in &parts {
            let pass = pass.take().map_or_else(|| self.forward(*samples, part.clone(), true, said), Ok)?;
            let (mut step, gradients, stages) = self.backward(pass, &mut balancer)?;
            measured.append(&mut step.measured);
            parameters::accumulate(&mut sum, gradients)?;
            seen.push(stages);
            last = Some(step);
        }
        let (Some(mut step), Some(gradients)) = (last, sum) else { return Err(Error::Argument("an empty batch".into())) };
        self.balancer = balancer;
        (step.measured, step.discriminator) = (measured, discriminator);
        step.gradient_energy = parameters::energy(&gradients)?;

        let _update = span::step("update");
        let t = &self.config.train;
        parameters::learn(&mut self.parameters, &gradients, &step.gradient_energy, &self.config.optimizer, self.step, t.steps)?;
        // Early averages follow closely: they would remember the starting values otherwise.
        let average = t.average.min((self.step + 1) as f64 / (self.step + 10) as f64);
        for (average_of, parameter) in self.averages.iter_mut().zip(&self.parameters) {
            adamw::ema(average_of, &parameter.value, average)?;
        }
        if self.initialised {
            let stages = quantize::concatenated(seen)?;
            quantize::update(&mut self.codebooks, &self.branches, &stages, &self.config.codebook, self.step, t.seed)?;
        }
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
        self.architecture.codec(&self.config.model, weights, codebooks, &self.device, self.dtype())
    }

    fn released(&self) -> Result<(Weights, Vec<Tensor>)> {
        let own = self.parameters.iter().zip(&self.averages).filter(|(p, _)| !teacher::owns(p));
        let (specs, averages): (Vec<TensorSpec>, Vec<&Tensor>) = own.map(|(p, average)| (p.spec.clone(), average)).unzip();
        let averages = specs.iter().zip(averages).map(|(spec, average)| Ok((spec.name.clone(), average.copy()?)));
        let tensors = averages.collect::<Result<_>>()?;
        let codebooks = self.codebooks.iter().map(Codebook::embedding).collect::<Result<_>>()?;
        Ok((crate::codec::fold(&specs, tensors)?, codebooks))
    }
}
