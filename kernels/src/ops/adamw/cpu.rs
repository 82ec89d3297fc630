use rayon::prelude::*;

use super::Update;
use crate::cpu::{parallel, vectorised};
use crate::{Real, Result, Tensor};

pub fn step<T: Real>(
    param: &mut Tensor,
    grad: &Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    update: Update,
    grad_scale: Option<&Tensor>,
) -> Result<()> {
    const CHUNK: usize = 1 << 15;
    let scale = grad_scale.map_or(Ok(T::one()), |s| s.as_slice::<T>().map(|s| s[0]))?;
    let chunks = param.as_mut_slice::<T>()?.par_chunks_mut(CHUNK).zip(grad.as_slice::<T>()?.par_chunks(CHUNK));
    let moments = m.as_mut_slice::<T>()?.par_chunks_mut(CHUNK).zip(v.as_mut_slice::<T>()?.par_chunks_mut(CHUNK));
    chunks.zip(moments).for_each(|((p, g), (m, v))| step_chunk(p, g, m, v, update, scale));
    Ok(())
}

fn step_chunk<T: Real>(p: &mut [T], g: &[T], m: &mut [T], v: &mut [T], update: Update, scale: T) {
    let [keep, beta1, beta2, rate, correction, eps] =
        [update.keep, update.beta1, update.beta2, update.rate, update.correction, update.eps].map(T::of);
    let [new1, new2] = [1.0 - update.beta1, 1.0 - update.beta2].map(T::of);
    let n = p.len();
    let (g, m, v) = (&g[..n], &mut m[..n], &mut v[..n]);
    vectorised(
        #[inline(always)]
        || {
            for i in 0..n {
                let g = g[i] * scale;
                m[i] = beta1 * m[i] + new1 * g;
                v[i] = beta2 * v[i] + new2 * (g * g);
                p[i] = keep * p[i] - rate * m[i] / (v[i].sqrt() * correction + eps);
            }
        },
    );
}

pub fn ema<T: Real>(shadow: &mut Tensor, param: &Tensor, decay: f64) -> Result<()> {
    let (keep, new) = (T::of(decay), T::of(1.0 - decay));
    let param = param.as_slice::<T>()?;
    parallel::for_rows(shadow.as_mut_slice::<T>()?, 1, |at, shadow| {
        let param = &param[at..][..shadow.len()];
        vectorised(
            #[inline(always)]
            move || shadow.iter_mut().zip(param).for_each(|(s, &p)| *s = keep * *s + new * p),
        )
    });
    Ok(())
}
