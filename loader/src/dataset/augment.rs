//! What is done to a crop before a model hears it.
//!
//! ```text
//! x = gain rotate(crop)        the recording: what a clean target is
//! y = reverb(x)                y += g y(t - d)           y += n sqrt(P_y / P_n) 10^(-snr / 20)
//! ```
//! P_y is the power over active frames, those of 20 ms within 40 dB of the loudest. All of it is drawn from a counter (see
//! [`Draws`]): a crop is a function of the seed, the step and its place in the batch.

use std::f64::consts::{PI, TAU};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use swara_fft::{Complex, ComplexToReal, RealToComplex, Transform};

use super::sampler::Draws;
use super::{Dataset, Split, from_s16};
use crate::{DatasetError, Error, Result};

/// Frames by which speech is told from its pauses: seconds, and dB under the loudest.
const FRAME: f64 = 0.02;
const ACTIVE_DB: f64 = 40.0;
/// Coloured noise is flat below, Hz.
const FLAT_HZ: f64 = 20.0;
/// Voices in babble.
const VOICES: [u64; 2] = [3, 8];
/// Longest reverberation, seconds, and echo, milliseconds.
const MAX_RT60: f64 = 5.0;
const MAX_DELAY_MS: f64 = 5000.0;

/// The `[augment]` table of a training run. What is left out is not done.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augmentation {
    /// What the output is compared with.
    pub target: Target,
    pub gain: Option<Gain>,
    pub phase: Option<Phase>,
    pub reverb: Option<Reverb>,
    pub echo: Option<Echo>,
    pub noise: Option<Noise>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// What the model hears: a codec that keeps what it is given.
    #[default]
    Noisy,
    /// The recording without noise, echo and reverberation: a codec that takes them away.
    Clean,
}

/// Louder or softer, the target too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gain {
    pub probability: f64,
    pub db: (f64, f64),
}

/// A constant shift of phase, the target's too: `ShiftPhase` of audiotools, over the whole crop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    pub probability: f64,
    #[serde(default = "full_turn")]
    pub radians: (f64, f64),
}

/// A room made of noise that decays by 60 dB in `rt60` seconds, its energy `direct_db` under the direct sound's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reverb {
    pub probability: f64,
    pub rt60: (f64, f64),
    #[serde(default = "direct_db")]
    pub direct_db: (f64, f64),
}

/// The same again, later and softer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Echo {
    pub probability: f64,
    pub delay_ms: (f64, f64),
    pub gain: (f64, f64),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noise {
    pub probability: f64,
    pub snr_db: (f64, f64),
    /// One is drawn.
    pub kinds: Vec<Kind>,
    /// A dataset for `recorded`.
    pub folder: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Equal power in every hertz, octave, or hertz times frequency squared.
    White,
    Pink,
    Brown,
    /// 3 to 8 other utterances of the split at once.
    Babble,
    /// What stands in `folder`, from anywhere on.
    Recorded,
}

fn full_turn() -> (f64, f64) {
    (-PI, PI)
}

fn direct_db() -> (f64, f64) {
    (0.0, 12.0)
}

