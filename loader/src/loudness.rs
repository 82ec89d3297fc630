//! How loud speech is: RMS in dBFS, and integrated loudness (ITU-R BS.1770-4) in LUFS.

/// The floor that silence reads as.
pub const FLOOR: f64 = -70.0;
/// Of BS.1770: seconds, and the share of a block between the beginnings of two.
const BLOCK: f64 = 0.4;
const STEP: f64 = 0.25;

/// 20 log10 of the root mean square; minus infinity for silence.
pub fn rms_dbfs(samples: &[f32]) -> f64 {
    let power = samples.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / samples.len().max(1) as f64;
    10.0 * power.log10()
}

pub fn peak(samples: &[f32]) -> f32 {
    samples.iter().fold(0.0, |peak, x| peak.max(x.abs()))
}

/// Integrated loudness of mono samples: K-weighting, blocks of 400 ms overlapping by 75 %, gates at -70 LUFS and 10 LU under
/// the mean of what passes. Less than 0.5 s is padded by silence. Never below [`FLOOR`].
///
/// The filters are analogue designs mapped to the sample rate (a 4 dB shelf at 1500 Hz, a high-pass at 38 Hz), as in
/// pyloudnorm, whose blocks these are, the last one cut short by up to half a step included; at 48 kHz they agree with the
/// standard's coefficients within 0.1 LU.
pub fn lufs(samples: &[f32], rate: u32) -> f64 {
    if rate == 0 {
        return FLOOR;
    }
    let rate_hz = f64::from(rate);
    let mut shelf = Biquad::high_shelf(4.0, 1500.0, 0.5_f64.sqrt(), rate_hz);
    let mut high_pass = Biquad::high_pass(38.0, 0.5, rate_hz);
    let len = samples.len().max((0.5 * rate_hz) as usize);
    let count = (((len as f64 / rate_hz - BLOCK) / (BLOCK * STEP)).round_ties_even() + 1.0).max(1.0) as usize;
    let edge = |block: f64| (BLOCK * block * rate_hz) as usize;
    // Sums of squares up to where blocks begin and end.
    let (mut sums, mut sum) = (vec![[0.0; 2]; count], 0.0);
    let mut next = [0; 2];
    for at in 0..=len {
        for (side, next) in next.iter_mut().enumerate() {
            while *next < count && (at == len || edge(*next as f64 * STEP + side as f64) <= at) {
                sums[*next][side] = sum;
                *next += 1;
            }
        }
        let x = samples.get(at).map_or(0.0, |&x| f64::from(x));
        sum += high_pass.next(shelf.next(x)).powi(2);
    }
    let blocks: Vec<f64> = sums.iter().map(|[begin, end]| (end - begin).max(0.0) / (BLOCK * rate_hz)).collect();
    let loudness = |power: f64| -0.691 + 10.0 * power.log10();
    let mean_above = |gate: f64| {
        let (count, sum) = blocks.iter().filter(|&&p| loudness(p) > gate).fold((0, 0.0), |(n, sum), p| (n + 1, sum + p));
        if count == 0 { f64::NEG_INFINITY } else { loudness(sum / f64::from(count)) }
    };
    mean_above(mean_above(FLOOR).max(FLOOR + 10.0) - 10.0).max(FLOOR)
}

/// Second-order section, direct form II transposed.
struct Biquad {
    b: [f64; 3],
    a: [f64; 2],
    state: [f64; 2],
}

impl Biquad {
    fn new(b: [f64; 3], a: [f64; 3]) -> Self {
        Self { b: b.map(|x| x / a[0]), a: [a[1] / a[0], a[2] / a[0]], state: [0.0; 2] }
    }

    fn high_shelf(gain_db: f64, hz: f64, q: f64, rate: f64) -> Self {
        let a = 10_f64.powf(gain_db / 40.0);
        let (alpha, cos) = Self::angle(hz, q, rate);
        let root = 2.0 * a.sqrt() * alpha;
        Self::new(
            [a * ((a + 1.0) + (a - 1.0) * cos + root), -2.0 * a * ((a - 1.0) + (a + 1.0) * cos), a * ((a + 1.0) + (a - 1.0) * cos - root)],
            [(a + 1.0) - (a - 1.0) * cos + root, 2.0 * ((a - 1.0) - (a + 1.0) * cos), (a + 1.0) - (a - 1.0) * cos - root],
        )
    }

