//! Prepared speech: one file of samples, one of descriptions, and random crops of them for training.
//!
//! A dataset is a directory:
//!
//! | file | contents |
//! |---|---|
//! | `audio.s16` | mono samples, 16-bit little-endian, all utterances end to end |
//! | `manifest.jsonl` | one [`Utterance`] a line, in the order of `audio.s16` |
//! | `dataset.json` | [`Description`]: rate, totals, options. Written last: without it, the directory is no dataset |
//! | `teacher/` | what a teacher says of every utterance, if it was asked: [`TeacherCache`] |

mod augment;
mod options;
mod prepare;
mod sampler;
mod segment;
mod teacher;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use augment::{Augmentation, Echo, Gain, Kind, Noise, Phase, Reverb, Target};
pub use options::{IdRule, Loudness, Options, Split};
pub use prepare::{Dropped, Progress, Report, prepare};
pub use sampler::{Batch, Piece, Sampler, SamplerOptions};
pub use teacher::{TeacherCache, TeacherDescription, TeacherOutput, TeacherRows};

use crate::{DatasetError, Error, Result};

/// Of the layout above.
const VERSION: u32 = 1;
const AUDIO: &str = "audio.s16";
const MANIFEST: &str = "manifest.jsonl";
const DESCRIPTION: &str = "dataset.json";
/// Longest `dataset.json`, bytes.
const MAX_DESCRIPTION: u64 = 1 << 26;
/// Longest line of a manifest, bytes.
const MAX_LINE: u64 = 1 << 20;

/// One line of the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Utterance {
    /// Path within the input folder without its extension, and `#n` where a file gave several.
    pub id: String,
    pub speaker: String,
    pub language: String,
    pub split: Split,
    /// First sample in `audio.s16`.
    pub offset: u64,
    /// Count.
    pub samples: u64,
    /// The file it came from, as given to `prepare`.
    pub source: String,
    /// First sample within the source, at the dataset's rate.
    pub start: u64,
    /// dB added to reach the loudness wanted.
    pub gain_db: f64,
}

/// `dataset.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    pub version: u32,
    /// Hz.
    pub sample_rate: u32,
    pub utterances: usize,
    pub samples: u64,
    pub manifest_sha256: String,
    /// By split, speaker and language.
    pub hours: Hours,
    /// Files or pieces left out, and why.
    pub dropped: Dropped,
    pub options: Options,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Hours {
    pub split: BTreeMap<String, f64>,
    pub speaker: BTreeMap<String, f64>,
    pub language: BTreeMap<String, f64>,
}

impl Hours {
    fn of(utterances: &[Utterance], rate: u32) -> Self {
        let mut hours = Self::default();
        for u in utterances {
            let h = u.samples as f64 / f64::from(rate) / 3600.0;
            *hours.split.entry(u.split.to_string()).or_default() += h;
            *hours.speaker.entry(u.speaker.clone()).or_default() += h;
            *hours.language.entry(u.language.clone()).or_default() += h;
        }
        hours
    }
}

/// A prepared dataset, memory-mapped.
#[derive(Debug)]
pub struct Dataset {
    path: PathBuf,
    description: Description,
    utterances: Vec<Utterance>,
    audio: Mmap,
}

impl Dataset {
    /// Checks everything: sizes, order, names, and that the manifest is the one described.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let fail = |why| Error::Dataset { path: dir.to_owned(), why };
        let io = |name: &'static str| move |e| Error::io("open dataset", &dir.join(name), e);
        if !dir.join(DESCRIPTION).exists() {
            return Err(fail(DatasetError::NotPrepared));
        }
        let text = crate::input::read(dir.join(DESCRIPTION), "open dataset", MAX_DESCRIPTION)?;
        let description: Description = serde_json::from_slice(&text).map_err(|e| fail(DatasetError::Description(e.to_string())))?;
        if description.version != VERSION {
            let why = format!("version {}, expected {VERSION}", description.version);
            return Err(fail(DatasetError::Description(why)));
        }
        if !(1..=crate::audio::MAX_RATE).contains(&description.sample_rate) {
            let why = format!("sample_rate {}", description.sample_rate);
            return Err(fail(DatasetError::Description(why)));
        }

