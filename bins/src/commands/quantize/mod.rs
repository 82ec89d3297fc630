mod calibration;
mod codec;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use serde_json::json;
use swara_engine::csm;
use swara_engine::lm::{self, Part};
use swara_engine::rounding::Loss;
use swara_loader::QuantizedError;
use swara_loader::quantized::{Bits, Panels, Quantized};
use swara_loader::weights::{Dtype, Planned, Weights, save_each, save_gguf_each};

use self::calibration::Calibrated;
use crate::cli::{Common, Method, Quantize, QuantizeFormat};
use crate::failure::{Failure, Result};
use crate::terminal;

/// How a matrix is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// 8 bits: `NAME` and `NAME_scb`.
    Bitsandbytes,
    /// 4 bits in groups of so many columns: `*qweight`, `*qzeros`, `*scales`.
    Gptq(usize),
    /// ggml's, of this type.
    Blocks(Dtype),
}

/// Bytes of one tensor of the file that is written.
#[derive(Clone, Copy)]
enum Content {
    /// As it is.
    Copied,
    Codes,
    Zeros,
    Scales,
}

#[derive(Clone)]
struct Matrix<'a> {
    name: &'a str,
    /// What the file has.
    published: Vec<usize>,
    /// Dimensions before the last are rows.
    shape: [usize; 2],
    /// What its codes are.
    layout: Layout,
    /// Whether they are written in panels.
    packed: bool,
}

impl Matrix<'_> {
    /// Of its first rows, if the file has more.
    fn values<'f>(&self, file: &'f Weights) -> Result<Cow<'f, [f32]>> {
        Ok(file.to_f32_rows(self.name, 0..self.shape[0])?)
    }

    /// The nearest codes.
    fn quantize(&self, file: &Weights) -> Result<(Vec<f32>, Quantized)> {
        let values = self.values(file)?.into_owned();
        let quantized = match self.layout {
            Layout::Bitsandbytes => Quantized::int8(self.shape, self.shape[1], &values),
            Layout::Gptq(group) => Quantized::int4(self.shape, group, &values),
            Layout::Blocks(Dtype::Q8_0) => Quantized::q8_0(self.shape, &values),
            Layout::Blocks(Dtype::Q4_0) => Quantized::q4_0(self.shape, &values),
            Layout::Blocks(dtype) => {
                Quantized::q4_k_blocks(self.shape, &values).and_then(|blocks| Quantized::from_blocks(dtype, self.shape, &blocks))
            }
        };
        Ok((values, quantized.map_err(|why| self.fail(file, why))?))
    }

    /// What is written of `codes`.
    fn bytes(&self, codes: &Quantized, content: Content, file: &Weights) -> Result<Vec<u8>> {
        let fail = |why| self.fail(file, why);
        if self.packed {
            let panels = self.stored(codes, file)?.to_panels().map_err(fail)?;
            return Ok(match content {
                Content::Scales => bytes(panels.scales()),
                _ => panels.codes().to_vec(),
            });
        }
        match self.layout {
            // Scales of scales are not in the codes.
            Layout::Blocks(Dtype::Q4K) => return Quantized::q4_k_blocks(self.shape, &self.values(file)?).map_err(fail),
            Layout::Blocks(dtype) => return codes.to_blocks(dtype).map_err(fail),
            Layout::Bitsandbytes | Layout::Gptq(_) => {}
        }
        if self.layout == Layout::Bitsandbytes {
            let (rows, greatest) = codes.to_bitsandbytes().map_err(fail)?;
            return Ok(match content {
                Content::Scales => bytes(&greatest),
                _ => rows.to_vec(),
            });
        }
        let packed = codes.to_gptq().map_err(fail)?;
        let words = |words: Vec<i32>| words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Ok(match content {
            Content::Scales => packed.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect(),
            Content::Zeros => words(packed.qzeros),
            _ => words(packed.qweight),
        })
    }

    /// Codes with the scales that its layout keeps.
    fn stored<'c>(&self, codes: &'c Quantized, file: &Weights) -> Result<Cow<'c, Quantized>> {
        let Layout::Gptq(group) = self.layout else { return Ok(Cow::Borrowed(codes)) };
        let packed = codes.to_gptq().map_err(|why| self.fail(file, why))?;
        let scales: Vec<f32> = packed.scales.iter().map(|scale| scale.to_f32()).collect();
        let found = Quantized::from_gptq(self.shape, group, &packed.qweight, &packed.qzeros, &scales, None);
        Ok(Cow::Owned(found.map_err(|why| self.fail(file, why))?))
    }

    fn fail(&self, file: &Weights, why: QuantizedError) -> Failure {
        Failure::file("cannot quantize", format!("tensor {}: {why}", self.name), file.path())
    }

    /// Names, types and shapes of what it is written as.
    fn planned(&self) -> Vec<(Planned, Content)> {
        let [rows, columns] = self.shape;
        let planned = |name: String, dtype, shape: &[usize]| Planned { name, dtype, shape: shape.to_vec() };
        let beside = |part: &str| self.name.strip_suffix("weight").unwrap_or(self.name).to_owned() + part;
        if self.packed {
            let (bits, group) = match self.layout {
                Layout::Gptq(group) => (Bits::Four, group),
                _ => (Bits::Eight, columns),
            };
            let panels = rows / Panels::ROWS;
            return vec![
                (planned(beside("panels"), Dtype::U8, &[panels, columns, bits.bytes(Panels::ROWS)]), Content::Codes),
                (planned(beside("scales"), Dtype::F32, &[panels, columns / group, Panels::ROWS]), Content::Scales),
            ];
        }
        match self.layout {
            Layout::Bitsandbytes => vec![
                (planned(self.name.to_owned(), Dtype::I8, &self.published), Content::Codes),
                (planned(format!("{}_scb", self.name), Dtype::F32, &[rows]), Content::Scales),
            ],
            Layout::Blocks(dtype) => vec![(planned(self.name.to_owned(), dtype, &self.published), Content::Codes)],
            Layout::Gptq(group) => vec![
                (planned(beside("qweight"), Dtype::I32, &[columns / 8, rows]), Content::Codes),
                (planned(beside("qzeros"), Dtype::I32, &[columns / group, rows / 8]), Content::Zeros),
                (planned(beside("scales"), Dtype::F16, &[columns / group, rows]), Content::Scales),
            ],
        }
    }
}

