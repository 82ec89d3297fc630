use crate::cpu::parallel;
use crate::{Real, Result, Tensor};

pub fn forward<T: Real>(y: &mut Tensor, x: &Tensor, limit: f64) -> Result<()> {
    let (x, limit) = (x.as_slice::<T>()?, T::of(limit));
    parallel::for_rows(y.as_mut_slice::<T>()?, 1, |at, y| {
        y.iter_mut().zip(&x[at..]).for_each(|(y, &x)| *y = x / (T::one() + x.abs() / limit));
    });
    Ok(())
}

pub fn backward<T: Real>(dx: &mut Tensor, dy: &Tensor, x: &Tensor, limit: f64) -> Result<()> {
    let (dy, x, limit) = (dy.as_slice::<T>()?, x.as_slice::<T>()?, T::of(limit));
    parallel::for_rows(dx.as_mut_slice::<T>()?, 1, |at, dx| {
        for (dx, (&dy, &x)) in dx.iter_mut().zip(dy[at..].iter().zip(&x[at..])) {
            let d = T::one() + x.abs() / limit;
            *dx = dy / (d * d);
        }
    });
    Ok(())
}
