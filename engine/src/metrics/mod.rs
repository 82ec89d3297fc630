//! How good a decoded signal is, and what is wrong with it: pure functions on sample slices, no device.
//!
//! No single number tells: SI-SDR misses codecs that rebuild the spectrum but not the phase, spectral distances miss a lost
//! gain, and both miss unused codebooks. [`Comparison`] takes them together and [`Comparison::verdict`] reads them; [`Signs`] does
//! the same for a line of a training log. The first of these that holds is the verdict, and [`Verdict::advice`] says what to do:
//!
//! | verdict             | if                                                                                           |
//! |---------------------|----------------------------------------------------------------------------------------------|
//! | `diverged`          | a correlation or an amplitude that is no number                                               |
//! | `codebook-collapse` | a perplexity below 1.5, or below a twentieth of the size in one of the first four codebooks   |
//! | `starved`           | rho below 0.1, or below 0.5 with an amplitude of no more than rho + 0.1                       |
//! | `gain-collapse`     | rho above 0.7, amplitude below 70 % and by 20 % below rho                                     |
//! | `discriminator-won` | the discriminators' loss below a quarter of chance: hinge 2.0, least squares 0.5 for each     |
//! | `phase-free`        | rho below 0.5, amplitude 85 % to 115 %, mel distance below 1.5: normal for adversarial codecs |
//! | `distorted`         | rho below 0.5 otherwise                                                                      |
//! | `ok`                | none of these                                                                                |

mod align;
mod codebook;
mod contrast;
mod pesq;
mod prosody;
pub mod semantic;
mod spectral;
mod stoi;
#[cfg(test)]
mod tests;
mod verdict;
mod waveform;

pub use align::{align, lag};
pub use codebook::{Alarm, Usage};
pub use contrast::Spoken;
pub use pesq::pesq;
pub use prosody::{Prosody, pitch, pitch_frames, prosody};
pub use spectral::{MEL_SCALES, STFT_WINDOWS, mel_distance, mel_distance_by_run, stft_distance};
pub use stoi::stoi;
pub use verdict::{Discriminator, Signs, Verdict};
pub use waveform::{Waveform, waveform};

/// A test signal beside its reference.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Comparison {
    /// Samples by which the test signal is late; removed before anything else is measured.
    pub lag: isize,
    /// Samples compared.
    pub samples: usize,
    #[serde(flatten)]
    pub waveform: Waveform,
    /// See [`mel_distance`].
    pub mel_distance: Option<f64>,
    /// See [`stft_distance`].
    pub stft_distance: Option<f64>,
    /// See [`stoi`].
    pub stoi: Option<f64>,
    /// See [`pesq`].
    pub pesq: Option<f64>,
    #[serde(flatten)]
    pub prosody: Prosody,
}

impl Comparison {
    /// Compares `test` with `reference`, both at `sample_rate` Hz, after aligning them within `max_lag` samples (a codec's
    /// hop is a good choice).
    pub fn new(reference: &[f32], test: &[f32], sample_rate: u32, max_lag: usize) -> Comparison {
        let lag = lag(reference, test, max_lag);
        let (x, y) = align(reference, test, lag);
        Comparison {
            lag,
            samples: x.len(),
            waveform: waveform(x, y),
            mel_distance: mel_distance(x, y, sample_rate),
            stft_distance: stft_distance(x, y),
            stoi: stoi(x, y, sample_rate),
            pesq: pesq(x, y, sample_rate),
            prosody: prosody(x, y, sample_rate),
        }
    }

    pub fn verdict(&self) -> Verdict {
        Verdict::of(self.waveform.rho, self.waveform.amplitude, self.mel_distance)
    }
}
