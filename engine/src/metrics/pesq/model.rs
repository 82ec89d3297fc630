//! What is heard of the difference.

use swara_fft::Transform;

use super::bands::{BANDS, Band, TABLE};
use super::delays::{Utterance, correlate};
use super::{MARGIN, STEP, Signal, TAIL};

/// Samples of a frame; frames overlap by half.
const FRAME: usize = 512;
const HOP: usize = FRAME / 2;
const START: usize = MARGIN * STEP;
/// Five samples that together are weaker than this are silence, where the score begins and ends.
const SILENCE: f64 = 500.0;
/// A frame with less audible power is silent.
const SILENT_FRAME: f64 = 1e7;
/// Loudness of power (Zwicker).
const LOUDNESS: f64 = 1.866055e-1;
/// A frame that differs by more may be out of step; so many of them in a row are aligned anew.
const BAD: f64 = 30.0;
const BAD_FRAMES: usize = 5;
/// Frames on either side over which bad ones are joined.
const SMEAR: usize = 2;
/// What a frame can add at most.
const MOST: f64 = 45.0;

type Power = [f64; BANDS];

/// Symmetric disturbance of a frame, and that by what was added to the sound.
#[derive(Clone, Copy, Default)]
struct Disturbance {
    symmetric: f64,
    added: f64,
}

/// The score before it is mapped to opinions. `None` if there is no utterance, or nothing but silence.
pub fn score(x: Signal, y: Signal, utterances: &[Utterance]) -> Option<f64> {
    let span = x.own + TAIL;
    let (lead, trail) = silence(&x);
    let last = (span.checked_sub(trail)? / HOP).checked_sub(1)?;
    let first = lead / HOP;
    if utterances.is_empty() || first > last {
        return None;
    }
    let ear = Ear::new();
    let frames = last + 1;
    let mut x_power: Vec<Power> = (0..frames).map(|f| ear.hear(&x.samples, (START + f * HOP) as isize)).collect();
    let mut y_power: Vec<Power> = (0..frames)
        .map(|f| {
            let at = START + f * HOP;
            let moved = at as isize + delay(utterances, at);
            let inside = moved > 0 && moved + (FRAME as isize) < y.samples.len() as isize;
            if inside { ear.hear(&y.samples, moved) } else { [0.0; BANDS] }
        })
        .collect();
    equalise(&mut x_power, &y_power, span / HOP - 1);
    let reference: Vec<f64> = x_power.iter().map(|power| audible(power, 1.0)).collect();
    let mut found = disturbances(&x_power, &mut y_power, None);
    left_out(&mut found, utterances);
    realign(&x, &y, &x_power, utterances, &ear, &mut found);

    // Longer signals: what comes late counts more.
    let weight = |frame: usize| match frames {
        0..=1000 => 1.0,
        _ => {
            let n = (x.own / HOP) as f64 - 1.0;
            let late = ((n - 1000.0) / 5500.0).min(0.5);
            1.0 - late + late * frame as f64 / n
        }
    };
    for (disturbance, power) in found.iter_mut().zip(&reference) {
        let louder = ((power + 1e5) / 1e7).powf(0.04);
        disturbance.symmetric = (disturbance.symmetric / louder).min(MOST);
        disturbance.added = (disturbance.added / louder).min(MOST);
    }
    let heard = &found[first..];
    let symmetric = over_time(heard, weight, |d| d.symmetric);
    let added = over_time(heard, weight, |d| d.added);
    Some(4.5 - 0.1 * symmetric - 0.0309 * added)
}

/// Samples of silence at the start of a signal and at its end, the latter counted from [`TAIL`] behind it.
fn silence(x: &Signal) -> (usize, usize) {
    let most = x.len() / 2;
    let last = START + x.own + TAIL - 1;
    let weak = |five: &[f64]| five.iter().map(|v| v.abs()).sum::<f64>() < SILENCE;
    let lead = (0..most).take_while(|i| weak(&x.samples[START + i..][..5])).count();
    let trail = (0..most).take_while(|i| last.checked_sub(i + 4).is_some_and(|at| weak(&x.samples[at..][..5]))).count();
    (lead, trail)
}

/// By how many samples the test signal is late at a sample of the reference.
fn delay(utterances: &[Utterance], at: usize) -> isize {
    let said = utterances.iter().rfind(|u| u.start * STEP as isize <= at as isize);
    said.or(utterances.first()).map_or(0, |u| u.delay)
}

/// Power over the bands.
struct Ear {
    fft: std::sync::Arc<dyn swara_fft::RealToComplex<f64>>,
    hann: Vec<f64>,
}

impl Ear {
    fn new() -> Ear {
        let hann = (0..FRAME).map(|i| 0.5 - 0.5 * (std::f64::consts::TAU * i as f64 / FRAME as f64).cos()).collect();
        Ear { fft: f64::forward_plan(FRAME), hann }
    }

