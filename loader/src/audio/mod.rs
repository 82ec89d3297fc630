//! Audio files to mono samples at the rate that is wanted, in bounded memory; and back.

mod compressed;
pub mod g722;
mod resample;
#[cfg(test)]
mod tests;
mod wav;
mod write;

use std::fs::File;
use std::io::{self, BufReader, Seek};
use std::path::{Path, PathBuf};

pub use resample::{Resampler, resampled_len};
pub use write::{WavFormat, WavWriter, write};

use crate::{AudioError, Error, Result};

/// Lowest sample rate taken, Hz: a resampler's memory grows with the ratio of the rates, which a header may claim.
pub const MIN_RATE: u32 = 1000;
/// Highest sample rate taken, Hz.
pub const MAX_RATE: u32 = 768_000;
/// Most channels taken.
pub const MAX_CHANNELS: usize = 64;
/// Frames in a piece.
const BLOCK: usize = 4096;

/// Interleaved samples.
type Block = Vec<f32>;

/// Mono samples in memory.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Audio {
    /// Nominally in [-1, 1].
    pub samples: Vec<f32>,
    /// Hz.
    pub sample_rate: u32,
    /// What was wrong with the file, yet did not keep it from being read.
    pub warnings: Vec<Warning>,
}

impl Audio {
    pub fn seconds(&self) -> f64 {
        self.samples.len() as f64 / f64::from(self.sample_rate)
    }
}

/// A flaw that a file was read in spite of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    #[error("the header claims {claimed} frames, the file has {found}")]
    Short { claimed: u64, found: u64 },
    #[error("the file ends within a frame")]
    PartialFrame,
    #[error("{0} damaged packets were left out")]
    DamagedPackets(u64),
    #[error("a second stream of another kind is chained to the first and was left out")]
    Chained,
}

/// A decoder of one file.
trait Source: Send {
    fn rate(&self) -> u32;
    fn channels(&self) -> usize;
    /// Frames that the header claims.
    fn frames(&self) -> Option<u64>;
    /// Replaces `out` by the next interleaved frames; false at the end.
    fn next(&mut self, out: &mut Block) -> Result<bool, AudioError>;
    fn warnings(&mut self) -> Vec<Warning>;
}

/// Reads a file piece by piece: an iterator over mono samples (the mean of all channels) at one rate.
///
/// All pieces together have `round(frames * rate / source_rate)` samples, and time zero stays time zero.
pub struct AudioReader {
    path: PathBuf,
    source: Box<dyn Source>,
    rate: u32,
    resampler: Option<Resampler>,
    block: Block,
    mono: Vec<f32>,
    frames: u64,
    done: bool,
    warnings: Vec<Warning>,
}

impl AudioReader {
    /// `rate`: Hz wanted; None keeps the file's own.
    pub fn open(path: impl AsRef<Path>, rate: Option<u32>) -> Result<Self> {
        let path = path.as_ref();
        let fail = |why| Error::Audio { path: path.to_owned(), why };
        let source = open_source(path)?;
        let (from, to) = (source.rate(), rate.unwrap_or(source.rate()));
        for rate in [from, to] {
            if !(MIN_RATE..=MAX_RATE).contains(&rate) {
                return Err(fail(AudioError::Rate(rate)));
            }
        }
        let resampler = match from == to {
            true => None,
            false => Some(Resampler::new(from, to).map_err(|e| fail(AudioError::Unsupported(e)))?),
        };
        Ok(Self {
            path: path.to_owned(),
            source,
            rate: to,
            resampler,
            block: Vec::new(),
            mono: Vec::new(),
            frames: 0,
            done: false,
            warnings: Vec::new(),
        })
    }

    /// Hz of the samples given.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// Hz in the file.
    pub fn source_rate(&self) -> u32 {
        self.source.rate()
    }

    pub fn channels(&self) -> usize {
        self.source.channels()
    }

    /// How many samples will come if the header is right; None if it does not say. For progress only.
    pub fn expected_samples(&self) -> Option<u64> {
        self.source.frames().map(|n| resampled_len(n, self.source.rate(), self.rate))
    }

