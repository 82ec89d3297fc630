//! The block of a causal transformer, over streams: Mimi's, Moshi's and Llama's, by what they are made of.

use std::sync::Arc;

use swara_kernels::ops::attention::{self, KvCache, Mask, Positions};
use swara_kernels::ops::depth;
use swara_kernels::ops::linear::{self, Activation, Fused, Weight as Matrix};
use swara_kernels::ops::rope::{Rope, Style};
use swara_kernels::ops::{activation, layer_norm, rms_norm, rope};
use swara_kernels::{Device, Tensor, span};

use crate::Result;
use crate::weights::Reader;

/// `x += scale_1 * attention(norm1(x))`, then `x += scale_cross * cross_attention(norm_cross(x))` where there is one, then
/// `x += scale_2 * feed_forward(norm2(x))`.
///
/// | tensor                                            | shape                                    |                                  |
/// |---------------------------------------------------|------------------------------------------|----------------------------------|
/// | `norm1.weight`, `norm1.bias`, those of `norm2`    | `[width]`                                | [`Norm::Layer`]                  |
/// | `norm1.alpha`, `norm2.alpha`                      | `[width]`                                | [`Norm::Rms`]                    |
/// | `self_attn.in_proj_weight`                        | `[(heads + 2 kv_heads) head_dim, width]` | queries, keys, values            |
/// | `self_attn.out_proj.weight`                       | `[width, heads head_dim]`                |                                  |
/// | `linear1.weight`, `linear2.weight`                | `[hidden, width]`, `[width, hidden]`     | [`FeedForward::Gelu`]            |
/// | `gating.linear_in.weight`, `gating.linear_out.weight` | `[2 hidden, width]`, `[width, hidden]` | the other [`FeedForward`]s     |
/// | `layer_scale_1.scale`, `layer_scale_2.scale`      | `[width]`                                | if `scaled`                      |
/// | `norm_cross.weight`, `norm_cross.bias`            | `[width]`                                | if `crossed`, whatever [`Norm`]  |
/// | `cross_attention.in_proj_weight`                  | `[3 width, width]`                       | queries of `x`; keys, values of a source |
/// | `cross_attention.out_proj.weight`                 | `[width, width]`                         |                                  |
/// | `layer_scale_cross.scale`                         | `[width]`                                | if `scaled`                      |
#[derive(Clone, Debug)]
pub struct Block {
    pub name: String,
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub hidden: usize,
    /// Keys that a query sees, itself among them; None: all that there are.
    pub window: Option<usize>,
    /// None: positions are not told apart.
    pub rotary: Option<Rotary>,
    pub norm: Norm,
    pub epsilon: f64,
    pub feed_forward: FeedForward,
    pub scaled: bool,
    /// Whether rows attend to a source as well, all of it.
    pub crossed: bool,
}

/// Of the norm before cross attention, which is always a layer norm.
const CROSS_EPSILON: f64 = 1e-5;

/// Matrices of a block without cross attention.
pub(crate) const PLACES: usize = 4;

/// Which of a block's norms the input of a matrix comes from, if from one.
pub(crate) fn norm_before(place: usize) -> Option<usize> {
    [Some(1), None, Some(2), None][place]
}

/// Rotary embedding of positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotary {
    /// Longest period, over `2 pi`.
    pub theta: f64,
    pub style: Style,
    pub scaling: Option<Llama3>,
}

impl Rotary {
    /// Without scaling.
    pub fn new(theta: f64, style: Style) -> Rotary {
        Rotary { theta, style, scaling: None }
    }

    pub(crate) fn rope(&self, device: &Device, head_dim: usize) -> Result<Rope> {
        let Some(scaling) = self.scaling else { return Ok(Rope::new(device, head_dim, self.theta, self.style)?) };
        let scaled: Vec<f64> = rope::frequencies(head_dim, self.theta).into_iter().map(|f| scaling.frequency(f)).collect();
        Ok(Rope::with_frequencies(device, &scaled, self.style)?)
    }
}

/// Slower turns for a context `factor` times as long as that of the first training: Llama 3.1's scaling.
///
/// With `n = original frequency / 2 pi`, the turns within the `original` context:
/// ```text
/// frequency                                                   n > high
/// frequency / factor                                          n < low
/// ((1 - s) / factor + s) frequency, s = (n - low) / (high - low)       between
/// ```
/// Only `original / low` and `original / high` count, so that files may have the same scaling in other numbers.
/// Source: `_compute_llama3_parameters` in `transformers`' modeling_rope_utils.py.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama3 {
    pub factor: f64,
    /// Turns.
    pub low: f64,
    pub high: f64,
    /// Tokens.
    pub original: f64,
}

