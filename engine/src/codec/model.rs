//! A codec's layers as a list, whatever its family: what trains on a tape and what runs with weights attached.

use std::collections::BTreeMap;

use swara_kernels::ops::weight_norm::Axis;
use swara_kernels::ops::{conv_transpose1d, conv1d};

use super::dac;
use super::{Config, Format};
use crate::transformer::Block;
use crate::weights::LEAST_CODES;

/// What a layer applies to its input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Activation {
    None,
    Elu,
    /// With the parameter `{0}.alpha`.
    Snake(String),
}

/// What stands before the first sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    Silence,
    /// The first row, repeated.
    First,
    /// The rows after it in reverse; and after the last sample those before that one, as many more as make whole strides.
    Reflection,
}

/// A convolution and what is fused around it. Tensors are found by name: `{name}.weight`, `{name}.bias`.
#[derive(Clone, Debug)]
pub struct Conv {
    pub name: String,
    pub activation: Activation,
    pub cin: usize,
    pub cout: usize,
    pub taps: usize,
    pub geometry: conv1d::Geometry,
    pub before: Before,
    pub bias: bool,
    /// Tensors of a norm of all rows and channels of a signal together, behind the convolution.
    pub norm: Option<String>,
    pub tanh: bool,
}

impl Conv {
    /// With a bias, and silence before it.
    pub fn new(name: String, activation: Activation, [cin, cout]: [usize; 2], taps: usize, geometry: conv1d::Geometry) -> Conv {
        Conv { name, activation, cin, cout, taps, geometry, before: Before::Silence, bias: true, norm: None, tanh: false }
    }
}

/// A transposed convolution.
#[derive(Clone, Debug)]
pub struct Upsample {
    pub name: String,
    pub activation: Activation,
    pub cin: usize,
    pub cout: usize,
    pub taps: usize,
    pub geometry: conv_transpose1d::Geometry,
    pub bias: bool,
    /// As in [`Conv`], before the ends are cropped.
    pub norm: Option<String>,
}

/// Attention of whole signals in windows that do not overlap: `x + out(attention(norm(x)))`, rotary positions within a window.
#[derive(Clone, Debug)]
pub struct Windowed {
    pub name: String,
    pub width: usize,
    pub head_dim: usize,
    pub window: usize,
    pub theta: f64,
    pub epsilon: f64,
}

/// Recurrent layers one behind the other, added to what they are given: `x + lstm(.. lstm(x))`, of whole signals.
#[derive(Clone, Debug)]
pub struct Lstm {
    pub name: String,
    pub width: usize,
    pub layers: usize,
}

/// Modulation of features (Perez et al. 2018): `(1 + gamma) x + beta`, both from what `predict` hears in `x` and `encode` makes of that.
/// Constants bring all of it to the level of latents, which are as small as samples: at the learning rate of a codec, gamma and beta would
/// otherwise be larger than they within a few steps.
#[derive(Clone, Debug)]
pub struct Film {
    pub name: String,
    /// Its last layer's output is what is supervised in training.
    pub predict: Vec<Layer>,
    pub encode: Vec<Layer>,
    pub gamma: Conv,
    pub beta: Conv,
}

impl Film {
    /// Factors on `x` before it is heard, on gamma and on beta.
    pub const HEARD: f64 = 10.0;
    pub const GAMMA: f64 = 0.1;
    pub const BETA: f64 = 0.01;

    /// All but `gamma` and `beta`, in the order in which they run.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.predict.iter().chain(&self.encode)
    }
}

#[derive(Clone, Debug)]
pub enum Layer {
    Conv(Conv),
    /// `x + second(first(x))`.
    Residual(Conv, Conv),
    /// `third(x) + second(first(x))`.
    Shortcut(Box<[Conv; 3]>),
    Upsample(Upsample),
    Block(Block),
    /// `x + noise * linear(x)`, of whole signals.
    Noise(Conv),
    Windowed(Windowed),
    Lstm(Lstm),
    Film(Box<Film>),
}

impl Layer {
    /// Name of the layer, or of its first part.
    pub fn name(&self) -> &str {
        match self {
            Layer::Conv(conv) | Layer::Residual(conv, _) | Layer::Noise(conv) => &conv.name,
            Layer::Upsample(up) => &up.name,
            Layer::Block(block) => &block.name,
            Layer::Shortcut(convs) => &convs[0].name,
            Layer::Windowed(windowed) => &windowed.name,
            Layer::Lstm(lstm) => &lstm.name,
            Layer::Film(film) => &film.name,
        }
    }

