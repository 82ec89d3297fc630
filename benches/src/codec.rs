//! Frames through a codec, one at a time, as a live stream brings them.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use swara_engine::codec::{Codec, Session};
use swara_engine::{Error, Result};
use swara_kernels::{Device, Tensor};

use crate::ceilings::{self, Ceilings};
use crate::timing::Samples;

/// Wall times of one frame of `batch` streams, from samples in host memory to codes in host memory and back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub model: String,
    pub device: String,
    pub dtype: String,
    pub batch: usize,
    /// Codebooks in use; 0 in files from before this was asked.
    #[serde(default)]
    pub codebooks: usize,
    pub encode_ms_p50: f64,
    pub encode_ms_p99: f64,
    pub encode_ms_max: f64,
    pub decode_ms_p50: f64,
    pub decode_ms_p99: f64,
    pub decode_ms_max: f64,
    /// The medians' 95 % confidence intervals.
    pub encode_ms_low: f64,
    pub encode_ms_high: f64,
    pub decode_ms_low: f64,
    pub decode_ms_high: f64,
    /// Of encoding and decoding the same frame together.
    pub total_ms_p50: f64,
    pub total_ms_p99: f64,
    pub total_ms_max: f64,
    /// Shares of the frames, ascending to 1, each with the milliseconds that encoding and decoding them stays within.
    pub distribution_ms: Vec<(f64, f64)>,
    pub frames: usize,
    /// What a frame lasts.
    pub frame_ms: f64,
    /// Whether 99 of 100 frames were encoded and decoded in the time that a frame lasts.
    pub in_time: bool,
    /// Of all weights and codebooks in use, each of which a frame reads once.
    pub bytes_per_frame: usize,
    /// What the host queues to encode and decode a frame, a graph of kernels each; none on the CPU.
    pub launches_per_frame: Option<u64>,
    /// The kernels in them.
    #[serde(default)]
    pub kernels_per_frame: Option<u64>,
    /// The time to read these bytes at the measured bandwidth, divided by the medians' sum.
    pub share_of_ceiling: f64,
    pub ceiling_gb_s: f64,
    /// By how much the ceilings moved.
    pub drift: f64,
}

/// Frames that are not timed.
const WARMUP: usize = 20;

/// What to time.
#[derive(Clone, Copy, Debug)]
pub enum Streams<'a> {
    /// So many streams at once, each number once.
    These(&'a [usize]),
    /// 1, 2, 4 ... up to this many, for as long as frames are [`in_time`](Row::in_time), and between the last that were and the
    /// first that were not, to within an eighth.
    UpTo(usize),
}

/// Times `frames` frames (at least one) of each codec with its first `codebooks` codebooks (all where it has no more), all on `device`.
pub fn run(device: &Device, codecs: &[Codec], codebooks: usize, streams: Streams, frames: usize) -> Result<(Vec<Row>, Ceilings)> {
    let frames = frames.max(1);
    let time = || -> Result<Vec<(&Codec, Times)>> {
        let mut times = Vec::new();
        for codec in codecs {
            let mut one = |batch: usize| -> Result<bool> {
                let found = Times::take(codec, codebooks.min(codec.codebooks()), batch, frames)?;
                let in_time = found.in_time(codec);
                times.push((codec, found));
                Ok(in_time)
            };
            match streams {
                Streams::These(batches) => batches.iter().try_for_each(|&batch| one(batch).map(drop))?,
                Streams::UpTo(most) => search(most, one)?,
            }
        }
        Ok(times)
    };
    let (mut times, ceilings) = ceilings::around(device, time)?;
    times.sort_by_key(|(codec, times)| (codecs.iter().position(|other| std::ptr::eq(*codec, other)), times.batch));
    Ok((times.iter().map(|(codec, times)| times.row(codec, device, &ceilings)).collect(), ceilings))
}

/// Asks for 1, 2, 4 ... until the answer is no, then halves the gap.
fn search(most: usize, mut in_time: impl FnMut(usize) -> Result<bool>) -> Result<()> {
    let (mut good, mut batch) = (0, 1);
    while batch <= most && in_time(batch)? {
        good = batch;
        if batch == most {
            return Ok(());
        }
        batch = (2 * batch).min(most);
    }
    let mut bad = batch;
    while bad - good > (good / 8).max(1) {
        let middle = good + (bad - good) / 2;
        match in_time(middle)? {
            true => good = middle,
            false => bad = middle,
        }
    }
    Ok(())
}

struct Times {
    codebooks: usize,
    batch: usize,
    encode: Samples,
    decode: Samples,
    total: Samples,
    /// Launches and kernels of a frame.
    launches: Option<[u64; 2]>,
}

