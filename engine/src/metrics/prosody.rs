use serde::Serialize;
use swara_fft::{Complex, ComplexToReal, RealToComplex, Transform};

/// Pitches that are looked for, Hz.
const PITCH: (f64, f64) = (65.0, 800.0);
/// Seconds between frames, and of what is compared with itself.
const HOP: f64 = 0.01;
const WINDOW: f64 = 0.025;
/// A frame is voiced if its normalised difference falls below this.
const APERIODICITY: f64 = 0.15;
/// Frames this much weaker than the loudest are silent, dB.
const RANGE_DB: f64 = 40.0;

/// How a test signal follows the melody and the stress of its reference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Prosody {
    /// Root mean square of the differences in pitch, over the frames that are voiced in both. `None` if there are none.
    pub f0_rmse_cents: Option<f64>,
    /// F1 score of being voiced. `None` if no frame is voiced in either.
    pub voicing_f1: Option<f64>,
    /// Correlation of the levels in dB, silence at -40 dB. `None` if either is constant.
    pub energy_correlation: Option<f64>,
}

/// Compares frames every 10 ms. The signals are aligned and of equal length.
pub fn prosody(reference: &[f32], test: &[f32], sample_rate: u32) -> Prosody {
    let n = reference.len().min(test.len());
    let (x, y) = (&reference[..n], &test[..n]);
    let frames: Vec<_> = pitch(x, sample_rate).into_iter().zip(pitch(y, sample_rate)).collect();
    let count = |of: fn(&(Option<f64>, Option<f64>)) -> bool| frames.iter().filter(|f| of(f)).count();
    let (both, either) = (count(|(a, b)| a.is_some() && b.is_some()), count(|(a, b)| a.is_some() || b.is_some()));
    let squares: f64 = frames.iter().filter_map(|&(a, b)| Some((1200.0 * (b? / a?).log2()).powi(2))).sum();
    Prosody {
        f0_rmse_cents: (both > 0).then(|| (squares / both as f64).sqrt()),
        voicing_f1: (either > 0).then(|| 2.0 * both as f64 / (both + either) as f64),
        energy_correlation: correlation(&levels(x, sample_rate), &levels(y, sample_rate)),
    }
}

/// Pitch in Hz of a frame every 10 ms, `None` where it is silent or not voiced (YIN; de Cheveigné and Kawahara 2002).
pub fn pitch(wave: &[f32], sample_rate: u32) -> Vec<Option<f64>> {
    let mut yin = Yin::new(sample_rate);
    frame_levels(wave, sample_rate).into_iter().map(|(at, heard)| heard.then(|| yin.pitch(&wave[at..])).flatten()).collect()
}

/// Samples between the frames of [`pitch`], and those that one is heard in.
pub fn pitch_frames(sample_rate: u32) -> (usize, usize) {
    let (window, lags) = window_and_lags(sample_rate);
    (hop(sample_rate), reach(window, lags))
}

/// Starts of the frames, and whether they are not silent.
fn frame_levels(wave: &[f32], sample_rate: u32) -> Vec<(usize, bool)> {
    let hop = hop(sample_rate);
    levels(wave, sample_rate).into_iter().enumerate().map(|(i, level)| (i * hop, level > -RANGE_DB)).collect()
}

fn hop(sample_rate: u32) -> usize {
    ((f64::from(sample_rate) * HOP) as usize).max(1)
}

/// Levels of the frames in dB below the loudest, [`RANGE_DB`] at most.
fn levels(wave: &[f32], sample_rate: u32) -> Vec<f64> {
    let window = (f64::from(sample_rate) * WINDOW) as usize;
    let energy = |at: usize| wave[at..wave.len().min(at + window)].iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
    let energies: Vec<f64> = (0..wave.len()).step_by(hop(sample_rate)).map(energy).collect();
    let loudest = energies.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    energies.into_iter().map(|e| (10.0 * (e / loudest).log10()).max(-RANGE_DB)).collect()
}

