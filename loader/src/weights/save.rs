use std::collections::BTreeMap;
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

/// Writes a safetensors file, whole or not at all (see [`AtomicFile`]).
///
/// The bytes depend on the contents alone, not on the order of `tensors`: largest element first, which keeps every tensor
/// aligned, then by name.
pub fn save(path: impl AsRef<Path>, tensors: &[TensorRef], metadata: &BTreeMap<String, String>) -> Result<()> {
    let path = path.as_ref();
    let fail = |why| Error::Weights { path: path.to_owned(), why };
    let mut order: Vec<&TensorRef> = tensors.iter().collect();
    order.sort_by_key(|t| (std::cmp::Reverse(t.dtype.size()), t.name));

    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut at = 0;
    for t in &order {
        if t.dtype.block() > 1 {
            return Err(fail(WeightsError::Dtype { tensor: t.name.into(), expected: "one of safetensors", found: t.dtype.name() }));
        }
        let count = t.shape.iter().try_fold(t.dtype.size(), |a, &b| a.checked_mul(b));
        if count != Some(t.bytes.len()) {
            return Err(fail(WeightsError::SaveSize {
                tensor: t.name.into(),
                shape: t.shape.into(),
                expected: count.map_or(u64::MAX, |n| n as u64),
                found: t.bytes.len() as u64,
            }));
        }
        let entry = serde_json::json!({
            "dtype": t.dtype.name(), "shape": t.shape, "data_offsets": [at, at + t.bytes.len()],
        });
        if t.name == "__metadata__" || header.insert(t.name.into(), entry).is_some() {
            return Err(fail(WeightsError::Duplicate(t.name.into())));
        }
        at += t.bytes.len();
    }
    let mut header = serde_json::Value::from(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = AtomicFile::create(path)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    for t in order {
        file.write(t.bytes)?;
    }
    file.commit()
}
