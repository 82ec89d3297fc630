//! The codec's layers as a list, written once and executed in three ways: on a tape (training), over a whole signal, and
//! over a stream.

use swara_kernels::ops::weight_norm::Axis;
use swara_kernels::ops::{conv_transpose1d, conv1d};
use swara_kernels::span;

use super::Config;
use crate::Result;

/// A convolution and what is fused around it. Tensors are found by name: `{name}.weight`, `{name}.bias`.
#[derive(Clone, Debug)]
pub struct Conv {
    pub name: String,
    /// Name of the snake before it, whose tensor is `{snake}.alpha`.
    pub snake: Option<String>,
    pub cin: usize,
    pub cout: usize,
    pub taps: usize,
    pub geometry: conv1d::Geometry,
    pub tanh: bool,
    /// Position in the model; where a stream keeps this layer's past.
    pub index: usize,
}

/// A transposed convolution with `2 stride` taps, after a snake.
#[derive(Clone, Debug)]
pub struct Upsample {
    pub name: String,
    pub snake: String,
    pub cin: usize,
    pub cout: usize,
    pub taps: usize,
    pub geometry: conv_transpose1d::Geometry,
    pub index: usize,
}

#[derive(Clone, Debug)]
pub enum Layer {
    Conv(Conv),
    /// `x + second(first(x))`.
    Residual(Conv, Conv),
    Upsample(Upsample),
}

/// Something that can run layers.
pub trait Executor {
    type Value;
    fn conv(&mut self, layer: &Conv, x: &Self::Value, residual: Option<&Self::Value>) -> Result<Self::Value>;
    fn upsample(&mut self, layer: &Upsample, x: &Self::Value) -> Result<Self::Value>;
}

pub fn run<E: Executor>(layers: &[Layer], executor: &mut E, mut x: E::Value) -> Result<E::Value> {
    fn conv<E: Executor>(executor: &mut E, layer: &Conv, x: &E::Value, residual: Option<&E::Value>) -> Result<E::Value> {
        let _span = span::layer(&layer.name);
        executor.conv(layer, x, residual)
    }
    for layer in layers {
        x = match layer {
            Layer::Conv(only) => conv(executor, only, &x, None)?,
            Layer::Residual(first, second) => {
                let h = conv(executor, first, &x, None)?;
                conv(executor, second, &h, Some(&x))?
            }
            Layer::Upsample(up) => {
                let _span = span::layer(&up.name);
                executor.upsample(up, &x)?
            }
        };
    }
    Ok(x)
}

/// Encoder and decoder of a configuration.
#[derive(Clone, Debug)]
pub struct Model {
    pub encoder: Vec<Layer>,
    pub decoder: Vec<Layer>,
    /// Number of layers that a stream keeps a past for.
    pub layers: usize,
}

