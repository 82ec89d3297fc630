//! Where there is speech, and how late the test signal is there.

use std::ops::Range;
use std::sync::Arc;

use swara_fft::{Complex, ComplexToReal, RealToComplex, Transform};

use super::{MARGIN, STEP, Signal};

/// Samples of a window of the fine alignment; it moves on by a quarter.
const WINDOW: usize = 1024;
/// Half the width of the kernel that smooths the histogram of delays.
const KERNEL: usize = WINDOW / 64;
/// Activity frames of the shortest stretch that counts as speech, of the longest gap within one, and of the shortest utterance.
const SHORTEST: usize = 4;
const GAP: usize = 50;
const UTTERANCE: isize = 50;
const MOST_UTTERANCES: usize = 50;
/// An utterance of this many activity frames may be two with different delays.
const DIVISIBLE: isize = 200;
const BREAKS: usize = 40;

const STEP_I: isize = STEP as isize;
const MARGIN_I: isize = MARGIN as isize;

/// A stretch of the reference and by how many samples the test signal is late there.
#[derive(Clone, Debug)]
pub struct Utterance {
    /// Activity frames.
    pub start: isize,
    pub end: isize,
    pub delay: isize,
    /// The delay found in activity, whole frames.
    coarse: isize,
    /// Share of the windows that agree on `delay`.
    confidence: f64,
}

/// Utterances of `x`, in order; none if nothing is heard.
pub fn utterances(x: &Signal, y: &Signal) -> Vec<Utterance> {
    let aligner = Aligner { x, y, x_activity: Activity::of(x), y_activity: Activity::of(y), plans: Plans::new() };
    let mut found = aligner.locate();
    let mut i = 0;
    while i < found.len() {
        match aligner.divide(&found[i]).filter(|_| found.len() < MOST_UTTERANCES) {
            Some(halves) => drop(found.splice(i..=i, halves)),
            None => i += 1,
        }
    }
    found
}

/// How much is said in each frame of 4 ms.
struct Activity {
    /// Power where something is said, else 0.
    power: Vec<f64>,
    /// Its logarithm above the threshold.
    log: Vec<f64>,
}

impl Activity {
    fn of(signal: &Signal) -> Activity {
        let frames = signal.len() / STEP;
        let mut power: Vec<f64> =
            signal.samples.chunks_exact(STEP).take(frames).map(|frame| frame.iter().map(|v| v * v).sum::<f64>() / STEP as f64).collect();
        let mean = power.iter().sum::<f64>() / frames as f64;
        let loudest = power.iter().copied().fold(0.0, f64::max);
        let floor = if loudest > 0.0 { 1e-4 * loudest } else { 1.0 };
        power.iter_mut().for_each(|p| *p = p.max(floor));
        let mut threshold = (0..12).fold(mean, |threshold, _| {
            let (noise, deviation) = moments(power.iter().copied().filter(|&p| p <= threshold));
            1.001 * (noise + 2.0 * deviation)
        });
        let loud = moments(power.iter().copied().filter(|&p| p > threshold)).0;
        let noise = if power.iter().any(|&p| p <= threshold) { moments(power.iter().copied().filter(|&p| p <= threshold)).0 } else { 1.0 };
        if loud == 0.0 {
            threshold = -1.0;
        }
        // Negative where nothing is said.
        power.iter_mut().filter(|p| **p <= threshold).for_each(|p| *p = -*p);
        let (first, last) = (0, frames - 1);
        (power[first], power[last]) = (-floor, -floor);
        let mute = |power: &mut [f64], run: Range<usize>| power[run].iter_mut().for_each(|p| *p = -*p);
        for run in runs(&power).into_iter().filter(|run| run.len() <= SHORTEST) {
            mute(&mut power, run);
        }
        if loud >= 1000.0 * noise {
            for run in runs(&power) {
                if power[run.clone()].iter().sum::<f64>() < 3.0 * threshold * run.len() as f64 {
                    mute(&mut power, run);
                }
            }
        }
        let spoken = runs(&power);
        for pair in spoken.windows(2) {
            let gap = pair[0].end..pair[1].start;
            if gap.len() <= GAP {
                power[gap].fill(floor);
            }
        }
        if spoken.is_empty() {
            power[first + 1..last].iter_mut().for_each(|p| *p = p.abs());
        }
        soften(&mut power);
        power.iter_mut().for_each(|p| *p = p.max(0.0));
        let threshold = if threshold > 0.0 { threshold } else { floor };
        let log = power.iter().map(|&p| if p <= threshold { 0.0 } else { (p / threshold).ln() }).collect();
        Activity { power, log }
    }

