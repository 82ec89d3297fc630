use super::{Extents, Transpose};
use crate::cpu::gemm::{Gather, Packed, Panels, Start, product};
use crate::ops::conv1d::cpu::transpose_taps;
use crate::{Real, Result, Tensor};

pub(super) fn forward<T: Real>(c: &mut Tensor, a: &Tensor, b: &Tensor, transpose: Transpose, e: &Extents) -> Result<()> {
    let &Extents { m, n, k } = e;
    let (a, b) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
    let turned = transpose.b.then(|| transpose_taps(b, 1, n, k, |_| 0));
    let b = turned.as_deref().unwrap_or(b);
    let in_place = if m < 16 { Panels::in_place(b, k, n) } else { None };
    let packed;
    let panels = match in_place {
        Some(panels) => panels,
        None => {
            packed = Packed::new(b, k, n, n)?;
            packed.panels()?
        }
    };
    let c = c.as_mut_slice::<T>()?;
    if k == 0 {
        c.fill(T::zero());
        return Ok(());
    }
    let (row_stride, column_stride) = if transpose.a { (1, m) } else { (k, 1) };
    let rows = Gather { data: a, row_stride, taps: 1, tap_stride: 0, width: k, column_stride };
    product(c, m, rows, panels, Start::Zero, |_, _, _| {});
    Ok(())
}
