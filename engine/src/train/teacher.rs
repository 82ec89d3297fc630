//! Semantic distillation: the first stage learns to say what a teacher of speech says of the same times.
//!
//! ```text
//! p = W q + b                    q [B, T, C]: what the first stage (of a split quantiser: its first branch) makes of the latents,
//!                                straight-through, in the space of its codewords; frames faster than the teacher's are averaged
//! cosine                         mean over frames of 1 - cos(p, g)                                   Mimi
//! mse                            mean (p - g)^2
//! speechtokenizer-d              -mean over numbers d and items of log sigmoid cos(p[:, d], g[:, d])  over time
//! speechtokenizer-t              mean |p - g| - cosine_weight * mean over frames of log sigmoid cos(p, g)
//! clusters                       cross-entropy of p with the labels; frames without one do not count
//! ```
//! `W` and `b` are trained and checkpointed, and no part of what is released. Before there are codebooks, `q` is what they will quantise.
//! The loss passes the balancer by, as the commitment does. Sources: Mimi (arXiv 2410.00037), SpeechTokenizer (arXiv 2308.16692).

use std::rc::Rc;

use serde::{Deserialize, Serialize};
use swara_kernels::ops::conv1d::Geometry;
use swara_kernels::ops::weight_norm::Axis;
use swara_kernels::ops::{elementwise, rvq_search};
use swara_kernels::{DType, Device, Tensor};
use swara_loader::dataset::{TeacherDescription, TeacherOutput, TeacherRows};

use super::parameters::Parameter;
use super::recording::Recording;
use crate::codec::model::{Layout, TensorSpec};
use crate::tape::{Tape, Var};
use crate::{Error, Result};

/// What the prediction is compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distillation {
    Cosine,
    Mse,
    SpeechtokenizerD,
    SpeechtokenizerT,
    Clusters,
}

/// Distillation from what is cached beside the dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Teacher {
    pub loss: Distillation,
    #[serde(default = "one")]
    pub weight: f64,
    /// Of the cosine beside the distance (`speechtokenizer-t`).
    #[serde(default = "one")]
    pub cosine_weight: f64,
    /// The teacher's frames a second, numbers a frame, and classes: as its cache says, unless they are here. With `clusters` and features,
    /// `classes` are to be found by k-means.
    pub rate: Option<f64>,
    pub dim: Option<usize>,
    pub classes: Option<usize>,
}

fn one() -> f64 {
    1.0
}

/// Prefix of the names of what it learns.
pub const PREFIX: &str = "teacher.";
pub const CENTROIDS: &str = "teacher.centroids";
const WEIGHT: &str = "teacher.weight";
const BIAS: &str = "teacher.bias";
const MOST: usize = 1 << 16;

impl Teacher {
    pub fn new(loss: Distillation) -> Teacher {
        Teacher { loss, weight: 1.0, cosine_weight: 1.0, rate: None, dim: None, classes: None }
    }

