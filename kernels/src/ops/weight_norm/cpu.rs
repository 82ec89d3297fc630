use super::Axis;
use crate::cpu::{parallel, partial, vectorised};
use crate::{Real, Result, Tensor};

/// Rows `(k, i)` of `cout` weights.
#[derive(Clone, Copy)]
struct Rows {
    cin: usize,
    cout: usize,
    axis: Axis,
}

impl Rows {
    fn of(v: &Tensor, axis: Axis) -> Rows {
        Rows { cin: v.shape()[1], cout: v.shape()[2], axis }
    }

    /// `<a, b>` over each slice that has one gain.
    fn dot<T: Real>(self, a: &[T], b: &[T]) -> Vec<f64> {
        let Rows { cin, cout, axis } = self;
        let width = if axis == Axis::Out { cout } else { cin };
        partial::sums(a.len(), cout, width, |start, end, sums| {
            vectorised(
                #[inline(always)]
                || {
                    for (r, (a, b)) in a[start..end].chunks(cout).zip(b[start..end].chunks(cout)).enumerate() {
                        match axis {
                            Axis::Out => sums.iter_mut().zip(a.iter().zip(b)).for_each(|(s, (a, b))| *s += a.f64() * b.f64()),
                            Axis::In => sums[(start / cout + r) % cin] += partial::sum_of(a, b, |a, b| a.f64() * b.f64()),
                        }
                    }
                },
            )
        })
    }

    /// `out = p a + q b`, with one `p` and `q` a slice.
    fn combine<T: Real>(self, out: &mut [T], (p, a): (&[T], &[T]), (q, b): (&[T], &[T])) {
        let Rows { cin, cout, axis } = self;
        parallel::for_rows(out, cout, |first, out| {
            vectorised(
                #[inline(always)]
                || {
                    let at = first * cout;
                    let (a, b) = (&a[at..][..out.len()], &b[at..][..out.len()]);
                    for (r, ((out, a), b)) in out.chunks_mut(cout).zip(a.chunks(cout)).zip(b.chunks(cout)).enumerate() {
                        match axis {
                            Axis::Out => (0..cout).for_each(|o| out[o] = p[o] * a[o] + q[o] * b[o]),
                            Axis::In => {
                                let i = (first + r) % cin;
                                (0..cout).for_each(|o| out[o] = p[i] * a[o] + q[i] * b[o]);
                            }
                        }
                    }
                },
            )
        });
    }
}

pub fn forward<T: Real>(w: &mut Tensor, v: &Tensor, g: &Tensor, axis: Axis) -> Result<()> {
    let rows = Rows::of(v, axis);
    let (v, g) = (v.as_slice::<T>()?, g.as_slice::<T>()?);
    let scale: Vec<T> = rows.dot(v, v).iter().zip(g).map(|(s, g)| T::of(g.f64() / s.sqrt())).collect();
    let zero = vec![T::zero(); scale.len()];
    rows.combine(w.as_mut_slice::<T>()?, (&scale, v), (&zero, v));
    Ok(())
}

pub fn backward<T: Real>(dv: &mut Tensor, dg: &mut Tensor, dw: &Tensor, v: &Tensor, g: &Tensor, axis: Axis) -> Result<()> {
    let rows = Rows::of(v, axis);
    let (dw, v, g) = (dw.as_slice::<T>()?, v.as_slice::<T>()?, g.as_slice::<T>()?);
    let (squares, products) = (rows.dot(v, v), rows.dot(dw, v));
    let dg = dg.as_mut_slice::<T>()?;
    let (mut along_dw, mut along_v) = (vec![T::zero(); g.len()], vec![T::zero(); g.len()]);
    for i in 0..g.len() {
        let norm = squares[i].sqrt();
        dg[i] = T::of(products[i] / norm);
        along_dw[i] = T::of(g[i].f64() / norm);
        along_v[i] = T::of(-g[i].f64() * products[i] / (squares[i] * norm));
    }
    rows.combine(dv.as_mut_slice::<T>()?, (&along_dw, dw), (&along_v, v));
    Ok(())
}
