//! RIFF/WAVE. Read by hand because recorders, pipes and crashes leave headers that strict readers refuse: sizes of zero,
//! of 2^32-1, or larger than the file.

use std::io::{self, Read};

use super::{Block, MAX_CHANNELS, Source, Warning};
use crate::AudioError;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Format {
    U8,
    S16,
    S24,
    S32,
    F32,
    F64,
    ALaw,
    MuLaw,
}

impl Format {
    fn new(tag: u16, bits: u16) -> Option<Self> {
        Some(match (tag, bits) {
            (1, 8) => Self::U8,
            (1, 16) => Self::S16,
            (1, 24) => Self::S24,
            (1, 32) => Self::S32,
            (3, 32) => Self::F32,
            (3, 64) => Self::F64,
            (6, 8) => Self::ALaw,
            (7, 8) => Self::MuLaw,
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::ALaw | Self::MuLaw => 1,
            Self::S16 => 2,
            Self::S24 => 3,
            Self::S32 | Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    fn decode(self, b: &[u8]) -> f32 {
        match self {
            Self::U8 => (b[0] as f32 - 128.0) / 128.0,
            Self::S16 => i16::from_le_bytes([b[0], b[1]]) as f32 / 32768.0,
            Self::S24 => (i32::from_le_bytes([0, b[0], b[1], b[2]]) >> 8) as f32 / 8_388_608.0,
            Self::S32 => (i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f64 / 2_147_483_648.0) as f32,
            Self::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Self::F64 => f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32,
            Self::ALaw => a_law(b[0]),
            Self::MuLaw => mu_law(b[0]),
        }
    }
}

/// ITU-T G.711, sign, 3 bits of exponent, 4 of mantissa, every other bit inverted.
fn a_law(byte: u8) -> f32 {
    let byte = byte ^ 0x55;
    let (exponent, mantissa) = ((byte >> 4) & 7, i32::from(byte & 15));
    let magnitude = match exponent {
        0 => (mantissa << 4) + 8,
        e => ((mantissa << 4) + 0x108) << (e - 1),
    };
    (if byte & 0x80 != 0 { magnitude } else { -magnitude }) as f32 / 32768.0
}

/// ITU-T G.711, all bits inverted, bias 132.
fn mu_law(byte: u8) -> f32 {
    let byte = !byte;
    let magnitude = (((i32::from(byte & 15) << 3) + 132) << ((byte >> 4) & 7)) - 132;
    (if byte & 0x80 != 0 { -magnitude } else { magnitude }) as f32 / 32768.0
}

pub(super) struct Wav<R> {
    reader: R,
    format: Format,
    channels: usize,
    rate: u32,
    /// Data bytes that the header promises and that are still to come; None: until the end of the file.
    left: Option<u64>,
    /// What the header promised, in frames.
    claimed: Option<u64>,
    read: u64,
    bytes: Vec<u8>,
    warnings: Vec<Warning>,
    done: bool,
}

impl<R: Read> Wav<R> {
    /// `reader` stands behind the 4 bytes of the marker `RIFF`, `RF64` or `BW64`.
    pub fn open(mut reader: R) -> Result<Self, AudioError> {
        let mut head = [0; 8];
        exact(&mut reader, &mut head)?;
        if &head[4..] != b"WAVE" {
            return Err(AudioError::NotAudio);
        }
        let (mut format, mut data_size64) = (None, None);
        loop {
            exact(&mut reader, &mut head)?;
            let size = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
            match &head[..4] {
                b"fmt " => format = Some(Self::format(&mut reader, size)?),
                b"ds64" if size >= 16 => {
                    let mut body = [0; 16];
                    exact(&mut reader, &mut body)?;
                    data_size64 = body[8..].try_into().ok().map(u64::from_le_bytes);
                    skip(&mut reader, padded(size) - 16)?;
                }
                b"data" => {
                    let (format, channels, rate) = format.ok_or_else(|| AudioError::Damaged("no fmt chunk before the data".into()))?;
                    let left = match size {
                        // Written to a pipe, or never finished.
                        0 | u32::MAX => data_size64.filter(|&n| n != 0 && n != u64::MAX),
                        n => Some(u64::from(n)),
                    };
                    let frame = (format.bytes() * channels) as u64;
                    return Ok(Self {
                        reader,
                        format,
                        channels,
                        rate,
                        left,
                        claimed: left.map(|n| n / frame),
                        read: 0,
                        bytes: vec![0; format.bytes() * channels * super::BLOCK],
                        warnings: Vec::new(),
                        done: false,
                    });
                }
                _ => skip(&mut reader, padded(size))?,
            }
        }
    }

    fn format(reader: &mut R, size: u32) -> Result<(Format, usize, u32), AudioError> {
        if size < 16 {
            return Err(AudioError::Damaged(format!("fmt chunk of {size} bytes, expected at least 16")));
        }
        let mut body = [0; 40];
        let held = size.min(40) as usize;
        exact(reader, &mut body[..held])?;
        skip(reader, padded(size) - held as u64)?;
        let u16_at = |at: usize| u16::from_le_bytes([body[at], body[at + 1]]);
        let channels = usize::from(u16_at(2));
        let rate = u32::from_le_bytes([body[4], body[5], body[6], body[7]]);
        let bits = u16_at(14);
        // WAVE_FORMAT_EXTENSIBLE: the true tag opens the sub-format.
        let tag = match u16_at(0) {
            0xfffe if held >= 26 => u16_at(24),
            tag => tag,
        };
        if !(1..=MAX_CHANNELS).contains(&channels) {
            return Err(AudioError::Channels(channels));
        }
        let format =
            Format::new(tag, bits).ok_or_else(|| AudioError::Unsupported(format!("wav format {tag} with {bits} bits a sample")))?;
        let align = usize::from(u16_at(12));
        if align != format.bytes() * channels {
            return Err(AudioError::Damaged(format!(
                "frames of {align} bytes, expected {} for {channels} channels of {bits} bits",
                format.bytes() * channels
            )));
        }
        Ok((format, channels, rate))
    }
}

impl<R: Read + Send> Source for Wav<R> {
    fn rate(&self) -> u32 {
        self.rate
    }

    fn channels(&self) -> usize {
        self.channels
    }

    fn frames(&self) -> Option<u64> {
        self.claimed
    }

    fn next(&mut self, out: &mut Block) -> Result<bool, AudioError> {
        out.clear();
        if self.done {
            return Ok(false);
        }
        let frame = self.format.bytes() * self.channels;
        let want = self.left.map_or(self.bytes.len(), |left| left.min(self.bytes.len() as u64) as usize);
        let got = fill(&mut self.reader, &mut self.bytes[..want]).map_err(super::damaged)?;
        self.left = self.left.map(|left| left - got as u64);
        let frames = got / frame;
        for sample in self.bytes[..frames * frame].chunks_exact(self.format.bytes()) {
            out.push(self.format.decode(sample));
        }
        self.read += frames as u64;
        self.done = got < want || want < self.bytes.len();
        if self.done {
            if self.read == 0 {
                let promised = self.claimed.is_some_and(|n| n > 0);
                return Err(if promised || got > 0 { AudioError::Truncated } else { AudioError::NoSamples });
            }
            match self.claimed {
                Some(claimed) if claimed > self.read => {
                    self.warnings.push(Warning::Short { claimed, found: self.read });
                }
                _ if got % frame != 0 => self.warnings.push(Warning::PartialFrame),
                _ => {}
            }
        }
        Ok(frames > 0)
    }

    fn warnings(&mut self) -> Vec<Warning> {
        std::mem::take(&mut self.warnings)
    }
}

/// Chunks start at even offsets.
fn padded(size: u32) -> u64 {
    u64::from(size) + u64::from(size & 1)
}

fn exact(reader: &mut impl Read, bytes: &mut [u8]) -> Result<(), AudioError> {
    match fill(reader, bytes) {
        Ok(n) if n == bytes.len() => Ok(()),
        Ok(_) => Err(AudioError::Truncated),
        Err(e) => Err(super::damaged(e)),
    }
}

fn skip(reader: &mut impl Read, bytes: u64) -> Result<(), AudioError> {
    match io::copy(&mut reader.take(bytes), &mut io::sink()) {
        Ok(n) if n == bytes => Ok(()),
        Ok(_) => Err(AudioError::Truncated),
        Err(e) => Err(super::damaged(e)),
    }
}

/// Reads until `bytes` is full or the end; returns how many.
pub(super) fn fill(reader: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut held = 0;
    while held < bytes.len() {
        match reader.read(&mut bytes[held..]) {
            Ok(0) => break,
            Ok(n) => held += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(held)
}