    fn high_pass(hz: f64, q: f64, rate: f64) -> Self {
        let (alpha, cos) = Self::angle(hz, q, rate);
        Self::new([(1.0 + cos) / 2.0, -(1.0 + cos), (1.0 + cos) / 2.0], [1.0 + alpha, -2.0 * cos, 1.0 - alpha])
    }

    /// A corner above half the sample rate moves just below it.
    fn angle(hz: f64, q: f64, rate: f64) -> (f64, f64) {
        let w = std::f64::consts::TAU * (hz / rate).min(0.499);
        (w.sin() / (2.0 * q), w.cos())
    }

    fn next(&mut self, x: f64) -> f64 {
        let y = self.b[0] * x + self.state[0];
        self.state = [self.b[1] * x - self.a[0] * y + self.state[1], self.b[2] * x - self.a[1] * y];
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sine(hz: f64, amplitude: f64, seconds: f64, rate: u32) -> Vec<f32> {
        let n = (seconds * f64::from(rate)) as usize;
        (0..n).map(|i| (amplitude * (std::f64::consts::TAU * hz * i as f64 / f64::from(rate)).sin()) as f32).collect()
    }

    #[test]
    fn a_full_scale_sine_of_997_hz_is_minus_3_01_lufs() {
        assert!((lufs(&sine(997.0, 1.0, 5.0, 48_000), 48_000) + 3.01).abs() < 0.1);
        assert!((lufs(&sine(997.0, 0.1, 5.0, 48_000), 48_000) + 23.01).abs() < 0.1);
    }

    /// Values of pyloudnorm (verify/reference/loudness.py), signals quantised to 16 bits.
    #[test]
    fn loudness_is_that_of_pyloudnorm() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../verify/golden/loudness/signals.safetensors");
        let dump = crate::weights::Weights::open(path).unwrap();
        let case: serde_json::Value = serde_json::from_str(&dump.metadata()["case"]).unwrap();
        let cases = case["cases"].as_array().unwrap();
        assert!(cases.len() >= 8);
        for case in cases {
            let (name, rate) = (case["name"].as_str().unwrap(), case["sample_rate"].as_u64().unwrap() as u32);
            let view = dump.view(name).unwrap();
            let samples: Vec<f32> = view.to_f32().unwrap().iter().map(|x| x / 32768.0).collect();
            let (found, expected) = (lufs(&samples, rate), case["lufs"].as_f64().unwrap());
            println!("{name}: {found:.4}, expected {expected:.4}");
            assert!((found - expected).abs() < 0.01, "{name}: {found}, expected {expected}");
        }
    }

    #[test]
    fn silence_around_speech_does_not_count() {
        let mut samples = sine(997.0, 0.1, 3.0, 16_000);
        let alone = lufs(&samples, 16_000);
        samples.resize(samples.len() * 5, 0.0);
        assert!((lufs(&samples, 16_000) - alone).abs() < 0.3);
        assert!(rms_dbfs(&samples) < -29.0);
    }

    #[test]
    fn low_frequencies_weigh_little_and_high_ones_more() {
        let at = |hz| lufs(&sine(hz, 0.1, 2.0, 48_000), 48_000);
        assert!(at(30.0) < at(997.0) - 3.0);
        assert!((at(8000.0) - at(997.0) - 3.3).abs() < 0.5, "{}", at(8000.0) - at(997.0));
    }

    #[test]
    fn silence_and_nothing_read_as_the_floor() {
        assert_eq!(lufs(&[], 16_000), FLOOR);
        assert_eq!(lufs(&[0.0; 16_000], 16_000), FLOOR);
        assert_eq!(rms_dbfs(&[]), f64::NEG_INFINITY);
    }
}