    /// Matrices on the longest way through the layer.
    pub fn products(&self) -> usize {
        match self {
            Layer::Conv(_) | Layer::Upsample(_) | Layer::Noise(_) => 1,
            Layer::Residual(..) | Layer::Shortcut(_) | Layer::Windowed(_) => 2,
            Layer::Block(_) => 4,
            Layer::Lstm(lstm) => 2 * lstm.layers,
            Layer::Film(film) => film.layers().map(Layer::products).sum::<usize>() + 1,
        }
    }

    /// Snakes on the longest way through the layer.
    pub fn snakes(&self) -> usize {
        let snake = |activation: &Activation| usize::from(matches!(activation, Activation::Snake(_)));
        match self {
            Layer::Conv(only) => snake(&only.activation),
            Layer::Residual(first, second) => snake(&first.activation) + snake(&second.activation),
            Layer::Upsample(up) => snake(&up.activation),
            Layer::Shortcut(convs) => convs[..2].iter().map(|conv| snake(&conv.activation)).sum(),
            Layer::Block(_) | Layer::Noise(_) | Layer::Windowed(_) | Layer::Lstm(_) | Layer::Film(_) => 0,
        }
    }

    /// Products, biases and other roundings of the longest way through the layer.
    pub fn depth(&self) -> usize {
        // Less the mean, divided, weighted, biased.
        let norm = |norm: &Option<String>| if norm.is_some() { 4 } else { 0 };
        // e^x - 1 errs by three roundoffs, beside the two of an addition.
        let elu = |activation: &Activation| if *activation == Activation::Elu { 3 } else { 0 };
        // A weight that was gain and direction: root, quotient, product, storage.
        let folded = 4;
        let conv = |c: &Conv| folded + c.taps * c.cin / c.geometry.groups + usize::from(c.bias) + norm(&c.norm) + elu(&c.activation);
        match self {
            Layer::Conv(only) | Layer::Noise(only) => conv(only),
            Layer::Residual(first, second) => conv(first) + conv(second),
            Layer::Upsample(up) => {
                up.taps.div_ceil(up.geometry.stride) * up.cin / up.geometry.groups + usize::from(up.bias) + norm(&up.norm)
            }
            Layer::Block(b) => 3 * b.width + b.head_dim + b.window.unwrap_or(0) + b.heads * b.head_dim + b.hidden,
            Layer::Shortcut(convs) => convs.iter().map(conv).sum(),
            Layer::Windowed(w) => 3 * w.width + w.head_dim + w.window,
            Layer::Lstm(l) => l.layers * 2 * (l.width + 1),
            // A product and two sums.
            Layer::Film(film) => film.layers().map(Layer::depth).sum::<usize>() + conv(&film.gamma) + 3,
        }
    }
}

/// Encoder and decoder of a codec.
#[derive(Clone, Debug)]
pub struct Model {
    pub format: Format,
    pub encoder: Vec<Layer>,
    pub decoder: Vec<Layer>,
}

impl Model {
    /// A DAC-style codec.
    pub fn new(config: &Config) -> Model {
        dac::model(config)
    }

    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.encoder.iter().chain(&self.decoder)
    }

    /// Tensors of every layer, in published names and layouts, for weight-normed (`g`, `v`) or folded weights.
    pub fn tensors(&self, folded: bool) -> Vec<TensorSpec> {
        let mut specs = Vec::new();
        self.layers().for_each(|layer| layer.tensors(&mut specs, folded));
        specs
    }
}

