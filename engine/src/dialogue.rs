//! A conversation with a language model that hears and speaks through a codec, frame by frame.

use std::time::{Duration, Instant};

use swara_kernels::device::Graph;
use swara_kernels::ops::elementwise;
use swara_kernels::{Cuda, DType, Device, Tensor, span};

use crate::codec::{Codec, Session as CodecSession, unobserved};
use crate::lm::session::Streams;
use crate::lm::{Conditions, Config, Drawing, Lm, Prompt};
use crate::{Error, Result};

/// A frame of what the model hears.
#[derive(Clone, Copy)]
pub enum Heard<'s> {
    /// `[hop]`, of the codec.
    Samples(&'s [f32]),
    /// `[K]`
    Codes(&'s [i32]),
}

/// What a frame that was heard brought.
pub struct Turn {
    /// The text, then the codes of what is said; None in the first frames, as many as the model's greatest delay.
    pub said: Option<Vec<i32>>,
    /// `[hop]`: the same as sound, where there is a codec and it is wanted.
    pub samples: Option<Vec<f32>>,
    /// How long what took; None where the frame was one graph.
    pub took: Option<Took>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Took {
    pub encode: Option<Duration>,
    pub lm: Duration,
    pub decode: Option<Duration>,
}

/// One stream, heard and answered.
///
/// On CUDA a frame that was encoded and is decoded as the one before it was is recorded as one graph, and is from then on one upload, one
/// launch and one download. [`Dialogue::live`] records before the first frame comes. Where no graph can be had
/// ([`Dialogue::no_graph`]), every kernel is launched by itself. What is said is the same.
pub struct Dialogue<'a> {
    lm: &'a Lm,
    streams: Streams,
    speech: Option<Speech<'a>>,
    /// Whether what is said becomes sound.
    aloud: bool,
    /// How many frames were heard.
    frames: usize,
    /// Until when nothing is complete.
    delay: usize,
    /// Whether the next frame is in the past: it is heard as any other, and then the codec begins anew.
    past: bool,
    text_logits: Option<Tensor>,
    /// Of the last frame that was launched kernel by kernel.
    last: Option<Kind>,
    recording: Option<Recording>,
    graphs: bool,
    refused: Option<String>,
}

/// The codec at both ends.
struct Speech<'a> {
    codec: &'a Codec,
    session: CodecSession<'a>,
    heard: usize,
    said: usize,
}

/// What frames that one graph can stand for have in common: what they hear, and whether they become sound.
#[derive(Clone, Copy, PartialEq)]
struct Kind {
    heard: DType,
    aloud: bool,
}

/// A frame with tensors of its own for what goes in and comes out.
struct Recording {
    kind: Kind,
    input: Tensor,
    /// u8: what is complete, then samples.
    output: Tensor,
    text_logits: Tensor,
    graph: Graph,
}

/// Codebooks of what is said: of those that are generated as many as are heard, the rest being for others.
fn voice_codebooks(config: &Config) -> usize {
    config.dep_q.min(config.heard())
}

/// Whether a codec makes and takes the codes of a model of this configuration.
///
/// # Errors
/// Why it does not.
pub fn check(codec: &Codec, config: &Config) -> Result<()> {
    codec.check_voice(voice_codebooks(config).max(config.heard()), config.card..=config.card)
}

/// The mask of a single stream.
fn one(device: &Device) -> Result<Tensor> {
    Ok(Tensor::from_slice(device, &[1u8], [1])?)
}

