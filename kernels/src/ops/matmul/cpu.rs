use super::{Extents, Transpose};
use crate::cpu::gemm::{Gather, Packed, Panels, Start, gemm};
use crate::cpu::parallel;
use crate::ops::conv1d::cpu::transpose_taps;
use crate::{Real, Result, Tensor};

pub(super) fn forward<T: Real>(c: &mut Tensor, a: &Tensor, b: &Tensor, transpose: Transpose, e: &Extents) -> Result<()> {
    let &Extents { m, n, k } = e;
    let (a, b) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
    let turned = transpose.b.then(|| transpose_taps(b, 1, n, k, |_| 0));
    let b = turned.as_deref().unwrap_or(b);
    let in_place = if m < 16 { Panels::in_place(b, k, n) } else { None };
    let packed = in_place.is_none().then(|| Packed::new(b, k, n, n));
    let c = c.as_mut_slice::<T>()?;
    if k == 0 {
        c.fill(T::zero());
        return Ok(());
    }
    // All of C is one item; blocks of rows of it are independent.
    parallel::for_blocks(c, m * n, 48 * n, (k / 16).max(1), |_, first, c| {
        let i = first / n;
        let (data, row_stride, column_stride) = if transpose.a { (&a[i..], 1, m) } else { (&a[i * k..], k, 1) };
        let rows = Gather { data, row_stride, taps: 1, tap_stride: 0, width: k, column_stride };
        let Some(panels) = in_place.or_else(|| packed.as_ref().map(Packed::panels)) else { return };
        gemm(c, n, c.len() / n, rows, panels, Start::Zero);
    });
    Ok(())
}
