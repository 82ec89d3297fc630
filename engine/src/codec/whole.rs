//! Layers of codecs that see a whole signal: noise in a decoder, attention in windows, recurrent layers.

use std::f64::consts::TAU;

use swara_kernels::case::SplitMix;
use swara_kernels::ops::attention::{self, Mask, Positions};
use swara_kernels::ops::linear::{self, Weight as Matrix};
use swara_kernels::ops::rope::{Rope, Style};
use swara_kernels::ops::{conv1d, elementwise, layer_norm, lstm, rope};
use swara_kernels::{Device, Tensor, span};

use super::execute::ReadyConv;
use super::model::{Conv, Lstm, Windowed};
use crate::transformer::LayerNorm;
use crate::weights::Reader;
use crate::{Error, Result};

/// What the noise layers of a decoder are given. The published code draws anew every time.
#[derive(Debug)]
pub enum Noise {
    /// Standard normal, the same every time.
    Seeded(u64),
    /// Standard normal, of every signal of a batch its own; the batch is of the signals from `first` on.
    Items {
        seed: u64,
        first: usize,
    },
    Silent,
    /// `[B, T, 1]` for each of the layers in order.
    Given(Vec<Tensor>),
}

impl Default for Noise {
    fn default() -> Noise {
        Noise::Seeded(0)
    }
}

impl Noise {
    /// `[B, T, 1]` for the `layer`th of the layers, beside `x [B, T, C]`. None is silence.
    pub(crate) fn draw(&self, layer: usize, x: &Tensor) -> Result<Option<Tensor>> {
        let (batch, t) = (x.shape()[0], x.shape()[1]);
        match self {
            Noise::Silent => Ok(None),
            Noise::Seeded(seed) => {
                // Signals of a batch have the same noise, which each would have alone.
                let one: Vec<f32> = normal(seed ^ (layer as u64).rotate_left(32)).take(t).collect();
                Ok(Some(Tensor::from_slice(&x.device(), &one.repeat(batch), [batch, t, 1])?))
            }
            Noise::Items { seed, first } => {
                let mut of_layer = SplitMix(seed ^ (layer as u64).rotate_left(32));
                let seed = of_layer.next();
                let items = *first as u64..(first + batch) as u64;
                let all: Vec<f32> = items.flat_map(|item| normal(SplitMix(seed ^ item).next()).take(t)).collect();
                Ok(Some(Tensor::from_slice(&x.device(), &all, [batch, t, 1])?))
            }
            Noise::Given(noise) => match noise.get(layer) {
                Some(noise) if *noise.shape() == [batch, t, 1] => Ok(Some(noise.copy()?)),
                Some(noise) => Err(Error::Argument(format!("noise {layer} is {noise:?}, expected [{batch}, {t}, 1]"))),
                None => Err(Error::Argument(format!("noise for {} layers, there are more", noise.len()))),
            },
        }
    }
}

/// Standard normal numbers.
fn normal(seed: u64) -> impl Iterator<Item = f32> {
    let mut rng = SplitMix(seed);
    std::iter::repeat_with(move || ((-2.0 * (1.0 - rng.uniform()).ln()).sqrt() * (TAU * rng.uniform()).cos()) as f32)
}

/// `x + noise * linear(x)`, one number of noise for all channels of a row.
pub(super) struct ReadyNoise {
    pub linear: ReadyConv,
    /// `[1, 1, C]`, so that a product of one tap spreads the noise over the channels.
    spread: Tensor,
}

impl ReadyNoise {
    pub fn new(layer: &Conv, device: &Device, from: &mut Reader) -> Result<ReadyNoise> {
        let spread = Tensor::from_f64(device, from.dtype(), &vec![1.0; layer.cout], [1, 1, layer.cout])?;
        Ok(ReadyNoise { linear: ReadyConv::new(layer, from)?, spread })
    }

    pub fn run(&self, x: &Tensor, noise: &Noise, layer: usize) -> Result<Tensor> {
        let Some(noise) = noise.draw(layer, x)? else { return Ok(x.copy()?) };
        let noise = elementwise::convert(&noise, x.dtype())?;
        let noise = conv1d::forward(&noise, &self.spread, &conv1d::Geometry::default(), conv1d::Fused::default())?;
        Ok(elementwise::add(x, &elementwise::mul(&noise, &self.linear.run(x, None, None)?)?)?)
    }
}

