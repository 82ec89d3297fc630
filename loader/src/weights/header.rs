//! The safetensors header: `u64` length, JSON, data. Parsed strictly, so that each flaw is named with its tensor.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use super::entry::{self, Entry};
use super::{Dtype, Format};
use crate::WeightsError;

/// As in the reference implementation.
pub(super) const MAX_HEADER: u64 = 100_000_000;

#[derive(Debug, Default)]
pub(super) struct Header {
    pub format: Format,
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
    let mut ranges = Vec::new();
    for (name, raw) in pairs.tensors {
        let (dtype, shape, range) = describe(&name, raw, start, data)?;
        ranges.push((range.clone(), name.clone()));
        if tensors.insert(name.clone(), Entry::in_file(dtype, shape, range)).is_some() {
            return Err(WeightsError::Duplicate(name));
        }
    }
    tile(ranges, start, file.len(), 1)?;
    Ok(Header { format: Format::Safetensors, tensors, metadata: pairs.metadata.into_iter().next().unwrap_or_default() })
}

fn describe(name: &str, raw: Raw, start: usize, data: u64) -> Result<(Dtype, Vec<usize>, Range<usize>), WeightsError> {
    let tensor = || name.to_owned();
    let dtype = Dtype::from_name(&raw.dtype).ok_or_else(|| WeightsError::UnknownDtype { tensor: tensor(), found: raw.dtype.clone() })?;
    let overflow = || WeightsError::ShapeOverflow { tensor: tensor(), shape: raw.shape.clone() };
    let shape: Vec<usize> = raw.shape.iter().map(|&n| usize::try_from(n).map_err(|_| overflow())).collect::<Result<_, _>>()?;
    let expected = entry::byte_count(&shape, dtype).ok_or_else(overflow)? as u64;
    let [begin, end] = raw.data_offsets;
    if begin > end || end > data {
        return Err(WeightsError::OffsetRange { tensor: tensor(), begin, end, available: data });
    }
    if end - begin != expected {
        return Err(WeightsError::ByteCount { tensor: tensor(), expected, found: end - begin });
    }
    Ok((dtype, shape, start + begin as usize..start + end as usize))
}

/// Every byte of data belongs to exactly one tensor, or is one of less than `alignment` between two.
pub(super) fn tile(mut ranges: Vec<(Range<usize>, String)>, start: usize, end: usize, alignment: usize) -> Result<(), WeightsError> {
    ranges.sort_by(|(a, x), (b, y)| (a.start, a.end, x).cmp(&(b.start, b.end, y)));
    let (mut at, mut before) = (start, String::new());
    for (range, name) in ranges {
        if range.start < at {
            return Err(WeightsError::Overlap { first: before, second: name });
        }
        if range.start - at >= alignment {
            return Err(WeightsError::Unused { at: at as u64, bytes: (range.start - at) as u64 });
        }
        (at, before) = (range.end, name);
    }
    match end.saturating_sub(at) {
        bytes if bytes < alignment => Ok(()),
        bytes => Err(WeightsError::Unused { at: at as u64, bytes: bytes as u64 }),
    }
}
