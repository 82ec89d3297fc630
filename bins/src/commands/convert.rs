use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;
use swara_engine::codec::{METADATA_CONFIG, Naming, convert};
use swara_loader::output;
use swara_loader::weights::{TensorRef, Weights, save};

use crate::cli::{Common, Convert, ConvertLayout};
use crate::failure::{Failure, Result};
use crate::terminal;

pub fn run(common: &Common, args: &Convert) -> Result {
    let file = Weights::open(&args.input)?;
    let naming = match args.layout {
        ConvertLayout::Hf => Naming::HuggingFace,
        ConvertLayout::Kyutai => Naming::Kyutai,
    };
    let converted = convert(&file, naming)?;
    let tensors: Vec<TensorRef> = converted.tensors.iter().map(|t| TensorRef::f32(&t.name, &t.shape, &t.values)).collect();
    let written = match naming {
        Naming::HuggingFace => {
            let folder = &args.output;
            apart(&file, folder)?;
            std::fs::create_dir_all(folder).map_err(|e| Failure::file("cannot create folder", e, folder))?;
            let weights = folder.join("model.safetensors");
            // Until the last of its files is there, it is no model.
            let config = folder.join("config.json");
            match std::fs::remove_file(&config) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Failure::file("cannot replace", e, &config)),
                _ => {}
            }
            save(&weights, &tensors, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))?;
            output::write(folder.join("preprocessor_config.json"), format!("{:#}\n", converted.preprocessor).as_bytes())?;
            output::write(config, format!("{:#}\n", converted.config).as_bytes())?;
            weights
        }
        Naming::Kyutai => {
            apart(&file, &args.output)?;
            save(&args.output, &tensors, &BTreeMap::from([(METADATA_CONFIG.to_owned(), converted.config.to_string())]))?;
            args.output.clone()
        }
    };
    if common.json {
        return terminal::say_json(&json!({ "out": args.output, "tensors": tensors.len() }));
    }
    terminal::say(format!("{} tensors ({})", tensors.len(), written.display()))
}

/// What is read is not written over, nor the folder that it is in.
fn apart(file: &Weights, target: &Path) -> Result {
    let Ok(target) = target.canonicalize() else { return Ok(()) };
    match file.paths().filter_map(|path| path.canonicalize().ok()).any(|path| path == target || path.parent() == Some(&target)) {
        true => Err(Failure::usage(format!("OUT: is what IN is read from ({})", target.display()))),
        false => Ok(()),
    }
}
