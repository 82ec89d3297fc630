//! Samples in and out: mono, little-endian, no header.

use std::io::{self, Read};

use clap::ValueEnum;
use swara_loader::audio::to_s16;

/// How a sample is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pcm {
    /// 16-bit integers
    S16,
    /// 32-bit floats, 1 being full scale
    F32,
}

impl Pcm {
    pub fn bytes(self) -> usize {
        match self {
            Pcm::S16 => 2,
            Pcm::F32 => 4,
        }
    }

    /// Appends `samples`; of s16 rounded, and clipped to [-1, 1].
    pub fn write(self, samples: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Pcm::S16 => samples.iter().for_each(|&x| bytes.extend(to_s16(x).to_le_bytes())),
            Pcm::F32 => samples.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
        }
    }

    fn read(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Pcm::S16 => bytes.as_chunks().0.iter().map(|&b| f32::from(i16::from_le_bytes(b)) / 32768.0).collect(),
            Pcm::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        }
    }
}

/// A frame of what came.
#[derive(Debug, PartialEq)]
pub struct Frame {
    /// In [-1, 1]; the end of the last frame is silence.
    pub samples: Vec<f32>,
    /// Samples that came.
    pub real: usize,
}

/// What could not be heard as it came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Bytes at the end that are no whole sample.
    pub stray: usize,
    /// Samples that are no finite number: heard as silence.
    pub not_finite: u64,
    /// Samples beyond full scale: clipped.
    pub clipped: u64,
}

/// Cuts a stream of bytes into frames.
pub struct Frames<R> {
    input: R,
    pcm: Pcm,
    bytes: Vec<u8>,
    pub damage: Damage,
}

impl<R: Read> Frames<R> {
    /// Frames of `hop` samples.
    pub fn new(input: R, pcm: Pcm, hop: usize) -> Frames<R> {
        Frames { input, pcm, bytes: vec![0; hop * pcm.bytes()], damage: Damage::default() }
    }

    /// The next frame; None at the end.
    pub fn next(&mut self) -> io::Result<Option<Frame>> {
        let mut held = 0;
        while held < self.bytes.len() {
            match self.input.read(&mut self.bytes[held..]) {
                Ok(0) => break,
                Ok(n) => held += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let size = self.pcm.bytes();
        let (real, hop) = (held / size, self.bytes.len() / size);
        self.damage.stray += held % size;
        if real == 0 {
            return Ok(None);
        }
        let mut samples = self.pcm.read(&self.bytes[..real * size]);
        for sample in &mut samples {
            match *sample {
                x if !x.is_finite() => (self.damage.not_finite, *sample) = (self.damage.not_finite + 1, 0.0),
                x if x.abs() > 1.0 => (self.damage.clipped, *sample) = (self.damage.clipped + 1, x.clamp(-1.0, 1.0)),
                _ => {}
            }
        }
        samples.resize(hop, 0.0);
        Ok(Some(Frame { samples, real }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in small, uneven pieces, with interruptions.
    struct Drops<'a>(&'a [u8], usize);

    impl Read for Drops<'_> {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            self.1 += 1;
            if self.1.is_multiple_of(3) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let n = (self.1 % 5 + 1).min(to.len()).min(self.0.len());
            to[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn frames(bytes: &[u8], pcm: Pcm, hop: usize) -> (Vec<Frame>, Damage) {
        let mut frames = Frames::new(Drops(bytes, 0), pcm, hop);
        let found = std::iter::from_fn(|| frames.next().unwrap()).collect();
        (found, frames.damage)
    }

    #[test]
    fn bytes_become_whole_frames_however_they_come() {
        let samples = [0i16, 1, -1, i16::MAX, i16::MIN, 12345, -777];
        let bytes: Vec<u8> = samples.iter().flat_map(|s| s.to_le_bytes()).collect();
        let values = |range: std::ops::Range<usize>| samples[range].iter().map(|&s| f32::from(s) / 32768.0).collect::<Vec<_>>();
        let (found, damage) = frames(&bytes, Pcm::S16, 3);
        let last = [values(6..7), vec![0.0; 2]].concat();
        let expected = [(values(0..3), 3), (values(3..6), 3), (last, 1)].map(|(samples, real)| Frame { samples, real });
        assert_eq!((&found[..], damage), (&expected[..], Damage::default()));
        let (odd, damage) = frames(&bytes[..13], Pcm::S16, 3);
        assert_eq!((&odd[..], damage.stray), (&expected[..2], 1));
        assert_eq!(frames(&bytes[..1], Pcm::S16, 3), (Vec::new(), Damage { stray: 1, ..Damage::default() }));
        assert_eq!(frames(&[], Pcm::F32, 3), (Vec::new(), Damage::default()));
    }

    #[test]
    fn what_is_no_sample_is_silence_or_full_scale() {
        let samples = [0.5, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -1.5, -1.0, 1e-40];
        let bytes: Vec<u8> = samples.iter().flat_map(|s| s.to_le_bytes()).collect();
        let (found, damage) = frames(&bytes, Pcm::F32, 8);
        assert_eq!(found, [Frame { samples: vec![0.5, 0.0, 0.0, 0.0, 1.0, -1.0, -1.0, 1e-40], real: 8 }]);
        assert_eq!(damage, Damage { stray: 0, not_finite: 3, clipped: 2 });
    }

    #[test]
    fn samples_are_written_as_they_are_read() {
        let samples = [0.0, 0.25, 0.1, -1.0, 7.0, -1e-40];
        let mut bytes = Vec::new();
        Pcm::S16.write(&samples, &mut bytes);
        assert_eq!(bytes, [0i16, 8192, 3277, -32767, 32767, 0].map(i16::to_le_bytes).concat());
        let mut bytes = Vec::new();
        Pcm::F32.write(&samples, &mut bytes);
        assert_eq!((Pcm::F32.read(&bytes), bytes.len()), (samples.to_vec(), 24));
    }
}
