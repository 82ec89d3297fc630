//! Layers with their weights, run over whole signals or over streams.

use swara_kernels::ops::attention::{KvCache, Positions};
use swara_kernels::ops::conv1d::{self, Epilogue, Fused, Prologue, Ring};
use swara_kernels::ops::{conv_transpose1d, elementwise, layer_norm, pad};
use swara_kernels::{DType, Device, Tensor, span};

use super::Stored;
use super::model::{Activation, Before, Conv, Film, Layer, Upsample};
use super::whole::{Noise, ReadyLstm, ReadyNoise, ReadyWindowed};
use crate::transformer::{LayerNorm, ReadyBlock};
use crate::weights::{Reader, Source};
use crate::{Error, Result};

enum Activate {
    None,
    Elu,
    Snake(Tensor),
}

impl Activate {
    fn new(activation: &Activation, from: &mut Reader) -> Result<Activate> {
        Ok(match activation {
            Activation::None => Activate::None,
            Activation::Elu => Activate::Elu,
            Activation::Snake(name) => Activate::Snake(from.parameter(&format!("{name}.alpha"))?),
        })
    }

    fn prologue(&self) -> Prologue<'_> {
        match self {
            Activate::None => Prologue::None,
            Activate::Elu => Prologue::Elu,
            Activate::Snake(alpha) => Prologue::Snake(alpha),
        }
    }
}

pub(super) struct ReadyConv {
    pub layer: Conv,
    activate: Activate,
    weight: conv1d::Weight,
    bias: Option<Tensor>,
    norm: Option<GroupNorm>,
}

impl ReadyConv {
    pub fn new(layer: &Conv, from: &mut Reader) -> Result<ReadyConv> {
        let name = format!("{}.weight", layer.name);
        Ok(ReadyConv {
            activate: Activate::new(&layer.activation, from)?,
            weight: from.convolution(&name, layer.taps, &layer.geometry)?,
            bias: layer.bias.then(|| from.bias(&format!("{}.bias", layer.name))).transpose()?,
            norm: GroupNorm::new(&layer.norm, from)?,
            layer: layer.clone(),
        })
    }

    pub fn run(&self, x: &Tensor, residual: Option<&Tensor>, states: Option<&mut States>) -> Result<Tensor> {
        let _span = span::layer(&self.layer.name);
        if self.layer.before == Before::Reflection || self.norm.is_some() {
            return self.run_whole(x, residual, states.is_some());
        }
        let epilogue = if self.layer.tanh { Epilogue::Tanh } else { Epilogue::None };
        let fused = Fused { prologue: self.activate.prologue(), bias: self.bias.as_ref(), residual, epilogue };
        let Some(states) = states else { return Ok(conv1d::forward(x, &self.weight, &self.layer.geometry, fused)?) };
        let (mask, ring) = (states.mask, states.ring()?);
        if self.layer.before == Before::First {
            ring.prime(x, mask)?;
        }
        Ok(conv1d::step(x, ring, &self.weight, &self.layer.geometry, fused, mask)?)
    }
}

impl ReadyConv {
    /// What is known at the ends of a signal, and of all of it, only.
    fn run_whole(&self, x: &Tensor, residual: Option<&Tensor>, streams: bool) -> Result<Tensor> {
        if streams {
            return Err(needs_whole(&self.layer.name));
        }
        let g = &self.layer.geometry;
        let rows = x.shape()[1];
        let more = rows.next_multiple_of(g.stride) - rows;
        let ends = (g.pad_left as isize, (g.pad_right + more) as isize);
        let padded = if ends == (0, 0) { None } else { Some(pad::reflect(x, ends.0, ends.1)?) };
        let geometry = conv1d::Geometry { pad_left: 0, pad_right: 0, ..*g };
        let x = padded.as_ref().unwrap_or(x);
        let fused = Fused { prologue: self.activate.prologue(), bias: self.bias.as_ref(), ..Default::default() };
        let Some(norm) = &self.norm else {
            return Ok(conv1d::forward(x, &self.weight, &geometry, Fused { residual, ..fused })?);
        };
        let y = norm.run(conv1d::forward(x, &self.weight, &geometry, fused)?)?;
        residual.map_or_else(|| y.copy(), |residual| elementwise::add(&y, residual)).map_err(Error::from)
    }
}

struct ReadyUpsample {
    layer: Upsample,
    activate: Activate,
    weight: conv_transpose1d::Weight,
    bias: Option<Tensor>,
    norm: Option<GroupNorm>,
}

