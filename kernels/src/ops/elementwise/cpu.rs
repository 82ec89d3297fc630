use super::Binary;
use crate::cpu::{parallel, partial, vectorised};
use crate::{Device, Element, Real, Result, Tensor};

pub fn binary<T: Real>(kind: Binary, y: &mut Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
    match kind {
        Binary::Add => zip(
            y,
            a,
            b,
            #[inline(always)]
            |a: T, b| a + b,
        ),
        Binary::Sub => zip(
            y,
            a,
            b,
            #[inline(always)]
            |a: T, b| a - b,
        ),
        Binary::Mul => zip(
            y,
            a,
            b,
            #[inline(always)]
            |a: T, b| a * b,
        ),
    }
}

fn zip<T: Real>(y: &mut Tensor, a: &Tensor, b: &Tensor, f: impl Fn(T, T) -> T + Copy + Sync + Send) -> Result<()> {
    let (a, b) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
    parallel::for_rows(y.as_mut_slice::<T>()?, 1, |at, y| {
        let n = y.len();
        let (a, b) = (&a[at..][..n], &b[at..][..n]);
        vectorised(
            // By value: what `f` captures must not look as if writing `y` could change it.
            #[inline(always)]
            move || (0..n).for_each(|i| y[i] = f(a[i], b[i])),
        )
    });
    Ok(())
}

pub fn convert<T: Element, U: Element>(x: &Tensor, f: impl Fn(T) -> U + Copy + Sync + Send) -> Result<Tensor> {
    let mut y = Tensor::empty(&Device::Cpu, U::DTYPE, x.shape())?;
    let x = x.as_slice::<T>()?;
    parallel::for_rows(y.as_mut_slice::<U>()?, 1, |at, y| {
        let x = &x[at..][..y.len()];
        vectorised(
            #[inline(always)]
            || y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x)),
        )
    });
    Ok(y)
}

pub fn scale<T: Real>(y: &mut Tensor, x: &Tensor, factor: f64) -> Result<()> {
    let factor = T::of(factor);
    zip(
        y,
        x,
        x,
        #[inline(always)]
        move |x: T, _| x * factor,
    )
}

pub fn add_assign<T: Real>(a: &mut Tensor, b: &Tensor) -> Result<()> {
    let b = b.as_slice::<T>()?;
    parallel::for_rows(a.as_mut_slice::<T>()?, 1, |at, a| {
        let b = &b[at..][..a.len()];
        vectorised(
            #[inline(always)]
            || a.iter_mut().zip(b).for_each(|(a, &b)| *a += b),
        )
    });
    Ok(())
}

pub fn add_row<T: Real>(y: &mut Tensor, x: &Tensor, bias: &Tensor) -> Result<()> {
    let width = x.shape().last_dim();
    let (x, bias) = (x.as_slice::<T>()?, partial::tile(bias.as_slice::<T>()?));
    parallel::for_rows(y.as_mut_slice::<T>()?, width, |row, y| {
        let x = &x[row * width..][..y.len()];
        vectorised(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_mut(bias.len()).zip(x.chunks(bias.len())) {
                    y.iter_mut().zip(x.iter().zip(&bias)).for_each(|(y, (&x, &b))| *y = x + b);
                }
            },
        )
    });
    Ok(())
}

/// In square tiles, so that both sides move by whole cache lines.
pub fn transpose<T: Real>(y: &mut Tensor, x: &Tensor, m: usize, n: usize) -> Result<()> {
    const TILE: usize = 32;
    let x = x.as_slice::<T>()?;
    parallel::for_blocks(y.as_mut_slice::<T>()?, m * n, m * TILE, 1, |item, at, rows| {
        let (x, first) = (&x[item * m * n..][..m * n], at / m.max(1));
        for column in (0..m).step_by(TILE) {
            for (j, row) in rows.chunks_mut(m).enumerate() {
                for i in column..(column + TILE).min(m) {
                    row[i] = x[i * n + first + j];
                }
            }
        }
    });
    Ok(())
}