impl Llama3 {
    fn frequency(&self, frequency: f64) -> f64 {
        let turns = self.original * frequency / std::f64::consts::TAU;
        let kept = ((turns - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        ((1.0 - kept) / self.factor + kept) * frequency
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    Layer,
    /// Of the root of the mean square.
    Rms,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForward {
    /// `linear2(gelu(linear1(x)))`, with the error function.
    Gelu,
    /// `linear_out(silu(u) v)`, `[u; v] = linear_in(x)`.
    SiluGate,
    /// The same with another function.
    Gate(activation::Activation),
}

impl FeedForward {
    fn names(self) -> [&'static str; 2] {
        match self {
            FeedForward::Gelu => ["linear1.weight", "linear2.weight"],
            FeedForward::SiluGate | FeedForward::Gate(_) => ["gating.linear_in.weight", "gating.linear_out.weight"],
        }
    }
}

impl Norm {
    /// Tensors of the norm called `name` of rows of `width`.
    pub fn tensors(self, name: &str, width: usize) -> Vec<(String, Vec<usize>)> {
        let parts: &[&str] = match self {
            Norm::Layer => &["weight", "bias"],
            Norm::Rms => &["alpha"],
        };
        parts.iter().map(|part| (format!("{name}.{part}"), vec![width])).collect()
    }
}

impl Block {
    /// Rows of the projection to queries, keys and values.
    pub fn projected(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// The matrices, in the order in which [`ReadyBlock::observed`] comes to them.
    pub(crate) fn matrices(&self) -> [String; PLACES] {
        let [widen, narrow] = self.feed_forward.names();
        ["self_attn.in_proj_weight", "self_attn.out_proj.weight", widen, narrow].map(|part| format!("{}.{part}", self.name))
    }

    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let &Block { width, hidden, .. } = self;
        let name = |part: &str| format!("{}.{part}", self.name);
        let [widen, narrow] = self.feed_forward.names();
        let wide = if self.feed_forward == FeedForward::Gelu { hidden } else { 2 * hidden };
        let mut tensors = self.norm.tensors(&name("norm1"), width);
        tensors.push((name("self_attn.in_proj_weight"), vec![self.projected(), width]));
        tensors.push((name("self_attn.out_proj.weight"), vec![width, self.heads * self.head_dim]));
        tensors.extend(self.norm.tensors(&name("norm2"), width));
        tensors.push((name(widen), vec![wide, width]));
        tensors.push((name(narrow), vec![width, hidden]));
        if self.scaled {
            tensors.extend(["layer_scale_1.scale", "layer_scale_2.scale"].map(|part| (name(part), vec![width])));
        }
        if self.crossed {
            tensors.extend(Norm::Layer.tensors(&name("norm_cross"), width));
            tensors.push((name("cross_attention.in_proj_weight"), vec![3 * width, width]));
            tensors.push((name("cross_attention.out_proj.weight"), vec![width, width]));
            tensors.extend(self.scaled.then(|| (name("layer_scale_cross.scale"), vec![width])));
        }
        tensors
    }
}

/// `weight xhat + bias` of centred rows.
pub(crate) struct LayerNorm {
    pub weight: Tensor,
    pub bias: Tensor,
}

impl LayerNorm {
    pub fn new(name: &str, from: &mut Reader) -> Result<LayerNorm> {
        Ok(LayerNorm { weight: from.parameter(&format!("{name}.weight"))?, bias: from.parameter(&format!("{name}.bias"))? })
    }
}

/// A norm with its tensors.
pub(crate) enum ReadyNorm {
    Layer(LayerNorm),
    Rms(Arc<Tensor>),
}

impl ReadyNorm {
    pub fn new(norm: Norm, name: &str, from: &mut Reader) -> Result<ReadyNorm> {
        Ok(match norm {
            Norm::Layer => ReadyNorm::Layer(LayerNorm::new(name, from)?),
            Norm::Rms => ReadyNorm::Rms(Arc::new(from.parameter(&format!("{name}.alpha"))?)),
        })
    }

    pub fn run(&self, x: &Tensor, epsilon: f64) -> Result<Tensor> {
        Ok(match self {
            ReadyNorm::Layer(norm) => layer_norm::forward(x, &norm.weight, &norm.bias, epsilon)?,
            ReadyNorm::Rms(alpha) => rms_norm::forward(x, alpha, epsilon)?,
        })
    }

    pub fn rms(&self) -> Option<Arc<Tensor>> {
        match self {
            ReadyNorm::Layer(_) => None,
            ReadyNorm::Rms(alpha) => Some(Arc::clone(alpha)),
        }
    }
}

/// Attention to a source, the keys and values of which are the same for every step.
struct Cross {
    norm: LayerNorm,
    queries: Matrix,
    keys: Matrix,
    values: Matrix,
    out: Matrix,
    scale: Option<Tensor>,
}

impl Cross {
    fn new(layer: &Block, from: &mut Reader) -> Result<Cross> {
        let name = |part: &str| format!("{}.{part}", layer.name);
        let [queries, keys, values] = from.matrices(&name("cross_attention.in_proj_weight"))?;
        Ok(Cross {
            norm: LayerNorm::new(&name("norm_cross"), from)?,
            queries,
            keys,
            values,
            out: from.matrix(&name("cross_attention.out_proj.weight"))?,
            scale: layer.scaled.then(|| from.parameter(&name("layer_scale_cross.scale"))).transpose()?,
        })
    }

    fn run(&self, x: &Tensor, [keys, values]: &Source, head_dim: usize) -> Result<Tensor> {
        let normed = layer_norm::forward(x, &self.norm.weight, &self.norm.bias, CROSS_EPSILON)?;
        let q = linear::forward(&normed, &self.queries, Fused::default())?;
        let (seen, _) = attention::forward(&heads(q, head_dim)?, keys, values, Mask::default())?;
        let seen = seen.reshape(x.shape())?;
        Ok(linear::forward(&seen, &self.out, Fused { scale: self.scale.as_ref(), residual: Some(x), ..Default::default() })?)
    }
}

/// Keys and values `[B, S, heads, head_dim]` of what the rows of a block attend to.
pub(crate) type Source = [Tensor; 2];

/// `[B, T, heads, head_dim]` of `[B, T, width]`.
fn heads(x: Tensor, head_dim: usize) -> Result<Tensor> {
    let (batch, tokens, width) = (x.shape()[0], x.shape()[1], x.shape().last_dim());
    Ok(x.reshape([batch, tokens, width / head_dim, head_dim])?)
}

/// A block with its tensors.
pub(crate) struct ReadyBlock {
    pub layer: Block,
    rope: Arc<Rope>,
    norms: [ReadyNorm; 2],
    project: Arc<Matrix>,
    out: Arc<Matrix>,
    widen: Arc<Matrix>,
    narrow: Arc<Matrix>,
    scales: Option<[Tensor; 2]>,
    cross: Option<Cross>,
}

impl ReadyBlock {
    pub fn new(layer: &Block, device: &Device, from: &mut Reader) -> Result<ReadyBlock> {
        let name = |part: &str| format!("{}.{part}", layer.name);
        let mut matrix = |part: &str| from.matrix(&name(part)).map(Arc::new);
        let (project, out) = (matrix("self_attn.in_proj_weight")?, matrix("self_attn.out_proj.weight")?);
        let [widen, narrow] = layer.feed_forward.names();
        let (widen, narrow) = (matrix(widen)?, matrix(narrow)?);
        let mut norm = |part| ReadyNorm::new(layer.norm, &name(part), from);
        let norms = [norm("norm1")?, norm("norm2")?];
        let scales = match layer.scaled {
            true => Some([from.parameter(&name("layer_scale_1.scale"))?, from.parameter(&name("layer_scale_2.scale"))?]),
            false => None,
        };
        let rope = match layer.rotary {
            Some(rotary) => rotary.rope(device, layer.head_dim)?,
            // Nothing is turned by no angle.
            None => Rope::with_frequencies(device, &vec![0.0; layer.head_dim / 2], Style::Interleaved)?,
        };
        let cross = layer.crossed.then(|| Cross::new(layer, from)).transpose()?;
        Ok(ReadyBlock { rope: Arc::new(rope), norms, project, out, widen, narrow, scales, cross, layer: layer.clone() })
    }

    /// Of the matrices that a step reads.
    pub fn bytes(&self) -> usize {
        let cross = self.cross.iter().flat_map(|cross| [&cross.queries, &cross.out]);
        let own = [&self.project, &self.out, &self.widen, &self.narrow].map(Arc::as_ref);
        own.into_iter().chain(cross).map(Matrix::bytes).sum()
    }

    /// Of `source [B, S, width]`, where there is cross attention.
    pub fn source(&self, source: &Tensor) -> Result<Option<Source>> {
        let Some(cross) = &self.cross else { return Ok(None) };
        let of = |matrix| heads(linear::forward(source, matrix, Fused::default())?, self.layer.head_dim);
        Ok(Some([of(&cross.keys)?, of(&cross.values)?]))
    }

    /// For a launch of a whole depth transformer, or why it is none that such a launch computes.
    pub fn in_one_launch(&self) -> std::result::Result<depth::Block, &'static str> {
        let Block { window, feed_forward, .. } = &self.layer;
        let [Some(before), Some(between)] = [0, 1].map(|i: usize| self.norms[i].rms()) else { return Err("norms that centre") };
        match (window, feed_forward, &self.scales) {
            (None, FeedForward::SiluGate, None) => {}
            (Some(_), ..) => return Err("a window"),
            (_, FeedForward::Gelu, _) => return Err("layers without a gate"),
            (_, FeedForward::Gate(_), _) => return Err("gates other than SiLU"),
            (.., Some(_)) => return Err("scaled layers"),
        }
        if self.cross.is_some() {
            return Err("cross attention");
        }
        let [project, out, widen, narrow] = [&self.project, &self.out, &self.widen, &self.narrow].map(Arc::clone);
        Ok(depth::Block { norms: [before, between], project, out, widen, narrow })
    }

    /// What turns its heads, where positions are told apart.
    pub fn turns(&self) -> Option<Arc<Rope>> {
        self.layer.rotary.map(|_| Arc::clone(&self.rope))
    }

    /// The next rows `x [B, T, width]` of the streams at `positions`, which the caller advances after all blocks.
    pub fn run(&self, x: &Tensor, cache: &mut KvCache, positions: &Positions, mask: Option<&Tensor>) -> Result<Tensor> {
        self.run_beside(x, None, cache, positions, mask)
    }

    /// As [`run`](Self::run), beside what the rows attend to, where there is cross attention.
    pub fn run_beside(
        &self,
        x: &Tensor,
        source: Option<&Source>,
        cache: &mut KvCache,
        positions: &Positions,
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        let _span = span::layer(&self.layer.name);
        let mut x = self.attend(x, cache, positions, mask, &mut |_, _| Ok(()))?;
        if let (Some(cross), Some(source)) = (&self.cross, source) {
            x = cross.run(&x, source, self.layer.head_dim)?;
        }
        self.feed_forward(&x, &mut |_, _| Ok(()))
    }

    /// As [`run`](Self::run) without cross attention, and `observe` sees what each of the matrices is multiplied with.
    pub fn observed(
        &self,
        x: &Tensor,
        cache: &mut KvCache,
        positions: &Positions,
        mask: Option<&Tensor>,
        mut observe: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let _span = span::layer(&self.layer.name);
        let x = self.attend(x, cache, positions, mask, &mut observe)?;
        self.feed_forward(&x, &mut observe)
    }

    fn scale(&self, i: usize) -> Option<&Tensor> {
        self.scales.as_ref().map(|scales| &scales[i])
    }

    fn attend(
        &self,
        x: &Tensor,
        cache: &mut KvCache,
        positions: &Positions,
        mask: Option<&Tensor>,
        observe: &mut impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let layer = &self.layer;
        let normed = self.norms[0].run(x, layer.epsilon)?;
        observe(0, &normed)?;
        let qkv = linear::forward(&normed, &self.project, Fused::default())?;
        let q = rope::append(&qkv, &self.rope, cache, positions, mask)?;
        let seen = attention::step(&q, cache, positions, layer.window, mask)?;
        observe(1, &seen)?;
        Ok(linear::forward(&seen, &self.out, Fused { scale: self.scale(0), residual: Some(x), ..Default::default() })?)
    }

    fn feed_forward(&self, x: &Tensor, observe: &mut impl FnMut(usize, &Tensor) -> Result<()>) -> Result<Tensor> {
        let layer = &self.layer;
        let normed = self.norms[1].run(x, layer.epsilon)?;
        observe(2, &normed)?;
        let widen = |activation| linear::forward(&normed, &self.widen, Fused { activation, ..Default::default() });
        let wide = match layer.feed_forward {
            FeedForward::Gelu => widen(Activation::Gelu)?,
            FeedForward::SiluGate => widen(Activation::SiluGate)?,
            FeedForward::Gate(kind) => activation::gate(kind, &widen(Activation::None)?)?,
        };
        observe(3, &wide)?;
        Ok(linear::forward(&wide, &self.narrow, Fused { scale: self.scale(1), residual: Some(x), ..Default::default() })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_write_a_scaling_are_one() {
        let published = Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192.0 };
        let by_transformers = Llama3 { low: 0.125, high: 0.5, original: 1024.0, ..published };
        for frequency in rope::frequencies(64, 500_000.0) {
            assert!((published.frequency(frequency) / by_transformers.frequency(frequency) - 1.0).abs() < 1e-12);
        }
        assert_eq!([1.0, 1e-6].map(|f| published.frequency(f) / f), [1.0, 1.0 / 32.0]);
        // 2.5 turns are half-way.
        let half = 2.5 * std::f64::consts::TAU / 8192.0;
        assert!((published.frequency(half) / half - 33.0 / 64.0).abs() < 1e-12);
    }
}
