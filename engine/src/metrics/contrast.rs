use super::spectral::MelFrames;

/// Bands, and the window of its frames: at 16 kHz 32 ms every 8 ms.
const BANDS: usize = 40;
const WINDOW: usize = 512;

/// What is below the loudest band by more than this (log10 of magnitudes: 50 dB) is silence.
const RANGE: f64 = 2.5;

/// A word as its log mel magnitudes, to be compared with others whatever their lengths.
pub struct Spoken {
    /// `[frames, BANDS]`.
    mel: Vec<f64>,
}

impl Spoken {
    /// None if `wave`, at `sample_rate` Hz, is shorter than a window.
    pub fn new(wave: &[f32], sample_rate: u32) -> Option<Spoken> {
        let window = (WINDOW * sample_rate as usize / 16_000).next_multiple_of(4).max(WINDOW / 4);
        if wave.len() < window {
            return None;
        }
        let mut frames = MelFrames::new(BANDS, window, sample_rate);
        let mut mel: Vec<f64> = (0..1 + wave.len() / (window / 4)).flat_map(|frame| frames.log_mel(wave, frame).to_vec()).collect();
        let floor = mel.iter().fold(f64::NEG_INFINITY, |most, &v| most.max(v)) - RANGE;
        mel.iter_mut().for_each(|v| *v = v.max(floor) - floor);
        Some(Spoken { mel })
    }

    /// Mean distance of frames (root mean square over the bands, log10 of magnitudes) along the alignment that makes their sum least:
    /// dynamic time warping, whose steps forward in both count twice (Sakoe and Chiba 1978, symmetric form).
    pub fn distance(&self, other: &Spoken) -> f64 {
        let rows = |spoken: &Spoken| spoken.mel.len() / BANDS;
        let apart = |i: usize, j: usize| {
            let pair = self.mel[i * BANDS..][..BANDS].iter().zip(&other.mel[j * BANDS..][..BANDS]);
            (pair.map(|(p, q)| (p - q) * (p - q)).sum::<f64>() / BANDS as f64).sqrt()
        };
        let (n, m) = (rows(self), rows(other));
        let mut last = vec![f64::INFINITY; m];
        for i in 0..n {
            let mut row = vec![f64::INFINITY; m];
            for j in 0..m {
                let d = apart(i, j);
                let left = if j > 0 { row[j - 1] + d } else { f64::INFINITY };
                let both = match (i, j) {
                    (0, 0) => 2.0 * d,
                    (_, 0) | (0, _) => f64::INFINITY,
                    _ => last[j - 1] + 2.0 * d,
                };
                row[j] = left.min(last[j] + d).min(both);
            }
            last = row;
        }
        last[m - 1] / (n + m) as f64
    }
}
