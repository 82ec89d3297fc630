//! Perceptual evaluation of speech quality, wideband (ITU-T P.862 with its extension P.862.2).
//!
//! Both signals are brought to one level and heard through one filter; speech is found, and how late the test signal is in each
//! utterance ([`delays`]); the aligned spectra become loudness over the bands of hearing, and what differs in them, added noise
//! more than missing sound, becomes a score ([`model`]).
//!
//! Within 0.001 of the recommendation's own program on the clips of `verify/reference/pesq_clip.py`. Only its numeric constants are taken
//! over. Its notice keeps commercial use of the algorithm to licensees of OPTICOM and Psytechnics.

mod bands;
mod delays;
mod model;

use swara_fft::Transform;
use swara_loader::audio::Resampler;

use self::bands::{ALIGNING, LISTENING, Section};

const RATE: u32 = 16_000;
/// The least of either signal: 1/4 s.
const LEAST: usize = RATE as usize / 4;
/// The most that is compared. The recommendation was validated on 8 s to 30 s.
const MOST: usize = 60 * RATE as usize;
/// Samples of an activity frame, 4 ms, in which delays are first sought.
const STEP: usize = 64;
/// Activity frames of silence before and after a signal.
const MARGIN: usize = 75;
/// Samples of silence after that.
const TAIL: usize = 5120;
/// Power of the band from 350 Hz to 3250 Hz that every signal is brought to.
const LEVEL: f64 = 1e7;

/// Predicted mean opinion score of speech, 1.0 to 4.64 (MOS-LQO of P.862.2), for signals that need not be aligned nor equally loud.
///
/// Rates other than 16 kHz are resampled; of longer signals the first 60 s are compared. `None` if either is shorter than 0.25 s
/// or silent, or no speech is found.
pub fn pesq(reference: &[f32], test: &[f32], sample_rate: u32) -> Option<f64> {
    let (x, y) = (resample(reference, sample_rate)?, resample(test, sample_rate)?);
    let longest = x.len().max(y.len());
    let listen = |samples: &[f32]| {
        let mut signal = Signal::new(samples);
        signal.scale(longest)?;
        signal.taper();
        filter(&LISTENING, signal.own());
        Some(signal)
    };
    let (x, y) = (listen(&x)?, listen(&y)?);
    let utterances = delays::utterances(&x.for_alignment(), &y.for_alignment());
    let score = model::score(x.padded_to(longest), y.padded_to(longest), &utterances)?;
    Some(0.999 + 4.0 / (1.0 + (3.8224 - 1.3669 * score).exp())).filter(|score| score.is_finite())
}

fn resample(samples: &[f32], rate: u32) -> Option<Vec<f32>> {
    // Resampled, it is no longer than asked for.
    let most = (MOST as u64 * u64::from(rate)).div_ceil(u64::from(RATE)) as usize;
    let samples = &samples[..samples.len().min(most)];
    let resampled = match rate {
        RATE => samples.to_vec(),
        _ => {
            let mut resampler = Resampler::new(rate, RATE).ok()?;
            let mut out = Vec::new();
            resampler.feed(samples, &mut out).ok()?;
            resampler.finish(&mut out).ok()?;
            out
        }
    };
    (resampled.len() >= LEAST && resampled.iter().all(|v| v.is_finite())).then_some(resampled)
}

/// A signal with silence around it, so that delays may point beyond its ends: [`MARGIN`] frames on either side, then [`TAIL`].
#[derive(Clone)]
struct Signal {
    samples: Vec<f64>,
    own: usize,
}

impl Signal {
    fn new(own: &[f32]) -> Signal {
        let mut samples = vec![0.0; MARGIN * STEP];
        samples.extend(own.iter().map(|&v| f64::from(v)));
        samples.resize(samples.len() + MARGIN * STEP + TAIL, 0.0);
        Signal { samples, own: own.len() }
    }

    fn own(&mut self) -> &mut [f64] {
        &mut self.samples[MARGIN * STEP..][..self.own]
    }

    /// With the margins, without the tail.
    fn len(&self) -> usize {
        self.own + 2 * MARGIN * STEP
    }

    fn padded_to(mut self, own: usize) -> Signal {
        self.samples.resize(own + 2 * MARGIN * STEP + TAIL, 0.0);
        self.own = own;
        self
    }

    /// Brings the power in the telephone band to [`LEVEL`], as if each signal were as long as the longest. `None` if there is none.
    fn scale(&mut self, longest: usize) -> Option<()> {
        let used = self.own + TAIL;
        let size = used.next_power_of_two();
        let (forward, inverse) = (f64::forward_plan(size), f64::inverse_plan(size));
        let mut wave = self.samples[MARGIN * STEP..][..used].to_vec();
        wave.resize(size, 0.0);
        let mut spectrum = forward.make_output_vec();
        forward.process(&mut wave, &mut spectrum).ok()?;
        for (k, bin) in spectrum.iter_mut().enumerate() {
            *bin *= 10f64.powf(telephone_db(k as f64 * f64::from(RATE) / size as f64) / 20.0);
        }
        inverse.process(&mut spectrum, &mut wave).ok()?;
        let energy: f64 = wave[..used].iter().map(|v| (v / size as f64).powi(2)).sum();
        let gain = (LEVEL * (longest + TAIL) as f64 / energy).sqrt();
        (energy > 0.0 && gain.is_finite()).then(|| self.samples.iter_mut().for_each(|v| *v *= gain))
    }

    /// A ramp over the first 15 samples and the last.
    fn taper(&mut self) {
        let own = self.own();
        let last = own.len() - 1;
        for i in 0..15 {
            let factor = (i + 1) as f64 / 16.0;
            own[i] *= factor;
            own[last - i] *= factor;
        }
    }

    /// Without offset, with soft ends, heard through the filter of the alignment.
    fn for_alignment(&self) -> Signal {
        let mut signal = self.clone();
        let padded = signal.len() as f64;
        let own = signal.own();
        let offset = own.iter().sum::<f64>() / padded;
        own.iter_mut().for_each(|v| *v -= offset);
        let last = own.len() - 1;
        for i in 0..STEP {
            let factor = (i as f64 + 0.5) / STEP as f64;
            own[i] *= factor;
            own[last - i] *= factor;
        }
        filter(&ALIGNING, &mut signal.samples);
        signal
    }
}

/// The band that levels are measured in, dB: flat from 350 Hz to 3250 Hz, nothing below 300 Hz and above 3500 Hz.
fn telephone_db(hz: f64) -> f64 {
    const NOTHING: f64 = -500.0;
    let outside = ((350.0 - hz) / 50.0).max((hz - 3250.0) / 250.0);
    NOTHING * outside.clamp(0.0, 1.0)
}

fn filter(sections: &[Section], wave: &mut [f64]) {
    for [b0, b1, b2, a1, a2] in sections {
        let (mut z1, mut z2) = (0.0, 0.0);
        for v in wave.iter_mut() {
            let z0 = *v - a1 * z1 - a2 * z2;
            *v = b0 * z0 + b1 * z1 + b2 * z2;
            (z1, z2) = (z0, z1);
        }
    }
}
