//! A conversation with a language model, frame by frame: over a file in `swara talk`, live in `swara-live`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use swara_engine::codec::{Codec, Session as CodecSession};
use swara_engine::lm::{Drawing, Format, Lm, Session};
use swara_kernels::{Device, Tensor};
use swara_loader::tokenizer::{TextStream, Tokenizer};

use crate::codec::{Times, warm_session};
use crate::failure::{Failure, Result};

/// Opens a model that both hears and speaks.
pub fn open_lm(path: &Path, lora: Option<&Path>, device: &Device, format: Format) -> Result<Lm> {
    let lm = match lora {
        Some(lora) => Lm::open_with_lora(path, lora, device, format)?,
        None => Lm::open(path, device, format)?,
    };
    match lm.config().dep_q == 0 || lm.config().heard() == 0 {
        true => Err(Failure::file("cannot talk", "a model that does not both hear and speak", path)),
        false => Ok(lm),
    }
}

/// Codebooks of what is said: of those that are generated as many as are heard, the rest being for others.
fn voice_codebooks(lm: &Lm) -> usize {
    lm.config().dep_q.min(lm.config().heard())
}

/// Whether a codec, read from `path`, makes and takes the codes of a model.
pub fn check_codec(codec: &Codec, lm: &Lm, path: &Path) -> Result {
    let (format, config) = (codec.format(), lm.config());
    let needed = voice_codebooks(lm).max(config.heard());
    let why = if !format.causal || format.channels != 1 || format.multi_rate() {
        "is no causal codec of one channel and one rate".to_owned()
    } else if codec.codebooks() < needed {
        format!("has {} codebooks, the model wants {needed}", codec.codebooks())
    } else if let Some(size) = format.codebook_sizes[..needed].iter().find(|&&size| size != config.card) {
        format!("has codebooks of {size}, the model wants {}", config.card)
    } else {
        return Ok(());
    };
    Err(Failure::file("cannot talk", format!("{} {why}", codec.name()), path))
}

/// The vocabulary asked for, else the only `.model` beside the weights.
pub fn tokenizer(asked: Option<&Path>, model: &Path, lm: &Lm) -> Result<Option<Tokenizer>> {
    let Some(path) = asked.map(Path::to_owned).or_else(|| beside(model)) else { return Ok(None) };
    let tokenizer = Tokenizer::open(&path)?;
    match tokenizer.size() == lm.config().text_card {
        true => Ok(Some(tokenizer)),
        false => {
            let why = format!("{} pieces, the model has {}", tokenizer.size(), lm.config().text_card);
            Err(Failure::file("cannot use tokenizer", why, &path))
        }
    }
}

fn beside(model: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(model).ok()?.flatten().map(|entry| entry.path());
    let mut found = entries.filter(|path| path.extension().is_some_and(|e| e == "model"));
    found.next().filter(|_| found.next().is_none())
}

/// The codec at both ends of a conversation.
pub struct Speech<'a> {
    codec: &'a Codec,
    session: CodecSession<'a>,
    heard: usize,
    said: usize,
    /// Whether the next frame is in the past: it is heard as any other, and then the codec begins anew.
    past: bool,
    pub encode_times: Times,
    pub decode_times: Times,
}

