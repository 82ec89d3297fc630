//! A conversation with a language model, frame by frame: over a file in `swara talk`, live in `swara-live`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use swara_engine::codec::Codec;
pub use swara_engine::dialogue::Heard;
use swara_engine::dialogue::{self, Dialogue};
use swara_engine::lm::{self, Config, Drawing, Format, Lm, Prompt, Quiet};
use swara_kernels::{Device, Tensor};
use swara_loader::audio::AudioReader;
use swara_loader::loudness::{self, lufs};
use swara_loader::tokenizer::{TextStream, Tokenizer};
use swara_loader::weights::{Weights, missing, named};

use crate::codec::Times;
use crate::common::Conditioned;
use crate::failure::{Failure, Result};
use crate::terminal;

/// The configuration of a model that both hears and speaks, before the model is read.
pub fn config(path: &Path) -> Result<Config> {
    let file = Weights::open(path)?;
    let config = lm::check(&file)?;
    warn_of_another(path, "moshi_name", file.paths().next().unwrap_or(file.path()))?;
    match config.dep_q == 0 || config.heard() == 0 {
        true => Err(Failure::file("cannot talk", "a model that does not both hear and speak", path)),
        false => Ok(config),
    }
}

pub fn open_lm(path: &Path, lora: Option<&Path>, device: &Device, format: Format) -> Result<Lm> {
    Ok(match lora {
        Some(lora) => Lm::open_with_lora(path, lora, device, format)?,
        None => Lm::open(path, device, format)?,
    })
}

/// Whether a codec, read from `path`, makes and takes the codes of a model.
pub fn check_codec(codec: &Codec, config: &Config, path: &Path) -> Result {
    dialogue::check(codec, config).map_err(|why| Failure::file("cannot talk", why, path))
}

/// The codec asked for, else the one in a model's folder that its configuration names.
pub fn mimi(asked: Option<&Path>, model: &Path) -> Result<Option<PathBuf>> {
    match asked {
        Some(path) => Ok(Some(path.to_owned())),
        None => Ok(named(model, "mimi_name")?),
    }
}

/// The vocabulary asked for, else the one in a model's folder that its configuration names, or the only `.model` there.
pub fn tokenizer(asked: Option<&Path>, model: &Path, config: &Config) -> Result<Option<Tokenizer>> {
    let path = match asked {
        Some(path) => Some(path.to_owned()),
        None => named(model, "tokenizer_name")?.or_else(|| beside(model)),
    };
    let Some(path) = path else { return Ok(None) };
    if asked.is_none() {
        warn_of_another(model, "tokenizer_name", &path)?;
    }
    let tokenizer = Tokenizer::open(&path)?;
    match tokenizer.size() == config.text_card {
        true => Ok(Some(tokenizer)),
        false => {
            let why = format!("{} pieces, the model has {}", tokenizer.size(), config.text_card);
            Err(Failure::file("cannot use tokenizer", why, &path))
        }
    }
}

/// Says so where another file is taken for one that a model's configuration names, and that is not there.
fn warn_of_another(model: &Path, key: &str, taken: &Path) -> Result {
    if let Some(named) = missing(model, key)? {
        terminal::warn(format!("{key} of config.json is {}, which is not there; taking {}", named.display(), taken.display()));
    }
    Ok(())
}

fn beside(model: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(model).ok()?.flatten().map(|entry| entry.path());
    let mut found = entries.filter(|path| path.extension().is_some_and(|e| e == "model"));
    found.next().filter(|_| found.next().is_none())
}

/// Who a model is, where it was trained to be told (PersonaPlex).
#[derive(Args)]
pub struct Persona {
    /// A recording of the voice that it is to have, some seconds of speech; for models that were trained to be told
    #[arg(long, value_name = "WAV")]
    pub voice: Option<PathBuf>,
    /// Who it is and what it knows, in words: `<system>` before and after them is added. Wants the vocabulary
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
}

impl Persona {
    /// Loudness of the voices that models were trained with.
    const LUFS: f64 = -24.0;

