//! The layers, on the device's kernels.

use swara_kernels::ops::activation::{self, Activation};
use swara_kernels::ops::attention::{self, Mask};
use swara_kernels::ops::linear::{self, Product, Weight as Matrix};
use swara_kernels::ops::matmul::{self, Transpose};
use swara_kernels::ops::{conv1d, elementwise, layer_norm, relative_softmax};
use swara_kernels::{Device, Tensor, span};

use super::DTYPE;
use super::checkpoint::POSITIONS;
use super::config::{Config, Kind};
use crate::weights::{Weights, find};
use crate::{Error, Result};

/// Of the norms between convolutions, whatever the configuration says of others.
const CONV_EPSILON: f64 = 1e-5;

struct Linear {
    weight: Matrix,
    bias: Tensor,
}

impl Linear {
    fn new(name: &str, from: &Weights) -> Result<Linear> {
        let matrix = find(from, &format!("{name}.weight"))?;
        Ok(Linear { weight: Matrix::for_product(matrix, Product::Tiles)?, bias: find(from, &format!("{name}.bias"))?.copy()? })
    }

    fn run(&self, x: &Tensor, activation: linear::Activation, residual: Option<&Tensor>) -> Result<Tensor> {
        Ok(linear::forward(x, &self.weight, linear::Fused { bias: Some(&self.bias), activation, residual, ..Default::default() })?)
    }

    fn plain(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, linear::Activation::None, None)
    }
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f64,
}

impl Norm {
    fn new(name: &str, epsilon: f64, from: &Weights) -> Result<Norm> {
        let part = |part: &str| -> Result<Tensor> { Ok(find(from, &format!("{name}.{part}"))?.copy()?) };
        Ok(Norm { weight: part("weight")?, bias: part("bias")?, epsilon })
    }

    fn run(&self, x: &Tensor) -> Result<Tensor> {
        Ok(layer_norm::forward(x, &self.weight, &self.bias, self.epsilon)?)
    }

    /// Of each channel of `[B, T, C]` over time.
    fn over_time(&self, x: &Tensor) -> Result<Tensor> {
        let &[_, rows, channels] = &*x.shape() else { return Err(Error::Argument(format!("{x:?} has other axes than three"))) };
        let constant = |value: f64| Tensor::from_f64(&x.device(), DTYPE, &vec![value; rows], [rows]);
        let turned = layer_norm::forward(&elementwise::transpose(x)?, &constant(1.0)?, &constant(0.0)?, self.epsilon)?;
        per_channel(&elementwise::transpose(&turned)?, &self.weight, &self.bias, channels)
    }
}

/// `weight[c] x + bias[c]`.
fn per_channel(x: &Tensor, weight: &Tensor, bias: &Tensor, channels: usize) -> Result<Tensor> {
    let geometry = conv1d::Geometry { groups: channels, ..Default::default() };
    let weight = weight.copy()?.reshape([1, 1, channels])?;
    Ok(conv1d::forward(x, &weight, &geometry, conv1d::Fused { bias: Some(bias), ..Default::default() })?)
}

struct Conv {
    weight: conv1d::Weight,
    geometry: conv1d::Geometry,
    bias: Option<Tensor>,
}

impl Conv {
    fn new(name: &str, geometry: conv1d::Geometry, biased: bool, from: &Weights) -> Result<Conv> {
        let weight = conv1d::Weight::new(find(from, &format!("{name}.weight"))?, &geometry)?;
        let bias = biased.then(|| -> Result<Tensor> { Ok(find(from, &format!("{name}.bias"))?.copy()?) }).transpose()?;
        Ok(Conv { weight, geometry, bias })
    }

    fn run(&self, x: &Tensor) -> Result<Tensor> {
        Ok(conv1d::forward(x, &self.weight, &self.geometry, conv1d::Fused { bias: self.bias.as_ref(), ..Default::default() })?)
    }
}

/// A convolution of the wave with what comes behind it.
struct Feature {
    conv: Conv,
    norm: Option<Norm>,
    over_time: bool,
}

impl Feature {
    fn run(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = self.conv.run(x)?;
        if let Some(norm) = &self.norm {
            y = if self.over_time { norm.over_time(&y)? } else { norm.run(&y)? };
        }
        Ok(activation::forward(Activation::Gelu, &y)?)
    }
}

/// WavLM's gate of the bias: `a (b const - 1) + 2`, `a` and `b` sigmoids of what a head attends with.
struct Gate {
    halves: [Linear; 2],
    constant: Tensor,
    minus_one: Tensor,
    two: Tensor,
}

