use crate::{Device, Real, Result, Tensor};

pub fn statistics<T: Real>(x: &Tensor, codes: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
    let d = x.shape()[1];
    let mut counts = Tensor::zeros(&Device::Cpu, T::DTYPE, [k])?;
    let mut sums = Tensor::zeros(&Device::Cpu, T::DTYPE, [k, d])?;
    let (count, sum) = (counts.as_mut_slice::<T>()?, sums.as_mut_slice::<T>()?);
    let x = x.as_slice::<T>()?;
    for (i, &code) in codes.as_slice::<i32>()?.iter().enumerate() {
        let (row, code) = (&x[i * d..][..d], code as usize);
        count[code] += T::one();
        for (s, &v) in sum[code * d..][..d].iter_mut().zip(row) {
            *s += v;
        }
    }
    Ok((counts, sums))
}

pub fn embedding<T: Real>(usage: &Tensor, sum: &Tensor, epsilon: f64) -> Result<Tensor> {
    let d = sum.shape()[1];
    let mut out = sum.copy()?;
    for (row, &usage) in out.as_mut_slice::<T>()?.chunks_exact_mut(d.max(1)).zip(usage.as_slice::<T>()?) {
        let usage = usage.max(T::of(epsilon));
        row.iter_mut().for_each(|v| *v /= usage);
    }
    Ok(out)
}

pub fn replace_rows<T: Real>(sum: &mut Tensor, usage: &mut Tensor, rows: &[i32], samples: &Tensor, value: f64) -> Result<()> {
    let d = sum.shape()[1];
    let value = T::of(value);
    let (sum, usage) = (sum.as_mut_slice::<T>()?, usage.as_mut_slice::<T>()?);
    let samples = samples.as_slice::<T>()?;
    for (i, &row) in rows.iter().enumerate() {
        let (row, sample) = (row as usize, &samples[i * d..][..d]);
        usage[row] = value;
        for (s, &v) in sum[row * d..][..d].iter_mut().zip(sample) {
            *s = value * v;
        }
    }
    Ok(())
}
