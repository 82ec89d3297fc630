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
