//! What a step measured.

use swara_kernels::Tensor;

use super::losses::Terms;
use super::prosody::Shared;
use crate::tape::Var;
use crate::{Error, Result};

/// What one step measured. Reading a value waits for the device.
pub struct Step {
    pub number: u64,
    pub learning_rate: f64,
    /// Of each of the batches that made the step.
    pub(super) measured: Vec<Measured>,
    pub(super) discriminator: Vec<(f64, Vec<Var>)>,
    pub(super) gradient_energy: Tensor,
    /// The reconstruction `[B, T, 1]`, of the last batch if several made the step.
    pub output: Tensor,
}

/// The losses of one batch, on the device.
pub(super) struct Measured {
    /// Of the step.
    pub share: f64,
    pub terms: Terms,
    pub commitment: Vec<Var>,
    pub codebook: Vec<Var>,
    /// Its share of the step's, and the loss.
    pub teacher: Option<(f64, Var)>,
    pub prosody: [Option<Shared>; 3],
}

/// Loss terms of a step, unweighted; means over the items of all batches that were accumulated.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    pub mel: f64,
    pub wave: f64,
    pub spectrum: f64,
    pub msspec: f64,
    pub adversarial: f64,
    pub feature: f64,
    /// `1 - cos` of what a speaker encoder hears; 0 without one.
    pub speaker: f64,
    pub commitment: f64,
    pub codebook: f64,
    /// The discriminators' own, where they learnt.
    pub discriminator: Option<f64>,
    /// Of the teacher's features or labels, where there were some.
    pub teacher: Option<f64>,
    /// Of predicted pitch, voicing and energy, where there was anything to measure.
    pub prosody: [Option<f64>; 3],
    pub gradient_norm: f64,
}

impl Step {
    pub fn losses(&self) -> Result<Losses> {
        let sum = |vars: &[Var]| vars.iter().try_fold(0.0, |sum, v| Ok::<f64, Error>(sum + v.value().to_f64()?[0]));
        let mean =
            |of: fn(&Measured) -> &[Var]| self.measured.iter().try_fold(0.0, |mean, m| Ok::<f64, Error>(mean + m.share * sum(of(m))?));
        let shared = |of: fn(&Measured) -> Option<&Shared>| {
            self.measured
                .iter()
                .filter_map(of)
                .try_fold(None, |mean, (share, loss)| Ok::<_, Error>(Some(mean.unwrap_or(0.0) + share * loss.value().to_f64()?[0])))
        };
        let discriminator =
            self.discriminator.iter().try_fold(0.0, |mean, (share, losses)| Ok::<f64, Error>(mean + share * sum(losses)?))?;
        Ok(Losses {
            mel: mean(|m| &m.terms.mel)?,
            wave: mean(|m| std::slice::from_ref(&m.terms.wave))?,
            spectrum: mean(|m| &m.terms.spectrum)?,
            msspec: mean(|m| &m.terms.msspec)? / self.measured.first().map_or(1, |m| m.terms.msspec.len().max(1)) as f64,
            adversarial: mean(|m| &m.terms.judgement.adversarial)?,
            feature: mean(|m| &m.terms.judgement.feature)?,
            speaker: mean(|m| &m.terms.speaker)?,
            discriminator: (!self.discriminator.is_empty()).then_some(discriminator),
            teacher: shared(|m| m.teacher.as_ref())?,
            prosody: [shared(|m| m.prosody[0].as_ref())?, shared(|m| m.prosody[1].as_ref())?, shared(|m| m.prosody[2].as_ref())?],
            commitment: mean(|m| &m.commitment)?,
            codebook: mean(|m| &m.codebook)?,
            gradient_norm: self.gradient_energy.to_f64()?[0].sqrt(),
        })
    }
}
