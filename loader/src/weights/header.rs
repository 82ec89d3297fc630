//! The safetensors header: `u64` length, JSON, data. Parsed strictly, so that each flaw is named with its tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use super::Dtype;
use crate::WeightsError;

/// As in the reference implementation.
pub(super) const MAX_HEADER: u64 = 100_000_000;

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Within the file.
    pub range: Range<usize>,
}

#[derive(Debug, Default)]
pub(super) struct Header {
    pub tensors: BTreeMap<String, Entry>,
    pub metadata: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// JSON object as pairs: a map type would silently keep one of two equal names.
struct Pairs {
    tensors: Vec<(String, Raw)>,
    metadata: Vec<BTreeMap<String, String>>,
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Pairs, M::Error> {
                let mut pairs = Pairs { tensors: Vec::new(), metadata: Vec::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        pairs.metadata.push(map.next_value()?);
                    } else {
                        let raw = map.next_value().map_err(|e| de::Error::custom(format!("tensor {name}: {e}")))?;
                        pairs.tensors.push((name, raw));
                    }
                }
                Ok(pairs)
            }
        }
        deserializer.deserialize_map(V)
    }
}

pub(super) fn parse(file: &[u8]) -> Result<Header, WeightsError> {
    let len = file.len() as u64;
    let claimed = match file.first_chunk::<8>() {
        Some(head) => u64::from_le_bytes(*head),
        None => return Err(WeightsError::TooShort { found: len }),
    };
    let available = (len - 8).min(MAX_HEADER);
    if claimed > available {
        return Err(WeightsError::HeaderLength { claimed, available });
    }
    let start = 8 + claimed as usize;
    let pairs: Pairs = serde_json::from_slice(&file[8..start]).map_err(|e| WeightsError::Header(e.to_string()))?;
    if pairs.metadata.len() > 1 {
        return Err(WeightsError::Duplicate("__metadata__".into()));
    }
    let data = len - start as u64;
    let mut tensors = BTreeMap::new();
    for (name, raw) in pairs.tensors {
        let entry = entry(&name, raw, start, data)?;
        if tensors.contains_key(&name) {
            return Err(WeightsError::Duplicate(name));
        }
        tensors.insert(name, entry);
    }
    tile(&tensors, start, file.len())?;
    Ok(Header { tensors, metadata: pairs.metadata.into_iter().next().unwrap_or_default() })
}

fn entry(name: &str, raw: Raw, start: usize, data: u64) -> Result<Entry, WeightsError> {
    let tensor = || name.to_owned();
    let dtype = Dtype::from_name(&raw.dtype).ok_or_else(|| WeightsError::UnknownDtype { tensor: tensor(), found: raw.dtype.clone() })?;
    let overflow = || WeightsError::ShapeOverflow { tensor: tensor(), shape: raw.shape.clone() };
    let shape: Vec<usize> = raw.shape.iter().map(|&n| usize::try_from(n).map_err(|_| overflow())).collect::<Result<_, _>>()?;
    // Checked left to right, so [0, 2^63, 4] is an overflow too: strides of such a shape could not be computed.
    let count = shape.iter().filter(|&&n| n != 0).try_fold(1_usize, |a, &b| a.checked_mul(b));
    let bytes = count.and_then(|n| n.checked_mul(dtype.size())).filter(|&n| n <= isize::MAX as usize);
    let expected = if shape.contains(&0) { bytes.map(|_| 0) } else { bytes }.ok_or_else(overflow)? as u64;
    let [begin, end] = raw.data_offsets;
    if begin > end || end > data {
        return Err(WeightsError::OffsetRange { tensor: tensor(), begin, end, available: data });
    }
    if end - begin != expected {
        return Err(WeightsError::ByteCount { tensor: tensor(), expected, found: end - begin });
    }
    Ok(Entry { dtype, shape, range: start + begin as usize..start + end as usize })
}

/// Every byte of data belongs to exactly one tensor.
fn tile(tensors: &BTreeMap<String, Entry>, start: usize, end: usize) -> Result<(), WeightsError> {
    let order: BTreeSet<_> = tensors.iter().map(|(name, t)| (t.range.start, t.range.end, name.as_str())).collect();
    let (mut at, mut before) = (start, "");
    for (begin, finish, name) in order {
        if begin < at {
            return Err(WeightsError::Overlap { first: before.into(), second: name.into() });
        }
        if begin > at {
            return Err(WeightsError::Unused { at: at as u64, bytes: (begin - at) as u64 });
        }
        (at, before) = (finish, name);
    }
    match end - at {
        0 => Ok(()),
        bytes => Err(WeightsError::Unused { at: at as u64, bytes: bytes as u64 }),
    }
}