impl ReadyUpsample {
    fn new(layer: &Upsample, from: &mut Reader) -> Result<ReadyUpsample> {
        let name = format!("{}.weight", layer.name);
        Ok(ReadyUpsample {
            activate: Activate::new(&layer.activation, from)?,
            weight: match from.filters(&name, layer.geometry.groups)? {
                Some(codes) => conv_transpose1d::Weight::quantized(&codes, layer.taps, &layer.geometry)?,
                None => conv_transpose1d::Weight::new(&*from.weight(&name)?, &layer.geometry)?,
            },
            bias: layer.bias.then(|| from.bias(&format!("{}.bias", layer.name))).transpose()?,
            norm: GroupNorm::new(&layer.norm, from)?,
            layer: layer.clone(),
        })
    }

    fn run(&self, x: &Tensor, states: Option<&mut States>) -> Result<Tensor> {
        let _span = span::layer(&self.layer.name);
        let fused = conv_transpose1d::Fused { prologue: self.activate.prologue(), bias: self.bias.as_ref() };
        if let Some(norm) = &self.norm {
            if states.is_some() {
                return Err(needs_whole(&self.layer.name));
            }
            let g = &self.layer.geometry;
            let all = conv_transpose1d::Geometry { crop_left: 0, crop_right: 0, ..*g };
            let y = norm.run(conv_transpose1d::forward(x, &self.weight, &all, fused)?)?;
            return Ok(pad::reflect(&y, -(g.crop_left as isize), -g.crop_right)?);
        }
        let Some(states) = states else { return Ok(conv_transpose1d::forward(x, &self.weight, &self.layer.geometry, fused)?) };
        let (mask, ring) = (states.mask, states.ring()?);
        Ok(conv_transpose1d::step(x, ring, &self.weight, &self.layer.geometry, fused, mask)?)
    }
}

/// A norm of all rows and channels of a signal together, with a weight and a bias a channel (`torch.nn.GroupNorm` of one group).
struct GroupNorm(LayerNorm);

impl GroupNorm {
    const EPSILON: f64 = 1e-5;

    fn new(name: &Option<String>, from: &mut Reader) -> Result<Option<GroupNorm>> {
        name.as_ref().map(|name| Ok(GroupNorm(LayerNorm::new(name, from)?))).transpose()
    }

    fn run(&self, x: Tensor) -> Result<Tensor> {
        let (shape, device) = (x.shape(), x.device());
        let &[batch, rows, channels] = &*shape else { return Err(Error::Argument(format!("{x:?} has other axes than three"))) };
        // A row of the layer norm is a signal.
        let tile = |v: &Tensor| Tensor::from_f64(&device, v.dtype(), &v.to_f64()?.repeat(rows), [rows * channels]);
        let y = layer_norm::forward(&x.reshape([batch, rows * channels])?, &tile(&self.0.weight)?, &tile(&self.0.bias)?, Self::EPSILON)?;
        Ok(y.reshape([batch, rows, channels])?)
    }
}

enum Ready {
    Conv(ReadyConv),
    Residual(Box<[ReadyConv; 2]>),
    Upsample(ReadyUpsample),
    Block(Box<ReadyBlock>),
    Noise(ReadyNoise),
    Windowed(Box<ReadyWindowed>),
    Shortcut(Box<[ReadyConv; 3]>),
    Lstm(ReadyLstm),
    Film(Box<ReadyFilm>),
}

/// Layers with weights of [`Film`].
struct ReadyFilm {
    name: String,
    predict: Vec<Ready>,
    encode: Vec<Ready>,
    gamma: ReadyConv,
    beta: ReadyConv,
}

impl ReadyFilm {
    fn new(film: &Film, device: &Device, from: &mut Reader) -> Result<ReadyFilm> {
        let mut ready = |layers: &[Layer]| layers.iter().map(|layer| Ready::new(layer, device, from)).collect::<Result<_>>();
        let (predict, encode) = (ready(&film.predict)?, ready(&film.encode)?);
        let (gamma, beta) = (ReadyConv::new(&film.gamma, from)?, ReadyConv::new(&film.beta, from)?);
        Ok(ReadyFilm { name: film.name.clone(), predict, encode, gamma, beta })
    }

    fn run(&self, x: &Tensor, mut states: Option<&mut States>, noises: &mut Noises) -> Result<Tensor> {
        let _span = span::layer(&self.name);
        let mut e = elementwise::scale(x, Film::HEARD)?;
        for layer in self.predict.iter().chain(&self.encode) {
            e = layer.run(&e, states.as_deref_mut(), noises)?;
        }
        let gamma = elementwise::scale(&self.gamma.run(&e, None, states.as_deref_mut())?, Film::GAMMA)?;
        let beta = elementwise::scale(&self.beta.run(&e, None, states)?, Film::BETA)?;
        Ok(elementwise::add(&elementwise::add(x, &beta)?, &elementwise::mul(x, &gamma)?)?)
    }
}