impl Gate {
    fn new(name: &str, heads: usize, from: &Weights, device: &Device) -> Result<Gate> {
        let (weight, bias) =
            (find(from, &format!("{name}.gru_rel_pos_linear.weight"))?, find(from, &format!("{name}.gru_rel_pos_linear.bias"))?);
        let (dim, weight, bias) = (weight.shape().last_dim(), weight.to_f64()?, bias.to_f64()?);
        // The published code adds up four outputs for either: one with the sum of their weights.
        let half = |rows: std::ops::Range<usize>| -> Result<Linear> {
            let sums: Vec<f64> = (0..dim).map(|d| rows.clone().map(|row| weight[row * dim + d]).sum()).collect();
            let matrix = Tensor::from_f64(device, DTYPE, &sums, [1, dim])?;
            let bias = Tensor::from_f64(device, DTYPE, &[bias[rows].iter().sum()], [1])?;
            Ok(Linear { weight: Matrix::for_product(&matrix, Product::Tiles)?, bias })
        };
        let constant = |value: f64| Tensor::from_f64(device, DTYPE, &vec![value; heads], [heads]);
        Ok(Gate {
            halves: [half(0..4)?, half(4..8)?],
            constant: find(from, &format!("{name}.gru_rel_pos_const"))?.copy()?,
            minus_one: constant(-1.0)?,
            two: constant(2.0)?,
        })
    }

    /// `[B, heads, T]` of `[B, T, width]`.
    fn run(&self, x: &Tensor) -> Result<Tensor> {
        let &[batch, rows, width] = &*x.shape() else { return Err(Error::Argument(format!("{x:?} has other axes than three"))) };
        let heads = self.constant.elements();
        let split = x.copy()?.reshape([batch, rows * heads, width / heads])?;
        let sigmoid = |half: &Linear| -> Result<Tensor> {
            Ok(activation::forward(Activation::Sigmoid, &half.plain(&split)?)?.reshape([batch, rows, heads])?)
        };
        let inner = per_channel(&sigmoid(&self.halves[1])?, &self.constant, &self.minus_one, heads)?;
        let gate = elementwise::add_row(&elementwise::mul(&sigmoid(&self.halves[0])?, &inner)?, &self.two)?;
        Ok(elementwise::transpose(&gate)?)
    }
}

struct Attention {
    /// To queries, keys and values.
    projections: [Linear; 3],
    out: Linear,
    gate: Option<Gate>,
    heads: usize,
}

impl Attention {
    fn new(name: &str, config: &Config, from: &Weights, device: &Device) -> Result<Attention> {
        let linear = |part: &str| Linear::new(&format!("{name}.{part}"), from);
        let heads = config.num_attention_heads;
        let gate = (config.kind()? == Kind::WavLm).then(|| Gate::new(name, heads, from, device)).transpose()?;
        Ok(Attention { projections: [linear("q_proj")?, linear("k_proj")?, linear("v_proj")?], out: linear("out_proj")?, gate, heads })
    }

    /// `residual` and what the rows of `x` see of each other. `biases`: of each head by distance, where there is a gate.
    fn run(&self, x: &Tensor, residual: &Tensor, biases: &[Tensor]) -> Result<Tensor> {
        let &[batch, rows, width] = &*x.shape() else { return Err(Error::Argument(format!("{x:?} has other axes than three"))) };
        let dim = width / self.heads;
        let [q, k, v] = &self.projections;
        let [q, k, v] = [q.plain(x)?, k.plain(x)?, v.plain(x)?];
        let seen = match &self.gate {
            None => {
                let [q, k, v] = [q, k, v].map(|x| x.reshape([batch, rows, self.heads, dim]));
                attention::forward(&q?, &k?, &v?, Mask::default())?.0.reshape([batch, rows, width])?
            }
            Some(gate) => {
                let gates = gate.run(x)?;
                // Time last: the channels of a head lie together.
                let [q, k, v] = [elementwise::transpose(&q)?, elementwise::transpose(&k)?, elementwise::transpose(&v)?];
                let mut seen = q.empty_like()?;
                for n in 0..batch * self.heads {
                    let head = |x: &Tensor| x.part(n * dim * rows, [dim, rows]);
                    let scores = matmul::forward(&head(&q)?, &head(&k)?, Transpose { a: true, b: false })?;
                    let gate = gates.part(n * rows, [rows])?;
                    let weights = relative_softmax::forward(&scores, &gate, &biases[n % self.heads], (dim as f64).sqrt().recip())?;
                    seen.write_rows(n * dim, &matmul::forward(&head(&v)?, &weights, Transpose { a: false, b: true })?)?;
                }
                elementwise::transpose(&seen)?
            }
        };
        self.out.run(&seen, linear::Activation::None, Some(residual))
    }
}

struct Layer {
    attention: Attention,
    norms: [Norm; 2],
    widen: Linear,
    narrow: Linear,
    /// Norms before what they are of, not after it.
    stable: bool,
}

impl Layer {
    fn new(name: &str, config: &Config, from: &Weights, device: &Device) -> Result<Layer> {
        let norm = |part: &str| Norm::new(&format!("{name}.{part}"), config.layer_norm_eps, from);
        Ok(Layer {
            attention: Attention::new(&format!("{name}.attention"), config, from, device)?,
            norms: [norm("layer_norm")?, norm("final_layer_norm")?],
            widen: Linear::new(&format!("{name}.feed_forward.intermediate_dense"), from)?,
            narrow: Linear::new(&format!("{name}.feed_forward.output_dense"), from)?,
            stable: config.do_stable_layer_norm,
        })
    }

