use super::Loss;
use crate::cpu::{parallel, partial, vectorised};
use crate::{Real, Result, Tensor};

pub fn total<T: Real>(loss: Loss, x: &Tensor, y: &Tensor) -> Result<f64> {
    let (x, y) = (x.as_slice::<T>()?, y.as_slice::<T>()?);
    let sums = partial::sums(x.len(), 1, 1, |start, end, sums| {
        let (x, y) = (&x[start..end], &y[start..end]);
        sums[0] = vectorised(
            #[inline(always)]
            || match loss {
                Loss::L1 => partial::sum_of(
                    x,
                    y,
                    #[inline(always)]
                    |x, y| (x - y).abs().f64(),
                ),
                Loss::Mse => partial::sum_of(
                    x,
                    y,
                    #[inline(always)]
                    |x, y| ((x - y) * (x - y)).f64(),
                ),
                Loss::LogL1 { floor, added } => {
                    let (floor, added) = (T::of(floor), T::of(added));
                    partial::sum_of(
                        x,
                        y,
                        #[inline(always)]
                        |x, y| {
                            let d = at_least(x, floor).log10() - at_least(y, floor).log10();
                            if d > T::zero() { (added * d).f64() } else { -d.f64() }
                        },
                    )
                }
                Loss::LogMse { floor } => {
                    let floor = T::of(floor);
                    partial::sum_of(
                        x,
                        y,
                        #[inline(always)]
                        |x, y| {
                            let d = (x + floor).log10() - (y + floor).log10();
                            (d * d).f64()
                        },
                    )
                }
            },
        );
    });
    Ok(sums[0])
}

pub fn backward<T: Real>(loss: Loss, dx: &mut Tensor, x: &Tensor, y: &Tensor, factor: f64) -> Result<()> {
    let (x, y) = (x.as_slice::<T>()?, y.as_slice::<T>()?);
    parallel::for_rows(dx.as_mut_slice::<T>()?, 1, |at, dx| {
        let n = dx.len();
        let (x, y) = (&x[at..][..n], &y[at..][..n]);
        vectorised(
            #[inline(always)]
            move || match loss {
                Loss::L1 => (0..n).for_each(|i| dx[i] = T::of(factor) * sign(x[i] - y[i])),
                Loss::Mse => (0..n).for_each(|i| dx[i] = T::of(2.0 * factor) * (x[i] - y[i])),
                Loss::LogL1 { floor, added } => {
                    let (factor, floor, added) = (T::of(factor * std::f64::consts::LOG10_E), T::of(floor), T::of(added));
                    for i in 0..n {
                        let sign = sign(x[i] - at_least(y[i], floor));
                        let slope = factor * (if sign > T::zero() { added } else { sign }) / x[i];
                        dx[i] = if x[i] < floor { T::zero() } else { slope };
                    }
                }
                Loss::LogMse { floor } => {
                    let (factor, floor) = (T::of(2.0 * factor * std::f64::consts::LOG10_E), T::of(floor));
                    (0..n).for_each(|i| dx[i] = factor * ((x[i] + floor).log10() - (y[i] + floor).log10()) / (x[i] + floor));
                }
            },
        )
    });
    Ok(())
}

/// `max`, except that NaN stays NaN.
#[inline(always)]
fn at_least<T: Real>(x: T, floor: T) -> T {
    if x < floor { floor } else { x }
}

/// -1, 0 or 1, and NaN for NaN.
#[inline(always)]
fn sign<T: Real>(x: T) -> T {
    if x > T::zero() {
        T::one()
    } else if x < T::zero() {
        -T::one()
    } else {
        x
    }
}
