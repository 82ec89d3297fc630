//! Layers on a tape, their weights weight-normed parameters.

use std::collections::BTreeMap;
use std::rc::Rc;

use swara_kernels::ops::attention::Mask;
use swara_kernels::ops::rope::{Rope, Style};
use swara_kernels::ops::weight_norm::Axis;
use swara_kernels::ops::{activation, conv1d, elementwise};
use swara_kernels::{Tensor, span};

use crate::codec::Noise;
use crate::codec::model::{Activation, Before, Conv, Film, Layer, Lstm, Upsample, Windowed};
use crate::tape::{Tape, Var};
use crate::transformer::{Block, FeedForward, Norm};
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

    /// `x [B, T, C]` through all of `layers`, without noise.
    pub fn run(&self, layers: &[Layer], x: Var) -> Result<Var> {
        self.run_with(layers, x, &Noise::Silent)
    }

    pub fn run_with(&self, layers: &[Layer], mut x: Var, noise: &Noise) -> Result<Var> {
        let mut noisy = 0;
        for layer in layers {
            x = match layer {
                Layer::Conv(only) => self.conv(only, &x, None)?,
                Layer::Residual(first, second) => {
                    let h = self.conv(first, &x, None)?;
                    self.conv(second, &h, Some(&x))?
                }
                Layer::Upsample(up) => self.upsample(up, &x)?,
                Layer::Block(block) => self.block(block, &x)?,
                Layer::Shortcut(convs) => {
                    let [first, second, third] = &**convs;
                    let h = self.conv(first, &x, None)?;
                    let around = self.conv(third, &x, None)?;
                    self.conv(second, &h, Some(&around))?
                }
                Layer::Lstm(lstm) => self.lstm(lstm, &x)?,
                Layer::Windowed(windowed) => self.windowed(windowed, &x)?,
                Layer::Film(film) => self.film(film, &x)?.0,
                Layer::Noise(linear) => {
                    noisy += 1;
                    self.noise(linear, &x, noise, noisy - 1)?
                }
            };
        }
        Ok(x)
    }

    /// What is modulated, and what was predicted on the way.
    pub fn film(&self, film: &Film, x: &Var) -> Result<(Var, Var)> {
        let _span = span::layer(&film.name);
        let tape = self.tape;
        let found = self.run(&film.predict, tape.scale(x, Film::HEARD)?)?;
        let e = self.run(&film.encode, found.clone())?;
        let gamma = tape.scale(&self.conv(&film.gamma, &e, None)?, Film::GAMMA)?;
        let beta = tape.scale(&self.conv(&film.beta, &e, None)?, Film::BETA)?;
        Ok((tape.add(&tape.add(x, &beta)?, &tape.mul(x, &gamma)?)?, found))
    }

    fn activate(&self, activation: &Activation, x: &Var) -> Result<Var> {
        match activation {
            Activation::None => Ok(x.clone()),
            Activation::Snake(snake) => Ok(self.tape.snake(x, self.parameter(&format!("{snake}.alpha"))?)?),
            Activation::Elu => Ok(self.tape.activation(activation::Activation::Elu, x)?),
        }
    }

    fn conv(&self, layer: &Conv, x: &Var, residual: Option<&Var>) -> Result<Var> {
        let _span = span::layer(&layer.name);
        if layer.norm.is_some() {
            return Err(untrained(&layer.name));
        }
        let mut x = self.activate(&layer.activation, x)?;
        let mut geometry = layer.geometry;
        match layer.before {
            Before::Silence => {}
            Before::First => x = self.tape.begin(&x, std::mem::take(&mut geometry.pad_left))?,
            Before::Reflection => {
                let rows = x.value().shape()[1];
                let more = rows.next_multiple_of(geometry.stride) - rows;
                let ends = [&mut geometry.pad_left, &mut geometry.pad_right].map(std::mem::take);
                x = self.tape.pad(&x, ends[0] as isize, (ends[1] + more) as isize)?;
            }
        }
        let (weight, bias) = (self.weight(&layer.name, Axis::Out)?, self.bias(&layer.name, layer.bias)?);
        let y = self.tape.conv1d(&x, &weight, bias, residual, geometry)?;
        if layer.tanh { Ok(self.tape.activation(activation::Activation::Tanh, &y)?) } else { Ok(y) }
    }

    fn upsample(&self, layer: &Upsample, x: &Var) -> Result<Var> {
        let _span = span::layer(&layer.name);
        if layer.norm.is_some() {
            return Err(untrained(&layer.name));
        }
        let x = self.activate(&layer.activation, x)?;
        let (weight, bias) = (self.weight(&layer.name, Axis::In)?, self.bias(&layer.name, layer.bias)?);
        Ok(self.tape.conv_transpose1d(&x, &weight, bias, layer.geometry)?)
    }

    /// `x + noise * linear(x)`, the noise of the `nth` such layer.
    fn noise(&self, linear: &Conv, x: &Var, noise: &Noise, nth: usize) -> Result<Var> {
        let Some(drawn) = noise.draw(nth, x.value())? else { return Ok(x.clone()) };
        let (device, dtype) = (x.value().device(), x.value().dtype());
        // A product of one tap spreads it over the channels.
        let spread = Tensor::from_f64(&device, dtype, &vec![1.0; linear.cout], [1, 1, linear.cout])?;
        let drawn =
            conv1d::forward(&elementwise::convert(&drawn, dtype)?, &spread, &conv1d::Geometry::default(), conv1d::Fused::default())?;
        let added = self.tape.mask(&self.conv(linear, x, None)?, &Rc::new(drawn))?;
        Ok(self.tape.add(x, &added)?)
    }

    /// Of whole windows.
    fn windowed(&self, layer: &Windowed, x: &Var) -> Result<Var> {
        let _span = span::layer(&layer.name);
        let (tape, &Windowed { width, head_dim, window, .. }) = (self.tape, layer);
        let [batch, tokens, _] = x.value().shape()[..] else { return Err(Error::Argument(format!("rows of {:?}", x.value()))) };
        if !tokens.is_multiple_of(window) {
            return Err(Error::Argument(format!("{tokens} latents, expected whole windows of {window}")));
        }
        let (matrix, count, windows) = (format!("{}.to_qkv.weight", layer.name), width / head_dim, batch * tokens / window);
        let normed = self.layer_norm(&format!("{}.norm", layer.name), x, layer.epsilon)?;
        let heads = |part: usize| self.heads(&matrix, [part * count, count, head_dim], &normed, [windows, window]);
        let rope = Rc::new(Rope::new(&x.value().device(), head_dim, layer.theta, Style::HalfSplit)?);
        let (q, k, v) = (tape.rope(&heads(0)?, &rope)?, tape.rope(&heads(1)?, &rope)?, heads(2)?);
        let seen = tape.reshape(&tape.attention([&q, &k, &v], Mask::default())?, [batch, tokens, width])?;
        Ok(tape.add(x, &tape.linear(&seen, self.parameter(&format!("{}.to_out.weight", layer.name))?)?)?)
    }

    fn bias(&self, layer: &str, biased: bool) -> Result<Option<&Var>> {
        biased.then(|| self.parameter(&format!("{layer}.bias"))).transpose()
    }

    /// Rows of `x` through `{name}`, `count` heads of `size` from row `first` of the matrix on, `[B, T, count, size]`.
    fn heads(&self, matrix: &str, [first, count, size]: [usize; 3], x: &Var, [batch, tokens]: [usize; 2]) -> Result<Var> {
        let rows = self.tape.rows(self.parameter(matrix)?, first * size, count * size)?;
        Ok(self.tape.reshape(&self.tape.linear(x, &rows)?, [batch, tokens, count, size])?)
    }

    fn layer_norm(&self, name: &str, x: &Var, epsilon: f64) -> Result<Var> {
        let (weight, bias) = (self.parameter(&format!("{name}.weight"))?, self.parameter(&format!("{name}.bias"))?);
        Ok(self.tape.layer_norm(x, weight, bias, epsilon)?)
    }

    /// `x + lstm(.. lstm(x))`.
    fn lstm(&self, layer: &Lstm, x: &Var) -> Result<Var> {
        let _span = span::layer(&layer.name);
        let mut y = x.clone();
        for k in 0..layer.layers {
            let part = |part: &str| self.parameter(&format!("{}.{part}_l{k}", layer.name));
            let mut gates = self.tape.linear(&y, part("weight_ih")?)?;
            for bias in ["bias_ih", "bias_hh"] {
                gates = self.tape.add_row(&gates, part(bias)?)?;
            }
            y = self.tape.lstm(&gates, part("weight_hh")?)?;
        }
        Ok(self.tape.add(&y, x)?)
    }

    /// Of whole sequences `x [B, T, width]`.
    fn block(&self, block: &Block, x: &Var) -> Result<Var> {
        let _span = span::layer(&block.name);
        let (tape, name) = (self.tape, |part: &str| format!("{}.{part}", block.name));
        if block.norm != Norm::Layer || block.feed_forward != FeedForward::Gelu || block.crossed {
            return Err(untrained(&block.name));
        }
        let branch = |x: &Var, matrix: &str, scale: &str, wide: &Var| -> Result<Var> {
            let mut y = tape.linear(wide, self.parameter(&name(matrix))?)?;
            if block.scaled {
                y = tape.scale_channels(&y, self.parameter(&name(scale))?)?;
            }
            Ok(tape.add(x, &y)?)
        };
        let [batch, tokens, _] = x.value().shape()[..] else { return Err(Error::Argument(format!("rows of {:?}", x.value()))) };
        let (normed, matrix) = (self.layer_norm(&name("norm1"), x, block.epsilon)?, name("self_attn.in_proj_weight"));
        let heads = |first, count| self.heads(&matrix, [first, count, block.head_dim], &normed, [batch, tokens]);
        let (mut q, mut k) = (heads(0, block.heads)?, heads(block.heads, block.kv_heads)?);
        let v = heads(block.heads + block.kv_heads, block.kv_heads)?;
        if let Some(rotary) = &block.rotary {
            let rope = Rc::new(rotary.rope(&x.value().device(), block.head_dim)?);
            (q, k) = (tape.rope(&q, &rope)?, tape.rope(&k, &rope)?);
        }
        let seen = tape.attention([&q, &k, &v], Mask { causal: true, window: block.window })?;
        let seen = tape.reshape(&seen, [batch, tokens, block.heads * block.head_dim])?;
        let x = branch(x, "self_attn.out_proj.weight", "layer_scale_1.scale", &seen)?;
        let wide = tape.linear(&self.layer_norm(&name("norm2"), &x, block.epsilon)?, self.parameter(&name("linear1.weight"))?)?;
        let wide = tape.activation(activation::Activation::Gelu, &wide)?;
        branch(&x, "linear2.weight", "layer_scale_2.scale", &wide)
    }
}