    fn run(&self, x: &Tensor, biases: &[Tensor]) -> Result<Tensor> {
        let [first, second] = &self.norms;
        let feed_forward = |x: &Tensor, residual: &Tensor| {
            self.narrow.run(&self.widen.run(x, linear::Activation::Gelu, None)?, linear::Activation::None, Some(residual))
        };
        if self.stable {
            let x = self.attention.run(&first.run(x)?, x, biases)?;
            return feed_forward(&second.run(&x)?, &x);
        }
        let x = first.run(&self.attention.run(x, x, biases)?)?;
        second.run(&feed_forward(&x, &x)?)
    }
}

pub(super) struct Model {
    config: Config,
    features: Vec<Feature>,
    projection_norm: Option<Norm>,
    projection: Linear,
    positions: Conv,
    norm: Norm,
    layers: Vec<Layer>,
    /// WavLM's biases, `[buckets, heads]`.
    table: Option<Vec<f32>>,
}

impl Model {
    pub fn new(config: &Config, from: &Weights, device: &Device) -> Result<Model> {
        let feature = |(i, &stride): (usize, &usize)| -> Result<Feature> {
            let name = |part: &str| format!("feature_extractor.conv_layers.{i}.{part}");
            let geometry = conv1d::Geometry { stride, ..Default::default() };
            let normed = config.norms_layers() || i == 0;
            Ok(Feature {
                conv: Conv::new(&name("conv"), geometry, config.conv_bias, from)?,
                norm: normed.then(|| Norm::new(&name("layer_norm"), CONV_EPSILON, from)).transpose()?,
                over_time: !config.norms_layers(),
            })
        };
        let taps = config.num_conv_pos_embeddings;
        // As long as what goes in: of an even number of taps, the last output is left out.
        let geometry = conv1d::Geometry {
            groups: config.num_conv_pos_embedding_groups,
            pad_left: taps / 2,
            pad_right: (taps - 1) / 2,
            ..Default::default()
        };
        let (wavlm, epsilon) = (config.kind()? == Kind::WavLm, config.layer_norm_eps);
        let projection_norm = config.feat_proj_layer_norm || wavlm;
        let table = || -> Result<Vec<f32>> { Ok(find(from, "encoder.layers.0.attention.rel_attn_embed.weight")?.to_vec()?) };
        Ok(Model {
            features: config.conv_stride.iter().enumerate().map(feature).collect::<Result<_>>()?,
            projection_norm: projection_norm.then(|| Norm::new("feature_projection.layer_norm", epsilon, from)).transpose()?,
            projection: Linear::new("feature_projection.projection", from)?,
            positions: Conv::new(POSITIONS, geometry, true, from)?,
            norm: Norm::new("encoder.layer_norm", epsilon, from)?,
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::new(&format!("encoder.layers.{i}"), config, from, device))
                .collect::<Result<_>>()?,
            table: wavlm.then(table).transpose()?,
            config: config.clone(),
        })
    }

    /// Of each head, for the distances `1 - rows` to `rows - 1`.
    fn biases(&self, rows: usize, device: &Device) -> Result<Vec<Tensor>> {
        let Some(table) = &self.table else { return Ok(Vec::new()) };
        let heads = self.config.num_attention_heads;
        let buckets: Vec<usize> = (1 - rows as isize..rows as isize).map(|distance| self.config.bucket(distance)).collect();
        let bias = |head: usize| -> Result<Tensor> {
            let values: Vec<f32> = buckets.iter().map(|bucket| table[bucket * heads + head]).collect();
            Ok(Tensor::from_slice(device, &values, [values.len()])?)
        };
        (0..heads).map(bias).collect()
    }

    /// Shows the hidden states `0..=upto` of waves `[B, N, 1]`.
    pub fn run(&self, waves: Tensor, upto: usize, mut observe: impl FnMut(usize, &Tensor) -> Result<()>) -> Result<()> {
        let mut x = waves;
        for (i, feature) in self.features.iter().enumerate() {
            let _span = span::layer(&format!("feature_extractor.conv_layers.{i}"));
            x = feature.run(&x)?;
        }
        if let Some(norm) = &self.projection_norm {
            x = norm.run(&x)?;
        }
        x = self.projection.plain(&x)?;
        let places = activation::forward(Activation::Gelu, &self.positions.run(&x)?)?;
        x = elementwise::add(&x, &places)?;
        let stable = self.config.do_stable_layer_norm;
        if !stable {
            x = self.norm.run(&x)?;
        }
        observe(0, &x)?;
        let biases = self.biases(x.shape()[1], &x.device())?;
        for (i, layer) in self.layers.iter().enumerate().take(upto) {
            let _span = span::layer(&format!("encoder.layers.{i}"));
            x = layer.run(&x, &biases)?;
            if stable && i + 1 == self.layers.len() {
                x = self.norm.run(&x)?;
            }
            observe(i + 1, &x)?;
        }
        Ok(())
    }
}
