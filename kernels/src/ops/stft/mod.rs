//! Short-time Fourier transform, its magnitude, and the Slaney mel filterbank.
//!
//! ```text
//! X[b, f, k] = sum_j w_j x~[b, f hop + j - n/2] e^(-2 pi i j k / n)        k = 0 .. n/2,  f = 0 .. T / hop
//! w_j = (1 - cos(2 pi j / n)) / 2,  x~ = x reflected about its first and its last sample
//! |X| = sqrt(re^2 + im^2), with gradient 0 at 0
//! ```
//! `torch.stft(x, n, hop, hann_window(n), center=True, pad_mode="reflect")`, with the bins last: `x [B, T]`, spectra
//! `[B, T / hop + 1, n / 2 + 1, 2]` as (re, im), f32 (f64 on the CPU). `n` is even; on CUDA a power of two up to 4096.
//! A mel spectrogram is [`magnitude`] times [`mel_filters`], a matrix product.

use crate::case::{Case, Check, Cost, Fill, Input, Op};
use crate::driver::Source;
use crate::driver::source::ALL_ARCHS;
use crate::tolerance::Tolerance;
use crate::{DType, Device, Error, Result, Shape, Tensor, dispatch_real, span};

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

pub static SOURCE: Source = Source { path: "ops/stft/stft.cu", text: include_str!("stft.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases };

const NAME: &str = "stft";

/// Sizes of one transform, checked.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    batch: usize,
    samples: usize,
    window: usize,
    hop: usize,
}

impl Geometry {
    fn new(batch: usize, samples: usize, window: usize, hop: usize) -> Result<Geometry> {
        if window < 2 || !window.is_multiple_of(2) || hop == 0 {
            return Err(Error::argument(NAME, format!("window {window}, hop {hop}; expected an even window and a positive hop")));
        }
        if samples <= window / 2 {
            return Err(Error::argument(NAME, format!("{samples} samples are too few to reflect {} at each end", window / 2)));
        }
        let g = Geometry { batch, samples, window, hop };
        let shapes = [
            Shape::from([batch.max(1), samples.saturating_add(window)]),
            Shape::from([batch.max(1), (samples / hop).saturating_add(1), window]),
        ];
        if shapes.iter().any(|shape| shape.checked_elements().is_none_or(|n| n > i32::MAX as usize)) {
            return Err(Error::argument(NAME, format!("{batch} x {samples} samples in windows of {window} exceed 2^31 elements")));
        }
        Ok(g)
    }

    fn frames(&self) -> usize {
        self.samples / self.hop + 1
    }

    fn bins(&self) -> usize {
        self.window / 2 + 1
    }

    fn pad(&self) -> usize {
        self.window / 2
    }

    /// Sample that position `j` of the padded signal repeats.
    fn reflect(&self, j: usize) -> usize {
        let i = j.abs_diff(self.pad());
        if j < self.pad() || i < self.samples { i } else { 2 * (self.samples - 1) - i }
    }
}

/// Spectra `[B, T / hop + 1, window / 2 + 1, 2]` of `x [B, T]`, where `T > window / 2`.
pub fn forward(x: &Tensor, window: usize, hop: usize) -> Result<Tensor> {
    let _span = span::op("stft.forward");
    if x.shape().len() != 2 {
        return Err(Error::shape(NAME, "x", "[B, T]", x.shape()));
    }
    let g = Geometry::new(x.shape()[0], x.shape()[1], window, hop)?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::forward::<T>(x, g)),
        Device::Cuda(gpu) => cuda::forward(&gpu, x, g),
    }
}

/// `dx [B, samples]` for the gradient `dspec [B, samples / hop + 1, window / 2 + 1, 2]`.
pub fn backward(dspec: &Tensor, samples: usize, window: usize, hop: usize) -> Result<Tensor> {
    let _span = span::op("stft.backward");
    let shape = dspec.shape();
    let g = Geometry::new(shape.first().copied().unwrap_or(0), samples, window, hop)?;
    if shape[..] != [g.batch, g.frames(), g.bins(), 2] {
        return Err(Error::shape(NAME, "dspec", format!("[B, {}, {}, 2]", g.frames(), g.bins()), shape));
    }
    match dspec.device() {
        Device::Cpu => dispatch_real!(NAME, dspec.dtype(), T => cpu::backward::<T>(dspec, g)),
        Device::Cuda(gpu) => cuda::backward(&gpu, dspec, g),
    }
}