/// `x + out(attention(norm(x)))`, every token seeing those of its window.
pub(super) struct ReadyWindowed {
    pub layer: Windowed,
    rope: Rope,
    norm: LayerNorm,
    /// Queries, keys and values.
    project: [Matrix; 3],
    out: Matrix,
}

impl ReadyWindowed {
    pub fn new(layer: &Windowed, device: &Device, from: &mut Reader) -> Result<ReadyWindowed> {
        let name = |part: &str| format!("{}.{part}", layer.name);
        let (width, dtype) = (layer.width, from.dtype());
        let all = from.weight(&name("to_qkv.weight"))?.to_f64()?;
        let part = |i: usize| -> Result<Matrix> {
            let rows = Tensor::from_f64(device, dtype, &all[i * width * width..][..width * width], [width, width])?;
            Ok(Matrix::new(&rows)?)
        };
        Ok(ReadyWindowed {
            rope: Rope::new(device, layer.head_dim, layer.theta, Style::HalfSplit)?,
            norm: LayerNorm::new(&name("norm"), from)?,
            project: [part(0)?, part(1)?, part(2)?],
            out: Matrix::new(&*from.weight(&name("to_out.weight"))?)?,
            layer: layer.clone(),
        })
    }

    pub fn run(&self, x: &Tensor) -> Result<Tensor> {
        let _span = span::layer(&self.layer.name);
        let &Windowed { width, head_dim, window, epsilon, .. } = &self.layer;
        let (batch, t) = (x.shape()[0], x.shape()[1]);
        if t % window != 0 {
            return Err(Error::Argument(format!("{t} latents, expected whole windows of {window}")));
        }
        let windows = batch * t / window;
        let normed = layer_norm::forward(x, &self.norm.weight, &self.norm.bias, epsilon)?;
        let heads = |matrix: &Matrix| -> Result<Tensor> {
            let y = linear::forward(&normed, matrix, linear::Fused::default())?;
            Ok(y.reshape([windows, window, width / head_dim, head_dim])?)
        };
        let positions = Positions::new(&x.device(), windows)?;
        let turned = |y: Tensor| rope::forward(&y, &self.rope, &positions);
        let [q, k, v] = &self.project;
        let (q, k, v) = (turned(heads(q)?)?, turned(heads(k)?)?, heads(v)?);
        let (seen, _) = attention::forward(&q, &k, &v, Mask::default())?;
        let residual = linear::Fused { residual: Some(x), ..Default::default() };
        Ok(linear::forward(&seen.reshape([batch, t, width])?, &self.out, residual)?)
    }
}

/// `x + lstm(.. lstm(x))`.
pub(super) struct ReadyLstm {
    pub layer: Lstm,
    stack: Vec<Recurrent>,
}

struct Recurrent {
    input: Matrix,
    hidden: Matrix,
    /// Of both.
    bias: Tensor,
}

impl ReadyLstm {
    pub fn new(layer: &Lstm, from: &mut Reader) -> Result<ReadyLstm> {
        let mut recurrent = |k: usize| -> Result<Recurrent> {
            let name = |part: &str| format!("{}.{part}_l{k}", layer.name);
            Ok(Recurrent {
                input: Matrix::new(&*from.weight(&name("weight_ih"))?)?,
                hidden: Matrix::new(&*from.weight(&name("weight_hh"))?)?,
                bias: elementwise::add(&from.parameter(&name("bias_ih"))?, &from.parameter(&name("bias_hh"))?)?,
            })
        };
        Ok(ReadyLstm { stack: (0..layer.layers).map(&mut recurrent).collect::<Result<_>>()?, layer: layer.clone() })
    }

    pub fn run(&self, x: &Tensor) -> Result<Tensor> {
        let _span = span::layer(&self.layer.name);
        let mut y = x.copy()?;
        for r in &self.stack {
            let gates = linear::forward(&y, &r.input, linear::Fused { bias: Some(&r.bias), ..Default::default() })?;
            y = lstm::forward(&gates, &r.hidden)?;
        }
        Ok(elementwise::add(&y, x)?)
    }
}