    /// The frame that starts at `at`; silence where the signal does not have it.
    fn hear(&self, samples: &[f64], at: isize) -> Power {
        let mut power = [0.0; BANDS];
        let Some(frame) = usize::try_from(at).ok().and_then(|at| samples.get(at..at + FRAME)) else { return power };
        let mut wave: Vec<f64> = frame.iter().zip(&self.hann).map(|(v, w)| v * w).collect();
        let mut spectrum = self.fft.make_output_vec();
        if self.fft.process(&mut wave, &mut spectrum).is_err() {
            return power;
        }
        let mut bins = spectrum.iter().map(|c| c.norm_sqr()).enumerate().map(|(k, p)| if k == 0 { 0.0 } else { p });
        for (power, band) in power.iter_mut().zip(TABLE.iter()) {
            *power = band.density * bins.by_ref().take(band.bins).sum::<f64>();
        }
        power
    }
}

/// Sum of the bands that are louder than so many times what is just heard; the lowest is left out.
fn audible(power: &Power, factor: f64) -> f64 {
    power.iter().zip(TABLE.iter()).skip(1).filter(|(p, band)| **p > factor * band.threshold).map(|(p, _)| p).sum()
}

/// A constant filter between the signals is not held against the test signal, up to 20 dB: the reference is heard through it.
fn equalise(x: &mut [Power], y: &[Power], total: usize) {
    let spoken: Vec<bool> = x.iter().map(|power| audible(power, 100.0) >= SILENT_FRAME).collect();
    let means = |powers: &[Power], i: usize, band: &Band| {
        let loud = powers.iter().zip(&spoken).filter(|(p, spoken)| **spoken && p[i] > 100.0 * band.threshold);
        loud.map(|(p, _)| p[i]).sum::<f64>() / total as f64
    };
    for (i, band) in TABLE.iter().enumerate() {
        let factor = ((means(y, i, band) + 1000.0) / (means(x, i, band) + 1000.0)).clamp(0.01, 100.0);
        x.iter_mut().for_each(|power| power[i] *= factor);
    }
}

/// Frames of the test signal are brought to the reference's level, slowly, and compared. `before`: the gain of the frame before the first.
fn disturbances(x: &[Power], y: &mut [Power], mut before: Option<f64>) -> Vec<Disturbance> {
    x.iter()
        .zip(y)
        .map(|(x, y)| {
            let scale = (audible(x, 1.0) + 5e3) / (audible(y, 1.0) + 5e3);
            let scale = before.map_or(scale, |before| 0.2 * before + 0.8 * scale);
            before = Some(scale);
            y.iter_mut().for_each(|p| *p *= scale.clamp(3e-4, 5.0));
            disturbance(x, y)
        })
        .collect()
}

fn disturbance(x: &Power, y: &Power) -> Disturbance {
    let (mut squares, mut added, mut total) = (0.0, 0.0, 0.0);
    for (band, (&x, &y)) in TABLE.iter().zip(x.iter().zip(y)).skip(1) {
        let (loud_x, loud_y) = (loudness(band, x), loudness(band, y));
        // A quarter of the softer of the two masks the difference.
        let masked = 0.25 * loud_x.min(loud_y);
        let difference = ((loud_y - loud_x).abs() - masked).max(0.0) * band.width;
        let asymmetry = ((y + 50.0) / (x + 50.0)).powf(1.2);
        squares += difference * difference;
        added += difference * if asymmetry < 3.0 { 0.0 } else { asymmetry.min(12.0) };
        total += band.width;
    }
    Disturbance { symmetric: (squares / total).sqrt() * total, added }
}

fn loudness(band: &Band, power: f64) -> f64 {
    if power <= band.threshold {
        return 0.0;
    }
    let of = |p: f64| p.powf(band.exponent);
    LOUDNESS * of(band.threshold / 0.5) * (of(0.5 + 0.5 * power / band.threshold) - 1.0)
}

/// Where the test signal jumps ahead by more than half a frame, what it leaves out is not compared.
fn left_out(found: &mut [Disturbance], utterances: &[Utterance]) {
    let hop = HOP as isize;
    let last = found.len().saturating_sub(1);
    for pair in utterances.windows(2) {
        let jump = pair[1].delay - pair[0].delay;
        if jump >= -hop {
            continue;
        }
        let sample = |frame: isize| (frame - MARGIN as isize) * STEP as isize;
        let from = ((sample(pair[1].start) + pair[1].delay) / hop).min((sample(pair[0].end) + pair[0].delay) / hop).max(0) as usize;
        let to = ((sample(pair[1].start) + jump.abs()) / hop + 1).max(0) as usize;
        if let Some(skipped) = found.get_mut(from..last.min(to + 1)) {
            skipped.fill(Disturbance::default());
        }
    }
}

