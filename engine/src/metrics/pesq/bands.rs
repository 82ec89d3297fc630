//! Numeric constants of the recommendation: its 49 bands at 16 kHz, and its filters.

use std::sync::LazyLock;

pub const BANDS: usize = 49;

/// Spectral bins of 31.25 Hz in each band.
pub const BINS: [usize; BANDS] = [
    1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 3, 4, 5, 4, 5, 6, 6, 7, 8, 9, 9, 12, 12, 15,
    16, 18, 21, 25, 20,
];

/// Widths in Bark.
const WIDTHS: [f64; BANDS] = [
    0.157344, 0.317994, 0.322441, 0.326934, 0.331474, 0.336061, 0.340697, 0.345381, 0.350114, 0.354897, 0.359729, 0.364611, 0.369544,
    0.374529, 0.379565, 0.384653, 0.389794, 0.394989, 0.400236, 0.405538, 0.410894, 0.416306, 0.421773, 0.427297, 0.432877, 0.438514,
    0.444209, 0.449962, 0.455774, 0.461645, 0.467577, 0.473569, 0.479621, 0.485736, 0.491912, 0.498151, 0.504454, 0.510819, 0.517250,
    0.523745, 0.530308, 0.536934, 0.543629, 0.550390, 0.557220, 0.564119, 0.571085, 0.578125, 0.585232,
];

/// Power of a band's bins to its density.
const DENSITIES: [f64; BANDS] = [
    100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 50.0, 100.0, 100.0, 100.0, 100.0, 100.0, 53.047077, 110.000046, 117.991989,
    65.0, 68.760147, 69.999931, 71.428818, 75.000038, 76.843384, 80.968781, 88.646126, 63.864388, 68.155350, 72.547775, 75.584831,
    58.379192, 80.950836, 64.135651, 54.384785, 73.821884, 64.437073, 59.176456, 65.521278, 61.399822, 58.144047, 57.004543, 64.126297,
    54.311001, 61.114979, 55.077751, 56.849335, 55.628868, 53.137054, 54.985844, 79.546974,
];

/// Absolute hearing thresholds, dB of the calibrated power.
const THRESHOLDS_DB: [f64; BANDS] = [
    77.1, 63.9, 48.5, 36.9, 30.7, 25.9, 20.2, 16.6, 12.5, 9.9, 6.9, 4.9, 2.8, 1.0, -0.1, -1.4, -2.5, -3.4, -4.1, -4.8, -5.3, -5.7, -5.9,
    -6.0, -6.0, -6.0, -6.0, -5.8, -5.4, -5.1, -4.7, -4.3, -4.0, -3.6, -3.3, -3.1, -3.0, -3.0, -2.9, -2.8, -2.8, -2.8, -2.9, -3.2, -3.7,
    -4.3, -4.4, -3.8, -2.7,
];

/// Calibration of power.
const POWER: f64 = 6.910853e-6;
/// Exponent of loudness (Zwicker), raised in the lowest bands.
const EXPONENT: f64 = 0.23;

/// A band with what follows from the tables.
pub struct Band {
    pub bins: usize,
    /// Bark.
    pub width: f64,
    /// Summed power to calibrated density.
    pub density: f64,
    /// Power that is just heard.
    pub threshold: f64,
    pub exponent: f64,
}

pub static TABLE: LazyLock<Vec<Band>> = LazyLock::new(|| {
    let mut below = 0.0;
    (0..BANDS)
        .map(|i| {
            let centre = below + WIDTHS[i] / 2.0;
            below += WIDTHS[i];
            let low = if centre < 4.0 { (6.0 / (centre + 2.0)).min(2.0) } else { 1.0 };
            Band {
                bins: BINS[i],
                width: WIDTHS[i],
                density: DENSITIES[i] * POWER,
                threshold: 10f64.powf(THRESHOLDS_DB[i] / 10.0),
                exponent: EXPONENT * low.powf(0.15),
            }
        })
        .collect()
});

/// A second-order section: three coefficients of the numerator, two of the denominator after its leading 1.
pub type Section = [f64; 5];

/// What the wideband extension listens through: a high-pass.
pub const LISTENING: [Section; 1] = [[2.740826, -5.4816519, 2.740826, -1.9444777, 0.94597794]];

/// What delays are measured through.
pub const ALIGNING: [Section; 12] = [
    [0.325631521, -0.086782860, -0.238848661, -1.079416490, 0.434583902],
    [0.403961804, -0.556985881, 0.153024077, -0.415115835, 0.696590244],
    [4.736162769, 3.287251046, 1.753289019, -1.859599046, 0.876284034],
    [0.365373469, 0.0, 0.0, -0.634626531, 0.0],
    [0.884811506, 0.0, 0.0, -0.256725271, 0.141536777],
    [0.723593055, -1.447186099, 0.723593044, -1.129587469, 0.657232737],
    [1.644910855, -1.817280902, 1.249658063, -1.778403899, 0.801724355],
    [0.633692689, -0.284644314, -0.319789663, 0.0, 0.0],
    [1.032763031, 0.268428979, 0.602913323, 0.0, 0.0],
    [1.001616361, -0.823749013, 0.439731942, -0.885778255, 0.0],
    [0.752472096, -0.375388990, 0.188977609, -0.077258216, 0.247230734],
    [1.023700575, 0.001661628, 0.521284240, -0.183867259, 0.354324187],
];
