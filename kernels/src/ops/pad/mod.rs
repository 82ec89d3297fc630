//! A signal made longer by reflection at its ends, or cut there: `y[b, t, c] = x[b, r(t - left), c]`, with `r(p) = |p|` up to the last
//! row and `2 (N - 1) - p` beyond it.
//!
//! | tensor | shape                   |                                                                                               |
//! |--------|-------------------------|-----------------------------------------------------------------------------------------------|
//! | `x`    | `[B, T, C]`             | f32, bf16 or f16 on CUDA, f32 or f64 on the CPU                                               |
//! | `y`    | `[B, T + left + right, C]` | a negative amount cuts                                                                     |
//!
//! `N = T`, unless that is too short to be reflected: then rows of zeros are put after it, `N = max(left, right) + 1`, as the published
//! EnCodec does (`_pad1d` in `transformers`' modeling_encodec.py). Otherwise it is `torch.nn.functional.pad(mode="reflect")`.

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::{Device, Error, Result, Tensor, dispatch_real, span};

mod cases;
mod cpu;
mod cuda;

pub static SOURCE: Source = Source { path: "ops/pad/pad.cu", text: include_str!("pad.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "pad";

/// Where the rows of `y` come from.
struct Map {
    left: isize,
    /// Rows of `x`, and of what is reflected.
    rows: usize,
    reflected: usize,
}

impl Map {
    /// Row of `x`; None is zero.
    fn source(&self, t: usize) -> Option<usize> {
        let p = (t as isize - self.left).unsigned_abs();
        let last = self.reflected - 1;
        let p = if p > last { 2 * last - p } else { p };
        (p < self.rows).then_some(p)
    }
}

/// `x` with `left` and `right` more rows.
///
/// # Errors
/// Another number of axes; nothing to reflect; more cut than there is; extents that do not fit in 32 bits.
pub fn reflect(x: &Tensor, left: isize, right: isize) -> Result<Tensor> {
    let _span = span::op("pad.reflect");
    let &[batch, t, channels] = &*x.shape() else { return Err(Error::shape(NAME, "x", "[batch, time, channels]", x.shape())) };
    let fail = || Error::argument(NAME, format!("{left} and {right} rows more than {t}"));
    // With room for a reflection's `2 N`.
    let fits = |n: usize| i32::try_from(n).is_ok_and(|n| n < i32::MAX / 4);
    if ![t, left.unsigned_abs(), right.unsigned_abs()].into_iter().all(fits) || (t == 0 && (left > 0 || right > 0)) {
        return Err(fail());
    }
    let rows = usize::try_from(t as isize + left + right).map_err(|_| fail())?;
    if left.min(0) + right.min(0) + (t as isize) < 0 {
        return Err(fail());
    }
    let mut y = Tensor::empty(&x.device(), x.dtype(), [batch, rows, channels])?;
    if y.elements() == 0 {
        return Ok(y);
    }
    let map = Map { left, rows: t, reflected: t.max(left.max(right).max(0) as usize + 1) };
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::reflect::<T>(&mut y, x, &map))?,
        Device::Cuda(gpu) => cuda::reflect(&gpu, &mut y, x, &map)?,
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_emulator, tensor};

    fn padded(rows: &[f64], left: isize, right: isize) -> Vec<f64> {
        reflect(&tensor(rows, [1, rows.len(), 1]), left, right).unwrap().to_vec().unwrap()
    }

    #[test]
    fn ends_are_reflected_without_being_repeated() {
        assert_eq!(padded(&[1.0, 2.0, 3.0, 4.0], 2, 3), [3.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 2.0, 1.0]);
        assert_eq!(padded(&[1.0, 2.0, 3.0], 0, 0), [1.0, 2.0, 3.0]);
        assert_eq!(padded(&[1.0, 2.0, 3.0, 4.0], -1, -2), [2.0]);
        assert_eq!(padded(&[1.0, 2.0, 3.0, 4.0], -1, 1), [2.0, 3.0, 4.0, 3.0]);
    }

    /// As the published code does: [1, 2, 0, 0] is reflected, and what was put after it taken off again.
    #[test]
    fn a_signal_that_is_too_short_ends_in_zeros_first() {
        assert_eq!(padded(&[1.0, 2.0], 3, 0), [0.0, 0.0, 2.0, 1.0, 2.0]);
        assert_eq!(padded(&[1.0, 2.0], 1, 3), [2.0, 1.0, 2.0, 0.0, 0.0, 0.0]);
        assert_eq!(padded(&[1.0], 2, 2), [0.0, 0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn amounts_that_no_signal_has_are_errors() {
        let x = tensor(&[1.0; 4], [1, 4, 1]);
        for (left, right) in [(-3, -2), (-5, 0), (0, -5), (-5, 2), (isize::MAX, 1), (1, isize::MIN), (1 << 31, 0)] {
            assert!(reflect(&x, left, right).is_err(), "{left} {right}");
        }
        assert!(reflect(&tensor(&[], [1, 0, 2]), 1, 0).is_err());
        assert!(reflect(&tensor(&[1.0], [1, 1]), 1, 0).is_err());
        assert_eq!(*reflect(&tensor(&[], [0, 3, 2]), 1, 2).unwrap().shape(), [0, 6, 2]);
    }

    #[test]
    fn the_emulator_computes_the_same() {
        check_emulator(&OP);
    }
}
