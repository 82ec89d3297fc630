//! Whether a reconstruction has its speaker's voice, as a speaker encoder hears it.
//!
//! ```text
//! 1 - cos(E(y), E(x))        E = ReLU(linear(last state of an LSTM over mel spectra of 25 ms every 10 ms)), of length 1
//! ```
//! E is frozen: the GE2E encoder of `resemblyzer` (Wan et al. 2018), or any of its layout. Its partial utterances are 1.6 s; a crop is
//! heard as so many of those as it holds, or whole if it is shorter.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use swara_kernels::ops::activation::Activation;
use swara_kernels::ops::{conv1d, elementwise, stft};
use swara_kernels::{DType, Device, Shape, Tensor};
use swara_loader::weights::Weights;

use super::losses::both_parts;
use crate::tape::{Tape, Var};
use crate::{Error, Result};

const RATE: u32 = 16_000;
const WINDOW: usize = 400;
const HOP: usize = 160;
const MELS: usize = 40;
/// Frames of a partial utterance.
const PARTIAL: usize = 160;
/// Widest state and embedding, and most layers, of an encoder that is taken for one.
const MAX_WIDTH: usize = 4096;
const MAX_LAYERS: usize = 16;
/// Under the root of a mean square.
const EPSILON: f64 = 1e-12;

/// The `[speaker]` table of a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeakerRules {
    /// `pretrained.pt` of `resemblyzer`.
    pub encoder: PathBuf,
    #[serde(default = "weight")]
    pub weight: f64,
    /// The step at which it joins.
    #[serde(default)]
    pub start: u64,
}

fn weight() -> f64 {
    0.1
}

/// The encoder.
pub struct Speaker {
    rules: SpeakerRules,
    resampler: Option<Resampler>,
    /// [`both_parts`] of the mel filters.
    filters: Rc<Tensor>,
    layers: Vec<Layer>,
    linear: [Var; 2],
    /// What makes a mean square a sum.
    norm: Var,
}

struct Layer {
    input: Var,
    hidden: Var,
    /// The sum of both.
    bias: Var,
}

impl Speaker {
    pub fn new(rules: &SpeakerRules, sample_rate: u32, device: &Device, dtype: DType) -> Result<Speaker> {
        let file = Weights::open(&rules.encoder)?;
        let shapes = file.shapes();
        let fail = |why: String| Error::File { path: rules.encoder.clone(), why };
        let shape = |name: &str| {
            let there = shapes.get(name).map(|shape| &shape[..]);
            there.ok_or_else(|| fail(format!("no tensor {name}: no speaker encoder")))
        };
        let hidden = shape("lstm.weight_hh_l0")?.get(1).copied().unwrap_or(0);
        let width = shape("linear.weight")?.first().copied().unwrap_or(0);
        let count = (0..=MAX_LAYERS).find(|k| !shapes.contains_key(&format!("lstm.weight_hh_l{k}"))).unwrap_or(0);
        if !(1..=MAX_WIDTH).contains(&hidden) || !(1..=MAX_WIDTH).contains(&width) || count == 0 {
            return Err(fail(format!("is no speaker encoder: {count} layers of {hidden}, embeddings of {width}")));
        }
        let tensor = |name: &str, expected: &[usize]| -> Result<Vec<f64>> {
            match shape(name)? {
                found if found == expected => {
                    let values: Vec<f64> = file.to_f32(name)?.iter().map(|&v| f64::from(v)).collect();
                    match values.iter().position(|v| !v.is_finite()) {
                        Some(at) => Err(fail(format!("element {at} of tensor {name} is {}", values[at]))),
                        None => Ok(values),
                    }
                }
                found => Err(fail(format!("{name}: shape {found:?}, expected {expected:?}"))),
            }
        };
        let constant = |values: &[f64], shape: &[usize]| -> Result<Var> {
            Ok(Var::from(Tensor::from_f64(device, dtype, values, Shape::try_from(shape)?)?))
        };
        let matrix = |name: &str, shape: [usize; 2]| constant(&tensor(name, &shape)?, &shape);
        let layer = |k: usize| -> Result<Layer> {
            let bias = |part: &str| tensor(&format!("lstm.{part}_l{k}"), &[4 * hidden]);
            let both: Vec<f64> = bias("bias_ih")?.into_iter().zip(bias("bias_hh")?).map(|(a, b)| a + b).collect();
            Ok(Layer {
                input: matrix(&format!("lstm.weight_ih_l{k}"), [4 * hidden, if k == 0 { MELS } else { hidden }])?,
                hidden: matrix(&format!("lstm.weight_hh_l{k}"), [4 * hidden, hidden])?,
                bias: constant(&both, &[4 * hidden])?,
            })
        };
        let filters: Vec<f64> = stft::mel_filters(RATE, WINDOW, MELS).into_iter().map(f64::from).collect();
        Ok(Speaker {
            rules: rules.clone(),
            resampler: Resampler::new(sample_rate, &rules.encoder, device, dtype)?,
            filters: both_parts(&filters, MELS, device, dtype)?,
            layers: (0..count).map(layer).collect::<Result<_>>()?,
            linear: [matrix("linear.weight", [width, hidden])?, constant(&tensor("linear.bias", &[width])?, &[width])?],
            norm: constant(&vec![1.0 / (width as f64).sqrt(); width], &[width])?,
        })
    }

