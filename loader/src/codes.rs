//! Files of codec codes: safetensors with `codes` i32 `[codebooks, frames]` - or, of codecs whose codebooks differ in rate, with
//! `codes_0` i32 `[frames]` of the slowest, `codes_1`, ... - and metadata `model, sample_rate, frame_rate, samples`. Of codecs that code
//! a signal in pieces which overlap there is `scales` f32 `[pieces]`, too. Where frames have codes of the first codebooks only, each of
//! so many as it needs, there is `stages` u8 `[runs]`, how many each run of `hold` frames (metadata, 1 if not there) has; their other
//! codes are -1.

use std::collections::BTreeMap;
use std::path::Path;

use crate::weights::{Dtype, TensorRef, Weights, save};
use crate::{CodesError, Error, Result};

/// In place of a code that a frame does without.
pub const NONE: i32 = -1;
/// Most frames that share a number of stages.
pub const MAX_HOLD: usize = 64;

/// How many of the codebooks each run of `hold` frames has, of which the last may be shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stages {
    pub of: Vec<u8>,
    pub hold: usize,
}

impl Stages {
    /// Of a frame.
    pub fn at(&self, frame: usize) -> usize {
        self.of.get(frame / self.hold.max(1)).map_or(0, |&n| n.into())
    }

    /// Mean over `frames` frames.
    pub fn mean(&self, frames: usize) -> f64 {
        (0..frames).map(|frame| self.at(frame) as f64).sum::<f64>() / frames.max(1) as f64
    }

