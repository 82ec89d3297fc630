//! Residual vector quantisation over the two kinds of codebooks.

use swara_kernels::ops::rvq_search::Metric;
use swara_kernels::ops::{conv1d, elementwise, rvq_search};
use swara_kernels::{DType, Tensor, span};

use super::execute::{Weights, find};
use super::model::{Layout, TensorSpec};
use super::{Config, QuantizerKind};
use crate::Result;

/// Epsilon of Mimi's rule `embedding = embedding_sum / max(usage, epsilon)`.
pub const USAGE_EPSILON: f64 = 1e-5;

/// Tensors of the quantiser, in published names and layouts. Codebooks of an `ema` quantiser are state, not parameters: they
/// stand in [`codebook_tensors`].
pub fn parameter_tensors(config: &Config, folded: bool) -> Vec<TensorSpec> {
    let (latent, dim) = (config.latent, config.codebook_dim);
    match config.quantizer {
        QuantizerKind::Ema => vec![
            TensorSpec::new("quantizer.input_proj.weight".into(), Layout::Conv, [dim, latent, 1]),
            TensorSpec::new("quantizer.output_proj.weight".into(), Layout::Conv, [latent, dim, 1]),
        ],
        QuantizerKind::Factorised => {
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
            config.codebook_sizes.iter().enumerate().flat_map(stage).collect()
        }
    }
}

/// Moving averages of an `ema` quantiser's stage `k`: usage and sum.
pub fn codebook_tensors(config: &Config) -> Vec<TensorSpec> {
    let stage = |(k, &size): (usize, &usize)| {
        let stage = format!("quantizer.layers.{k}.codebook");
        [
            TensorSpec::new(format!("{stage}.cluster_usage"), Layout::Plain, [size]),
            TensorSpec::new(format!("{stage}.embedding_sum"), Layout::Plain, [size, config.codebook_dim]),
        ]
    };
    match config.quantizer {
        QuantizerKind::Ema => config.codebook_sizes.iter().enumerate().flat_map(stage).collect(),
        QuantizerKind::Factorised => Vec::new(),
    }
}

/// A quantiser ready for inference, in f32 whatever the rest of the model is in.
pub enum Quantizer {
    Ema { input: Tensor, output: Tensor, codebooks: Vec<Tensor> },
    Factorised { stages: Vec<Stage> },
}

/// One stage of a factorised quantiser.
pub struct Stage {
    input: Projection,
    output: Projection,
    codebook: Tensor,
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

/// References to all of `tensors`, without an allocation per frame.
fn with_references<R>(tensors: &[Tensor], f: impl FnOnce(&[&Tensor]) -> Result<R>) -> Result<R> {
    let Some(first) = tensors.first() else { return f(&[]) };
    let mut references = [first; Config::MAX_CODEBOOKS];
    let used = references.get_mut(..tensors.len()).ok_or_else(|| crate::Error::Argument(format!("{} codebooks", tensors.len())))?;
    used.iter_mut().zip(tensors).for_each(|(reference, tensor)| *reference = tensor);
    f(used)
}

/// A convolution with one tap over rows `[N, Cin]` (or `[B, T, Cin]`, kept so).
fn project(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let shape = x.shape();
    let fused = conv1d::Fused { bias, ..Default::default() };
    if shape.len() == 3 {
        return Ok(conv1d::forward(x, weight, &conv1d::Geometry::default(), fused)?);
    }
    let x = x.copy()?.reshape([1, shape.rows(), shape.last_dim()])?;
    let y = conv1d::forward(&x, weight, &conv1d::Geometry::default(), fused)?;
    Ok(y.reshape([shape.rows(), weight.shape().last_dim()])?)
}

impl Quantizer {
    /// `weights` holds the tensors of [`parameter_tensors`] (folded) and, for `ema`, `codebooks` the embeddings.
    pub fn new(config: &Config, weights: &Weights, codebooks: Vec<Tensor>) -> Result<Quantizer> {
        match config.quantizer {
            QuantizerKind::Ema => Ok(Quantizer::Ema {
                input: elementwise::convert(find(weights, "quantizer.input_proj.weight")?, DType::F32)?,
                output: elementwise::convert(find(weights, "quantizer.output_proj.weight")?, DType::F32)?,
                codebooks,
            }),
            QuantizerKind::Factorised => {
                let stage = |k: usize| -> Result<Stage> {
                    let name = format!("quantizer.quantizers.{k}");
                    Ok(Stage {
                        input: Projection::new(weights, &format!("{name}.in_proj"))?,
                        output: Projection::new(weights, &format!("{name}.out_proj"))?,
                        codebook: elementwise::convert(find(weights, &format!("{name}.codebook.weight"))?, DType::F32)?,
                    })
                };
                Ok(Quantizer::Factorised { stages: (0..config.codebook_sizes.len()).map(stage).collect::<Result<_>>()? })
            }
        }
    }

