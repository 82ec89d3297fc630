//! The three ways to run a [`Model`](super::model::Model)'s layers.

use std::collections::BTreeMap;

use swara_kernels::ops::conv1d::{self, Epilogue, Fused, Prologue, Ring};
use swara_kernels::ops::weight_norm::Axis;
use swara_kernels::ops::{conv_transpose1d, snake};
use swara_kernels::{DType, Device, Tensor};

use super::model::{Conv, Executor, Layer, Upsample};
use crate::tape::{Tape, Var};
use crate::{Error, Result};

/// Folded weights by name.
pub type Weights = BTreeMap<String, Tensor>;

pub(crate) fn find<'a>(weights: &'a Weights, name: &str) -> Result<&'a Tensor> {
    weights.get(name).ok_or_else(|| Error::MissingTensor(name.to_owned()))
}

/// Names of a layer's tensors, made once so that a step allocates none.
struct Names {
    weight: String,
    bias: String,
    alpha: Option<String>,
}

impl Names {
    fn of(layer: &str, snake: Option<&str>) -> Names {
        Names { weight: format!("{layer}.weight"), bias: format!("{layer}.bias"), alpha: snake.map(|s| format!("{s}.alpha")) }
    }
}

fn fused<'a>(weights: &'a Weights, layer: &Conv, names: &Names, residual: Option<&'a Tensor>) -> Result<Fused<'a>> {
    let prologue = match &names.alpha {
        Some(alpha) => Prologue::Snake(find(weights, alpha)?),
        None => Prologue::None,
    };
    let epilogue = if layer.tanh { Epilogue::Tanh } else { Epilogue::None };
    Ok(Fused { prologue, bias: Some(find(weights, &names.bias)?), residual, epilogue })
}

/// Whole signals: any padding.
pub struct Offline<'a> {
    pub weights: &'a Weights,
}

impl Executor for Offline<'_> {
    type Value = Tensor;

    fn conv(&mut self, layer: &Conv, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let names = Names::of(&layer.name, layer.snake.as_deref());
        let fused = fused(self.weights, layer, &names, residual)?;
        Ok(conv1d::forward(x, find(self.weights, &names.weight)?, &layer.geometry, fused)?)
    }

    fn upsample(&mut self, layer: &Upsample, x: &Tensor) -> Result<Tensor> {
        let names = Names::of(&layer.name, Some(&layer.snake));
        let alpha = names.alpha.as_deref().map(|a| find(self.weights, a)).transpose()?;
        let x = alpha.map(|alpha| snake::forward(x, alpha)).transpose()?;
        let x = x.as_ref().ok_or_else(|| Error::MissingTensor(layer.snake.clone()))?;
        let bias = find(self.weights, &names.bias)?;
        Ok(conv_transpose1d::forward(x, find(self.weights, &names.weight)?, Some(bias), &layer.geometry)?)
    }
}

/// What the layers of `batch` streams remember.
pub struct Past {
    rings: Vec<Option<Ring>>,
    names: Vec<Option<Names>>,
}

impl Past {
    pub fn new(device: &Device, dtype: DType, batch: usize, total: usize, layers: &[Layer]) -> Result<Past> {
        let mut past = Past { rings: (0..total).map(|_| None).collect(), names: (0..total).map(|_| None).collect() };
        let mut conv = |c: &Conv| -> Result<()> {
            past.rings[c.index] = Some(Ring::new(device, dtype, batch, c.taps, c.cin, &c.geometry)?);
            past.names[c.index] = Some(Names::of(&c.name, c.snake.as_deref()));
            Ok(())
        };
        let mut ups = Vec::new();
        for layer in layers {
            match layer {
                Layer::Conv(c) => conv(c)?,
                Layer::Residual(a, b) => {
                    conv(a)?;
                    conv(b)?;
                }
                Layer::Upsample(u) => ups.push(u),
            }
        }
        for u in ups {
            past.rings[u.index] = Some(conv_transpose1d::ring(device, dtype, batch, u.taps, u.cin, u.geometry.stride)?);
            past.names[u.index] = Some(Names::of(&u.name, Some(&u.snake)));
        }
        Ok(past)
    }

