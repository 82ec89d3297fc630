//! What a codec's prosody encoder is to hear.
//!
//! ```text
//! f0 mean |p - ln(F0 / 150 Hz)| over voiced frames + voicing CE([u, v], voiced) + energy mean |e - ln(rms / 0.05)|
//! ```
//! p, e, u and v are predicted from the quantised latents, in training as in use, so that codes alone decode and conditioning costs no
//! bits. Pitch is YIN's ([`metrics::pitch`]), on the host, of what the wave is to become.

use std::rc::Rc;

use serde::{Deserialize, Serialize};
use swara_kernels::ops::elementwise;
use swara_kernels::{DType, Device, Tensor};

use super::Part;
use crate::codec::ProsodyConfig;
use crate::codec::dac::FEATURES;
use crate::metrics;
use crate::tape::{Tape, Var};
use crate::{Error, Result};

/// Hz and root mean square that are 0.
const PITCH: f64 = 150.0;
const LEVEL: f64 = 0.05;
/// Smallest root mean square that counts, beside [`LEVEL`].
const FLOOR: f64 = 2e-3;

/// The `[prosody]` table of a training run: the encoder's shape, and weights of what supervises it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProsodyRules {
    /// Channels of its convolutions, 1 to 1024.
    pub width: usize,
    /// Residual units before the prediction, and as many behind it, at most 6.
    pub units: usize,
    /// Weight of the L1 of `ln(F0 / 150 Hz)` over voiced frames.
    pub f0: f64,
    /// Of the cross-entropy of being voiced, in nats.
    pub voicing: f64,
    /// Of the L1 of `ln(rms / 0.05)`.
    pub energy: f64,
}

impl Default for ProsodyRules {
    fn default() -> Self {
        ProsodyRules { width: 64, units: 2, f0: 0.5, voicing: 0.1, energy: 0.1 }
    }
}

impl ProsodyRules {
    pub fn shape(&self) -> ProsodyConfig {
        ProsodyConfig { width: self.width, units: self.units }
    }

    /// Of `crop` samples that are so many latents of `hop`.
    pub fn check(&self, sample_rate: u32, crop: usize, [latents, hop]: [usize; 2]) -> Result<()> {
        let fail = |why: String| Err(Error::Config(format!("prosody: {why}")));
        let (_, window) = metrics::pitch_frames(sample_rate);
        match self {
            p if ![p.f0, p.voicing, p.energy].iter().all(|w| w.is_finite() && *w >= 0.0) => {
                fail("weights must be finite and not negative".into())
            }
            _ if crop < window => fail(format!("crops of {crop} samples, pitch is heard in {window}: raise train.crop_frames")),
            _ if latents != crop / hop.max(1) => {
                fail(format!("crops of {} frames, of which the encoder makes {latents}", crop / hop.max(1)))
            }
            _ => Ok(()),
        }
    }
}

/// What is to be predicted of each frame of a step's crops, one crop after the other: `[B T]` each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProsodyFeatures {
    /// `ln(F0 / 150 Hz)`, 0 where it is not voiced.
    pub pitch: Vec<f64>,
    /// 1 or 0; -1 where too little is left of a crop to tell.
    pub voiced: Vec<i32>,
    /// `ln(rms / 0.05)`.
    pub energy: Vec<f64>,
}

impl ProsodyFeatures {
    /// Of `samples [B, crop]` in full scale, a frame every `hop` samples; `sample_rate` in Hz. What is no whole crop or frame is left out.
    pub fn of(samples: &[f32], crop: usize, hop: usize, sample_rate: u32) -> ProsodyFeatures {
        let mut features = ProsodyFeatures::default();
        samples.chunks_exact(crop.max(1)).for_each(|crop| features.hear(crop, hop.max(1), sample_rate));
        features
    }

