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
//!
//! [`reflect_backward`] adds up what came of a row: `dx[t] = dy[t + left] + dy[left - t] + dy[left + 2 (N - 1) - t]`, of which the second
//! is there for `1 <= t <= left` and the third for `N - right - 1 <= t <= N - 2`. [`concat()`] puts signals one behind the other.

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
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
    /// Rows of `x`, of what is reflected, and of `y`.
    rows: usize,
    reflected: usize,
    padded: usize,
}

impl Map {
    fn new(rows: usize, left: isize, right: isize) -> Result<Map> {
        let fail = || Error::argument(NAME, format!("{left} and {right} rows more than {rows}"));
        // With room for a reflection's `2 N`.
        let fits = |n: usize| i32::try_from(n).is_ok_and(|n| n < i32::MAX / 4);
        if ![rows, left.unsigned_abs(), right.unsigned_abs()].into_iter().all(fits) || (rows == 0 && (left > 0 || right > 0)) {
            return Err(fail());
        }
        if left.min(0) + right.min(0) + (rows as isize) < 0 {
            return Err(fail());
        }
        let padded = usize::try_from(rows as isize + left + right).map_err(|_| fail())?;
        Ok(Map { left, rows, reflected: rows.max(left.max(right).max(0) as usize + 1), padded })
    }

    /// Rows of `y` that row `t` of `x` becomes.
    fn targets(&self, t: usize) -> impl Iterator<Item = usize> {
        let (t, last, left) = (t as isize, self.reflected as isize - 1, self.left);
        let mirrored = (t > 0).then_some(left - t);
        let beyond = (t < last).then_some(left + 2 * last - t);
        let padded = self.padded;
        [Some(left + t), mirrored, beyond].into_iter().flatten().filter_map(move |u| usize::try_from(u).ok().filter(|&u| u < padded))
    }

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
    let map = Map::new(t, left, right)?;
    let mut y = Tensor::empty(&x.device(), x.dtype(), [batch, map.padded, channels])?;
    if y.elements() == 0 {
        return Ok(y);
    }
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::reflect::<T>(&mut y, x, &map))?,
        Device::Cuda(gpu) => cuda::reflect(&gpu, &mut y, x, &map)?,
    }
    Ok(y)
}

/// `dx [B, rows, C]` of [`reflect`] for `dy [B, rows + left + right, C]`.
///
/// # Errors
/// Those of [`reflect`]; a `dy` of another shape.
pub fn reflect_backward(dy: &Tensor, left: isize, right: isize, rows: usize) -> Result<Tensor> {
    let _span = span::op("pad.reflect_backward");
    let map = Map::new(rows, left, right)?;
    let &[batch, padded, channels] = &*dy.shape() else { return Err(Error::shape(NAME, "dy", "[batch, time, channels]", dy.shape())) };
    if padded != map.padded {
        return Err(Error::shape(NAME, "dy", format!("[_, {}, _]", map.padded), dy.shape()));
    }
    let mut dx = Tensor::empty(&dy.device(), dy.dtype(), [batch, rows, channels])?;
    if dx.elements() == 0 {
        return Ok(dx);
    }
    match dy.device() {
        Device::Cpu => dispatch_real!(NAME, dy.dtype(), T => cpu::reflect_backward::<T>(&mut dx, dy, &map))?,
        Device::Cuda(gpu) => cuda::reflect_backward(&gpu, &mut dx, dy, &map)?,
    }
    Ok(dx)
}

/// `[B, T1 + T2 + .., C]` of `[B, T1, C]`, `[B, T2, C]`, ..
///
/// # Errors
/// No parts; parts of different devices, types, batches or channels; extents that do not fit in 32 bits.
pub fn concat(parts: &[&Tensor]) -> Result<Tensor> {
    let _span = span::op("pad.concat");
    let first = parts.first().ok_or_else(|| Error::argument(NAME, "no parts"))?;
    let &[batch, _, channels] = &*first.shape() else {
        return Err(Error::shape(NAME, "part", "[batch, time, channels]", first.shape()));
    };
    let mut rows = 0usize;
    for part in parts {
        match *part.shape() {
            [b, t, c] if b == batch && c == channels => rows = rows.saturating_add(t),
            _ => return Err(Error::shape(NAME, "part", format!("[{batch}, _, {channels}]"), part.shape())),
        }
        check::alike(NAME, first, "part", part)?;
    }
    let mut y = Tensor::empty(&first.device(), first.dtype(), [batch, rows, channels])?;
    let mut at = 0;
    for part in parts.iter().filter(|part| part.elements() > 0) {
        match y.device() {
            Device::Cpu => dispatch_real!(NAME, y.dtype(), T => cpu::put::<T>(&mut y, part, at))?,
            Device::Cuda(gpu) => cuda::put(&gpu, &mut y, part, at)?,
        }
        at += part.shape()[1];
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_emulator, check_gradient, normal, tensor};

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
    fn gradients_match_differences() {
        for (left, right) in [(2, 3), (6, 6), (0, 0), (-2, 1), (3, -4), (0, -6), (9, 0), (2, 12)] {
            let backward = |i: &[Tensor], dy: &Tensor| Ok(vec![Some(reflect_backward(dy, left, right, i[0].shape()[1])?)]);
            check_gradient(&[normal([2, 7, 3], 1)], |i| reflect(&i[0], left, right), backward);
        }
        assert!(reflect_backward(&normal([2, 7, 3], 1), 1, 1, 6).is_err());
        assert!(reflect_backward(&normal([2, 7, 3], 1), isize::MIN, 1, 6).is_err());
    }

    #[test]
    fn parts_stand_one_behind_the_other() {
        let (a, b, c) = (normal([2, 3, 5], 1), normal([2, 0, 5], 2), normal([2, 4, 5], 3));
        let y = concat(&[&a, &b, &c]).unwrap();
        assert_eq!(*y.shape(), [2, 7, 5]);
        let back = |left, right| reflect(&y, left, right).unwrap().to_f64().unwrap();
        assert_eq!((back(0, -4), back(-3, 0)), (a.to_f64().unwrap(), c.to_f64().unwrap()));
        assert!(concat(&[]).is_err() && concat(&[&a, &normal([2, 3, 4], 1)]).is_err() && concat(&[&a, &normal([1, 3, 5], 1)]).is_err());
    }

    /// One more than a grid is high.
    #[test]
    fn items_are_as_many_as_one_likes() {
        const ITEMS: usize = 65_536;
        let x = Tensor::from_slice(&Device::open("emulator").unwrap(), &(0..ITEMS).map(|b| b as f32).collect::<Vec<_>>(), [ITEMS, 1, 1])
            .unwrap();
        let y = reflect(&x, 0, 0).unwrap().to_vec::<f32>().unwrap();
        assert!(y.iter().enumerate().all(|(b, &y)| y == b as f32));
    }

    #[test]
    fn the_emulator_computes_the_same() {
        check_emulator(&OP);
    }
}