/// What rounding did to the matrices of each part.
type Losses = BTreeMap<String, Loss>;

fn key(part: Part, bits: Bits) -> String {
    format!("{part:?}, {} bits", if bits == Bits::Four { 4 } else { 8 }).to_lowercase()
}

pub fn run(common: &Common, args: &Quantize) -> Result {
    if args.method != Method::Rtn && args.calib.is_none() {
        return Err(Failure::usage("quantize: --method gptq and awq want --calib"));
    }
    if args.format == QuantizeFormat::Q4K && args.calib.is_some() {
        return Err(Failure::usage("quantize: q4_k has the nearest codes only, without --calib"));
    }
    if args.packed && args.format.is_gguf() {
        return Err(Failure::usage("quantize: GGUF has no layout for --packed"));
    }
    let file = Weights::open(&args.input)?;
    let folder = &args.output;
    let path = folder.join(if args.format.is_gguf() { "model.gguf" } else { "model.safetensors" });
    if same(file.path(), folder) || file.paths().any(|from| same(from, &path)) {
        return Err(Failure::usage("quantize: would overwrite what it reads"));
    }
    if args.format.is_gguf()
        && let Some(other) = rival(folder)
    {
        return Err(Failure::file("cannot quantize", format!("{other} there would be read instead of model.gguf"), folder));
    }
    if let Ok(there) = Weights::open(&path)
        && kind(&there) != kind(&file)
    {
        return Err(Failure::file("cannot quantize", format!("{}, and not of the same kind, is there already", kind(&there)), &path));
    }
    let csm = csm::Layout::of(&file).is_some();
    if args.embeddings.is_some() && (args.format.is_gguf() || lm::Layout::of(&file).is_none() || csm) {
        return Err(Failure::usage("--embeddings: for the tables of a Moshi, and not in GGUF"));
    }
    if !csm && lm::Layout::of(&file).is_none() && swara_engine::codec::family(&file).is_some() {
        return codec::run(common, args, &file, &path);
    }
    if csm && args.calib.is_some() {
        return Err(Failure::usage("quantize: a CSM has the nearest codes only, without --calib"));
    }
    let mut parts = if csm { csm::matrices(&file)? } else { lm::matrices(&file)? };
    if args.embeddings.is_some() {
        let tables = lm::tables(&file)?;
        if tables.is_empty() {
            return Err(Failure::usage("--embeddings: what the model is fed is normalised or projected rows, which stay what they are"));
        }
        parts.extend(tables.into_iter().map(|table| (table, Part::Table)));
    }
    if !csm && let Some(lora) = lm::named_lora(&args.input, &lm::check(&file)?)? {
        let why = format!("its configuration names a LoRA, {}, which would be lost", lora.display());
        return Err(Failure::file("cannot quantize", why, file.path()));
    }
    for name in parts.keys() {
        if file.quantized(name)?.is_some() {
            return Err(Failure::file("cannot quantize", format!("tensor {name} has codes already"), file.path()));
        }
    }
    let mut sources: BTreeMap<String, (usize, Content)> = BTreeMap::new();
    let (mut planned, mut matrices) = (Vec::new(), Vec::new());
    let unread = if csm { BTreeMap::new() } else { lm::unread(&file)? };
    for name in file.names().filter(|name| unread.get(*name) != Some(&0)) {
        let Some((dtype, shape)) = file.info(name) else { continue };
        let mut shape = shape.to_vec();
        if let (Some(&read), Some(rows)) = (unread.get(name), shape.first_mut()) {
            *rows = read;
        }
        let matrix = match (parts.get(name), &shape[..]) {
            (Some(&part), &[.., _, columns]) => {
                let rows = shape[..shape.len() - 1].iter().product();
                let packed = args.packed && part != Part::Table && usize::is_multiple_of(rows, Panels::ROWS) && name.ends_with("weight");
                let of = |layout| Matrix { name, published: shape.clone(), shape: [rows, columns], layout, packed };
                layout(args, part, rows, columns).map(|layout| (of(layout), part))
            }
            _ => None,
        };
        let tensors = match matrix {
            Some((matrix, part)) => {
                let planned = matrix.planned();
                matrices.push((matrix, part));
                planned
            }
            None => vec![(Planned { name: name.to_owned(), dtype, shape }, Content::Copied)],
        };
        for (tensor, content) in tensors {
            sources.insert(tensor.name.clone(), (matrices.len().wrapping_sub(1), content));
            planned.push(tensor);
        }
    }
    let multiplied = || matrices.iter().filter(|(_, part)| *part != Part::Table).map(|(matrix, _)| matrix);
    let wanted: Vec<Matrix> = multiplied().cloned().collect();
    let calibrated = match &args.calib {
        Some(from) => calibration::run(common, args, from, &file, &wanted)?,
        None => Calibrated::default(),
    };
    let beside = beside(&args.input)?;
    let made = !folder.exists();
    std::fs::create_dir_all(folder).map_err(|e| Failure::file("cannot create folder", e, folder))?;

    let (mut losses, mut counts) = (calibrated.losses.clone(), BTreeMap::<String, usize>::new());
    let bar = terminal::progress(Some(planned.len() as u64), "quantize");
    let make = |tensor: &Planned| -> Result<Cow<[u8]>> {
        bar.inc(1);
        let (at, content) = sources[&tensor.name];
        if let Content::Copied = content {
            return Ok(match calibrated.norms.get(&tensor.name) {
                Some(bytes) => bytes.as_slice().into(),
                None => {
                    let view = file.view(&tensor.name)?;
                    let rows = view.shape.first().copied().unwrap_or(1).max(1);
                    view.bytes[..view.bytes.len() / rows * tensor.shape.first().copied().unwrap_or(1)].into()
                }
            });
        }
        let (matrix, part) = &matrices[at];
        let (values, codes) = match calibrated.codes.get(matrix.name) {
            Some(codes) => (None, Cow::Borrowed(codes)),
            None => matrix.quantize(&file).map(|(values, codes)| (Some(values), Cow::Owned(codes)))?,
        };
        if let Content::Codes = content {
            *counts.entry(key(*part, codes.bits())).or_default() += 1;
            if let Some(values) = &values {
                losses
                    .entry(key(*part, codes.bits()))
                    .or_default()
                    .add(&Loss::of_values(values, &matrix.stored(&codes, &file)?.dequantize()));
            }
        }
        matrix.bytes(&codes, content, &file).map(Cow::Owned)
    };
    let saved = match args.format.is_gguf() {
        true => {
            let architecture = if csm { "csm" } else { "moshi" };
            save_gguf_each(&path, planned, &BTreeMap::from([("general.architecture".into(), architecture.into())]), make)
        }
        false => save_each(&path, planned, file.metadata(), make),
    };
    bar.finish_and_clear();
    if saved.is_err() && made {
        let _ = std::fs::remove_dir(folder); // empty, or somebody else's by now
    }
    saved?;
    for (name, bytes) in beside {
        let to = folder.join(name);
        std::fs::write(&to, bytes).map_err(|e| Failure::file("cannot write", e, &to))?;
    }
    if !unread.is_empty() {
        terminal::note(format!("weights of steps that would draw what is heard are left out: all or half of {} tensors", unread.len()));
    }
    let [all, packed] = [multiplied().count(), multiplied().filter(|matrix| matrix.packed).count()];
    if args.packed && packed < all {
        terminal::note(format!("{} of {all} matrices have rows that fill no panels of 32, and are not packed", all - packed));
    }
    report(common, args, &path, &losses, &counts, calibrated.steps)
}