impl Augmentation {
    /// Whether every number can be meant.
    pub fn check(&self) -> Result<(), DatasetError> {
        let fail = |why| Err(DatasetError::Option { option: "augment", why });
        let probabilities = [
            ("gain", self.gain.as_ref().map(|a| a.probability)),
            ("phase", self.phase.as_ref().map(|a| a.probability)),
            ("reverb", self.reverb.as_ref().map(|a| a.probability)),
            ("echo", self.echo.as_ref().map(|a| a.probability)),
            ("noise", self.noise.as_ref().map(|a| a.probability)),
        ];
        for (what, probability) in probabilities {
            if let Some(p) = probability.filter(|p| !(0.0..=1.0).contains(p)) {
                return fail(format!("{what}.probability {p}, expected 0 to 1"));
            }
        }
        let ranges = [
            ("gain.db", self.gain.as_ref().map(|a| a.db), -100.0, 100.0),
            ("phase.radians", self.phase.as_ref().map(|a| a.radians), -TAU, TAU),
            ("reverb.rt60", self.reverb.as_ref().map(|a| a.rt60), 0.01, MAX_RT60),
            ("reverb.direct_db", self.reverb.as_ref().map(|a| a.direct_db), -60.0, 60.0),
            ("echo.delay_ms", self.echo.as_ref().map(|a| a.delay_ms), 0.0, MAX_DELAY_MS),
            ("echo.gain", self.echo.as_ref().map(|a| a.gain), 0.0, 1.0),
            ("noise.snr_db", self.noise.as_ref().map(|a| a.snr_db), -100.0, 100.0),
        ];
        for (what, range, least, most) in ranges {
            if let Some((low, high)) = range.filter(|(low, high)| !(least <= *low && low <= high && *high <= most)) {
                return fail(format!("{what} {low} to {high}, expected a range within {least} to {most}"));
            }
        }
        if let Some(noise) = &self.noise {
            if noise.kinds.is_empty() {
                return fail("noise.kinds is empty".into());
            }
            if noise.kinds.contains(&Kind::Recorded) != noise.folder.is_some() {
                return fail("noise.folder goes with the kind recorded".into());
            }
        }
        Ok(())
    }
}

/// An [`Augmentation`] with what it draws from.
#[derive(Debug)]
pub(super) struct Augmenter<'a> {
    options: Augmentation,
    dataset: &'a Dataset,
    voices: Voices,
    recorded: Option<Dataset>,
}

/// Utterances of a split by speaker.
#[derive(Debug)]
struct Voices {
    utterances: Vec<usize>,
    /// Of each utterance of the dataset, the places in `utterances` that do not babble with it: its speaker's, or its own if there is no
    /// other speaker.
    own: Vec<Range<usize>>,
}

impl Voices {
    fn new(dataset: &Dataset, split: Split) -> Self {
        let all = dataset.utterances();
        let mut utterances: Vec<usize> = dataset.split(split).map(|(i, _)| i).collect();
        utterances.sort_by(|&a, &b| all[a].speaker.cmp(&all[b].speaker));
        let mut own = vec![0..0; all.len()];
        let mut first = 0;
        for speaker in utterances.chunk_by(|&a, &b| all[a].speaker == all[b].speaker) {
            for (place, &utterance) in (first..).zip(speaker) {
                own[utterance] = if speaker.len() == utterances.len() { place..place + 1 } else { first..first + speaker.len() };
            }
            first += speaker.len();
        }
        Self { utterances, own }
    }

    /// An utterance that babbles with `own`, all of them alike.
    fn draw(&self, own: usize, draws: &mut Draws) -> usize {
        let own = &self.own[own];
        let place = draws.below((self.utterances.len() - own.len()) as u64) as usize;
        self.utterances[if place < own.start { place } else { place + own.len() }]
    }
}

impl<'a> Augmenter<'a> {
    pub fn new(options: Augmentation, dataset: &'a Dataset, split: Split) -> Result<Self> {
        let fail = |path: &std::path::Path, why| Error::Dataset { path: path.to_owned(), why };
        options.check().map_err(|why| fail(dataset.path(), why))?;
        let voices = Voices::new(dataset, split);
        let noise = options.noise.as_ref();
        if voices.utterances.len() < 2 && noise.is_some_and(|noise| noise.kinds.contains(&Kind::Babble)) {
            let why = format!("babble needs two utterances in split {split}");
            return Err(fail(dataset.path(), DatasetError::Option { option: "augment", why }));
        }
        let recorded = noise.and_then(|noise| noise.folder.as_ref()).map(Dataset::open).transpose()?;
        if let Some(other) = recorded.as_ref().filter(|other| other.sample_rate() != dataset.sample_rate()) {
            let why = format!("noise at {} Hz, the dataset at {} Hz", other.sample_rate(), dataset.sample_rate());
            return Err(fail(other.path(), DatasetError::Option { option: "augment", why }));
        }
        Ok(Self { options, dataset, voices, recorded })
    }

