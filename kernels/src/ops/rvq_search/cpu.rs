//! Lanes are codewords, the inner loop runs over dimensions: the same chain of fused multiply-adds per distance as on CUDA,
//! so both devices find the same code bit for bit.

use super::Metric;
use crate::cpu::{parallel, vectorised};
use crate::tensor::Scratch;
use crate::{DType, Device, Real, Result, Tensor};

/// Codewords side by side in one panel: two of the widest vectors. The compiler vectorises this, but not one.
const LANES: usize = 32;
/// Rows that share one pass over a panel.
const ROWS: usize = 4;
/// Multiply-adds below which a second thread costs more than it saves.
const GRAIN: usize = 1 << 18;

pub fn nearest<T: Real>(x: &Tensor, codebook: &Tensor, metric: Metric) -> Result<Tensor> {
    let (n, d) = (x.shape()[0], x.shape()[1]);
    let mut codes = Tensor::empty(&Device::Cpu, DType::I32, [n])?;
    match metric {
        Metric::Euclidean => {
            let panels = pack::<T>(codebook)?;
            assign::<T, false>(x.as_slice()?, d, panels.as_slice()?, codes.as_mut_slice()?);
        }
        Metric::Cosine => {
            let panels = pack::<T>(&normalise::<T>(codebook)?)?;
            assign::<T, true>(normalise::<T>(x)?.as_slice()?, d, panels.as_slice()?, codes.as_mut_slice()?);
        }
    }
    Ok(codes)
}

pub fn nearest_column<T: Real>(x: &Tensor, codebook: &Tensor, metric: Metric, codes: &mut Tensor, column: usize) -> Result<()> {
    let (found, stride) = (nearest::<T>(x, codebook, metric)?, codes.shape()[1]);
    for (row, &code) in codes.as_mut_slice::<i32>()?.chunks_exact_mut(stride).zip(found.as_slice::<i32>()?) {
        row[column] = code;
    }
    Ok(())
}

/// Subtracts each row's codeword in place; `codes[i * stride]` is the code of row `i`.
pub fn subtract<T: Real>(residual: &mut Tensor, codebook: &Tensor, codes: &[i32]) -> Result<()> {
    let d = codebook.shape()[1];
    let book: &[T] = codebook.as_slice()?;
    for (row, &code) in residual.as_mut_slice::<T>()?.chunks_exact_mut(d).zip(codes) {
        for (r, &c) in row.iter_mut().zip(&book[code as usize * d..][..d]) {
            *r -= c;
        }
    }
    Ok(())
}

/// Fills column `first` of `codes`, and those after it, for each of the packed codebooks that `books` yields; returns what is
/// left of `x`.
pub fn search<T: Real>(
    x: &Tensor,
    books: impl Iterator<Item = Result<impl std::borrow::Borrow<Tensor>>>,
    codes: &mut Tensor,
    first: usize,
) -> Result<Tensor> {
    let (n, d) = (x.shape()[0], x.shape()[1]);
    let stride = codes.shape()[1];
    let mut residual = x.copy()?;
    let mut found = Tensor::empty(&Device::Cpu, DType::I32, [n])?;
    for (s, panels) in books.enumerate() {
        let panels = panels?;
        let panels = panels.borrow().as_slice::<T>()?;
        let found = found.as_mut_slice::<i32>()?;
        assign::<T, false>(residual.as_slice()?, d, panels, found);
        let rows = residual.as_mut_slice::<T>()?.chunks_exact_mut(d).zip(codes.as_mut_slice::<i32>()?.chunks_exact_mut(stride));
        for ((row, codes), &code) in rows.zip(&*found) {
            codes[first + s] = code;
            row.iter_mut().zip(codeword(panels, d, code)).for_each(|(r, &c)| *r -= c);
        }
    }
    Ok(residual)
}

/// A codeword of packed panels.
fn codeword<T>(panels: &[T], d: usize, code: i32) -> impl Iterator<Item = &T> {
    let (panel, lane) = (code as usize / LANES, code as usize % LANES);
    panels[panel * d * LANES..][..d * LANES].iter().skip(lane).step_by(LANES)
}

/// Takes a codeword of packed panels from each row.
pub fn subtract_packed<T: Real>(x: &mut Tensor, panels: &Tensor, codes: &[i32]) -> Result<()> {
    let (d, panels) = (x.shape()[1], panels.as_slice::<T>()?);
    for (row, &code) in x.as_mut_slice::<T>()?.chunks_exact_mut(d).zip(codes) {
        row.iter_mut().zip(codeword(panels, d, code)).for_each(|(r, &c)| *r -= c);
    }
    Ok(())
}

