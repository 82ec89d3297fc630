//! Repeating until the answer is known.

use std::time::{Duration, Instant};

/// Seconds, ascending.
#[derive(Clone, Debug)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// `None` if there are none.
    pub fn new(mut seconds: Vec<f64>) -> Option<Samples> {
        seconds.sort_unstable_by(f64::total_cmp);
        (!seconds.is_empty()).then_some(Samples(seconds))
    }

    /// The time that a share of the samples stays within.
    pub fn quantile(&self, share: f64) -> f64 {
        self.0[((self.0.len() - 1) as f64 * share.clamp(0.0, 1.0)).ceil() as usize]
    }

    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    #[allow(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Half the width of the median's 95 % confidence interval, by order statistics, relative to the median.
    fn uncertainty(&self) -> f64 {
        let n = self.0.len() as f64;
        let reach = 0.98 / n.sqrt();
        (self.quantile(0.5 + reach) - self.quantile(0.5 - reach)) / (2.0 * self.median())
    }
}

/// When to stop sampling.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// At least so many samples, whatever they cost.
    pub least: usize,
    /// Then until the median is known to within this share of itself,
    pub uncertainty: f64,
    /// or so much time has passed.
    pub time: Duration,
}

/// Calls `sample`, which returns the seconds it measured, until `limit`.
pub fn repeat<E>(limit: Limit, mut sample: impl FnMut() -> Result<f64, E>) -> Result<Samples, E> {
    let begun = Instant::now();
    let mut samples = Samples(Vec::new());
    loop {
        samples.0.push(sample()?);
        if samples.0.len() < limit.least {
            continue;
        }
        samples.0.sort_unstable_by(f64::total_cmp);
        if samples.uncertainty() <= limit.uncertainty || begun.elapsed() >= limit.time {
            return Ok(samples);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_stops_when_the_median_is_known_or_time_is_up() {
        let mut n = 0;
        let steady = repeat(Limit { least: 5, uncertainty: 0.01, time: Duration::from_secs(60) }, || {
            n += 1;
            Ok::<f64, ()>(1.0)
        });
        assert_eq!((n, steady.unwrap().median()), (5, 1.0));
        let mut n = 0;
        let wild = repeat(Limit { least: 5, uncertainty: 0.01, time: Duration::ZERO }, || {
            n += 1;
            Ok::<f64, ()>(n as f64)
        });
        assert_eq!((n, wild.unwrap().median()), (5, 3.0));
    }

    #[test]
    fn quantiles_are_order_statistics() {
        let samples = Samples::new((0..=100).rev().map(f64::from).collect()).unwrap();
        assert_eq!((samples.quantile(0.1), samples.median(), samples.quantile(0.99)), (10.0, 50.0, 99.0));
        assert!(Samples::new(Vec::new()).is_none());
    }
}
