//! Residual vector quantisation over the two kinds of codebooks.

use std::ops::Range;

use swara_kernels::ops::embedding::{self, NONE, Tables};
use swara_kernels::ops::rvq_search::{Codebooks, Metric};
use swara_kernels::ops::{conv_transpose1d, conv1d, elementwise, rvq_search};
use swara_kernels::{DType, Tensor, span};

use super::model::{Layout, TensorSpec};
use super::{Config, QuantizerKind};
use crate::weights::{Weights, find};
use crate::{Error, Result};

mod beam;
mod left;

/// Epsilon of Mimi's rule `embedding = embedding_sum / max(usage, epsilon)`.
pub const USAGE_EPSILON: f64 = 1e-5;

/// Epsilon of EnCodec's rule, see [`smoothed`].
pub const LAPLACE_EPSILON: f64 = 1e-5;

/// What EnCodec divides sums by: usage, Laplace-smoothed, `(usage + e) / (total + K e) total`.
pub fn smoothed(usage: &[f64]) -> Vec<f64> {
    let total: f64 = usage.iter().sum();
    let factor = total / (total + usage.len() as f64 * LAPLACE_EPSILON);
    usage.iter().map(|u| (u + LAPLACE_EPSILON) * factor).collect()
}

/// Tensors of the quantiser, in published names and layouts. Codebooks of an `ema` quantiser are state, not parameters: they
/// stand in [`codebook_tensors`].
pub fn parameter_tensors(config: &Config, folded: bool) -> Vec<TensorSpec> {
    let (latent, dim) = (config.latent, config.codebook_dim);
    match config.quantizer {
        QuantizerKind::Ema => vec![
            TensorSpec::new("quantizer.input_proj.weight".into(), Layout::Conv, [dim, latent, 1]),
            TensorSpec::new("quantizer.output_proj.weight".into(), Layout::Conv, [latent, dim, 1]),
        ],
        QuantizerKind::Factorised => factorised_tensors(latent, dim, &config.codebook_sizes, folded),
    }
}

/// Tensors of a factorised quantiser with codebooks of such `sizes`.
pub fn factorised_tensors(latent: usize, dim: usize, sizes: &[usize], folded: bool) -> Vec<TensorSpec> {
    let stage = |(k, &size): (usize, &usize)| {
        let stage = format!("quantizer.quantizers.{k}");
        let mut specs = Vec::new();
        for (name, rows, columns) in [("in_proj", dim, latent), ("out_proj", latent, dim)] {
            if folded {
                specs.push(TensorSpec::new(format!("{stage}.{name}.weight"), Layout::Conv, [rows, columns, 1]));
            } else {
                specs.push(TensorSpec::new(format!("{stage}.{name}.weight_g"), Layout::Gain, [rows, 1, 1]));
                specs.push(TensorSpec::new(format!("{stage}.{name}.weight_v"), Layout::Conv, [rows, columns, 1]));
            }
            specs.push(TensorSpec::new(format!("{stage}.{name}.bias"), Layout::Plain, [rows]));
        }
        specs.push(TensorSpec::new(format!("{stage}.codebook.weight"), Layout::Plain, [size, dim]));
        specs
    };
    sizes.iter().enumerate().flat_map(stage).collect()
}

/// The two halves of a split quantiser (Mimi).
pub const SPLIT: [&str; 2] = ["quantizer.rvq_first", "quantizer.rvq_rest"];

/// Projections around the codebooks of each half of a split quantiser.
pub fn split_tensors(latent: usize, dim: usize) -> impl Iterator<Item = TensorSpec> {
    SPLIT.into_iter().flat_map(move |half| {
        let projection = |name: &str, shape| TensorSpec::new(format!("{half}.{name}.weight"), Layout::Conv, shape);
        [projection("input_proj", [dim, latent, 1]), projection("output_proj", [latent, dim, 1])]
    })
}

/// Usage and sum of the codebook called `name`.
pub fn average_tensors(name: &str, [size, dim]: [usize; 2]) -> [TensorSpec; 2] {
    [
        TensorSpec::new(format!("{name}.cluster_usage"), Layout::Plain, [size]),
        TensorSpec::new(format!("{name}.embedding_sum"), Layout::Plain, [size, dim]),
    ]
}

