//! The factor by which GPTQ hands an error on.

use swara_kernels::cpu::parallel;

use crate::{Error, Result};

/// Columns that are taken at once, and rows: what is read for one of them is read for all.
const BLOCK: usize = 64;
const ROWS: usize = 8;

/// `U` upper triangular with `U^T U = H^-1`, in place of `h`, symmetric and positive definite `[n, n]`.
///
/// `H = R R^T` with `R` upper triangular, found from the last column to the first; then `U = R^-1`. There is no inverse of `H` on the
/// way, and half the rounding. What lies below the diagonal is left as it is. 2/3 n^3 multiplications and additions.
///
/// # Errors
/// A matrix that is not positive definite, or not finite.
pub(super) fn invert(h: &mut [f64], n: usize) -> Result<()> {
    cholesky(h, n)?;
    let mut tile = Vec::new();
    for first in (0..n).step_by(BLOCK) {
        let rows = BLOCK.min(n - first);
        tile.clear();
        tile.resize(rows * n, 0.0);
        let r = &*h;
        parallel::chunks(&mut tile, ROWS * n, |at, tile| inverse_rows(r, n, first + at * ROWS, tile));
        for (i, row) in tile.chunks_exact(n).enumerate().map(|(i, row)| (first + i, row)) {
            h[i * n + i..][..n - i].copy_from_slice(&row[i..]);
        }
    }
    Ok(())
}

/// Rows of `R^-1` from `first` on, into `rows`, which are zero.
fn inverse_rows(r: &[f64], n: usize, first: usize, rows: &mut [f64]) {
    for (i, row) in rows.chunks_exact_mut(n).enumerate() {
        row[first + i] = 1.0;
    }
    for k in first..n {
        let (diagonal, right) = (r[k * n + k], &r[k * n + k + 1..(k + 1) * n]);
        for row in rows.chunks_exact_mut(n).take(k - first + 1) {
            row[k] /= diagonal;
            let factor = row[k];
            subtract(&mut row[k + 1..], factor, right);
        }
    }
}

/// `R`, upper triangular, of `H = R R^T`.
fn cholesky(h: &mut [f64], n: usize) -> Result<()> {
    for start in (0..n).step_by(BLOCK).rev() {
        let end = (start + BLOCK).min(n);
        // What the columns that are done take from these.
        let done: Vec<f64> = (start..end).flat_map(|j| &h[j * n + end..(j + 1) * n]).copied().collect();
        parallel::for_rows(&mut h[..end * n], n, |_, rows| {
            for row in rows.chunks_exact_mut(n).filter(|_| end < n) {
                let (row, right) = row.split_at_mut(end);
                row[start..].iter_mut().zip(done.chunks_exact(n - end)).for_each(|(v, done)| *v -= dot(right, done));
            }
        });
        for j in (start..end).rev() {
            let right: f64 = h[j * n + j + 1..j * n + end].iter().map(|v| v * v).sum();
            let square = h[j * n + j] - right;
            if !square.is_finite() || square <= 0.0 {
                return Err(Error::Argument(format!("the moments of inputs are not positive definite: {square:e} in column {j} of {n}")));
            }
            h[j * n + j] = square.sqrt();
            for i in start..j {
                column(h, n, i, j, end);
            }
        }
        let corner: Vec<f64> = (start..end).flat_map(|j| &h[j * n + start..j * n + end]).copied().collect();
        let width = end - start;
        parallel::for_rows(&mut h[..start * n], n, |_, rows| {
            for row in rows.chunks_exact_mut(n) {
                let row = &mut row[start..end];
                for j in (0..width).rev() {
                    let corner = &corner[j * width..(j + 1) * width];
                    row[j] = (row[j] - dot(&row[j + 1..], &corner[j + 1..])) / corner[j];
                }
            }
        });
    }
    Ok(())
}

/// Element `j` of row `i`, above the diagonal of a block that ends at `end`.
fn column(h: &mut [f64], n: usize, i: usize, j: usize, end: usize) {
    let sum = dot(&h[i * n + j + 1..i * n + end], &h[j * n + j + 1..j * n + end]);
    h[i * n + j] = (h[i * n + j] - sum) / h[j * n + j];
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let (a, b) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.0.iter().zip(b.0) {
        (0..LANES).for_each(|i| sums[i] += a[i] * b[i]);
    }
    sums.iter().sum::<f64>() + a.1.iter().zip(b.1).map(|(a, b)| a * b).sum::<f64>()
}

/// `y -= factor x`
pub(super) fn subtract(y: &mut [f64], factor: f64, x: &[f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y -= factor * x);
}

#[cfg(test)]
mod tests {
    use swara_kernels::case::SplitMix;

    use super::*;

    #[test]
    fn the_factor_is_that_of_the_inverse() {
        for n in [1, 2, 7, 63, 64, 65, 200] {
            let mut rng = SplitMix(n as u64);
            let a: Vec<f64> = (0..n * n).map(|_| rng.uniform() - 0.5).collect();
            let element = |i: usize, j: usize| dot(&a[i * n..][..n], &a[j * n..][..n]) + if i == j { 0.1 } else { 0.0 };
            let h: Vec<f64> = (0..n * n).map(|at| element(at / n, at % n)).collect();
            let mut u = h.clone();
            invert(&mut u, n).unwrap();
            let upper = |i: usize, j: usize| if i <= j { u[i * n + j] } else { 0.0 };
            // U H U^T = 1
            let uh: Vec<f64> = (0..n * n).map(|at| (at / n..n).map(|k| upper(at / n, k) * h[k * n + at % n]).sum()).collect();
            let far = (0..n * n).map(|at| {
                let (i, j) = (at / n, at % n);
                let found: f64 = (j..n).map(|k| uh[i * n + k] * upper(j, k)).sum();
                (found - if i == j { 1.0 } else { 0.0 }).abs()
            });
            let far = far.fold(0.0, f64::max);
            assert!(far < 1e-10, "{n}: {far}");
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_an_error() {
        for mut h in [vec![1.0, 2.0, 2.0, 1.0], vec![f64::NAN, 0.0, 0.0, 1.0], vec![1.0, 0.0, 0.0, f64::INFINITY]] {
            assert!(invert(&mut h, 2).unwrap_err().to_string().contains("not positive definite"));
        }
        // A diagonal stays one, exactly.
        let mut h = vec![4.0, 0.0, 0.0, 0.25];
        invert(&mut h, 2).unwrap();
        assert_eq!(h, [0.5, 0.0, 0.0, 2.0]);
    }
}
