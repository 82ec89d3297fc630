use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;
use swara_engine::lm::{self, Part};
use swara_loader::QuantizedError;
use swara_loader::quantized::Quantized;
use swara_loader::weights::{Dtype, Planned, Weights, save_each};

use crate::cli::{Common, Quantize, QuantizeFormat};
use crate::failure::{Failure, Result};
use crate::terminal;

/// How a matrix is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// 8 bits: `NAME` and `NAME_scb`.
    Bitsandbytes,
    /// 4 bits in groups of so many columns: `*qweight`, `*qzeros`, `*scales`.
    Gptq(usize),
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

struct Matrix<'a> {
    name: &'a str,
    shape: [usize; 2],
    layout: Layout,
}

impl Matrix<'_> {
    fn quantize(&self, file: &Weights) -> Result<(Vec<f32>, Quantized)> {
        let values = file.to_f32(self.name)?.into_owned();
        let quantized = match self.layout {
            Layout::Bitsandbytes => Quantized::int8(self.shape, self.shape[1], &values),
            Layout::Gptq(group) => Quantized::int4(self.shape, group, &values),
        };
        Ok((values, quantized.map_err(|why| self.fail(file, why))?))
    }

    fn fail(&self, file: &Weights, why: QuantizedError) -> Failure {
        Failure::file("cannot quantize", format!("tensor {}: {why}", self.name), file.path())
    }

    /// Names, types and shapes of what it is written as.
    fn planned(&self) -> Vec<(Planned, Content)> {
        let [rows, columns] = self.shape;
        let planned = |name: String, dtype, shape: &[usize]| Planned { name, dtype, shape: shape.to_vec() };
        match self.layout {
            Layout::Bitsandbytes => vec![
                (planned(self.name.to_owned(), Dtype::I8, &self.shape), Content::Codes),
                (planned(format!("{}_scb", self.name), Dtype::F32, &[rows]), Content::Scales),
            ],
            Layout::Gptq(group) => {
                let name = |part: &str| self.name.strip_suffix("weight").unwrap_or(self.name).to_owned() + part;
                vec![
                    (planned(name("qweight"), Dtype::I32, &[columns / 8, rows]), Content::Codes),
                    (planned(name("qzeros"), Dtype::I32, &[columns / group, rows / 8]), Content::Zeros),
                    (planned(name("scales"), Dtype::F16, &[columns / group, rows]), Content::Scales),
                ]
            }
        }
    }
}

/// What rounding did to the matrices of a part.
#[derive(Default)]
struct Loss {
    matrices: usize,
    values: usize,
    energy: f64,
    error: f64,
}

