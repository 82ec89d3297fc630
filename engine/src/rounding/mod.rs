//! Matrices to codes, by what is known of their inputs: [GPTQ](Method::Gptq) and [AWQ](Method::Awq) beside the nearest codes.
//!
//! The error that counts is that of outputs, `sum |x (V - W)^T|^2` over the inputs `x` of a calibration, with `V` the values of the
//! codes: `n/2 tr(E H E^T)`, `E = V - W`, `H = 2/n sum x x^T`.

mod awq;
mod factor;
mod gptq;
mod moments;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use half::{bf16, f16};
pub use moments::{Measure, Moments};
use swara_loader::QuantizedError;
use swara_loader::quantized::{Bits, Quantized, Scale};
use swara_loader::weights::Dtype;

use crate::{Error, Result};

/// How codes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Each value's nearest.
    Nearest,
    Gptq,
    Awq,
}

/// What a matrix is rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub bits: Bits,
    /// Columns that share a scale.
    pub group: usize,
    /// Scales are kept in f16.
    pub f16_scales: bool,
}

impl Target {
    fn scale(self, values: &[f32], clip: f32) -> Scale {
        let scale = Scale::new(self.bits, values, clip);
        if self.f16_scales { scale.in_f16() } else { scale }
    }
}

/// A matrix and what it was multiplied with.
pub struct Observed {
    pub target: Target,
    pub columns: usize,
    /// `[rows, columns]`
    pub values: Vec<f32>,
    /// `[n, columns]`; matrices of the same inputs share them.
    pub inputs: Arc<Vec<f32>>,
}

/// The norm before matrices: its factors, and perhaps what it adds, `[columns]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    pub tensors: Vec<Vec<f32>>,
    /// That the file keeps them in.
    pub dtype: Dtype,
}

/// What rounding did to a matrix, or to some: sums of squares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    pub values: usize,
    pub energy: f64,
    pub error: f64,
    /// Of outputs over the inputs of a calibration; none without one.
    pub output_energy: f64,
    pub output_error: f64,
}

impl Loss {
    /// Of values alone.
    pub fn of_values(values: &[f32], rounded: &[f32]) -> Loss {
        let square = |v: f32| f64::from(v).powi(2);
        Loss {
            values: values.len(),
            energy: values.iter().map(|&v| square(v)).sum(),
            error: values.iter().zip(rounded).map(|(&v, q)| square(v - q)).sum(),
            ..Loss::default()
        }
    }

    pub fn add(&mut self, other: &Loss) {
        self.values += other.values;
        self.energy += other.energy;
        self.error += other.error;
        self.output_energy += other.output_energy;
        self.output_error += other.output_error;
    }

    /// Relative error of values, of root mean squares.
    pub fn relative(&self) -> f64 {
        (self.error / self.energy.max(f64::MIN_POSITIVE)).sqrt()
    }

    /// Likewise of outputs.
    pub fn relative_outputs(&self) -> Option<f64> {
        (self.output_energy > 0.0).then(|| (self.output_error / self.output_energy).sqrt())
    }
}

/// Matrices of one place, rounded.
pub struct Rounded {
    pub matrices: Vec<(Quantized, Loss)>,
    /// The norm as it is to be from now on, where that is another.
    pub norm: Option<Norm>,
}

/// Codes of `matrices`, which all have the inputs that `norm`, if any, gives them, and which alone have them.
///
/// Takes 20 bytes for each pair of columns - AWQ behind a norm 12 more for every matrix -, and the largest matrix a few times over.
///
/// # Errors
/// Shapes that do not fit; values or inputs that are not finite; no inputs.
pub fn round(method: Method, matrices: &[Observed], norm: Option<&Norm>) -> Result<Rounded> {
    let columns = matrices.first().map_or(0, |matrix| matrix.columns);
    let alike = |norm: &Norm| norm.tensors.iter().all(|tensor| tensor.len() == columns);
    if matrices.iter().any(|matrix| matrix.columns != columns) || !norm.is_none_or(alike) {
        return Err(Error::Argument(format!("matrices or a norm of other columns than {columns}")));
    }
    let folded = match (method, norm) {
        (Method::Awq, Some(norm)) => fold(norm, &factors(matrices)?),
        _ => None,
    };
    let mut rounded = Vec::with_capacity(matrices.len());
    let mut known: Option<(&Arc<Vec<f32>>, Known)> = None;
    for matrix in matrices {
        let known = match known.take() {
            Some(same) if Arc::ptr_eq(same.0, &matrix.inputs) => known.insert(same),
            _ => known.insert((&matrix.inputs, Known::new(method, matrix, folded.as_ref().map(|(_, s)| &s[..]))?)),
        };
        rounded.push(one(matrix, &known.1, folded.as_ref().map(|(_, s)| &s[..]))?);
    }
    Ok(Rounded { matrices: rounded, norm: folded.map(|(norm, _)| norm) })
}

/// What the inputs of a matrix say to a method.
struct Known {
    measure: Measure,
    by: By,
}

enum By {
    Nothing,
    Factor(gptq::Factor),
    Moments(Moments),
}

impl Known {
    fn new(method: Method, matrix: &Observed, s: Option<&[f32]>) -> Result<Known> {
        let moments = Moments::new(matrix.columns, &matrix.inputs)?;
        let measure = moments.measure()?;
        let by = match (method, s) {
            (Method::Nearest, _) => By::Nothing,
            (Method::Gptq, _) => By::Factor(gptq::Factor::new(moments)?),
            (Method::Awq, Some(s)) => By::Moments(moments.divided(s)),
            (Method::Awq, None) => By::Moments(moments),
        };
        Ok(Known { measure, by })
    }
}

