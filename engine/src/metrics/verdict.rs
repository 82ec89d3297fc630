use std::fmt;

use serde::Serialize;

use super::Alarm;

/// What the numbers of a decoded signal, or of a line of a training log, say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// What was measured is no number.
    Diverged,
    /// A codebook carries nothing, or hardly anything.
    CodebookCollapse,
    /// The output does not depend on the input enough: the codes carry too little.
    Starved,
    /// The right signal, too quiet.
    GainCollapse,
    /// The discriminators tell every output from a recording: their gradient says nothing more.
    DiscriminatorWon,
    /// The spectrum is right, the phase is not: what adversarially trained codecs do.
    PhaseFree,
    /// Neither waveform nor spectrum is near, though the output moves with the input.
    Distorted,
    Ok,
}

/// What a line of a training log says, as far as it does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Signs<'a> {
    /// Correlation of output and input.
    pub rho: f64,
    /// Percent.
    pub amplitude: f64,
    /// As [`mel_distance`](super::mel_distance) gives it.
    pub mel_distance: Option<f64>,
    /// Perplexity and size of each codebook, the first stage first. A perplexity of 0: nothing has been counted yet.
    pub codebooks: &'a [(f64, usize)],
    /// `None` while there is no discriminator.
    pub discriminator: Option<Discriminator>,
}

impl Signs<'_> {
    pub fn alarms(&self) -> impl Iterator<Item = Alarm> {
        self.codebooks.iter().enumerate().filter_map(|(stage, &(perplexity, size))| Alarm::of(stage, size, perplexity))
    }

    /// The first that holds: what starves a codec comes before what it does to the output.
    pub fn verdict(&self) -> Verdict {
        let signal = Verdict::of(self.rho, self.amplitude, self.mel_distance);
        if signal == Verdict::Diverged {
            signal
        } else if self.alarms().next().is_some() {
            Verdict::CodebookCollapse
        } else if matches!(signal, Verdict::Starved | Verdict::GainCollapse) {
            signal
        } else if self.discriminator.is_some_and(Discriminator::won) {
            Verdict::DiscriminatorWon
        } else {
            signal
        }
    }
}

/// A discriminator's loss beside that of one that guesses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Discriminator {
    pub loss: f64,
    pub chance: f64,
}

impl Discriminator {
    /// Share of the loss of guessing below which it has won.
    const WON: f64 = 0.25;

    pub fn won(self) -> bool {
        self.loss < Self::WON * self.chance
    }
}

impl Verdict {
    /// `rho`: correlation; `amplitude`: percent; `mel_distance` as [`mel_distance`](super::mel_distance) gives it.
    ///
    /// A decoder whose codes say little does best, under a waveform loss, to shrink its output to about rho: so a low
    /// amplitude beside an equally low rho is the symptom, not the illness. Lost gain is what is missing beyond that.
    pub fn of(rho: f64, amplitude: f64, mel_distance: Option<f64>) -> Verdict {
        let a = amplitude / 100.0;
        if !rho.is_finite() || !amplitude.is_finite() {
            Verdict::Diverged
        } else if rho < 0.1 || (rho < 0.5 && a <= rho + 0.1) {
            Verdict::Starved
        } else if rho > 0.7 && a < 0.7 && a < rho - 0.2 {
            Verdict::GainCollapse
        } else if rho >= 0.5 {
            Verdict::Ok
        } else if (85.0..=115.0).contains(&amplitude) && mel_distance.is_some_and(|d| d < 1.5) {
            Verdict::PhaseFree
        } else {
            Verdict::Distorted
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Verdict::Diverged => "diverged",
            Verdict::CodebookCollapse => "codebook-collapse",
            Verdict::Starved => "starved",
            Verdict::GainCollapse => "gain-collapse",
            Verdict::DiscriminatorWon => "discriminator-won",
            Verdict::PhaseFree => "phase-free",
            Verdict::Distorted => "distorted",
            Verdict::Ok => "ok",
        }
    }

    /// Whether training on would waste time.
    pub fn fails(self) -> bool {
        matches!(self, Verdict::Diverged | Verdict::CodebookCollapse | Verdict::Starved | Verdict::GainCollapse | Verdict::DiscriminatorWon)
    }

    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Verdict::Diverged => {
                "values that are no numbers: go back to a checkpoint before them, with a lower learning rate or a smaller clip"
            }
            Verdict::CodebookCollapse => {
                "a codebook chooses a few entries only: start codebooks by k-means on latents that already vary (codebook.start), \
                 revive unused ones (expire_below above 0, check_every small), lower the learning rate, raise the commitment weight"
            }
            Verdict::Starved => {
                "the output hardly depends on the input: look at codebook perplexity, k-means initialisation, commitment weight and \
                 learning rate; an adversarial loss restores loudness, not information"
            }
            Verdict::GainCollapse => {
                "the waveform is right but too quiet: look at the output layer, the loss weights and whether training and test \
                 signals have the same loudness, within -1 to 1"
            }
            Verdict::DiscriminatorWon => {
                "the discriminators are no longer fooled and teach nothing: lower their learning rate or train them every second step, \
                 start them later, raise the weights of the mel and feature losses; see that their gradients are cleared after the \
                 generator's step"
            }
            Verdict::PhaseFree => {
                "the spectrum is right and the phase is not: normal for adversarial codecs; judge by mel distance, PESQ and STOI"
            }
            Verdict::Distorted => "waveform and spectrum both differ: train longer, or use more codebooks",
            Verdict::Ok => "nothing conspicuous",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