    /// Codes i32 `[B * T, stages]` of latents f32 `[B, T, latent]`.
    pub fn encode(&self, z: &Tensor, stages: usize) -> Result<Tensor> {
        let _span = span::layer("quantizer");
        let rows = z.shape().rows();
        match self {
            Quantizer::Ema { input, codebooks, .. } => {
                let x = project(z, input, None)?;
                let dim = x.shape().last_dim();
                let x = x.reshape([rows, dim])?;
                with_references(&codebooks[..stages], |books| Ok(rvq_search::search(&x, books)?.0))
            }
            Quantizer::Factorised { stages: all } => {
                let mut residual = z.copy()?.reshape([rows, z.shape().last_dim()])?;
                let mut columns = Vec::with_capacity(stages);
                for (k, stage) in all[..stages].iter().enumerate() {
                    let codes = rvq_search::nearest(&stage.input.apply(&residual)?, &stage.codebook, Metric::Cosine)?;
                    if k + 1 < stages {
                        let decoded = stage.output.apply(&rvq_search::gather(&stage.codebook, &codes)?)?;
                        residual = elementwise::sub(&residual, &decoded)?;
                    }
                    columns.push(codes.to_vec::<i32>()?);
                }
                let codes: Vec<i32> = (0..rows).flat_map(|n| columns.iter().map(move |c| c[n])).collect();
                Ok(Tensor::from_slice(&z.device(), &codes, [rows, stages])?)
            }
        }
    }

    /// Latents f32 `[B * T, latent]` of codes i32 `[B * T, stages]`; a code outside its codebook is an error.
    pub fn decode(&self, codes: &Tensor) -> Result<Tensor> {
        let _span = span::layer("quantizer");
        match self {
            Quantizer::Ema { output, codebooks, .. } => {
                project(&with_references(codebooks, |books| Ok(rvq_search::decode(codes, books)?))?, output, None)
            }
            Quantizer::Factorised { stages } => {
                let sizes: Vec<usize> = stages.iter().map(|s| s.codebook.shape()[0]).collect();
                rvq_search::check_codes(codes, &sizes)?;
                let (rows, used) = (codes.shape()[0], codes.shape()[1]);
                let all = codes.to_vec::<i32>()?;
                let mut sum: Option<Tensor> = None;
                for (k, stage) in stages[..used].iter().enumerate() {
                    let column: Vec<i32> = all.iter().skip(k).step_by(used).copied().collect();
                    let column = Tensor::from_slice(&codes.device(), &column, [rows])?;
                    let decoded = stage.output.apply(&rvq_search::gather(&stage.codebook, &column)?)?;
                    match &mut sum {
                        Some(sum) => elementwise::add_assign(sum, &decoded)?,
                        None => sum = Some(decoded),
                    }
                }
                sum.ok_or_else(|| crate::Error::Argument("no codebooks to decode".into()))
            }
        }
    }
}
