use std::rc::Rc;

use swara_kernels::ops::stft;
use swara_kernels::{DType, Device, Tensor};

use super::LossWeights;
use super::adversary::Judgement;
use super::discriminator::whole_frames;
use crate::tape::{Tape, Var};
use crate::{Error, Result};

/// Distances between waves; filters made once.
pub struct Reconstruction {
    weights: LossWeights,
    /// `(window, filters [bins, mels])`
    scales: Vec<(usize, Rc<Tensor>)>,
    windows: Vec<usize>,
    /// `(window, filters [2 bins, mels])` of `msspec`, for the squares of a spectrum's two parts.
    powers: Vec<(usize, Rc<Tensor>)>,
}

/// Unweighted terms, on the device.
pub struct Terms {
    pub mel: Vec<Var>,
    pub spectrum: Vec<Var>,
    /// Their mean is the term.
    pub msspec: Vec<Var>,
    pub wave: Var,
    pub judgement: Judgement,
    pub speaker: Vec<Var>,
}

impl Reconstruction {
    /// Scales whose window is longer than the crop are left out.
    pub fn new(weights: &LossWeights, sample_rate: u32, crop: usize, device: &Device, dtype: DType) -> Result<Reconstruction> {
        let filters = |&(mels, window): &(usize, usize)| {
            let values: Vec<f64> = stft::mel_filters(sample_rate, window, mels).into_iter().map(f64::from).collect();
            Ok((window, Rc::new(Tensor::from_f64(device, dtype, &values, [window / 2 + 1, mels])?)))
        };
        Ok(Reconstruction {
            weights: weights.clone(),
            scales: weights.mel_scales.iter().filter(|s| s.1 <= crop).map(filters).collect::<Result<_>>()?,
            powers: match weights.msspec > 0.0 {
                true => power_windows(crop)
                    .map(|window| Ok((window, power_filters(sample_rate, window, device, dtype)?)))
                    .collect::<Result<_>>()?,
                false => Vec::new(),
            },
            windows: weights.spectrum_windows.iter().copied().filter(|&w| w <= crop).collect(),
        })
    }

    /// Records the terms for a reconstruction `y [B, T, 1]` of `x [B, T, 1]`.
    pub fn record(&self, tape: &Tape, y: &Var, x: &Var) -> Result<Terms> {
        let shape = y.value().shape();
        let msspec = self.msspec(tape, y, x)?;
        let (y, x) = (tape.reshape(y, [shape[0], shape[1]])?, tape.reshape(x, [shape[0], shape[1]])?);
        // What has no weight is still measured.
        let weighted = |weight: f64| if weight > 0.0 { y.clone() } else { y.detached() };
        let wave = tape.l1_loss(&weighted(self.weights.wave), &x, self.weights.wave)?;
        let judgement = Judgement::default();
        let mut terms = Terms { mel: Vec::new(), spectrum: Vec::new(), msspec, wave, judgement, speaker: Vec::new() };
        for (window, filters) in &self.scales {
            let mel = |signal: &Var| -> Result<Var> {
                let spectrum = tape.stft(signal, *window, window / 4)?;
                Ok(tape.project(&tape.magnitude(&spectrum)?, filters)?)
            };
            let LossWeights { mel: weight, mel_floor, mel_added, .. } = self.weights;
            terms.mel.push(tape.log_l1_loss(&mel(&weighted(weight))?, &mel(&x)?, mel_floor, mel_added, weight)?);
        }
        if self.weights.spectrum > 0.0 {
            for &window in &self.windows {
                let (y, x) = (tape.stft(&y, window, window / 4)?, tape.stft(&x, window, window / 4)?);
                // Divided by the window's energy norm: a scale does not outweigh another by its length.
                let norm = (window as f64 * 3.0 / 8.0).sqrt();
                terms.spectrum.push(tape.l1_loss(&y, &x, self.weights.spectrum / norm)?);
            }
        }
        Ok(terms)
    }