    /// Whether it has a say in a step.
    pub fn hears(&self, step: u64) -> bool {
        step >= self.rules.start && self.rules.weight > 0.0
    }

    pub fn weight(&self) -> f64 {
        self.rules.weight
    }

    /// Records `1 - cos` of waves `y` and `x`, both `[B, T, 1]`. The value is unweighted.
    pub fn record(&self, tape: &Tape, y: &Var, x: &Var) -> Result<Var> {
        // A measure: in f32, whatever the codec computes in.
        let (found, expected) = tape.in_full(|| Ok::<_, Error>((self.embed(tape, y)?, self.embed(tape, &x.detached())?.detached())))?;
        // Of vectors of length 1: half the square of their distance.
        let half = found.value().shape().last_dim() as f64 / 2.0;
        let loss = tape.mse_loss(&found, &expected, self.rules.weight * half)?;
        Ok(loss.told(elementwise::scale(loss.value(), half)?))
    }

    /// Embeddings `[B partials, width]` of waves `[B, T, 1]`.
    fn embed(&self, tape: &Tape, wave: &Var) -> Result<Var> {
        let wave = match &self.resampler {
            Some(resampler) => resampler.record(tape, wave)?,
            None => wave.clone(),
        };
        let [batch, samples, _] = wave.value().shape()[..] else { return Err(Error::Argument(format!("waves {:?}", wave.value()))) };
        // Frames are centred and the wave goes on in silence: two hops of it, whose own frames are left out again.
        let silence = silence(wave.value(), [batch, 2 * HOP, 1])?;
        let padded = tape.concat(&[silence.clone(), wave, silence])?;
        let spectrum = tape.stft(&tape.reshape(&padded, [batch, samples + 4 * HOP])?, WINDOW, HOP)?;
        let all = spectrum.value().shape()[1];
        let parts = tape.reshape(&spectrum, [batch, all, 2 * (WINDOW / 2 + 1)])?;
        let mel = tape.project(&tape.square(&parts)?, &self.filters)?;
        let frames = samples / HOP + 1;
        let (partials, length) = ((frames / PARTIAL).max(1), frames.min(PARTIAL));
        let mel = tape.pad(&mel, -2, 2 + (partials * length) as isize - all as isize)?;
        let mut h = tape.reshape(&mel, [batch * partials, length, MELS])?;
        for layer in &self.layers {
            let gates = tape.add_row(&tape.linear(&h, &layer.input)?, &layer.bias)?;
            h = tape.lstm(&gates, &layer.hidden)?;
        }
        let [items, _, hidden] = h.value().shape()[..] else { return Err(Error::Argument(format!("states {:?}", h.value()))) };
        let last = tape.reshape(&tape.pad(&h, 1 - length as isize, 0)?, [items, hidden])?;
        let [weight, bias] = &self.linear;
        let raw = tape.add_row(&tape.linear(&last, weight)?, bias)?;
        Ok(tape.rms_norm(&tape.activation(Activation::Relu, &raw)?, &self.norm, EPSILON)?)
    }
}

