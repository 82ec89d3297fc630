//! What keeps codebooks in balance (ERVQ, arXiv 2410.12359), from the description in the paper: there is no published code. On the host, in
//! f64; nothing of it remains in a trained codec.

use super::Draws;

/// Rows `[N, D]`.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub values: &'a [f64],
    pub width: usize,
}

impl<'a> Rows<'a> {
    pub fn iter(self) -> std::slice::ChunksExact<'a, f64> {
        self.values.chunks_exact(self.width.max(1))
    }

    pub fn row(self, i: usize) -> &'a [f64] {
        &self.values[i * self.width..][..self.width]
    }
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// In place: softmax.
fn softmax(scores: &mut [f64]) {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    scores.iter_mut().for_each(|s| *s = (*s - most).exp());
    let sum: f64 = scores.iter().sum();
    scores.iter_mut().for_each(|s| *s /= sum);
}

/// Smallest probability of a codeword whose logarithm is taken.
const LEAST: f64 = 1e-30;

/// `KL(u || p)` of the uniform distribution u and the mean p over rows x of `softmax_k(-|x - c_k|^2 / t)`, and its gradient with respect to
/// x. The temperature t is the mean squared distance and has no gradient.
pub fn balance(x: Rows, words: Rows) -> (f64, Vec<f64>) {
    balance_at(x, words, temperature(x, words))
}

fn temperature(x: Rows, words: Rows) -> f64 {
    let (rows, size) = (x.iter().len(), words.iter().len());
    let sum: f64 = x.iter().map(|x| words.iter().map(|c| distance(x, c)).sum::<f64>()).sum();
    (sum / (rows * size).max(1) as f64).max(f64::MIN_POSITIVE)
}

fn balance_at(x: Rows, words: Rows, temperature: f64) -> (f64, Vec<f64>) {
    let (rows, size) = (x.iter().len(), words.iter().len());
    let mut shares = Vec::with_capacity(rows * size);
    let mut mean = vec![0.0; size];
    for x in x.iter() {
        let start = shares.len();
        shares.extend(words.iter().map(|c| -distance(x, c) / temperature));
        softmax(&mut shares[start..]);
        mean.iter_mut().zip(&shares[start..]).for_each(|(mean, p)| *mean += p / rows as f64);
    }
    let u = 1.0 / size as f64;
    let loss = mean.iter().map(|p| u * (u / p.max(LEAST)).ln()).sum();
    let slope: Vec<f64> = mean.iter().map(|p| -u / p.max(LEAST)).collect();
    let mut gradient = vec![0.0; x.values.len()];
    for (gradient, p) in gradient.chunks_exact_mut(x.width.max(1)).zip(shares.chunks_exact(size)) {
        let expected: f64 = p.iter().zip(&slope).map(|(p, s)| p * s).sum();
        for ((p, slope), word) in p.iter().zip(&slope).zip(words.iter()) {
            // These sum to zero over the codewords, so that only -2 x . c of a distance counts.
            let pull = p * (slope - expected) / rows as f64 * 2.0 / temperature;
            gradient.iter_mut().zip(word).for_each(|(g, c)| *g += pull * c);
        }
    }
    (loss, gradient)
}

/// Half the width of SSIM's window, its deviation, and what keeps its quotients finite, for images from 0 to 1.
const HALF: usize = 5;
const DEVIATION: f64 = 1.5;
const C1: f64 = 0.01 * 0.01;
const C2: f64 = 0.03 * 0.03;

/// Mean structural similarity of two images `[T, D]`, each stretched from its least to its largest value, and its gradients. Gaussian
/// windows of 11 x 11, zeros around the images.
pub fn ssim(a: Rows, b: Rows) -> (f64, Vec<f64>, Vec<f64>) {
    let (stretched_a, stretched_b) = (Stretched::new(a.values), Stretched::new(b.values));
    let (x, y) = (&stretched_a.values, &stretched_b.values);
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).collect::<Vec<f64>>();
    let blur = |image: &[f64]| blur(image, a.width);
    let [mx, my] = [x, y].map(|image| blur(image));
    let [xx, yy, xy] = [blur(&product(x, x)), blur(&product(y, y)), blur(&product(x, y))];
    let n = x.len().max(1) as f64;
    let mut sum = 0.0;
    // Of the means of x, of y, and of the products.
    let mut slopes = [(); 5].map(|()| vec![0.0; x.len()]);
    for i in 0..x.len() {
        let (mx, my) = (mx[i], my[i]);
        let (a1, a2) = (2.0 * mx * my + C1, 2.0 * (xy[i] - mx * my) + C2);
        let (b1, b2) = (mx * mx + my * my + C1, xx[i] - mx * mx + yy[i] - my * my + C2);
        let s = a1 * a2 / (b1 * b2);
        let (along, across) = (2.0 * (a2 - a1) / (b1 * b2), 2.0 * s * (1.0 / b2 - 1.0 / b1));
        sum += s;
        slopes[0][i] = my * along + mx * across;
        slopes[1][i] = mx * along + my * across;
        slopes[2][i] = -s / b2;
        slopes[3][i] = -s / b2;
        slopes[4][i] = 2.0 * a1 / (b1 * b2);
    }
    // The window is symmetric: its transpose blurs alike.
    let [dmx, dmy, dxx, dyy, dxy] = slopes.map(|slope| blur(&slope));
    let gradient = |own: &[f64], other: &[f64], mean: &[f64], square: &[f64]| -> Vec<f64> {
        (0..own.len()).map(|i| (mean[i] + 2.0 * own[i] * square[i] + other[i] * dxy[i]) / n).collect()
    };
    let (dx, dy) = (gradient(x, y, &dmx, &dxx), gradient(y, x, &dmy, &dyy));
    (sum / n, stretched_a.backward(dx), stretched_b.backward(dy))
}

