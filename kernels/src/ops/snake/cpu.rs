use super::EPSILON;
use crate::cpu::{parallel, partial, vectorised};
use crate::tensor::Scratch;
use crate::{DType, Real, Result, Tensor};

/// What each channel needs, repeated over a few rows so that narrow tensors fill vector registers.
pub struct Coefficients<T> {
    channels: usize,
    tile: usize,
    /// Four rows of `tile`: see [`Lanes`].
    table: Scratch<T>,
}

/// The first lanes of a tile.
struct Lanes<'a, T> {
    /// `alpha / pi` in two parts: their sum is exact to twice the precision.
    turns: &'a [T],
    turns_low: &'a [T],
    alpha: &'a [T],
    /// `1 / (beta + 1e-9)`
    inverse: &'a [T],
}

/// Sums over rows, by channel, that both parameter gradients consist of.
pub struct Sums {
    /// `sum dy x sin(2 alpha x) / (beta + 1e-9)`
    pub frequency: Vec<f64>,
    /// `sum dy sin^2(alpha x) / (beta + 1e-9)^2`
    pub amplitude: Vec<f64>,
}

impl<T: Real> Coefficients<T> {
    /// For `y = x + sin^2(alpha x) / (alpha + 1e-9)`.
    pub fn new(alpha: &[T]) -> Self {
        Self::from_f64(alpha.iter().map(|a| (a.f64(), a.f64())))
    }

    /// For `y = x + sin^2(e^log_alpha x) / (e^log_beta + 1e-9)`.
    pub fn beta(log_alpha: &[T], log_beta: &[T]) -> Self {
        Self::from_f64(log_alpha.iter().zip(log_beta).map(|(a, b)| (a.f64().exp(), b.f64().exp())))
    }

    fn from_f64(pairs: impl ExactSizeIterator<Item = (f64, f64)>) -> Self {
        let channels = pairs.len();
        let tile = partial::tile_len(channels);
        let mut table = Scratch::<T>::new(4 * tile);
        for (c, (alpha, beta)) in pairs.enumerate() {
            let turns = alpha * std::f64::consts::FRAC_1_PI;
            let rounded = T::of(turns);
            for i in (c..tile).step_by(channels) {
                table[i] = rounded;
                table[tile + i] = T::of(turns - rounded.f64());
                table[2 * tile + i] = T::of(alpha);
                table[3 * tile + i] = T::of(1.0 / (beta + EPSILON));
            }
        }
        Coefficients { channels, tile, table }
    }

    #[inline(always)]
    fn lanes(&self, n: usize) -> Lanes<'_, T> {
        let table = &*self.table;
        let (turns, table) = table.split_at(self.tile);
        let (turns_low, table) = table.split_at(self.tile);
        let (alpha, inverse) = table.split_at(self.tile);
        Lanes { turns: &turns[..n], turns_low: &turns_low[..n], alpha: &alpha[..n], inverse: &inverse[..n] }
    }

    /// `out = snake(x)` for whole rows.
    pub fn apply(&self, out: &mut [T], x: &[T]) {
        vectorised(
            #[inline(always)]
            || {
                for (out, x) in out.chunks_mut(self.tile.max(1)).zip(x.chunks(self.tile.max(1))) {
                    let n = out.len();
                    let (x, lanes) = (&x[..n], self.lanes(n));
                    for i in 0..n {
                        let (sin, _) = lanes.sin_cos(i, x[i]);
                        out[i] = (sin * sin).mul_add(lanes.inverse[i], x[i]);
                    }
                }
            },
        );
    }

    /// `dx` for whole rows; adds to `sums`: frequency of every channel, then amplitude of every channel.
    fn apply_backward(&self, dx: &mut [T], dy: &[T], x: &[T], sums: &mut [f64]) {
        let tile = self.tile;
        let mut frequency = vec![T::zero(); tile];
        let mut amplitude = vec![T::zero(); tile];
        vectorised(
            #[inline(always)]
            || {
                for ((dx, dy), x) in dx.chunks_mut(tile).zip(dy.chunks(tile)).zip(x.chunks(tile)) {
                    let n = dx.len();
                    let (dy, x, lanes) = (&dy[..n], &x[..n], self.lanes(n));
                    let (frequency, amplitude) = (&mut frequency[..n], &mut amplitude[..n]);
                    for i in 0..n {
                        let (sin, cos) = lanes.sin_cos(i, x[i]);
                        let double = (sin + sin) * cos * lanes.inverse[i];
                        let scaled = sin * lanes.inverse[i];
                        dx[i] = dy[i] * double.mul_add(lanes.alpha[i], T::one());
                        frequency[i] += dy[i] * (x[i] * double);
                        amplitude[i] += dy[i] * (scaled * scaled);
                    }
                }
            },
        );
        let (f, a) = sums.split_at_mut(self.channels);
        partial::fold(f, &frequency);
        partial::fold(a, &amplitude);
    }
}

impl<T: Real> Lanes<'_, T> {
    /// Sine and cosine of `alpha x` in lane `i`, up to a common sign.
    #[inline(always)]
    fn sin_cos(&self, i: usize, x: T) -> (T, T) {
        if T::DTYPE == DType::F32 { half_turn(x, self.turns[i], self.turns_low[i]) } else { (self.alpha[i] * x).sin_cos() }
    }
}

/// Sine and cosine of `pi t` for `t = x (turns + low)`, up to a common sign, which squares and products do not see.
///
/// `t` is reduced to half a turn around zero before anything is rounded away, so the error does not grow with `x`: below
/// 2^-23 for |t| up to 2^22. Polynomials are minimax on the half turn (relative 5e-9 and absolute 5e-8).
#[inline(always)]
fn half_turn<T: Real>(x: T, turns: T, low: T) -> (T, T) {
    let t = x * turns;
    let rest = x.mul_add(low, x.mul_add(turns, -t));
    let r = (t - (t + T::of(0.5)).floor()) + rest;
    let u = r * r;
    let p = |c: [f64; 5]| {
        c[..4].iter().rev().fold(
            T::of(c[4]),
            #[inline(always)]
            |sum, &c| sum.mul_add(u, T::of(c)),
        )
    };
    let sin = r * p([3.1415926369, -5.1677096848, 2.55006972633, -0.598242126342, 0.0775603867908]);
    let cos = p([0.999999953467, -4.93479285868, 4.0584119142, -1.33188016148, 0.219696799123]);
    (sin, cos)
}

pub fn forward<T: Real>(y: &mut Tensor, x: &Tensor, coefficients: &Coefficients<T>) -> Result<()> {
    let (x, width) = (x.as_slice::<T>()?, x.shape().last_dim());
    parallel::for_rows(y.as_mut_slice::<T>()?, width, |row, y| {
        coefficients.apply(y, &x[row * width..][..y.len()]);
    });
    Ok(())
}

pub fn backward<T: Real>(dx: &mut Tensor, dy: &Tensor, x: &Tensor, coefficients: &Coefficients<T>) -> Result<Sums> {
    let (dy, x) = (dy.as_slice::<T>()?, x.as_slice::<T>()?);
    let mut sums = partial::map_sums(dx.as_mut_slice::<T>()?, coefficients.tile, 2 * coefficients.channels, |at, dx, sums| {
        let n = dx.len();
        coefficients.apply_backward(dx, &dy[at..][..n], &x[at..][..n], sums);
    });
    let amplitude = sums.split_off(coefficients.channels);
    Ok(Sums { frequency: sums, amplitude })
}