/// What a file holds, by its names.
fn kind(file: &Weights) -> &'static str {
    match (csm::Layout::of(file), lm::Layout::of(file), swara_engine::codec::family(file)) {
        (Some(_), ..) => "a CSM",
        (_, Some(_), _) => "a language model",
        (_, _, Some(_)) => "a codec",
        _ => "another file",
    }
}

/// None for what stays as it is: of rows that ggml has no blocks for.
fn layout(args: &Quantize, part: Part, rows: usize, columns: usize) -> Option<Layout> {
    let four = match part {
        Part::Temporal => !matches!(args.format, QuantizeFormat::Int8 | QuantizeFormat::Q8_0),
        Part::Depth => args.format == QuantizeFormat::Int4All,
        Part::Head | Part::Table => false,
    };
    if args.format.is_gguf() {
        let dtype = match four {
            true if args.format == QuantizeFormat::Q4K && columns.is_multiple_of(Dtype::Q4K.block()) => Dtype::Q4K,
            true => Dtype::Q4_0,
            false => Dtype::Q8_0,
        };
        return columns.is_multiple_of(dtype.block()).then_some(Layout::Blocks(dtype));
    }
    let group = usize::from(args.group);
    let fits = rows.is_multiple_of(8) && columns.is_multiple_of(8) && columns.is_multiple_of(group);
    Some(if four && fits { Layout::Gptq(group) } else { Layout::Bitsandbytes })
}