fn silence(like: &Tensor, shape: [usize; 3]) -> Result<Var> {
    Ok(Var::from(Tensor::zeros(&like.device(), like.dtype(), shape)?))
}

/// To 16 kHz by a windowed sinc: every `down` samples are the channels of a row, which becomes one of `up` samples.
struct Resampler {
    down: usize,
    up: usize,
    /// Rows on either side.
    reach: usize,
    /// `[2 reach + 1, down, up]`
    taps: Var,
}

impl Resampler {
    /// Zero crossings on either side, and the cutoff, of torchaudio's `resample`.
    const CROSSINGS: f64 = 6.0;
    const CUTOFF: f64 = 0.99;
    /// Most taps.
    const MOST: usize = 1 << 22;

    /// None at 16 kHz.
    fn new(rate: u32, encoder: &Path, device: &Device, dtype: DType) -> Result<Option<Resampler>> {
        let (mut a, mut b) = (rate, RATE);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        let (down, up) = ((rate / a.max(1)) as usize, (RATE / a.max(1)) as usize);
        if (down, up) == (1, 1) {
            return Ok(None);
        }
        let cutoff = down.min(up) as f64 * Self::CUTOFF;
        let width = (Self::CROSSINGS * down as f64 / cutoff).ceil() as isize;
        let reach = (width as usize).div_ceil(down.max(1));
        let count = (2 * reach + 1).saturating_mul(down).saturating_mul(up);
        if down == 0 || count > Self::MOST {
            let why = format!("hears {RATE} Hz, to which {rate} Hz has no short ratio ({down} to {up})");
            return Err(Error::File { path: encoder.to_owned(), why });
        }
        let tap = |i: usize| {
            let (offset, phase) = ((i / up) as isize - (reach * down) as isize, i % up);
            if !(-width..width + down as isize).contains(&offset) {
                return 0.0;
            }
            let t = ((offset as f64 / down as f64 - phase as f64 / up as f64) * cutoff).clamp(-Self::CROSSINGS, Self::CROSSINGS);
            let (window, x) = ((t * std::f64::consts::FRAC_PI_2 / Self::CROSSINGS).cos().powi(2), std::f64::consts::PI * t);
            window * cutoff / down as f64 * if x == 0.0 { 1.0 } else { x.sin() / x }
        };
        let taps: Vec<f64> = (0..count).map(tap).collect();
        Ok(Some(Resampler { down, up, reach, taps: Var::from(Tensor::from_f64(device, dtype, &taps, [2 * reach + 1, down, up])?) }))
    }

