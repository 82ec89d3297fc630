//! Starting values of a codec.
//!
//! From independent noise a decoder takes thousands of steps to find the phase of what the encoder saw, and a loss on the wave
//! only teaches it silence meanwhile. So the layers between the residual units start as a cosine transform of blocks of
//! samples, lowest frequencies first, and the decoder's as its inverse: the untrained codec is a low-pass filter.

use std::collections::{BTreeMap, BTreeSet};
use std::f64::consts::{PI, TAU};

use swara_kernels::case::SplitMix;

use super::architecture::Architecture;
use super::quantize::mix;
use crate::codec::dac::PROSODY;
use crate::codec::model::{Layer, Layout, Model, TensorSpec};
use crate::codec::quantizer::SPLIT;

/// Deviation of the noise around the transform, beside that of a layer which keeps the variance.
const NOISE: f64 = 0.2;
/// Level of the signal inside, beside that outside: small, because snakes and ELUs are straight there.
const LEVEL: f64 = 0.1;
/// Size of a residual branch.
const BRANCH: f64 = 0.25;

/// Deviation of a weight that stands alone, beside that which keeps the variance.
fn scale(spec: &TensorSpec) -> f64 {
    match spec.name.as_str() {
        name if name.contains("res_unit") && name.ends_with("conv2.weight_v") => BRANCH,
        // Codewords are standard normal; what leaves the quantiser should be as loud as samples.
        name if name.ends_with("out_proj.weight_v") => LEVEL,
        // A codec that is modulated starts as one that is not.
        name if name.strip_prefix(PROSODY).is_some_and(|part| ["gamma.weight", "beta.weight"].contains(&part)) => 0.0,
        _ => 1.0,
    }
}

/// Values of `specs`, in memory order. Snakes are 1, biases 0, codebooks standard normal (DAC); gains are the norms of their
/// weights.
pub fn values(architecture: &Architecture, model: &Model, specs: &[TensorSpec], seed: u64) -> BTreeMap<String, Vec<f64>> {
    let spine = spine(architecture, model);
    let (branches, noisy) = quiet(architecture, model);
    let place = |spec: &TensorSpec| {
        let layer = spec.name.strip_suffix(".weight").or(spec.name.strip_suffix(".weight_v"))?;
        spine.iter().find_map(|pair| Some((pair, pair.halves.iter().find(|half| half.name == layer)?)))
    };
    let mut values = BTreeMap::new();
    for spec in specs {
        let place = place(spec);
        let layer = spec.name.strip_suffix(".weight_v").or(spec.name.strip_suffix(".weight")).unwrap_or(&spec.name);
        // The semantic codebook ends a way of its own, beside that of the others.
        let semantic = layer.strip_suffix(".output_proj") == Some(SPLIT[0]);
        let scale = match place {
            Some((pair, _)) if pair.coarse > 0 => NOISE,
            // Too narrow for any of it.
            Some(_) => 1.0,
            None if branches.contains(layer) => BRANCH,
            None if semantic || noisy.contains(layer) => LEVEL,
            None => scale(spec),
        };
        let mut weights: Vec<f64> = noise(spec, seed).into_iter().map(|w| (w * scale) as f32 as f64).collect();
        if let Some((pair, half)) = place {
            pair.add_to(spec, half, &mut weights);
        }
        if let Some(layer) = spec.name.strip_suffix(".weight_v") {
            values.insert(format!("{layer}.weight_g"), spec.norms(&weights).into_iter().map(|n| n as f32 as f64).collect());
        }
        if spec.layout != Layout::Gain {
            values.insert(spec.name.clone(), weights);
        }
    }
    values
}

/// Layers that end a residual branch, and those whose outputs noise is multiplied with, of what has no residual units of DAC's names.
fn quiet<'a>(architecture: &Architecture, model: &'a Model) -> (BTreeSet<&'a str>, BTreeSet<&'a str>) {
    let (mut branches, mut noisy) = (BTreeSet::new(), BTreeSet::new());
    if let Architecture::Own(_) = architecture {
        return (branches, noisy);
    }
    for layer in model.layers() {
        match layer {
            Layer::Residual(_, last) => drop(branches.insert(&*last.name)),
            Layer::Shortcut(convs) => drop(branches.insert(&*convs[1].name)),
            Layer::Noise(linear) => drop(noisy.insert(&*linear.name)),
            _ => {}
        }
    }
    (branches, noisy)
}