    /// What was wrong so far; complete when the last piece has been read.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    fn piece(&mut self) -> Result<Option<Vec<f32>>, AudioError> {
        let mut out = Vec::new();
        while out.is_empty() && !self.done {
            let more = self.source.next(&mut self.block);
            self.warnings.append(&mut self.source.warnings());
            if !more? {
                self.done = true;
                if self.frames == 0 {
                    return Err(AudioError::NoSamples);
                }
                if let Some(resampler) = &mut self.resampler {
                    resampler.finish(&mut out).map_err(AudioError::Damaged)?;
                }
                break;
            }
            self.downmix()?;
            match &mut self.resampler {
                Some(resampler) => resampler.feed(&self.mono, &mut out).map_err(AudioError::Damaged)?,
                None => out.append(&mut self.mono),
            }
        }
        if let Some(at) = out.iter().position(|x| !x.is_finite()) {
            return Err(AudioError::Damaged(format!("samples too large to resample near sample {}", self.frames + at as u64)));
        }
        Ok((!out.is_empty()).then_some(out))
    }

    fn downmix(&mut self) -> Result<(), AudioError> {
        let channels = self.source.channels();
        if let Some(at) = self.block.iter().position(|x| !x.is_finite()) {
            let (index, channel) = (self.frames + (at / channels) as u64, at % channels);
            return Err(AudioError::NonFinite { index, channel, value: self.block[at] });
        }
        self.mono.clear();
        self.mono.extend(
            self.block.chunks_exact(channels).map(|frame| (frame.iter().map(|&x| f64::from(x)).sum::<f64>() / channels as f64) as f32),
        );
        self.frames += self.mono.len() as u64;
        Ok(())
    }
}

impl Iterator for AudioReader {
    type Item = Result<Vec<f32>>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.piece() {
            Ok(piece) => piece.map(Ok),
            Err(why) => {
                self.done = true;
                Some(Err(Error::Audio { path: self.path.clone(), why }))
            }
        }
    }
}

/// The whole file as mono samples. `rate`: Hz wanted; None keeps the file's own.
pub fn read(path: impl AsRef<Path>, rate: Option<u32>) -> Result<Audio> {
    let mut reader = AudioReader::open(path, rate)?;
    let mut samples = Vec::new();
    for piece in &mut reader {
        samples.append(&mut piece?);
    }
    Ok(Audio { samples, sample_rate: reader.rate, warnings: reader.warnings })
}

/// `round(32767 x)`, clipped; NaN is 0.
pub fn to_s16(x: f32) -> i16 {
    (x.clamp(-1.0, 1.0) * 32767.0).round() as i16
}

/// Extensions that [`AudioReader`] may know; what the file really is, its first bytes decide (but for g722, which has none).
pub const EXTENSIONS: [&str; 9] = ["wav", "wave", "flac", "mp3", "ogg", "oga", "aiff", "aif", "g722"];

fn open_source(path: &Path) -> Result<Box<dyn Source>> {
    let io = |e| Error::io("open audio", path, e);
    let fail = |why| Error::Audio { path: path.to_owned(), why };
    let mut file = File::open(path).map_err(io)?;
    if file.metadata().map_err(io)?.is_dir() {
        return Err(fail(AudioError::Directory));
    }
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    if extension == "g722" {
        if file.metadata().map_err(io)?.len() == 0 {
            return Err(fail(AudioError::Empty));
        }
        return Ok(Box::new(g722::G722::new(BufReader::new(file))));
    }
    let mut magic = [0; 4];
    let held = wav::fill(&mut file, &mut magic).map_err(io)?;
    let source: Result<Box<dyn Source>, AudioError> = match &magic {
        _ if held == 0 => Err(AudioError::Empty),
        b"RIFF" | b"RF64" | b"BW64" => wav::Wav::open(BufReader::new(file)).map(|s| -> Box<dyn Source> { Box::new(s) }),
        b"fLaC" | b"OggS" | b"FORM" | [b'I', b'D', b'3', _] | [0xff, 0xe0..=0xff, _, _] => {
            file.rewind().map_err(io)?;
            compressed::Compressed::open(file, &extension).map(|s| -> Box<dyn Source> { Box::new(s) })
        }
        _ => Err(AudioError::NotAudio),
    };
    source.map_err(fail)
}

fn damaged(e: io::Error) -> AudioError {
    AudioError::Damaged(e.to_string())
}
