//! What a model is made to say and hear before a conversation: a voice, and who it is.
//!
//! Source: Roy et al. 2026 (PersonaPlex); `LMGen.step_system_prompts` of NVIDIA's personaplex.

use swara_kernels::Tensor;
use swara_kernels::ops::delay::UNGENERATED;

use super::session::Streams;
use super::{Config, Given, Lm};
use crate::{Error, Result};

/// Codes of frames in which nobody says anything, and how many frames a pause has.
#[derive(Clone, Debug, PartialEq)]
pub struct Quiet {
    /// The model's own: silence.
    pub said: Vec<i32>,
    /// The other side's, all through a prompt: a sine of 440 Hz.
    pub heard: Vec<i32>,
    pub frames: usize,
}

impl Quiet {
    /// In Mimi's first 8 codebooks, and half a second of it.
    pub fn personaplex() -> Quiet {
        Quiet { said: vec![948, 243, 1178, 546, 1736, 1030, 1978, 2008], heard: vec![430, 1268, 381, 1611, 1095, 1495, 56, 472], frames: 6 }
    }
}

/// Frames of a voice, a pause, frames of a text, a pause.
pub struct Prompt {
    /// `[frames, 1 + dep_q]`: text, then codes.
    said: Vec<i32>,
    heard: Vec<i32>,
    initial: Vec<i32>,
    delays: Vec<usize>,
}

impl Prompt {
    /// Most frames of a prompt: 13 minutes at 12.5 Hz, more than a model remembers.
    pub const MOST_FRAMES: usize = 10_000;

    /// `voice [frames, dep_q]`: codes of speech; `text`: tokens, one a frame.
    ///
    /// # Errors
    /// A model that does not hear as many codes as it says; codes or tokens that it does not know; too many frames.
    pub fn new(config: &Config, quiet: &Quiet, voice: &[i32], text: &[i32]) -> Result<Prompt> {
        let (codes, fail) = (config.dep_q, |why: String| Err(Error::Argument(why)));
        if !config.full_duplex() {
            return fail(format!("a prompt for a model that says {codes} codes a frame and hears {}, expected as many", config.heard()));
        }
        config.check()?;
        let padding = config.existing_text_padding_id;
        if usize::try_from(padding).map_or(true, |padding| padding > config.text_card) {
            return fail(format!("existing_text_padding_id is {padding}, which is none of the model's {} tokens", config.text_card));
        }
        let knows = |code: &i32| usize::try_from(*code).is_ok_and(|code| code < config.card);
        if [&quiet.said, &quiet.heard].iter().any(|frame| frame.len() != codes || !frame.iter().all(knows)) {
            let of = quiet.said.len();
            return fail(format!("a prompt whose pauses have {of} codes a frame, the model has {codes} codebooks of {}", config.card));
        }
        if let Some(at) = voice.iter().position(|code| !knows(code)) {
            return fail(format!("code {} of a voice, frame {}, is not below {}", voice[at], at / codes, config.card));
        }
        if !voice.len().is_multiple_of(codes) {
            return fail(format!("a voice of {} codes, a frame has {codes}", voice.len()));
        }
        if let Some(at) = text.iter().position(|&token| usize::try_from(token).map_or(true, |token| token >= config.text_card)) {
            return fail(format!("token {} of a prompt, at {at}, is none of the model's {}", text[at], config.text_card));
        }
        let frames = (voice.len() / codes + text.len()).saturating_add(quiet.frames.saturating_mul(2));
        if frames == 0 || frames > Self::MOST_FRAMES {
            return fail(format!("a prompt of {frames} frames, expected 1 to {}", Self::MOST_FRAMES));
        }
        let pause = || std::iter::repeat_n((config.existing_text_padding_id, &quiet.said[..]), quiet.frames);
        let voice = voice.chunks_exact(codes).map(|frame| (config.existing_text_padding_id, frame));
        let text = text.iter().map(|&token| (token, &quiet.said[..]));
        let said = voice.chain(pause()).chain(text).chain(pause());
        Ok(Prompt {
            said: said.flat_map(|(text, codes)| [text].into_iter().chain(codes.iter().copied())).collect(),
            heard: quiet.heard.clone(),
            initial: config.initial(),
            delays: config.delays[..=codes].to_vec(),
        })
    }

