use super::Norm;
use crate::cpu::{parallel, partial, vectorised};
use crate::tensor::Scratch;
use crate::{Real, Result, Tensor};

/// What a row is normalised by: `xhat = (x - mean) inverse`.
struct Statistics<T> {
    mean: T,
    inverse: T,
}

impl<T: Real> Statistics<T> {
    #[inline(always)]
    fn of(row: &[T], centred: bool, epsilon: f64) -> Self {
        let n = row.len() as f64;
        let mean = if centred {
            mean_of(
                row,
                row,
                #[inline(always)]
                |x, _| x.f64(),
            )
        } else {
            0.0
        };
        let squares = partial::sum_of(
            row,
            row,
            #[inline(always)]
            |x, _| (x.f64() - mean) * (x.f64() - mean),
        );
        Statistics { mean: T::of(mean), inverse: T::of(1.0 / (squares / n + epsilon).sqrt()) }
    }

    #[inline(always)]
    fn apply(&self, x: T) -> T {
        (x - self.mean) * self.inverse
    }
}

#[inline(always)]
fn mean_of<T: Real>(a: &[T], b: &[T], term: impl Fn(T, T) -> f64) -> f64 {
    partial::sum_of(a, b, term) / a.len() as f64
}

pub fn forward<T: Real>(norm: &Norm, y: &mut Tensor, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, epsilon: f64) -> Result<()> {
    let width = x.shape().last_dim();
    let (x, weight) = (x.as_slice::<T>()?, weight.as_slice::<T>()?);
    let bias = bias.map(Tensor::as_slice::<T>).transpose()?;
    parallel::for_rows(y.as_mut_slice::<T>()?, width, |row, y| {
        vectorised(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(width).zip(x[row * width..].chunks_exact(width)) {
                    let statistics = Statistics::of(x, norm.centred, epsilon);
                    match bias {
                        Some(bias) => (0..width).for_each(|i| y[i] = statistics.apply(x[i]).mul_add(weight[i], bias[i])),
                        None => (0..width).for_each(|i| y[i] = statistics.apply(x[i]) * weight[i]),
                    }
                }
            },
        );
    });
    Ok(())
}

/// Writes `dx`; returns the gradients of the weight and, if centred, of the bias.
pub fn backward<T: Real>(norm: &Norm, dx: &mut Tensor, dy: &Tensor, x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Vec<Tensor>> {
    let width = x.shape().last_dim();
    let shape = weight.shape();
    let (dy, x, w) = (dy.as_slice::<T>()?, x.as_slice::<T>()?, weight.as_slice::<T>()?);
    let mut sums = partial::map_sums(dx.as_mut_slice::<T>()?, width, 2 * width, |at, dx, sums| {
        let (dweight, dbias) = sums.split_at_mut(width);
        let mut xhat = Scratch::<T>::new(width);
        vectorised(
            #[inline(always)]
            || {
                let rows = dx.chunks_exact_mut(width).zip(dy[at..].chunks_exact(width)).zip(x[at..].chunks_exact(width));
                for ((dx, dy), x) in rows {
                    let statistics = Statistics::of(x, norm.centred, epsilon);
                    for i in 0..width {
                        xhat[i] = statistics.apply(x[i]);
                        dx[i] = w[i] * dy[i];
                        dweight[i] += (dy[i] * xhat[i]).f64();
                        dbias[i] += dy[i].f64();
                    }
                    let level = T::of(if norm.centred {
                        mean_of(
                            dx,
                            dx,
                            #[inline(always)]
                            |g, _| g.f64(),
                        )
                    } else {
                        0.0
                    });
                    let slope = T::of(mean_of(
                        dx,
                        &xhat,
                        #[inline(always)]
                        |g, x| g.f64() * x.f64(),
                    ));
                    for i in 0..width {
                        dx[i] = statistics.inverse * (dx[i] - level - xhat[i] * slope);
                    }
                }
            },
        );
    });
    let dbias = sums.split_off(width);
    let gradient = |sums: &[f64]| Tensor::from_f64(&crate::Device::Cpu, weight.dtype(), sums, shape);
    let mut gradients = vec![gradient(&sums)?];
    if norm.centred {
        gradients.push(gradient(&dbias)?);
    }
    Ok(gradients)
}
