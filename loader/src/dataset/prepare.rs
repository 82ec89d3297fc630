use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::segment::{Segmenter, Unfit, trim};
use super::{AUDIO, DESCRIPTION, Description, Hours, MANIFEST, Options, Utterance, VERSION};
use crate::audio::{AudioReader, EXTENSIONS, Warning, to_s16};
use crate::output::AtomicFile;
use crate::{AudioError, DatasetError, Error, Result, loudness};

/// What was left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    /// Files that could not be read.
    pub unreadable: usize,
    /// Pieces.
    pub silent: usize,
    pub clipped: usize,
    pub short: usize,
}

/// Where [`prepare`] is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    pub done: usize,
    pub files: usize,
    /// About to be read.
    pub file: &'a Path,
}

/// What [`prepare`] did.
#[derive(Debug)]
pub struct Report {
    pub description: Description,
    /// Files that could not be read, with the error.
    pub unreadable: Vec<Error>,
    /// Files read in spite of a flaw.
    pub warnings: Vec<(PathBuf, Warning)>,
}

/// Loudest sample after normalisation.
const PEAK: f64 = 0.999;

struct Input {
    path: PathBuf,
    /// Relative to its input folder, without extension, `/` between parts.
    id: String,
    speaker: String,
    language: String,
}

/// Turns folders of audio into a dataset at `out_dir`.
///
/// The same files and options give the same bytes, whatever order the file system lists them in. A file that cannot be read
/// is reported and left out; a failure to write ends the work. Until all is written, `out_dir` has no `dataset.json`, so an
/// interrupted run is never taken for a dataset.
pub fn prepare(
    in_dirs: &[impl AsRef<Path>],
    out_dir: impl AsRef<Path>,
    options: &Options,
    mut progress: impl FnMut(Progress),
) -> Result<Report> {
    let out_dir = out_dir.as_ref();
    options.check().map_err(|why| Error::Dataset { path: out_dir.to_owned(), why })?;
    let inputs = find(in_dirs, options)?;
    if inputs.is_empty() {
        let path = in_dirs.first().map_or(out_dir, AsRef::as_ref).to_owned();
        return Err(Error::Dataset { path, why: DatasetError::NoAudio });
    }
    fs::create_dir_all(out_dir).map_err(|e| Error::io("create dataset", out_dir, e))?;
    let mut work = Work {
        options,
        audio: AtomicFile::create(out_dir.join(AUDIO))?,
        manifest: AtomicFile::create(out_dir.join(MANIFEST))?,
        sha: Sha256::new(),
        utterances: Vec::new(),
        at: 0,
        dropped: Dropped::default(),
    };
    let (mut unreadable, mut warnings) = (Vec::new(), Vec::new());
    for (done, input) in inputs.iter().enumerate() {
        progress(Progress { done, files: inputs.len(), file: &input.path });
        match work.take(input) {
            Ok(found) => warnings.extend(found.into_iter().map(|w| (input.path.clone(), w))),
            Err(error) if matches!(&error, Error::Audio { .. } | Error::Io { action: "open audio", .. }) => {
                work.dropped.unreadable += 1;
                unreadable.push(error);
            }
            Err(error) => return Err(error),
        }
    }
    if work.utterances.is_empty() {
        return Err(Error::Dataset { path: out_dir.to_owned(), why: DatasetError::NothingLeft(inputs.len()) });
    }
    let description = Description {
        version: VERSION,
        sample_rate: options.sample_rate,
        utterances: work.utterances.len(),
        samples: work.at,
        manifest_sha256: super::hex(&work.sha.finalize()),
        hours: Hours::of(&work.utterances, options.sample_rate),
        dropped: work.dropped,
        options: options.clone(),
    };
    let mut file = AtomicFile::create(out_dir.join(DESCRIPTION))?;
    // Between here and the last rename there is no dataset, old or new: a mixture must not pass for one.
    match fs::remove_file(out_dir.join(DESCRIPTION)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("replace dataset", out_dir, e)),
        _ => {}
    }
    work.audio.commit()?;
    work.manifest.commit()?;
    let text = serde_json::to_string_pretty(&description).map_err(|e| invalid(out_dir, e))?;
    file.write(text.as_bytes())?;
    file.write(b"\n")?;
    file.commit()?;
    Ok(Report { description, unreadable, warnings })
}

struct Work<'a> {
    options: &'a Options,
    audio: AtomicFile,
    manifest: AtomicFile,
    sha: Sha256,
    utterances: Vec<Utterance>,
    at: u64,
    dropped: Dropped,
}

