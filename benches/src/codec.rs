//! Frames through a codec, one at a time, as a live stream brings them.

use std::time::Instant;

use serde::Serialize;
use swara_engine::codec::{Codec, Session};
use swara_engine::{Error, Result};
use swara_kernels::{Device, Tensor};

use crate::ceilings::{self, Ceilings};
use crate::timing::Samples;

/// Wall times of one frame of `batch` streams, from samples in host memory to codes in host memory and back.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub model: String,
    pub device: String,
    pub dtype: &'static str,
    pub batch: usize,
    pub encode_ms_p50: f64,
    pub encode_ms_p99: f64,
    pub decode_ms_p50: f64,
    pub decode_ms_p99: f64,
    pub frames: usize,
    /// What a frame lasts.
    pub frame_ms: f64,
    /// Of all weights and codebooks, each of which a frame reads once.
    pub bytes_per_frame: usize,
    /// The time to read them at the measured bandwidth, divided by the medians' sum.
    pub share_of_ceiling: f64,
}

/// Frames that are not timed.
const WARMUP: usize = 20;

/// Times `frames` frames (at least one) of each job, a codec and a number of streams, all on `device`.
pub fn run(device: &Device, jobs: &[(&Codec, usize)], frames: usize) -> Result<(Vec<Row>, Ceilings)> {
    let time = || jobs.iter().map(|&(codec, batch)| time(codec, batch, frames.max(1))).collect::<Result<Vec<_>>>();
    let (times, ceilings) = ceilings::around(device, time)?;
    let row = |(&(codec, batch), (encode, decode)): (&(&Codec, usize), (Samples, Samples))| Row {
        model: codec.name().to_owned(),
        device: device.name(),
        dtype: codec.dtype().name(),
        batch,
        encode_ms_p50: encode.median() * 1e3,
        encode_ms_p99: encode.quantile(0.99) * 1e3,
        decode_ms_p50: decode.median() * 1e3,
        decode_ms_p99: decode.quantile(0.99) * 1e3,
        frames: encode.len(),
        frame_ms: 1e3 / codec.config().frame_rate(),
        bytes_per_frame: codec.bytes(),
        share_of_ceiling: codec.bytes() as f64 / ceilings.bytes / (encode.median() + decode.median()),
    };
    Ok((jobs.iter().zip(times).map(row).collect(), ceilings))
}

/// Seconds of encoding and of decoding a frame.
fn time(codec: &Codec, batch: usize, frames: usize) -> Result<(Samples, Samples)> {
    let mut session = Session::new(codec, batch)?;
    let hop = codec.config().hop();
    let (mut encode, mut decode) = (Vec::with_capacity(frames), Vec::with_capacity(frames));
    for frame in 0..WARMUP + frames {
        // Never silence: denormals and zeros are not what speech costs.
        let sample = |i: usize| 0.3 * ((frame * hop + i) as f32 * 0.037).sin() * (i as f32 * 0.0011).cos();
        let samples: Vec<f32> = (0..batch * hop).map(sample).collect();
        let start = Instant::now();
        let codes = session.encode(&codec.signal(&samples, batch)?, codec.codebooks(), None)?;
        let values = codes.to_vec::<i32>()?;
        let encoded = start.elapsed();
        let start = Instant::now();
        let codes = Tensor::from_slice(codec.device(), &values, codes.shape())?;
        codec.samples(&session.decode(&codes, None)?)?;
        let decoded = start.elapsed();
        if frame >= WARMUP {
            encode.push(encoded.as_secs_f64());
            decode.push(decoded.as_secs_f64());
        }
    }
    let nothing = || Error::Argument("no frames to time".into());
    Ok((Samples::new(encode).ok_or_else(nothing)?, Samples::new(decode).ok_or_else(nothing)?))
}