/// Stretches of bad frames are compared again, moved to where they fit best, if that is better.
fn realign(x: &Signal, y: &Signal, x_power: &[Power], utterances: &[Utterance], ear: &Ear, found: &mut [Disturbance]) {
    let stretches = bad_stretches(found);
    if stretches.is_empty() {
        return;
    }
    let end = y.samples.len() - START;
    let mut moved = vec![0.0; y.samples.len()];
    for (i, slot) in moved.iter_mut().enumerate().take(end).skip(START) {
        *slot = y.samples[(i as isize + delay(utterances, i)).clamp(START as isize, end as isize - 1) as usize];
    }
    let mut again = moved.clone();
    for stretch in &stretches {
        let samples = START + stretch.start * HOP..START + stretch.end * HOP + FRAME;
        let late = stretch_delay(x, &moved, samples.clone());
        for i in samples {
            again[i] = moved[(i as isize + late).clamp(0, x.len() as isize - 1) as usize];
        }
    }
    for stretch in stretches {
        let mut y_power: Vec<Power> = stretch.clone().map(|f| ear.hear(&again, (START + f * HOP) as isize)).collect();
        let better = disturbances(&x_power[stretch.clone()], &mut y_power, Some(1.0));
        for (old, new) in found[stretch].iter_mut().zip(better) {
            *old = Disturbance { symmetric: old.symmetric.min(new.symmetric), added: old.added.min(new.added) };
        }
    }
}

fn bad_stretches(found: &[Disturbance]) -> Vec<std::ops::Range<usize>> {
    let bad = |frame: usize| frame > 0 && found[frame].symmetric > BAD;
    let joined = |frame: usize| {
        let inside = frame >= SMEAR && frame + SMEAR + 1 < found.len();
        inside && (frame - SMEAR..=frame).any(bad) && (frame..=frame + SMEAR).any(bad)
    };
    let mut stretches: Vec<std::ops::Range<usize>> = Vec::new();
    for frame in (0..found.len()).filter(|&f| joined(f)) {
        match stretches.last_mut() {
            Some(stretch) if stretch.end == frame => stretch.end += 1,
            _ => stretches.push(frame..frame + 1),
        }
    }
    stretches.retain(|stretch| stretch.len() >= BAD_FRAMES);
    stretches
}

/// The delay at which the magnitudes in a stretch agree best, 0 if they hardly do.
fn stretch_delay(x: &Signal, moved: &[f64], samples: std::ops::Range<usize>) -> isize {
    const REACH: usize = 4 * FRAME;
    let n = samples.len() + 2 * REACH;
    let size = (2 * n).next_power_of_two();
    let (forward, inverse) = (f64::forward_plan(size), f64::inverse_plan(size));
    let (mut a, mut b) = (vec![0.0; size], vec![0.0; size]);
    for (slot, v) in a[REACH..].iter_mut().zip(&x.samples[samples.clone()]) {
        *slot = v.abs();
    }
    let last = x.len() - START + TAIL - 1;
    for (i, slot) in b.iter_mut().enumerate().take(n) {
        *slot = moved[(samples.start + i).saturating_sub(REACH).clamp(START, last)].abs();
    }
    let energy = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>();
    let (ea, eb) = (energy(&a), energy(&b));
    if ea.min(eb) <= 1e-6 * size as f64 {
        return 0;
    }
    let mut spectra = [forward.make_output_vec(), forward.make_output_vec()];
    let ok = forward.process(&mut a, &mut spectra[0]).is_ok() && forward.process(&mut b, &mut spectra[1]).is_ok();
    let mut product = correlate(&spectra[0], &spectra[1]);
    if !ok || inverse.process(&mut product, &mut a).is_err() {
        return 0;
    }
    let norm = (ea * eb).sqrt() * size as f64;
    let at = |lag: isize| a[lag.rem_euclid(size as isize) as usize].abs() / norm;
    let reach = REACH as isize;
    let (best, most) = (-reach..reach).fold((0, 0.0), |(best, most), lag| if at(lag) > most { (lag, at(lag)) } else { (best, most) });
    if most < 0.5 { 0 } else { best }
}

/// Means of sixth powers over stretches of 20 frames, which overlap by half, then of squares over the stretches.
fn over_time(frames: &[Disturbance], weight: impl Fn(usize) -> f64, of: impl Fn(&Disturbance) -> f64) -> f64 {
    const STRETCH: usize = 20;
    let (mut sum, mut weights) = (0.0, 0.0);
    for start in (0..frames.len()).step_by(STRETCH / 2) {
        let stretch = &frames[start..frames.len().min(start + STRETCH)];
        let mean = (stretch.iter().map(|d| of(d).powi(6)).sum::<f64>() / STRETCH as f64).powf(1.0 / 6.0);
        sum += (weight(start) * mean).powi(2);
        weights += weight(start).powi(2);
    }
    (sum / weights).sqrt()
}