/// Noise of the layers that add some, and how many of them have run.
struct Noises<'a> {
    noise: &'a Noise,
    run: usize,
}

/// Layers with their weights, one after the other.
pub struct Stack {
    layers: Vec<Ready>,
    bytes: usize,
    noise: Noise,
}

impl Stack {
    /// `weights` are folded, by name, in memory layout; they are kept as `stored` says. The CPU computes in f32 beside bf16.
    pub fn new(layers: &[Layer], weights: &dyn Source, device: &Device, stored: Stored) -> Result<Stack> {
        let mut from = Reader::new(weights, device, stored.dtype);
        from.bits = stored.bits();
        Ok(Stack {
            layers: layers.iter().map(|layer| Ready::new(layer, device, &mut from)).collect::<Result<_>>()?,
            bytes: from.bytes(),
            noise: Noise::default(),
        })
    }

    /// Size of all weights.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn set_noise(&mut self, noise: Noise) {
        self.noise = noise;
    }

    /// `x [B, T, C]` through all layers: whole signals, or the next rows of streams. `observe` is shown what each layer made.
    pub fn run(&self, x: &Tensor, mut streams: Option<Streams>, observe: Observe) -> Result<Tensor> {
        let mut states = streams.as_mut().map(|Streams { past, mask }| past.states(*mask));
        let mut rows = None;
        let mut noises = Noises { noise: &self.noise, run: 0 };
        let mut made: Option<Tensor> = None;
        for layer in &self.layers {
            let x = made.as_ref().unwrap_or(x);
            if let Ready::Block(_) = layer {
                rows = Some(x.shape()[1]);
            }
            let y = layer.run(x, states.as_mut(), &mut noises)?;
            observe(layer.name(), &y)?;
            made = Some(y);
        }
        if let (Some(rows), Some(Streams { past, mask })) = (rows, streams) {
            past.advance(rows, mask)?;
        }
        made.map_or_else(|| Ok(x.copy()?), Ok)
    }
}

impl Ready {
    fn new(layer: &Layer, device: &Device, from: &mut Reader) -> Result<Ready> {
        Ok(match layer {
            Layer::Conv(only) => Ready::Conv(ReadyConv::new(only, from)?),
            Layer::Residual(first, second) => Ready::Residual(Box::new([ReadyConv::new(first, from)?, ReadyConv::new(second, from)?])),
            Layer::Upsample(up) => Ready::Upsample(ReadyUpsample::new(up, from)?),
            Layer::Block(block) => Ready::Block(Box::new(ReadyBlock::new(block, device, from)?)),
            Layer::Shortcut(convs) => {
                let [first, second, third] = &**convs;
                let mut conv = |conv| ReadyConv::new(conv, from);
                Ready::Shortcut(Box::new([conv(first)?, conv(second)?, conv(third)?]))
            }
            Layer::Film(film) => Ready::Film(Box::new(ReadyFilm::new(film, device, from)?)),
            Layer::Lstm(layer) => Ready::Lstm(ReadyLstm::new(layer, from)?),
            Layer::Noise(linear) => Ready::Noise(ReadyNoise::new(linear, device, from)?),
            Layer::Windowed(layer) => Ready::Windowed(Box::new(ReadyWindowed::new(layer, device, from)?)),
        })
    }

    fn run(&self, x: &Tensor, mut states: Option<&mut States>, noises: &mut Noises) -> Result<Tensor> {
        match self {
            Ready::Conv(only) => only.run(x, None, states),
            Ready::Residual(pair) => {
                let [first, second] = &**pair;
                let h = first.run(x, None, states.as_deref_mut())?;
                second.run(&h, Some(x), states)
            }
            Ready::Upsample(up) => up.run(x, states),
            Ready::Block(block) => {
                let states = states.ok_or_else(|| Error::Argument("a transformer runs over streams only".into()))?;
                let (mask, (cache, positions)) = (states.mask, states.cache()?);
                block.run(x, cache, positions, mask)
            }
            Ready::Noise(layer) => {
                noises.run += 1;
                layer.run(x, noises.noise, noises.run - 1)
            }
            Ready::Windowed(layer) => layer.run(x),
            Ready::Shortcut(convs) => {
                let [first, second, third] = &**convs;
                let h = first.run(x, None, states.as_deref_mut())?;
                let around = third.run(x, None, states.as_deref_mut())?;
                second.run(&h, Some(&around), states)
            }
            Ready::Lstm(layer) => layer.run(x),
            Ready::Film(film) => film.run(x, states, noises),
        }
    }

