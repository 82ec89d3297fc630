use std::rc::Rc;

use swara_kernels::ops::stft;
use swara_kernels::{DType, Device, Tensor};

use super::LossWeights;
use super::adversary::Judgement;
use crate::Result;
use crate::tape::{Tape, Var};

/// Distances between waves; filters made once.
pub struct Reconstruction {
    weights: LossWeights,
    /// `(window, filters [bins, mels])`
    scales: Vec<(usize, Rc<Tensor>)>,
    windows: Vec<usize>,
}

/// Unweighted terms, on the device.
pub struct Terms {
    pub mel: Vec<Var>,
    pub spectrum: Vec<Var>,
    pub wave: Var,
    pub judgement: Judgement,
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
            windows: weights.spectrum_windows.iter().copied().filter(|&w| w <= crop).collect(),
        })
    }

    /// Records the terms for a reconstruction `y [B, T, 1]` of `x [B, T, 1]`.
    pub fn record(&self, tape: &Tape, y: &Var, x: &Var) -> Result<Terms> {
        let shape = y.value().shape();
        let (y, x) = (tape.reshape(y, [shape[0], shape[1]])?, tape.reshape(x, [shape[0], shape[1]])?);
        // What has no weight is still measured.
        let weighted = |weight: f64| if weight > 0.0 { y.clone() } else { y.detached() };
        let wave = tape.l1_loss(&weighted(self.weights.wave), &x, self.weights.wave)?;
        let mut terms = Terms { mel: Vec::new(), spectrum: Vec::new(), wave, judgement: Judgement::default() };
        for (window, filters) in &self.scales {
            let mel = |signal: &Var| -> Result<Var> {
                let spectrum = tape.stft(signal, *window, window / 4)?;
                Ok(tape.project(&tape.magnitude(&spectrum)?, filters)?)
            };
            terms.mel.push(tape.log_l1_loss(&mel(&weighted(self.weights.mel))?, &mel(&x)?, self.weights.mel_floor, self.weights.mel)?);
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
}