/// `(v - least) / (most - least)`.
struct Stretched {
    values: Vec<f64>,
    range: f64,
    least: usize,
    most: usize,
}

impl Stretched {
    fn new(values: &[f64]) -> Stretched {
        let first = |better: &dyn Fn(f64, f64) -> bool| {
            values.iter().enumerate().fold(0, |best, (i, &v)| if better(v, values[best]) { i } else { best })
        };
        let (least, most) = (first(&|a, b| a < b), first(&|a, b| a > b));
        let low = values.get(least).copied().unwrap_or(0.0);
        let range = values.get(most).map_or(0.0, |high| high - low) + 1e-8;
        Stretched { values: values.iter().map(|v| (v - low) / range).collect(), range, least, most }
    }

    fn backward(&self, mut gradient: Vec<f64>) -> Vec<f64> {
        let along = |f: &dyn Fn(f64) -> f64| gradient.iter().zip(&self.values).map(|(g, &v)| g * f(v)).sum::<f64>() / self.range;
        let (of_least, of_most) = (along(&|v| v - 1.0), along(&|v| -v));
        gradient.iter_mut().for_each(|g| *g /= self.range);
        if let Some(g) = gradient.get_mut(self.least) {
            *g += of_least;
        }
        if let Some(g) = gradient.get_mut(self.most) {
            *g += of_most;
        }
        gradient
    }
}

/// An image `[T, width]` through a Gaussian, rows and columns one after the other.
fn blur(image: &[f64], width: usize) -> Vec<f64> {
    let taps: Vec<f64> = (0..=2 * HALF).map(|i| (-(i as f64 - HALF as f64).powi(2) / (2.0 * DEVIATION * DEVIATION)).exp()).collect();
    let sum: f64 = taps.iter().sum();
    let pass = |image: &[f64], step: usize, position: &dyn Fn(usize) -> usize, length: usize| -> Vec<f64> {
        let value = |i: usize| {
            let at = position(i);
            let reach = at.saturating_sub(HALF)..(at + HALF + 1).min(length);
            reach.map(|j| taps[j + HALF - at] / sum * image[i + j * step - at * step]).sum()
        };
        (0..image.len()).map(value).collect()
    };
    let width = width.max(1);
    let along = pass(image, 1, &|i| i % width, width);
    pass(&along, width, &|i| i / width, image.len() / width)
}

/// Where the codewords of a batch's anchors come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The nearest row.
    Closest,
    /// A row drawn by the softmax of minus its squared distance.
    Probable,
}

/// Below this, an anchor moves nothing.
const NEGLIGIBLE: f64 = 1e-6;

/// Online clustering: codewords of a share p of all uses, `usage` over its sum, move towards a row of the batch each, by
/// `exp(-10 K p / (1 - decay) - 1e-3)` (CVQ-VAE): used ones stay, dead ones are where the data are. Returns the codewords that moved and
/// their new places.
pub fn anchored(x: Rows, words: Rows, usage: &[f64], decay: f64, anchor: Anchor, draws: &mut dyn Draws) -> Vec<(usize, Vec<f64>)> {
    let (total, size) = (usage.iter().sum::<f64>().max(f64::MIN_POSITIVE), usage.len() as f64);
    let mut moved = Vec::new();
    for (k, (&usage, word)) in usage.iter().zip(words.iter()).enumerate() {
        let share = (-10.0 * size * usage / total / (1.0 - decay) - 1e-3).exp();
        if share < NEGLIGIBLE || x.values.is_empty() {
            continue;
        }
        let mut near: Vec<f64> = x.iter().map(|x| -distance(x, word)).collect();
        let row = match anchor {
            Anchor::Closest => near.iter().enumerate().fold(0, |best, (i, &v)| if v > near[best] { i } else { best }),
            Anchor::Probable => {
                softmax(&mut near);
                let mut left = draws.uniform();
                let drawn = near.iter().position(|p| {
                    left -= p;
                    left < 0.0
                });
                drawn.unwrap_or(near.len() - 1)
            }
        };
        moved.push((k, word.iter().zip(x.row(row)).map(|(c, x)| (1.0 - share) * c + share * x).collect()));
    }
    moved
}