    /// `[B, ceil(T up / down), 1]` of `wave [B, T, 1]`.
    fn record(&self, tape: &Tape, wave: &Var) -> Result<Var> {
        let [batch, samples, _] = wave.value().shape()[..] else { return Err(Error::Argument(format!("waves {:?}", wave.value()))) };
        let more = samples.next_multiple_of(self.down) - samples;
        let whole = match more {
            0 => wave.clone(),
            more => tape.concat(&[wave.clone(), silence(wave.value(), [batch, more, 1])?])?,
        };
        let rows = (samples + more) / self.down;
        let whole = tape.reshape(&whole, [batch, rows, self.down])?;
        let geometry = conv1d::Geometry { pad_left: self.reach, pad_right: self.reach, ..Default::default() };
        let heard = tape.reshape(&tape.conv1d(&whole, &self.taps, None, None, geometry)?, [batch, rows * self.up, 1])?;
        let length = (samples * self.up).div_ceil(self.down);
        Ok(tape.pad(&heard, 0, length as isize - (rows * self.up) as isize)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tape::Compute;

    fn golden() -> Weights {
        Weights::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/speaker/encoder.safetensors")).unwrap()
    }

    fn rules() -> SpeakerRules {
        SpeakerRules { encoder: golden().path().to_owned(), weight: 0.5, start: 3 }
    }

    fn distance(found: &[f64], expected: &[f32]) -> f64 {
        assert_eq!(found.len(), expected.len());
        let error: f64 = found.iter().zip(expected).map(|(a, &b)| (a - f64::from(b)).powi(2)).sum();
        (error / expected.iter().map(|&e| f64::from(e).powi(2)).sum::<f64>()).sqrt()
    }

    /// Embeddings, loss and the gradient of the wave, at the encoder's own rate, at 24 kHz and past one partial utterance.
    #[test]
    fn the_loss_is_that_of_resemblyzer_and_pytorch() {
        let dump = golden();
        for (case, rate) in [("own", 16_000), ("resampled", 24_000), ("partials", 2_000)] {
            for (dtype, bound) in [(DType::F64, 2e-6), (DType::F32, 5e-5)] {
                let speaker = Speaker::new(&rules(), rate, &Device::Cpu, dtype).unwrap();
                let wave = |name: &str| {
                    let name = format!("{case}.{name}");
                    let values: Vec<f64> = dump.to_f32(&name).unwrap().iter().map(|&v| f64::from(v)).collect();
                    let shape = dump.view(&name).unwrap().shape.to_vec();
                    Rc::new(Tensor::from_f64(&Device::Cpu, dtype, &values, [shape[0], shape[1], 1]).unwrap())
                };
                let tape = Tape::new();
                let (y, x) = (tape.leaf(wave("y")), Var::from_shared(&wave("x")));
                let expected = |name: &str| dump.to_f32(&format!("{case}.{name}")).unwrap().into_owned();
                let embedded = distance(&speaker.embed(&Tape::new(), &x).unwrap().value().to_f64().unwrap(), &expected("embedding"));
                let loss = speaker.record(&tape, &y, &x).unwrap().value().to_f64().unwrap();
                let gradient = tape.backward().unwrap().take(&y).unwrap().to_f64().unwrap();
                let gradient: Vec<f64> = gradient.iter().map(|g| g / speaker.weight()).collect();
                let far = [embedded, distance(&loss, &expected("loss")), distance(&gradient, &expected("gradient"))];
                println!("{case} {dtype}: embedding, loss and gradient are off by {}", far.map(|far| format!("{far:.1e}")).join(", "));
                assert!(far.iter().all(|far| *far < bound), "{case} {dtype}: {far:?}");
            }
        }
    }

    #[test]
    fn it_hears_in_full_whatever_the_codec_computes_in() {
        let (dump, speaker) = (golden(), Speaker::new(&rules(), 16_000, &Device::Cpu, DType::F32).unwrap());
        let [y, x] = ["y", "x"].map(|name| {
            let (name, values) = (format!("own.{name}"), dump.to_f32(&format!("own.{name}")).unwrap());
            let shape = dump.view(&name).unwrap().shape;
            Rc::new(Tensor::from_slice(&Device::Cpu, &values, [shape[0], shape[1], 1]).unwrap())
        });
        let [narrow, full] = [Tape::computing(Compute::Bf16), Tape::new()].map(|tape| {
            let y = tape.leaf(y.clone());
            let loss = speaker.record(&tape, &y, &Var::from_shared(&x)).unwrap().value().to_f64().unwrap();
            (loss, tape.backward().unwrap().take(&y).unwrap().to_f64().unwrap())
        });
        assert_eq!(narrow, full);
    }

    #[test]
    fn it_joins_at_its_step_and_not_without_a_weight() {
        let speaker = |rules: &SpeakerRules| Speaker::new(rules, 16_000, &Device::Cpu, DType::F32).unwrap();
        let joined = speaker(&rules());
        assert_eq!([0, 2, 3, 9].map(|step| joined.hears(step)), [false, false, true, true]);
        assert!(!speaker(&SpeakerRules { weight: 0.0, ..rules() }).hears(9));
    }

    #[test]
    fn what_is_no_encoder_and_rates_without_a_ratio_are_refused() {
        let refused = |rules: &SpeakerRules, rate| Speaker::new(rules, rate, &Device::Cpu, DType::F32).err().unwrap().to_string();
        assert!(refused(&rules(), 22_051).contains("22051 Hz"));
        let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/gradients/encodec.safetensors");
        assert!(refused(&SpeakerRules { encoder: other, ..rules() }, 16_000).contains("lstm.weight_hh_l0"));
        let nowhere = SpeakerRules { encoder: "nowhere.pt".into(), ..rules() };
        assert!(refused(&nowhere, 16_000).contains("nowhere.pt"));
    }
}
