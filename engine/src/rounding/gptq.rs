//! GPTQ: column by column, what rounding did to one is made up for by those that are not rounded yet.
//!
//! ```text
//! U^T U = (H + damping)^-1                       U upper triangular
//! for column i:  q = round(w[i])                 by the scale of the group as its values now are
//!                e = (w[i] - q) / U[i, i]
//!                w[i+1..] -= e U[i, i+1..]
//! ```
//! All in f64 but the rounding. The damping is 1 % of the mean of the diagonal. Columns whose inputs are always 0 are on their own; the
//! authors' code sets them to 0. Source: Frantar et al. 2022 (arXiv 2210.17323), section 3; `gptq.py` of its repository, whose blocks of
//! 128 columns are about memory, not about the result.

use swara_kernels::cpu::parallel;
use swara_loader::quantized::{Quantized, Scale};

use super::{Moments, Target, factor, pack};
use crate::Result;

/// Of the mean of the diagonal.
const DAMPING: f64 = 0.01;
/// Rows that are rounded together, for which a row of `U` is read once.
const ROWS: usize = 8;

/// `U`, of the columns of some moments.
pub(super) struct Factor {
    columns: usize,
    u: Vec<f64>,
}

impl Factor {
    pub fn new(moments: Moments) -> Result<Factor> {
        let (n, mut h) = (moments.columns, moments.second);
        let live: Vec<f64> = (0..n).map(|i| h[i * n + i]).filter(|&v| v > 0.0).collect();
        let mean = if live.is_empty() { 1.0 } else { live.iter().sum::<f64>() / live.len() as f64 };
        for i in 0..n {
            let diagonal = &mut h[i * n + i];
            *diagonal = if *diagonal > 0.0 { *diagonal } else { mean } + DAMPING * mean;
        }
        factor::invert(&mut h, n)?;
        Ok(Factor { columns: n, u: h })
    }
}

/// A row as it is rounded.
#[derive(Clone, Default)]
struct Row {
    codes: Vec<u8>,
    scales: Vec<f32>,
}

/// `values [rows, columns]`
pub(super) fn round(target: Target, values: &[f32], factor: &Factor) -> Result<Quantized> {
    let n = factor.columns;
    let mut rows = vec![Row::default(); values.len() / n];
    parallel::chunks(&mut rows, ROWS, |at, rows| {
        round_rows(target, &values[at * ROWS * n..][..rows.len() * n], factor, rows);
    });
    let scales = rows.iter().flat_map(|row| &row.scales).copied().collect();
    let codes: Vec<u8> = rows.iter().flat_map(|row| &row.codes).copied().collect();
    pack([rows.len(), n], target, scales, &codes)
}

fn round_rows(target: Target, values: &[f32], factor: &Factor, rows: &mut [Row]) {
    let n = factor.columns;
    let mut w: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
    let mut scales = vec![Scale::new(target.bits, &[], 1.0); rows.len()];
    for i in 0..n {
        let u = &factor.u[i * n + i..(i + 1) * n];
        for ((w, scale), row) in w.chunks_exact_mut(n).zip(&mut scales).zip(&mut *rows) {
            if i % target.group == 0 {
                let group: Vec<f32> = w[i..i + target.group].iter().map(|&v| v as f32).collect();
                *scale = target.scale(&group, 1.0);
                row.scales.push(scale.scale());
            }
            let code = scale.code(w[i] as f32);
            row.codes.push(code);
            let error = (w[i] - f64::from(scale.value(code))) / u[0];
            factor::subtract(&mut w[i + 1..], error, &u[1..]);
        }
    }
}
