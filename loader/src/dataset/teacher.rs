//! What a teacher says of every utterance, kept beside a prepared dataset: training needs no teacher then.
//!
//! | file | contents |
//! |---|---|
//! | `teacher/teacher.json` | [`TeacherDescription`] |
//! | `teacher/ID.safetensors` | of the utterance `ID`: `features` f16 `[T, dim]`, or `labels` i32 `[T]`, negative where there is none |
//!
//! Row `t` stands for the time from `t / rate` to `(t + 1) / rate` seconds.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use half::f16;
use serde::{Deserialize, Serialize};

use super::{Dataset, MAX_DESCRIPTION, Piece};
use crate::weights::{self, Dtype, Format, TensorRef, Weights};
use crate::{DatasetError, Error, Result, output};

const FOLDER: &str = "teacher";
const DESCRIPTION: &str = "teacher.json";
/// Rows that a cache may have more or fewer than its utterance lasts: a teacher's convolutions fall short.
const SLACK: f64 = 2.0;
const MAX_DIM: usize = 1 << 14;
const MAX_CLASSES: usize = 1 << 16;

/// What a teacher gives for every frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TeacherOutput {
    /// Numbers of a frame.
    Dim(usize),
    /// Labels `0..classes`.
    Classes(usize),
}

/// `teacher.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TeacherDescription {
    pub name: String,
    /// Frames a second.
    pub rate: f64,
    #[serde(flatten)]
    pub output: TeacherOutput,
    /// Of the dataset that the teacher has heard.
    pub manifest_sha256: String,
}

/// Rows of one utterance.
#[derive(Debug, Clone, PartialEq)]
pub enum TeacherRows {
    /// `[rows, dim]`
    Features(Vec<f32>),
    /// -1 where there is none.
    Labels(Vec<i32>),
}

/// The cache of a dataset; its files are opened when they are asked for.
#[derive(Debug)]
pub struct TeacherCache<'a> {
    dataset: &'a Dataset,
    dir: PathBuf,
    description: TeacherDescription,
}

impl<'a> TeacherCache<'a> {
    /// A cache to be filled: a new one, or what is there of the same teacher and the same dataset.
    ///
    /// # Errors
    /// The folder holds another teacher's.
    pub fn create(dataset: &'a Dataset, name: &str, rate: f64, output: TeacherOutput) -> Result<Self> {
        let manifest_sha256 = dataset.description.manifest_sha256.clone();
        let cache = Self {
            dataset,
            dir: dataset.path.join(FOLDER),
            description: TeacherDescription { name: name.to_owned(), rate, output, manifest_sha256 },
        };
        cache.check()?;
        fs::create_dir_all(&cache.dir).map_err(|e| Error::io("create teacher cache", &cache.dir, e))?;
        let path = cache.dir.join(DESCRIPTION);
        if path.exists() {
            let found = Self::open(dataset)?.description;
            if found != cache.description {
                return Err(cache.fail(format!("holds what {:?} said at {} Hz; remove the folder first", found.name, found.rate)));
            }
            return Ok(cache);
        }
        let text = serde_json::to_string_pretty(&cache.description).map_err(|e| cache.fail(e.to_string()))?;
        output::write(path, format!("{text}\n").as_bytes())?;
        Ok(cache)
    }

    /// # Errors
    /// None there, or one of another dataset.
    pub fn open(dataset: &'a Dataset) -> Result<Self> {
        let dir = dataset.path.join(FOLDER);
        let fail = |why| Error::Dataset { path: dir.clone(), why };
        let path = dir.join(DESCRIPTION);
        if !path.exists() {
            return Err(fail(DatasetError::NoTeacher));
        }
        let text = crate::input::read(&path, "open teacher cache", MAX_DESCRIPTION)?;
        let description = serde_json::from_slice(&text).map_err(|e| fail(DatasetError::Teacher(format!("{DESCRIPTION}: {e}"))))?;
        let cache = Self { dataset, dir, description };
        cache.check()?;
        if cache.description.manifest_sha256 != dataset.description.manifest_sha256 {
            return Err(cache.fail("is of another preparation of the dataset".into()));
        }
        Ok(cache)
    }

    pub fn description(&self) -> &TeacherDescription {
        &self.description
    }

