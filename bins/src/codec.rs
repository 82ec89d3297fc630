//! Files through a codec, in bounded memory, with the time it takes.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use swara_benches::timing::Samples;
use swara_engine::codec::{Codec, Codes, Session, Stored};
use swara_kernels::{DType, Device, Tensor};
use swara_loader::audio::AudioReader;

use crate::common::{Common, Dtype};
use crate::failure::{Failure, Result};
use crate::terminal;

/// Name of the codec in the binary.
pub const BUNDLED: &str = "swara-te50";
const BUNDLED_BYTES: &[u8] = include_bytes!("../data/swara-te50.safetensors");
/// A sentence of a speaker the bundled codec was not trained to reproduce word for word; see `data/README.md`.
pub const CLIP: &[u8] = include_bytes!("../data/clip.flac");

/// Frames taken at a time where nobody waits for each.
const CHUNK: usize = 64;

/// [`CLIP`] as a file, for as long as this is there.
pub struct UnpackedClip {
    _folder: tempfile::TempDir,
    pub path: PathBuf,
}

impl UnpackedClip {
    pub fn new() -> Result<UnpackedClip> {
        let fail = |e: std::io::Error| Failure::work(format!("cannot unpack the bundled clip: {e}"));
        let folder = tempfile::tempdir().map_err(fail)?;
        let path = folder.path().join("clip.flac");
        std::fs::write(&path, CLIP).map_err(fail)?;
        Ok(UnpackedClip { _folder: folder, path })
    }
}

/// Opens `model`: the bundled one by its name, a file, or a folder.
pub fn open(common: &Common, model: &str) -> Result<Codec> {
    open_on(common, &common.open_device()?, model)
}

/// The same on a device that is open.
pub fn open_on(common: &Common, device: &Device, model: &str) -> Result<Codec> {
    let path = Path::new(model);
    if model == BUNDLED && !path.exists() {
        return Ok(Codec::from_bytes(BUNDLED, BUNDLED_BYTES, device, stored(common, device)?)?);
    }
    open_file(common, device, path).map_err(|failure| if path.exists() { failure } else { failure.hint(format!("bundled: {BUNDLED}")) })
}

/// Opens a file or a folder.
pub fn open_file(common: &Common, device: &Device, path: &Path) -> Result<Codec> {
    let stored = stored(common, device)?;
    if !path.exists() {
        return Err(Failure::file("cannot open model", "no such file", path));
    }
    Ok(Codec::open(path, device, stored)?)
}

/// How a codec's weights are kept on `device`, as --dtype has it.
pub fn stored(common: &Common, device: &Device) -> Result<Stored> {
    Ok(match common.dtype {
        None => DType::F32.into(),
        Some(Dtype::Of(dtype)) if *device == Device::Cpu && !matches!(dtype, DType::F32 | DType::BF16) => {
            return Err(Failure::usage(format!("--dtype: the CPU has weights in f32, bf16 or int8, not in {dtype}")));
        }
        Some(Dtype::Of(dtype)) => dtype.into(),
        Some(Dtype::Int8) if *device != Device::Cpu => {
            return Err(Failure::usage(format!("--dtype: int8 is for a codec on the CPU, not on {}", device.name())));
        }
        Some(Dtype::Int8) => Stored::INT8,
    })
}

/// How many codebooks to use: those asked for, or all.
pub fn codebooks(codec: &Codec, asked: Option<usize>) -> Result<usize> {
    let has = codec.codebooks();
    match asked {
        None => Ok(has),
        Some(n) if (1..=has).contains(&n) => Ok(n),
        Some(n) => Err(Failure::usage(format!("--codebooks: {n}, expected 1 to {has} ({})", codec.name()))),
    }
}

/// Wall times of one kind of work: of all calls, or of the last ones where there are very many.
#[derive(Default)]
pub struct Times {
    calls: Vec<Duration>,
    count: usize,
    total: Duration,
    longest: Duration,
}

/// Calls whose times are kept: three hours of 80 ms frames, in 2 MB.
const KEPT_CALLS: usize = 1 << 17;

impl Times {
    pub fn time<T>(&mut self, device: &Device, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let value = work()?;
        device.synchronize()?;
        self.push(start.elapsed());
        Ok(value)
    }