/// Moving averages of an `ema` quantiser's stages: usage and sum of each.
pub fn codebook_tensors(config: &Config) -> Vec<TensorSpec> {
    let stage = |(k, &size): (usize, &usize)| average_tensors(&format!("quantizer.layers.{k}.codebook"), [size, config.codebook_dim]);
    match config.quantizer {
        QuantizerKind::Ema => config.codebook_sizes.iter().enumerate().flat_map(stage).collect(),
        QuantizerKind::Factorised => Vec::new(),
    }
}

/// A quantiser ready for inference, in f32 whatever the rest of the model is in.
pub enum Quantizer {
    Ema(Box<Rvq>),
    /// The first codebooks by themselves, the others on what the whole latent is too (Mimi).
    Split {
        semantic: Box<Rvq>,
        acoustic: Box<Rvq>,
    },
    Factorised {
        stages: Vec<Stage>,
    },
    /// Factorised stages of several rates (SNAC).
    Levels(Vec<Level>),
    /// Residual stages in the space of the latents (EnCodec).
    Plain(Box<Codebooks>),
}

/// Residual stages in a space of their own.
pub struct Rvq {
    /// `[1, latent, dim]`.
    input: conv1d::Weight,
    /// `[1, dim, latent]`.
    output: conv1d::Weight,
    /// `[K, dim]` each.
    codebooks: Codebooks,
}

impl Rvq {
    /// Of the tensors `{name}.input_proj.weight` and `{name}.output_proj.weight`.
    pub fn new(weights: &Weights, name: &str, codebooks: Vec<Tensor>) -> Result<Rvq> {
        let find = |part: &str| -> Result<conv1d::Weight> {
            let weight = elementwise::convert(find(weights, &format!("{name}.{part}.weight"))?, DType::F32)?;
            Ok(conv1d::Weight::new(&weight, &conv1d::Geometry::default())?)
        };
        let codebooks = Codebooks::new(&codebooks.iter().collect::<Vec<_>>())?;
        Ok(Rvq { input: find("input_proj")?, output: find("output_proj")?, codebooks })
    }

    fn stages(&self) -> usize {
        self.codebooks.sizes().len()
    }

    /// Fills some columns of codes i32 `[B * T, stages]` from `z [B, T, latent]`.
    fn encode(&self, z: &Tensor, codes: &mut Tensor, columns: Range<usize>) -> Result<()> {
        self.codebooks.search(&self.latents(z)?, codes, columns)?;
        Ok(())
    }

    /// Rows of `z [B, T, latent]` in the space of the codewords.
    fn latents(&self, z: &Tensor) -> Result<Tensor> {
        let x = project(z, &self.input, None)?;
        let shape = [z.shape().rows(), x.shape().last_dim()];
        Ok(x.reshape(shape)?)
    }

    fn decode(&self, codes: &Tensor, columns: Range<usize>) -> Result<Tensor> {
        project(&self.codebooks.decode_present(codes, columns)?, &self.output, None)
    }

    fn bytes(&self, codebooks: usize) -> usize {
        self.codebooks.bytes(codebooks) + self.input.bytes() + self.output.bytes()
    }
}

/// One stage of a factorised quantiser.
pub struct Stage {
    input: Projection,
    output: Projection,
    codebook: Tensor,
    /// The same, for decoding.
    codewords: Codebooks,
}

impl Stage {
    /// The tensors of stage `k`.
    fn new(weights: &Weights, k: usize) -> Result<Stage> {
        let name = format!("quantizer.quantizers.{k}");
        let codebook = elementwise::convert(find(weights, &format!("{name}.codebook.weight"))?, DType::F32)?;
        Ok(Stage {
            input: Projection::new(weights, &format!("{name}.in_proj"))?,
            output: Projection::new(weights, &format!("{name}.out_proj"))?,
            codewords: Codebooks::new(&[&codebook])?,
            codebook,
        })
    }

    /// Of column `k` of `codes`.
    fn decode(&self, codes: &Tensor, k: usize) -> Result<Tensor> {
        self.output.apply(&self.codewords.decode(codes, k..k + 1)?)
    }