/// What a layer does to blocks of rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Turns each into a single row (the encoder's).
    Encodes,
    /// Turns single rows into blocks.
    Decodes,
    /// The same, of rows that [`Role::Repeats`] has repeated already: each row of a block finds its coefficients in channels of its own.
    DecodesRepeated,
    /// Hands single rows to each row of a block, channel by channel.
    Repeats,
}

struct Half {
    name: String,
    role: Role,
    /// The tap that sees the block's first row.
    tap: usize,
    /// Channels of the single rows.
    width: usize,
    /// Factor on all of its weights.
    level: f64,
    /// How many times a decoder's layer has what it gives, in channels side by side.
    copies: usize,
}

/// Layers of the encoder that do something to blocks of rows, and of the decoder that undo it.
struct Pair {
    halves: Vec<Half>,
    /// Rows that become one, and samples that one of them stands for.
    block: usize,
    hop: usize,
    /// Channels before and after that carry coefficients.
    fine: usize,
    coarse: usize,
}

/// All that lies between the residual units of a codec of swara's own, or of a Mimi.
fn spine(architecture: &Architecture, model: &Model) -> Vec<Pair> {
    let (quantizer, dim) = match architecture {
        Architecture::Own(config) => ("quantizer", config.codebook_dim),
        Architecture::Mimi(config) => (SPLIT[1], config.codebook_dim),
        Architecture::EnCodec(_) | Architecture::Snac(_) => return Vec::new(),
    };
    let half = |name: &str, role, tap, width| Half { name: name.to_owned(), role, tap, width, level: 1.0, copies: 1 };
    let encoder = model.encoder.iter().filter_map(|layer| match layer {
        Layer::Conv(c) => Some((c.geometry.stride, half(&c.name, Role::Encodes, c.geometry.pad_left, c.cout))),
        _ => None,
    });
    let decoder = model.decoder.iter().rev().filter_map(|layer| match layer {
        Layer::Conv(c) => Some(half(&c.name, Role::Decodes, c.geometry.pad_left, c.cin)),
        Layer::Upsample(u) if u.geometry.groups > 1 => Some(half(&u.name, Role::Repeats, u.geometry.crop_left, u.cin)),
        Layer::Upsample(u) => Some(half(&u.name, Role::Decodes, u.geometry.crop_left, u.cin)),
        _ => None,
    });
    let mut layers: Vec<_> = encoder.zip(decoder).map(|((block, encodes), decodes)| (block, vec![encodes, decodes])).collect();
    let last = layers.len() - 1;
    let repeated = layers[last].1[1].role == Role::Repeats;
    let between = if repeated { last - 1 } else { last };
    for (place, level) in [(0, LEVEL), (between, 1.0 / LEVEL)] {
        let halves = &mut layers[place].1;
        (halves[0].level, halves[1].level) = (halves[0].level * level, halves[1].level / level);
    }
    let mut output = half(&format!("{quantizer}.output_proj"), Role::Decodes, 0, dim);
    if repeated {
        // A layer of single channels cannot mix them: the one behind it does, which by itself had nothing to do.
        if let Some(mut decodes) = layers[between].1.pop() {
            (decodes.role, output.copies) = (Role::DecodesRepeated, layers[last].0);
            decodes.width /= output.copies;
            layers[last].1.push(decodes);
        }
    }
    layers.push((1, vec![half(&format!("{quantizer}.input_proj"), Role::Encodes, 0, dim), output]));

    let (mut hop, mut fine) = (1, 1);
    let pair = |(block, halves): (usize, Vec<Half>)| {
        let coarse = halves.iter().map(|half| half.width).fold(fine * block, usize::min);
        let pair = Pair { halves, block, hop, fine, coarse };
        (hop, fine) = (hop * block, coarse);
        pair
    };
    layers.into_iter().map(pair).collect()
}