    fn hear(&mut self, crop: &[f32], hop: usize, sample_rate: u32) {
        let (step, reach) = metrics::pitch_frames(sample_rate);
        let pitch = metrics::pitch(crop, sample_rate);
        let told = if crop.len() < reach { 0 } else { ((crop.len() - reach) / step + 1).min(pitch.len()) };
        for (n, frame) in crop.chunks_exact(hop).enumerate() {
            // Windows whose middle is in the frame, or next to it where frames are shorter.
            let (middle, half) = ((2 * n + 1) * hop, hop.max(step));
            let first = middle.saturating_sub(half + reach).div_ceil(2 * step);
            let end = (middle + half).checked_sub(reach).map_or(0, |last| last / (2 * step) + 1);
            let mut found: Vec<f64> = (first..end.min(told)).map(|i| pitch[i].unwrap_or(0.0)).collect();
            found.sort_by(f64::total_cmp);
            let voiced = &found[found.partition_point(|&hz| hz == 0.0)..];
            let is_voiced = !voiced.is_empty() && 2 * voiced.len() >= found.len();
            self.voiced.push(if found.is_empty() { -1 } else { i32::from(is_voiced) });
            self.pitch.push(if is_voiced { (voiced[voiced.len() / 2] / PITCH).ln() } else { 0.0 });
            let energy = frame.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / frame.len() as f64;
            self.energy.push((energy.sqrt() / LEVEL).max(FLOOR).ln());
        }
    }
}

/// A loss with its share of the step's.
pub type Shared = (f64, Var);

/// Records what the prediction `found [B, T, 4]` lacks of `features`, which are of the whole step: losses of pitch, voicing and energy,
/// the values unweighted; none of what no frame can be measured by.
pub fn record(tape: &Tape, found: &Var, features: &ProsodyFeatures, part: &Part, rules: &ProsodyRules) -> Result<[Option<Shared>; 3]> {
    let [batch, frames, _] = found.value().shape()[..] else { return Err(Error::Argument(format!("prosody of {:?}", found.value()))) };
    let (n, all) = (batch * frames, features.voiced.len());
    if all != part.items * frames || batch != part.own.len() {
        return Err(Error::Argument(format!("prosody of {all} frames for {} crops of {frames}", part.items)));
    }
    let (device, dtype) = (found.value().device(), found.value().dtype());
    let own = part.own.start * frames..part.own.end * frames;
    let count = |frames: &[i32], of: fn(i32) -> bool| frames.iter().filter(|&&voiced| of(voiced)).count() as f64;
    let share = |of: fn(i32) -> bool| count(&features.voiced[own.clone()], of) / count(&features.voiced, of).max(1.0);
    let flat = tape.reshape(found, [n, FEATURES])?;
    let column = |values: &[f64]| Tensor::from_f64(&device, dtype, values, [n, 1]);

    let mask: Vec<f64> = features.voiced[own.clone()].iter().map(|&voiced| f64::from(voiced.max(0))).collect();
    let pitch = || -> Result<Shared> {
        let heard = tape.mask(&tape.project(&flat, &chosen(&device, dtype, [0, 1])?)?, &Rc::new(column(&mask)?))?;
        // A mean over voiced frames alone.
        let (scale, of_step) = (n as f64 / mask.iter().sum::<f64>().max(1.0), share(|voiced| voiced == 1));
        let pitch = tape.l1_loss(&heard, &Var::from(column(&features.pitch[own.clone()])?), rules.f0 * of_step * scale)?;
        Ok((of_step, pitch.told(elementwise::scale(pitch.value(), scale)?)))
    };
    let pitch = mask.contains(&1.0).then(pitch).transpose()?;

    let voicing = || -> Result<Shared> {
        let told = share(|voiced| voiced >= 0);
        let targets = Tensor::from_slice(&device, &features.voiced[own.clone()], [n])?;
        let weights = Tensor::from_f64(&device, dtype, &vec![1.0; n], [n])?;
        let logits = tape.project(&flat, &chosen(&device, dtype, [2, 2])?)?;
        Ok((told, tape.cross_entropy(&logits, targets, weights, rules.voicing * told)?))
    };
    let voicing = features.voiced[own.clone()].iter().any(|&voiced| voiced >= 0).then(voicing).transpose()?;

    let level = tape.project(&flat, &chosen(&device, dtype, [1, 1])?)?;
    let energy = tape.l1_loss(&level, &Var::from(column(&features.energy[own.clone()])?), rules.energy * part.share())?;
    Ok([pitch, voicing, Some((part.share(), energy))])
}

