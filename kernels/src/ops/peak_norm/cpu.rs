use super::EPSILON;
use crate::cpu::parallel;
use crate::{Real, Result, Tensor};

/// Mean of a row, and of the row without it the largest magnitude and where that is.
fn statistics<T: Real>(x: &[T]) -> (f64, f64, usize) {
    let mean = x.iter().map(|v| v.f64()).sum::<f64>() / x.len() as f64;
    let larger = |(peak, at), (i, v): (usize, &T)| match (v.f64() - mean).abs() {
        // What is no number is no peak, but spoils the row all the same: its mean is none.
        magnitude if magnitude > peak => (magnitude, i),
        _ => (peak, at),
    };
    let (peak, at) = x.iter().enumerate().fold((0.0, 0), larger);
    (mean, peak + EPSILON, at)
}

pub fn forward<T: Real>(y: &mut Tensor, x: &Tensor, level: f64) -> Result<()> {
    let (width, x) = (x.shape().last_dim(), x.as_slice::<T>()?);
    parallel::for_rows(y.as_mut_slice::<T>()?, width, |first, y| {
        for (x, y) in x[first * width..].chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let (mean, peak, _) = statistics(x);
            x.iter().zip(y).for_each(|(x, y)| *y = T::of(level / peak * (x.f64() - mean)));
        }
    });
    Ok(())
}

pub fn backward<T: Real>(dx: &mut Tensor, dy: &Tensor, x: &Tensor, level: f64) -> Result<()> {
    let (width, x, dy) = (x.shape().last_dim(), x.as_slice::<T>()?, dy.as_slice::<T>()?);
    parallel::for_rows(dx.as_mut_slice::<T>()?, width, |first, dx| {
        let rows = x[first * width..].chunks_exact(width).zip(dy[first * width..].chunks_exact(width));
        for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(width)) {
            let (mean, peak, at) = statistics(x);
            let scale = level / peak;
            let total: f64 = dy.iter().map(|v| v.f64()).sum();
            let along: f64 = x.iter().zip(dy).map(|(x, dy)| dy.f64() * (x.f64() - mean)).sum();
            let centred = x[at].f64() - mean;
            // Silence has no peak to move.
            let of_peak = if centred == 0.0 { 0.0 } else { -centred.signum() * scale / peak * along };
            let less = (scale * total + of_peak) / width as f64;
            dy.iter().zip(&mut *dx).for_each(|(dy, dx)| *dx = T::of(scale * dy.f64() - less));
            dx[at] = T::of(scale * dy[at].f64() + of_peak - less);
        }
    });
    Ok(())
}
