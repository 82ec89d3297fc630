//! A conversation with a language model, frame by frame: over a file in `swara talk`, live in `swara-live`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use swara_engine::codec::Codec;
pub use swara_engine::dialogue::Heard;
use swara_engine::dialogue::{self, Dialogue};
use swara_engine::lm::{Drawing, Format, Lm};
use swara_kernels::{Device, Tensor};
use swara_loader::tokenizer::{TextStream, Tokenizer};

use crate::codec::Times;
use crate::failure::{Failure, Result};
use crate::terminal;

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

/// Whether a codec, read from `path`, makes and takes the codes of a model.
pub fn check_codec(codec: &Codec, lm: &Lm, path: &Path) -> Result {
    dialogue::check(codec, lm).map_err(|why| Failure::file("cannot talk", why, path))
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

/// What a frame that was heard brought.
pub struct Turn {
    /// The text, then the codes of what is said; None in the first frames, as many as the model's greatest delay.
    pub said: Option<Vec<i32>>,
    /// `[hop]`: the same as sound, where there is a codec.
    pub samples: Option<Vec<f32>>,
    pub words: String,
}

/// How long frames took, and what is in them: of frames that were one graph each, their own time alone.
#[derive(Default)]
pub struct FrameTimes {
    pub encode: Times,
    pub lm: Times,
    pub decode: Times,
    pub total: Times,
    /// Frames that were one graph each.
    pub graphs: u64,
}

/// A [`Dialogue`] in words, with the time it takes.
pub struct Spoken<'a> {
    lm: &'a Lm,
    dialogue: Dialogue<'a>,
    words: Option<(&'a Tokenizer, TextStream)>,
    pub times: FrameTimes,
}

impl<'a> Spoken<'a> {
    pub fn new(lm: &'a Lm, codec: Option<&'a Codec>, tokenizer: Option<&'a Tokenizer>, drawing: Drawing) -> Result<Spoken<'a>> {
        Ok(Spoken {
            lm,
            dialogue: Dialogue::new(lm, codec, drawing)?,
            words: tokenizer.map(|tokenizer| (tokenizer, TextStream::default())),
            times: FrameTimes::default(),
        })
    }

    /// What is said does not become sound.
    pub fn silent(mut self) -> Spoken<'a> {
        self.dialogue.aloud(false);
        self
    }

    /// As [`Dialogue::graphs`].
    pub fn graphs(mut self, wanted: bool) -> Spoken<'a> {
        self.dialogue.graphs(wanted);
        self
    }

    /// As [`Dialogue::live`].
    pub fn live(mut self) -> Result<Spoken<'a>> {
        self.dialogue = self.dialogue.live()?;
        terminal::warn_without_graph(self.dialogue.no_graph());
        Ok(self)
    }

    /// `[1, text outputs]` of the last frame.
    pub fn text_logits(&self) -> Option<&Tensor> {
        self.dialogue.text_logits()
    }

    /// One step, in which `heard` arrives.
    pub fn step(&mut self, heard: Heard) -> Result<Turn> {
        let start = Instant::now();
        let turn = self.dialogue.step(heard)?;
        self.times.total.push(start.elapsed());
        match turn.took {
            Some(took) => {
                took.encode.into_iter().for_each(|took| self.times.encode.push(took));
                self.times.lm.push(took.lm);
                took.decode.into_iter().for_each(|took| self.times.decode.push(took));
            }
            None => self.times.graphs += 1,
        }
        terminal::warn_without_graph(self.dialogue.no_graph());
        let words = turn.said.as_ref().map_or_else(String::new, |said| self.word(said[0]));
        Ok(Turn { said: turn.said, samples: turn.samples, words })
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

impl FrameTimes {
    /// Kinds of work, and their times: where frames were graphs, frames alone.
    pub fn rows(&self) -> Vec<(&'static str, &Times)> {
        let pieces = [("encode", &self.encode), ("lm", &self.lm), ("decode", &self.decode)];
        let pieces = pieces.into_iter().filter(|(_, times)| self.graphs == 0 && !times.is_empty());
        pieces.chain([("total", &self.total)]).collect()
    }
}