    /// Drops the codes `[frames, codebooks]` of stages that frames do without.
    pub fn drop_others(&self, rows: &mut [i32], codebooks: usize) {
        for (frame, row) in rows.chunks_exact_mut(codebooks.max(1)).enumerate() {
            row[self.at(frame).min(codebooks)..].fill(NONE);
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Codes {
    /// One codebook after the other: `[codebooks, frames]`, row-major, if all are of one rate.
    pub codes: Vec<i32>,
    pub codebooks: usize,
    /// Frames of each codebook of a multi-rate codec, slowest first; None if all are of one rate.
    pub levels: Option<Vec<usize>>,
    /// None if every frame has codes of all codebooks.
    pub stages: Option<Stages>,
    /// Loudness of each piece, of codecs that code a signal in pieces; else empty.
    pub scales: Vec<f32>,
    /// The codec's name.
    pub model: String,
    /// Hz.
    pub sample_rate: u32,
    /// Hz; of the slowest level.
    pub frame_rate: f64,
    /// Length of the audio; the last frame may reach beyond it.
    pub samples: u64,
}

/// Far more than any codec has.
const MAX_LEVELS: usize = 64;
/// Frames of padding: multi-rate codecs fill whole windows of attention.
const MAX_PADDING: f64 = 1.0;
const MAX_LEVEL_PADDING: f64 = 32.0;

impl Codes {
    /// Of the slowest level.
    pub fn frames(&self) -> usize {
        match &self.levels {
            None => self.codes.len().checked_div(self.codebooks).unwrap_or(0),
            Some(levels) => levels.first().copied().unwrap_or(0),
        }
    }

    /// Codes of one codebook.
    pub fn codebook(&self, k: usize) -> &[i32] {
        let (start, frames) = match &self.levels {
            None => (k * self.frames(), self.frames()),
            Some(levels) => (levels[..k].iter().sum(), levels[k]),
        };
        &self.codes[start..start + frames]
    }

    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_weights(&Weights::open(path)?)
    }

    /// Of a file that is open already.
    pub fn from_weights(weights: &Weights) -> Result<Self> {
        Self::parse(weights).map_err(|why| Error::Codes { path: weights.path().to_owned(), why })
    }

    fn parse(weights: &Weights) -> Result<Self, CodesError> {
        let (codes, codebooks, levels) = match weights.contains("codes") || !weights.contains("codes_0") {
            true => {
                let (codes, shape) = tensor(weights, "codes")?;
                match *shape {
                    [codebooks, frames] if codebooks > 0 && frames > 0 => (codes, codebooks, None),
                    _ => return Err(CodesError::Shape(shape.to_vec())),
                }
            }
            false => {
                let (mut codes, mut levels) = (Vec::new(), Vec::new());
                while let name = format!("codes_{}", levels.len())
                    && weights.contains(&name)
                {
                    let (level, shape) = tensor(weights, &name)?;
                    let [frames] = *shape else { return Err(CodesError::LevelShape { name, found: shape.to_vec() }) };
                    if levels.len() == MAX_LEVELS {
                        return Err(CodesError::Levels(levels));
                    }
                    levels.push(frames);
                    codes.extend(level);
                }
                (codes, levels.len(), Some(levels))
            }
        };
        let codes = Self {
            codes,
            codebooks,
            levels,
            stages: stages(weights)?,
            scales: scales(weights)?,
            model: field(weights, "model", "a name", |s| (!s.is_empty()).then(|| s.to_owned()))?,
            sample_rate: field(weights, "sample_rate", "Hz, 1 to 768000", |s| {
                s.parse().ok().filter(|r| (1..=crate::audio::MAX_RATE).contains(r))
            })?,
            frame_rate: field(weights, "frame_rate", "Hz, above 0", |s| s.parse().ok().filter(|&r: &f64| r.is_finite() && r > 0.0))?,
            samples: field(weights, "samples", "a count", |s| s.parse().ok())?,
        };
        codes.check_shape()?;
        codes.check_stages()?;
        codes.check_length()?;
        Ok(codes)
    }

    /// Whole, or not at all.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let fail = |why| Error::Codes { path: path.to_owned(), why };
        self.check_shape().and_then(|()| self.check_stages()).and_then(|()| self.check_length()).map_err(fail)?;
        let mut metadata: BTreeMap<_, _> = [
            ("model", self.model.clone()),
            ("sample_rate", self.sample_rate.to_string()),
            ("frame_rate", self.frame_rate.to_string()),
            ("samples", self.samples.to_string()),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into();
        if let Some(stages) = &self.stages {
            metadata.insert("hold".into(), stages.hold.to_string());
        }
        let names: Vec<String> = (0..self.codebooks).map(|k| format!("codes_{k}")).collect();
        let shape = [self.codebooks, self.frames()];
        let tensors = match &self.levels {
            None => vec![TensorRef::i32("codes", &shape, &self.codes)],
            Some(levels) => {
                let tensor = |(k, name)| TensorRef::i32(name, &levels[k..=k], self.codebook(k));
                names.iter().map(String::as_str).enumerate().map(tensor).collect()
            }
        };
        let pieces = [self.scales.len()];
        let scales = (!self.scales.is_empty()).then(|| TensorRef::f32("scales", &pieces, &self.scales));
        let runs = [self.stages.as_ref().map_or(0, |stages| stages.of.len())];
        let stages = self.stages.as_ref().map(|s| TensorRef { name: "stages", dtype: Dtype::U8, shape: &runs, bytes: &s.of });
        let tensors: Vec<TensorRef> = tensors.into_iter().chain(scales).chain(stages).collect();
        save(path, &tensors, &metadata)
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
            let absent = |frame: usize| self.stages.as_ref().is_some_and(|stages| codebook >= stages.at(frame));
            let outside = |(frame, &c): (usize, &i32)| !absent(frame) && usize::try_from(c).map_or(true, |c| c >= size);
            if let Some(frame) = self.codebook(codebook).iter().enumerate().position(outside) {
                return Err(CodesError::Range { codebook, frame, found: self.codebook(codebook)[frame], size });
            }
        }
        Ok(())
    }

    fn check_shape(&self) -> Result<(), CodesError> {
        match &self.levels {
            None if self.codes.is_empty() || self.codebooks * self.frames() != self.codes.len() => {
                Err(CodesError::Shape(vec![self.codebooks, self.frames()]))
            }
            // Each level divides the frames of the one before it.
            Some(levels) => {
                let whole = |pair: &[usize]| pair[0] > 0 && pair[1] >= pair[0] && pair[1].is_multiple_of(pair[0]);
                let fits = self.frames() > 0 && levels.len() <= MAX_LEVELS && levels.windows(2).all(whole);
                match fits && levels.len() == self.codebooks && levels.iter().sum::<usize>() == self.codes.len() {
                    true => Ok(()),
                    false => Err(CodesError::Levels(levels.clone())),
                }
            }
            None => Ok(()),
        }
    }

    /// Codes are there where frames have them, and only there.
    fn check_stages(&self) -> Result<(), CodesError> {
        let Some(stages) = &self.stages else { return Ok(()) };
        let (frames, runs) = (self.frames(), stages.of.len());
        let numbers = stages.of.iter().all(|&n| (1..=self.codebooks).contains(&n.into()));
        if self.levels.is_some() || !(1..=MAX_HOLD).contains(&stages.hold) || runs != frames.div_ceil(stages.hold) || !numbers {
            return Err(CodesError::Stages { runs, hold: stages.hold, frames, codebooks: self.codebooks });
        }
        for codebook in 0..self.codebooks {
            let stray = |(frame, &code): (usize, &i32)| (code == NONE) != (codebook >= stages.at(frame));
            if let Some(frame) = self.codebook(codebook).iter().enumerate().position(stray) {
                return Err(CodesError::Stray { codebook, frame, found: self.codebook(codebook)[frame], stages: stages.at(frame) });
            }
        }
        Ok(())
    }

    fn check_length(&self) -> Result<(), CodesError> {
        let expected = self.samples as f64 * self.frame_rate / f64::from(self.sample_rate);
        // Pieces overlap by a half at most, and each may end within a frame.
        let padding = match (&self.levels, self.scales.len()) {
            (Some(_), _) => MAX_LEVEL_PADDING,
            (None, 0) => MAX_PADDING,
            (None, pieces) => expected + pieces as f64,
        };
        let more = self.frames() as f64 - expected;
        // A frame less, too: some codecs leave out the last one; and rounding.
        if !(-1.0 - 1e-6..=padding + 1e-6).contains(&more) {
            return Err(CodesError::Length { samples: self.samples, expected, found: self.frames() });
        }
        Ok(())
    }
}

fn tensor<'w>(weights: &'w Weights, name: &str) -> Result<(Vec<i32>, &'w [usize]), CodesError> {
    let (dtype, shape) = weights.info(name).ok_or(CodesError::NoCodes)?;
    let dtype = || CodesError::Dtype { name: name.into(), found: dtype.name() };
    Ok((weights.to_i32(name).map_err(|_| dtype())?.into_owned(), shape))
}

