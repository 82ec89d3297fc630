//! AWQ: columns whose inputs are large are made larger before they are rounded, and the norm before the matrix smaller.
//!
//! ```text
//! s = mean|x|^r / sqrt(max min)          r of 0, 0.05 .. 0.95: the least tr(E H E^T), E = round(W s) / s - W
//! clip of a group, 1, 0.95 .. 0.55       the least e H e^T within the group
//! ```
//! Where no norm is before the matrix, only groups are clipped; 8 bits with a scale a row are not. Rows of queries and keys are clipped
//! as all others, which AutoAWQ does not do. Source: Lin et al. 2023 (arXiv 2306.00978); AutoAWQ's `quantize/quantizer.py`.

use swara_kernels::cpu::parallel;
use swara_loader::quantized::{Bits, Quantized, Scale};

use super::{Measure, Moments, Target, difference, nearest, pack};
use crate::Result;

const STEPS: usize = 20;
/// Least mean magnitude of a column, beside which others are weighed.
const LEAST: f64 = 1e-4;

/// A matrix behind the norm.
pub(super) struct Behind<'a> {
    pub target: Target,
    pub values: &'a [f32],
    pub moments: &'a Moments,
    pub measure: &'a Measure,
}

/// What the columns of all of these are best multiplied by.
pub(super) fn factors(matrices: &[Behind]) -> Result<Vec<f32>> {
    let columns = matrices.first().map_or(0, |m| m.moments.columns);
    let magnitude: Vec<f64> =
        (0..columns).map(|c| matrices.iter().map(|m| m.moments.magnitude[c]).sum::<f64>() / matrices.len() as f64).collect();
    let (mut best, mut least) = (vec![1.0; columns], f64::INFINITY);
    for step in 0..STEPS {
        let s = scaled(&magnitude, step as f64 / STEPS as f64);
        let mut error = 0.0;
        for m in matrices {
            let rounded = nearest(m.target, columns, &multiplied(m.values, &s))?.dequantize();
            error += m.measure.outputs(&difference(&rounded, m.values, Some(&s)))?;
        }
        if error < least {
            (best, least) = (s, error);
        }
    }
    Ok(best)
}

fn scaled(magnitude: &[f64], ratio: f64) -> Vec<f32> {
    let s: Vec<f64> = magnitude.iter().map(|v| v.max(LEAST).powf(ratio)).collect();
    let (most, least) = s.iter().fold((0.0, f64::INFINITY), |(most, least), &v| (v.max(most), v.min(least)));
    s.iter().map(|v| (v / (most * least).sqrt()) as f32).collect()
}

/// `W s`
pub(super) fn multiplied(values: &[f32], s: &[f32]) -> Vec<f32> {
    values.chunks_exact(s.len()).flat_map(|row| row.iter().zip(s).map(|(v, s)| v * s)).collect()
}

/// The nearest codes, of groups that are clipped where that is better for the outputs. `values [rows, columns]`.
pub(super) fn clipped(target: Target, values: &[f32], moments: &Moments) -> Result<Quantized> {
    let n = moments.columns;
    if target.bits == Bits::Eight {
        return nearest(target, n, values);
    }
    let group = target.group;
    let second: Vec<f32> =
        (0..n * group).map(|at| moments.second[at / group * n + at / group / group * group + at % group] as f32).collect();
    let mut scales = vec![Scale::new(target.bits, &[], 1.0); values.len() / group];
    parallel::for_blocks(&mut scales, n / group, n / group, group * group * STEPS, |row, _, scales| {
        let mut error = vec![0.0; group];
        for (at, (scale, values)) in scales.iter_mut().zip(values[row * n..].chunks_exact(group)).enumerate() {
            let second = &second[at * group * group..][..group * group];
            let mut least = f32::INFINITY;
            for step in 0..STEPS / 2 {
                let tried = target.scale(values, (1.0 - step as f64 / STEPS as f64) as f32);
                error.iter_mut().zip(values).for_each(|(e, &v)| *e = tried.value(tried.code(v)) - v);
                let found = form(&error, second);
                if found < least {
                    (*scale, least) = (tried, found);
                }
            }
        }
    });
    let codes: Vec<u8> = values.iter().enumerate().map(|(at, &v)| scales[at / group].code(v)).collect();
    pack([values.len() / n, n], target, scales.iter().map(|scale| scale.scale()).collect(), &codes)
}

/// `e H e^T`
fn form(e: &[f32], h: &[f32]) -> f32 {
    h.chunks_exact(e.len()).zip(e).map(|(row, &e_i)| e_i * row.iter().zip(e).map(|(h, e)| h * e).sum::<f32>()).sum()
}