    pub fn check(&self) -> Result<()> {
        let fail = |why: &str| Err(Error::Config(format!("teacher: {why}")));
        if ![self.weight, self.cosine_weight].iter().all(|w| w.is_finite() && *w >= 0.0) {
            return fail("weights must be finite and not negative");
        }
        if self.rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
            return fail("rate must be positive");
        }
        if self.dim.iter().chain(&self.classes).any(|n| !(1..=MOST).contains(n)) {
            return fail("dim and classes must lie in 1..=2^16");
        }
        if self.loss != Distillation::Clusters && self.classes.is_some() {
            return fail("classes are of the loss \"clusters\" alone");
        }
        Ok(())
    }

    /// With what a cache says; what is said already must be the same.
    pub fn of(&self, cache: &TeacherDescription) -> Result<Teacher> {
        let (dim, classes) = match cache.output {
            TeacherOutput::Dim(dim) => (Some(dim), None),
            TeacherOutput::Classes(classes) => (None, Some(classes)),
        };
        let fail = |why: String| Err(Error::Config(format!("teacher: {why}")));
        if self.rate.is_some_and(|rate| rate != cache.rate) {
            return fail(format!("rate, the cache is at {}", cache.rate));
        }
        if (dim.is_none() || self.dim.is_some()) && self.dim != dim
            || (classes.is_some() && self.classes.is_some_and(|n| Some(n) != classes))
        {
            return fail(format!("dim or classes, the cache has {:?}", cache.output));
        }
        if self.loss != Distillation::Clusters && classes.is_some() {
            return fail(format!("labels, and the loss is of features: {:?}", self.loss));
        }
        let teacher = Teacher { rate: Some(cache.rate), dim, classes: self.classes.or(classes), ..self.clone() };
        teacher.outputs().map(|_| teacher)
    }

    /// Width of the prediction.
    pub fn outputs(&self) -> Result<usize> {
        let (missing, found) = match self.loss {
            Distillation::Clusters => ("classes", self.classes),
            _ => ("dim", self.dim),
        };
        match (found, self.rate) {
            (Some(found), Some(_)) => Ok(found),
            (None, _) => Err(Error::Config(format!("teacher: {missing}, which a teacher of {:?} does not have by itself", self.loss))),
            (_, None) => Err(Error::Config("teacher: rate, which comes with a cache".into())),
        }
    }

    /// Whether labels are found by k-means on features.
    pub fn clusters(&self) -> Option<[usize; 2]> {
        (self.loss == Distillation::Clusters).then_some([self.classes?, self.dim?])
    }

    /// Frames of the codec that make one prediction: those within a frame of the teacher's. Labels are repeated instead.
    pub fn pool(&self, frame_rate: f64) -> usize {
        match self.loss {
            Distillation::Clusters => 1,
            _ => self.rate.map_or(1, |rate| ((frame_rate / rate + 1e-6) as usize).max(1)),
        }
    }

    /// The projection from `width` channels.
    pub fn parameters(&self, width: usize) -> Result<Vec<TensorSpec>> {
        let outputs = self.outputs()?;
        Ok(vec![TensorSpec::new(WEIGHT.into(), Layout::Plain, [outputs, width]), TensorSpec::new(BIAS.into(), Layout::Plain, [outputs])])
    }

    /// The loss of `q [B, T, C]`, recorded with `share` of its weight, and its unweighted value. `None` where no frame has a label.
    pub fn record(
        &self,
        recording: &Recording,
        q: &Var,
        pool: usize,
        rows: &TeacherRows,
        centroids: Option<&Tensor>,
        share: f64,
    ) -> Result<Option<Var>> {
        let tape = recording.tape;
        let q = tape.mean_pool(q, pool)?;
        let [batch, frames, _] = q.value().shape()[..] else { return Err(Error::Argument(format!("latents of {:?}", q.value()))) };
        let n = batch * frames;
        let p = tape.add_row(&tape.linear(&q, recording.parameter(WEIGHT)?)?, recording.parameter(BIAS)?)?;
        let outputs = p.value().shape().last_dim();
        let p = tape.reshape(&p, [n, outputs])?;
        let weight = self.weight * share;
        let (device, dtype) = (p.value().device(), p.value().dtype());
        let misfit = |found: usize| Error::Argument(format!("{found} of a teacher for {batch} crops of {frames} frames"));
        let features = |values: &[f32], width: usize| -> Result<Tensor> {
            if values.len() != n * width {
                return Err(misfit(values.len()));
            }
            Ok(elementwise::convert(&Tensor::from_slice(&device, values, [n, width])?, dtype)?)
        };
        match (self.loss, rows) {
            (Distillation::Clusters, rows) => {
                let labels = match (rows, centroids) {
                    (TeacherRows::Labels(labels), _) if labels.len() == n => {
                        if labels.iter().all(|&label| label < 0) {
                            return Ok(None);
                        }
                        Tensor::from_slice(&device, labels, [n])?
                    }
                    (TeacherRows::Labels(labels), _) => return Err(misfit(labels.len())),
                    (TeacherRows::Features(values), Some(centroids)) => {
                        rvq_search::stage(&features(values, centroids.shape().last_dim())?, centroids)?.0
                    }
                    (TeacherRows::Features(_), None) => return Err(Error::Argument("a teacher's features before their clusters".into())),
                };
                Ok(Some(tape.cross_entropy(&p, labels, filled(&device, dtype, n, 1.0)?, weight)?))
            }
            (_, TeacherRows::Labels(_)) => Err(Error::Argument(format!("labels for a loss of {:?}", self.loss))),
            (Distillation::Mse, TeacherRows::Features(values)) => {
                Ok(Some(tape.mse_loss(&p, &Var::from(features(values, outputs)?), weight)?))
            }
            (Distillation::Cosine, TeacherRows::Features(values)) => {
                let alike = self.alike(tape, &p, &features(values, outputs)?)?;
                let mean = tape.mean_loss(&alike, -weight)?;
                let one = Tensor::from_f64(&device, dtype, &[1.0], [1])?;
                Ok(Some(elementwise::sub(&one, &elementwise::convert(mean.value(), dtype)?.reshape([1])?)?.into()))
            }
            (Distillation::SpeechtokenizerT, TeacherRows::Features(values)) => {
                let target = features(values, outputs)?;
                let alike = self.alike(tape, &p, &target)?;
                // The mean over a row is its cosine.
                let mean = filled(&device, dtype, outputs, 1.0 / outputs as f64)?.reshape([outputs, 1])?;
                let cosine = logistic(tape, &tape.project(&alike, &Rc::new(mean))?, self.cosine_weight * weight)?;
                let distance = tape.l1_loss(&p, &Var::from(target), weight)?;
                let cosine = elementwise::scale(cosine.value(), self.cosine_weight)?;
                Ok(Some(elementwise::add(distance.value(), &cosine.reshape(distance.value().shape())?)?.into()))
            }
            (Distillation::SpeechtokenizerD, TeacherRows::Features(values)) => {
                let target = features(values, outputs)?;
                let gains = Var::from(filled(&device, dtype, outputs, 1.0)?);
                // Columns of each item, of length 1; one more row keeps silence from having none.
                let silent = Var::from(filled(&device, dtype, outputs, LEAST_NORM)?.reshape([1, 1, outputs])?);
                let mut parts = Vec::with_capacity(batch);
                for item in 0..batch {
                    let rows = tape.reshape(&tape.rows(&p, item * frames, frames)?, [1, frames, outputs])?;
                    let rows = tape.reshape(&tape.concat(&[rows, silent.clone()])?, [frames + 1, 1, outputs])?;
                    let rows = tape.reshape(&tape.weight_norm(&rows, &gains, Axis::Out)?, [1, frames + 1, outputs])?;
                    parts.push(tape.pad(&rows, 0, -1)?);
                }
                let columns = tape.reshape(&tape.concat(&parts)?, [batch, frames, outputs])?;
                let target = Tensor::from_f64(&device, dtype, &unit_columns(&target.to_f64()?, frames, outputs), [batch, frames, outputs])?;
                let alike = tape.mask(&columns, &Rc::new(target))?;
                let sum = Var::from(filled(&device, dtype, frames * outputs, 1.0)?.reshape([frames, 1, outputs])?);
                let cosines = tape.conv1d(&alike, &sum, None, None, Geometry { groups: outputs, ..Default::default() })?;
                Ok(Some(logistic(tape, &tape.reshape(&cosines, [batch * outputs, 1])?, weight)?))
            }
        }
    }

    /// `p` and `target [N, C]` with rows of root mean square 1, multiplied: the mean over a row is its cosine.
    fn alike(&self, tape: &Tape, p: &Var, target: &Tensor) -> Result<Var> {
        let ones = filled(&p.value().device(), p.value().dtype(), p.value().shape().last_dim(), 1.0)?;
        let target = swara_kernels::ops::rms_norm::forward(target, &ones, EPSILON)?;
        Ok(tape.mask(&tape.rms_norm(p, &Var::from(ones), EPSILON)?, &Rc::new(target))?)
    }
}