impl<'a> Dialogue<'a> {
    /// A stream that begins with the first frame that comes; without a codec it takes codes, and what it says does not become sound.
    ///
    /// # Errors
    /// A codec that does not fit, see [`check`]; no memory.
    pub fn new(lm: &'a Lm, codec: Option<&'a Codec>, drawing: Drawing) -> Result<Dialogue<'a>> {
        Dialogue::conditioned(lm, codec, drawing, &lm.config().usual()?.0, None)
    }

    /// As [`new`](Self::new), under conditions, led away from others by a factor where there is one.
    ///
    /// # Errors
    /// As there; those of [`Session::conditioned`](crate::lm::Session::conditioned).
    pub fn conditioned(
        lm: &'a Lm,
        codec: Option<&'a Codec>,
        drawing: Drawing,
        conditions: &Conditions,
        against: Option<(f64, &Conditions)>,
    ) -> Result<Dialogue<'a>> {
        let against = against.map(|(factor, against)| (factor, std::slice::from_ref(against)));
        Ok(Dialogue {
            lm,
            streams: Streams::conditioned(lm, &[drawing], std::slice::from_ref(conditions), against)?,
            speech: codec.map(|codec| Speech::new(codec, lm)).transpose()?,
            aloud: codec.is_some(),
            frames: 0,
            delay: lm.config().delays.iter().copied().max().unwrap_or(0),
            past: false,
            text_logits: None,
            last: None,
            recording: None,
            graphs: true,
            refused: None,
        })
    }

    /// Whether what is said becomes sound, as it does by default where there is a codec.
    pub fn aloud(&mut self, aloud: bool) {
        self.aloud = aloud && self.speech.is_some();
    }

    /// Whether frames become graphs, as they do by default.
    pub fn graphs(&mut self, wanted: bool) {
        (self.graphs, self.last, self.recording, self.refused) = (wanted, None, None, None);
    }

    /// As [`Session::plain_depth`](crate::lm::Session::plain_depth).
    pub fn plain_depth(&mut self, wanted: bool) {
        self.streams.plain_depth(wanted);
        (self.last, self.recording) = (None, None);
    }

    /// As [`Session::plain_depth_why`](crate::lm::Session::plain_depth_why).
    pub fn plain_depth_why(&self) -> Option<String> {
        self.streams.plain_depth_why(self.lm)
    }

    /// Why frames are no graphs where they were to be.
    pub fn no_graph(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// `[1, text outputs]` of the last frame.
    pub fn text_logits(&self) -> Option<&Tensor> {
        self.text_logits.as_ref().or(self.recording.as_ref().map(|recording| &recording.text_logits)).filter(|_| self.frames > 0)
    }

    /// Begins as the reference server does: the first frame is heard and the codec then begins anew. The model's kernels have been
    /// compiled, its weights have been touched, and where frames are graphs theirs is recorded.
    pub fn live(mut self) -> Result<Dialogue<'a>> {
        let (lm, heard) = (self.lm, self.lm.config().heard());
        self.streams.step(lm, &Tensor::from_slice(lm.device(), &vec![0i32; heard], [1, heard])?, None, None)?;
        self.streams.reset(&one(lm.device())?)?;
        if let (Device::Cuda(cuda), true, Some(speech)) = (lm.device(), self.graphs, &self.speech) {
            let silence = vec![0.0; speech.codec.format().hop];
            let kind = Kind { heard: DType::F32, aloud: self.aloud };
            self.record(cuda, kind, Heard::Samples(&silence))?;
        }
        lm.device().synchronize()?;
        self.past = self.speech.is_some();
        Ok(self)
    }

    /// Codes `[frames, K]` of speech, as frames of it would be heard, the last filled up with silence. The codec then begins anew.
    ///
    /// # Errors
    /// No codec; a conversation that has begun.
    pub fn codes(&mut self, samples: &[f32]) -> Result<Vec<i32>> {
        self.check_unbegun("speech is encoded")?;
        let Some(speech) = &mut self.speech else { return Err(Error::Argument("samples without a codec".to_owned())) };
        let (device, hop) = (speech.codec.device(), speech.codec.format().hop);
        let mut codes = Vec::with_capacity(samples.len().div_ceil(hop) * speech.heard);
        for frame in samples.chunks(hop) {
            let mut frame = frame.to_vec();
            frame.resize(hop, 0.0);
            codes.extend(speech.encode(&Tensor::from_slice(device, &frame, [1, hop, 1])?)?.to_vec::<i32>()?);
        }
        speech.session.reset(&one(device)?)?;
        Ok(codes)
    }

    /// Has the model say a prompt before the first frame. What it says then is dropped, and every frame that is heard is answered, unless a column is
    /// late by more than one step: then the last frames of the prompt are first.
    ///
    /// # Errors
    /// A conversation that has begun; as [`Session::prompt`](crate::lm::Session::prompt).
    pub fn prompt(&mut self, prompt: &Prompt) -> Result<()> {
        self.check_unbegun("a prompt is said")?;
        prompt.run(self.lm, &mut self.streams, None)?;
        self.lm.device().synchronize()?;
        // The codec has nothing to begin anew.
        (self.frames, self.past) = (prompt.frames(), false);
        Ok(())
    }

    fn check_unbegun(&self, what: &str) -> Result<()> {
        match self.frames {
            0 => Ok(()),
            _ => Err(Error::Argument(format!("{what} before a conversation, which has begun"))),
        }
    }

    /// One step, in which `heard` arrives.
    ///
    /// # Errors
    /// A number of samples or codes that is not a frame's; samples without a codec; on the CPU a code that the model does not know.
    pub fn step(&mut self, heard: Heard) -> Result<Turn> {
        self.check(heard)?;
        let due = self.frames >= self.delay;
        let dtype = match heard {
            Heard::Samples(_) => DType::F32,
            Heard::Codes(_) => DType::I32,
        };
        let kind = Kind { heard: dtype, aloud: self.aloud && due };
        let turn = if self.recorded(kind, due, heard)? { self.replay(heard)? } else { self.piece_by_piece(heard)? };
        self.last = Some(kind);
        self.frames += 1;
        Ok(turn)
    }

    fn check(&self, heard: Heard) -> Result<()> {
        let (found, expected, what) = match (heard, &self.speech) {
            (Heard::Samples(samples), Some(speech)) => (samples.len(), speech.codec.format().hop, "samples"),
            (Heard::Samples(_), None) => return Err(Error::Argument("samples without a codec".to_owned())),
            (Heard::Codes(codes), _) => (codes.len(), self.lm.config().heard(), "codes"),
        };
        match found == expected {
            true => Ok(()),
            false => Err(Error::Argument(format!("{found} {what}, a frame is {expected}"))),
        }
    }

    /// Whether there is a graph of such frames, which the second in a row makes.
    fn recorded(&mut self, kind: Kind, due: bool, heard: Heard) -> Result<bool> {
        let Device::Cuda(cuda) = self.lm.device() else { return Ok(false) };
        // What a graph replays, a timeline does not see; and the end of the past is no part of it.
        if !self.graphs || self.past || self.refused.is_some() || span::timeline::recording() {
            return Ok(false);
        }
        if self.recording.as_ref().is_some_and(|recording| recording.kind == kind) {
            return Ok(true);
        }
        if due && self.last == Some(kind) {
            self.record(cuda, kind, heard)?;
        }
        Ok(self.recording.as_ref().is_some_and(|recording| recording.kind == kind))
    }

    /// Records a frame, of which nothing runs yet, or notes why there is no graph.
    fn record(&mut self, cuda: &Cuda, kind: Kind, heard: Heard) -> Result<()> {
        self.recording = None;
        let input = self.input(heard)?;
        match cuda.capture(|| self.frame(&input, kind.aloud)) {
            Ok((graph, (output, text_logits))) => self.recording = Some(Recording { kind, input, output, text_logits, graph }),
            Err(error) => self.refused = Some(error.to_string()),
        }
        Ok(())
    }

    fn input(&self, heard: Heard) -> Result<Tensor> {
        Ok(match heard {
            Heard::Samples(samples) => Tensor::from_slice(self.lm.device(), samples, [1, samples.len(), 1])?,
            Heard::Codes(codes) => Tensor::from_slice(self.lm.device(), codes, [1, codes.len()])?,
        })
    }

    /// All of a frame on the device: what is complete and its sound, in bytes, and the logits of the text.
    fn frame(&mut self, input: &Tensor, aloud: bool) -> Result<(Tensor, Tensor)> {
        let codes = match &mut self.speech {
            Some(speech) if input.dtype() == DType::F32 => &speech.encode(input)?,
            _ => input,
        };
        let step = self.streams.step(self.lm, codes, None, None)?;
        let sound = match &mut self.speech {
            Some(speech) if aloud => {
                let codes = step.complete.part(1, [1, 1, speech.said])?;
                Some(elementwise::convert(&speech.session.decode_observed(&codes, None, &mut unobserved)?, DType::F32)?)
            }
            _ => None,
        };
        let words = step.complete.bytes();
        let mut output = Tensor::empty(self.lm.device(), DType::U8, [words + sound.as_ref().map_or(0, Tensor::bytes)])?;
        output.write_bytes(0, &step.complete)?;
        if let Some(sound) = &sound {
            output.write_bytes(words, sound)?;
        }
        Ok((output, step.text_logits))
    }

    /// A frame that was recorded.
    fn replay(&mut self, heard: Heard) -> Result<Turn> {
        let _span = span::step("frame");
        let Some(recording) = &mut self.recording else { return self.piece_by_piece(heard) };
        match heard {
            Heard::Samples(samples) => recording.input.write(samples)?,
            Heard::Codes(codes) => recording.input.write(codes)?,
        }
        recording.graph.replay()?;
        let bytes = recording.output.to_vec::<u8>()?;
        let words = |bytes: &[u8]| -> Vec<u32> { bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect() };
        let (said, sound) = bytes.split_at(4 * (1 + self.lm.config().dep_q));
        let said: Vec<i32> = words(said).into_iter().map(|word| word as i32).collect();
        let samples = recording.kind.aloud.then(|| words(sound).into_iter().map(f32::from_bits).collect());
        self.text_logits = None;
        Ok(Turn { said: complete(said), samples, took: None })
    }

    /// Encodes, thinks, and decodes once something is complete.
    fn piece_by_piece(&mut self, heard: Heard) -> Result<Turn> {
        let (lm, mut took, past) = (self.lm, Took::default(), std::mem::take(&mut self.past));
        let timed = |start: Instant| -> Result<Duration> {
            lm.device().synchronize()?;
            Ok(start.elapsed())
        };
        let start = Instant::now();
        let input = self.input(heard)?;
        let codes = match &mut self.speech {
            Some(speech) if input.dtype() == DType::F32 => {
                let codes = speech.encode(&input)?;
                took.encode = Some(timed(start)?);
                if past {
                    speech.session.reset(&one(lm.device())?)?;
                }
                codes
            }
            _ => input,
        };
        let start = Instant::now();
        let span = span::step("lm");
        let step = self.streams.step(lm, &codes, None, None)?;
        drop(span);
        took.lm = timed(start)?;
        let said = complete(step.complete.to_vec::<i32>()?);
        let samples = match (&said, &mut self.speech) {
            (Some(said), Some(speech)) if self.aloud => {
                let start = Instant::now();
                let codes = Tensor::from_slice(lm.device(), &said[1..][..speech.said], [1, 1, speech.said])?;
                let samples = speech.codec.samples(&speech.session.decode_observed(&codes, None, &mut unobserved)?)?;
                took.decode = Some(timed(start)?);
                Some(samples)
            }
            _ => None,
        };
        self.text_logits = Some(step.text_logits);
        Ok(Turn { said, samples, took: Some(took) })
    }
}