#[cfg(test)]
mod tests {
    use swara_kernels::case::SplitMix;

    use super::super::Seeded;
    use super::*;

    fn random(rng: &mut SplitMix, n: usize) -> Vec<f64> {
        (0..n).map(|_| rng.uniform() + rng.uniform() - 1.0).collect()
    }

    /// Central differences of `f` at `x` against `gradient`.
    fn check(x: &[f64], gradient: &[f64], f: impl Fn(&[f64]) -> f64) {
        let scale = gradient.iter().fold(0.0f64, |m, g| m.max(g.abs()));
        assert!(scale > 0.0);
        for i in 0..x.len() {
            let at = |h: f64| {
                let mut x = x.to_vec();
                x[i] += h;
                f(&x)
            };
            let found = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((found - gradient[i]).abs() < 1e-5 * scale, "{i}: {found}, {}", gradient[i]);
        }
    }

    #[test]
    fn the_gradient_of_balance_is_that_of_finite_differences() {
        let mut rng = SplitMix(1);
        for (n, k, d) in [(7, 5, 3), (12, 2, 1), (3, 9, 6)] {
            let (x, words) = (random(&mut rng, n * d), random(&mut rng, k * d));
            let rows = |values| Rows { values, width: d };
            let temperature = temperature(rows(&x), rows(&words));
            let (loss, gradient) = balance(rows(&x), rows(&words));
            assert!(loss > 0.0);
            check(&x, &gradient, |x| balance_at(Rows { values: x, width: d }, rows(&words), temperature).0);
        }
    }

    #[test]
    fn codewords_used_alike_are_in_balance() {
        let words = [1.0, 0.0, -1.0, 0.0, 0.0, 1.0, 0.0, -1.0];
        let (even, _) = balance(Rows { values: &words, width: 2 }, Rows { values: &words, width: 2 });
        assert!(even.abs() < 1e-12, "{even}");
        let uneven = balance(Rows { values: &words[..2], width: 2 }, Rows { values: &words, width: 2 });
        assert!(uneven.0 > 0.1);
        // A step against the gradient evens it out.
        let x: Vec<f64> = words[..2].iter().zip(&uneven.1).map(|(x, g)| x - 0.1 * g).collect();
        assert!(balance(Rows { values: &x, width: 2 }, Rows { values: &words, width: 2 }).0 < uneven.0);
    }

    #[test]
    fn the_gradients_of_similarity_are_those_of_finite_differences() {
        let mut rng = SplitMix(2);
        for (t, d) in [(4, 3), (13, 12), (1, 20)] {
            let (a, b) = (random(&mut rng, t * d), random(&mut rng, t * d));
            let rows = |values| Rows { values, width: d };
            let (value, da, db) = ssim(rows(&a), rows(&b));
            assert!(value < 1.0);
            check(&a, &da, |a| ssim(Rows { values: a, width: d }, rows(&b)).0);
            check(&b, &db, |b| ssim(rows(&a), Rows { values: b, width: d }).0);
            let (same, gradient, _) = ssim(rows(&a), rows(&a));
            assert!((same - 1.0).abs() < 1e-12 && gradient.iter().all(|g| g.abs() < 1e-6));
        }
    }

    #[test]
    fn dead_codewords_move_to_the_data_and_used_ones_stay() {
        let words = [0.0, 0.0, 5.0, 5.0, 9.0, 9.0];
        let x = [0.1, 0.0, 4.0, 4.5, 0.0, 0.2];
        let rows = |values| Rows { values, width: 2 };
        for anchor in [Anchor::Closest, Anchor::Probable] {
            let moved = anchored(rows(&x), rows(&words), &[10.0, 0.0, 0.0], 0.99, anchor, &mut Seeded::new(1));
            assert_eq!(moved.iter().map(|(k, _)| *k).collect::<Vec<_>>(), [1, 2], "{anchor:?}");
            for (_, place) in &moved {
                assert!(distance(place, &[4.0, 4.5]) < 1e-3, "{place:?}");
            }
        }
        assert!(anchored(rows(&x), rows(&words), &[1.0; 3], 0.99, Anchor::Closest, &mut Seeded::new(1)).is_empty());
    }
}
