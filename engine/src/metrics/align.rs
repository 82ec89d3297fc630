use swara_fft::{Complex, Transform};

/// By how many samples `test` is late against `reference`: the lag in `-max_lag..=max_lag` with the largest
/// cross-correlation. Of equal ones the smallest, so that silence gives 0.
pub fn lag(reference: &[f32], test: &[f32], max_lag: usize) -> isize {
    let longest = reference.len().max(test.len());
    let max_lag = max_lag.min(longest.saturating_sub(1));
    if max_lag == 0 || reference.is_empty() || test.is_empty() {
        return 0;
    }
    let block = (4 * max_lag).clamp(4096, 1 << 20);
    let correlation = correlate(reference, test, max_lag, block);
    let at = |lag: isize| correlation[(lag + max_lag as isize) as usize];
    let mut best = 0;
    for distance in 1..=max_lag as isize {
        for lag in [distance, -distance] {
            if at(lag) > at(best) * (1.0 + 1e-9) && at(lag) > 0.0 {
                best = lag;
            }
        }
    }
    best
}

/// `sum_t x[t] y[t + l]` for l in `-max_lag..=max_lag`: block by block, summed as spectra, so that memory does not grow with
/// the signals.
fn correlate(x: &[f32], y: &[f32], max_lag: usize, block: usize) -> Vec<f64> {
    let size = (block + 2 * max_lag).next_power_of_two();
    let block = size - 2 * max_lag;
    let (forward, inverse) = (f64::forward_plan(size), f64::inverse_plan(size));
    let (mut xs, mut ys) = (forward.make_output_vec(), forward.make_output_vec());
    let mut sum = vec![Complex::new(0.0, 0.0); xs.len()];
    let mut buffer = forward.make_input_vec();
    for start in (0..x.len()).step_by(block) {
        fill(&mut buffer, &x[start..x.len().min(start + block)], 0);
        forward.process(&mut buffer, &mut xs).expect("lengths are the plan's own");
        let first = start as isize - max_lag as isize;
        fill(&mut buffer, y, first);
        forward.process(&mut buffer, &mut ys).expect("lengths are the plan's own");
        for ((s, a), b) in sum.iter_mut().zip(&xs).zip(&ys) {
            *s += a.conj() * b;
        }
    }
    // The two ends of a real signal's spectrum are real but for rounding.
    for end in [0, size / 2] {
        sum[end].im = 0.0;
    }
    inverse.process(&mut sum, &mut buffer).expect("lengths are the plan's own");
    buffer.truncate(2 * max_lag + 1);
    buffer
}

/// Copies `source[first..]` into `buffer`, zeros where there is none.
fn fill(buffer: &mut [f64], source: &[f32], first: isize) {
    for (i, slot) in buffer.iter_mut().enumerate() {
        let value = usize::try_from(first + i as isize).ok().and_then(|at| source.get(at));
        *slot = value.map_or(0.0, |&v| f64::from(v));
    }
}

/// The parts of both signals that overlap once `test` has been moved back by `lag`; of equal length.
pub fn align<'a>(reference: &'a [f32], test: &'a [f32], lag: isize) -> (&'a [f32], &'a [f32]) {
    let late = lag.unsigned_abs();
    let (x, y) = match lag {
        0.. => (reference, test.get(late..).unwrap_or_default()),
        _ => (reference.get(late..).unwrap_or_default(), test),
    };
    let n = x.len().min(y.len());
    (&x[..n], &y[..n])
}
