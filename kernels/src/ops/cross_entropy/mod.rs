//! Cross-entropy of logits with the ids that should have been, as a weighted mean.
//!
//! ```text
//! lse_n = log sum over v of e^x[n, v]        W = sum w_n
//! loss  = sum w_n (lse_n - x[n, t_n]) / W
//! dx[n, v] = s w_n / W (e^(x[n, v] - lse_n) - [v = t_n])
//! ```
//!
//! | tensor    | shape    |                                                                                                          |
//! |-----------|----------|----------------------------------------------------------------------------------------------------------|
//! | `logits`  | `[N, V]` | f32, bf16 or f16 on CUDA, f32 or f64 on the CPU                                                          |
//! | `targets` | `[N]`    | i32; -1: the row counts for nothing, as one of weight 0 does, whatever its logits are                    |
//! | `weights` | `[N]`    | f32, or f64 beside f64                                                                                   |
//! | loss      | `[1]`    | as `weights`; NaN if nothing counts                                                                      |
//! | `dx`      | `[N, V]` | as `logits`; zero in rows that do not count                                                              |
//!
//! Sums in f32, relative to a row's largest logit, in f64 on the CPU; deterministic. A target outside `-1 .. V` is an error on the CPU
//! and NaN, in loss and row, on CUDA. Sources: `torch.nn.functional.cross_entropy` with `ignore_index = -1` and a weight a row; so
//! Moshi is trained (moshi-finetune, `compute_loss_with_mask`).

mod cases;
mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
use crate::{DType, Device, Error, Result, Tensor, dispatch_real, span};

pub static SOURCE: Source = Source { path: "ops/cross_entropy/cross_entropy.cu", text: include_str!("cross_entropy.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "cross_entropy";
/// The target of a row that counts for nothing.
pub const NONE: i32 = -1;

/// What [`forward`] finds.
pub struct CrossEntropy {
    /// `[1]`.
    pub loss: Tensor,
    /// `lse`, `[N]`; unspecified in rows that do not count.
    log_sums: Tensor,
    /// `W`, `[1]`.
    weight: Tensor,
}

/// The loss, and what [`backward`] needs of it.
///
/// # Errors
/// Operands that do not fit each other; a type that the device does not store; on the CPU a target that is no logit.
pub fn forward(logits: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<CrossEntropy> {
    let _span = span::op("cross_entropy.forward");
    check(logits, targets, weights)?;
    match logits.device() {
        Device::Cpu => dispatch_real!(NAME, logits.dtype(), T => cpu::forward::<T>(logits, targets, weights)),
        Device::Cuda(gpu) => cuda::forward(&gpu, logits, targets, weights),
    }
}

/// The gradient of `scale` times the loss with respect to the logits, from what [`forward`] was given and what it found.
///
/// # Errors
/// Those of [`forward`]; what was found of other logits.
pub fn backward(found: &CrossEntropy, logits: &Tensor, targets: &Tensor, weights: &Tensor, scale: f64) -> Result<Tensor> {
    let _span = span::op("cross_entropy.backward");
    check(logits, targets, weights)?;
    check::parameter(NAME, logits, "log sums", &found.log_sums, logits.shape()[0])?;
    let mut dx = logits.empty_like()?;
    match logits.device() {
        Device::Cpu => dispatch_real!(NAME, logits.dtype(), T => cpu::backward::<T>(&mut dx, found, logits, targets, weights, scale))?,
        Device::Cuda(gpu) => cuda::backward(&gpu, &mut dx, found, logits, targets, weights, scale)?,
    }
    Ok(dx)
}

fn check(logits: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<()> {
    let &[rows, classes @ 1..=0x3fff_ffff] = &*logits.shape() else {
        return Err(Error::shape(NAME, "logits", "[N, 1 to 2^30 - 1]", logits.shape()));
    };
    check::parameter(NAME, logits, "weights", weights, rows)?;
    if *targets.shape() != [rows] {
        return Err(Error::shape(NAME, "targets", format!("[{rows}]"), targets.shape()));
    }
    if targets.dtype() != DType::I32 {
        return Err(Error::dtype(NAME, "targets", "i32", targets.dtype()));
    }
    if targets.device() != logits.device() {
        return Err(Error::DeviceMismatch { op: NAME, operand: "targets" });
    }
    if logits.device() == Device::Cpu {
        let outside = |target: i32| target != NONE && usize::try_from(target).map_or(true, |target| target >= classes);
        if let Some((row, target)) = targets.as_slice::<i32>()?.iter().enumerate().find(|(_, target)| outside(**target)) {
            return Err(Error::argument(NAME, format!("target {target} of row {row} is none of {classes} logits")));
        }
    }
    Ok(())
}
