//! flac, mp3, ogg vorbis and aiff, by symphonia.

use std::fs::File;

use symphonia::core::audio::SampleBuffer;
use symphonia::core::codecs::{CODEC_TYPE_NULL, Decoder, DecoderOptions};
use symphonia::core::errors::Error as Symphonia;
use symphonia::core::formats::{FormatOptions, FormatReader};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::meta::MetadataOptions;
use symphonia::core::probe::Hint;

use super::{Block, MAX_CHANNELS, Source, Warning};
use crate::AudioError;
use crate::guard::caught;

pub(super) struct Compressed {
    reader: Box<dyn FormatReader>,
    decoder: Box<dyn Decoder>,
    track: u32,
    rate: u32,
    channels: usize,
    claimed: Option<u64>,
    read: u64,
    damaged: u64,
    done: bool,
    warnings: Vec<Warning>,
}

impl Compressed {
    pub fn open(file: File, extension: &str) -> Result<Self, AudioError> {
        guard(|| Self::probe(file, extension))
    }

    fn probe(file: File, extension: &str) -> Result<Self, AudioError> {
        let stream = MediaSourceStream::new(Box::new(file), Default::default());
        let mut hint = Hint::new();
        hint.with_extension(extension);
        let options = FormatOptions { enable_gapless: true, ..Default::default() };
        let reader = symphonia::default::get_probe()
            .format(&hint, stream, &options, &MetadataOptions::default())
            .map_err(|e| match e {
                Symphonia::Unsupported(_) => AudioError::NotAudio,
                Symphonia::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => AudioError::Truncated,
                e => AudioError::Damaged(e.to_string()),
            })?
            .format;
        let track = reader
            .tracks()
            .iter()
            .find(|t| t.codec_params.codec != CODEC_TYPE_NULL)
            .ok_or_else(|| AudioError::Unsupported("no audio track".into()))?;
        let params = &track.codec_params;
        let decoder = symphonia::default::get_codecs()
            .make(params, &DecoderOptions::default())
            .map_err(|e| AudioError::Unsupported(e.to_string()))?;
        let (id, rate, claimed) = (track.id, params.sample_rate.unwrap_or(0), params.n_frames);
        let channels = params.channels.map_or(0, |c| c.count());
        let source = Self {
            reader,
            decoder,
            track: id,
            rate,
            channels,
            claimed: claimed.filter(|&n| n > 0),
            read: 0,
            damaged: 0,
            done: false,
            warnings: Vec::new(),
        };
        if rate == 0 || channels == 0 {
            return Err(AudioError::Damaged("no sample rate or channel count".into()));
        }
        if channels > MAX_CHANNELS {
            return Err(AudioError::Channels(channels));
        }
        Ok(source)
    }

    fn decode(&mut self, out: &mut Block) -> Result<bool, AudioError> {
        loop {
            let packet = match self.reader.next_packet() {
                Ok(packet) => packet,
                Err(Symphonia::IoError(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(self.end()),
                Err(Symphonia::ResetRequired) => {
                    if !self.chain() {
                        self.warnings.push(Warning::Chained);
                        return Ok(self.end());
                    }
                    continue;
                }
                Err(e) if self.read == 0 => return Err(AudioError::Damaged(e.to_string())),
                Err(_) => {
                    self.damaged += 1;
                    return Ok(self.end());
                }
            };
            if packet.track_id() != self.track {
                continue;
            }
            match self.decoder.decode(&packet) {
                Ok(audio) => {
                    let (spec, frames) = (*audio.spec(), audio.frames());
                    if frames == 0 {
                        continue;
                    }
                    if spec.rate != self.rate || spec.channels.count() != self.channels {
                        return Err(AudioError::Unsupported("rate or channels change within the file".into()));
                    }
                    let mut samples = SampleBuffer::<f32>::new(audio.capacity() as u64, spec);
                    samples.copy_interleaved_ref(audio);
                    out.extend_from_slice(samples.samples());
                    self.read += frames as u64;
                    return Ok(true);
                }
                Err(Symphonia::DecodeError(_) | Symphonia::IoError(_)) => self.damaged += 1,
                Err(e) => return Err(AudioError::Damaged(e.to_string())),
            }
        }
    }

    /// Goes over to the next stream of a chain, if it is like the one before.
    fn chain(&mut self) -> bool {
        let Some(track) = self.reader.tracks().iter().find(|t| t.codec_params.codec != CODEC_TYPE_NULL) else {
            return false;
        };
        let params = &track.codec_params;
        if params.sample_rate != Some(self.rate) || params.channels.map(|c| c.count()) != Some(self.channels) {
            return false;
        }
        match symphonia::default::get_codecs().make(params, &DecoderOptions::default()) {
            Ok(decoder) => {
                // What is claimed was said of the first stream only.
                (self.track, self.decoder, self.claimed) = (track.id, decoder, None);
                true
            }
            Err(_) => false,
        }
    }

    /// Always false: nothing more comes.
    fn end(&mut self) -> bool {
        self.done = true;
        if self.damaged > 0 {
            self.warnings.push(Warning::DamagedPackets(self.damaged));
        }
        if let Some(claimed) = self.claimed.filter(|&n| n > self.read && self.read > 0) {
            self.warnings.push(Warning::Short { claimed, found: self.read });
        }
        false
    }
}

impl Source for Compressed {
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
        let more = guard(|| self.decode(out))?;
        match (more, self.read) {
            (false, 0) if self.claimed.is_some() || self.damaged > 0 => Err(AudioError::Truncated),
            _ => Ok(more),
        }
    }

    fn warnings(&mut self) -> Vec<Warning> {
        std::mem::take(&mut self.warnings)
    }
}

/// A decoder may panic on a damaged file.
fn guard<T>(work: impl FnOnce() -> Result<T, AudioError>) -> Result<T, AudioError> {
    caught(work).unwrap_or_else(|| Err(AudioError::Damaged("the decoder gave up".into())))
}
