use std::path::Path;

use super::MAX_RATE;
use crate::output::AtomicFile;
use crate::{Error, Result};

/// How samples are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WavFormat {
    /// 16-bit integers; rounded, and clipped to [-1, 1].
    #[default]
    S16,
    /// 32-bit floats, as they are.
    F32,
}

/// Writes a mono WAV piece by piece; the file appears under its name on [`finish`](Self::finish).
///
/// To a pipe or device the header says "until the end", since its length cannot be filled in afterwards.
#[derive(Debug)]
pub struct WavWriter {
    file: AtomicFile,
    format: WavFormat,
    pub(super) frames: u64,
    bytes: Vec<u8>,
}

const HEADER: u64 = 58;

impl WavWriter {
    pub fn create(path: impl AsRef<Path>, rate: u32, format: WavFormat) -> Result<Self> {
        let path = path.as_ref();
        if !(1..=MAX_RATE).contains(&rate) {
            return Err(Error::Output { path: path.to_owned(), why: format!("sample rate {rate} Hz") });
        }
        let mut file = AtomicFile::create(path)?;
        let unknown = if file.seekable() { 0 } else { u32::MAX };
        let (tag, size): (u16, u16) = match format {
            WavFormat::S16 => (1, 2),
            WavFormat::F32 => (3, 4),
        };
        let mut h = Vec::with_capacity(HEADER as usize);
        h.extend(b"RIFF");
        h.extend(unknown.to_le_bytes());
        h.extend(b"WAVEfmt ");
        h.extend(18_u32.to_le_bytes());
        h.extend(tag.to_le_bytes());
        h.extend(1_u16.to_le_bytes());
        h.extend(rate.to_le_bytes());
        h.extend((rate * u32::from(size)).to_le_bytes());
        h.extend(size.to_le_bytes());
        h.extend((size * 8).to_le_bytes());
        h.extend(0_u16.to_le_bytes());
        // Non-PCM data must state its length in frames; harmless for the rest.
        h.extend(b"fact");
        h.extend(4_u32.to_le_bytes());
        h.extend(unknown.to_le_bytes());
        h.extend(b"data");
        h.extend(unknown.to_le_bytes());
        debug_assert_eq!(h.len() as u64, HEADER);
        file.write(&h)?;
        Ok(Self { file, format, frames: 0, bytes: Vec::new() })
    }

    fn frame(&self) -> u64 {
        match self.format {
            WavFormat::S16 => 2,
            WavFormat::F32 => 4,
        }
    }

    /// Refuses what would take the file over the 4 GiB that a WAV header can express.
    pub fn write(&mut self, samples: &[f32]) -> Result<()> {
        let frames = self.frames + samples.len() as u64;
        if HEADER + frames * self.frame() > u64::from(u32::MAX) && self.file.seekable() {
            let why = format!("{frames} samples exceed the 4 GiB of a WAV file");
            return Err(Error::Output { path: self.file.path().to_owned(), why });
        }
        self.frames = frames;
        for part in samples.chunks(super::BLOCK) {
            self.bytes.clear();
            match self.format {
                WavFormat::S16 => part.iter().for_each(|&x| self.bytes.extend(super::to_s16(x).to_le_bytes())),
                WavFormat::F32 => part.iter().for_each(|x| self.bytes.extend(x.to_le_bytes())),
            }
            self.file.write(&self.bytes)?;
        }
        Ok(())
    }

    pub fn finish(mut self) -> Result<()> {
        if self.file.seekable() {
            let data = self.frames * self.frame();
            self.file.patch(4, &((HEADER - 8 + data) as u32).to_le_bytes())?;
            self.file.patch(46, &(self.frames as u32).to_le_bytes())?;
            self.file.patch(54, &(data as u32).to_le_bytes())?;
        }
        self.file.commit()
    }
}

/// The whole of `samples` as a mono WAV.
pub fn write(path: impl AsRef<Path>, samples: &[f32], rate: u32, format: WavFormat) -> Result<()> {
    let mut writer = WavWriter::create(path, rate, format)?;
    writer.write(samples)?;
    writer.finish()
}