/// Of the rows of `x` to all `k` codewords of packed panels.
pub fn distances_to<T: Real>(x: &Tensor, panels: &Tensor, k: usize) -> Result<Tensor> {
    let (n, d) = (x.shape()[0], x.shape()[1]);
    let mut out = Tensor::empty(&Device::Cpu, T::DTYPE, [n, k])?;
    let (x, panels) = (x.as_slice::<T>()?, panels.as_slice::<T>()?);
    parallel::chunks(out.as_mut_slice::<T>()?, ROWS * k, |i, out| {
        vectorised(
            #[inline(always)]
            || {
                for (row, out) in out.chunks_exact_mut(k).enumerate() {
                    let row = &x[(i * ROWS + row) * d..][..d];
                    for (panel, out) in panels.chunks_exact(d * LANES).zip(out.chunks_mut(LANES)) {
                        let [score] = distances::<T, false, 1>(&[row], panel.as_chunks::<LANES>().0);
                        out.copy_from_slice(&score[..out.len()]);
                    }
                }
            },
        )
    });
    Ok(out)
}

/// Of column `first` of `codes` and those after it, one for each of the packed `books`; a code below 0 adds nothing.
pub fn decode_packed<T: Real>(codes: &Tensor, first: usize, books: &[Tensor], d: usize) -> Result<Tensor> {
    let mut out = Tensor::zeros(&Device::Cpu, T::DTYPE, [codes.shape()[0], d])?;
    let rows = codes.as_slice::<i32>()?.chunks_exact(codes.shape()[1]);
    for (row, codes) in out.as_mut_slice::<T>()?.chunks_exact_mut(d).zip(rows) {
        for (book, &code) in books.iter().zip(&codes[first..]) {
            if code >= 0 {
                row.iter_mut().zip(codeword(book.as_slice::<T>()?, d, code)).for_each(|(y, &c)| *y += c);
            }
        }
    }
    Ok(out)
}

pub fn decode<T: Real>(codes: &Tensor, codebooks: &[&Tensor]) -> Result<Tensor> {
    let (n, d) = (codes.shape()[0], codebooks[0].shape()[1]);
    let mut out = Tensor::zeros(&Device::Cpu, T::DTYPE, [n, d])?;
    let rows = codes.as_slice::<i32>()?.chunks_exact(codes.shape()[1]);
    for (row, codes) in out.as_mut_slice::<T>()?.chunks_exact_mut(d).zip(rows) {
        for (book, &code) in codebooks.iter().zip(codes) {
            for (y, &c) in row.iter_mut().zip(&book.as_slice::<T>()?[code as usize * d..][..d]) {
                *y += c;
            }
        }
    }
    Ok(out)
}

pub fn margin<T: Real>(x: &Tensor, codebook: &Tensor, metric: Metric) -> Result<Tensor> {
    let (n, d) = (x.shape()[0], x.shape()[1]);
    let (x, codebook) = match metric {
        Metric::Euclidean => (x.copy()?, codebook.copy()?),
        Metric::Cosine => (normalise::<T>(x)?, normalise::<T>(codebook)?),
    };
    let mut margins = Tensor::empty(&Device::Cpu, T::DTYPE, [n])?;
    let rows = x.as_slice::<T>()?.chunks_exact(d);
    for (margin, row) in margins.as_mut_slice::<T>()?.iter_mut().zip(rows) {
        let (mut best, mut second) = (T::infinity(), T::infinity());
        for c in codebook.as_slice::<T>()?.chunks_exact(d) {
            let score = match metric {
                Metric::Euclidean => row.iter().zip(c).map(|(&a, &b)| (a - b) * (a - b)).sum::<T>(),
                Metric::Cosine => T::one() - row.iter().zip(c).map(|(&a, &b)| a * b).sum::<T>(),
            };
            if score < best {
                second = best;
                best = score;
            } else if score < second {
                second = score;
            }
        }
        *margin = match metric {
            _ if !second.is_finite() => T::infinity(),
            Metric::Cosine => second - best,
            Metric::Euclidean if second > T::zero() => (second - best) / second,
            Metric::Euclidean => T::zero(),
        };
    }
    Ok(margins)
}

/// Rows divided by `max(|row|, 1e-12)`.
fn normalise<T: Real>(x: &Tensor) -> Result<Tensor> {
    let mut out = x.copy()?;
    for row in out.as_mut_slice::<T>()?.chunks_exact_mut(x.shape()[1]) {
        let norm = row.iter().fold(T::zero(), |sum, &v| v.mul_add(v, sum)).sqrt().max(T::of(super::COSINE_EPSILON));
        row.iter_mut().for_each(|v| *v /= norm);
    }
    Ok(out)
}

/// `[K, D]` as panels `[K / LANES, D, LANES]`. Padding is NaN, whose distance is never the least.
pub fn pack<T: Real>(codebook: &Tensor) -> Result<Tensor> {
    let (k, d) = (codebook.shape()[0], codebook.shape()[1]);
    let mut panels = Tensor::empty(&Device::Cpu, T::DTYPE, [k.div_ceil(LANES), d, LANES])?;
    let book: &[T] = codebook.as_slice()?;
    for (p, panel) in panels.as_mut_slice::<T>()?.chunks_exact_mut(d * LANES).enumerate() {
        let codewords = &book[p * LANES * d..((p + 1) * LANES).min(k) * d];
        if codewords.len() < panel.len() {
            panel.fill(T::nan());
        }
        for (lane, codeword) in codewords.chunks_exact(d).enumerate() {
            for (slot, &c) in panel[lane..].iter_mut().step_by(LANES).zip(codeword) {
                *slot = c;
            }
        }
    }
    Ok(panels)
}

