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
