//! How wrong a result may be: computed from the length of the accumulation and the storage type, never fitted.

use crate::DType;

/// 2^-24, the unit roundoff of f32: one operation errs by at most this much of its result.
pub const ROUNDOFF: f64 = DType::F32.epsilon();

/// Error budget of one output, the sum of three kinds of error:
///
/// - **random**: roundings before or within a sum. Each is of either sign, up to `e` of a partial result that is about as large
///   as the result, and so has a standard deviation near `e / 2`; `k` of them together have `sqrt(k) e / 2`. Four standard
///   deviations are allowed, `2 sqrt(k) e`, of the output's rms or of the value if that is larger. A sum of `n` products in
///   f32 so has `2 sqrt(n) 2^-24`.
/// - **relative**: roundings of a value that nothing is subtracted from afterwards, at their worst.
/// - **absolute**: bounds that follow from the range of the inputs, at their worst.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Sum of the squares of the unit roundoffs.
    random: f64,
    relative: f64,
    absolute: f64,
}

impl Tolerance {
    /// No error but what is added to it.
    pub const EXACT: Tolerance = Tolerance { random: 0.0, relative: 0.0, absolute: 0.0 };

    /// A sum of `n` products, added in any order. Random.
    pub const fn accumulate(n: usize) -> Self {
        Tolerance::EXACT.via(DType::F32, n)
    }

    /// `n` f32 roundings of a value, one after the other. Relative.
    pub const fn roundings(n: usize) -> Self {
        Tolerance { relative: n as f64 * ROUNDOFF, ..Tolerance::EXACT }
    }

    /// A sum of `n` terms of one sign, which errs relative to itself.
    pub fn positive_sum(n: usize) -> Self {
        Tolerance { relative: 2.0 * (n as f64).sqrt() * ROUNDOFF, ..Tolerance::EXACT }
    }

    /// A fast Fourier transform of `n` points, windowed before or after. A stage rounds the sum, two products, their sum and a
    /// twiddle factor of two roundings; so many again are for the window and for making one real transform of a complex one.
    pub const fn fourier(n: usize) -> Self {
        Tolerance::accumulate(6 * (n.ilog2() as usize + 1))
    }

    /// `n` more f32 roundings of the value itself. Relative.
    pub const fn then_rounded(mut self, n: usize) -> Self {
        self.relative += n as f64 * ROUNDOFF;
        self
    }

    /// The result is stored in `dtype`. Relative, and for f16 half of its smallest number.
    pub const fn then_round_to(mut self, dtype: DType) -> Self {
        self.relative += dtype.epsilon();
        if matches!(dtype, DType::F16) {
            self.absolute += ROUNDOFF / 2.0;
        }
        self
    }

    /// `n` intermediates of the result's magnitude are rounded to `dtype` before they are used further. Random.
    pub const fn via(self, dtype: DType, n: usize) -> Self {
        self.via_errors(dtype.epsilon(), n)
    }

    /// `n` errors of either sign, with a deviation of half of `unit` times the result's magnitude. Random.
    pub const fn via_errors(mut self, unit: f64, n: usize) -> Self {
        self.random += n as f64 * unit * unit;
        self
    }

    /// The result is a function, of slope at most 1, of a sum whose rms is `factor` times that of the result.
    pub const fn of_sum_larger_by(mut self, factor: f64) -> Self {
        self.random *= factor * factor;
        self
    }

    /// At most `bound`, whatever the value.
    pub const fn plus(mut self, bound: f64) -> Self {
        self.absolute += bound;
        self
    }

    /// Budget for a value `y` of an output whose root mean square is `rms`.
    pub fn budget(&self, y: f64, rms: f64) -> f64 {
        2.0 * self.random.sqrt() * rms.max(y.abs()) + self.relative * y.abs() + self.absolute
    }