    /// audiocraft's `MultiScaleMelSpectrogramLoss` as it trains EnCodec: of each window's power mel spectra the mean absolute
    /// difference, and the mean squared difference of their logarithms.
    fn msspec(&self, tape: &Tape, y: &Var, x: &Var) -> Result<Vec<Var>> {
        let mut terms = Vec::new();
        let weight = self.weights.msspec / (2 * self.powers.len()).max(1) as f64;
        for (window, filters) in &self.powers {
            let [y, x] = [power_mel(tape, y, *window, filters)?, power_mel(tape, x, *window, filters)?];
            terms.push(tape.l1_loss(&y, &x, weight)?);
            terms.push(tape.log_mse_loss(&y, &x, POWER_FLOOR, weight)?);
        }
        Ok(terms)
    }
}

const POWER_MELS: usize = 64;
const POWER_LOWEST_HZ: f64 = 64.0;
const POWER_FLOOR: f64 = 1e-5;

/// Those that fit a crop.
fn power_windows(crop: usize) -> impl Iterator<Item = usize> {
    (6..=10).map(|i| 1 << i).filter(move |&window| window <= crop)
}

/// `[B, ceil(T / hop), mels]` of `signal [B, T, 1]`, reflected so that the first frame begins a hop and a half before it; zeros fill the
/// last frame.
fn power_mel(tape: &Tape, signal: &Var, window: usize, filters: &Rc<Tensor>) -> Result<Var> {
    let [batch, samples, _] = signal.value().shape()[..] else { return Err(Error::Argument(format!("a wave of {:?}", signal.value()))) };
    let hop = window / 4;
    let frames = samples.div_ceil(hop);
    let (ends, more) = (((window - hop) / 2) as isize, frames * hop - samples);
    let mut wave = tape.pad(signal, ends, ends)?;
    if more > 0 {
        let zeros = Tensor::zeros(&signal.value().device(), signal.value().dtype(), [batch, more, 1])?;
        wave = tape.concat(&[wave, zeros.into()])?;
    }
    Ok(tape.project(&tape.square(&whole_frames(tape, &wave, batch, window, frames)?)?, filters)?)
}

/// Triangles of height 1 on HTK's mel scale, over the energy of the window (`torchaudio`'s `MelSpectrogram`, normalised).
fn power_filters(sample_rate: u32, window: usize, device: &Device, dtype: DType) -> Result<Rc<Tensor>> {
    let mel = |hz: f64| 2595.0 * (1.0 + hz / 700.0).log10();
    let nyquist = f64::from(sample_rate / 2);
    let (low, high) = (mel(POWER_LOWEST_HZ), mel(nyquist));
    let edge = |i: usize| 700.0 * (10f64.powf((low + (high - low) * i as f64 / (POWER_MELS + 1) as f64) / 2595.0) - 1.0);
    let edges: Vec<f64> = (0..POWER_MELS + 2).map(edge).collect();
    // Of a Hann window.
    let energy = window as f64 * 3.0 / 8.0;
    let mut values = Vec::with_capacity((window / 2 + 1) * POWER_MELS);
    for bin in 0..=window / 2 {
        let hz = nyquist * bin as f64 / (window / 2) as f64;
        let row = edges.windows(3).map(|e| ((hz - e[0]) / (e[1] - e[0])).min((e[2] - hz) / (e[2] - e[1])).max(0.0) / energy);
        values.extend(row);
    }
    both_parts(&values, POWER_MELS, device, dtype)
}

/// Filters `[bins, mels]` as `[2 bins, mels]`, for the squares of a spectrum's real and imaginary parts.
pub fn both_parts(filters: &[f64], mels: usize, device: &Device, dtype: DType) -> Result<Rc<Tensor>> {
    let values: Vec<f64> = filters.chunks(mels).flat_map(|row| [row, row]).flatten().copied().collect();
    Ok(Rc::new(Tensor::from_f64(device, dtype, &values, [values.len() / mels, mels])?))
}