impl Layer {
    fn tensors(&self, specs: &mut Vec<TensorSpec>, folded: bool) {
        match self {
            Layer::Conv(only) | Layer::Noise(only) => conv_tensors(specs, only, folded),
            Layer::Residual(first, second) => {
                conv_tensors(specs, first, folded);
                conv_tensors(specs, second, folded);
            }
            Layer::Upsample(up) => {
                specs.extend(activation_tensor(&up.activation, up.cin));
                specs.extend(weight(&up.name, Layout::ConvTranspose, [up.cin, up.cout / up.geometry.groups, up.taps], folded));
                specs.extend(up.bias.then(|| TensorSpec::new(format!("{}.bias", up.name), Layout::Plain, [up.cout])));
                specs.extend(norm_tensors(&up.norm, up.cout));
            }
            Layer::Block(block) => {
                let plain = |(name, published)| TensorSpec { name, layout: Layout::Plain, published };
                specs.extend(block.tensors().into_iter().map(plain));
            }
            Layer::Shortcut(convs) => convs.iter().for_each(|conv| conv_tensors(specs, conv, folded)),
            Layer::Windowed(windowed) => specs.extend(windowed.tensors()),
            Layer::Lstm(lstm) => specs.extend(lstm.tensors()),
            // Never weight-normed: what begins as zeros has no direction.
            Layer::Film(film) => {
                film.layers().for_each(|layer| layer.tensors(specs, true));
                [&film.gamma, &film.beta].into_iter().for_each(|conv| conv_tensors(specs, conv, true));
            }
        }
    }
}

impl Model {
    /// Rows and columns of what products of codes read, by name: matrices, and the filters of convolutions of one group.
    pub fn matrices(&self) -> BTreeMap<String, [usize; 2]> {
        let mut matrices = BTreeMap::new();
        let mut filters = |name: &str, shape: [usize; 2], groups: usize| {
            if groups == 1 && shape[0].saturating_mul(shape[1]) >= LEAST_CODES {
                matrices.insert(format!("{name}.weight"), shape);
            }
        };
        let mut blocks = Vec::new();
        for layer in self.layers() {
            let mut conv = |conv: &Conv| filters(&conv.name, [conv.cout, conv.taps * conv.cin], conv.geometry.groups);
            match layer {
                Layer::Conv(only) => conv(only),
                Layer::Residual(first, second) => [first, second].into_iter().for_each(conv),
                Layer::Shortcut(convs) => convs.iter().for_each(conv),
                Layer::Upsample(up) => filters(&up.name, [up.cout, up.taps * up.cin], up.geometry.groups),
                Layer::Block(block) => blocks.push(block),
                // Small beside the rest.
                Layer::Noise(_) | Layer::Windowed(_) | Layer::Lstm(_) | Layer::Film(_) => {}
            }
        }
        for (name, shape) in blocks.iter().flat_map(|block| block.tensors()) {
            if let [rows, columns] = shape[..] {
                matrices.insert(name, [rows, columns]);
            }
        }
        matrices
    }
}

impl Windowed {
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let &Windowed { width, .. } = self;
        let matrix = |name: &str, rows| TensorSpec::new(format!("{}.{name}.weight", self.name), Layout::Plain, [rows, width]);
        let vector = |name: &str| TensorSpec::new(format!("{}.norm.{name}", self.name), Layout::Plain, [width]);
        vec![vector("weight"), vector("bias"), matrix("to_qkv", 3 * width), matrix("to_out", width)]
    }
}

impl Lstm {
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let layer = |k: usize| {
            let name = |part: &str| format!("{}.{part}_l{k}", self.name);
            let gates = 4 * self.width;
            let matrix = |part| TensorSpec::new(name(part), Layout::Plain, [gates, self.width]);
            let vector = |part| TensorSpec::new(name(part), Layout::Plain, [gates]);
            [matrix("weight_ih"), matrix("weight_hh"), vector("bias_ih"), vector("bias_hh")]
        };
        (0..self.layers).flat_map(layer).collect()
    }
}

fn activation_tensor(activation: &Activation, channels: usize) -> Option<TensorSpec> {
    match activation {
        Activation::Snake(name) => Some(TensorSpec::new(format!("{name}.alpha"), Layout::Alpha, [1, channels, 1])),
        _ => None,
    }
}

fn conv_tensors(specs: &mut Vec<TensorSpec>, conv: &Conv, folded: bool) {
    specs.extend(activation_tensor(&conv.activation, conv.cin));
    specs.extend(weight(&conv.name, Layout::Conv, [conv.cout, conv.cin / conv.geometry.groups, conv.taps], folded));
    specs.extend(conv.bias.then(|| TensorSpec::new(format!("{}.bias", conv.name), Layout::Plain, [conv.cout])));
    specs.extend(norm_tensors(&conv.norm, conv.cout));
}

