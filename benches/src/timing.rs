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

    /// The median's confidence interval, by order statistics, `z` standard deviations to either side: 1.96 for 95 %. With few
    /// samples it is all of them.
    pub fn median_interval(&self, z: f64) -> (f64, f64) {
        let last = self.0.len() - 1;
        let (middle, reach) = (last as f64 / 2.0, z / 2.0 * (self.0.len() as f64).sqrt());
        let at = |position: f64| self.0[(position.max(0.0) as usize).min(last)];
        (at((middle - reach).floor()), at((middle + reach).ceil()))
    }

    /// Half the width of the median's 95 % confidence interval, relative to the median.
    fn uncertainty(&self) -> f64 {
        let (low, high) = self.median_interval(1.96);
        (high - low) / (2.0 * self.median())
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
    repeat_steady(limit, || Ok(Steady { seconds: sample()?, yardstick: 1.0 })).map(|(samples, _)| samples)
}

/// What was measured, and how long a fixed amount of arithmetic took right before it.
#[derive(Clone, Copy, Debug)]
pub struct Steady {
    pub seconds: f64,
    pub yardstick: f64,
}

/// A yardstick longer by this factor than the shorter quarter of them shows a lower clock, or a core that others use as well.
const THROTTLED: f64 = 1.1;

/// As [`repeat`], without the samples that were taken while the machine was throttled, whose number is returned too. Where that
/// leaves fewer than `limit.least`, those with the shortest yardsticks stay.
pub fn repeat_steady<E>(limit: Limit, mut sample: impl FnMut() -> Result<Steady, E>) -> Result<(Samples, usize), E> {
    let begun = Instant::now();
    let least = limit.least.max(1);
    let mut taken: Vec<Steady> = Vec::new();
    loop {
        taken.push(sample()?);
        if taken.len() < least {
            continue;
        }
        taken.sort_by(|a, b| a.yardstick.total_cmp(&b.yardstick));
        let most = THROTTLED * taken[taken.len() / 4].yardstick;
        let kept = taken.partition_point(|s| s.yardstick <= most).max(least);
        let mut samples = Samples(taken[..kept].iter().map(|s| s.seconds).collect());
        samples.0.sort_unstable_by(f64::total_cmp);
        if samples.uncertainty() <= limit.uncertainty || begun.elapsed() >= limit.time {
            return Ok((samples, taken.len() - kept));
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
    fn throttled_samples_are_dropped_but_never_all() {
        let limit = Limit { least: 4, uncertainty: 0.0, time: Duration::ZERO };
        let run = |clocks: &[f64], limit: Limit| {
            let mut clocks = clocks.iter();
            let sample = || clocks.next().map(|&yardstick| Steady { seconds: yardstick, yardstick }).ok_or(());
            repeat_steady(limit, sample).map(|(samples, dropped)| (samples.len(), dropped, samples.quantile(1.0)))
        };
        let patient = Limit { least: 4, uncertainty: 1e-9, time: Duration::from_secs(60) };
        assert_eq!(run(&[1.5, 1.0, 1.5, 1.0, 1.0, 1.0, 1.0], patient), Ok((4, 2, 1.0)));
        // One that was lucky does not make the others late.
        let lucky = Limit { least: 5, ..limit };
        assert_eq!(run(&[0.5, 1.0, 1.0, 1.0, 1.0], lucky), Ok((5, 0, 1.0)));
        assert_eq!(run(&[1.0, 1.2, 1.4, 1.3], limit), Ok((4, 0, 1.4)));
    }

    #[test]
    fn the_medians_interval_holds_it_and_narrows() {
        let of = |n: u32| Samples::new((0..n).map(f64::from).collect()).unwrap().median_interval(1.96);
        assert_eq!((of(1), of(3), of(101)), ((0.0, 0.0), (0.0, 2.0), (40.0, 60.0)));
        // Of uniform samples, 95 of 100 intervals hold the true median.
        let mut rng = swara_kernels::case::SplitMix(3);
        let held = (0..1000).filter(|_| {
            let (low, high) = Samples::new((0..60).map(|_| rng.uniform()).collect()).unwrap().median_interval(1.96);
            low <= 0.5 && 0.5 <= high
        });
        let held = held.count();
        assert!((930..990).contains(&held), "{held}");
    }

    #[test]
    fn quantiles_are_order_statistics() {
        let samples = Samples::new((0..=100).rev().map(f64::from).collect()).unwrap();
        assert_eq!((samples.quantile(0.1), samples.median(), samples.quantile(0.99)), (10.0, 50.0, 99.0));
        assert!(Samples::new(Vec::new()).is_none());
    }
}