    /// Changes a crop that begins in utterance `own`, and what it is to become.
    pub fn apply(&self, crop: &mut [f32], target: &mut [f32], own: usize, draws: &mut Draws) {
        let o = &self.options;
        let rate = f64::from(self.dataset.sample_rate());
        // A fixed number of draws for each, so that one's probability moves no other's draws.
        let mut drawn = |probability: f64| {
            let mut own = draws.fork();
            own.happens(probability).then_some(own)
        };
        let [gain, phase, reverb, echo, noise] = [
            drawn(o.gain.as_ref().map_or(0.0, |a| a.probability)),
            drawn(o.phase.as_ref().map_or(0.0, |a| a.probability)),
            drawn(o.reverb.as_ref().map_or(0.0, |a| a.probability)),
            drawn(o.echo.as_ref().map_or(0.0, |a| a.probability)),
            drawn(o.noise.as_ref().map_or(0.0, |a| a.probability)),
        ];
        if let (Some(phase), Some(mut draws)) = (&o.phase, phase) {
            rotate(crop, draws.within(phase.radians));
        }
        if let (Some(gain), Some(mut draws)) = (&o.gain, gain) {
            scale(crop, decibels(draws.within(gain.db)));
        }
        target.copy_from_slice(crop);
        if let (Some(reverb), Some(mut draws)) = (&o.reverb, reverb) {
            let (rt60, direct) = (draws.within(reverb.rt60), draws.within(reverb.direct_db));
            convolve(crop, &room(rt60, direct, rate, &mut draws));
        }
        if let (Some(echo), Some(mut draws)) = (&o.echo, echo) {
            let (delay, gain) = (draws.within(echo.delay_ms), draws.within(echo.gain) as f32);
            let delay = (delay / 1000.0 * rate) as usize;
            // From the end on: what is delayed is the sound itself, not its echo.
            for t in (delay..crop.len()).rev() {
                crop[t] += gain * crop[t - delay];
            }
        }
        if let (Some(noise), Some(mut draws)) = (&o.noise, noise) {
            let snr = draws.within(noise.snr_db);
            let kind = noise.kinds[draws.below(noise.kinds.len() as u64) as usize];
            let sound = self.noise(kind, crop.len(), own, &mut draws);
            add_at(crop, &sound, snr, rate);
        }
        if o.target == Target::Noisy {
            target.copy_from_slice(crop);
        }
        let peak = f64::from(crate::loudness::peak(crop).max(crate::loudness::peak(target)));
        if peak > 1.0 {
            scale(crop, 1.0 / peak);
            scale(target, 1.0 / peak);
        }
    }

    fn noise(&self, kind: Kind, len: usize, own: usize, draws: &mut Draws) -> Vec<f32> {
        let rate = f64::from(self.dataset.sample_rate());
        match kind {
            Kind::White => normal(len, draws),
            Kind::Pink => coloured(len, f64::sqrt, rate, draws),
            Kind::Brown => coloured(len, |hz| hz, rate, draws),
            Kind::Babble => self.babble(len, own, draws),
            Kind::Recorded => {
                let mut out = vec![0.0; len];
                if let Some(recorded) = &self.recorded {
                    let at = draws.below(recorded.description().samples);
                    let nth = recorded.utterances().partition_point(|u| u.offset + u.samples <= at);
                    looped(recorded, nth, (at - recorded.utterances()[nth].offset) as usize, &mut out);
                }
                out
            }
        }
    }

    /// Other utterances of other speakers, if there are any, each of the same power.
    fn babble(&self, len: usize, own: usize, draws: &mut Draws) -> Vec<f32> {
        let (mut sum, mut voice) = (vec![0.0_f32; len], vec![0.0_f32; len]);
        for _ in 0..VOICES[0] + draws.below(VOICES[1] - VOICES[0] + 1) {
            let nth = self.voices.draw(own, draws);
            looped(self.dataset, nth, draws.below(self.dataset.utterances()[nth].samples) as usize, &mut voice);
            let level = power(&voice).sqrt();
            if level > 0.0 {
                sum.iter_mut().zip(&voice).for_each(|(sum, v)| *sum += v / level as f32);
            }
        }
        sum
    }
}