    /// Compares `found` with the f64 `expected`.
    pub fn compare(&self, found: &[f64], expected: &[f64]) -> Comparison {
        let n = expected.len().max(1) as f64;
        let finite = || expected.iter().filter(|v| v.is_finite());
        let energy = finite().map(|v| v * v).sum::<f64>();
        let rms = (energy / n).sqrt();
        let mut result = Comparison { elements: expected.len(), ..Comparison::default() };
        if found.len() != expected.len() {
            result.budget_used = f64::INFINITY;
            return result;
        }
        let mut error_energy = 0.0;
        for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
            if !e.is_finite() || !f.is_finite() {
                // NaN and infinities must match in place.
                let same = (e.is_nan() && f.is_nan()) || e == f;
                result.uses(if same { 0.0 } else { f64::INFINITY }, i, f, e);
                continue;
            }
            let error = (f - e).abs();
            error_energy += error * error;
            result.max_abs = result.max_abs.max(error);
            result.max_ulp = result.max_ulp.max(ulps(f, e));
            let budget = self.budget(e, rms);
            let used = if error == 0.0 { 0.0 } else { error / budget }; // a budget may be 0
            result.uses(used, i, f, e);
        }
        result.nmse = if energy > 0.0 { error_energy / energy } else { error_energy };
        result
    }
}

/// Distance of two values in f32 units in the last place of the larger one.
fn ulps(a: f64, b: f64) -> f64 {
    let scale = a.abs().max(b.abs()).max(f32::MIN_POSITIVE as f64);
    (a - b).abs() / (2f64.powi(scale.log2().floor() as i32 - 23))
}

/// How far a result is from the oracle. It holds if `budget_used <= 1`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Comparison {
    pub elements: usize,
    /// Mean squared error over mean squared reference.
    pub nmse: f64,
    pub max_abs: f64,
    pub max_ulp: f64,
    /// Largest error over its budget; infinite if NaN or infinity differ in place.
    pub budget_used: f64,
    /// The first element that uses so much, if any is used.
    pub worst: Option<Worst>,
}

/// An element and what it should have been.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Worst {
    pub index: usize,
    pub found: f64,
    pub expected: f64,
}

impl Comparison {
    /// Element `index` uses so much of its budget.
    pub fn uses(&mut self, used: f64, index: usize, found: f64, expected: f64) {
        if used > self.budget_used {
            self.budget_used = used;
            self.worst = Some(Worst { index, found, expected });
        }
    }

    pub fn holds(&self) -> bool {
        self.budget_used <= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_error_of_ten_budgets_is_seen() {
        let expected: Vec<f64> = (0..1000).map(|i| (i as f64 * 0.37).sin()).collect();
        let tolerance = Tolerance::accumulate(64).then_round_to(DType::F32);
        let mut found = expected.clone();
        assert!(tolerance.compare(&found, &expected).holds());
        found[500] += 10.0 * tolerance.budget(expected[500], 0.7);
        let comparison = tolerance.compare(&found, &expected);
        assert!(!comparison.holds());
        assert_eq!(comparison.worst, Some(Worst { index: 500, found: found[500], expected: expected[500] }));
    }

    #[test]
    fn budgets_are_what_the_formulas_say() {
        let budget = |t: Tolerance| t.budget(-2.0, 3.0) / ROUNDOFF;
        assert_eq!(budget(Tolerance::accumulate(64)), 2.0 * 8.0 * 3.0);
        assert_eq!(Tolerance::accumulate(64).budget(-5.0, 3.0) / ROUNDOFF, 2.0 * 8.0 * 5.0);
        assert_eq!(budget(Tolerance::roundings(3).then_rounded(1)), 4.0 * 2.0);
        assert_eq!(budget(Tolerance::positive_sum(16)), 2.0 * 4.0 * 2.0);
        assert_eq!(budget(Tolerance::accumulate(9).via(DType::F32, 16)), 2.0 * 5.0 * 3.0);
        assert_eq!(budget(Tolerance::accumulate(9).of_sum_larger_by(2.0)), 2.0 * 3.0 * 2.0 * 3.0);
        assert_eq!(budget(Tolerance::EXACT.plus(7.0 * ROUNDOFF)), 7.0);
        assert_eq!(Tolerance::EXACT.then_round_to(DType::BF16).budget(-2.0, 3.0), 2.0 / 256.0);
        assert_eq!(Tolerance::EXACT.compare(&[1.0], &[1.0]).budget_used, 0.0);
        assert_eq!(Tolerance::EXACT.compare(&[1.0 + 1e-15], &[1.0]).budget_used, f64::INFINITY);
    }

    #[test]
    fn a_nan_must_match_in_place() {
        let t = Tolerance::accumulate(1);
        assert!(t.compare(&[f64::NAN, 1.0], &[f64::NAN, 1.0]).holds());
        assert!(!t.compare(&[1.0, f64::NAN], &[f64::NAN, 1.0]).holds());
        assert!(!t.compare(&[f64::NAN, 1.0], &[1.0, 1.0]).holds());
    }
}
