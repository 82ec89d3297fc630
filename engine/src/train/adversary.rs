//! Discriminators beside the codec: what they learn, and what they say of its waves.

use swara_kernels::{DType, Device, Tensor};

use super::TrainConfig;
use super::config::Adversarial;
use super::discriminator::{self, Discriminators};
use super::parameters::{self, Parameter};
use super::recording::Recording;
use crate::Result;
use crate::tape::{Compute, Tape, Var};

pub struct Adversary {
    pub rules: Adversarial,
    compute: Compute,
    networks: Discriminators,
    pub parameters: Vec<Parameter>,
}

/// What discriminators say of waves: unweighted terms, on the device.
#[derive(Default)]
pub struct Judgement {
    pub adversarial: Vec<Var>,
    pub feature: Vec<Var>,
}

impl Adversary {
    pub fn new(config: &TrainConfig, device: &Device, dtype: DType) -> Result<Option<Adversary>> {
        let Some(rules) = config.adversarial.clone() else { return Ok(None) };
        let networks = Discriminators::new(&rules.discriminators)?;
        let values = networks.initial(config.train.seed);
        let parameter = |spec| Parameter::new(spec, &values, device, dtype);
        let parameters = networks.tensors().into_iter().map(parameter).collect::<Result<_>>()?;
        Ok(Some(Adversary { rules, compute: config.train.compute, networks, parameters }))
    }

    /// Whether they take part in a step, and whether they learn from it.
    pub fn judges(&self, step: u64) -> bool {
        step >= self.rules.start
    }

    pub fn learns(&self, step: u64) -> bool {
        self.judges(step) && (step - self.rules.start).is_multiple_of(self.rules.every)
    }

    /// Their own loss of recordings `x` and waves `y`, both `[B, T, 1]`, and `weight` times its gradients.
    pub fn gradients(&self, x: &Var, y: &Var, weight: f64) -> Result<(Vec<Var>, Vec<Tensor>)> {
        let tape = Tape::computing(self.compute);
        let leaves = parameters::leaves(&self.parameters, &tape);
        let recording = Recording { tape: &tape, parameters: &parameters::by_name(&self.parameters, &leaves) };
        let (real, fake) = (self.networks.maps(&recording, &x.detached())?, self.networks.maps(&recording, &y.detached())?);
        let losses = discriminator::discriminator_loss(&tape, self.rules.rule, &real, &fake, weight)?;
        let gradients = parameters::gradients(&leaves, &mut tape.backward()?)?;
        Ok((losses, gradients))
    }

    pub fn learn(&mut self, gradients: &[Tensor], step: u64, steps: u64) -> Result<()> {
        let (done, all) = (step.saturating_sub(self.rules.start), steps.saturating_sub(self.rules.start));
        let (every, energy) = (self.rules.every, parameters::energy(gradients)?);
        parameters::learn(&mut self.parameters, gradients, &energy, &self.rules.optimizer, done / every, all.div_ceil(every))
    }

    /// Records what is to be said of `y`, a leaf of `tape`, beside the recordings `x`.
    pub fn judge(&self, tape: &Tape, x: &Var, y: &Var, [adversarial, feature]: [f64; 2]) -> Result<Judgement> {
        let recording = Recording { tape, parameters: &parameters::constants(&self.parameters) };
        let fake = self.networks.maps(&recording, y)?;
        let mut judgement = Judgement::default();
        if adversarial > 0.0 {
            judgement.adversarial = discriminator::adversarial_loss(tape, self.rules.rule, &fake, adversarial)?;
        }
        if feature > 0.0 {
            let real = self.networks.maps(&recording, &x.detached())?;
            judgement.feature = discriminator::feature_loss(tape, &real, &fake, self.rules.rule, feature)?;
        }
        Ok(judgement)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Config, QuantizerKind};
    use crate::train::balancer::Balancer;
    use crate::train::{AdversarialRule, DiscriminatorConfig, LossWeights, Optimizer, Pass, Schedule, StftConfig, Trainer};

    fn config(compute: Compute) -> TrainConfig {
        let codec = Config {
            sample_rate: 16000,
            encoder_widths: vec![8, 16],
            decoder_widths: vec![16, 8],
            strides: vec![4],
            dilations: vec![1],
            latent: 8,
            causal: true,
            quantizer: QuantizerKind::Ema,
            codebook_dim: 8,
            codebook_sizes: vec![16],
            transformer: None,
            prosody: None,
        };
        let stft = StftConfig { windows: vec![64], filters: 4, ..StftConfig::default() };
        let discriminators = DiscriminatorConfig { stft: Some(stft), ..DiscriminatorConfig::default() };
        let adversarial =
            Adversarial { start: 0, every: 1, rule: AdversarialRule::ENCODEC, discriminators, optimizer: Optimizer::default() };
        let mut config = TrainConfig { adversarial: Some(adversarial), ..TrainConfig::new("tiny", Some(codec)) };
        // What they say alone.
        config.loss = LossWeights { mel: 0.0, wave: 0.0, ..config.loss };
        config.train = Schedule { batch: 1, crop_frames: 128, compute, ..config.train };
        config
    }

    /// Of the same waves: what they say for the codec, and what they learn themselves.
    #[test]
    fn they_compute_as_the_codec_does() {
        let [full, narrow] = [Compute::F32, Compute::Bf16].map(|compute| {
            let trainer = Trainer::new(config(compute), &Device::Cpu).unwrap();
            let wave = |pitch: f64| {
                let values: Vec<f64> = (0..512).map(|i| 0.3 * (i as f64 * pitch).sin()).collect();
                Var::from(Tensor::from_f64(&Device::Cpu, DType::F32, &values, [1, 512, 1]).unwrap())
            };
            let pass = Pass {
                tape: Tape::new(),
                leaves: Vec::new(),
                x: wave(0.07),
                y: wave(0.11),
                commitment: Vec::new(),
                codebook: Vec::new(),
                teacher: None,
                prosody: Default::default(),
                stages: Vec::new(),
                share: 1.0,
            };
            let (_, said) = trainer.judge(&pass, &mut Balancer::default()).unwrap();
            let (_, gradients) = trainer.adversary.as_ref().unwrap().gradients(&pass.x, &pass.y, 1.0).unwrap();
            [said.to_f64().unwrap(), gradients.iter().flat_map(|g| g.to_f64().unwrap()).collect()]
        });
        for (full, narrow) in full.iter().zip(&narrow) {
            let error: f64 = full.iter().zip(narrow).map(|(a, b)| (a - b) * (a - b)).sum();
            let far = (error / full.iter().map(|v| v * v).sum::<f64>()).sqrt();
            println!("off by {far:.1e}");
            assert!(far > 1e-3 && far < 0.5, "{far}");
        }
    }
}