/// `sqrt(re^2 + im^2)` over the last axis, which has two elements and goes.
pub fn magnitude(spec: &Tensor) -> Result<Tensor> {
    let _span = span::op("stft.magnitude");
    let mut out = Tensor::empty(&spec.device(), spec.dtype(), magnitude_shape(spec)?)?;
    match spec.device() {
        Device::Cpu => dispatch_real!(NAME, spec.dtype(), T => cpu::magnitude::<T>(&mut out, spec))?,
        Device::Cuda(gpu) => cuda::magnitude(&gpu, &mut out, spec)?,
    }
    Ok(out)
}

/// Gradient of [`magnitude`] with respect to `spec [.., 2]`, given `dmag [..]`; 0 where the magnitude is 0.
pub fn magnitude_backward(dmag: &Tensor, spec: &Tensor) -> Result<Tensor> {
    let _span = span::op("stft.magnitude_backward");
    let expected = magnitude_shape(spec)?;
    if dmag.shape() != expected {
        return Err(Error::shape(NAME, "dmag", format!("{expected:?}"), dmag.shape()));
    }
    if dmag.dtype() != spec.dtype() {
        return Err(Error::dtype(NAME, "dmag", spec.dtype().name(), dmag.dtype()));
    }
    if dmag.device() != spec.device() {
        return Err(Error::DeviceMismatch { op: NAME, operand: "dmag" });
    }
    let mut dspec = spec.empty_like()?;
    match spec.device() {
        Device::Cpu => dispatch_real!(NAME, spec.dtype(), T => cpu::magnitude_backward::<T>(&mut dspec, dmag, spec))?,
        Device::Cuda(gpu) => cuda::magnitude_backward(&gpu, &mut dspec, dmag, spec)?,
    }
    Ok(dspec)
}

fn magnitude_shape(spec: &Tensor) -> Result<Shape> {
    match spec.shape().split_last() {
        Some((2, rest)) => Shape::try_from(rest),
        _ => Err(Error::shape(NAME, "spec", "[.., 2]", spec.shape())),
    }
}

/// Triangular filters `[n_fft / 2 + 1, n_mels]` over 0 to `sample_rate / 2`, equally wide on Slaney's mel scale and each of
/// unit area in hertz: `librosa.filters.mel(sr, n_fft, n_mels)` transposed.
pub fn mel_filters(sample_rate: u32, n_fft: usize, n_mels: usize) -> Vec<f32> {
    let nyquist = sample_rate as f64 / 2.0;
    let edges: Vec<f64> = (0..n_mels + 2).map(|i| mel_to_hz(hz_to_mel(nyquist) * i as f64 / (n_mels + 1) as f64)).collect();
    let mut filters = Vec::with_capacity((n_fft / 2 + 1) * n_mels);
    for bin in 0..n_fft / 2 + 1 {
        let hz = bin as f64 * sample_rate as f64 / n_fft as f64;
        filters.extend(edges.windows(3).map(|edge| {
            let (low, centre, high) = (edge[0], edge[1], edge[2]);
            let height = ((hz - low) / (centre - low)).min((high - hz) / (high - centre)).max(0.0);
            (height * 2.0 / (high - low)) as f32
        }));
    }
    filters
}

/// Slaney's scale: linear up to 1 kHz, where 15 mel lie, then 27 mel a factor of 6.4.
fn hz_to_mel(hz: f64) -> f64 {
    if hz < 1000.0 { hz * 3.0 / 200.0 } else { 15.0 + 27.0 * (hz / 1000.0).ln() / 6.4f64.ln() }
}