fn norm_tensors(norm: &Option<String>, width: usize) -> Vec<TensorSpec> {
    let tensor = |norm: &String| ["weight", "bias"].map(|part| TensorSpec::new(format!("{norm}.{part}"), Layout::Plain, [width]));
    norm.iter().flat_map(tensor).collect()
}

fn weight(name: &str, layout: Layout, shape: [usize; 3], folded: bool) -> Vec<TensorSpec> {
    if folded {
        return vec![TensorSpec::new(format!("{name}.weight"), layout, shape)];
    }
    vec![
        TensorSpec::new(format!("{name}.weight_g"), Layout::Gain, [shape[0], 1, 1]),
        TensorSpec::new(format!("{name}.weight_v"), layout, shape),
    ]
}

/// How a published tensor lies in memory here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As it is.
    Plain,
    /// `[1, C, 1]` is `[C]`.
    Alpha,
    /// `[C, 1, 1]` is `[C]`.
    Gain,
    /// `[out, in, taps]` is `[taps, in, out]`; of images `[out, in, down, across]`, whose taps are counted row by row.
    Conv,
    /// `[in, out, taps]` is `[taps, in, out]`.
    ConvTranspose,
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    pub name: String,
    pub layout: Layout,
    pub published: Vec<usize>,
}

impl TensorSpec {
    pub fn new<const N: usize>(name: String, layout: Layout, published: [usize; N]) -> TensorSpec {
        TensorSpec { name, layout, published: published.to_vec() }
    }

    /// Shape in memory.
    pub fn shape(&self) -> Vec<usize> {
        let p = &self.published;
        match self.layout {
            Layout::Plain => p.clone(),
            Layout::Alpha => vec![p[1]],
            Layout::Gain => vec![p[0]],
            Layout::Conv => vec![p[2..].iter().product(), p[1], p[0]],
            Layout::ConvTranspose => vec![p[2], p[0], p[1]],
        }
    }

    /// Published order to memory order.
    pub fn import(&self, values: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; values.len()];
        self.permute(|published, memory| out[memory] = values[published]);
        out
    }

    /// Memory order to published order.
    pub fn export(&self, values: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; values.len()];
        self.permute(|published, memory| out[published] = values[memory]);
        out
    }

    fn permute(&self, mut place: impl FnMut(usize, usize)) {
        let p = &self.published;
        let &[a, b, _, ..] = &p[..] else { return (0..p.iter().product()).for_each(|i| place(i, i)) };
        let taps = p[2..].iter().product();
        for x in 0..a {
            for y in 0..b {
                for k in 0..taps {
                    let memory = match self.layout {
                        Layout::Conv => (k * b + y) * a + x,
                        Layout::ConvTranspose => (k * a + x) * b + y,
                        _ => (x * b + y) * taps + k,
                    };
                    place((x * b + y) * taps + k, memory);
                }
            }
        }
    }

    /// Norm of each slice of `values` (memory order) along [`TensorSpec::norm_axis`]: the gain that makes weight norm the identity.
    pub fn norms(&self, values: &[f64]) -> Vec<f64> {
        let slice = self.slices();
        let mut squares = vec![0.0; self.published[0]];
        values.iter().enumerate().for_each(|(i, v)| squares[slice(i)] += v * v);
        squares.into_iter().map(f64::sqrt).collect()
    }

    /// `values` (memory order), ones where a whole slice is zeros: those have no direction, and with a gain of 0 any will do.
    pub fn directions(&self, mut values: Vec<f64>) -> Vec<f64> {
        let (slice, norms) = (self.slices(), self.norms(&values));
        values.iter_mut().enumerate().filter(|(i, _)| norms[slice(*i)] == 0.0).for_each(|(_, v)| *v = 1.0);
        values
    }

    /// Of an element in memory order, the slice along [`TensorSpec::norm_axis`].
    fn slices(&self) -> impl Fn(usize) -> usize {
        let (shape, axis) = (self.shape(), self.norm_axis());
        let (rows, columns) = (shape[1], shape[2]);
        move |i| if axis == Axis::In { i / columns % rows } else { i % columns }
    }

    /// The axis of `weight_v` that `weight_g` runs along.
    pub fn norm_axis(&self) -> Axis {
        if self.layout == Layout::ConvTranspose { Axis::In } else { Axis::Out }
    }
}