impl Work<'_> {
    fn take(&mut self, input: &Input) -> Result<Vec<Warning>> {
        let mut reader = AudioReader::open(&input.path, Some(self.options.sample_rate))?;
        let mut segmenter = Segmenter::new(self.options);
        let mut pieces = Vec::new();
        let mut count = 0;
        // A file that turns out bad half-way still gives its good beginning only if a whole piece came before.
        for samples in &mut reader {
            segmenter.feed(&samples?, |start, piece| pieces.push((start, piece.to_vec())));
            for (start, piece) in pieces.drain(..) {
                count += 1;
                self.add(input, Some(count), start, &piece)?;
            }
        }
        segmenter.finish(|start, piece| pieces.push((start, piece.to_vec())));
        for (start, piece) in pieces.drain(..) {
            self.add(input, (count > 0).then_some(count + 1), start, &piece)?;
        }
        Ok(reader.warnings().to_vec())
    }

    fn add(&mut self, input: &Input, number: Option<usize>, start: u64, piece: &[f32]) -> Result<()> {
        let range = match trim(piece, self.options) {
            Ok(range) => range,
            Err(unfit) => {
                match unfit {
                    Unfit::Silent => self.dropped.silent += 1,
                    Unfit::Clipped => self.dropped.clipped += 1,
                    Unfit::Short => self.dropped.short += 1,
                }
                return Ok(());
            }
        };
        let start = start + range.start as u64;
        let piece = &piece[range];
        let gain = gain(piece, self.options);
        let bytes: Vec<u8> = piece.iter().flat_map(|&x| to_s16((f64::from(x) * gain) as f32).to_le_bytes()).collect();
        self.audio.write(&bytes)?;
        let utterance = Utterance {
            id: match number {
                None => input.id.clone(),
                Some(n) => format!("{}#{n}", input.id),
            },
            speaker: input.speaker.clone(),
            language: input.language.clone(),
            split: self.options.split(&input.id, &input.speaker),
            offset: self.at,
            samples: piece.len() as u64,
            source: input.path.display().to_string(),
            start,
            gain_db: (2000.0 * gain.log10()).round() / 100.0,
        };
        self.at += utterance.samples;
        let mut line = serde_json::to_string(&utterance).map_err(|e| invalid(&input.path, e))?;
        line.push('\n');
        self.sha.update(&line);
        self.manifest.write(line.as_bytes())?;
        self.utterances.push(utterance);
        Ok(())
    }
}

/// Factor to the loudness wanted, less where a sample would pass full scale.
fn gain(piece: &[f32], options: &Options) -> f64 {
    let db = options.loudness.gain_db(piece, options.sample_rate);
    let peak = f64::from(loudness::peak(piece));
    10_f64.powf(db / 20.0).min(PEAK / peak.max(1e-9))
}

fn invalid(path: &Path, e: serde_json::Error) -> Error {
    Error::Dataset { path: path.to_owned(), why: DatasetError::Description(e.to_string()) }
}

/// Hidden files and folders hold no recordings that anybody meant.
fn visible(entry: &walkdir::DirEntry) -> bool {
    entry.depth() == 0 || !entry.file_name().as_encoded_bytes().starts_with(b".")
}

/// Audio files under `in_dirs`, sorted, each id once.
fn find(in_dirs: &[impl AsRef<Path>], options: &Options) -> Result<Vec<Input>> {
    let mut inputs = BTreeMap::new();
    for dir in in_dirs {
        let dir = dir.as_ref();
        if !dir.is_dir() {
            return Err(Error::Dataset { path: dir.to_owned(), why: DatasetError::NoInput });
        }
        let root = dir.canonicalize().ok().and_then(|d| Some(d.file_name()?.to_string_lossy().into_owned()));
        let root = root.unwrap_or_else(|| "speaker".into());
        for entry in walkdir::WalkDir::new(dir).follow_links(true).sort_by_file_name().into_iter().filter_entry(visible) {
            let entry = entry.map_err(|e| {
                let path = e.path().unwrap_or(dir).to_owned();
                let source = e.into_io_error().unwrap_or_else(|| std::io::Error::other("links run in a circle"));
                Error::Io { action: "list folder", path, source }
            })?;
            let path = entry.path();
            let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
            let known = extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str()));
            if !entry.file_type().is_file() || !known {
                continue;
            }
            let relative = path.strip_prefix(dir).unwrap_or(path).with_extension("");
            let parts: Vec<_> = relative.iter().map(|p| p.to_string_lossy().into_owned()).collect();
            let folder = |depth: usize| match depth {
                1.. if depth < parts.len() => Some(parts[depth - 1].clone()),
                _ => None,
            };
            let input = Input {
                path: path.to_owned(),
                speaker: folder(options.speaker_depth).unwrap_or_else(|| root.clone()),
                language: folder(options.language_depth).unwrap_or_else(|| "und".into()),
                id: parts.join("/"),
            };
            if let Some(other) = inputs.insert(input.id.clone(), input) {
                let why = AudioError::Unsupported(format!("another file, {}, has the same id", path.display()));
                return Err(Error::Audio { path: other.path, why });
            }
        }
    }
    Ok(inputs.into_values().collect())
}
