//! A Mimi whose matrices and filters are codes of eight bits.

use std::collections::BTreeMap;
use std::path::Path;

use swara_engine::codec::{Rounded, rounded_mimi};
use swara_loader::quantized::Panels;
use swara_loader::weights::{Dtype, TensorRef, Weights, save};

use super::{Losses, bytes, report};
use crate::cli::{Common, Method, Quantize, QuantizeFormat};
use crate::failure::{Failure, Result};

const PART: &str = "codec, 8 bits";

pub fn run(common: &Common, args: &Quantize, file: &Weights, path: &Path) -> Result {
    if args.format != QuantizeFormat::Int8 || args.method != Method::Rtn || args.calib.is_some() {
        return Err(Failure::usage("quantize: a codec has --format int8 alone, without --calib"));
    }
    let (mut losses, mut counts) = (Losses::new(), BTreeMap::<String, usize>::new());
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, tensor) in rounded_mimi(file)? {
        match tensor {
            Rounded::Values { shape, values } => tensors.push((name, Dtype::F32, shape, bytes(&values))),
            Rounded::Codes { codes, loss } => {
                let panels =
                    codes.to_panels().map_err(|why| Failure::file("cannot quantize", format!("tensor {name}: {why}"), file.path()))?;
                let beside = |part: &str| name.strip_suffix("weight").unwrap_or(&name).to_owned() + part;
                let count = panels.rows() / Panels::ROWS;
                tensors.push((beside("panels"), Dtype::U8, vec![count, panels.columns(), Panels::ROWS], panels.codes().to_vec()));
                tensors.push((beside("scales"), Dtype::F32, vec![count, 1, Panels::ROWS], bytes(panels.scales())));
                losses.entry(PART.to_owned()).or_default().add(&loss);
                *counts.entry(PART.to_owned()).or_default() += 1;
            }
        }
    }
    let folder = &args.output;
    std::fs::create_dir_all(folder).map_err(|e| Failure::file("cannot create folder", e, folder))?;
    let refs: Vec<_> = tensors.iter().map(|(name, dtype, shape, bytes)| TensorRef { name, dtype: *dtype, shape, bytes }).collect();
    save(path, &refs, file.metadata())?;
    // A single file is read without what is beside it.
    let config = args.input.join("config.json");
    if config.is_file() {
        std::fs::copy(&config, folder.join("config.json")).map_err(|e| Failure::file("cannot copy", e, &config))?;
    }
    report(common, args, path, &losses, &counts, 0)
}
