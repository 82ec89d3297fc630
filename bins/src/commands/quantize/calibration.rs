//! Conversations for a calibration, of codes and of audio, and what they make of a model's matrices.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use swara_engine::codec::Codec;
use swara_engine::lm::{self, Conversation, Lm, Seen};
use swara_engine::rounding::{self, Norm, Observed, Target};
use swara_loader::audio::EXTENSIONS;
use swara_loader::quantized::{Bits, Quantized};
use swara_loader::weights::{Dtype, Weights};

use super::{Layout, Losses, Matrix, key};
use crate::cli::{Common, Quantize};
use crate::codec::{self, Pipe};
use crate::dialogue;
use crate::failure::{Failure, Result};
use crate::terminal;

/// Columns that share a scale in ggml's blocks.
pub const GGML_GROUP: usize = 32;

/// What is written instead of what the file has.
#[derive(Default)]
pub struct Calibrated {
    pub steps: usize,
    pub codes: BTreeMap<String, Quantized>,
    /// Norms that take over what columns were multiplied by.
    pub norms: BTreeMap<String, Vec<u8>>,
    pub losses: Losses,
}

pub fn run(common: &Common, args: &Quantize, from: &Path, file: &Weights, matrices: &[Matrix]) -> Result<Calibrated> {
    let conversations = Calibration { common, args, file, lm: None, codec: None }.conversations(from)?;
    let layouts: BTreeMap<&str, Layout> = matrices.iter().map(|matrix| (matrix.name, matrix.layout)).collect();
    let mut found = Calibrated { steps: conversations.iter().map(Conversation::steps).sum(), ..Calibrated::default() };
    let mut parts: BTreeMap<String, Vec<(usize, Quantized)>> = BTreeMap::new();
    let bar = terminal::progress(Some(matrices.len() as u64), "calibrate");
    lm::observe(file, &conversations, |site| {
        let places: Vec<_> = site.matrices.iter().map(|seen| (seen.part, seen.places.clone())).collect();
        let observed: Vec<Observed> = site.matrices.into_iter().map(|seen| observed(&layouts, seen)).collect();
        let whole = places.iter().flat_map(|(_, places)| places).all(|(name, _)| layouts.contains_key(&name[..]));
        // What stays as it is wants the norm that it has.
        let norm = site.norm.as_ref().map(|(norm, _)| norm).filter(|_| whole);
        let rounded = rounding::round(args.method.into(), &observed, norm)?;
        for ((part, places), (codes, loss)) in places.into_iter().zip(rounded.matrices) {
            for (name, rows) in places.into_iter().filter(|(name, _)| layouts.contains_key(&name[..])) {
                found.losses.entry(key(part, codes.bits())).or_default().add(&loss);
                let parts = parts.entry(name).or_default();
                parts.push((rows.start, codes.clone()));
                bar.inc(u64::from(parts.len() == 1));
            }
        }
        if let (Some(norm), Some((_, names))) = (rounded.norm, &site.norm) {
            for (names, values) in names.iter().zip(&norm.tensors) {
                found.norms.extend(names.iter().map(|name| (name.clone(), bytes(&norm, values))));
            }
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    for (name, mut parts) in parts {
        parts.sort_by_key(|(row, _)| *row);
        let parts: Vec<Quantized> = parts.into_iter().map(|(_, codes)| codes).collect();
        let codes =
            Quantized::stack(&parts).map_err(|why| Failure::file("cannot quantize", format!("tensor {name}: {why}"), file.path()))?;
        found.codes.insert(name, codes);
    }
    Ok(found)
}

fn observed(layouts: &BTreeMap<&str, Layout>, seen: Seen) -> Observed {
    let layout = seen.places.first().and_then(|(name, _)| layouts.get(&name[..]).copied()).unwrap_or(Layout::Bitsandbytes);
    let target = match layout {
        Layout::Bitsandbytes => Target { bits: Bits::Eight, group: seen.columns, f16_scales: false },
        Layout::Gptq(group) => Target { bits: Bits::Four, group, f16_scales: true },
        Layout::Blocks(Dtype::Q8_0) => Target { bits: Bits::Eight, group: GGML_GROUP, f16_scales: true },
        Layout::Blocks(_) => Target { bits: Bits::Four, group: GGML_GROUP, f16_scales: true },
    };
    Observed { target, columns: seen.columns, values: seen.values, inputs: seen.inputs }
}

fn bytes(norm: &Norm, values: &[f32]) -> Vec<u8> {
    match norm.dtype {
        Dtype::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

struct Calibration<'a> {
    common: &'a Common,
    args: &'a Quantize,
    file: &'a Weights,
    /// What answers, where only one side is there.
    lm: Option<Lm>,
    codec: Option<Codec>,
}

impl Calibration<'_> {
    /// Of a file, or of all files of a folder, by name, until there are steps enough.
    fn conversations(mut self, from: &Path) -> Result<Vec<Conversation>> {
        let (mut found, mut left) = (Vec::new(), self.args.steps as usize);
        for path in files(from)? {
            if left == 0 {
                break;
            }
            let conversation = if is_audio(&path) { self.heard(&path, left)? } else { self.of_codes(&path, left)? };
            left -= conversation.steps().min(left);
            found.push(conversation);
        }
        Ok(found)
    }

    fn of_codes(&mut self, path: &Path, most: usize) -> Result<Conversation> {
        let (file, config) = (Weights::open(path)?, lm::check(self.file)?);
        let fail = |why: String| Failure::file("cannot use codes", why, path);
        let codes = file.to_i32("codes")?;
        let &[columns, frames @ 1..=usize::MAX] = file.view("codes")?.shape else {
            return Err(fail(format!("shape {:?}, expected [codebooks, frames]", file.view("codes")?.shape)));
        };
        let steps = frames.min(most);
        let first = |columns: usize| -> Vec<i32> { (0..columns * steps).map(|at| codes[at / steps * frames + at % steps]).collect() };
        if file.contains("text") {
            let text = file.to_i32("text")?;
            if columns != config.n_q || text.len() != frames {
                let why = format!(
                    "{columns} codebooks of {frames} frames with text of {}, expected {} codebooks, as many frames of each",
                    text.len(),
                    config.n_q
                );
                return Err(fail(why));
            }
            return Conversation::of_frames(&config, &text[..steps], &first(columns)).map_err(|why| fail(why.to_string()));
        }
        if columns < config.heard() || config.heard() == 0 {
            let why =
                format!("{columns} codebooks, expected at least the {} that the model hears, or {} and text", config.heard(), config.n_q);
            return Err(fail(why));
        }
        Conversation::with(self.lm()?, &first(config.heard()), 0).map_err(|why| fail(why.to_string()))
    }

    fn heard(&mut self, path: &Path, most: usize) -> Result<Conversation> {
        let Some(mimi) = self.args.mimi.clone() else { return Err(Failure::usage("quantize: --calib of audio wants --mimi")) };
        if self.codec.is_none() {
            let codec = codec::open(self.common, &mimi)?;
            dialogue::check_codec(&codec, self.lm()?.config(), Path::new(&mimi))?;
            self.codec = Some(codec);
        }
        let columns = self.lm()?.config().heard();
        let (Some(codec), Some(lm)) = (&self.codec, &self.lm) else { return Err(Failure::usage("quantize: --calib wants --mimi")) };
        if columns == 0 {
            return Err(Failure::file("cannot use audio", "the model hears nothing: a calibration wants codes and text", path));
        }
        let mut rows = Vec::new();
        codec::encode_file(&mut Pipe::new(codec, columns, false)?, path, false, &mut |_, _, _, codes| {
            rows.extend_from_slice(codes);
            Ok(())
        })?;
        let steps = (rows.len() / columns).min(most);
        let codes: Vec<i32> = (0..columns * steps).map(|at| rows[at % steps * columns + at / steps]).collect();
        Conversation::with(lm, &codes, 0).map_err(|why| Failure::file("cannot use audio", why, path))
    }

    fn lm(&mut self) -> Result<&Lm> {
        let lm = match self.lm.take() {
            Some(lm) => lm,
            None => Lm::open(self.file.path(), &self.common.open_device()?, self.common.lm_format(None)?)?,
        };
        Ok(self.lm.insert(lm))
    }
}

fn is_audio(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    extension.is_some_and(|e| EXTENSIONS.contains(&&e[..]))
}

fn files(from: &Path) -> Result<Vec<PathBuf>> {
    let fail = |why: &dyn std::fmt::Display| Failure::file("cannot calibrate", why, from);
    let meta = std::fs::metadata(from).map_err(|e| fail(&e))?;
    if !meta.is_dir() {
        return Ok(vec![from.to_owned()]);
    }
    let entries = std::fs::read_dir(from).map_err(|e| fail(&e))?.flatten().map(|entry| entry.path());
    let wanted = |path: &PathBuf| is_audio(path) || path.extension().is_some_and(|e| e == "safetensors");
    let found: BTreeSet<PathBuf> = entries.filter(|path| path.is_file() && wanted(path)).collect();
    match found.is_empty() {
        true => Err(fail(&"neither audio nor codes (.safetensors) in this folder")),
        false => Ok(found.into_iter().collect()),
    }
}