    fn name(&self) -> &str {
        match self {
            Ready::Conv(conv) => &conv.layer.name,
            Ready::Residual(pair) => &pair[0].layer.name,
            Ready::Upsample(up) => &up.layer.name,
            Ready::Block(block) => &block.layer.name,
            Ready::Noise(noise) => &noise.linear.layer.name,
            Ready::Windowed(windowed) => &windowed.layer.name,
            Ready::Shortcut(convs) => &convs[0].layer.name,
            Ready::Lstm(lstm) => &lstm.layer.name,
            Ready::Film(film) => &film.name,
        }
    }
}

/// Called with the name and the output of each layer in order.
pub type Observe<'a> = &'a mut dyn FnMut(&str, &Tensor) -> Result<()>;

/// Streams that go on, and which of them (u8 `[B]`).
pub struct Streams<'a> {
    pub past: &'a mut Past,
    pub mask: Option<&'a Tensor>,
}

enum State {
    Ring(Ring),
    Cache(KvCache),
}

/// What the layers of `batch` streams remember.
pub struct Past {
    /// In the order in which the layers run.
    states: Vec<State>,
    /// Rows that the transformer has seen.
    positions: Option<Positions>,
}

impl Past {
    /// `rows`: most rows that go into the first layer at a time.
    pub fn new(device: &Device, dtype: DType, batch: usize, layers: &[Layer], mut rows: usize) -> Result<Past> {
        let mut past = Past { states: Vec::new(), positions: None };
        layers.iter().try_for_each(|layer| past.remember(layer, device, dtype, batch, &mut rows))?;
        Ok(past)
    }

    fn remember(&mut self, layer: &Layer, device: &Device, dtype: DType, batch: usize, rows: &mut usize) -> Result<()> {
        let ring = |c: &Conv| -> Result<State> { Ok(State::Ring(Ring::new(device, dtype, batch, c.taps, c.cin, &c.geometry)?)) };
        match layer {
            Layer::Conv(c) => {
                self.states.push(ring(c)?);
                *rows /= c.geometry.stride;
            }
            Layer::Residual(a, b) => self.states.extend([ring(a)?, ring(b)?]),
            Layer::Upsample(u) => {
                let ring = conv_transpose1d::ring(device, dtype, batch, u.taps, u.cin, u.geometry.stride)?;
                self.states.push(State::Ring(ring));
                *rows = rows.saturating_mul(u.geometry.stride);
            }
            Layer::Block(b) => {
                let capacity = b.window.unwrap_or(1).saturating_add((*rows).max(1)) - 1;
                let cache = KvCache::new(device, dtype, batch, b.kv_heads, capacity, b.head_dim)?;
                self.states.push(State::Cache(cache));
                if self.positions.is_none() {
                    self.positions = Some(Positions::new(device, batch)?);
                }
            }
            Layer::Film(film) => {
                film.layers().try_for_each(|layer| self.remember(layer, device, dtype, batch, rows))?;
                self.states.extend([ring(&film.gamma)?, ring(&film.beta)?]);
            }
            Layer::Noise(_) | Layer::Windowed(_) | Layer::Shortcut(_) | Layer::Lstm(_) => return Err(needs_whole(layer.name())),
        }
        Ok(())
    }

    /// Forgets the past of the streams whose mask is not zero.
    pub fn reset(&mut self, mask: &Tensor) -> Result<()> {
        for state in &mut self.states {
            if let State::Ring(ring) = state {
                ring.reset(mask)?;
            }
        }
        // Keys beyond the position are never seen.
        self.positions.as_mut().map_or(Ok(()), |positions| Ok(positions.reset(mask)?))
    }

    fn advance(&mut self, rows: usize, mask: Option<&Tensor>) -> Result<()> {
        self.positions.as_mut().map_or(Ok(()), |positions| Ok(positions.advance(rows, mask)?))
    }

    fn states<'a>(&'a mut self, mask: Option<&'a Tensor>) -> States<'a> {
        States { rest: self.states.iter_mut(), positions: self.positions.as_ref(), mask }
    }
}

/// What the layers that have not run yet remember.
pub(super) struct States<'a> {
    rest: std::slice::IterMut<'a, State>,
    positions: Option<&'a Positions>,
    mask: Option<&'a Tensor>,
}

impl<'a> States<'a> {
    fn ring(&mut self) -> Result<&'a mut Ring> {
        match self.rest.next() {
            Some(State::Ring(ring)) => Ok(ring),
            _ => Err(of_others()),
        }
    }

    fn cache(&mut self) -> Result<(&'a mut KvCache, &'a Positions)> {
        match (self.rest.next(), self.positions) {
            (Some(State::Cache(cache)), Some(positions)) => Ok((cache, positions)),
            _ => Err(of_others()),
        }
    }
}

fn needs_whole(layer: &str) -> Error {
    Error::Argument(format!("{layer} needs whole signals and cannot stream"))
}

fn of_others() -> Error {
    Error::Argument("the streams are of other layers".into())
}
