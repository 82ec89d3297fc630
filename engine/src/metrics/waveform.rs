use serde::Serialize;

/// Decibels beyond which 24-bit mantissas say nothing; keeps the ratio of a perfect copy finite.
const LIMIT_DB: f64 = 150.0;

/// Sample-by-sample likeness of a test signal y to a reference x.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Waveform {
    /// `100 rms(y) / rms(x)`, percent. NaN if x is silent.
    pub amplitude: f64,
    /// `10 log10(sum x^2 / sum (x - y)^2)`, dB, within ±150.
    pub snr_db: f64,
    /// Scale-invariant signal-to-distortion ratio, dB, within ±150: `10 log10(r^2 / (1 - r^2))` with r the correlation of the
    /// zero-mean signals (Le Roux et al. 2019).
    pub si_sdr_db: f64,
    /// Correlation `<x, y> / (|x| |y|)`; 0 if either is silent.
    pub rho: f64,
    /// The factor on y that brings it closest to x: `<x, y> / <y, y>`; 0 if y is silent.
    pub gain: f64,
}

/// Compares two aligned signals of equal length (the longer one's excess is not looked at).
pub fn waveform(reference: &[f32], test: &[f32]) -> Waveform {
    let pairs = || reference.iter().zip(test).map(|(&x, &y)| (f64::from(x), f64::from(y)));
    let n = reference.len().min(test.len()).max(1) as f64;
    let (mut sx, mut sy, mut xx, mut yy, mut xy, mut error) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    for (x, y) in pairs() {
        sx += x;
        sy += y;
        xx += x * x;
        yy += y * y;
        xy += x * y;
        error += (x - y) * (x - y);
    }
    let (mx, my) = (sx / n, sy / n);
    let (zxx, zxy) = (xx - n * mx * mx, xy - n * mx * my);
    // y = scale * x + rest: the rest is summed rather than taken as a difference of sums, which near a copy cancels.
    let scale = if zxx > 0.0 { zxy / zxx } else { 0.0 };
    let rest: f64 = pairs().map(|(x, y)| (y - my - scale * (x - mx)).powi(2)).sum();
    Waveform {
        amplitude: 100.0 * (yy / xx).sqrt(),
        snr_db: decibels(xx, error),
        si_sdr_db: decibels(scale * scale * zxx, rest),
        rho: if xx > 0.0 && yy > 0.0 { xy / (xx * yy).sqrt() } else { 0.0 },
        gain: if yy > 0.0 { xy / yy } else { 0.0 },
    }
}

/// `10 log10(signal / noise)`; 0 for 0/0.
fn decibels(signal: f64, noise: f64) -> f64 {
    match (signal > 0.0, noise > 0.0) {
        (false, false) => 0.0,
        (true, false) => LIMIT_DB,
        (false, true) => -LIMIT_DB,
        (true, true) => (10.0 * (signal / noise).log10()).clamp(-LIMIT_DB, LIMIT_DB),
    }
}
