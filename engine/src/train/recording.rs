//! Layers on a tape, their weights weight-normed parameters.

use std::collections::BTreeMap;

use swara_kernels::ops::weight_norm::Axis;
use swara_kernels::span;

use crate::codec::model::{Activation, Before, Conv, Layer, Upsample};
use crate::tape::{Tape, Var};
use crate::{Error, Result};

/// A tape and the parameters by name.
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

    /// `x [B, T, C]` through all of `layers`.
    pub fn run(&self, layers: &[Layer], mut x: Var) -> Result<Var> {
        for layer in layers {
            x = match layer {
                Layer::Conv(only) => self.conv(only, &x, None)?,
                Layer::Residual(first, second) => {
                    let h = self.conv(first, &x, None)?;
                    self.conv(second, &h, Some(&x))?
                }
                Layer::Upsample(up) => self.upsample(up, &x)?,
                Layer::Block(_) | Layer::Noise(_) | Layer::Windowed(_) | Layer::Shortcut(_) | Layer::Lstm(_) => {
                    return Err(untrained(layer.name()));
                }
            };
        }
        Ok(x)
    }

    fn activate(&self, layer: &str, activation: &Activation, x: &Var) -> Result<Var> {
        match activation {
            Activation::None => Ok(x.clone()),
            Activation::Snake(snake) => Ok(self.tape.snake(x, self.parameter(&format!("{snake}.alpha"))?)?),
            Activation::Elu => Err(untrained(layer)),
        }
    }

    fn conv(&self, layer: &Conv, x: &Var, residual: Option<&Var>) -> Result<Var> {
        let _span = span::layer(&layer.name);
        if layer.before != Before::Silence || !layer.bias || layer.norm.is_some() {
            return Err(untrained(&layer.name));
        }
        let x = self.activate(&layer.name, &layer.activation, x)?;
        let (weight, bias) = (self.weight(&layer.name, Axis::Out)?, self.parameter(&format!("{}.bias", layer.name))?);
        let y = self.tape.conv1d(&x, &weight, Some(bias), residual, layer.geometry)?;
        if layer.tanh { Ok(self.tape.tanh(&y)?) } else { Ok(y) }
    }

    fn upsample(&self, layer: &Upsample, x: &Var) -> Result<Var> {
        let _span = span::layer(&layer.name);
        if layer.geometry.groups > 1 || !layer.bias || layer.norm.is_some() {
            return Err(untrained(&layer.name));
        }
        let x = self.activate(&layer.name, &layer.activation, x)?;
        let (weight, bias) = (self.weight(&layer.name, Axis::In)?, self.parameter(&format!("{}.bias", layer.name))?);
        Ok(self.tape.conv_transpose1d(&x, &weight, Some(bias), layer.geometry)?)
    }
}

fn untrained(layer: &str) -> Error {
    Error::Argument(format!("training has no gradient for layer {layer} yet"))
}
