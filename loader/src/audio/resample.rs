//! Streaming sample-rate conversion without delay and without a missing or an extra sample.

use rubato::{FftFixedInOut, Resampler as _};

/// `round(frames * to / from)`.
pub fn resampled_len(frames: u64, from: u32, to: u32) -> u64 {
    let (frames, from, to) = (u128::from(frames), u128::from(from), u128::from(to));
    ((2 * frames * to + from) / (2 * from)) as u64
}

pub struct Resampler {
    inner: FftFixedInOut<f32>,
    from: u32,
    to: u32,
    pending: Vec<f32>,
    output: Vec<Vec<f32>>,
    /// Frames of the filter's delay still to be thrown away.
    delay: usize,
    fed: u64,
    given: u64,
}

impl Resampler {
    /// `from` and `to` in 1..=[`MAX_RATE`](super::MAX_RATE).
    pub fn new(from: u32, to: u32) -> Result<Self, String> {
        let (least_in, least_out) = {
            let divisor = gcd(from, to);
            ((from / divisor) as usize, (to / divisor) as usize)
        };
        // The filter is one chunk long: 1024 taps at the lower rate keep 95 % of its band. An even number of the least chunks
        // makes the delay, half a chunk, a whole number of frames at both ends.
        let chunks = (1024_usize.div_ceil(least_in.min(least_out))).next_multiple_of(2);
        let inner = FftFixedInOut::new(from as usize, to as usize, least_in * chunks, 1).map_err(|e| e.to_string())?;
        let output = inner.output_buffer_allocate(true);
        let delay = inner.output_delay();
        Ok(Self { inner, from, to, pending: Vec::new(), output, delay, fed: 0, given: 0 })
    }

    /// Appends to `out` what is ready.
    pub fn feed(&mut self, samples: &[f32], out: &mut Vec<f32>) -> Result<(), String> {
        self.fed += samples.len() as u64;
        self.pending.extend_from_slice(samples);
        self.run(out)
    }

    /// Appends the rest, so that all in all `round(fed * to / from)` samples have come out.
    pub fn finish(&mut self, out: &mut Vec<f32>) -> Result<(), String> {
        let total = resampled_len(self.fed, self.from, self.to);
        while self.given < total {
            let chunk = self.inner.input_frames_next();
            self.pending.resize(chunk, 0.0);
            let before = out.len();
            self.run(out)?;
            let surplus = self.given.saturating_sub(total);
            out.truncate(out.len().max(before) - surplus as usize);
            self.given -= surplus;
        }
        Ok(())
    }

    fn run(&mut self, out: &mut Vec<f32>) -> Result<(), String> {
        let chunk = self.inner.input_frames_next();
        let mut used = 0;
        while self.pending.len() - used >= chunk {
            let input = [&self.pending[used..used + chunk]];
            let (_, frames) = self.inner.process_into_buffer(&input, &mut self.output, None).map_err(|e| e.to_string())?;
            let dropped = self.delay.min(frames);
            self.delay -= dropped;
            out.extend_from_slice(&self.output[0][dropped..frames]);
            self.given += (frames - dropped) as u64;
            used += chunk;
        }
        self.pending.drain(..used);
        Ok(())
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::TAU;

    fn resample(samples: &[f32], from: u32, to: u32, step: usize) -> Vec<f32> {
        let (mut resampler, mut out) = (Resampler::new(from, to).unwrap(), Vec::new());
        for part in samples.chunks(step) {
            resampler.feed(part, &mut out).unwrap();
        }
        resampler.finish(&mut out).unwrap();
        out
    }

    #[test]
    fn every_rate_gives_the_exact_length_and_a_sine_in_place() {
        for (from, to) in [(44_100, 16_000), (48_000, 16_000), (8_000, 16_000), (22_050, 24_000), (16_000, 44_100), (44_101, 16_000)] {
            let n = from as usize / 2 + 37;
            let sine = |rate: u32, i: usize| (TAU * 440.0 * i as f64 / f64::from(rate)).sin() as f32;
            let samples: Vec<_> = (0..n).map(|i| sine(from, i)).collect();
            let out = resample(&samples, from, to, 1000);
            assert_eq!(out.len() as u64, resampled_len(n as u64, from, to), "{from} -> {to}");
            let middle = out.len() / 4..out.len() * 3 / 4;
            let worst = middle.map(|i| (out[i] - sine(to, i)).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-3, "{from} -> {to}: {worst}");
        }
    }

    #[test]
    fn chunk_sizes_do_not_change_a_bit() {
        let samples: Vec<_> = (0..5000).map(|i| ((i * i) as f32 * 0.001).sin()).collect();
        let whole = resample(&samples, 44_100, 16_000, 5000);
        for step in [1, 31, 127, 4096] {
            assert_eq!(resample(&samples, 44_100, 16_000, step), whole);
        }
    }

    #[test]
    fn what_the_lower_rate_cannot_hold_is_removed() {
        let tone = |hz: f64| (0..48_000).map(|i| (TAU * hz * i as f64 / 48_000.0).sin() as f32).collect::<Vec<_>>();
        let rms = |x: &[f32]| (x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32).sqrt();
        let kept = resample(&tone(7000.0), 48_000, 16_000, 4096);
        let gone = resample(&tone(8500.0), 48_000, 16_000, 4096);
        assert!((rms(&kept[2000..14_000]) - 0.5_f32.sqrt()).abs() < 1e-3);
        assert!(rms(&gone[2000..14_000]) < 1e-4, "{}", rms(&gone[2000..14_000]));
    }

    #[test]
    fn short_and_empty_inputs_keep_their_length() {
        for n in [0, 1, 31, 33] {
            assert_eq!(resample(&vec![0.5; n], 48_000, 16_000, 7).len() as u64, resampled_len(n as u64, 48_000, 16_000));
        }
    }
}