    /// What needs no model to be seen.
    pub fn check(&self) -> Result {
        if self.prompt.as_ref().is_some_and(|prompt| prompt.trim().is_empty()) {
            return Err(Failure::usage("--prompt: no words"));
        }
        let pickled = |path: &&PathBuf| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("pt"));
        match self.voice.as_ref().filter(pickled) {
            Some(path) => {
                Err(Failure::file("cannot use voice", "a pickle of what a model computed (.pt), expected a recording (WAV)", path))
            }
            None => Ok(()),
        }
    }

    /// What needs no more of the model than its configuration.
    pub fn check_for(&self, config: &Config, tokenizer: Option<&Tokenizer>) -> Result {
        if self.voice.is_some() || self.prompt.is_some() {
            Prompt::new(config, &Quiet::personaplex(), &[], &self.tokens(tokenizer)?)?;
        }
        Ok(())
    }

    fn tokens(&self, tokenizer: Option<&Tokenizer>) -> Result<Vec<i32>> {
        let Some(prompt) = &self.prompt else { return Ok(Vec::new()) };
        let Some(tokenizer) = tokenizer else {
            return Err(Failure::usage("--prompt: wants a vocabulary, --tokenizer or a .model in the model's folder"));
        };
        Ok(tokenizer.encode(&as_system(prompt))?)
    }

    /// Samples of the voice, if there is one.
    pub fn heard(&self, codec: Option<&Codec>) -> Result<Vec<f32>> {
        match (&self.voice, codec) {
            (Some(path), Some(codec)) => Persona::voice(path, codec),
            (Some(_), None) => Err(Failure::usage("--voice: wants --mimi")),
            (None, _) => Ok(Vec::new()),
        }
    }

    /// Mono samples at the rate and loudness that the codec and the model are used to.
    fn voice(path: &Path, codec: &Codec) -> Result<Vec<f32>> {
        let fail = |why: String| Failure::file("cannot use voice", why, path);
        let format = codec.format();
        let (mut samples, most) = (Vec::<f32>::new(), Prompt::MOST_FRAMES * format.hop);
        let mut reader = AudioReader::open(path, Some(format.sample_rate))?;
        for piece in &mut reader {
            samples.extend(piece?);
            if samples.len() > most {
                return Err(fail(format!("more than {} s", most / format.sample_rate as usize)));
            }
        }
        reader.warnings().iter().for_each(|w| terminal::warn(w.to_string()));
        let loud = lufs(&samples, format.sample_rate);
        if loud <= loudness::FLOOR {
            return Err(fail("nothing but silence".to_owned()));
        }
        let gain = 10f64.powf((Self::LUFS - loud) / 20.0) as f32;
        samples.iter_mut().for_each(|sample| *sample *= gain);
        Ok(samples)
    }
}

/// As models were trained to read it.
fn as_system(prompt: &str) -> String {
    const TAG: &str = "<system>";
    let prompt = prompt.trim();
    match prompt.starts_with(TAG) && prompt.ends_with(TAG) {
        true => prompt.to_owned(),
        false => format!("{TAG} {prompt} {TAG}"),
    }
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
    /// Steps before the first frame.
    pub prompted: usize,
}

impl<'a> Spoken<'a> {
    pub fn new(
        lm: &'a Lm,
        codec: Option<&'a Codec>,
        tokenizer: Option<&'a Tokenizer>,
        drawing: Drawing,
        (conditions, against): &Conditioned,
    ) -> Result<Spoken<'a>> {
        let against = against.as_ref().map(|(factor, against)| (*factor, against));
        Ok(Spoken {
            lm,
            dialogue: Dialogue::conditioned(lm, codec, drawing, conditions, against)?,
            words: tokenizer.map(|tokenizer| (tokenizer, TextStream::default())),
            times: FrameTimes::default(),
            prompted: 0,
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

    /// As [`Dialogue::plain_depth`]; where it is not asked for and yet so, that is said.
    pub fn plain_depth(mut self, wanted: bool) -> Spoken<'a> {
        self.dialogue.plain_depth(wanted);
        terminal::warn_with_plain_depth(self.dialogue.plain_depth_why().as_deref());
        self
    }

    /// As [`Dialogue::live`].
    pub fn live(mut self) -> Result<Spoken<'a>> {
        self.dialogue = self.dialogue.live()?;
        terminal::warn_without_graph(self.dialogue.no_graph());
        Ok(self)
    }

    /// Tells the model who it is, if it is told: in a `voice` and words.
    pub fn prompt(mut self, persona: &Persona, voice: &[f32]) -> Result<Spoken<'a>> {
        if persona.voice.is_none() && persona.prompt.is_none() {
            return Ok(self);
        }
        let text = persona.tokens(self.words.as_ref().map(|(tokenizer, _)| *tokenizer))?;
        let config = self.lm.config();
        let voice = if voice.is_empty() { Vec::new() } else { self.dialogue.codes(voice)? };
        let prompt = Prompt::new(config, &Quiet::personaplex(), &voice, &text)?;
        self.prompted = prompt.frames();
        if let Some(context) = config.context.filter(|&context| context < self.prompted) {
            terminal::warn(format!("a prompt of {} steps, and the model remembers {context}: its beginning is forgotten", self.prompted));
        }
        self.dialogue.prompt(&prompt)?;
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
        let none = [config.existing_text_padding_id, config.existing_text_end_padding_id, config.text_card as i32];
        // Of two texts in one, the first.
        let text = text % (config.text_card as i32 + 1);
        match &mut self.words {
            Some((tokenizer, stream)) if !none.contains(&text) => stream.push(tokenizer, text),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_tagged_once() {
        assert_eq!(as_system(" You are kind.\n"), "<system> You are kind. <system>");
        assert_eq!(as_system("<system> You are kind. <system> "), "<system> You are kind. <system>");
        assert_eq!(as_system("<system> half"), "<system> <system> half <system>");
    }
}
