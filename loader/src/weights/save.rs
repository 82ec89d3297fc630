use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::Dtype;
use crate::output::AtomicFile;
use crate::{Error, Result, WeightsError};

/// A tensor to be written; borrows its bytes.
#[derive(Debug, Clone, Copy)]
pub struct TensorRef<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    /// Little-endian, row-major.
    pub bytes: &'a [u8],
}

impl<'a> TensorRef<'a> {
    pub fn f32(name: &'a str, shape: &'a [usize], values: &'a [f32]) -> Self {
        Self { name, dtype: Dtype::F32, shape, bytes: bytemuck::cast_slice(values) }
    }

    pub fn i32(name: &'a str, shape: &'a [usize], values: &'a [i32]) -> Self {
        Self { name, dtype: Dtype::I32, shape, bytes: bytemuck::cast_slice(values) }
    }

    pub fn u64(name: &'a str, shape: &'a [usize], values: &'a [u64]) -> Self {
        Self { name, dtype: Dtype::U64, shape, bytes: bytemuck::cast_slice(values) }
    }
}

/// What a tensor will be, before its bytes are there.
#[derive(Debug, Clone)]
pub struct Planned {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

/// Writes a safetensors file, whole or not at all (see [`AtomicFile`]).
///
/// The bytes depend on the contents alone, not on the order of `tensors`: largest element first, which keeps every tensor
/// aligned, then by name.
pub fn save(path: impl AsRef<Path>, tensors: &[TensorRef], metadata: &BTreeMap<String, String>) -> Result<()> {
    let bytes: HashMap<&str, &[u8]> = tensors.iter().map(|t| (t.name, t.bytes)).collect();
    let planned = tensors.iter().map(|t| Planned { name: t.name.into(), dtype: t.dtype, shape: t.shape.into() }).collect();
    save_each(path, planned, metadata, |t| Ok(bytes.get(t.name.as_str()).copied().unwrap_or_default().into()))
}

/// As [`save`], of tensors whose bytes `make` gives one by one, so that all of them are never in memory.
///
/// # Errors
/// Those of `make`; bytes of another number than the tensor's shape says; names that come twice.
pub fn save_each<'a, E: From<Error>>(
    path: impl AsRef<Path>,
    mut tensors: Vec<Planned>,
    metadata: &BTreeMap<String, String>,
    mut make: impl FnMut(&Planned) -> Result<Cow<'a, [u8]>, E>,
) -> Result<(), E> {
    let path = path.as_ref();
    let fail = |why| Error::Weights { path: path.to_owned(), why };
    tensors.sort_by(|a, b| (b.dtype.size(), &a.name).cmp(&(a.dtype.size(), &b.name)));

    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let (mut at, mut sizes) = (0usize, Vec::with_capacity(tensors.len()));
    for t in &tensors {
        if t.dtype.block() > 1 {
            return Err(fail(WeightsError::Dtype { tensor: t.name.clone(), expected: "one of safetensors", found: t.dtype.name() }).into());
        }
        let size = t.shape.iter().try_fold(t.dtype.size(), |a, &b| a.checked_mul(b));
        let Some((size, end)) = size.and_then(|size| Some((size, at.checked_add(size)?))) else {
            return Err(fail(t.misfit(None, 0)).into());
        };
        let entry = serde_json::json!({ "dtype": t.dtype.name(), "shape": t.shape, "data_offsets": [at, end] });
        if t.name == "__metadata__" || header.insert(t.name.clone(), entry).is_some() {
            return Err(fail(WeightsError::Duplicate(t.name.clone())).into());
        }
        sizes.push(size);
        at = end;
    }
    let mut header = serde_json::Value::from(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = AtomicFile::create(path)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    for (t, size) in tensors.iter().zip(sizes) {
        let bytes = make(t)?;
        if bytes.len() != size {
            return Err(fail(t.misfit(Some(size), bytes.len())).into());
        }
        file.write(&bytes)?;
    }
    Ok(file.commit()?)
}

impl Planned {
    pub(super) fn misfit(&self, expected: Option<usize>, found: usize) -> WeightsError {
        WeightsError::SaveSize {
            tensor: self.name.clone(),
            shape: self.shape.clone(),
            expected: expected.map_or(u64::MAX, |n| n as u64),
            found: found as u64,
        }
    }
}