/// Whether both are there and one.
fn same(a: &Path, b: &Path) -> bool {
    std::fs::canonicalize(a).ok().is_some_and(|a| std::fs::canonicalize(b).ok() == Some(a))
}

/// The configuration that a folder was read with, and vocabularies: names and contents.
fn beside(input: &Path) -> Result<Vec<(OsString, Vec<u8>)>> {
    let folder = match input.parent() {
        _ if input.is_dir() => input,
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let entries = std::fs::read_dir(folder).map_err(|e| Failure::file("cannot read folder", e, folder))?;
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
        let name = path.file_name().unwrap_or_default().to_owned();
        // A single file is read without what is beside it.
        let config = name == "config.json" && input.is_dir();
        if config || name == "tokenizer.json" || path.extension().is_some_and(|extension| extension == "model") {
            let bytes = std::fs::read(&path).map_err(|e| Failure::file("cannot read", e, &path))?;
            found.push((name, if config { with_usual_names(bytes) } else { bytes }));
        }
    }
    Ok(found)
}

/// A configuration that names no file of weights: they are where they are looked for without that.
fn with_usual_names(config: Vec<u8>) -> Vec<u8> {
    let Ok(serde_json::Value::Object(mut keys)) = serde_json::from_slice(&config) else { return config };
    match keys.remove("moshi_name") {
        Some(_) => serde_json::to_vec_pretty(&keys).unwrap_or(config),
        None => config,
    }
}

/// As files have them.
fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Other weights in a folder that is to have `model.gguf`.
fn rival(folder: &Path) -> Option<String> {
    const WEIGHTS: [&str; 7] = ["safetensors", "bin", "pth", "th", "pt", "ckpt", "gguf"];
    let names = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let weights = |name: &String| Path::new(name).extension().is_some_and(|e| WEIGHTS.iter().any(|known| e == *known));
    names.into_iter().find(|name| name != "model.gguf" && (weights(name) || name.ends_with(".index.json")))
}

fn report(common: &Common, args: &Quantize, path: &Path, losses: &Losses, counts: &BTreeMap<String, usize>, steps: usize) -> Result {
    let bytes = std::fs::metadata(path).map_or(0, |m| m.len());
    let count = |part: &str| counts.get(part).copied().unwrap_or(0);
    if common.json {
        let parts = losses.iter().map(|(part, loss)| {
            let found = json!({
                "matrices": count(part), "values": loss.values, "relative_error": loss.relative(),
                "relative_output_error": loss.relative_outputs(),
            });
            (part.clone(), found)
        });
        let parts: serde_json::Map<_, _> = parts.collect();
        return terminal::say_json(&json!({
            "output": path, "bytes": bytes, "group": if args.format.is_gguf() { calibration::GGML_GROUP } else { args.group.into() }, "method": args.method.name(), "calibration_steps": steps, "parts": parts,
        }));
    }
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let row = |(part, loss): (&String, &Loss)| {
        let outputs = loss.relative_outputs().map_or_else(|| "-".to_owned(), percent);
        vec![part.clone(), count(part).to_string(), loss.values.to_string(), percent(loss.relative()), outputs]
    };
    let titles = ["part", "matrices", "values", "error", "of outputs"];
    terminal::say(terminal::table(&titles, &losses.iter().map(row).collect::<Vec<_>>()))?;
    terminal::say(format!("{} MB in {}", bytes / 1_000_000, path.display()))
}