fn stages(weights: &Weights) -> Result<Option<Stages>, CodesError> {
    let Some((dtype, shape)) = weights.info("stages") else { return Ok(None) };
    let fail = || CodesError::StagesTensor { dtype: dtype.name(), shape: shape.to_vec() };
    if dtype != Dtype::U8 || shape.len() != 1 {
        return Err(fail());
    }
    let of = weights.view("stages").map_err(|_| fail())?.bytes.to_vec();
    let hold = match weights.metadata().contains_key("hold") {
        true => field(weights, "hold", "a count of frames, 1 to 64", |s| s.parse().ok().filter(|n| (1..=MAX_HOLD).contains(n)))?,
        false => 1,
    };
    Ok(Some(Stages { of, hold }))
}

fn scales(weights: &Weights) -> Result<Vec<f32>, CodesError> {
    let name = "scales";
    let Some((dtype, shape)) = weights.info(name) else { return Ok(Vec::new()) };
    if dtype != Dtype::F32 {
        return Err(CodesError::ScalesDtype(dtype.name()));
    }
    let values = weights.to_f32(name).map_err(|_| CodesError::ScalesDtype(dtype.name()))?.into_owned();
    match shape.len() == 1 && !values.is_empty() && values.iter().all(|v| v.is_finite() && *v > 0.0) {
        true => Ok(values),
        false => Err(CodesError::Scales(shape.to_vec())),
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
            levels: None,
            stages: None,
            scales: Vec::new(),
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

    fn levels() -> Codes {
        Codes {
            codes: (0..14).collect(),
            codebooks: 3,
            levels: Some(vec![2, 4, 8]),
            stages: None,
            scales: Vec::new(),
            model: "snac_24khz".into(),
            sample_rate: 24_000,
            frame_rate: 24_000.0 / 2048.0,
            samples: 4000,
        }
    }

    #[test]
    fn codes_of_several_rates_come_back_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        levels().write(&path).unwrap();
        let weights = Weights::open(&path).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["codes_0", "codes_1", "codes_2"]);
        assert_eq!((weights.view("codes_0").unwrap().shape, weights.view("codes_2").unwrap().shape), (&[2][..], &[8][..]));
        let read = Codes::read(&path).unwrap();
        assert_eq!(read, levels());
        assert_eq!((read.codebook(0), read.codebook(1), read.frames()), (&[0, 1][..], &[2, 3, 4, 5][..], 2));
        read.check(&path, &[2, 6, 14]).unwrap();
        let error = read.check(&path, &[2, 6, 13]).unwrap_err().to_string();
        assert!(error.contains("codebook 2, frame 7: code 13"), "{error}");
    }

    #[test]
    fn loudnesses_come_back_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        let pieces = Codes { codes: vec![1; 2 * 31], codebooks: 2, scales: vec![0.25, 3.0], samples: 9500, ..codes() };
        pieces.write(&path).unwrap();
        assert_eq!(Codes::read(&path).unwrap(), pieces);
        assert!(Codes { codes: vec![1; 2 * 70], ..pieces.clone() }.write(&path).is_err());
        let metadata = Weights::open(&path).unwrap().metadata().clone();
        let codes = TensorRef::i32("codes", &[2, 31], &pieces.codes);
        for scales in [[0.25, f32::NAN], [0.0, 1.0], [1.0, -1.0], [f32::INFINITY, 1.0]] {
            save(&path, &[codes, TensorRef::f32("scales", &[2], &scales)], &metadata).unwrap();
            assert!(Codes::read(&path).unwrap_err().to_string().contains("scales"), "{scales:?}");
        }
        for shape in [&[1, 2][..], &[0]] {
            save(&path, &[codes, TensorRef::f32("scales", shape, &[1.0; 2][..shape.iter().product()])], &metadata).unwrap();
            assert!(Codes::read(&path).is_err(), "{shape:?}");
        }
        save(&path, &[codes, TensorRef::i32("scales", &[1], &[1])], &metadata).unwrap();
        assert!(Codes::read(&path).is_err());
    }

    /// Three codebooks, seven frames, of which runs of three have 2, 1 and 3.
    fn dynamic() -> Codes {
        let mut rows: Vec<i32> = (0..21).collect();
        let stages = Stages { of: vec![2, 1, 3], hold: 3 };
        stages.drop_others(&mut rows, 3);
        let by_codebook = (0..3).flat_map(|k| rows.iter().skip(k).step_by(3).copied().collect::<Vec<_>>()).collect();
        Codes { codes: by_codebook, codebooks: 3, stages: Some(stages), samples: 2200, ..codes() }
    }

    #[test]
    fn frames_of_fewer_codes_come_back_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        dynamic().write(&path).unwrap();
        let read = Codes::read(&path).unwrap();
        assert_eq!(read, dynamic());
        assert_eq!(read.codebook(1), [1, 4, 7, -1, -1, -1, 19]);
        assert_eq!(read.codebook(2), [-1, -1, -1, -1, -1, -1, 20]);
        read.check(&path, &[19, 20, 21]).unwrap();
        assert!(read.check(&path, &[19, 19, 21]).unwrap_err().to_string().contains("codebook 1, frame 6: code 19"));
        // Without the numbers, as one who does not know of them reads it.
        let old = Codes { stages: None, ..read };
        assert!(old.check(&path, &[64; 3]).unwrap_err().to_string().contains("codebook 1, frame 3: code -1"));
    }

    #[test]
    fn numbers_of_codes_that_contradict_the_codes_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        let metadata: BTreeMap<String, String> =
            [("model", "m"), ("sample_rate", "16000"), ("frame_rate", "50"), ("samples", "2200")].map(|(k, v)| (k.into(), v.into())).into();
        let codes = dynamic().codes;
        let tensor = TensorRef::i32("codes", &[3, 7], &codes);
        let write = |of: &[u8], dtype: Dtype, shape: &[usize], hold: Option<&str>| {
            let mut metadata = metadata.clone();
            hold.map(|hold| metadata.insert("hold".into(), hold.into()));
            save(&path, &[tensor, TensorRef { name: "stages", dtype, shape, bytes: of }], &metadata).unwrap();
            Codes::read(&path)
        };
        assert_eq!(write(&[2, 1, 3], Dtype::U8, &[3], Some("3")).unwrap().stages, dynamic().stages);
        write(&[2, 2, 2, 1, 1, 1, 3], Dtype::U8, &[7], None).unwrap();
        for (of, hold) in [
            (&[2, 1, 3][..], None),
            (&[2, 1, 3], Some("2")),
            (&[2, 1, 3], Some("0")),
            (&[2, 1, 3], Some("65")),
            (&[2, 1, 3], Some("-3")),
            (&[2, 1, 3], Some("18446744073709551616")),
            (&[2, 1], Some("3")),
            (&[2, 1, 3, 3], Some("3")),
            (&[], Some("3")),
            (&[2, 2, 3], Some("3")),
            (&[1, 1, 3], Some("3")),
            (&[2, 0, 3], Some("3")),
            (&[2, 1, 4], Some("3")),
            (&[2, 1, 255], Some("3")),
            (&[3], Some("7")),
        ] {
            let error = write(of, Dtype::U8, &[of.len()], hold).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
        }
        assert!(write(&[2, 1, 3], Dtype::U8, &[3, 1], Some("3")).is_err());
        assert!(write(&[2, 1, 3], Dtype::I8, &[3], Some("3")).is_err());
        let levels = Codes { stages: Some(Stages { of: vec![1, 1], hold: 1 }), ..levels() };
        assert!(levels.write(&path).is_err());
        assert!(Codes { stages: Some(Stages { of: vec![3, 1, 3], hold: 3 }), ..dynamic() }.write(&path).is_err());
    }

    #[test]
    fn levels_that_do_not_divide_the_frames_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        let metadata: BTreeMap<_, _> =
            [("model", "m"), ("sample_rate", "24000"), ("frame_rate", "12"), ("samples", "4000")].map(|(k, v)| (k.into(), v.into())).into();
        let values = [0; 64];
        for (frames, fits) in [
            (&[2, 4, 8][..], true),
            (&[2], true),
            (&[2, 2], true),
            (&[30, 60], true),
            (&[2, 3], false),
            (&[4, 2], false),
            (&[2, 0], false),
            (&[0, 2], false),
            (&[36], false),
            (&[0], false),
        ] {
            let codes = Codes {
                codes: vec![0; frames.iter().sum()],
                codebooks: frames.len(),
                levels: Some(frames.to_vec()),
                frame_rate: 12.0,
                ..levels()
            };
            assert_eq!(codes.write(&path).is_ok(), fits, "{frames:?}");
            let names: Vec<String> = (0..frames.len()).map(|k| format!("codes_{k}")).collect();
            let tensors: Vec<_> =
                names.iter().zip(frames).map(|(n, f)| TensorRef::i32(n, std::slice::from_ref(f), &values[..*f])).collect();
            save(&path, &tensors, &metadata).unwrap();
            assert_eq!(Codes::read(&path).is_ok(), fits, "{frames:?}");
        }
        save(&path, &[TensorRef::i32("codes_0", &[1, 2], &values[..2])], &metadata).unwrap();
        assert!(Codes::read(&path).unwrap_err().to_string().contains("`codes_0` has shape [1, 2]"));
        save(&path, &[TensorRef::i32("codes_1", &[2], &values[..2])], &metadata).unwrap();
        assert!(Codes::read(&path).unwrap_err().to_string().contains("no tensor `codes`"));
        let names: Vec<String> = (0..65).map(|k| format!("codes_{k}")).collect();
        let many: Vec<_> = names.iter().map(|n| TensorRef::i32(n, &[2], &values[..2])).collect();
        save(&path, &many, &metadata).unwrap();
        assert!(Codes::read(&path).is_err());
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