impl<'a> Speech<'a> {
    fn new(codec: &'a Codec, lm: &Lm) -> Result<Speech<'a>> {
        let (heard, said) = (lm.config().heard(), voice_codebooks(lm));
        let session = warm_session(codec, heard)?;
        Ok(Speech { codec, session, heard, said, past: false, encode_times: Times::default(), decode_times: Times::default() })
    }

    /// Codes i32 `[1, K]` of a frame.
    fn hear(&mut self, samples: &[f32]) -> Result<Tensor> {
        let (codec, session, heard) = (self.codec, &mut self.session, self.heard);
        let codes = self.encode_times.time(codec.device(), || {
            let codes = session.encode(&codec.signal(samples, 1)?, heard, None)?;
            Ok(codes.reshape([1, heard])?)
        })?;
        if std::mem::take(&mut self.past) {
            session.reset(&one(codec.device())?)?;
        }
        Ok(codes)
    }

    fn say(&mut self, codes: &[i32]) -> Result<Vec<f32>> {
        let (codec, session) = (self.codec, &mut self.session);
        let codes = Tensor::from_slice(codec.device(), &codes[..self.said], [1, 1, self.said])?;
        self.decode_times.time(codec.device(), || Ok(codec.samples(&session.decode(&codes, None)?)?))
    }
}

/// The mask of a single stream.
fn one(device: &Device) -> Result<Tensor> {
    Ok(Tensor::from_slice(device, &[1u8], [1])?)
}

/// A frame of what the model hears.
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
    /// `[hop]`: the same as sound, where there is a codec.
    pub samples: Option<Vec<f32>>,
    pub words: String,
    /// `[1, text outputs]`
    pub text_logits: Tensor,
}

/// One stream, heard and answered.
pub struct Dialogue<'a> {
    lm: &'a Lm,
    session: Session<'a>,
    pub speech: Option<Speech<'a>>,
    /// Whether what is said becomes sound.
    pub aloud: bool,
    words: Option<(&'a Tokenizer, TextStream)>,
    pub lm_times: Times,
    pub total_times: Times,
}

impl<'a> Dialogue<'a> {
    pub fn new(lm: &'a Lm, codec: Option<&'a Codec>, tokenizer: Option<&'a Tokenizer>, drawing: Drawing) -> Result<Dialogue<'a>> {
        Ok(Dialogue {
            lm,
            session: Session::new(lm, &[drawing])?,
            speech: codec.map(|codec| Speech::new(codec, lm)).transpose()?,
            aloud: codec.is_some(),
            words: tokenizer.map(|tokenizer| (tokenizer, TextStream::default())),
            lm_times: Times::default(),
            total_times: Times::default(),
        })
    }

    /// Begins as the reference server does: the first frame is heard and the codec then begins anew. The model's kernels have been
    /// compiled and its memory has been touched.
    pub fn live(mut self) -> Result<Dialogue<'a>> {
        let heard = self.lm.config().heard();
        self.session.step(&Tensor::from_slice(self.lm.device(), &vec![0i32; heard], [1, heard])?, None)?;
        self.session.reset(&one(self.lm.device())?)?;
        self.lm.device().synchronize()?;
        if let Some(speech) = &mut self.speech {
            speech.past = true;
        }
        Ok(self)
    }

    /// One step, in which `heard` arrives.
    pub fn step(&mut self, heard: Heard) -> Result<Turn> {
        let start = Instant::now();
        let codes = match (heard, &mut self.speech) {
            (Heard::Codes(codes), _) => Tensor::from_slice(self.lm.device(), codes, [1, codes.len()])?,
            (Heard::Samples(samples), Some(speech)) => speech.hear(samples)?,
            (Heard::Samples(_), None) => return Err(Failure::work("samples without a codec")),
        };
        let session = &mut self.session;
        let step = self.lm_times.time(self.lm.device(), || Ok(session.step(&codes, None)?))?;
        let said = Some(step.complete.to_vec::<i32>()?).filter(|said| said[0] >= 0);
        let samples = match (&said, &mut self.speech) {
            (Some(said), Some(speech)) if self.aloud => Some(speech.say(&said[1..])?),
            _ => None,
        };
        self.total_times.push(start.elapsed());
        let words = said.as_ref().map_or_else(String::new, |said| self.word(said[0]));
        Ok(Turn { said, samples, words, text_logits: step.text_logits })
    }

    fn word(&mut self, text: i32) -> String {
        let config = self.lm.config();
        let padding = [config.existing_text_padding_id, config.existing_text_end_padding_id];
        match &mut self.words {
            Some((tokenizer, stream)) if !padding.contains(&text) => stream.push(tokenizer, text),
            _ => String::new(),
        }
    }

    /// The rest of the words and the end of their line; None where there are no words.
    pub fn last_words(&mut self) -> Option<String> {
        self.words.as_mut().map(|(_, stream)| stream.finish() + "\n")
    }
}