    /// To which a code of -1 adds nothing, its bias neither. The host sees which there are.
    fn decode_present(&self, codes: &Tensor, k: usize) -> Result<Tensor> {
        let device = codes.device();
        let own: Vec<i32> = codes.to_vec::<i32>()?.into_iter().skip(k).step_by(codes.shape().last_dim().max(1)).collect();
        let there: Vec<i32> = own.iter().copied().filter(|&code| code != NONE).collect();
        if there.len() == own.len() {
            return self.decode(codes, k);
        }
        if there.is_empty() {
            return Ok(Tensor::zeros(&device, DType::F32, [own.len(), self.output.weight.shape().last_dim()])?);
        }
        // Rows of those that are there, and for every frame its own or none.
        let rows = self.decode(&Tensor::from_slice(&device, &there, [there.len(), 1])?, 0)?;
        let mut next = 0..;
        let ids: Vec<i32> = own.iter().map(|&code| if code == NONE { NONE } else { next.next().unwrap_or(NONE) }).collect();
        let ids = Tensor::from_slice(&device, &ids, [ids.len(), 1])?;
        Ok(embedding::forward(&rows, &Tables::new(&device, &[there.len()])?, (&ids, 0), None)?)
    }

    fn bytes(&self) -> usize {
        let projections = [&self.input, &self.output].map(|p| p.weight.bytes() + p.bias.bytes());
        projections.iter().sum::<usize>() + self.codebook.bytes()
    }
}

/// A stage whose codes stand for `stride` latents each: their mean is searched, and the codeword repeated.
pub struct Level {
    stage: Stage,
    stride: usize,
    /// `[stride, 1, latent]` and `[stride, latent, 1]`: what takes a mean, and what repeats, as convolutions.
    mean: Tensor,
    repeat: Tensor,
}

impl Level {
    fn new(weights: &Weights, k: usize, stride: usize) -> Result<Level> {
        let stage = Stage::new(weights, k)?;
        let (latent, device) = (stage.output.weight.shape().last_dim(), stage.output.weight.device());
        let filled = |value: f64, shape: [usize; 3]| Tensor::from_f64(&device, DType::F32, &vec![value; stride * latent], shape);
        let (mean, repeat) = (filled(1.0 / stride as f64, [stride, 1, latent])?, filled(1.0, [stride, latent, 1])?);
        Ok(Level { stage, stride, mean, repeat })
    }

    /// Codes i32 `[N / stride, 1]` of latents `[N, latent]`.
    fn search(&self, z: &Tensor) -> Result<Tensor> {
        let (rows, latent) = (z.shape()[0], z.shape()[1]);
        let geometry = conv1d::Geometry { stride: self.stride, groups: latent, ..Default::default() };
        let means = conv1d::forward(&z.copy()?.reshape([1, rows, latent])?, &self.mean, &geometry, conv1d::Fused::default())?;
        let x = self.stage.input.apply(&means.reshape([rows / self.stride, latent])?)?;
        let mut codes = Tensor::empty(&z.device(), DType::I32, [rows / self.stride, 1])?;
        rvq_search::nearest_column(&x, &self.stage.codebook, Metric::Cosine, &mut codes, 0)?;
        Ok(codes)
    }

    /// Latents `[N * stride, latent]` of codes i32 `[N, 1]`.
    fn decode(&self, codes: &Tensor) -> Result<Tensor> {
        let z = self.stage.decode(codes, 0)?;
        let (rows, latent) = (z.shape()[0], z.shape()[1]);
        let geometry = conv_transpose1d::Geometry { groups: latent, ..conv_transpose1d::Geometry::padded(self.stride, 0, 0) };
        let fused = conv_transpose1d::Fused::default();
        let y = conv_transpose1d::forward(&z.reshape([1, rows, latent])?, &self.repeat, &geometry, fused)?;
        Ok(y.reshape([rows * self.stride, latent])?)
    }
}

struct Projection {
    weight: Tensor,
    bias: Tensor,
}

impl Projection {
    fn new(weights: &Weights, name: &str) -> Result<Projection> {
        Ok(Projection {
            weight: elementwise::convert(find(weights, &format!("{name}.weight"))?, DType::F32)?,
            bias: elementwise::convert(find(weights, &format!("{name}.bias"))?, DType::F32)?,
        })
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        project(x, &self.weight, Some(&self.bias))
    }
}