        let (utterances, sha256) = read_manifest(dir)?;
        if sha256 != description.manifest_sha256 {
            return Err(fail(DatasetError::ManifestChanged));
        }
        let samples: u64 = utterances.iter().map(|u| u.samples).sum();
        if (utterances.len(), samples) != (description.utterances, description.samples) || samples == 0 {
            let why = format!(
                "{} utterances of {} samples, the manifest has {} of {samples}",
                description.utterances,
                description.samples,
                utterances.len()
            );
            return Err(fail(DatasetError::Description(why)));
        }

        crate::input::regular(&dir.join(AUDIO)).map_err(io(AUDIO))?;
        let file = File::open(dir.join(AUDIO)).map_err(io(AUDIO))?;
        let found = file.metadata().map_err(io(AUDIO))?.len();
        if Some(found) != samples.checked_mul(2) {
            return Err(fail(DatasetError::AudioBytes { expected: samples.saturating_mul(2), found }));
        }
        // SAFETY: read-only and private; nobody may truncate it meanwhile, and `prepare` renames a new file over it.
        let audio = unsafe { Mmap::map(&file) }.map_err(io(AUDIO))?;
        Ok(Self { path: dir.to_owned(), description, utterances, audio })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hz.
    pub fn sample_rate(&self) -> u32 {
        self.description.sample_rate
    }

    pub fn description(&self) -> &Description {
        &self.description
    }

    pub fn utterances(&self) -> &[Utterance] {
        &self.utterances
    }

    /// Utterances of one split, in order, with their index.
    pub fn split(&self, split: Split) -> impl Iterator<Item = (usize, &Utterance)> {
        self.utterances.iter().enumerate().filter(move |(_, u)| u.split == split)
    }

    /// Samples of utterance `index`, in [-1, 1].
    pub fn samples(&self, index: usize) -> Vec<f32> {
        self.s16(index).iter().map(|&x| from_s16(x)).collect()
    }

    /// Samples of utterance `index` as stored.
    pub fn s16(&self, index: usize) -> &[i16] {
        // `open` checked the size, and a map starts at a page.
        let all: &[i16] = bytemuck::cast_slice(&self.audio);
        let u = &self.utterances[index];
        &all[u.offset as usize..(u.offset + u.samples) as usize]
    }
}

/// The inverse of [`to_s16`](crate::audio::to_s16).
fn from_s16(x: i16) -> f32 {
    (f32::from(x) / 32767.0).max(-1.0)
}

fn read_manifest(dir: &Path) -> Result<(Vec<Utterance>, String)> {
    let path = dir.join(MANIFEST);
    let io = |e| Error::io("open dataset", &path, e);
    crate::input::regular(&path).map_err(io)?;
    let mut reader = BufReader::new(File::open(&path).map_err(io)?);
    let (mut utterances, mut ids, mut sha) = (Vec::new(), HashSet::new(), Sha256::new());
    let (mut line, mut at) = (Vec::new(), 0_u64);
    loop {
        line.clear();
        std::io::Read::take(&mut reader, MAX_LINE).read_until(b'\n', &mut line).map_err(io)?;
        if line.is_empty() {
            break;
        }
        let number = utterances.len() + 1;
        let fail = |why: String| Error::Dataset { path: dir.to_owned(), why: DatasetError::Manifest { line: number, why } };
        sha.update(&line);
        let u: Utterance = serde_json::from_slice(&line).map_err(|e| fail(e.to_string()))?;
        if u.offset != at {
            return Err(fail(format!("offset {}, expected {at}", u.offset)));
        }
        at = match at.checked_add(u.samples) {
            Some(next) if u.samples > 0 => next,
            _ => return Err(fail(format!("samples {}", u.samples))),
        };
        if u.id.is_empty() || u.speaker.is_empty() || u.language.is_empty() {
            return Err(fail("empty id, speaker or language".into()));
        }
        if !ids.insert(u.id.clone()) {
            return Err(fail(format!("id {:?} appears twice", u.id)));
        }
        utterances.push(u);
    }
    Ok((utterances, hex(&sha.finalize())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