    fn spoken(&self, frame: isize) -> bool {
        usize::try_from(frame).ok().and_then(|f| self.power.get(f)).is_some_and(|&p| p > 0.0)
    }
}

/// Mean and standard deviation; zeros of nothing.
fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / n;
    (mean, (values.map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt())
}

/// Stretches of positive values.
fn runs(values: &[f64]) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for i in (0..values.len()).filter(|&i| values[i] > 0.0) {
        match found.last_mut() {
            Some(run) if run.end == i => run.end += 1,
            _ => found.push(i..i + 1),
        }
    }
    found
}

/// Lets each stretch rise and fall over two frames.
fn soften(power: &mut [f64]) {
    let mut i = 3;
    while i + 2 < power.len() {
        if power[i] > 0.0 && power[i - 2] <= 0.0 {
            (power[i - 2], power[i - 1]) = (0.1 * power[i], 0.3 * power[i]);
            i += 1;
        }
        if power[i] <= 0.0 && power[i - 1] > 0.0 {
            (power[i], power[i + 1]) = (0.3 * power[i - 1], 0.1 * power[i - 1]);
            i += 3;
        }
        i += 1;
    }
}

struct Aligner<'a> {
    x: &'a Signal,
    y: &'a Signal,
    x_activity: Activity,
    y_activity: Activity,
    plans: Plans,
}