/// What was said, if there is anything yet.
fn complete(said: Vec<i32>) -> Option<Vec<i32>> {
    Some(said).filter(|said| said.first().is_some_and(|&text| text >= 0))
}

impl<'a> Speech<'a> {
    /// Its kernels have been compiled and its memory has been allocated.
    fn new(codec: &'a Codec, lm: &Lm) -> Result<Speech<'a>> {
        check(codec, lm.config())?;
        if codec.device() != lm.device() {
            return Err(Error::Argument(format!("{} is on another device than the model", codec.name())));
        }
        let (heard, said) = (lm.config().heard(), voice_codebooks(lm.config()));
        let mut speech = Speech { codec, session: CodecSession::new(codec, 1)?, heard, said };
        let device = codec.device();
        speech.encode(&Tensor::zeros(device, DType::F32, [1, codec.format().hop, 1])?)?;
        speech.session.decode_observed(&Tensor::zeros(device, DType::I32, [1, 1, said])?, None, &mut unobserved)?;
        speech.session.reset(&one(device)?)?;
        device.synchronize()?;
        Ok(speech)
    }

    /// Codes i32 `[1, K]` of a frame `[1, hop, 1]` in f32.
    fn encode(&mut self, samples: &Tensor) -> Result<Tensor> {
        let x = elementwise::convert(samples, self.codec.values())?;
        Ok(self.session.encode_observed(&x, self.heard, None, &mut unobserved)?.reshape([1, self.heard])?)
    }
}