    pub fn push(&mut self, call: Duration) {
        match self.calls.get_mut(self.count % KEPT_CALLS) {
            Some(oldest) => *oldest = call,
            None => self.calls.push(call),
        }
        self.count += 1;
        self.total += call;
        self.longest = self.longest.max(call);
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Of all calls.
    pub fn total(&self) -> Duration {
        self.total
    }

    /// Of all calls, in ms.
    pub fn max_ms(&self) -> f64 {
        self.longest.as_secs_f64() * 1e3
    }

    /// The time in ms that a share of the calls stays within.
    pub fn percentile_ms(&self, share: f64) -> f64 {
        Samples::new(self.calls.iter().map(Duration::as_secs_f64).collect()).map_or(0.0, |samples| samples.quantile(share) * 1e3)
    }
}

/// Runs samples and codes through a codec piece by piece. For a causal codec the size of the pieces changes no result.
pub struct Pipe<'a> {
    codec: &'a Codec,
    /// None for codecs that need the whole signal.
    session: Option<Session<'a>>,
    codebooks: usize,
    /// Loudness of each of the pieces that some codecs code by themselves: of what was encoded last, for what is decoded next.
    pub scales: Vec<f32>,
    /// What is left of each frame that is encoded, as [`Codec::encode_measured`] says it, if that is wanted.
    pub left: Option<Vec<f32>>,
    /// Seconds that a file may last, and what is said of a longer one.
    pub most: Option<(u64, String)>,
    pub encode_times: Times,
    pub decode_times: Times,
}

impl<'a> Pipe<'a> {
    pub fn new(codec: &'a Codec, codebooks: usize, stream: bool) -> Result<Pipe<'a>> {
        if stream && !codec.format().causal {
            return Err(Failure::usage(format!("--stream: {} is not causal", codec.name())));
        }
        let session = if codec.format().causal { Some(warm_session(codec, codebooks)?) } else { None };
        Ok(Pipe {
            codec,
            session,
            codebooks,
            scales: Vec::new(),
            left: None,
            most: None,
            encode_times: Times::default(),
            decode_times: Times::default(),
        })
    }

    /// Samples a second.
    pub fn rate(&self) -> u32 {
        self.codec.format().sample_rate
    }

    pub fn hop(&self) -> usize {
        self.codec.format().hop
    }

    fn check_length(&self, samples: u64) -> Result {
        match &self.most {
            Some((seconds, why)) if samples > seconds * u64::from(self.rate()) => Err(Failure::usage(why)),
            _ => Ok(()),
        }
    }

    /// Codes `[frames, columns]` for `samples`: whole frames, or the whole signal.
    fn encode(&mut self, samples: &[f32]) -> Result<Vec<i32>> {
        let (codec, codebooks) = (self.codec, self.codebooks);
        let (session, scales, left) = (&mut self.session, &mut self.scales, &mut self.left);
        self.encode_times.time(codec.device(), || match session {
            Some(session) => {
                let x = codec.signal(samples, 1)?;
                let codes = match left {
                    Some(left) => session.encode_measured(&x, codebooks, left)?,
                    None => session.encode(&x, codebooks, None)?,
                };
                terminal::warn_without_graph(session.no_graph());
                Ok(codes.to_vec::<i32>()?)
            }
            None => {
                let samples = on_all_channels(codec, samples);
                let codes = match left {
                    Some(left) => {
                        let (codes, found) = codec.encode_measured(&samples, codebooks)?;
                        left.extend(found);
                        codes
                    }
                    None => codec.encode(&samples, codebooks)?,
                };
                *scales = codes.scales;
                Ok(codec.format().by_frame(&codes.values, codebooks))
            }
        })
    }

    /// Samples for `codes [frames, columns]`.
    fn decode(&mut self, codes: &[i32]) -> Result<Vec<f32>> {
        let (codec, codebooks, columns) = (self.codec, self.codebooks, self.columns());
        let frames = codes.len() / columns;
        let (session, scales) = (&mut self.session, &self.scales);
        self.decode_times.time(codec.device(), || match session {
            Some(session) => {
                let codes = Tensor::from_slice(codec.device(), codes, [1, frames, columns])?;
                let samples = codec.samples(&session.decode(&codes, None)?)?;
                terminal::warn_without_graph(session.no_graph());
                Ok(samples)
            }
            None => {
                let values = codec.format().by_codebook(codes, codebooks);
                Ok(of_all_channels(codec, codec.decode(&Codes { codebooks, frames, values, scales: scales.clone() })?))
            }
        })
    }

    /// Codes a frame.
    fn columns(&self) -> usize {
        self.codec.format().columns(self.codebooks)
    }
}

/// Mono as what the codec takes: the same on every channel.
fn on_all_channels<'s>(codec: &Codec, samples: &'s [f32]) -> Cow<'s, [f32]> {
    match codec.format().channels {
        1 => Cow::Borrowed(samples),
        n => Cow::Owned(samples.iter().flat_map(|&v| std::iter::repeat_n(v, n)).collect()),
    }
}