/// Under the mean square of rows: silence is like nothing.
const EPSILON: f64 = 1e-12;
/// Of what a cosine is of, as `torch.nn.functional.cosine_similarity` has it.
const LEAST_NORM: f64 = 1e-8;

fn filled(device: &Device, dtype: DType, n: usize, value: f64) -> Result<Tensor> {
    Ok(Tensor::from_f64(device, dtype, &vec![value; n], [n])?)
}

/// `weight * -mean log sigmoid x [N, 1]`: a cross-entropy with a logit of 0 beside each.
fn logistic(tape: &Tape, x: &Var, weight: f64) -> Result<Var> {
    let (device, dtype, n) = (x.value().device(), x.value().dtype(), x.value().elements());
    let beside = Tensor::from_f64(&device, dtype, &[1.0, 0.0], [1, 2])?;
    let first = Tensor::from_slice(&device, &vec![0_i32; n], [n])?;
    Ok(tape.cross_entropy(&tape.project(x, &Rc::new(beside))?, first, filled(&device, dtype, n, 1.0)?, weight)?)
}

/// Columns of every item `[frames, width]` at a length of 1; zeros stay.
fn unit_columns(values: &[f64], frames: usize, width: usize) -> Vec<f64> {
    let mut out = values.to_vec();
    for item in out.chunks_exact_mut((frames * width).max(1)) {
        for d in 0..width {
            let norm = item.iter().skip(d).step_by(width).map(|v| v * v).sum::<f64>().sqrt();
            item.iter_mut().skip(d).step_by(width).for_each(|v| *v /= norm.max(LEAST_NORM));
        }
    }
    out
}

/// Whether a parameter is the projection's.
pub fn owns(parameter: &Parameter) -> bool {
    parameter.spec.name.starts_with(PREFIX)
}