fn mel_to_hz(mel: f64) -> f64 {
    if mel < 15.0 { mel * 200.0 / 3.0 } else { 1000.0 * ((mel - 15.0) * 6.4f64.ln() / 27.0).exp() }
}

/// Periodic Hann window.
fn hann(i: usize, n: usize) -> f64 {
    (std::f64::consts::PI * i as f64 / n as f64).sin().powi(2)
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (batch, samples, window, hop) in
        [(1, 2, 2, 1), (3, 17, 32, 8), (2, 127, 64, 16), (1, 500, 128, 33), (1, 333, 256, 64), (1, 1031, 2048, 512), (2, 4099, 256, 64)]
    {
        cases.extend(transform_cases(batch, samples, window, hop, false));
    }
    for shape in [[1, 1, 1, 2], [2, 3, 17, 2], [2, 127, 33, 2]] {
        cases.push(magnitude_case(shape));
        cases.push(magnitude_backward_case(shape));
    }
    let spec = Input::new("spec", [1, 5, 3, 2], Fill::Values(vec![0.0, 0.0, 3.0, -4.0, 0.0, 2.0, -1.0, 0.0]));
    let mut silence = magnitude_backward_case([1, 5, 3, 2]);
    (silence.label, silence.inputs[1]) = ("magnitude backward of zeros".into(), spec);
    cases.push(silence);
    for window in [32, 512, 2048] {
        cases.extend(transform_cases(16, 16384, window, window / 4, true));
    }
    cases
}

fn transform_cases(batch: usize, samples: usize, window: usize, hop: usize, bench: bool) -> [Case; 2] {
    let (frames, bins) = (samples / hop + 1, window / 2 + 1);
    let cost = Cost {
        bytes: 4 * (batch * samples + 2 * batch * frames * bins),
        flops: (2.5 * (batch * frames * window) as f64 * (window as f64).log2()) as usize,
    };
    let shape = format!("{batch}x{samples} window {window} hop {hop}");
    let forward_case = Case {
        label: format!("forward {shape}"),
        dtype: DType::F32,
        inputs: vec![Input::normal("x", [batch, samples])],
        outputs: vec![("spectra", Check::Within(Tolerance::fourier(window)))],
        run: Box::new(move |t| Ok(vec![forward(&t[0], window, hop)?])),
        cost,
        bench,
    };
    let backward_case = Case {
        label: format!("backward {shape}"),
        dtype: DType::F32,
        inputs: vec![Input::normal("dspec", [batch, frames, bins, 2])],
        outputs: vec![("dx", Check::Within(Tolerance::fourier(window).via(DType::F32, window.div_ceil(hop) + 2)))],
        run: Box::new(move |t| Ok(vec![backward(&t[0], samples, window, hop)?])),
        // The windowed frames are written and read.
        cost: Cost { bytes: cost.bytes + 2 * 4 * batch * frames * window, ..cost },
        bench,
    };
    [forward_case, backward_case]
}

fn magnitude_case(shape: [usize; 4]) -> Case {
    let n = shape.iter().product::<usize>();
    Case {
        label: format!("magnitude {shape:?}"),
        dtype: DType::F32,
        inputs: vec![Input::normal("spec", shape)],
        outputs: vec![("magnitude", Check::Within(Tolerance::roundings(3)))],
        run: Box::new(|t| Ok(vec![magnitude(&t[0])?])),
        cost: Cost { bytes: 6 * n, flops: 2 * n },
        bench: false,
    }
}

fn magnitude_backward_case(shape: [usize; 4]) -> Case {
    let n = shape.iter().product::<usize>();
    let [a, b, c, _] = shape;
    Case {
        label: format!("magnitude backward {shape:?}"),
        dtype: DType::F32,
        inputs: vec![Input::normal("dmag", [a, b, c]), Input::normal("spec", shape)],
        outputs: vec![("dspec", Check::Within(Tolerance::roundings(5)))],
        run: Box::new(|t| Ok(vec![magnitude_backward(&t[0], &t[1])?])),
        cost: Cost { bytes: 10 * n, flops: 4 * n },
        bench: false,
    }
}