impl Pair {
    /// Adds the transform to the weights of one of the layers. The encoder's is scaled down so that coefficients are as
    /// large as samples, where activations are nearly straight, and the decoder's up.
    fn add_to(&self, spec: &TensorSpec, half: &Half, weights: &mut [f64]) {
        let shape = spec.shape();
        let (rows, columns) = (shape[1], shape[2]);
        let scale = (self.block as f64).sqrt();
        let mut add = |tap: usize, row: usize, column: usize, value: f64| weights[(tap * rows + row) * columns + column] += value;
        for j in 0..self.block {
            for c in 0..self.coarse {
                if half.role == Role::Repeats {
                    add(half.tap + j, j * self.coarse + c, 0, 1.0);
                    continue;
                }
                for f in 0..self.fine {
                    let product = self.product(f, c, j);
                    let decode = |copy: usize| (f + copy * self.fine, product * scale);
                    match half.role {
                        Role::Encodes => add(half.tap + j, f, c, product / scale),
                        Role::DecodesRepeated => add(half.tap, c + j * self.coarse, f, product * scale),
                        _ => (0..half.copies).map(decode).for_each(|(column, value)| add(half.tap + j, c, column, value)),
                    }
                }
            }
        }
        weights.iter_mut().for_each(|w| *w = (*w * half.level) as f32 as f64);
    }

    /// Of vector `f` of the orthonormal DCT-II of `hop` samples, and those samples of row `j` that vector `c` of a block's has. Each is a cosine
    /// of `angle (2n + 1)`, so that their product sums up in closed form.
    fn product(&self, f: usize, c: usize, j: usize) -> f64 {
        let (hop, long) = (self.hop as f64, (self.hop * self.block) as f64);
        let angle = |k: usize, size: f64| PI * k as f64 / (2.0 * size);
        let norm = |k: usize, size: f64| (if k == 0 { 1.0 } else { 2.0 } / size).sqrt();
        let (a, b) = (angle(f, hop), angle(c, long));
        let shift = 2.0 * j as f64 * hop * b;
        let sum = |angle: f64, phase: f64| match angle.abs() {
            0.0..1e-12 => hop * phase.cos(),
            _ => (hop * angle + phase).cos() * (hop * angle).sin() / angle.sin(),
        };
        0.5 * norm(f, hop) * norm(c, long) * (sum(a + b, shift) + sum(a - b, -shift))
    }
}

/// Normal values of the deviation that keeps the signal's variance.
fn noise(spec: &TensorSpec, seed: u64) -> Vec<f64> {
    let p = &spec.published;
    let n = p.iter().product();
    let std = match spec.layout {
        Layout::Alpha => return vec![1.0; n],
        Layout::Plain if spec.name.ends_with(".codebook.weight") => 1.0,
        // Transformers: as `torch.nn.Linear` has it; layers near the identity (Mimi).
        Layout::Plain if p.len() == 2 => (1.0 / (3 * p[1]) as f64).sqrt(),
        Layout::Plain if spec.name.ends_with(".scale") => return vec![0.01; n],
        Layout::Plain if spec.name.ends_with(".weight") => return vec![1.0; n],
        Layout::Plain => return vec![0.0; n],
        Layout::Conv => (1.0 / (p[1] * p[2]) as f64).sqrt(),
        // Half of a transposed convolution's taps meet at each output; those of one channel, where it is depthwise.
        Layout::ConvTranspose if spec.name.starts_with("upsample.") => (1.0 / (p[2] / 2).max(1) as f64).sqrt(),
        Layout::ConvTranspose => (1.0 / (2 * p[0]) as f64).sqrt(),
        Layout::Gain => return Vec::new(),
    };
    let mut rng = SplitMix(spec.name.bytes().fold(seed, |h, b| mix(h, b as u64, 1)));
    (0..n).map(|_| std * gaussian(&mut rng)).collect()
}

fn gaussian(rng: &mut SplitMix) -> f64 {
    (-2.0 * (1.0 - rng.uniform()).ln()).sqrt() * (TAU * rng.uniform()).cos()
}
