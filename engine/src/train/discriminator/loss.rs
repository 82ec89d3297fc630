use serde::{Deserialize, Serialize};
use swara_kernels::ops::elementwise;

use crate::tape::{Tape, Var};
use crate::{Error, Result};

/// How logits become a loss, and how those of several discriminators are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdversarialRule {
    pub form: AdversarialForm,
    pub reduction: Reduction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdversarialForm {
    /// Squares: real logits are to be 1, others 0.
    Lsgan,
    /// Real logits are to be above 1, others below -1.
    Hinge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// Over discriminators and their maps.
    Sum,
    Mean,
}

impl AdversarialRule {
    pub const DAC: AdversarialRule = AdversarialRule { form: AdversarialForm::Lsgan, reduction: Reduction::Sum };
    pub const ENCODEC: AdversarialRule = AdversarialRule { form: AdversarialForm::Hinge, reduction: Reduction::Mean };

    /// The loss of `n` discriminators that guess.
    pub fn chance(self, n: usize) -> f64 {
        let one = match self.form {
            AdversarialForm::Lsgan => 0.5,
            AdversarialForm::Hinge => 2.0,
        };
        one * n as f64 * self.share(n)
    }

    /// What one of `n` terms counts.
    fn share(self, n: usize) -> f64 {
        match self.reduction {
            Reduction::Sum => 1.0,
            Reduction::Mean => 1.0 / n.max(1) as f64,
        }
    }
}

/// A term as it counts: the losses' values are unweighted means.
fn counted(value: Var, share: f64) -> Result<Var> {
    if share == 1.0 { Ok(value) } else { Ok(value.told(elementwise::scale(value.value(), share)?)) }
}

fn logits(maps: &[Var]) -> Result<&Var> {
    maps.last().ok_or_else(|| Error::Argument("a discriminator without maps".into()))
}

fn pairs<'a>(real: &'a [Vec<Var>], fake: &'a [Vec<Var>]) -> Result<impl Iterator<Item = (&'a Vec<Var>, &'a Vec<Var>)>> {
    if real.len() != fake.len() || real.iter().zip(fake).any(|(real, fake)| real.len() != fake.len()) {
        return Err(Error::Argument("maps of different discriminators".into()));
    }
    Ok(real.iter().zip(fake))
}

/// Records `weight` times the loss of discriminators that gave these maps. The values add up to the loss, `weight` aside.
///
/// `Lsgan`: `mean (1 - D(x))^2 + mean D(y)^2`; `Hinge`: `mean max(0, 1 - D(x)) + mean max(0, 1 + D(y))`.
pub fn discriminator_loss(tape: &Tape, rule: AdversarialRule, real: &[Vec<Var>], fake: &[Vec<Var>], weight: f64) -> Result<Vec<Var>> {
    let share = rule.share(real.len());
    let mut terms = Vec::new();
    for (real, fake) in pairs(real, fake)? {
        let (real, fake) = (logits(real)?, logits(fake)?);
        let both = match rule.form {
            AdversarialForm::Lsgan => [tape.square_loss(real, 1.0, weight * share)?, tape.square_loss(fake, 0.0, weight * share)?],
            AdversarialForm::Hinge => [tape.hinge_loss(real, 1.0, weight * share)?, tape.hinge_loss(fake, -1.0, weight * share)?],
        };
        for term in both {
            terms.push(counted(term, share)?);
        }
    }
    Ok(terms)
}

/// Records `weight` times what a generator loses by these maps of its output. The values add up to the loss, `weight` aside.
///
/// `Lsgan`: `mean (1 - D(y))^2`; `Hinge`: `-mean D(y)`.
pub fn adversarial_loss(tape: &Tape, rule: AdversarialRule, fake: &[Vec<Var>], weight: f64) -> Result<Vec<Var>> {
    let share = rule.share(fake.len());
    let term = |maps: &Vec<Var>| {
        let fake = logits(maps)?;
        match rule.form {
            AdversarialForm::Lsgan => counted(tape.square_loss(fake, 1.0, weight * share)?, share),
            AdversarialForm::Hinge => counted(tape.mean_loss(fake, -weight * share)?, -share),
        }
    };
    fake.iter().map(term).collect()
}

/// Records `weight` times the mean absolute difference of all maps but the logits; `real` is not differentiated. The values add up to
/// the loss, `weight` aside. With [`Reduction::Mean`] it is the mean over the maps of a discriminator, then over discriminators.
pub fn feature_loss(tape: &Tape, real: &[Vec<Var>], fake: &[Vec<Var>], rule: AdversarialRule, weight: f64) -> Result<Vec<Var>> {
    let mut terms = Vec::new();
    let discriminators = fake.len();
    for (real, fake) in pairs(real, fake)? {
        let maps = fake.len().saturating_sub(1);
        let share = rule.share(discriminators) * rule.share(maps);
        for (real, fake) in real.iter().zip(fake).take(maps) {
            terms.push(counted(tape.l1_loss(fake, real, weight * share)?, share)?);
        }
    }
    Ok(terms)
}