fn untrained(layer: &str) -> Error {
    Error::Argument(format!("training has no gradient for layer {layer} yet"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use swara_kernels::{DType, Device};
    use swara_loader::weights::{TensorRef, Weights, save};

    use super::*;
    use crate::codec::encodec_layers;

    /// The gradients of a dump, by the names and in the layouts of the model's own tensors: a folder of them is loaded as the model is.
    fn expected(dump: &Weights, model: &Path) -> BTreeMap<String, Tensor> {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<_> = dump.names().filter(|name| !["input", "probe", "wave"].contains(name)).collect();
        let values: Vec<_> = names.iter().map(|name| (dump.view(name).unwrap().shape.to_vec(), dump.to_f32(name).unwrap())).collect();
        let refs: Vec<TensorRef> = names.iter().zip(&values).map(|(name, (shape, v))| TensorRef::f32(name, shape, v)).collect();
        save(dir.path().join("model.safetensors"), &refs, &BTreeMap::new()).unwrap();
        std::fs::copy(model.join("config.json"), dir.path().join("config.json")).unwrap();
        encodec_layers(&Weights::open(dir.path()).unwrap(), &Device::Cpu).unwrap().1
    }

    /// Reflected ends, recurrent layers, shortcuts with a filter.
    #[test]
    fn gradients_of_an_encodec_are_those_of_pytorch() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden");
        let (dump, model) = (Weights::open(golden.join("gradients/encodec.safetensors")).unwrap(), golden.join("encodec/weights/24khz"));
        let expected = expected(&dump, &model);
        let (model, found) = encodec_layers(&Weights::open(&model).unwrap(), &Device::Cpu).unwrap();
        for (dtype, bound) in [(DType::F64, 1e-6), (DType::F32, 1e-4)] {
            let tape = Tape::new();
            let convert = |x: &Tensor| elementwise::convert(x, dtype).unwrap();
            let leaves: BTreeMap<String, Var> = found.iter().map(|(name, w)| (name.clone(), tape.leaf(Rc::new(convert(w))))).collect();
            let recording = Recording { tape: &tape, parameters: &leaves };
            let tensor = |name: &str| {
                let (shape, values) = (dump.view(name).unwrap().shape.to_vec(), dump.to_f32(name).unwrap());
                convert(&Tensor::from_slice(&Device::Cpu, &values, [shape[0], shape[2], 1]).unwrap())
            };
            let z = recording.run(&model.encoder, tensor("input").into()).unwrap();
            let wave = recording.run(&model.decoder, z).unwrap();
            let (probe, far) = (tensor("probe"), distance(wave.value(), &tensor("wave")));
            assert!(far < bound, "{dtype}: the wave is off by {far:.1e}");
            tape.pull(&wave, elementwise::scale(&probe, 1.0 / probe.elements() as f64).unwrap());
            let mut gradients = tape.backward().unwrap();
            let layers = expected.iter().filter(|(name, _)| !name.starts_with("quantizer."));
            let far = layers.map(|(name, expected)| (distance(&gradients.take(&leaves[name]).expect(name), expected), name));
            let worst = far.fold((0.0, ""), |worst, (far, name)| if far > worst.0 { (far, name) } else { worst });
            println!("{dtype}: the worst gradient is off by {:.1e} of its norm ({})", worst.0, worst.1);
            assert!(worst.0 > 0.0 && worst.0 < bound, "{dtype}: the gradient of {} is off by {:.1e} of its norm", worst.1, worst.0);
        }
    }

    fn distance(found: &Tensor, expected: &Tensor) -> f64 {
        let (found, expected) = (found.to_f64().unwrap(), expected.to_f64().unwrap());
        assert_eq!(found.len(), expected.len());
        let error: f64 = found.iter().zip(&expected).map(|(a, b)| (a - b) * (a - b)).sum();
        (error / expected.iter().map(|e| e * e).sum::<f64>().max(1e-30)).sqrt()
    }
}