/// A score and the codeword that has it. Of equal scores the first codeword wins, as nothing is below infinity.
type Found<T> = (T, i32);

fn better<T: Real>(a: Found<T>, b: Found<T>) -> Found<T> {
    if b.0 < a.0 || (b.0 == a.0 && b.1 < a.1) { b } else { a }
}

fn assign<T: Real, const COSINE: bool>(x: &[T], d: usize, panels: &[T], codes: &mut [i32]) {
    let rows = codes.len();
    // Several parts a thread, so that a late thread does not hold up the rest: rows, or panels if rows are few.
    let parts = if rows * panels.len() < GRAIN { 1 } else { 4 * rayon::current_num_threads() };
    if parts == 1 || rows >= parts * ROWS {
        let run = rows.div_ceil(parts).next_multiple_of(ROWS);
        return parallel::chunks(codes, run, |i, codes| {
            let rows = &x[i * run * d..][..codes.len() * d];
            scan_rows::<T, COSINE>(rows, d, panels, 0, |row, found| codes[row] = found.1);
        });
    }
    let run = (panels.len() / (d * LANES)).div_ceil(parts);
    let parts = panels.chunks(run * d * LANES);
    // Scores and codewords of the rows, part after part.
    let mut scores = Scratch::<T>::new(parts.len() * rows);
    let mut found = Scratch::<i32>::new(parts.len() * rows);
    parallel::chunks_of_two((&mut scores, &mut found), rows, |i, scores, found| {
        let panels = &panels[i * run * d * LANES..];
        let panels = &panels[..panels.len().min(run * d * LANES)];
        scan_rows::<T, COSINE>(x, d, panels, i * run, |row, best| (scores[row], found[row]) = best);
    });
    for (row, code) in codes.iter_mut().enumerate() {
        let of_row = scores.iter().zip(&*found).skip(row).step_by(rows);
        *code = of_row.fold((T::infinity(), 0), |a, (&score, &code)| better(a, (score, code))).1;
    }
}

/// `keep(i, what is found for row i of x)`, where `panels` are those from number `first` on.
fn scan_rows<T: Real, const COSINE: bool>(x: &[T], d: usize, panels: &[T], first: usize, mut keep: impl FnMut(usize, Found<T>)) {
    vectorised(
        #[inline(always)]
        || {
            let rows = x.len() / d;
            let blocks = rows / ROWS * ROWS;
            for row in (0..blocks).step_by(ROWS) {
                let found = scan::<T, COSINE, ROWS>(&x[row * d..], d, panels, first);
                found.into_iter().enumerate().for_each(|(m, found)| keep(row + m, found));
            }
            for row in blocks..rows {
                let [found] = scan::<T, COSINE, 1>(&x[row * d..], d, panels, first);
                keep(row, found);
            }
        },
    )
}

/// The best of `panels`, which begin with number `first`, for `M` rows of `x`. A row of NaN, which is near nothing, finds code 0.
#[inline(always)]
fn scan<T: Real, const COSINE: bool, const M: usize>(x: &[T], d: usize, panels: &[T], first: usize) -> [Found<T>; M] {
    let rows: [&[T]; M] = std::array::from_fn(|m| &x[m * d..][..d]);
    let mut best = [[T::infinity(); LANES]; M];
    let mut at = [[0i32; LANES]; M];
    for (p, panel) in panels.chunks_exact(d * LANES).enumerate() {
        let score = distances::<T, COSINE, M>(&rows, panel.as_chunks::<LANES>().0);
        for m in 0..M {
            for ((best, at), &score) in best[m].iter_mut().zip(&mut at[m]).zip(&score[m]) {
                let better = score < *best;
                *best = if better { score } else { *best };
                *at = if better { (first + p) as i32 } else { *at };
            }
        }
    }
    std::array::from_fn(|m| {
        let lanes = best[m].iter().zip(&at[m]).enumerate();
        lanes.fold((T::infinity(), 0), |found, (l, (&score, &at))| better(found, (score, at * LANES as i32 + l as i32)))
    })
}

/// Squared distances of `M` rows to the codewords of a panel, or their cosines, negated.
#[inline(always)]
fn distances<T: Real, const COSINE: bool, const M: usize>(rows: &[&[T]; M], panel: &[[T; LANES]]) -> [[T; LANES]; M] {
    let mut score = [[T::zero(); LANES]; M];
    for (j, c) in panel.iter().enumerate() {
        for (score, row) in score.iter_mut().zip(rows) {
            let v = row[j];
            for (score, &c) in score.iter_mut().zip(c) {
                *score = if COSINE {
                    (-v).mul_add(c, *score)
                } else {
                    let difference = v - c;
                    difference.mul_add(difference, *score)
                };
            }
        }
    }
    score
}