impl Aligner<'_> {
    /// The utterances as pauses part them.
    fn locate(&self) -> Vec<Utterance> {
        let frames = self.x_activity.log.len() as isize;
        let whole = STEP_I * lag(&self.x_activity.log, &self.y_activity.log);
        // What of the reference the test signal can have at all.
        let (first, last) = (UTTERANCE - whole / STEP_I, (self.y.len() as isize - whole) / STEP_I - UTTERANCE);
        let mut found: Vec<Utterance> = runs(&self.x_activity.power)
            .into_iter()
            .map(|run| (run.start as isize, (run.end as isize).min(frames - 1)))
            .filter(|&(start, end)| end - start >= UTTERANCE && start < last && end > first)
            .take(MOST_UTTERANCES - 1)
            .map(|(start, end)| {
                let (from, to) = ((start - MARGIN_I).max(0), (end + MARGIN_I).min(frames - 1));
                let coarse = self.coarse(from, to, whole);
                let (delay, confidence) = self.fine(from, to, coarse);
                Utterance { start, end, delay, coarse, confidence }
            })
            .collect();
        let Some(n) = found.len().checked_sub(1) else { return found };
        (found[0].start, found[n].end) = (MARGIN_I, frames - MARGIN_I);
        for i in 1..=n {
            let middle = (found[i].start + found[i - 1].end) / 2;
            (found[i].start, found[i - 1].end) = (middle, middle);
        }
        if found[0].start * STEP_I + found[0].delay < MARGIN_I * STEP_I {
            found[0].start = MARGIN_I + (STEP_I - 1 - found[0].delay) / STEP_I;
        }
        self.keep_inside(&mut found[n]);
        // In the test signal they may overlap.
        for i in 1..=n {
            let (start, end) = (found[i].start * STEP_I + found[i].delay, found[i - 1].end * STEP_I + found[i - 1].delay);
            if start < end {
                let middle = (start + end) / 2;
                found[i].start = (STEP_I - 1 + middle - found[i].delay) / STEP_I;
                found[i - 1].end = (middle - found[i - 1].delay) / STEP_I;
            }
        }
        found
    }

    /// Ends an utterance where the test signal ends.
    fn keep_inside(&self, utterance: &mut Utterance) {
        let samples = self.y.len() as isize;
        if utterance.end * STEP_I + utterance.delay > samples - MARGIN_I * STEP_I {
            utterance.end = (samples - utterance.delay) / STEP_I - MARGIN_I;
        }
    }

    /// The delay at which the activities of the reference's frames `from..to` and of the test signal agree, sought around `near`.
    fn coarse(&self, from: isize, to: isize, near: isize) -> isize {
        let x_from = from.max(-near / STEP_I);
        let y_from = x_from + near / STEP_I;
        let part = |of: &Activity, at: isize| {
            let (at, n) = (at.max(0) as usize, (to - x_from).max(0) as usize);
            of.log.get(at..of.log.len().min(at.saturating_add(n))).unwrap_or_default().to_vec()
        };
        near + STEP_I * lag(&part(&self.x_activity, x_from), &part(&self.y_activity, y_from))
    }

    /// The delay to a sample in the frames `from..to`, and how many windows agree on it.
    fn fine(&self, from: isize, to: isize, coarse: isize) -> (isize, f64) {
        let mut histogram = Histogram::new(self, coarse);
        histogram.forward(from * STEP_I, to * STEP_I);
        histogram.peak()
    }

    /// The two parts of an utterance that is late by different times before and after some frame, if that explains it better.
    fn divide(&self, whole: &Utterance) -> Option<[Utterance; 2]> {
        let first = (whole.start..whole.end).find(|&f| self.x_activity.spoken(f)).unwrap_or(whole.end);
        let last = (whole.start + 1..=whole.end).rev().find(|&f| self.x_activity.spoken(f)).unwrap_or(whole.start) + 1;
        let length = last - first;
        if length < DIVISIBLE {
            return None;
        }
        let pad = (length / 10).max(MARGIN_I);
        let unit = (WINDOW / 4 / STEP) as isize;
        let step = ((0.801 * length as f64 + (BREAKS as isize * unit - 1) as f64) / (BREAKS as isize * unit) as f64) as isize * unit;
        let breaks: Vec<isize> = (0..BREAKS as isize)
            .map(|i| first + pad + i * step)
            .enumerate()
            .take_while(|&(i, at)| i == 0 || at <= last - pad)
            .map(|(_, at)| at)
            .collect();
        let before: Vec<isize> = breaks.iter().map(|&at| self.coarse(whole.start, at, whole.coarse)).collect();
        let after: Vec<isize> = breaks.iter().map(|&at| self.coarse(at, whole.end, whole.coarse)).collect();
        // Breaks that share a coarse delay share the windows up to the first of them.
        let mut left: Vec<(isize, f64)> = vec![(0, 0.0); breaks.len()];
        for coarse in distinct(&before) {
            let mut histogram = Histogram::new(self, coarse);
            for i in (0..breaks.len()).filter(|&i| before[i] == coarse) {
                histogram.forward(whole.start * STEP_I, breaks[i] * STEP_I);
                left[i] = histogram.peak();
            }
        }
        let mut right: Vec<(isize, f64)> = vec![(0, 0.0); breaks.len()];
        for coarse in distinct(&after) {
            let mut histogram = Histogram::new(self, coarse);
            for i in (0..breaks.len()).rev().filter(|&i| after[i] == coarse && left[i].1 > whole.confidence) {
                histogram.backward(whole.end * STEP_I, breaks[i] * STEP_I);
                right[i] = histogram.peak();
            }
        }
        let sure = |i: usize| left[i].1 + right[i].1;
        let mut best: Option<usize> = None;
        for i in 0..breaks.len() {
            let better = left[i].1 > whole.confidence && right[i].1 > whole.confidence && best.is_none_or(|b| sure(i) > sure(b));
            if better && (right[i].0 - left[i].0).abs() >= STEP_I {
                best = Some(i);
            }
        }
        let i = best?;
        let ((d1, c1), (d2, c2)) = (left[i], right[i]);
        let part = |start, end, delay, coarse, confidence| Utterance { start, end, delay, coarse, confidence };
        // Where the test signal leaves something out, the parts meet; where it repeats, they overlap.
        let overlap = (d2 - d1).max(0) / (2 * STEP_I);
        let mut first = part(whole.start, breaks[i] + overlap, d1, before[i], c1);
        let mut second = part(breaks[i] - overlap, whole.end, d2, after[i], c2);
        if (first.start - MARGIN_I) * STEP_I + d1 < 0 {
            first.start = MARGIN_I + (STEP_I - 1 - d1) / STEP_I;
        }
        self.keep_inside(&mut second);
        Some([first, second])
    }
}

fn distinct(values: &[isize]) -> Vec<isize> {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.dedup();
    values
}

/// The lag of `y` with the largest correlation; 0 if there is none above 0.
fn lag(x: &[f64], y: &[f64]) -> isize {
    if x.len() < 2 || y.len() < 2 {
        return 0;
    }
    let size = (x.len() + y.len()).next_power_of_two();
    let (forward, inverse) = (f64::forward_plan(size), f64::inverse_plan(size));
    let transform = |signal: &[f64]| {
        let mut wave = signal.to_vec();
        wave.resize(size, 0.0);
        let mut spectrum = forward.make_output_vec();
        forward.process(&mut wave, &mut spectrum).expect("lengths are the plan's own");
        spectrum
    };
    let mut product = correlate(&transform(x), &transform(y));
    let mut correlation = inverse.make_output_vec();
    inverse.process(&mut product, &mut correlation).expect("lengths are the plan's own");
    let at = |lag: isize| correlation[lag.rem_euclid(size as isize) as usize];
    let noise = 1e-9 * correlation.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let lags = 1 - x.len() as isize..y.len() as isize;
    let best = lags.fold((0, noise), |(best, most), lag| if at(lag) > most { (lag, at(lag)) } else { (best, most) });
    best.0
}

