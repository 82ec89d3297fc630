//! Lanes are codewords, the inner loop runs over dimensions: the same chain of fused multiply-adds per distance as on CUDA,
//! so both devices find the same code bit for bit.

use rayon::prelude::*;

use super::Metric;
use crate::cpu::vectorised;
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

pub fn search<T: Real>(x: &Tensor, codebooks: &[&Tensor]) -> Result<(Tensor, Tensor)> {
    let n = x.shape()[0];
    let mut residual = x.copy()?;
    let mut codes = Tensor::empty(&Device::Cpu, DType::I32, [n, codebooks.len()])?;
    for (s, codebook) in codebooks.iter().enumerate() {
        let found = nearest::<T>(&residual, codebook, Metric::Euclidean)?;
        subtract::<T>(&mut residual, codebook, found.as_slice()?)?;
        for (row, &code) in codes.as_mut_slice::<i32>()?.chunks_exact_mut(codebooks.len()).zip(found.as_slice::<i32>()?) {
            row[s] = code;
        }
    }
    Ok((codes, residual))
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
fn pack<T: Real>(codebook: &Tensor) -> Result<Tensor> {
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

fn assign<T: Real, const COSINE: bool>(x: &[T], d: usize, panels: &[T], codes: &mut [i32]) {
    let run = |first: usize, codes: &mut [i32]| {
        vectorised(
            #[inline(always)]
            || {
                let (blocks, rest) = codes.as_chunks_mut::<ROWS>();
                let done = first + blocks.len() * ROWS;
                for (i, codes) in blocks.iter_mut().enumerate() {
                    *codes = scan::<T, COSINE, ROWS>(&x[(first + i * ROWS) * d..], d, panels);
                }
                for (i, code) in rest.iter_mut().enumerate() {
                    [*code] = scan::<T, COSINE, 1>(&x[(done + i) * d..], d, panels);
                }
            },
        )
    };
    if codes.len() * panels.len() < GRAIN || codes.len() < 2 * ROWS {
        return run(0, codes);
    }
    // Several runs a thread, so that a late thread does not hold up the rest.
    let rows = codes.len().div_ceil(4 * rayon::current_num_threads()).next_multiple_of(ROWS);
    codes.par_chunks_mut(rows).enumerate().for_each(|(i, codes)| run(i * rows, codes));
}

/// Codes of `M` rows of `x`. A row of NaN, which is near nothing, gets code 0.
#[inline(always)]
fn scan<T: Real, const COSINE: bool, const M: usize>(x: &[T], d: usize, panels: &[T]) -> [i32; M] {
    let rows: [&[T]; M] = std::array::from_fn(|m| &x[m * d..][..d]);
    let mut best = [[T::infinity(); LANES]; M];
    let mut at = [[0i32; LANES]; M];
    for (p, panel) in panels.chunks_exact(d * LANES).enumerate() {
        let score = distances::<T, COSINE, M>(&rows, panel.as_chunks::<LANES>().0);
        for m in 0..M {
            for ((best, at), &score) in best[m].iter_mut().zip(&mut at[m]).zip(&score[m]) {
                let better = score < *best;
                *best = if better { score } else { *best };
                *at = if better { p as i32 } else { *at };
            }
        }
    }
    let mut codes = [0; M];
    for m in 0..M {
        let mut winner = (T::infinity(), 0);
        for l in 0..LANES {
            let candidate = (best[m][l], at[m][l] * LANES as i32 + l as i32);
            let ties_earlier = candidate.0 == winner.0 && candidate.1 < winner.1;
            if candidate.0 < winner.0 || ties_earlier {
                winner = candidate;
            }
        }
        codes[m] = winner.1;
    }
    codes
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
