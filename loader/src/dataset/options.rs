use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{DatasetError, loudness};

/// What an utterance is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    Train,
    Validation,
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        })
    }
}

impl FromStr for Split {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        [Self::Train, Self::Validation, Self::Test]
            .into_iter()
            .find(|split| split.to_string() == s)
            .ok_or_else(|| format!("split {s:?}, expected train, validation or test"))
    }
}

/// What every utterance is brought to. "-16 dB" means either.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "measure", content = "level", rename_all = "snake_case")]
pub enum Loudness {
    /// Root mean square over the utterance, dBFS.
    Rms(f64),
    /// ITU-R BS.1770, LUFS.
    Lufs(f64),
    Unchanged,
}

impl Loudness {
    /// What brings `samples` there, dB; silence counts as [`FLOOR`](loudness::FLOOR).
    pub fn gain_db(self, samples: &[f32], rate: u32) -> f64 {
        match self {
            Self::Rms(level) => level - loudness::rms_dbfs(samples).max(loudness::FLOOR),
            Self::Lufs(level) => level - loudness::lufs(samples, rate),
            Self::Unchanged => 0.0,
        }
    }
}

impl fmt::Display for Loudness {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Rms(level) => write!(f, "rms:{level}"),
            Self::Lufs(level) => write!(f, "lufs:{level}"),
            Self::Unchanged => f.write_str("none"),
        }
    }
}

impl FromStr for Loudness {
    type Err = String;

    /// `rms:-16`, `lufs:-16` or `none`.
    fn from_str(s: &str) -> Result<Self, String> {
        let level = |text: &str| match text.parse::<f64>() {
            Ok(level) if (-60.0..=0.0).contains(&level) => Ok(level),
            _ => Err(format!("level {text:?}, expected -60 to 0")),
        };
        match s.split_once(':') {
            Some(("rms", text)) => level(text).map(Self::Rms),
            Some(("lufs", text)) => level(text).map(Self::Lufs),
            None if s == "none" => Ok(Self::Unchanged),
            _ => Err(format!("loudness {s:?}, expected rms:DB, lufs:DB or none")),
        }
    }
}

/// Puts utterances into splits by how their file's name ends: `ru/reader=test:0,validation:9` sends, of all files under
/// `ru/reader`, names ending in 0 to test and in 9 to validation. An empty prefix means every file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRule {
    pub prefix: String,
    pub endings: Vec<(Split, String)>,
}

impl IdRule {
    /// `id`: path without extension.
    pub(super) fn split(&self, id: &str) -> Option<Split> {
        let under = self.prefix.is_empty() || id.strip_prefix(self.prefix.as_str()).is_some_and(|rest| rest.starts_with('/'));
        self.endings.iter().find(|(_, ending)| under && id.ends_with(ending.as_str())).map(|(split, _)| *split)
    }
}

impl FromStr for IdRule {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let usage = || format!("rule {s:?}, expected PREFIX=SPLIT:ENDING[,SPLIT:ENDING...]");
        let (prefix, rest) = s.split_once('=').ok_or_else(usage)?;
        let endings = rest
            .split(',')
            .map(|pair| match pair.split_once(':') {
                Some((split, ending)) if !ending.is_empty() => Ok((split.parse()?, ending.to_owned())),
                _ => Err(usage()),
            })
            .collect::<Result<_, String>>()?;
        Ok(Self { prefix: prefix.trim_end_matches('/').to_owned(), endings })
    }
}

/// How [`prepare`](super::prepare) works. Paths are relative to the input folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Hz.
    pub sample_rate: u32,
    pub loudness: Loudness,
    /// Which folder of the path names the speaker, from 1; a file without such a folder belongs to its input folder's name.
    pub speaker_depth: usize,
    /// Which folder names the language; `und` where there is none.
    pub language_depth: usize,
    /// Speakers held out whole.
    pub test_speakers: Vec<String>,
    pub validation_speakers: Vec<String>,
    /// The first that says something counts.
    pub id_rules: Vec<IdRule>,
    /// Of the speakers that no rule and no list names, this share goes to test, chosen by a hash of the name.
    pub test_fraction: f64,
    /// Longer files are cut at their quietest places.
    pub max_seconds: f64,
    /// Shorter pieces are dropped.
    pub min_seconds: f64,
    /// dB under the loudest 20 ms that counts as silence at either end, and is cut off but for 0.1 s.
    pub trim_db: f64,
    /// dBFS; pieces whose loudest 20 ms stay under it are dropped as silence.
    pub silence_dbfs: f64,
    /// Pieces with a larger share of samples at full scale are dropped as clipped.
    pub max_clipped: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sample_rate: 16_000,
            loudness: Loudness::Rms(-16.0),
            speaker_depth: 1,
            language_depth: 2,
            test_speakers: Vec::new(),
            validation_speakers: Vec::new(),
            id_rules: Vec::new(),
            test_fraction: 0.0,
            max_seconds: 20.0,
            min_seconds: 0.3,
            trim_db: 45.0,
            silence_dbfs: -55.0,
            max_clipped: 0.002,
        }
    }
}

impl Options {
    pub(super) fn check(&self) -> Result<(), DatasetError> {
        let ranges = [
            ("sample_rate", f64::from(self.sample_rate), 1000.0, f64::from(crate::audio::MAX_RATE)),
            ("max_seconds", self.max_seconds, 1.0, 600.0),
            ("min_seconds", self.min_seconds, 0.05, self.max_seconds / 2.0),
            ("test_fraction", self.test_fraction, 0.0, 1.0),
            ("trim_db", self.trim_db, 6.0, 120.0),
            ("silence_dbfs", self.silence_dbfs, -120.0, 0.0),
            ("max_clipped", self.max_clipped, 0.0, 1.0),
        ];
        for (option, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                let why = format!("{value}, expected {least} to {most}");
                return Err(DatasetError::Option { option, why });
            }
        }
        Ok(())
    }

    /// `id`: path without extension.
    pub(super) fn split(&self, id: &str, speaker: &str) -> Split {
        let named = |list: &[String]| list.iter().any(|s| s == speaker);
        if named(&self.test_speakers) {
            return Split::Test;
        }
        if named(&self.validation_speakers) {
            return Split::Validation;
        }
        // A rule that covers the file decides, even if only by not naming its ending.
        let covers = |rule: &&IdRule| rule.prefix.is_empty() || id.starts_with(&format!("{}/", rule.prefix));
        if let Some(rule) = self.id_rules.iter().find(covers) {
            return rule.split(id).unwrap_or(Split::Train);
        }
        let share = super::sampler::unit(super::sampler::hash_text(speaker));
        if share < self.test_fraction { Split::Test } else { Split::Train }
    }
}