/// The mean of the codec's channels.
fn of_all_channels(codec: &Codec, samples: Vec<f32>) -> Vec<f32> {
    match codec.format().channels {
        1 => samples,
        n => samples.chunks_exact(n).map(|row| row.iter().sum::<f32>() / n as f32).collect(),
    }
}

/// A session whose kernels have been compiled and whose memory has been allocated; its streams start anew.
pub fn warm_session(codec: &Codec, codebooks: usize) -> Result<Session<'_>> {
    let mut session = Session::new(codec, 1)?;
    let x = codec.signal(&vec![0.0; codec.format().hop], 1)?;
    let codes = session.encode(&x, codebooks, None)?;
    session.decode(&codes, None)?;
    session.reset(&Tensor::from_slice(codec.device(), &[1u8], [1])?)?;
    codec.device().synchronize()?;
    Ok(session)
}

/// What is done with each piece: its samples (the last one padded to whole frames, and how many are real) and its codes.
pub type Take<'t> = dyn FnMut(&mut Pipe, &[f32], usize, &[i32]) -> Result + 't;

/// Encodes a file. Returns how many samples it has.
pub fn encode_file(pipe: &mut Pipe, path: &Path, stream: bool, take: &mut Take) -> Result<u64> {
    let mut reader = AudioReader::open(path, Some(pipe.codec.format().sample_rate))?;
    let bar = terminal::progress(reader.expected_samples(), "encode");
    let piece = match (&pipe.session, stream) {
        (None, _) => usize::MAX,
        (Some(_), true) => pipe.hop(),
        (Some(_), false) => CHUNK * pipe.hop(),
    };
    let mut pending: Vec<f32> = Vec::new();
    let mut total = 0u64;
    for samples in &mut reader {
        pending.extend(samples?);
        pipe.check_length(total + pending.len() as u64)?;
        if pipe.session.is_none() {
            pipe.codec.check_whole(pending.len())?;
        }
        let mut used = 0;
        while pending.len() - used >= piece {
            let codes = pipe.encode(&pending[used..used + piece])?;
            take(pipe, &pending[used..used + piece], piece, &codes)?;
            used += piece;
        }
        pending.drain(..used);
        total += used as u64;
        bar.set_position(total);
    }
    while !pending.is_empty() {
        let real = if stream { pending.len().min(pipe.hop()) } else { pending.len() };
        let mut last: Vec<f32> = pending.drain(..real).collect();
        last.resize(real.next_multiple_of(pipe.codec.format().pad_to), 0.0);
        let codes = pipe.encode(&last)?;
        take(pipe, &last, real, &codes)?;
        total += real as u64;
    }
    bar.finish_and_clear();
    reader.warnings().iter().for_each(|w| terminal::warn(format!("{w} ({})", path.display())));
    Ok(total)
}

/// Decodes codes `[frames, columns]`, giving samples piece by piece.
pub fn decode_frames(pipe: &mut Pipe, codes: &[i32], stream: bool, take: &mut dyn FnMut(&[f32]) -> Result) -> Result {
    let columns = pipe.columns();
    let frames = codes.len() / columns;
    let bar = terminal::progress(Some(frames as u64), "decode");
    let piece = match (&pipe.session, stream) {
        (None, _) => frames.max(1),
        (Some(_), true) => 1,
        (Some(_), false) => CHUNK,
    };
    for part in codes.chunks(piece * columns) {
        take(&pipe.decode(part)?)?;
        bar.inc((part.len() / columns) as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Encodes what [`encode_file`] gives straight back to samples.
pub fn decode_piece(pipe: &mut Pipe, codes: &[i32]) -> Result<Vec<f32>> {
    pipe.decode(codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_calls() {
        let mut times = Times::default();
        (1..=100).rev().for_each(|ms| times.push(Duration::from_millis(ms)));
        assert_eq!((times.percentile_ms(0.5), times.percentile_ms(0.99), times.max_ms()), (51.0, 100.0, 100.0));
        assert_eq!(times.total(), Duration::from_millis(5050));
        assert_eq!(Times::default().percentile_ms(0.5), 0.0);
    }

    #[test]
    fn of_very_many_calls_the_last_are_kept() {
        let mut times = Times::default();
        times.push(Duration::from_millis(9));
        (0..2 * KEPT_CALLS).for_each(|_| times.push(Duration::from_millis(1)));
        assert_eq!((times.calls.len(), times.percentile_ms(1.0), times.max_ms()), (KEPT_CALLS, 1.0, 9.0));
    }
}