pub fn run(common: &Common, args: &Quantize) -> Result {
    let file = Weights::open(&args.input)?;
    let folder = &args.output;
    let path = folder.join("model.safetensors");
    if same(file.path(), &path) || same(file.path(), folder) {
        return Err(Failure::usage("quantize: would overwrite what it reads"));
    }
    let parts = lm::matrices(&file)?;
    for name in parts.keys() {
        if file.quantized(name)?.is_some() {
            return Err(Failure::file("cannot quantize", format!("tensor {name} has codes already"), file.path()));
        }
    }
    let mut sources: BTreeMap<String, (usize, Content)> = BTreeMap::new();
    let (mut planned, mut matrices) = (Vec::new(), Vec::new());
    for name in file.names() {
        let Some((dtype, shape)) = file.info(name) else { continue };
        let tensors = match (parts.get(name), shape) {
            (Some(part), &[rows, columns]) => {
                let matrix = Matrix { name, shape: [rows, columns], layout: layout(args, *part, rows, columns) };
                let tensors = matrix.planned();
                matrices.push((matrix, *part));
                tensors
            }
            _ => vec![(Planned { name: name.to_owned(), dtype, shape: shape.to_vec() }, Content::Copied)],
        };
        for (tensor, content) in tensors {
            sources.insert(tensor.name.clone(), (matrices.len().wrapping_sub(1), content));
            planned.push(tensor);
        }
    }
    std::fs::create_dir_all(folder).map_err(|e| Failure::file("cannot create folder", e, folder))?;

    let mut losses: BTreeMap<String, Loss> = BTreeMap::new();
    let bar = terminal::progress(Some(planned.len() as u64), "quantize");
    save_each(&path, planned, file.metadata(), |tensor| -> Result<Cow<[u8]>> {
        bar.inc(1);
        let (at, content) = sources[&tensor.name];
        if let Content::Copied = content {
            return Ok(file.view(&tensor.name)?.bytes.into());
        }
        let (matrix, part) = &matrices[at];
        let (values, codes) = matrix.quantize(&file)?;
        let fail = |why| matrix.fail(&file, why);
        let mut written = None;
        let bytes = match matrix.layout {
            Layout::Bitsandbytes => {
                let (bytes, greatest) = codes.to_bitsandbytes().map_err(fail)?;
                match content {
                    Content::Scales => greatest.iter().flat_map(|v| v.to_le_bytes()).collect(),
                    _ => bytes.to_vec(),
                }
            }
            Layout::Gptq(group) => {
                let packed = codes.to_gptq().map_err(fail)?;
                if let Content::Codes = content {
                    // With the scales that are stored.
                    let scales: Vec<f32> = packed.scales.iter().map(|scale| scale.to_f32()).collect();
                    let found = Quantized::from_gptq(matrix.shape, group, &packed.qweight, &packed.qzeros, &scales, None);
                    written = Some(found.map_err(fail)?.dequantize());
                }
                let words = |words: Vec<i32>| words.iter().flat_map(|word| word.to_le_bytes()).collect();
                match content {
                    Content::Scales => packed.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect(),
                    Content::Zeros => words(packed.qzeros),
                    _ => words(packed.qweight),
                }
            }
        };
        if let Content::Codes = content {
            let bits = if matrix.layout == Layout::Bitsandbytes { 8 } else { 4 };
            let loss = losses.entry(format!("{part:?}, {bits} bits").to_lowercase()).or_default();
            loss.matrices += 1;
            loss.values += values.len();
            loss.energy += values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
            loss.error +=
                values.iter().zip(written.unwrap_or_else(|| codes.dequantize())).map(|(&v, q)| f64::from(v - q).powi(2)).sum::<f64>();
        }
        Ok(bytes.into())
    })?;
    bar.finish_and_clear();
    let beside = if args.input.is_dir() { args.input.as_path() } else { args.input.parent().unwrap_or(Path::new("")) };
    copy_beside(beside, folder)?;
    report(common, args, &path, &losses)
}

fn layout(args: &Quantize, part: Part, rows: usize, columns: usize) -> Layout {
    let four = match part {
        Part::Temporal => args.format != QuantizeFormat::Int8,
        Part::Depth => args.format == QuantizeFormat::Int4All,
        Part::Head => false,
    };
    let group = usize::from(args.group);
    let fits = rows.is_multiple_of(8) && columns.is_multiple_of(8) && columns.is_multiple_of(group);
    if four && fits { Layout::Gptq(group) } else { Layout::Bitsandbytes }
}

/// Whether both are there and one.
fn same(a: &Path, b: &Path) -> bool {
    std::fs::canonicalize(a).ok().is_some_and(|a| std::fs::canonicalize(b).ok() == Some(a))
}

/// The configuration, and vocabularies.
fn copy_beside(from: &Path, to: &Path) -> Result {
    let from = if from.as_os_str().is_empty() { Path::new(".") } else { from };
    let entries = std::fs::read_dir(from).map_err(|e| Failure::file("cannot read folder", e, from))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default();
        let wanted = name == "config.json" || path.extension().is_some_and(|extension| extension == "model");
        let to = to.join(name);
        if wanted && path.is_file() && !same(&path, &to) {
            std::fs::copy(&path, to).map_err(|e| Failure::file("cannot copy", e, &path))?;
        }
    }
    Ok(())
}

fn report(common: &Common, args: &Quantize, path: &Path, losses: &BTreeMap<String, Loss>) -> Result {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
    let (bytes, relative) = (size(path), |loss: &Loss| (loss.error / loss.energy.max(f64::MIN_POSITIVE)).sqrt());
    if common.json {
        let parts = losses.iter().map(|(part, loss)| {
            let found = json!({ "matrices": loss.matrices, "values": loss.values, "relative_error": relative(loss) });
            (part.clone(), found)
        });
        let parts: serde_json::Map<_, _> = parts.collect();
        return terminal::say_json(&json!({ "output": path, "bytes": bytes, "group": args.group, "parts": parts }));
    }
    let row = |(part, loss): (&String, &Loss)| {
        vec![part.clone(), loss.matrices.to_string(), loss.values.to_string(), format!("{:.2} %", 100.0 * relative(loss))]
    };
    terminal::say(terminal::table(&["part", "matrices", "values", "error"], &losses.iter().map(row).collect::<Vec<_>>()))?;
    terminal::say(format!("{} MB in {}", bytes / 1_000_000, path.display()))
}
