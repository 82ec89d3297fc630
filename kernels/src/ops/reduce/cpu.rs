use super::Term;
use crate::cpu::{partial, vectorised};
use crate::{Real, Result, Tensor};

pub fn total<T: Real>(x: &Tensor, term: Term) -> Result<f64> {
    let x = x.as_slice::<T>()?;
    let sums = partial::sums(x.len(), 1, 1, |start, end, sums| {
        let x = &x[start..end];
        sums[0] = vectorised(
            #[inline(always)]
            || match term {
                Term::Value => partial::sum_of(
                    x,
                    x,
                    #[inline(always)]
                    |x, _| x.f64(),
                ),
                Term::Square => partial::sum_of(
                    x,
                    x,
                    #[inline(always)]
                    |x, _| x.f64() * x.f64(),
                ),
            },
        );
    });
    Ok(sums[0])
}

pub fn sum_rows<T: Real>(x: &Tensor) -> Result<Vec<f64>> {
    let width = x.shape().last_dim();
    let x = x.as_slice::<T>()?;
    let tile = partial::tile_len(width);
    Ok(partial::sums(x.len(), tile, width, |start, end, sums| {
        let mut lanes = vec![0.0f64; tile];
        vectorised(
            #[inline(always)]
            || {
                for x in x[start..end].chunks(tile) {
                    lanes.iter_mut().zip(x).for_each(|(s, x)| *s += x.f64());
                }
            },
        );
        partial::fold(sums, &lanes);
    }))
}