/// Utterance `nth` from its sample `at` on, over and over.
fn looped(dataset: &Dataset, nth: usize, at: usize, out: &mut [f32]) {
    let samples = dataset.s16(nth);
    out.iter_mut().zip(samples[at..].iter().chain(samples.iter().cycle())).for_each(|(o, &x)| *o = from_s16(x));
}

fn decibels(db: f64) -> f64 {
    10_f64.powf(db / 20.0)
}

fn scale(samples: &mut [f32], factor: f64) {
    samples.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
}

fn power(samples: &[f32]) -> f64 {
    samples.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / samples.len().max(1) as f64
}

/// Mean power of the active frames.
pub(super) fn active_power(samples: &[f32], rate: f64) -> f64 {
    let powers: Vec<f64> = samples.chunks(((FRAME * rate) as usize).max(1)).map(power).collect();
    let loudest = powers.iter().copied().fold(0.0, f64::max);
    let active: Vec<f64> = powers.into_iter().filter(|p| *p > loudest * 10_f64.powf(-ACTIVE_DB / 10.0)).collect();
    active.iter().sum::<f64>() / active.len().max(1) as f64
}

/// Adds `noise` so much under the speech; none to silence.
fn add_at(samples: &mut [f32], noise: &[f32], snr_db: f64, rate: f64) {
    let (speech, noises) = (active_power(samples, rate), power(noise));
    if speech > 0.0 && noises > 0.0 {
        let factor = (speech / noises).sqrt() * decibels(-snr_db);
        samples.iter_mut().zip(noise).for_each(|(x, n)| *x += (factor * f64::from(*n)) as f32);
    }
}

/// A buffer of a plan's own length, and its spectrum.
struct Spectrum {
    len: usize,
    bins: Vec<Complex<f32>>,
}

impl Spectrum {
    /// Of `samples` and silence up to `len`.
    fn of(samples: &[f32], len: usize) -> Self {
        let plan: Arc<dyn RealToComplex<f32>> = f32::forward_plan(len);
        let (mut signal, mut bins) = (plan.make_input_vec(), plan.make_output_vec());
        let n = samples.len().min(len);
        signal[..n].copy_from_slice(&samples[..n]);
        // Buffers of the plan's own lengths always fit.
        let _ = plan.process(&mut signal, &mut bins);
        Self { len, bins }
    }

    /// The beginning of the signal.
    fn signal(mut self, out: &mut [f32]) {
        let plan: Arc<dyn ComplexToReal<f32>> = f32::inverse_plan(self.len);
        let mut signal = plan.make_output_vec();
        // Of a real signal, the first bin and the last of an even length have no imaginary part.
        for end in [0, self.bins.len() - 1] {
            if end == 0 || self.len.is_multiple_of(2) {
                self.bins[end].im = 0.0;
            }
        }
        let _ = plan.process(&mut self.bins, &mut signal);
        let norm = 1.0 / self.len as f32;
        out.iter_mut().zip(signal).for_each(|(o, x)| *o = x * norm);
    }
}

/// Length of a transform that holds `n` samples.
fn fast(n: usize) -> usize {
    n.next_power_of_two().max(2)
}

/// Every frequency's phase turned by `radians`.
fn rotate(samples: &mut [f32], radians: f64) {
    // As much silence again: what Hilbert's filter spreads wraps around far from the crop.
    let mut spectrum = Spectrum::of(samples, fast(2 * samples.len()));
    let turn = Complex::new(radians.cos() as f32, radians.sin() as f32);
    spectrum.bins.iter_mut().for_each(|bin| *bin *= turn);
    spectrum.signal(samples);
}

fn convolve(samples: &mut [f32], response: &[f32]) {
    let len = fast(samples.len() + response.len());
    let mut spectrum = Spectrum::of(samples, len);
    spectrum.bins.iter_mut().zip(Spectrum::of(response, len).bins).for_each(|(bin, h)| *bin *= h);
    spectrum.signal(samples);
}

