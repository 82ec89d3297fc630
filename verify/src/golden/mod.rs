//! Layers and models against outputs and gradients that PyTorch gave in float64 (`verify/reference`).
//!
//! A dump is a safetensors file `<family>/<case>.safetensors` whose tensors lie as PyTorch has them, with the case's
//! parameters as JSON under the metadata key `case`. Its only error is one rounding to f32.

mod language;
mod layers;
mod model;
mod pieces;
mod published;
mod quantise;
mod spectral;

use std::path::{Path, PathBuf};

use serde_json::Value;
use swara_engine::codec::Stored;
use swara_kernels::tolerance::{Comparison, Tolerance, Worst};
use swara_kernels::{DType, Device, Shape, Tensor};
use swara_loader::weights::Weights;

use crate::{Outcome, Report};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Kernel(#[from] swara_kernels::Error),
    #[error(transparent)]
    Engine(#[from] swara_engine::Error),
    #[error(transparent)]
    Loader(#[from] swara_loader::Error),
    #[error("cannot read reference: {why} ({})", path.display())]
    Dump { path: PathBuf, why: String },
    /// The case needs what the engine does not have.
    #[error("{0}")]
    Unsupported(String),
}

pub type Result<T = (), E = Error> = std::result::Result<T, E>;

type Family = fn(&Dump, &Device, &mut Outcome) -> Result;

const FAMILIES: &[(&str, Family)] = &[
    ("conv1d", layers::conv1d),
    ("conv_transpose1d", layers::conv_transpose1d),
    ("activation", layers::activation),
    ("weight_norm", layers::weight_norm),
    ("losses", layers::losses),
    ("cross_entropy", layers::cross_entropy),
    ("adamw", layers::adamw),
    ("stft", spectral::stft),
    ("mel", spectral::mel),
    ("metrics", spectral::metrics),
    ("pesq", spectral::pesq),
    ("rvq_euclidean", quantise::euclidean),
    ("rvq_cosine", quantise::cosine),
    ("codec", model::codec),
    ("mimi", published::codec),
    ("dac", published::codec),
    ("snac", published::codec),
    ("encodec", published::codec),
    ("moshi_lm", language::moshi),
];

type Typed = fn(&Dump, &Device, Stored, &mut Outcome) -> Result;

/// Families that are compared in narrower types as well.
const TYPED: &[(&str, Typed)] = &[("mimi", published::codec_in)];

/// Names that [`run`] knows.
pub fn families() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}

/// Compares every dump below `dir` of the families that `names` lists (all if empty) on `device`, with weights as `stored` says.
///
/// Fails if `dir` cannot be read; a family without dumps is reported as skipped.
pub fn run(dir: &Path, device: &Device, stored: impl Into<Stored>, names: &[String]) -> Result<Report> {
    let stored = stored.into();
    let mut report = Report::default();
    let device_name = device.name();
    if !dir.is_dir() {
        return Err(Error::Dump { path: dir.to_owned(), why: "no such folder".into() });
    }
    for (family, compare) in FAMILIES {
        if !names.is_empty() && !names.iter().any(|n| n == family) {
            continue;
        }
        let typed = TYPED.iter().find(|(name, _)| name == family);
        if stored != DType::F32.into() && typed.is_none() {
            report.skip(format!("{family} references"), format!("compared in f32, not in {}", stored.name()));
            continue;
        }
        let files = dumps(&dir.join(family))?;
        if files.is_empty() {
            report.skip(format!("{family} references"), format!("no dumps; verify/reference/make.py {family} writes them"));
        }
        for path in files {
            let dump = Dump::open(&path)?;
            let mut outcome = Outcome::new(family, &dump.name, stored.name(), &device_name);
            let compared = match typed {
                Some((_, compare)) => compare(&dump, device, stored, &mut outcome),
                None => compare(&dump, device, &mut outcome),
            };
            match compared {
                Ok(()) if outcome.output.is_empty() && outcome.pass => outcome.fail("nothing was compared"),
                Ok(()) => {}
                Err(Error::Unsupported(why)) => {
                    report.skip(format!("{family}/{}", dump.name), why);
                    continue;
                }
                Err(error) => outcome.fail(error.to_string()),
            }
            report.push(outcome);
        }
    }
    Ok(report)
}

fn dumps(dir: &Path) -> Result<Vec<PathBuf>> {
    let fail = |e: std::io::Error| Error::Dump { path: dir.to_owned(), why: e.to_string() };
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// One dump.
pub struct Dump {
    path: PathBuf,
    name: String,
    facts: Value,
    weights: Weights,
}

/// `[B, C, T]` to `[B, T, C]` and back.
pub const SWAP: &[usize] = &[0, 2, 1];
/// Convolution weights `[out, in, taps]` to `[taps, in, out]`; transposed ones `[in, out, taps]` with [`TAPS_FIRST`].
pub const REVERSE: &[usize] = &[2, 1, 0];
pub const TAPS_FIRST: &[usize] = &[2, 0, 1];
/// As it lies.
pub const SAME: &[usize] = &[];

impl Dump {
    pub fn open(path: &Path) -> Result<Dump> {
        let weights = Weights::open(path)?;
        let fail = |why: String| Error::Dump { path: path.to_owned(), why };
        let text = weights.metadata().get("case").ok_or_else(|| fail("no metadata `case`".into()))?;
        let facts: Value = serde_json::from_str(text).map_err(|e| fail(format!("metadata `case`: {e}")))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Dump { path: path.to_owned(), name, facts, weights })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn has(&self, tensor: &str) -> bool {
        self.weights.contains(tensor)
    }

    pub fn fact(&self, field: &str) -> Result<&Value> {
        self.facts.get(field).ok_or_else(|| self.wrong(field, "a value"))
    }

    pub fn count(&self, field: &str) -> Result<usize> {
        self.fact(field)?.as_u64().map(|v| v as usize).ok_or_else(|| self.wrong(field, "a whole number"))
    }

    pub fn number(&self, field: &str) -> Result<f64> {
        self.fact(field)?.as_f64().ok_or_else(|| self.wrong(field, "a number"))
    }

    pub fn flag(&self, field: &str) -> Result<bool> {
        self.fact(field)?.as_bool().ok_or_else(|| self.wrong(field, "true or false"))
    }

    fn broken(&self, why: String) -> Error {
        Error::Dump { path: self.path.clone(), why }
    }

    fn wrong(&self, field: &str, expected: &str) -> Error {
        Error::Dump { path: self.path.clone(), why: format!("case field {field}: expected {expected}") }
    }

    /// Values and shape, axes reordered: axis `i` of the result is axis `order[i]` of the file.
    pub fn values(&self, tensor: &str, order: &[usize]) -> Result<(Vec<f64>, Vec<usize>)> {
        let view = self.weights.view(tensor)?;
        let values: Vec<f64> = match view.dtype {
            swara_loader::weights::Dtype::I32 => self.weights.to_i32(tensor)?.iter().map(|&v| f64::from(v)).collect(),
            _ => self.weights.to_f32(tensor)?.iter().map(|&v| f64::from(v)).collect(),
        };
        if order.is_empty() {
            return Ok((values, view.shape.to_vec()));
        }
        if order.len() != view.shape.len() {
            let why = format!("{tensor} has shape {:?}, expected {} axes", view.shape, order.len());
            return Err(Error::Dump { path: self.path.clone(), why });
        }
        let shape: Vec<usize> = order.iter().map(|&axis| view.shape[axis]).collect();
        let stride = |axis: usize| view.shape[axis + 1..].iter().product::<usize>();
        let strides: Vec<usize> = order.iter().map(|&axis| stride(axis)).collect();
        let at = |mut index: usize| {
            let mut offset = 0;
            for (&extent, &stride) in shape.iter().zip(&strides).rev() {
                offset += index % extent * stride;
                index /= extent;
            }
            offset
        };
        Ok(((0..values.len()).map(|i| values[at(i)]).collect(), shape))
    }

    /// A tensor on `device`: f32, or i32 where the file has integers.
    pub fn tensor(&self, tensor: &str, order: &[usize], device: &Device) -> Result<Tensor> {
        let (values, shape) = self.values(tensor, order)?;
        let integer = self.weights.view(tensor)?.dtype == swara_loader::weights::Dtype::I32;
        Ok(Tensor::from_f64(device, if integer { DType::I32 } else { DType::F32 }, &values, Shape::try_from(&shape[..])?)?)
    }

    /// Compares `found` with the file's `tensor`; shapes may differ by axes of extent 1.
    pub fn check(&self, outcome: &mut Outcome, tensor: &str, order: &[usize], found: &Tensor, tolerance: Tolerance) -> Result {
        self.check_mapped(outcome, tensor, order, |v| v, found, tolerance)
    }

    /// As [`Dump::check`], with `then` applied to the file's values.
    pub fn check_mapped(
        &self,
        outcome: &mut Outcome,
        tensor: &str,
        order: &[usize],
        then: fn(f64) -> f64,
        found: &Tensor,
        tolerance: Tolerance,
    ) -> Result {
        let (mut expected, shape) = self.values(tensor, order)?;
        expected.iter_mut().for_each(|v| *v = then(*v));
        let squeezed = |shape: &[usize]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
        if squeezed(&shape) != squeezed(&found.shape()) {
            outcome.fail(format!("{tensor} has shape {:?}, expected {shape:?}", found.shape()));
            return Ok(());
        }
        outcome.add(tensor, tolerance.then_round_to(DType::F32).compare(&found.to_f64()?, &expected));
        Ok(())
    }

    /// Compares one number.
    pub fn check_number(&self, outcome: &mut Outcome, what: &str, found: f64, expected: f64, absolute: f64) {
        let error = (found - expected).abs();
        let comparison = Comparison {
            elements: 1,
            nmse: (error / expected).powi(2),
            max_abs: error,
            max_ulp: 0.0,
            budget_used: if error.is_nan() { f64::INFINITY } else { error / absolute },
            worst: Some(Worst { index: 0, found, expected }),
        };
        outcome.add(what, comparison);
    }
}
