use super::{CrossEntropy, NONE};
use crate::cpu::parallel;
use crate::{Device, Real, Result, Tensor};

/// What a row counts for: 0 without a target.
fn counted<T: Real>(target: i32, weight: T) -> T {
    if target == NONE { T::zero() } else { weight }
}

pub fn forward<T: Real>(logits: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<CrossEntropy> {
    let (rows, classes) = (logits.shape()[0], logits.shape()[1]);
    let (x, targets, weights) = (logits.as_slice::<T>()?, targets.as_slice::<i32>()?, weights.as_slice::<T>()?);
    let mut log_sums = Tensor::empty(&Device::Cpu, T::DTYPE, [rows])?;
    parallel::chunks(log_sums.as_mut_slice::<T>()?, 1, |n, log_sum| {
        let x = &x[n * classes..][..classes];
        let max = x.iter().copied().fold(T::neg_infinity(), T::max);
        let sum: f64 = x.iter().map(|&x| (x - max).exp().f64()).sum();
        log_sum[0] = max + T::of(sum.ln());
    });
    let (mut total, mut weight) = (0.0, 0.0);
    for (n, &log_sum) in log_sums.as_slice::<T>()?.iter().enumerate() {
        let w = counted(targets[n], weights[n]).f64();
        if w != 0.0 {
            total += w * (log_sum - x[n * classes + targets[n] as usize]).f64();
            weight += w;
        }
    }
    let one = |v: f64| Tensor::from_slice(&Device::Cpu, &[T::of(v)], [1]);
    Ok(CrossEntropy { loss: one(total / weight)?, log_sums, weight: one(weight)? })
}

pub fn backward<T: Real>(
    dx: &mut Tensor,
    found: &CrossEntropy,
    logits: &Tensor,
    targets: &Tensor,
    weights: &Tensor,
    scale: f64,
) -> Result<()> {
    let classes = logits.shape()[1];
    let (x, targets, weights) = (logits.as_slice::<T>()?, targets.as_slice::<i32>()?, weights.as_slice::<T>()?);
    let (log_sums, weight) = (found.log_sums.as_slice::<T>()?, found.weight.as_slice::<T>()?[0]);
    parallel::for_rows(dx.as_mut_slice::<T>()?, classes, |first, dx| {
        for (n, dx) in (first..).zip(dx.chunks_exact_mut(classes)) {
            let w = counted(targets[n], weights[n]);
            if w == T::zero() {
                dx.fill(T::zero());
                continue;
            }
            let factor = T::of(scale) * w / weight;
            dx.iter_mut().zip(&x[n * classes..]).for_each(|(d, &x)| *d = (x - log_sums[n]).exp() * factor);
            let target = targets[n] as usize;
            dx[target] = ((x[n * classes + target] - log_sums[n]).exp() - T::one()) * factor;
        }
    });
    Ok(())
}
