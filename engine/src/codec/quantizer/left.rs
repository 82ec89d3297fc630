//! What each stage leaves of the latents.

use swara_kernels::ops::elementwise;
use swara_kernels::{Device, Tensor};

use super::{Quantizer, Rvq, Stage, column};
use crate::{Error, Result};

impl Quantizer {
    /// Squared norms `[B * T, S + 1]` of what is left of latents f32 `[B, T, latent]` before any stage and after each of those that `codes`
    /// i32 `[B * T, S]` have: in the space where stages are searched, and of a [`Quantizer::Split`] in that of the later stages, of which
    /// the first ones take nothing. On the CPU only, of stages of one rate.
    pub fn left(&self, z: &Tensor, codes: &Tensor) -> Result<Vec<f32>> {
        self.check_left(&z.device())?;
        let flat = || -> Result<Tensor> { Ok(z.copy()?.reshape([z.shape().rows(), z.shape().last_dim()])?) };
        let of = |rvq: &Rvq, first: usize| {
            after(rvq.latents(z)?, codes, first, |mut x, stage, codes| {
                rvq.codebooks.subtract(&mut x, stage, codes)?;
                Ok(x)
            })
        };
        match self {
            Quantizer::Ema(rvq) => of(rvq, 0),
            Quantizer::Split { semantic, acoustic } => of(acoustic, semantic.stages().min(codes.shape().last_dim())),
            Quantizer::Plain(books) => after(flat()?, codes, 0, |mut x, stage, codes| {
                books.subtract(&mut x, stage, codes)?;
                Ok(x)
            }),
            Quantizer::Factorised { stages } => after(flat()?, codes, 0, |x, k, codes| take(&stages[k], &x, codes)),
            Quantizer::Levels(_) => Err(levels()),
        }
    }

    /// An error if nothing says what stages leave.
    pub fn check_left(&self, device: &Device) -> Result<()> {
        match (self, device) {
            (Quantizer::Levels(_), _) => Err(levels()),
            (_, Device::Cpu) => Ok(()),
            _ => Err(Error::Argument(format!("what stages leave is measured on the CPU only, not on {}", device.name()))),
        }
    }
}

fn levels() -> Error {
    Error::Argument("stages of several rates leave nothing that is one frame's".into())
}

/// Of rows `x`, of which the `first` stages take nothing and `take` what the others do.
fn after(mut x: Tensor, codes: &Tensor, first: usize, take: impl Fn(Tensor, usize, &[i32]) -> Result<Tensor>) -> Result<Vec<f32>> {
    let mut left = vec![energies(&x)?; first + 1];
    for stage in first..codes.shape().last_dim() {
        x = take(x, stage - first, &column(codes, stage)?.collect::<Vec<_>>())?;
        left.push(energies(&x)?);
    }
    Ok((0..codes.shape()[0]).flat_map(|row| left.iter().map(move |of| of[row])).collect())
}

/// `residual` without what a codeword for each row stands for.
pub(super) fn take(stage: &Stage, residual: &Tensor, codes: &[i32]) -> Result<Tensor> {
    let codes = Tensor::from_slice(&residual.device(), codes, [codes.len(), 1])?;
    Ok(elementwise::sub(residual, &stage.decode(&codes, 0)?)?)
}

fn energies(x: &Tensor) -> Result<Vec<f32>> {
    let energy = |row: &[f32]| row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() as f32;
    Ok(x.as_slice::<f32>()?.chunks_exact(x.shape()[1].max(1)).map(energy).collect())
}
