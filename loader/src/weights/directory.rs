//! A directory as a model: `config.json`, and weights in one file or several, or in the one that it names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Shard, header};
use crate::{Error, Result, WeightsError};

/// In order of preference; each may be in parts, which `NAME.index.json` lists.
const NAMES: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
/// Under any other name.
const ENDINGS: [&[&str]; 3] = [&["safetensors"], &["bin", "pth", "th", "pt", "ckpt"], &["gguf"]];
const MAX_CONFIG: u64 = 16 << 20;

pub(super) fn open(dir: &Path) -> Result<Vec<Shard>> {
    if let Some(named) = named(dir, "moshi_name")? {
        return Ok(vec![Shard::open(&named)?]);
    }
    for name in NAMES {
        let (whole, index) = (dir.join(name), dir.join(format!("{name}.index.json")));
        if whole.exists() {
            return Ok(vec![Shard::open(&whole)?]);
        }
        if index.exists() {
            return indexed(dir, &index);
        }
    }
    let fail = |why| Error::Weights { path: dir.to_owned(), why };
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io("open weights", dir, e))?;
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    for endings in ENDINGS {
        let ends = |name: &&String| Path::new(name).extension().is_some_and(|e| endings.iter().any(|ending| e == *ending));
        let found: Vec<String> = names.iter().filter(ends).cloned().collect();
        match &found[..] {
            [] => {}
            [name] => return Ok(vec![Shard::open(&dir.join(name))?]),
            _ => return Err(fail(WeightsError::SeveralInDirectory(found))),
        }
    }
    Err(fail(WeightsError::NoModelInDirectory))
}

fn indexed(dir: &Path, path: &Path) -> Result<Vec<Shard>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = crate::input::read(path, "open weights", header::MAX_HEADER)?;
    let fail = |why| Error::Weights { path: path.to_owned(), why };
    let index: Index = serde_json::from_slice(&text).map_err(|e| fail(WeightsError::Header(e.to_string())))?;
    let mut shards = BTreeMap::new();
    for (tensor, file) in &index.weight_map {
        // A name with a folder in it could reach any file of the machine.
        if Path::new(file).file_name() != Some(file.as_ref()) {
            return Err(fail(WeightsError::ShardName { found: file.clone() }));
        }
        if !shards.contains_key(file) {
            shards.insert(file.clone(), Shard::open(&dir.join(file))?);
        }
        if !shards.get(file).is_some_and(|s| s.header.tensors.contains_key(tensor)) {
            return Err(fail(WeightsError::NotInShard { tensor: tensor.clone(), shard: file.clone() }));
        }
    }
    Ok(shards.into_values().collect())
}

/// The file of a model's directory that its `config.json` names under `key`, such as `moshi_name`; none where that is not there, as in
/// folders whose files were renamed.
///
/// # Errors
/// A name with a folder in it.
pub fn named(dir: &Path, key: &str) -> Result<Option<PathBuf>> {
    Ok(name(dir, key)?.filter(|path| path.is_file()))
}

/// The file that [`named`] looks for, where it is not there.
///
/// # Errors
/// As there.
pub fn missing(dir: &Path, key: &str) -> Result<Option<PathBuf>> {
    Ok(name(dir, key)?.filter(|path| !path.is_file()))
}

fn name(dir: &Path, key: &str) -> Result<Option<PathBuf>> {
    // One that cannot be read is an error to whoever wants more of it.
    let config = config(dir).ok().flatten();
    let Some(name) = config.as_ref().and_then(|config| config.get(key)?.as_str()).filter(|name| !name.is_empty()) else { return Ok(None) };
    match Path::new(name).file_name() == Some(name.as_ref()) {
        true => Ok(Some(dir.join(name))),
        false => Err(Error::Weights { path: dir.join("config.json"), why: WeightsError::ShardName { found: name.to_owned() } }),
    }
}

pub(super) fn config(dir: &Path) -> Result<Option<serde_json::Value>> {
    let path = dir.join("config.json");
    if !path.exists() {
        return Ok(None);
    }
    let text = crate::input::read(&path, "read config", MAX_CONFIG)?;
    let fail = |why: String| Error::io("read config", &path, std::io::Error::other(why));
    match serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))? {
        config @ serde_json::Value::Object(_) => Ok(Some(config)),
        _ => Err(fail("expected a JSON object".into())),
    }
}