/// The spectrum of `sum_t x[t] y[t + l]`.
pub fn correlate(x: &[Complex<f64>], y: &[Complex<f64>]) -> Vec<Complex<f64>> {
    let mut product: Vec<_> = x.iter().zip(y).map(|(x, y)| x.conj() * y).collect();
    // The two ends of a real signal's spectrum are real but for rounding.
    for end in [0, product.len() - 1] {
        product[end].im = 0.0;
    }
    product
}

struct Plans {
    forward: Arc<dyn RealToComplex<f64>>,
    inverse: Arc<dyn ComplexToReal<f64>>,
    hann: Vec<f64>,
}

impl Plans {
    fn new() -> Plans {
        let hann = (0..WINDOW).map(|i| 0.5 - 0.5 * (std::f64::consts::TAU * i as f64 / WINDOW as f64).cos()).collect();
        Plans { forward: f64::forward_plan(WINDOW), inverse: f64::inverse_plan(WINDOW), hann }
    }
}

/// Which delays the windows of a stretch speak for.
struct Histogram<'a> {
    aligner: &'a Aligner<'a>,
    /// Delay about which it is.
    coarse: isize,
    weights: Vec<f64>,
    total: f64,
    /// Start of the next window in the reference.
    next: Option<isize>,
}

impl<'a> Histogram<'a> {
    fn new(aligner: &'a Aligner<'a>, coarse: isize) -> Histogram<'a> {
        Histogram { aligner, coarse, weights: vec![0.0; WINDOW], total: 0.0, next: None }
    }

    /// Adds the windows from sample `from` that end before `to`; called again, from where it had come.
    fn forward(&mut self, from: isize, to: isize) {
        let mut at = self.next.unwrap_or(from.max(-self.coarse));
        let ends = (self.aligner.y.len() as isize - self.coarse).min(to);
        while at + WINDOW as isize <= ends {
            self.add(at);
            at += WINDOW as isize / 4;
        }
        self.next = Some(at);
    }

    /// The same from the end, down to `from`.
    fn backward(&mut self, to: isize, from: isize) {
        let latest = to.min(self.aligner.y.len() as isize - self.coarse) - WINDOW as isize;
        let mut at = self.next.unwrap_or(latest);
        while at >= from.max(-self.coarse) {
            self.add(at);
            at -= WINDOW as isize / 4;
        }
        self.next = Some(at);
    }

    /// A vote of one window: delays whose correlation is within a hundredth of the best.
    fn add(&mut self, at: isize) {
        let Plans { forward, inverse, hann } = &self.aligner.plans;
        let transform = |signal: &Signal, at: isize| {
            let samples = usize::try_from(at).ok().and_then(|at| signal.samples.get(at..at + WINDOW))?;
            let mut wave: Vec<f64> = samples.iter().zip(hann).map(|(v, w)| v * w).collect();
            let mut spectrum = forward.make_output_vec();
            forward.process(&mut wave, &mut spectrum).ok()?;
            Some(spectrum)
        };
        let Some((x, y)) = transform(self.aligner.x, at).zip(transform(self.aligner.y, at + self.coarse)) else { return };
        let mut wave = inverse.make_output_vec();
        if inverse.process(&mut correlate(&x, &y), &mut wave).is_err() {
            return;
        }
        let most = 0.99 * wave.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        let vote = most.powf(0.125);
        for (weight, _) in self.weights.iter_mut().zip(&wave).filter(|(_, v)| v.abs() > most) {
            *weight += vote;
            self.total += vote;
        }
    }

    /// The delay with most votes in its neighbourhood, and their share.
    fn peak(&self) -> (isize, f64) {
        let mut smooth = vec![0.0; WINDOW];
        for (i, &weight) in self.weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
            for k in 0..2 * KERNEL - 1 {
                let away = k.abs_diff(KERNEL - 1);
                smooth[(i + k + WINDOW + 1 - KERNEL) % WINDOW] += weight * (1.0 - away as f64 / KERNEL as f64);
            }
        }
        let (best, most) = smooth.iter().enumerate().fold((0, 0.0), |(best, most), (i, &v)| if v > most { (i, v) } else { (best, most) });
        let offset = if best >= WINDOW / 2 { best as isize - WINDOW as isize } else { best as isize };
        (self.coarse + offset, if self.total > 0.0 { most / self.total } else { 0.0 })
    }
}
