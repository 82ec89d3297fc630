//! Files of codec codes: safetensors with `codes` i32 `[codebooks, frames]` and metadata
//! `model, sample_rate, frame_rate, samples`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::weights::{TensorRef, Weights, save};
use crate::{CodesError, Error, Result};

#[derive(Debug, Clone, PartialEq)]
pub struct Codes {
    /// `[codebooks, frames]`, row-major.
    pub codes: Vec<i32>,
    pub codebooks: usize,
    /// The codec's name.
    pub model: String,
    /// Hz.
    pub sample_rate: u32,
    /// Hz.
    pub frame_rate: f64,
    /// Length of the audio; the last frame may reach beyond it.
    pub samples: u64,
}

impl Codes {
    pub fn frames(&self) -> usize {
        self.codes.len().checked_div(self.codebooks).unwrap_or(0)
    }

    /// Codes of one codebook.
    pub fn codebook(&self, k: usize) -> &[i32] {
        let frames = self.frames();
        &self.codes[k * frames..(k + 1) * frames]
    }

    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let weights = Weights::open(path)?;
        Self::parse(&weights).map_err(|why| Error::Codes { path: path.to_owned(), why })
    }

    fn parse(weights: &Weights) -> Result<Self, CodesError> {
        let view = weights.view("codes").map_err(|_| CodesError::NoCodes)?;
        let flat = weights.to_i32("codes").map_err(|_| CodesError::Dtype(view.dtype.name()))?;
        let codebooks = match *view.shape {
            [codebooks, frames] if codebooks > 0 && frames > 0 => codebooks,
            _ => return Err(CodesError::Shape(view.shape.to_vec())),
        };
        let codes = Self {
            codes: flat.into_owned(),
            codebooks,
            model: field(weights, "model", "a name", |s| (!s.is_empty()).then(|| s.to_owned()))?,
            sample_rate: field(weights, "sample_rate", "Hz, 1 to 768000", |s| {
                s.parse().ok().filter(|r| (1..=crate::audio::MAX_RATE).contains(r))
            })?,
            frame_rate: field(weights, "frame_rate", "Hz, above 0", |s| s.parse().ok().filter(|&r: &f64| r.is_finite() && r > 0.0))?,
            samples: field(weights, "samples", "a count", |s| s.parse().ok())?,
        };
        codes.check_length()?;
        Ok(codes)
    }

    /// Whole, or not at all.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let fail = |why| Error::Codes { path: path.to_owned(), why };
        let shape = [self.codebooks, self.frames()];
        if self.codes.is_empty() || shape[0] * shape[1] != self.codes.len() {
            return Err(fail(CodesError::Shape(shape.into())));
        }
        self.check_length().map_err(fail)?;
        let metadata: BTreeMap<_, _> = [
            ("model", self.model.clone()),
            ("sample_rate", self.sample_rate.to_string()),
            ("frame_rate", self.frame_rate.to_string()),
            ("samples", self.samples.to_string()),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into();
        save(path, &[TensorRef::i32("codes", &shape, &self.codes)], &metadata)
    }

    /// Against the sizes of the model's codebooks. `path` is for the message.
    pub fn check(&self, path: &Path, sizes: &[usize]) -> Result<()> {
        self.check_range(sizes).map_err(|why| Error::Codes { path: path.to_owned(), why })
    }

    fn check_range(&self, sizes: &[usize]) -> Result<(), CodesError> {
        if self.codebooks > sizes.len() {
            return Err(CodesError::Codebooks { expected: sizes.len(), found: self.codebooks });
        }
        for (codebook, &size) in sizes[..self.codebooks].iter().enumerate() {
            let outside = |&c: &i32| usize::try_from(c).map_or(true, |c| c >= size);
            if let Some(frame) = self.codebook(codebook).iter().position(outside) {
                return Err(CodesError::Range { codebook, frame, found: self.codebook(codebook)[frame], size });
            }
        }
        Ok(())
    }

    fn check_length(&self) -> Result<(), CodesError> {
        let expected = self.samples as f64 * self.frame_rate / f64::from(self.sample_rate);
        // Up to a frame of padding, and rounding.
        if (self.frames() as f64 - expected).abs() > 1.0 + 1e-6 {
            return Err(CodesError::Length { samples: self.samples, expected, found: self.frames() });
        }
        Ok(())
    }
}

fn field<T>(weights: &Weights, name: &'static str, expected: &'static str, parse: impl Fn(&str) -> Option<T>) -> Result<T, CodesError> {
    let text = weights.metadata().get(name).ok_or(CodesError::NoField(name))?;
    parse(text).ok_or_else(|| CodesError::Field { field: name, found: text.clone(), expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes() -> Codes {
        Codes {
            codes: vec![0, 2047, 5, 1, 1023, 7],
            codebooks: 2,
            model: "swara-te50".into(),
            sample_rate: 16_000,
            frame_rate: 50.0,
            samples: 900,
        }
    }

    #[test]
    fn codes_come_back_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        codes().write(&path).unwrap();
        let read = Codes::read(&path).unwrap();
        assert_eq!(read, codes());
        assert_eq!(read.codebook(1), [1, 1023, 7]);
        read.check(&path, &[2048, 1024, 1024]).unwrap();
    }

    #[test]
    fn a_code_out_of_range_is_named_with_its_place() {
        let error = codes().check(Path::new("c"), &[2047, 1024]).unwrap_err().to_string();
        assert_eq!(error, "cannot use codes: codebook 0, frame 1: code 2047, expected 0 to 2046 (c)");
        let mut negative = codes();
        negative.codes[5] = -1;
        assert!(negative.check(Path::new("c"), &[2048, 1024]).is_err());
    }

    #[test]
    fn more_codebooks_than_the_model_has_are_refused() {
        let error = codes().check(Path::new("c"), &[2048]).unwrap_err().to_string();
        assert!(error.contains("2 codebooks, the model has 1"), "{error}");
    }

    #[test]
    fn a_length_that_contradicts_the_frames_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        for (samples, fits) in [(641, true), (960, true), (1280, true), (639, false), (1281, false), (u64::MAX, false)] {
            let written = Codes { samples, ..codes() }.write(&path);
            assert_eq!(written.is_ok(), fits, "{samples}");
        }
    }

    #[test]
    fn codes_of_nothing_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        for shape in [[1 << 40, 0], [0, 1 << 40], [1, 0]] {
            save(&path, &[TensorRef::i32("codes", &shape, &[])], &BTreeMap::new()).unwrap();
            assert!(Codes::read(&path).unwrap_err().to_string().contains("at least one of each"), "{shape:?}");
        }
    }

    #[test]
    fn each_bad_field_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        let good = [("model", "m"), ("sample_rate", "16000"), ("frame_rate", "50"), ("samples", "900")];
        let mut cases: Vec<(&str, Option<&str>)> = good.iter().map(|(k, _)| (*k, None)).collect();
        cases.extend([("sample_rate", Some("0")), ("frame_rate", Some("nan")), ("samples", Some("-1"))]);
        for (name, value) in cases {
            let mut metadata: BTreeMap<_, _> = good.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
            match value {
                None => metadata.remove(name),
                Some(value) => metadata.insert(name.into(), value.into()),
            };
            save(&path, &[TensorRef::i32("codes", &[2, 3], &codes().codes)], &metadata).unwrap();
            let error = Codes::read(&path).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        save(&path, &[TensorRef::f32("codes", &[1, 1], &[0.0])], &BTreeMap::new()).unwrap();
        assert!(Codes::read(&path).unwrap_err().to_string().contains("F32"));
    }
}