fn correlation(x: &[f64], y: &[f64]) -> Option<f64> {
    let n = x.len().min(y.len()).max(1) as f64;
    let (mx, my) = (x.iter().sum::<f64>() / n, y.iter().sum::<f64>() / n);
    let sum = |of: &dyn Fn(f64, f64) -> f64| x.iter().zip(y).map(|(x, y)| of(x - mx, y - my)).sum::<f64>();
    let norm = (sum(&|x, _| x * x) * sum(&|_, y| y * y)).sqrt();
    (norm > 0.0).then(|| sum(&|x, y| x * y) / norm)
}

/// Samples of what is compared with itself, and the lags at which, shortest and longest.
fn window_and_lags(sample_rate: u32) -> (usize, (usize, usize)) {
    let rate = f64::from(sample_rate);
    (((rate * WINDOW) as usize).max(2), (((rate / PITCH.1) as usize).max(1), (rate / PITCH.0).ceil() as usize + 1))
}

/// Samples that a frame is heard in.
fn reach(window: usize, lags: (usize, usize)) -> usize {
    window + lags.1 + 1
}

/// Finds the lag at which a window differs least from the signal.
struct Yin {
    rate: f64,
    window: usize,
    /// Lags, in samples.
    lags: (usize, usize),
    forward: std::sync::Arc<dyn RealToComplex<f64>>,
    inverse: std::sync::Arc<dyn ComplexToReal<f64>>,
    wave: Vec<f64>,
    spectra: [Vec<Complex<f64>>; 2],
}

impl Yin {
    fn new(sample_rate: u32) -> Yin {
        let (rate, (window, lags)) = (f64::from(sample_rate), window_and_lags(sample_rate));
        let size = (2 * window + lags.1 + 1).next_power_of_two();
        let (forward, inverse) = (f64::forward_plan(size), f64::inverse_plan(size));
        let spectra = [forward.make_output_vec(), forward.make_output_vec()];
        Yin { rate, window, lags, wave: forward.make_input_vec(), spectra, forward, inverse }
    }

    /// Of what begins here; `None` if it is too short, or not periodic.
    fn pitch(&mut self, wave: &[f32]) -> Option<f64> {
        let (shortest, longest) = self.lags;
        let wave = wave.get(..reach(self.window, self.lags))?;
        for (spectrum, part) in self.spectra.iter_mut().zip([&wave[..self.window], wave]) {
            self.wave.fill(0.0);
            self.wave.iter_mut().zip(part).for_each(|(slot, &v)| *slot = f64::from(v));
            self.forward.process(&mut self.wave, spectrum).ok()?;
        }
        let [x, y] = &mut self.spectra;
        x.iter_mut().zip(y).for_each(|(x, y)| *x = x.conj() * *y);
        // The two ends of a real signal's spectrum are real but for rounding.
        let last = x.len() - 1;
        (x[0].im, x[last].im) = (0.0, 0.0);
        self.inverse.process(x, &mut self.wave).ok()?;
        let scale = self.wave.len() as f64;
        let square = |v: f32| f64::from(v).powi(2);
        let own: f64 = wave[..self.window].iter().map(|&v| square(v)).sum();
        let (mut energy, mut sum) = (own, 0.0);
        // The difference at a lag, over its mean at all lags up to there.
        let normalised: Vec<f64> = (0..=longest + 1)
            .map(|lag| {
                if lag == 0 {
                    return 1.0;
                }
                energy += square(wave[self.window + lag - 1]) - square(wave[lag - 1]);
                let difference = (own + energy - 2.0 * self.wave[lag] / scale).max(0.0);
                sum += difference;
                // Of a constant there is rounding alone.
                if sum > 1e-9 * own * lag as f64 { difference * lag as f64 / sum } else { 1.0 }
            })
            .collect();
        let below = (shortest..=longest).find(|&lag| normalised[lag] < APERIODICITY)?;
        let lag = (below..=longest).find(|&lag| normalised[lag + 1] >= normalised[lag]).unwrap_or(longest);
        let [before, at, after] = [lag.saturating_sub(1), lag, lag + 1].map(|lag| normalised[lag]);
        let curve = before - 2.0 * at + after;
        let offset = if curve > 0.0 { (0.5 * (before - after) / curve).clamp(-0.5, 0.5) } else { 0.0 };
        let pitch = self.rate / (lag as f64 + offset);
        (PITCH.0..=PITCH.1).contains(&pitch).then_some(pitch)
    }
}