/// Direct sound of 1, then noise that falls by 60 dB in `rt60` seconds.
fn room(rt60: f64, direct_db: f64, rate: f64, draws: &mut Draws) -> Vec<f32> {
    let len = ((rt60 * rate) as usize).max(1);
    let mut response: Vec<f32> = normal(len + 1, draws);
    let decay = (-3.0 * std::f64::consts::LN_10 / (rt60 * rate)).exp();
    let mut envelope = 1.0;
    response[0] = 0.0;
    for x in &mut response[1..] {
        envelope *= decay;
        *x *= envelope as f32;
    }
    let tail = power(&response) * response.len() as f64;
    scale(&mut response, decibels(-direct_db) / tail.sqrt().max(1e-9));
    response[0] = 1.0;
    response
}

/// Noise whose amplitude falls with frequency as `1 / fall`.
fn coloured(len: usize, fall: fn(f64) -> f64, rate: f64, draws: &mut Draws) -> Vec<f32> {
    let n = fast(len);
    let hz = rate / n as f64;
    let parts = normal(n + 2, draws);
    let bin = |(k, part): (usize, &[f32])| Complex::new(part[0], part[1]) / fall((k as f64 * hz).max(FLAT_HZ)) as f32;
    let mut spectrum = Spectrum { len: n, bins: parts.chunks_exact(2).enumerate().map(bin).collect() };
    spectrum.bins[0] = Complex::new(0.0, 0.0);
    let mut out = vec![0.0; len];
    spectrum.signal(&mut out);
    out
}

