//! What is known of the inputs of a matrix.

use swara_kernels::ops::linear::{self, Fused, Product, Weight};
use swara_kernels::{Device, Tensor};

use crate::{Error, Result};

/// Inputs that are multiplied in f32, before their products are summed in f64.
const CHUNK: usize = 256;

/// Moments of the `n` inputs `x [n, columns]` of a matrix.
pub struct Moments {
    pub(super) columns: usize,
    /// `H = 2/n sum x x^T`, `[columns, columns]`
    pub(super) second: Vec<f64>,
    /// Mean `|x|`, `[columns]`
    pub(super) magnitude: Vec<f64>,
}

impl Moments {
    /// # Errors
    /// No inputs, or some that are not finite, or whose squares are not.
    pub fn new(columns: usize, inputs: &[f32]) -> Result<Moments> {
        let count = inputs.len().checked_div(columns).unwrap_or(0);
        if count == 0 || inputs.len() != count * columns {
            return Err(Error::Argument(format!("{} values are no inputs of a matrix of {columns} columns", inputs.len())));
        }
        let (mut second, mut magnitude) = (vec![0.0; columns * columns], vec![0.0; columns]);
        for rows in inputs.chunks(CHUNK * columns) {
            let n = rows.len() / columns;
            let transposed: Vec<f32> = (0..rows.len()).map(|at| rows[at % n * columns + at / n]).collect();
            let x = Tensor::from_slice(&Device::Cpu, &transposed, [columns, n])?;
            let products = linear::forward(&x, &Weight::for_product(&x, Product::Tiles)?, Fused::default())?;
            second.iter_mut().zip(products.as_slice::<f32>()?).for_each(|(sum, &v)| *sum += f64::from(v));
            for row in rows.chunks_exact(columns) {
                magnitude.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(v.abs()));
            }
        }
        second.iter_mut().for_each(|v| *v *= 2.0 / count as f64);
        magnitude.iter_mut().for_each(|v| *v /= count as f64);
        Moments::of(second, magnitude)
    }

    /// `second` as above, `[columns, columns]`.
    pub(super) fn of(second: Vec<f64>, magnitude: Vec<f64>) -> Result<Moments> {
        let columns = magnitude.len();
        match second.iter().position(|v| !v.is_finite()) {
            None => Ok(Moments { columns, second, magnitude }),
            Some(at) => {
                Err(Error::Argument(format!("inputs of columns {} and {} have products that are not finite", at / columns, at % columns)))
            }
        }
    }

    /// Moments of `x / by`.
    pub(super) fn divided(&self, by: &[f32]) -> Moments {
        let n = self.columns;
        let second = self.second.iter().enumerate().map(|(at, v)| v / (f64::from(by[at / n]) * f64::from(by[at % n]))).collect();
        let magnitude = self.magnitude.iter().zip(by).map(|(v, &by)| v / f64::from(by)).collect();
        Moments { columns: n, second, magnitude }
    }

    /// What errors of outputs are found with.
    pub fn measure(&self) -> Result<Measure> {
        let second: Vec<f32> = self.second.iter().map(|&v| v as f32).collect();
        let second = Tensor::from_slice(&Device::Cpu, &second, [self.columns, self.columns])?;
        Ok(Measure { columns: self.columns, second: Weight::for_product(&second, Product::Tiles)? })
    }
}

/// [`Moments`], ready to be multiplied by.
pub struct Measure {
    columns: usize,
    second: Weight,
}

impl Measure {
    /// Twice the mean square of the outputs of `matrix [rows, columns]`, summed over outputs: `tr(W H W^T)`.
    pub fn outputs(&self, matrix: &[f32]) -> Result<f64> {
        let mut sum = 0.0;
        for rows in matrix.chunks(CHUNK * self.columns) {
            let x = Tensor::from_slice(&Device::Cpu, rows, [rows.len() / self.columns, self.columns])?;
            let y = linear::forward(&x, &self.second, Fused::default())?;
            sum += rows.iter().zip(y.as_slice::<f32>()?).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        }
        match sum.is_finite() {
            true => Ok(sum.max(0.0)),
            false => Err(Error::Argument("outputs that are not finite".to_owned())),
        }
    }
}
