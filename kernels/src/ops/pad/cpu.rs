use super::Map;
use crate::cpu::parallel;
use crate::{Real, Result, Tensor};

pub fn reflect<T: Real>(y: &mut Tensor, x: &Tensor, map: &Map) -> Result<()> {
    let (channels, rows) = (x.shape().last_dim(), y.shape()[1]);
    let x = x.as_slice::<T>()?;
    parallel::for_rows(y.as_mut_slice::<T>()?, channels, |first, y| {
        for (i, y) in y.chunks_exact_mut(channels).enumerate() {
            let (item, t) = ((first + i) / rows, (first + i) % rows);
            match map.source(t) {
                Some(source) => y.copy_from_slice(&x[(item * map.rows + source) * channels..][..channels]),
                None => y.fill(T::zero()),
            }
        }
    });
    Ok(())
}

pub fn reflect_backward<T: Real>(dx: &mut Tensor, dy: &Tensor, map: &Map) -> Result<()> {
    let (channels, dy) = (dy.shape().last_dim(), dy.as_slice::<T>()?);
    parallel::for_rows(dx.as_mut_slice::<T>()?, channels, |first, dx| {
        for (i, dx) in dx.chunks_exact_mut(channels).enumerate() {
            let (item, t) = ((first + i) / map.rows, (first + i) % map.rows);
            dx.fill(T::zero());
            for target in map.targets(t) {
                dx.iter_mut().zip(&dy[(item * map.padded + target) * channels..]).for_each(|(dx, &dy)| *dx += dy);
            }
        }
    });
    Ok(())
}

/// `part` becomes the rows of `y` from `first` on.
pub fn put<T: Real>(y: &mut Tensor, part: &Tensor, first: usize) -> Result<()> {
    let (shape, item) = (y.shape(), part.shape()[1] * part.shape()[2]);
    let part = part.as_slice::<T>()?;
    parallel::for_rows(y.as_mut_slice::<T>()?, shape[1] * shape[2], |at, y| {
        for (y, part) in y.chunks_exact_mut(shape[1] * shape[2]).zip(part[at * item..].chunks_exact(item)) {
            y[first * shape[2]..][..item].copy_from_slice(part);
        }
    });
    Ok(())
}