impl Model {
    pub fn new(config: &Config) -> Model {
        let mut b = Builder { causal: config.causal, next: 0 };
        let blocks = config.strides.len();
        let (enc, dec) = (&config.encoder_widths, &config.decoder_widths);

        let mut encoder = vec![Layer::Conv(b.conv("encoder.conv1", None, 1, enc[0], 7, 1))];
        for (i, &stride) in config.strides.iter().enumerate() {
            let block = format!("encoder.block.{i}");
            encoder.extend(b.residual_units(&block, enc[i], &config.dilations));
            encoder.push(Layer::Conv(b.strided(&format!("{block}.conv1"), &format!("{block}.snake1"), enc[i], enc[i + 1], stride)));
        }
        encoder.push(Layer::Conv(b.conv("encoder.conv2", Some("encoder.snake1"), enc[blocks], config.latent, 3, 1)));

        let mut decoder = vec![Layer::Conv(b.conv("decoder.conv1", None, config.latent, dec[0], 7, 1))];
        for (i, &stride) in config.strides.iter().rev().enumerate() {
            let block = format!("decoder.block.{i}");
            decoder.push(Layer::Upsample(b.upsample(&block, dec[i], dec[i + 1], stride)));
            decoder.extend(b.residual_units(&block, dec[i + 1], &config.dilations));
        }
        let last = b.conv("decoder.conv2", Some("decoder.snake1"), dec[blocks], 1, 7, 1);
        decoder.push(Layer::Conv(Conv { tanh: true, ..last }));
        Model { encoder, decoder, layers: b.next }
    }

    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.encoder.iter().chain(&self.decoder)
    }

    /// Tensors of every layer, in published names and layouts, for weight-normed (`g`, `v`) or folded weights.
    pub fn tensors(&self, folded: bool) -> Vec<TensorSpec> {
        let mut specs = Vec::new();
        let mut conv = |c: &Conv| {
            specs.extend(c.snake.iter().map(|s| TensorSpec::new(format!("{s}.alpha"), Layout::Alpha, [1, c.cin, 1])));
            specs.extend(weight(&c.name, Layout::Conv, [c.cout, c.cin, c.taps], folded));
            specs.push(TensorSpec::new(format!("{}.bias", c.name), Layout::Plain, [c.cout]));
        };
        let mut ups = Vec::new();
        for layer in self.layers() {
            match layer {
                Layer::Conv(c) => conv(c),
                Layer::Residual(a, b) => {
                    conv(a);
                    conv(b);
                }
                Layer::Upsample(u) => ups.push(u),
            }
        }
        for u in ups {
            specs.push(TensorSpec::new(format!("{}.alpha", u.snake), Layout::Alpha, [1, u.cin, 1]));
            specs.extend(weight(&u.name, Layout::ConvTranspose, [u.cin, u.cout, u.taps], folded));
            specs.push(TensorSpec::new(format!("{}.bias", u.name), Layout::Plain, [u.cout]));
        }
        specs
    }
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
    /// `[out, in, taps]` is `[taps, in, out]`.
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
            Layout::Conv => vec![p[2], p[1], p[0]],
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
        let &[a, b, taps] = &p[..] else { return (0..p.iter().product()).for_each(|i| place(i, i)) };
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
        let shape = self.shape();
        let (rows, columns) = (shape[1], shape[2]);
        let mut squares = vec![0.0; self.published[0]];
        for (i, v) in values.iter().enumerate() {
            let slice = if self.norm_axis() == Axis::In { i / columns % rows } else { i % columns };
            squares[slice] += v * v;
        }
        squares.into_iter().map(f64::sqrt).collect()
    }

    /// The axis of `weight_v` that `weight_g` runs along.
    pub fn norm_axis(&self) -> Axis {
        if self.layout == Layout::ConvTranspose { Axis::In } else { Axis::Out }
    }
}

struct Builder {
    causal: bool,
    next: usize,
}

impl Builder {
    fn index(&mut self) -> usize {
        self.next += 1;
        self.next - 1
    }

    fn conv(&mut self, name: &str, snake: Option<&str>, cin: usize, cout: usize, taps: usize, dilation: usize) -> Conv {
        let geometry = if self.causal {
            conv1d::Geometry::causal(taps, 1, dilation)
        } else {
            let each = (taps - 1) * dilation / 2;
            conv1d::Geometry { dilation, pad_left: each, pad_right: each, ..Default::default() }
        };
        Conv { name: name.to_owned(), snake: snake.map(str::to_owned), cin, cout, taps, geometry, tanh: false, index: self.index() }
    }

    fn strided(&mut self, name: &str, snake: &str, cin: usize, cout: usize, stride: usize) -> Conv {
        let taps = 2 * stride;
        let geometry = if self.causal {
            conv1d::Geometry::causal(taps, stride, 1)
        } else {
            let each = stride.div_ceil(2);
            conv1d::Geometry { stride, pad_left: each, pad_right: each, ..Default::default() }
        };
        Conv { name: name.to_owned(), snake: Some(snake.to_owned()), cin, cout, taps, geometry, tanh: false, index: self.index() }
    }

    fn upsample(&mut self, block: &str, cin: usize, cout: usize, stride: usize) -> Upsample {
        let taps = 2 * stride;
        let geometry = if self.causal {
            conv_transpose1d::Geometry::causal(taps, stride)
        } else {
            conv_transpose1d::Geometry::padded(stride, stride.div_ceil(2), 0)
        };
        Upsample { name: format!("{block}.conv_t1"), snake: format!("{block}.snake1"), cin, cout, taps, geometry, index: self.index() }
    }

    fn residual_units(&mut self, block: &str, width: usize, dilations: &[usize]) -> Vec<Layer> {
        let unit = |(n, &dilation): (usize, &usize)| {
            let unit = format!("{block}.res_unit{}", n + 1);
            let first = self.conv(&format!("{unit}.conv1"), Some(&format!("{unit}.snake1")), width, width, 7, dilation);
            Layer::Residual(first, self.conv(&format!("{unit}.conv2"), Some(&format!("{unit}.snake2")), width, width, 1, 1))
        };
        dilations.iter().enumerate().map(unit).collect()
    }
}