    pub fn dataset(&self) -> &'a Dataset {
        self.dataset
    }

    fn check(&self) -> Result<()> {
        let d = &self.description;
        let sizes = match d.output {
            TeacherOutput::Dim(n) => (1..=MAX_DIM).contains(&n),
            TeacherOutput::Classes(n) => (1..=MAX_CLASSES).contains(&n),
        };
        if !(d.rate > 0.0 && d.rate <= f64::from(self.dataset.sample_rate()) && sizes) {
            return Err(self.fail(format!("{DESCRIPTION}: {:?} at {} Hz", d.output, d.rate)));
        }
        Ok(())
    }

    fn fail(&self, why: String) -> Error {
        Error::Dataset { path: self.dir.clone(), why: DatasetError::Teacher(why) }
    }

    /// Where utterance `index` is; ids with parts that lead elsewhere are refused.
    pub fn path(&self, index: usize) -> Result<PathBuf> {
        let id = &self.utterance(index)?.id;
        let plain = |part: &str| {
            let elsewhere = cfg!(windows) && part.contains(['\\', ':']);
            !matches!(part, "" | "." | "..") && !part.contains('\0') && !elsewhere
        };
        match id.split('/').all(plain) {
            true => Ok(self.dir.join(format!("{id}.safetensors"))),
            false => Err(self.fail(format!("id {id:?} names no file"))),
        }
    }

    fn utterance(&self, index: usize) -> Result<&super::Utterance> {
        self.dataset.utterances.get(index).ok_or_else(|| self.fail(format!("there is no utterance {index}")))
    }

    /// Whether utterance `index` is there and whole.
    pub fn has(&self, index: usize) -> Result<bool> {
        let path = self.path(index)?;
        Ok(path.is_file() && self.file(index).is_ok())
    }

    /// Utterances that are not there, or not whole: what is left to do of an interrupted run.
    pub fn missing(&self) -> Result<Vec<usize>> {
        let mut missing = Vec::new();
        for index in 0..self.dataset.utterances.len() {
            if !self.has(index)? {
                missing.push(index);
            }
        }
        Ok(missing)
    }

    /// Writes what the teacher says of utterance `index`, whole or not at all.
    pub fn write(&self, index: usize, rows: &TeacherRows) -> Result<()> {
        let path = self.path(index)?;
        let bad = |why: &str| Err(Error::Dataset { path: path.clone(), why: DatasetError::Teacher(why.to_owned()) });
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| Error::io("create teacher cache", folder, e))?;
        }
        let save = |tensor: TensorRef| weights::save(&path, &[tensor], &Default::default());
        match (rows, self.description.output) {
            (TeacherRows::Features(values), TeacherOutput::Dim(dim)) => {
                if !values.len().is_multiple_of(dim) || !values.iter().all(|v| f16::from_f32(*v).is_finite()) {
                    return bad("features that are no whole rows, or not finite as f16");
                }
                let shape = [values.len() / dim, dim];
                self.check_rows(index, shape[0])?;
                let bytes: Vec<u8> = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
                save(TensorRef { name: "features", dtype: Dtype::F16, shape: &shape, bytes: &bytes })
            }
            (TeacherRows::Labels(labels), TeacherOutput::Classes(classes)) => {
                if labels.iter().any(|&label| i64::from(label) >= classes as i64) {
                    return bad("labels beyond the classes");
                }
                self.check_rows(index, labels.len())?;
                save(TensorRef::i32("labels", &[labels.len()], labels))
            }
            _ => bad("features for labels, or labels for features"),
        }
    }

    /// The number of rows must be that of the utterance.
    fn check_rows(&self, index: usize, rows: usize) -> Result<()> {
        let u = self.utterance(index)?;
        let expected = u.samples as f64 / f64::from(self.dataset.sample_rate()) * self.description.rate;
        match (rows as f64 - expected).abs() <= SLACK {
            true => Ok(()),
            false => Err(Error::Dataset {
                path: self.path(index)?,
                why: DatasetError::Teacher(format!("{rows} rows, the utterance lasts {expected:.1}")),
            }),
        }
    }

    /// The file of utterance `index` and its number of rows, checked but for the values.
    fn file(&self, index: usize) -> Result<(Weights, usize)> {
        let path = self.path(index)?;
        let fail = |why: String| Error::Dataset { path: path.clone(), why: DatasetError::Teacher(why) };
        if path.is_dir() {
            return Err(fail("is a directory".into()));
        }
        let file = Weights::open(&path)?;
        let (name, dtype, dim) = match self.description.output {
            TeacherOutput::Dim(dim) => ("features", Dtype::F16, Some(dim)),
            TeacherOutput::Classes(_) => ("labels", Dtype::I32, None),
        };
        let rows = match file.info(name) {
            Some((found, shape)) if found == dtype && file.format() == Format::Safetensors && shape.get(1).copied() == dim => {
                if shape.len() == 1 + usize::from(dim.is_some()) { shape.first().copied() } else { None }
            }
            _ => None,
        };
        let rows = rows.ok_or_else(|| fail(format!("no {name} of dtype {} and the teacher's size", dtype.name())))?;
        self.check_rows(index, rows)?;
        Ok((file, rows))
    }

    /// What the teacher said of utterance `index`.
    pub fn read(&self, index: usize) -> Result<TeacherRows> {
        let (file, rows) = self.file(index)?;
        self.rows(&file, 0..rows)
    }

    /// Some of the rows of a file that [`TeacherCache::file`] has opened.
    fn rows(&self, file: &Weights, rows: Range<usize>) -> Result<TeacherRows> {
        let fail = |why: &str| Error::Dataset { path: file.path().to_owned(), why: DatasetError::Teacher(why.to_owned()) };
        match self.description.output {
            TeacherOutput::Dim(dim) => {
                let bytes = &file.view("features")?.bytes[rows.start * dim * 2..rows.end * dim * 2];
                let values: Vec<f32> = bytes.as_chunks::<2>().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect();
                match values.iter().all(|v| v.is_finite()) {
                    true => Ok(TeacherRows::Features(values)),
                    false => Err(fail("features that are not finite")),
                }
            }
            TeacherOutput::Classes(classes) => {
                let labels: Vec<i32> = file.to_i32("labels")?[rows].iter().map(|&label| label.max(-1)).collect();
                match labels.iter().all(|&label| i64::from(label) < classes as i64) {
                    true => Ok(TeacherRows::Labels(labels)),
                    false => Err(fail("labels beyond the classes")),
                }
            }
        }
    }

    /// What the teacher says of crops, `frames` rows each of `hop` samples.
    ///
    /// Frames slower than the teacher's get the mean of the rows whose middles are within a frame of their own (at a fourth of the rate
    /// a window of 8 and a stride of 4, as Mimi has it); others, and labels always, the row that their middle lies in. Where there is
    /// silence instead of an utterance: zeros, or no label.
    pub fn crops(&self, crops: &[Vec<Piece>], frames: usize, hop: usize) -> Result<TeacherRows> {
        let mut all = match self.description.output {
            TeacherOutput::Dim(_) => TeacherRows::Features(Vec::new()),
            TeacherOutput::Classes(_) => TeacherRows::Labels(Vec::new()),
        };
        for crop in crops {
            match (&mut all, self.crop(crop, frames, hop)?) {
                (TeacherRows::Features(all), TeacherRows::Features(rows)) => all.extend(rows),
                (TeacherRows::Labels(all), TeacherRows::Labels(rows)) => all.extend(rows),
                _ => {}
            }
        }
        Ok(all)
    }

    fn crop(&self, crop: &[Piece], frames: usize, hop: usize) -> Result<TeacherRows> {
        let (width, classes) = match self.description.output {
            TeacherOutput::Dim(dim) => (dim, false),
            TeacherOutput::Classes(_) => (1, true),
        };
        // Samples a row.
        let row = f64::from(self.dataset.sample_rate()) / self.description.rate;
        let pooled = !classes && hop as f64 > row * 1.000_001;
        let (mut features, mut labels) = (vec![0.0; if classes { 0 } else { frames * width }], vec![-1; if classes { frames } else { 0 }]);
        let mut counts = vec![0_u32; frames];
        let mut at = 0.0;
        for piece in crop {
            let (start, end) = (piece.start as f64, (piece.start + piece.samples) as f64);
            let (file, rows) = self.file(piece.utterance)?;
            let [first, last] = [start, end].map(|sample| ((sample / row) as usize).min(rows.saturating_sub(1)));
            if rows > 0 {
                let found = self.rows(&file, first..last + 1)?;
                // A sample of the crop is so much further on in the utterance.
                let shift = start - at;
                for frame in 0..frames {
                    let middle = (frame as f64 + 0.5) * hop as f64 + shift;
                    let own = (middle >= start && middle < end).then(|| ((middle / row) as usize).clamp(first, last));
                    match &found {
                        TeacherRows::Labels(found) => {
                            if let Some(own) = own {
                                labels[frame] = found[own - first];
                            }
                        }
                        TeacherRows::Features(found) => {
                            // Rows whose middles are in the window, and in the piece.
                            let from = (middle - hop as f64).max(start) / row - 0.5;
                            let until = (middle + hop as f64).min(end) / row - 0.5;
                            let mut taken = (from.ceil().max(first as f64) as usize)..((until.ceil().max(0.0) as usize).min(last + 1));
                            if !pooled || (taken.is_empty() && counts[frame] == 0) {
                                taken = own.map_or(0..0, |own| own..own + 1);
                            }
                            for r in taken {
                                counts[frame] += 1;
                                let sums = &mut features[frame * width..][..width];
                                sums.iter_mut().zip(&found[(r - first) * width..][..width]).for_each(|(sum, v)| *sum += v);
                            }
                        }
                    }
                }
            }
            at += piece.samples as f64;
        }
        if classes {
            return Ok(TeacherRows::Labels(labels));
        }
        for (sums, &count) in features.chunks_exact_mut(width).zip(&counts) {
            sums.iter_mut().for_each(|sum| *sum /= count.max(1) as f32);
        }
        Ok(TeacherRows::Features(features))
    }
}