/// A convolution with one tap over rows `[N, Cin]` (or `[B, T, Cin]`, kept so).
fn project<'w>(x: &Tensor, weight: impl Into<conv1d::AnyWeight<'w>>, bias: Option<&Tensor>) -> Result<Tensor> {
    let shape = x.shape();
    let fused = conv1d::Fused { bias, ..Default::default() };
    if shape.len() == 3 {
        return Ok(conv1d::forward(x, weight, &conv1d::Geometry::default(), fused)?);
    }
    let x = x.copy()?.reshape([1, shape.rows(), shape.last_dim()])?;
    let y = conv1d::forward(&x, weight, &conv1d::Geometry::default(), fused)?;
    let width = y.shape().last_dim();
    Ok(y.reshape([shape.rows(), width])?)
}

impl Quantizer {
    /// Size of the first `codebooks` codebooks and of their projections.
    pub fn bytes(&self, codebooks: usize) -> usize {
        match self {
            Quantizer::Ema(rvq) => rvq.bytes(codebooks),
            Quantizer::Split { semantic, acoustic } => {
                semantic.bytes(codebooks) + acoustic.bytes(codebooks.saturating_sub(semantic.stages()))
            }
            Quantizer::Factorised { stages } => stages.iter().take(codebooks).map(Stage::bytes).sum(),
            Quantizer::Levels(levels) => levels.iter().take(codebooks).map(|level| level.stage.bytes()).sum(),
            Quantizer::Plain(books) => books.bytes(codebooks),
        }
    }

    /// `weights` holds the tensors of [`parameter_tensors`] (folded) and, for `ema`, `codebooks` the embeddings.
    pub fn new(config: &Config, weights: &Weights, codebooks: Vec<Tensor>) -> Result<Quantizer> {
        match config.quantizer {
            QuantizerKind::Ema => Ok(Quantizer::Ema(Box::new(Rvq::new(weights, "quantizer", codebooks)?))),
            QuantizerKind::Factorised => {
                let stage = |k: usize| Stage::new(weights, k);
                Ok(Quantizer::Factorised { stages: (0..config.codebook_sizes.len()).map(stage).collect::<Result<_>>()? })
            }
        }
    }

    /// Of codebooks `[K, latent]`.
    pub fn plain(codebooks: &[Tensor]) -> Result<Quantizer> {
        Ok(Quantizer::Plain(Box::new(Codebooks::new(&codebooks.iter().collect::<Vec<_>>())?)))
    }

    /// With stages a code of which stands for so many latents; `weights` holds the tensors of [`factorised_tensors`].
    pub fn levels(weights: &Weights, strides: &[usize]) -> Result<Quantizer> {
        let level = |(k, &stride): (usize, &usize)| Level::new(weights, k, stride);
        Ok(Quantizer::Levels(strides.iter().enumerate().map(level).collect::<Result<_>>()?))
    }

    /// Codes i32 `[B * T, stages]` of latents f32 `[B, T, latent]`, of the best of `beam` paths (see [`Quantizer::check_beam`]). Of
    /// stages of several rates `[B * T / stride, columns]`: for the latents of one code of the first stage all of theirs, one stage after
    /// the other.
    pub fn encode(&self, z: &Tensor, stages: usize, beam: usize) -> Result<Tensor> {
        let _span = span::layer("quantizer");
        if beam > 1 {
            return self.encode_beam(z, stages, beam);
        }
        let rows = z.shape().rows();
        let mut codes = Tensor::empty(&z.device(), DType::I32, [rows, stages])?;
        match self {
            Quantizer::Levels(levels) => return encode_levels(&levels[..stages], z.copy()?.reshape([rows, z.shape().last_dim()])?),
            Quantizer::Plain(books) => {
                books.search(&z.copy()?.reshape([rows, z.shape().last_dim()])?, &mut codes, 0..stages)?;
            }
            Quantizer::Ema(rvq) => rvq.encode(z, &mut codes, 0..stages)?,
            Quantizer::Split { semantic, acoustic } => {
                let first = semantic.stages().min(stages);
                semantic.encode(z, &mut codes, 0..first)?;
                if stages > first {
                    acoustic.encode(z, &mut codes, first..stages)?;
                }
            }
            Quantizer::Factorised { stages: all } => {
                let mut residual = z.copy()?.reshape([rows, z.shape().last_dim()])?;
                for (k, stage) in all[..stages].iter().enumerate() {
                    let x = stage.input.apply(&residual)?;
                    rvq_search::nearest_column(&x, &stage.codebook, Metric::Cosine, &mut codes, k)?;
                    if k + 1 < stages {
                        residual = elementwise::sub(&residual, &stage.decode(&codes, k)?)?;
                    }
                }
            }
        }
        Ok(codes)
    }