/// `[FEATURES, count]` that takes so many features from `first` on.
fn chosen(device: &Device, dtype: DType, [first, count]: [usize; 2]) -> Result<Rc<Tensor>> {
    let values: Vec<f64> = (0..FEATURES * count).map(|i| if i / count == first + i % count { 1.0 } else { 0.0 }).collect();
    Ok(Rc::new(Tensor::from_f64(device, dtype, &values, [FEATURES, count])?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::f64::consts::TAU;
    use std::path::Path;

    use swara_loader::weights::Weights;

    use super::*;
    use crate::codec::model::{Film, Layer, Model};
    use crate::codec::{Config, QuantizerKind};
    use crate::train::Recording;

    /// A codec's, of the widths of the dump.
    fn film() -> (Film, Model) {
        let config = Config {
            sample_rate: 8000,
            encoder_widths: vec![2, 2],
            decoder_widths: vec![2, 2],
            strides: vec![2],
            dilations: Vec::new(),
            latent: 6,
            causal: true,
            quantizer: QuantizerKind::Ema,
            codebook_dim: 2,
            codebook_sizes: vec![2],
            transformer: None,
            prosody: Some(ProsodyConfig { width: 5, units: 2 }),
        };
        let model = Model::new(&config);
        let Layer::Film(film) = &model.decoder[0] else { panic!("{:?}", model.decoder[0]) };
        ((**film).clone(), model.clone())
    }

    /// The losses of prosody and that of the probe, weighted; what was made; and the gradients of the parameters and of the input.
    struct Found {
        loss: f64,
        losses: Vec<f64>,
        output: Vec<f64>,
        gradients: BTreeMap<String, Vec<f64>>,
    }

    struct Dump {
        values: BTreeMap<String, Vec<f64>>,
        features: ProsodyFeatures,
        film: Film,
        /// Memory order, with their shapes, by name; the input among them.
        leaves: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    }

    impl Dump {
        fn open() -> Dump {
            let file = Weights::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/prosody/film.safetensors")).unwrap();
            let (film, model) = film();
            let mut values = BTreeMap::new();
            for name in file.names() {
                let shape = file.view(name).unwrap().shape.to_vec();
                let found: Vec<f64> = file.to_f32(name).unwrap().iter().map(|&v| f64::from(v)).collect();
                // Channels last here.
                let found = match (name, &shape[..]) {
                    ("input" | "output" | "probe" | "features" | "grad.input", &[b, c, t]) => {
                        (0..b * t * c).map(|i| found[(i / (t * c) * c + i % c) * t + i / c % t]).collect()
                    }
                    _ => found,
                };
                values.insert(name.to_owned(), found);
            }
            let mut leaves: BTreeMap<_, _> = BTreeMap::from([("input".to_owned(), (vec![2, 9, 6], values["input"].clone()))]);
            for spec in model.tensors(false).into_iter().filter(|spec| spec.name.starts_with(crate::codec::dac::PROSODY)) {
                for name in [spec.name.clone(), format!("grad.{}", spec.name)] {
                    let narrow: Vec<f32> = values[&name].iter().map(|&v| v as f32).collect();
                    values.insert(name, spec.import(&narrow).into_iter().map(f64::from).collect());
                }
                leaves.insert(spec.name.clone(), (spec.shape(), values[&spec.name].clone()));
            }
            let voiced: Vec<i32> = values["voiced"].iter().map(|&v| v as i32).collect();
            let pitch = values["pitch"].iter().zip(&voiced).map(|(p, &voiced)| if voiced == 1 { *p } else { 0.0 }).collect();
            let features = ProsodyFeatures { pitch, voiced, energy: values["energy"].clone() };
            Dump { values, features, film, leaves }
        }

        /// Of all items at once, or one by one.
        fn run(&self, dtype: DType, parts: &[Part]) -> Found {
            let mut sum = Found { loss: 0.0, losses: vec![0.0; 3], output: Vec::new(), gradients: BTreeMap::new() };
            for part in parts {
                let tape = Tape::new();
                let leaf = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f64>))| {
                    let (mut shape, mut values) = (shape.clone(), &values[..]);
                    if name == "input" {
                        let each = values.len() / shape[0];
                        (shape[0], values) = (part.own.len(), &values[part.own.start * each..part.own.end * each]);
                    }
                    let shape = swara_kernels::Shape::try_from(&shape[..]).unwrap();
                    (name.clone(), tape.leaf(Rc::new(Tensor::from_f64(&Device::Cpu, dtype, values, shape).unwrap())))
                };
                let leaves: BTreeMap<String, Var> = self.leaves.iter().map(leaf).collect();
                let recording = Recording { tape: &tape, parameters: &leaves };
                let (y, heard) = recording.film(&self.film, &leaves["input"]).unwrap();
                let losses = record(&tape, &heard, &self.features, part, &ProsodyRules::default()).unwrap();
                let output = y.value().to_f64().unwrap();
                let all = self.values["probe"].len() as f64;
                let probe = &self.values["probe"][sum.output.len()..][..output.len()];
                sum.loss += output.iter().zip(probe).map(|(y, p)| y * p / all).sum::<f64>();
                let probe = Tensor::from_f64(&Device::Cpu, dtype, probe, y.value().shape()).unwrap();
                tape.pull(&y, elementwise::scale(&probe, 1.0 / all).unwrap());
                for (n, (loss, weight)) in losses.iter().zip([0.5, 0.1, 0.1]).enumerate() {
                    let Some((share, loss)) = loss else { continue };
                    let loss = share * loss.value().to_f64().unwrap()[0];
                    sum.losses[n] += loss;
                    sum.loss += weight * loss;
                }
                sum.output.extend(output);
                let mut gradients = tape.backward().unwrap();
                for (name, leaf) in &leaves {
                    let found = gradients.take(leaf).unwrap().to_f64().unwrap();
                    match sum.gradients.get_mut(name) {
                        Some(all) if name == "input" => all.extend(found),
                        Some(all) => all.iter_mut().zip(found).for_each(|(all, found)| *all += found),
                        None => drop(sum.gradients.insert(name.clone(), found)),
                    }
                }
            }
            sum
        }
    }

    fn whole() -> [Part; 1] {
        [Part { items: 2, own: 0..2 }]
    }

    fn distance(found: &[f64], expected: &[f64]) -> f64 {
        assert_eq!(found.len(), expected.len());
        let error: f64 = found.iter().zip(expected).map(|(a, b)| (a - b).powi(2)).sum();
        (error / expected.iter().map(|e| e * e).sum::<f64>()).sqrt()
    }

    #[test]
    fn modulation_losses_and_gradients_are_those_of_pytorch() {
        let dump = Dump::open();
        for (dtype, bound) in [(DType::F64, 1e-6), (DType::F32, 1e-4)] {
            let found = dump.run(dtype, &whole());
            let mut far = vec![
                ("output", distance(&found.output, &dump.values["output"])),
                ("losses", distance(&found.losses, &dump.values["losses"])),
            ];
            far.extend(found.gradients.iter().map(|(name, g)| (&**name, distance(g, &dump.values[&format!("grad.{name}")]))));
            // A maximum passes over what is not a number.
            assert!(far.iter().all(|(_, d)| *d < bound), "{dtype}: {far:?}");
            let worst = far.iter().fold(("", 0.0), |worst, far| if far.1 > worst.1 { *far } else { worst });
            println!("{dtype}: the worst of {} is off by {:.1e} of its norm ({})", far.len(), worst.1, worst.0);
            assert!(far.len() > 20 && worst.1 > 0.0, "{dtype}: {worst:?}");
        }
    }

    #[test]
    fn gradients_are_differences() {
        let mut dump = Dump::open();
        let found = dump.run(DType::F64, &whole());
        let names: Vec<String> = dump.leaves.keys().cloned().collect();
        for (n, name) in names.iter().enumerate() {
            let at = 7 * n % dump.leaves[name].1.len();
            let mut moved = |by: f64| {
                dump.leaves.get_mut(name).unwrap().1[at] += by;
                dump.run(DType::F64, &whole()).loss
            };
            let step = 1e-6;
            let difference = (moved(step) - moved(-2.0 * step)) / (2.0 * step);
            moved(step);
            let gradient = found.gradients[name][at];
            assert!((difference - gradient).abs() < 1e-7 + 1e-5 * gradient.abs(), "{name}: {gradient} is no {difference}");
        }
    }

    #[test]
    fn batches_one_by_one_are_as_one() {
        let dump = Dump::open();
        let (together, apart) = (dump.run(DType::F64, &whole()), dump.run(DType::F64, &[0, 1].map(|i| Part { items: 2, own: i..i + 1 })));
        assert!(distance(&apart.losses, &together.losses) < 1e-12);
        for (name, gradient) in &together.gradients {
            assert!(distance(&apart.gradients[name], gradient) < 1e-12, "{name}");
        }
    }

    /// Silence has energy alone, and a crop that is too short not even a voicing.
    #[test]
    fn what_cannot_be_measured_is_no_loss() {
        let mut dump = Dump::open();
        for (voiced, there) in [(0, [false, true, true]), (-1, [false, false, true])] {
            dump.features.voiced.fill(voiced);
            dump.features.pitch.fill(0.0);
            let tape = Tape::new();
            let (shape, n) = ([2, 9, FEATURES], 2 * 9 * FEATURES);
            let found = tape.leaf(Rc::new(Tensor::from_f64(&Device::Cpu, DType::F64, &vec![0.1; n], shape).unwrap()));
            let losses = record(&tape, &found, &dump.features, &whole()[0], &ProsodyRules::default()).unwrap();
            assert_eq!(losses.each_ref().map(Option::is_some), there);
            assert!(losses.iter().flatten().all(|(share, loss)| *share == 1.0 && loss.value().to_f64().unwrap()[0] > 0.0));
            let gradient = tape.backward().unwrap().take(&found).unwrap().to_f64().unwrap();
            assert!(gradient.chunks(FEATURES).all(|g| g[0] == 0.0 && (g[2] != 0.0) == there[1] && g[1] != 0.0), "{gradient:?}");
        }
    }

    /// A tone of 200 Hz, then silence; frames of 20 ms and of 5.
    #[test]
    fn frames_are_labelled() {
        let rate = 16_000;
        let tone = |i: usize| if i < 8000 { 0.2 * (TAU * 200.0 * i as f64 / f64::from(rate)).sin() } else { 0.0 };
        let wave: Vec<f32> = (0..16_000).map(|i| tone(i) as f32).collect();
        for hop in [320, 80, 1280] {
            let found = ProsodyFeatures::of(&wave.repeat(2), 16_000, hop, rate);
            let frames = 16_000 / hop;
            assert_eq!([found.voiced.len(), found.pitch.len(), found.energy.len()], [2 * frames; 3]);
            assert_eq!(found.voiced[..frames], found.voiced[frames..]);
            // In the middle of either; the ends are those of the crop.
            let (voiced, silent) = (frames / 4, 3 * frames / 4);
            assert_eq!([found.voiced[voiced], found.voiced[silent]], [1, 0], "{hop}");
            let expected = (200.0f64 / PITCH).ln();
            assert!((found.pitch[voiced] - expected).abs() < 1e-3 && found.pitch[silent] == 0.0, "{}", found.pitch[voiced]);
            assert!((found.energy[voiced] - (0.2 / 2f64.sqrt() / LEVEL).ln()).abs() < 0.05 && found.energy[silent] == FLOOR.ln());
            let unknown = found.voiced[..frames].iter().filter(|&&v| v < 0).count();
            assert_eq!(unknown, if hop == 1280 { 0 } else { 640 / hop }, "{hop}: {:?}", &found.voiced[..frames]);
        }
        assert!(ProsodyFeatures::of(&wave[..320], 320, 320, rate).voiced == [-1]);
    }
}