/// `s`: what columns are multiplied by, as the norm before them is divided.
fn one(matrix: &Observed, known: &Known, s: Option<&[f32]>) -> Result<(Quantized, Loss)> {
    let &Observed { target, columns, ref values, .. } = matrix;
    check(matrix)?;
    let multiplied = s.map(|s| awq::multiplied(values, s));
    let values = multiplied.as_deref().unwrap_or(values);
    let codes = nearest(target, columns, values)?;
    let error = |codes: &Quantized| {
        let error = difference(&codes.dequantize(), &matrix.values, s);
        Ok::<_, Error>((known.measure.outputs(&error)?, error))
    };
    let (mut output_error, mut errors) = error(&codes)?;
    let mut codes = codes;
    let better = match &known.by {
        By::Nothing => None,
        By::Factor(factor) => Some(gptq::round(target, values, factor)?),
        By::Moments(moments) => Some(awq::clipped(target, values, moments)?),
    };
    // Neither looks for the least error of all, and few inputs may lead either astray.
    if let Some(better) = better
        && let (found, with) = error(&better)?
        && found < output_error
    {
        (codes, output_error, errors) = (better, found, with);
    }
    let loss = Loss {
        output_energy: known.measure.outputs(&matrix.values)?,
        output_error,
        error: errors.iter().map(|&e| f64::from(e).powi(2)).sum(),
        ..Loss::of_values(&matrix.values, &matrix.values)
    };
    Ok((codes, loss))
}

fn check(matrix: &Observed) -> Result<()> {
    let &Observed { target, columns, ref values, .. } = matrix;
    let fits = columns > 0 && values.len().is_multiple_of(columns) && target.group > 0 && columns.is_multiple_of(target.group);
    match fits {
        true => Ok(()),
        false => Err(Error::Argument(format!("{} values in rows of {columns} and groups of {}", values.len(), target.group))),
    }
}

/// What the columns behind a norm are best multiplied by.
fn factors(matrices: &[Observed]) -> Result<Vec<f32>> {
    matrices.iter().try_for_each(check)?;
    let known = matrices.iter().map(|matrix| {
        let moments = Moments::new(matrix.columns, &matrix.inputs)?;
        Ok((moments.measure()?, moments))
    });
    let known = known.collect::<Result<Vec<_>>>()?;
    let behind = matrices.iter().zip(&known).map(|(matrix, (measure, moments))| awq::Behind {
        target: matrix.target,
        values: &matrix.values,
        moments,
        measure,
    });
    awq::factors(&behind.collect::<Vec<_>>())
}

/// The norm divided by `s`, as the file can keep it, and what it then is divided by. None where it cannot.
fn fold(norm: &Norm, s: &[f32]) -> Option<(Norm, Vec<f32>)> {
    let kept: fn(f32) -> f32 = match norm.dtype {
        Dtype::F32 => |v| v,
        Dtype::F16 => |v| f16::from_f32(v).to_f32(),
        Dtype::Bf16 => |v| bf16::from_f32(v).to_f32(),
        _ => return None,
    };
    let (weight, others) = norm.tensors.split_first()?;
    let divided = |(c, (&v, &s)): (usize, (&f32, &f32))| {
        let found = kept(v / s);
        let by = v / found;
        // A factor of 0, or what becomes one, stays what it is, and so does one whose bias would be too large.
        let fits = by.is_normal() && found.is_normal() && others.iter().all(|other| kept(other[c] / by).is_finite());
        if fits { (found, by) } else { (v, 1.0) }
    };
    let (weight, by): (Vec<f32>, Vec<f32>) = weight.iter().zip(s).enumerate().map(divided).unzip();
    let others = others.iter().map(|v| v.iter().zip(&by).map(|(v, by)| kept(v / by)).collect());
    Some((Norm { tensors: [weight].into_iter().chain(others).collect(), dtype: norm.dtype }, by))
}

/// The nearest codes of `values [rows, columns]`.
fn nearest(target: Target, columns: usize, values: &[f32]) -> Result<Quantized> {
    let shape = [values.len() / columns.max(1), columns];
    let codes = match target.bits {
        // ggml's own, whose codes are rounded otherwise.
        Bits::Eight if target.f16_scales && target.group == 32 => return Quantized::q8_0(shape, values).map_err(unfit),
        Bits::Four => Quantized::int4(shape, target.group, values),
        Bits::Eight => Quantized::int8(shape, target.group, values),
    };
    let codes = codes.map_err(unfit)?;
    if !target.f16_scales {
        return Ok(codes);
    }
    let scales = codes.scales().iter().map(|&scale| f16::from_f32(scale).to_f32()).collect();
    Quantized::new(shape, target.bits, target.group, scales, None, codes.codes().to_vec()).map_err(unfit)
}

/// `codes [rows, columns]`, one a byte.
fn pack(shape: [usize; 2], target: Target, scales: Vec<f32>, codes: &[u8]) -> Result<Quantized> {
    let codes = match target.bits {
        Bits::Four => codes.as_chunks::<2>().0.iter().map(|[a, b]| a | b << 4).collect(),
        Bits::Eight => codes.to_vec(),
    };
    Quantized::new(shape, target.bits, target.group, scales, None, codes).map_err(unfit)
}

fn unfit(why: QuantizedError) -> Error {
    Error::Argument(why.to_string())
}

/// `V / s - W`
fn difference(rounded: &[f32], values: &[f32], s: Option<&[f32]>) -> Vec<f32> {
    match s {
        None => rounded.iter().zip(values).map(|(q, v)| q - v).collect(),
        Some(s) => {
            let rows = rounded.chunks_exact(s.len()).zip(values.chunks_exact(s.len()));
            rows.flat_map(|(q, v)| q.iter().zip(v).zip(s).map(|((q, v), s)| q / s - v)).collect()
        }
    }
}