    /// Latents f32 `[B * T, latent]` of codes as [`Quantizer::encode`] gives them. Where all stages are of one rate, a code of -1 adds
    /// nothing. A code outside its codebook is an error on the CPU and NaN on CUDA.
    pub fn decode(&self, codes: &Tensor) -> Result<Tensor> {
        let _span = span::layer("quantizer");
        let stages = codes.shape().last_dim();
        match self {
            Quantizer::Ema(rvq) => rvq.decode(codes, 0..stages),
            Quantizer::Levels(levels) => decode_levels(levels, codes),
            Quantizer::Plain(books) => Ok(books.decode_present(codes, 0..stages)?),
            Quantizer::Split { semantic, acoustic } => {
                let first = semantic.stages().min(stages);
                let mut sum = semantic.decode(codes, 0..first)?;
                if stages > first {
                    elementwise::add_assign(&mut sum, &acoustic.decode(codes, first..stages)?)?;
                }
                Ok(sum)
            }
            Quantizer::Factorised { stages: all } => {
                let mut sum: Option<Tensor> = None;
                for (k, stage) in all.iter().enumerate().take(stages) {
                    let decoded = stage.decode_present(codes, k)?;
                    match &mut sum {
                        Some(sum) => elementwise::add_assign(sum, &decoded)?,
                        None => sum = Some(decoded),
                    }
                }
                sum.ok_or_else(|| Error::Argument("no codebooks to decode".into()))
            }
        }
    }
}

/// Of codes `[N, S]`.
fn column(codes: &Tensor, k: usize) -> Result<impl Iterator<Item = i32>> {
    Ok(codes.as_slice::<i32>()?.iter().skip(k).step_by(codes.shape().last_dim()).copied())
}

/// Codes `[frames, columns]` of latents `[N, latent]`. Rates differ, so the host puts the codes of a frame together.
fn encode_levels(levels: &[Level], mut residual: Tensor) -> Result<Tensor> {
    let (rows, slowest) = (residual.shape()[0], levels.first().map_or(1, |level| level.stride));
    let mut codes = Vec::with_capacity(levels.len());
    for (k, level) in levels.iter().enumerate() {
        let found = level.search(&residual)?;
        if k + 1 < levels.len() {
            residual = elementwise::sub(&residual, &level.decode(&found)?)?;
        }
        codes.push((slowest / level.stride, found.to_vec::<i32>()?));
    }
    let frames = rows / slowest;
    let row = |n: usize| codes.iter().flat_map(move |(each, codes)| &codes[n * each..][..*each]).copied();
    let columns = codes.iter().map(|(each, _)| each).sum::<usize>();
    Ok(Tensor::from_slice(&residual.device(), &(0..frames).flat_map(row).collect::<Vec<i32>>(), [frames, columns])?)
}

/// The reverse of [`encode_levels`]; levels that are not there add nothing.
fn decode_levels(levels: &[Level], codes: &Tensor) -> Result<Tensor> {
    let (rows, columns) = (codes.shape()[0], codes.shape()[1]);
    let (all, slowest) = (codes.to_vec::<i32>()?, levels.first().map_or(1, |level| level.stride));
    let (mut sum, mut start): (Option<Tensor>, usize) = (None, 0);
    for level in levels.iter().take_while(|_| columns > 0) {
        let each = slowest / level.stride;
        if start == columns {
            break;
        }
        if start + each > columns {
            return Err(Error::Argument(format!("{columns} codes a frame end within a level")));
        }
        let own: Vec<i32> = all.chunks_exact(columns).flat_map(|row| &row[start..start + each]).copied().collect();
        let decoded = level.decode(&Tensor::from_slice(&codes.device(), &own, [rows * each, 1])?)?;
        match &mut sum {
            Some(sum) => elementwise::add_assign(sum, &decoded)?,
            None => sum = Some(decoded),
        }
        start += each;
    }
    sum.ok_or_else(|| Error::Argument("no codebooks to decode".into()))
}