    pub fn frames(&self) -> usize {
        self.said.len() / self.delays.len()
    }

    /// What is said in a step: of columns that are late what is said of frames before, and of the frame after the last nothing.
    fn said(&self, step: usize) -> Vec<i32> {
        let token = |(column, &delay): (usize, &usize)| match (step + 1).checked_sub(delay) {
            // What comes before the first frame, as it is fed.
            None | Some(0) => self.initial[column],
            Some(frame) => self.said.get(frame * self.delays.len() + column).copied().unwrap_or(UNGENERATED),
        };
        self.delays.iter().enumerate().map(token).collect()
    }

    /// Has the streams that run say it, and drops what they say.
    pub(crate) fn run(&self, lm: &Lm, streams: &mut Streams, runs: Option<&[u8]>) -> Result<()> {
        let config = lm.config();
        if config.initial() != self.initial || !config.full_duplex() || config.delays[..=config.dep_q] != self.delays {
            return Err(Error::Argument("a prompt for another model".to_owned()));
        }
        let batch = streams.batch();
        let heard = Tensor::from_slice(lm.device(), &self.heard.repeat(batch), [batch, self.heard.len()])?;
        for step in 0..self.frames() {
            let given = Given::new(lm, &self.said(step).repeat(batch), runs)?;
            streams.step(lm, &heard, Some(&given), given.mask())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config { text_card: 40, ..Config::moshi() }
    }

    #[test]
    fn codes_that_are_late_are_said_late() {
        let delays = [vec![0, 0], vec![2; 7], vec![0], vec![2; 7]].concat();
        let quiet = Quiet { frames: 1, ..Quiet::personaplex() };
        let prompt = Prompt::new(&Config { delays, ..config() }, &quiet, &(10..26).collect::<Vec<_>>(), &[7]).unwrap();
        assert_eq!(prompt.frames(), 5);
        let said: Vec<Vec<i32>> = (0..5).map(|step| prompt.said(step)[..3].to_vec()).collect();
        // Text and first code of the next frame, second code of the one before this.
        assert_eq!(said, [[3, 18, 2048], [3, 948, 2048], [7, 948, 19], [3, 948, 243], [-2, -2, 243]]);
    }

    #[test]
    fn what_no_model_can_say_is_refused() {
        let refused = |config: &Config, quiet: &Quiet, voice: &[i32], text: &[i32], why: &str| {
            let error = Prompt::new(config, quiet, voice, text).err().unwrap().to_string();
            assert!(error.contains(why) && !error.contains('\n'), "{error}");
        };
        let (config, quiet) = (config(), Quiet::personaplex());
        refused(&Config { dep_q: 4, ..config.clone() }, &quiet, &[], &[1], "says 4 codes a frame and hears 12");
        refused(&Config { dep_q: 0, n_q: 0, ..config.clone() }, &quiet, &[], &[1], "says 0 codes");
        refused(&Config { card: 2000, ..config.clone() }, &quiet, &[], &[1], "8 codebooks of 2000");
        refused(&config, &quiet, &[0; 9], &[], "9 codes");
        refused(&config, &quiet, &[[0; 15], [2048; 15]].concat()[..16], &[], "code 2048 of a voice, frame 1");
        refused(&config, &quiet, &[], &[3, 40], "token 40 of a prompt, at 1");
        refused(&config, &quiet, &[], &[3, -1], "token -1");
        refused(&config, &quiet, &[], &vec![1; Prompt::MOST_FRAMES], "10012 frames");
        refused(&config, &Quiet { frames: 0, ..quiet.clone() }, &[], &[], "0 frames");
        assert_eq!(Prompt::new(&config, &quiet, &[], &[]).unwrap().frames(), 12);
    }
}