impl Times {
    fn take(codec: &Codec, codebooks: usize, batch: usize, frames: usize) -> Result<Times> {
        let mut session = Session::new(codec, batch)?;
        let hop = codec.format().hop;
        let launched = || match codec.device() {
            Device::Cpu => None,
            Device::Cuda(cuda) => Some([cuda.launches(), cuda.kernels()]),
        };
        let mut before = launched();
        let (mut encode, mut decode, mut total) = (Vec::new(), Vec::new(), Vec::new());
        for frame in 0..WARMUP + frames {
            if frame == WARMUP {
                before = launched();
            }
            // Never silence: denormals and zeros are not what speech costs.
            let sample = |i: usize| 0.3 * ((frame * hop + i) as f32 * 0.037).sin() * (i as f32 * 0.0011).cos();
            let samples: Vec<f32> = (0..batch * hop).map(sample).collect();
            let start = Instant::now();
            let codes = session.encode(&codec.signal(&samples, batch)?, codebooks, None)?;
            let values = codes.to_vec::<i32>()?;
            let encoded = start.elapsed().as_secs_f64();
            let start = Instant::now();
            let codes = Tensor::from_slice(codec.device(), &values, codes.shape())?;
            codec.samples(&session.decode(&codes, None)?)?;
            let decoded = start.elapsed().as_secs_f64();
            if frame >= WARMUP {
                encode.push(encoded);
                decode.push(decoded);
                total.push(encoded + decoded);
            }
        }
        let launches = before.zip(launched()).map(|(before, after)| std::array::from_fn(|i| (after[i] - before[i]) / frames as u64));
        let samples = |seconds| Samples::new(seconds).ok_or_else(|| Error::Argument("no frames to time".into()));
        Ok(Times { codebooks, batch, encode: samples(encode)?, decode: samples(decode)?, total: samples(total)?, launches })
    }

    fn in_time(&self, codec: &Codec) -> bool {
        self.total.quantile(0.99) * codec.format().frame_rate() <= 1.0
    }

    fn row(&self, codec: &Codec, device: &Device, ceilings: &Ceilings) -> Row {
        let Times { codebooks, batch, encode, decode, total, launches } = self;
        let bytes = codec.bytes(*codebooks);
        let ms = |samples: &Samples, share| samples.quantile(share) * 1e3;
        let interval = |samples: &Samples| samples.median_interval(1.96);
        let ((encode_low, encode_high), (decode_low, decode_high)) = (interval(encode), interval(decode));
        Row {
            model: codec.name().to_owned(),
            device: device.name(),
            dtype: codec.stored().name().to_owned(),
            batch: *batch,
            codebooks: *codebooks,
            encode_ms_p50: ms(encode, 0.5),
            encode_ms_p99: ms(encode, 0.99),
            encode_ms_max: ms(encode, 1.0),
            decode_ms_p50: ms(decode, 0.5),
            decode_ms_p99: ms(decode, 0.99),
            decode_ms_max: ms(decode, 1.0),
            encode_ms_low: encode_low * 1e3,
            encode_ms_high: encode_high * 1e3,
            decode_ms_low: decode_low * 1e3,
            decode_ms_high: decode_high * 1e3,
            total_ms_p50: ms(total, 0.5),
            total_ms_p99: ms(total, 0.99),
            total_ms_max: ms(total, 1.0),
            distribution_ms: shares(total.len()).map(|share| (share, ms(total, share))).collect(),
            frames: total.len(),
            frame_ms: 1e3 / codec.format().frame_rate(),
            in_time: self.in_time(codec),
            bytes_per_frame: bytes,
            launches_per_frame: launches.map(|[launches, _]| launches),
            kernels_per_frame: launches.map(|[_, kernels]| kernels),
            share_of_ceiling: bytes as f64 / ceilings.bytes / (encode.median() + decode.median()),
            ceiling_gb_s: ceilings.bytes * 1e-9,
            drift: ceilings.drift,
        }
    }
}

/// 0, 0.1 ... 0.9, 0.91 ... 0.99, 0.991 ... as far as that many samples tell them apart, and 1.
fn shares(samples: usize) -> impl Iterator<Item = f64> {
    let nines = (samples as f64).log10().ceil() as usize;
    let fine = (0..nines).flat_map(|digit| (0..9).map(move |n| 1.0 - 0.1f64.powi(digit as i32) * (1.0 - 0.1 * f64::from(n))));
    fine.chain([1.0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_streams_in_time_are_found_in_few_steps() {
        for limit in [0, 1, 2, 3, 5, 8, 37, 100, 255] {
            let mut asked = Vec::new();
            search(256, |batch| {
                Ok({
                    asked.push(batch);
                    batch <= limit
                })
            })
            .unwrap();
            let best = asked.iter().copied().filter(|batch| *batch <= limit).max().unwrap_or(0);
            assert!(limit - best <= best / 8 + 1 && asked.len() < 16, "{limit}: {asked:?}");
            assert!(asked.iter().all(|batch| (1..=256).contains(batch)), "{asked:?}");
        }
        let mut asked = Vec::new();
        search(6, |batch| {
            asked.push(batch);
            Ok(true)
        })
        .unwrap();
        assert_eq!(asked, [1, 2, 4, 6]);
    }

    #[test]
    fn shares_ascend_to_one_and_hold_what_is_reported() {
        let found: Vec<f64> = shares(500).collect();
        assert!(found.is_sorted() && found.last() == Some(&1.0), "{found:?}");
        assert!([0.5, 0.9].iter().all(|share| found.iter().any(|f| (f - share).abs() < 1e-9)), "{found:?}");
        assert_eq!(shares(1).collect::<Vec<_>>(), [1.0]);
    }
}