/// Gaussian noise (Box and Muller 1958).
fn normal(len: usize, draws: &mut Draws) -> Vec<f32> {
    let mut out = vec![0.0; len];
    for pair in out.chunks_mut(2) {
        let radius = (-2.0 * (1.0 - draws.unit()).ln()).sqrt();
        let (sin, cos) = (TAU * draws.unit()).sin_cos();
        pair.iter_mut().zip([radius * cos, radius * sin]).for_each(|(o, x)| *o = x as f32);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: f64 = 16_000.0;

    fn sine(hz: f64, phase: f64, len: usize) -> Vec<f32> {
        (0..len).map(|i| (TAU * hz * i as f64 / RATE + phase).cos() as f32).collect()
    }

    #[test]
    fn phases_turn_and_nothing_else() {
        for radians in [0.0, 1.0, -2.5, PI] {
            // Where it fades in and out, so that its ends do not ring.
            let fade = |x: Vec<f32>| -> Vec<f32> {
                let n = x.len() as f64;
                x.into_iter().enumerate().map(|(i, x)| x * (PI * i as f64 / n).sin().powi(2) as f32).collect()
            };
            let (mut x, expected) = (fade(sine(437.0, 0.3, 5001)), fade(sine(437.0, 0.3 + radians, 5001)));
            rotate(&mut x, radians);
            let worst = x.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 2e-3, "{radians}: {worst}");
        }
    }

    #[test]
    fn convolution_is_that_of_its_definition() {
        let mut draws = Draws::new(1, 2, 3);
        let (x, h) = (normal(301, &mut draws), normal(77, &mut draws));
        let mut found = x.clone();
        convolve(&mut found, &h);
        for (t, y) in found.iter().enumerate() {
            let expected: f32 = (0..=t.min(h.len() - 1)).map(|k| h[k] * x[t - k]).sum();
            assert!((y - expected).abs() < 1e-4, "{t}: {y}, expected {expected}");
        }
    }

    #[test]
    fn rooms_decay_as_asked_for() {
        for (rt60, direct) in [(0.3, 0.0), (0.8, 10.0)] {
            let h = room(rt60, direct, RATE, &mut Draws::new(1, 2, 3));
            let energy = |x: &[f32]| power(x) * x.len() as f64;
            assert!((10.0 * energy(&h[1..]).log10() + direct).abs() < 0.01);
            // Slope of the energy that is still to come (Schroeder 1965), from 5 to 35 dB.
            let left = |db: f64| (0..h.len()).find(|&t| 10.0 * (energy(&h[1 + t..]) / energy(&h[1..])).log10() < -db).unwrap() as f64;
            let found = 2.0 * (left(35.0) - left(5.0)) / RATE;
            assert!((found / rt60 - 1.0).abs() < 0.1, "{found}, expected {rt60}");
        }
    }

    #[test]
    fn colours_fall_by_their_slopes() {
        let mut draws = Draws::new(4, 5, 6);
        let white = normal(1 << 16, &mut draws);
        let [pink, brown] = [f64::sqrt as fn(f64) -> f64, |hz| hz].map(|fall| coloured(1 << 16, fall, RATE, &mut draws));
        for (x, octave_db) in [(white, 0.0), (pink, 3.01), (brown, 6.02)] {
            let spectrum = Spectrum::of(&x, 1 << 16);
            let band = |low: f64, high: f64| {
                let at = |hz: f64| (hz / RATE * 65536.0) as usize;
                let bins = &spectrum.bins[at(low)..at(high)];
                10.0 * (bins.iter().map(|b| f64::from(b.norm_sqr())).sum::<f64>() / bins.len() as f64).log10()
            };
            // Two octaves apart.
            let found = (band(400.0, 500.0) - band(1600.0, 2000.0)) / 2.0;
            assert!((found - octave_db).abs() < 0.35, "{found} dB an octave, expected {octave_db}");
        }
    }

    /// Whoever else there is, each utterance as often as any; of one speaker the other utterances.
    #[test]
    fn voices_babble_with_those_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let tone: Vec<f32> = sine(200.0, 0.0, 8000).into_iter().map(|x| 0.1 * x).collect();
        let dataset = |speakers: &[&str]| {
            let folder = dir.path().join(speakers.join(""));
            for (i, speaker) in speakers.iter().enumerate() {
                let path = folder.join(format!("in/{speaker}/{i}.wav"));
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                crate::audio::write(path, &tone, RATE as u32, crate::audio::WavFormat::F32).unwrap();
            }
            let options = super::super::Options { validation_speakers: vec!["v".into()], ..Default::default() };
            super::super::prepare(&[folder.join("in")], folder.join("out"), &options, |_| {}).unwrap();
            Dataset::open(folder.join("out")).unwrap()
        };
        for speakers in [&["b", "a", "b", "c", "v", "b"][..], &["a", "a", "a", "v"]] {
            let data = dataset(speakers);
            let all = data.utterances();
            let voices = Voices::new(&data, Split::Train);
            for (own, utterance) in data.split(Split::Train) {
                let others =
                    |other: &dyn Fn(usize) -> bool| data.split(Split::Train).map(|(i, _)| i).filter(|&i| other(i)).collect::<Vec<_>>();
                let mut expected = others(&|i| all[i].speaker != utterance.speaker);
                if expected.is_empty() {
                    expected = others(&|i| i != own);
                }
                let mut counts = vec![0; all.len()];
                let mut draws = Draws::new(1, 2, own as u64);
                (0..1000).for_each(|_| counts[voices.draw(own, &mut draws)] += 1);
                for (i, count) in counts.into_iter().enumerate() {
                    let share = if expected.contains(&i) { 1000 / expected.len() } else { 0 };
                    assert!(share.abs_diff(count) <= share / 4, "{speakers:?}: {own} with {i} {count} times, expected {share}");
                }
            }
        }
    }

    #[test]
    fn pauses_do_not_count_as_speech() {
        let mut x = sine(440.0, 0.0, 16_000);
        let alone = active_power(&x, RATE);
        x.resize(48_000, 1e-4);
        assert!((active_power(&x, RATE) / alone - 1.0).abs() < 1e-6);
        assert!((alone - 0.5).abs() < 1e-3);
        let mut silence = [0.0; 100];
        add_at(&mut silence, &[1.0; 100], 10.0, RATE);
        assert_eq!(silence, [0.0; 100]);
    }
}
