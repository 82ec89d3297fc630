use crate::cpu::parallel;
use crate::{Real, Result, Tensor};

pub fn forward<T: Real>(y: &mut Tensor, x: &Tensor, gate: &Tensor, bias: &Tensor, scale: f64) -> Result<()> {
    let [queries, keys] = [x.shape().rows(), x.shape().last_dim()];
    let (x, gate, bias, scale) = (x.as_slice::<T>()?, gate.as_slice::<T>()?, bias.as_slice::<T>()?, T::of(scale));
    parallel::for_rows(y.as_mut_slice::<T>()?, keys, |first, y| {
        for (i, y) in (first..).zip(y.chunks_exact_mut(keys)) {
            let (x, bias) = (&x[i * keys..][..keys], &bias[queries - 1 - i..][..keys]);
            y.iter_mut().zip(x.iter().zip(bias)).for_each(|(y, (&x, &bias))| *y = scale * x + gate[i] * bias);
            let most = y.iter().fold(T::neg_infinity(), |most, &y| if y > most { y } else { most });
            let mut sum = 0.0;
            for y in &mut *y {
                *y = (*y - most).exp();
                sum += y.f64();
            }
            let inverse = T::of(1.0 / sum);
            y.iter_mut().for_each(|y| *y *= inverse);
        }
    });
    Ok(())
}
