use std::fmt;

use serde::Serialize;

/// What the numbers of a decoded signal say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The output does not depend on the input enough: the codes carry too little.
    Starved,
    /// The right signal, too quiet.
    GainCollapse,
    /// The spectrum is right, the phase is not: what adversarially trained codecs do.
    PhaseFree,
    /// Neither waveform nor spectrum is near, though the output moves with the input.
    Distorted,
    Ok,
}

impl Verdict {
    /// `rho`: correlation; `amplitude`: percent; `mel_distance` as [`mel_distance`](super::mel_distance) gives it.
    ///
    /// A decoder whose codes say little does best, under a waveform loss, to shrink its output to about rho: so a low
    /// amplitude beside an equally low rho is the symptom, not the illness.
    pub fn of(rho: f64, amplitude: f64, mel_distance: Option<f64>) -> Verdict {
        let a = amplitude / 100.0;
        if rho < 0.1 || (rho < 0.5 && a <= rho + 0.1) {
            Verdict::Starved
        } else if rho > 0.7 && amplitude < 70.0 {
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
            Verdict::Starved => "starved",
            Verdict::GainCollapse => "gain-collapse",
            Verdict::PhaseFree => "phase-free",
            Verdict::Distorted => "distorted",
            Verdict::Ok => "ok",
        }
    }

    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Verdict::Starved => {
                "the output hardly depends on the input: look at codebook perplexity, k-means initialisation, commitment weight and \
                 learning rate; an adversarial loss restores loudness, not information"
            }
            Verdict::GainCollapse => {
                "the waveform is right but too quiet: look at the output layer, the loss weights and whether training and test \
                 signals have the same loudness"
            }
            Verdict::PhaseFree => {
                "the spectrum is right and the phase is not: normal for adversarial codecs; judge by mel distance and STOI"
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

/// The correlation that a logged SNR (dB) and amplitude (percent) imply: `(1 + a^2 - 10^(-SNR/10)) / 2a`.
pub fn rho_from_log(snr_db: f64, amplitude: f64) -> f64 {
    let a = amplitude / 100.0;
    if a > 0.0 { (1.0 + a * a - 10f64.powf(-snr_db / 10.0)) / (2.0 * a) } else { 0.0 }
}