    /// Forgets the past of the streams whose mask is not zero.
    pub fn reset(&mut self, mask: &Tensor) -> Result<()> {
        self.rings.iter_mut().flatten().try_for_each(|ring| ring.reset(mask)).map_err(Error::from)
    }

    fn layer(&mut self, index: usize) -> Result<(&mut Ring, &Names)> {
        match (self.rings.get_mut(index), self.names.get(index)) {
            (Some(Some(ring)), Some(Some(names))) => Ok((ring, names)),
            _ => Err(Error::Argument(format!("layer {index} is not part of this stream"))),
        }
    }
}

/// The next rows of streams.
pub struct Streaming<'a> {
    pub weights: &'a Weights,
    pub past: &'a mut Past,
    pub mask: Option<&'a Tensor>,
}

impl Executor for Streaming<'_> {
    type Value = Tensor;

    fn conv(&mut self, layer: &Conv, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let (ring, names) = self.past.layer(layer.index)?;
        let fused = fused(self.weights, layer, names, residual)?;
        Ok(conv1d::step(x, ring, find(self.weights, &names.weight)?, &layer.geometry, fused, self.mask)?)
    }

    fn upsample(&mut self, layer: &Upsample, x: &Tensor) -> Result<Tensor> {
        let (ring, names) = self.past.layer(layer.index)?;
        let x = match &names.alpha {
            Some(alpha) => &snake::forward(x, find(self.weights, alpha)?)?,
            None => x,
        };
        let (weight, bias) = (find(self.weights, &names.weight)?, find(self.weights, &names.bias)?);
        Ok(conv_transpose1d::step(x, ring, weight, Some(bias), layer.geometry.stride, self.mask)?)
    }
}

/// Training: weight-normed parameters on a tape.
pub struct Recording<'a> {
    pub tape: &'a Tape,
    pub parameters: &'a BTreeMap<String, Var>,
}

impl Recording<'_> {
    pub fn parameter(&self, name: &str) -> Result<&Var> {
        self.parameters.get(name).ok_or_else(|| Error::MissingTensor(name.to_owned()))
    }

    /// `{layer}.weight`: as it is, or from its direction and gain.
    pub fn weight(&self, layer: &str, axis: Axis) -> Result<Var> {
        match self.parameters.get(&format!("{layer}.weight")) {
            Some(weight) => Ok(weight.clone()),
            None => {
                let (v, g) = (self.parameter(&format!("{layer}.weight_v"))?, self.parameter(&format!("{layer}.weight_g"))?);
                Ok(self.tape.weight_norm(v, g, axis)?)
            }
        }
    }
}

impl Executor for Recording<'_> {
    type Value = Var;

    fn conv(&mut self, layer: &Conv, x: &Var, residual: Option<&Var>) -> Result<Var> {
        let activated = match &layer.snake {
            Some(snake) => &self.tape.snake(x, self.parameter(&format!("{snake}.alpha"))?)?,
            None => x,
        };
        let (weight, bias) = (self.weight(&layer.name, Axis::Out)?, self.parameter(&format!("{}.bias", layer.name))?);
        let y = self.tape.conv1d(activated, &weight, Some(bias), residual, layer.geometry)?;
        if layer.tanh { Ok(self.tape.tanh(&y)?) } else { Ok(y) }
    }

    fn upsample(&mut self, layer: &Upsample, x: &Var) -> Result<Var> {
        let x = self.tape.snake(x, self.parameter(&format!("{}.alpha", layer.snake))?)?;
        let (weight, bias) = (self.weight(&layer.name, Axis::In)?, self.parameter(&format!("{}.bias", layer.name))?);
        Ok(self.tape.conv_transpose1d(&x, &weight, Some(bias), layer.geometry)?)
    }
}
