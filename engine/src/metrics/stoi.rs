use swara_fft::Transform;

const RATE: u32 = 10_000;
const FRAME: usize = 256;
const HOP: usize = FRAME / 2;
const FFT: usize = 512;
const BANDS: usize = 15;
const LOWEST_CENTRE: f64 = 150.0;
/// Frames of one intermediate measure: 384 ms.
const SEGMENT: usize = 30;
/// Frames this much weaker than the strongest one are silence, dB.
const DYNAMIC_RANGE: f64 = 40.0;
/// Lower bound of the signal-to-distortion ratio, dB.
const BETA: f64 = -15.0;

/// Short-time objective intelligibility, 0 to 1 (Taal et al. 2011): mean correlation of short third-octave envelopes.
///
/// `None` if fewer than 30 frames of 25.6 ms are not silent. The signals are aligned and of equal length.
pub fn stoi(reference: &[f32], test: &[f32], sample_rate: u32) -> Option<f64> {
    let n = reference.len().min(test.len());
    let x = resample(&reference[..n], sample_rate);
    let y = resample(&test[..n], sample_rate);
    let (x, y) = drop_silence(&x, &y);
    let (x, y) = (envelopes(&x), envelopes(&y));
    if x[0].len() < SEGMENT {
        return None;
    }
    let clip = 1.0 + 10f64.powf(-BETA / 20.0);
    let mut sum = 0.0;
    for (x, y) in x.iter().zip(&y) {
        for (x, y) in x.windows(SEGMENT).zip(y.windows(SEGMENT)) {
            let scale = norm(x) / (norm(y) + f64::EPSILON);
            let clipped: Vec<f64> = x.iter().zip(y).map(|(x, y)| (y * scale).min(x * clip)).collect();
            sum += correlation(x, &clipped);
        }
    }
    Some(sum / (BANDS * (x[0].len() + 1 - SEGMENT)) as f64)
}

fn norm(v: &[f64]) -> f64 {
    v.iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn correlation(x: &[f64], y: &[f64]) -> f64 {
    let centred = |v: &[f64]| {
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        v.iter().map(|v| v - mean).collect::<Vec<_>>()
    };
    let (x, y) = (centred(x), centred(y));
    let dot: f64 = x.iter().zip(&y).map(|(x, y)| x * y).sum();
    dot / ((norm(&x) + f64::EPSILON) * (norm(&y) + f64::EPSILON))
}

/// To 10 kHz by a Kaiser-windowed sinc of 60 dB rejection and a transition band of a tenth of the cutoff, as the authors'
/// reference has it (Octave's `resample`).
fn resample(x: &[f32], from: u32) -> Vec<f64> {
    if from == RATE {
        return x.iter().map(|&v| f64::from(v)).collect();
    }
    let divisor = gcd(from, RATE);
    let (up, down) = ((RATE / divisor) as usize, (from / divisor) as usize);
    let filter = lowpass(up, down);
    let half = filter.len() / 2;
    let length = (x.len() * up).div_ceil(down);
    let output = |m: usize| {
        let centre = m * down;
        let first = centre.saturating_sub(half).div_ceil(up);
        let end = x.len().min((centre + half) / up + 1);
        x.get(first..end).unwrap_or_default().iter().zip(first..).map(|(&v, i)| f64::from(v) * filter[centre + half - i * up]).sum()
    };
    (0..length).map(output).collect()
}

fn lowpass(up: usize, down: usize) -> Vec<f64> {
    const REJECTION_DB: f64 = 60.0;
    let cutoff = 1.0 / (2 * up.max(down)) as f64;
    let half = ((REJECTION_DB - 8.0) / (28.714 * cutoff / 10.0)).ceil();
    let beta = 0.1102 * (REJECTION_DB - 8.7);
    let tap = |i: i64| {
        let phase = std::f64::consts::TAU * cutoff * i as f64;
        let sinc = if i == 0 { 1.0 } else { phase.sin() / phase };
        sinc * bessel_i0(beta * (1.0 - (i as f64 / half).powi(2)).sqrt())
    };
    let taps: Vec<f64> = (-half as i64..=half as i64).map(tap).collect();
    let gain = up as f64 / taps.iter().sum::<f64>();
    taps.into_iter().map(|t| t * gain).collect()
}

/// Modified Bessel function of the first kind, order 0.
fn bessel_i0(x: f64) -> f64 {
    let (mut sum, mut term) = (1.0, 1.0);
    for k in 1..64 {
        term *= (x / (2 * k) as f64).powi(2);
        sum += term;
        if term < f64::EPSILON * sum {
            break;
        }
    }
    sum
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Hann window without its zero ends.
fn window() -> [f64; FRAME] {
    std::array::from_fn(|i| 0.5 - 0.5 * (std::f64::consts::TAU * (i + 1) as f64 / (FRAME + 1) as f64).cos())
}

/// Frames start at every hop; as in the reference, one that would end exactly with the signal is not taken.
fn frames(signal: &[f64]) -> impl Iterator<Item = &[f64]> {
    (0..signal.len().saturating_sub(FRAME)).step_by(HOP).map(|i| &signal[i..i + FRAME])
}

/// Leaves out the frames in which x is silent, from both, and joins the others by overlap-add.
fn drop_silence(x: &[f64], y: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let window = window();
    let level = |frame: &[f64]| {
        let energy: f64 = frame.iter().zip(&window).map(|(v, w)| (v * w).powi(2)).sum();
        20.0 * (energy.sqrt() + f64::EPSILON).log10()
    };
    let levels: Vec<f64> = frames(x).map(level).collect();
    let loudest = levels.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let join = |signal: &[f64]| {
        let mut joined = Vec::new();
        let kept = frames(signal).zip(&levels).filter(|(_, level)| loudest - DYNAMIC_RANGE - **level < 0.0);
        for (n, (frame, _)) in kept.enumerate() {
            joined.resize(n * HOP + FRAME, 0.0);
            for ((slot, v), w) in joined[n * HOP..].iter_mut().zip(frame).zip(&window) {
                *slot += v * w;
            }
        }
        joined
    };
    (join(x), join(y))
}

/// Third-octave magnitudes over time, one row a band.
fn envelopes(signal: &[f64]) -> Vec<Vec<f64>> {
    let window = window();
    let fft = f64::forward_plan(FFT);
    let mut buffer = fft.make_input_vec();
    let mut spectrum = fft.make_output_vec();
    let nearest = |hz: f64| ((hz * FFT as f64 / f64::from(RATE)).round() as usize).min(FFT / 2);
    let edge = |sixths: i32| nearest(LOWEST_CENTRE * 2f64.powf(f64::from(sixths) / 6.0));
    let mut bands = vec![Vec::new(); BANDS];
    for frame in frames(signal) {
        buffer.fill(0.0);
        for ((slot, v), w) in buffer.iter_mut().zip(frame).zip(&window) {
            *slot = v * w;
        }
        fft.process(&mut buffer, &mut spectrum).expect("lengths are the plan's own");
        for (k, band) in bands.iter_mut().enumerate() {
            let k = k as i32;
            let energy: f64 = spectrum[edge(2 * k - 1)..edge(2 * k + 1)].iter().map(|c| c.norm_sqr()).sum();
            band.push(energy.sqrt());
        }
    }
    bands
}
