use super::{Codes, Ids, NONE, Tables};
use crate::cpu::parallel;
use crate::{Element, Real, Result, Tensor};

/// The rows of the packed tables that a row of ids names, in order. Ids were checked; -1 names none.
fn named<'a>(tables: &'a Tables, starts: &'a [i32], ids: &'a [i32]) -> impl Iterator<Item = usize> + 'a {
    let pairs = starts.iter().zip(ids).take(tables.sizes.len());
    pairs.filter(|(_, id)| **id >= 0).map(|(&start, &id)| start as usize + id as usize)
}

pub fn forward<W: Element, T: Real + From<W>>(
    y: &mut Tensor,
    weight: &Tensor,
    tables: &Tables,
    (ids, first): Ids,
    onto: Option<(&Tensor, usize)>,
) -> Result<()> {
    let (dim, weight) = (y.shape()[1], weight.as_slice::<W>()?);
    let add = |y: &mut [T], row: usize| y.iter_mut().zip(&weight[row * dim..]).for_each(|(y, &w)| *y += <T as From<W>>::from(w));
    sums(y, tables, (ids, first), onto, add)
}

pub fn forward_codes<T: Real>(
    y: &mut Tensor,
    (codes, scales): Codes,
    tables: &Tables,
    ids: Ids,
    onto: Option<(&Tensor, usize)>,
) -> Result<()> {
    let (dim, codes, scales) = (y.shape()[1], codes.as_slice::<u8>()?, scales.as_slice::<f32>()?);
    let add = |y: &mut [T], row: usize| {
        let scale = T::of(scales[row].into());
        y.iter_mut().zip(&codes[row * dim..]).for_each(|(y, &code)| *y += T::of((code as i8).into()) * scale);
    };
    sums(y, tables, ids, onto, add)
}

/// Each row of `y` from `onto`, and `add` for every row of the tables that it names.
fn sums<T: Real>(
    y: &mut Tensor,
    tables: &Tables,
    (ids, first): Ids,
    onto: Option<(&Tensor, usize)>,
    add: impl Fn(&mut [T], usize) + Sync + Send,
) -> Result<()> {
    let (dim, width) = (y.shape()[1], ids.shape()[1]);
    let (starts, ids) = (tables.starts.as_slice::<i32>()?, ids.as_slice::<i32>()?);
    let onto = onto.map(|(onto, slot)| Ok((onto.as_slice::<T>()?, onto.shape()[1], slot))).transpose()?;
    parallel::for_rows(y.as_mut_slice::<T>()?, dim, |at, y| {
        for (b, y) in (at..).zip(y.chunks_exact_mut(dim)) {
            match onto {
                Some((onto, slots, slot)) => y.copy_from_slice(&onto[(b * slots + slot) * dim..][..dim]),
                None => y.fill(T::zero()),
            }
            for row in named(tables, starts, &ids[b * width + first..]) {
                add(y, row);
            }
        }
    });
    Ok(())
}

pub fn split(out: &mut Tensor, ids: &Tensor, size: i32) -> Result<()> {
    let width = ids.shape()[1];
    for (out, ids) in out.as_mut_slice::<i32>()?.chunks_exact_mut(1 + width).zip(ids.as_slice::<i32>()?.chunks_exact(width)) {
        let id = ids[0];
        (out[0], out[1]) = if id < 0 { (id, NONE) } else { (id % size, id / size - 1) };
        out[2..].copy_from_slice(&ids[1..]);
    }
    Ok(())
}

/// On one thread: rows are shared.
pub fn backward<T: Real>(gradient: &mut Tensor, tables: &Tables, dy: &Tensor, (ids, first): Ids) -> Result<()> {
    let (dim, width) = (dy.shape()[1], ids.shape()[1]);
    let (starts, ids, gradient) = (tables.starts.as_slice::<i32>()?, ids.as_slice::<i32>()?, gradient.as_mut_slice::<T>()?);
    for (ids, dy) in ids.chunks_exact(width).zip(dy.as_slice::<T>()?.chunks_exact(dim.max(1))) {
        for row in named(tables, starts, &ids[first..]) {
            gradient[row * dim..][..dim].iter_mut().zip(dy).for_each(|(g, &d)| *g += d);
        }
    }
    Ok(())
}
