//! How wrong a result may be: computed from the length of the accumulation and the storage type, never fitted.

use crate::DType;

/// Error budget of one output.
///
/// An f32 sum of `n` products errs by about `sqrt(n) * 2^-24` of the larger of the value and the result's rms; twice
/// that is allowed. Every store into a
/// narrower type adds half a unit in its last place, relative to the value, and - if an intermediate was rounded before a
/// sum - relative to the rms.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    accumulated: usize,
    /// Storage roundings, in units of the result's rms.
    rounded_rms: f64,
    /// Storage roundings, relative to each value.
    rounded_value: f64,
}

impl Tolerance {
    /// A sum of `n` products (1 for an elementwise operation of a few roundings).
    pub const fn accumulate(n: usize) -> Self {
        Tolerance { accumulated: n, rounded_rms: 0.0, rounded_value: 0.0 }
    }

    /// The result is stored in `dtype`.
    pub const fn then_round_to(mut self, dtype: DType) -> Self {
        self.rounded_value += dtype.epsilon();
        self
    }

    /// An intermediate of the result's magnitude is stored in `dtype` before it is used further.
    pub const fn via(mut self, dtype: DType) -> Self {
        self.rounded_rms += dtype.epsilon();
        self
    }

    /// A function evaluated with `absolute` error relative to the result's rms, e.g. a fast sine.
    pub const fn with_approximation(mut self, absolute: f64) -> Self {
        self.rounded_rms += absolute;
        self
    }

    /// Absolute budget for a value `y` of an output whose root mean square is `rms`.
    pub fn budget(&self, y: f64, rms: f64) -> f64 {
        const F32_EPSILON: f64 = 5.960464477539063e-8; // 2^-24
        let accumulated = 2.0 * (self.accumulated.max(4) as f64).sqrt() * F32_EPSILON;
        // The largest of many rounding errors sits near four standard deviations of their sum.
        // Partial sums grow to the larger of the two.
        let scale = rms.max(y.abs());
        (accumulated + 4.0 * self.rounded_rms) * scale + (self.rounded_value + F32_EPSILON) * y.abs()
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
        for (&f, &e) in found.iter().zip(expected) {
            if !e.is_finite() || !f.is_finite() {
                // NaN and infinities must match in place.
                let same = (e.is_nan() && f.is_nan()) || e == f;
                result.budget_used = if same { result.budget_used } else { f64::INFINITY };
                continue;
            }
            let error = (f - e).abs();
            error_energy += error * error;
            result.max_abs = result.max_abs.max(error);
            result.max_ulp = result.max_ulp.max(ulps(f, e));
            let budget = self.budget(e, rms);
            let used = if error == 0.0 { 0.0 } else { error / budget };
            result.budget_used = result.budget_used.max(used);
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
}

impl Comparison {
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
        assert!(!tolerance.compare(&found, &expected).holds());
    }

    #[test]
    fn a_nan_must_match_in_place() {
        let t = Tolerance::accumulate(1);
        assert!(t.compare(&[f64::NAN, 1.0], &[f64::NAN, 1.0]).holds());
        assert!(!t.compare(&[1.0, f64::NAN], &[f64::NAN, 1.0]).holds());
        assert!(!t.compare(&[f64::NAN, 1.0], &[1.0, 1.0]).holds());
    }
}
