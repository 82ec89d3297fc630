//! GGUF, ggml's container: metadata, tensor descriptions, then the tensors, each at a multiple of an alignment.
//!
//! ```text
//! "GGUF"  u32 version  u64 tensors  u64 pairs
//! pairs x    { text key, u32 type, value }
//! tensors x  { text name, u32 n, u64 dimension x n (innermost first), u32 type, u64 offset }
//! padding    tensors, from here on their offsets count
//! ```
//!
//! Text is a u64 length and UTF-8; an array is u32 type, u64 length and values. All of it little-endian (ggml/docs/gguf.md). Counts
//! and lengths reserve nothing: what they claim is read until the bytes end.

#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeMap;
use std::fmt::Write;

pub use self::write::save_gguf_each;
use super::entry::{Base, Entry, byte_count};
use super::header::{Header, MAX_HEADER, tile};
use super::{Dtype, Format};
use crate::{GgufError, WeightsError};

const MAGIC: &[u8] = b"GGUF";
const ALIGNMENT: &str = "general.alignment";
const DEFAULT_ALIGNMENT: usize = 32;
/// Dimensions of a ggml tensor.
const MAX_RANK: u32 = 4;
/// Arrays in arrays. Nobody writes them.
const MAX_DEPTH: usize = 4;

// Types of values.
const U32: u32 = 4;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Numbers of the types that we read, in ggml.h.
const KINDS: [(u32, Dtype); 11] = [
    (0, Dtype::F32),
    (1, Dtype::F16),
    (2, Dtype::Q4_0),
    (8, Dtype::Q8_0),
    (12, Dtype::Q4K),
    (24, Dtype::I8),
    (25, Dtype::I16),
    (26, Dtype::I32),
    (27, Dtype::I64),
    (28, Dtype::F64),
    (30, Dtype::Bf16),
];

/// True for a file that [`parse`] is for.
pub(super) fn recognises(file: &[u8]) -> bool {
    file.starts_with(MAGIC)
}

pub(super) fn parse(file: &[u8]) -> Result<Header, WeightsError> {
    let mut reader = Reader { file: &file[..file.len().min(MAX_HEADER as usize)], at: MAGIC.len() };
    match reader.u32("the version")? {
        2 | 3 => {}
        found if found & 0xffff == 0 && found != 0 => return Err(GgufError::ByteOrder.into()),
        found => return Err(GgufError::Version(found).into()),
    }
    let (count, pairs) = (reader.u64("the number of tensors")?, reader.u64("the number of metadata fields")?);
    let (metadata, alignment) = reader.metadata(pairs)?;
    let mut infos = Vec::new();
    for _ in 0..count {
        infos.push(reader.info()?);
    }

    let start = reader.at.next_multiple_of(alignment);
    let data = match file.len().checked_sub(start) {
        Some(data) => data as u64,
        // Nothing follows the header of a file without tensors.
        None if infos.is_empty() => 0,
        None => return Err(GgufError::Truncated { field: "the padding", at: reader.at, limit: file.len() }.into()),
    };
    let (mut tensors, mut ranges) = (BTreeMap::new(), Vec::new());
    for info in infos {
        let name = info.name.clone();
        let entry = info.place(start, data, alignment)?;
        if let Base::File(range) = &entry.base {
            ranges.push((range.clone(), name.clone()));
        }
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(WeightsError::Duplicate(name));
        }
    }
    tile(ranges, start, file.len(), alignment)?;
    Ok(Header { format: Format::Gguf, tensors, metadata })
}

/// A tensor as the file describes it.
struct Info {
    name: String,
    /// Outermost first.
    shape: Vec<u64>,
    kind: u32,
    /// From the start of the data.
    offset: u64,
}

impl Info {
    fn place(self, start: usize, data: u64, alignment: usize) -> Result<Entry, WeightsError> {
        let Self { name: tensor, shape: claimed, kind, offset } = self;
        let dtype = match dtype(kind) {
            Ok(dtype) => dtype,
            Err(found) => return Err(WeightsError::UnknownDtype { tensor, found }),
        };
        let shape: Option<Vec<usize>> = claimed.iter().map(|&n| usize::try_from(n).ok()).collect();
        let sized = shape.and_then(|shape| byte_count(&shape, dtype).map(|bytes| (shape, bytes)));
        let Some((shape, bytes)) = sized else {
            return Err(WeightsError::ShapeOverflow { tensor, shape: claimed });
        };
        if shape.last().unwrap_or(&1) % dtype.block() != 0 {
            return Err(GgufError::Blocks { tensor, shape, block: dtype.block() }.into());
        }
        if !offset.is_multiple_of(alignment as u64) {
            return Err(GgufError::Misaligned { tensor, offset, alignment: alignment as u64 }.into());
        }
        match offset.checked_add(bytes as u64) {
            Some(end) if end <= data => Ok(Entry::in_file(dtype, shape, start + offset as usize..start + end as usize)),
            end => Err(WeightsError::OffsetRange { tensor, begin: offset, end: end.unwrap_or(u64::MAX), available: data }),
        }
    }
}

/// The type with the number `kind` in ggml.h; the name of one that we do not read.
fn dtype(kind: u32) -> Result<Dtype, String> {
    const OTHERS: [(u32, &str); 23] = [
        (3, "Q4_1"),
        (6, "Q5_0"),
        (7, "Q5_1"),
        (9, "Q8_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (13, "Q5_K"),
        (14, "Q6_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
        (40, "NVFP4"),
        (41, "Q1_0"),
    ];
    if let Some((_, dtype)) = KINDS.iter().find(|(known, _)| *known == kind) {
        return Ok(*dtype);
    }
    let name = OTHERS.iter().find(|(other, _)| *other == kind);
    Err(name.map_or_else(|| format!("ggml type {kind}"), |(_, name)| (*name).to_owned()))
}

struct Reader<'a> {
    /// As much of it as may be header.
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, field: &'static str, len: u64) -> Result<&'a [u8], GgufError> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        let bytes = end.and_then(|end| self.file.get(self.at..end));
        let bytes = bytes.ok_or(GgufError::Truncated { field, at: self.at, limit: self.file.len() })?;
        self.at += bytes.len();
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(field, N as u64)?);
        Ok(array)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, GgufError> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, GgufError> {
        self.array(field).map(u64::from_le_bytes)
    }

    fn text(&mut self, field: &'static str) -> Result<&'a str, GgufError> {
        let len = self.u64(field)?;
        let at = self.at;
        std::str::from_utf8(self.take(field, len)?).map_err(|_| GgufError::Text { field, at })
    }

    /// The fields, and the alignment that they say.
    fn metadata(&mut self, pairs: u64) -> Result<(BTreeMap<String, String>, usize), GgufError> {
        let (mut metadata, mut alignment) = (BTreeMap::new(), DEFAULT_ALIGNMENT);
        for _ in 0..pairs {
            let (key, kind) = (self.text("a metadata key")?, self.u32("a metadata type")?);
            let mut value = String::new();
            match kind {
                TEXT => value.push_str(self.text("a metadata text")?),
                _ => self.json(key, kind, 0, &mut value)?,
            }
            if key == ALIGNMENT {
                let number = value.parse().ok().filter(|n: &usize| kind == U32 && n.is_power_of_two());
                alignment = number.ok_or_else(|| GgufError::Alignment(value.clone()))?;
            }
            if metadata.insert(key.to_owned(), value).is_some() {
                return Err(GgufError::DuplicateKey(key.into()));
            }
        }
        Ok((metadata, alignment))
    }

    /// Appends a value. Numbers that JSON has not are null.
    fn json(&mut self, key: &str, kind: u32, depth: usize, out: &mut String) -> Result<(), GgufError> {
        const FIELD: &str = "a metadata value";
        let written = match kind {
            0 => write!(out, "{}", u8::from_le_bytes(self.array(FIELD)?)),
            1 => write!(out, "{}", i8::from_le_bytes(self.array(FIELD)?)),
            2 => write!(out, "{}", u16::from_le_bytes(self.array(FIELD)?)),
            3 => write!(out, "{}", i16::from_le_bytes(self.array(FIELD)?)),
            U32 => write!(out, "{}", self.u32(FIELD)?),
            5 => write!(out, "{}", i32::from_le_bytes(self.array(FIELD)?)),
            6 => match f32::from_le_bytes(self.array(FIELD)?) {
                value if value.is_finite() => write!(out, "{value:?}"),
                _ => out.write_str("null"),
            },
            7 => write!(out, "{}", self.array(FIELD)? != [0]),
            TEXT => write!(out, "{}", serde_json::Value::from(self.text(FIELD)?)),
            ARRAY => return self.json_array(key, depth, out),
            10 => write!(out, "{}", self.u64(FIELD)?),
            11 => write!(out, "{}", i64::from_le_bytes(self.array(FIELD)?)),
            12 => match f64::from_le_bytes(self.array(FIELD)?) {
                value if value.is_finite() => write!(out, "{value:?}"),
                _ => out.write_str("null"),
            },
            found => return Err(GgufError::ValueType { key: key.into(), found }),
        };
        debug_assert!(written.is_ok(), "a String takes all");
        Ok(())
    }

    fn json_array(&mut self, key: &str, depth: usize, out: &mut String) -> Result<(), GgufError> {
        if depth == MAX_DEPTH {
            return Err(GgufError::Nested { key: key.into(), max: MAX_DEPTH });
        }
        let (kind, count) = (self.u32("an array's type")?, self.u64("an array's length")?);
        out.push('[');
        for i in 0..count {
            if i > 0 {
                out.push(',');
            }
            self.json(key, kind, depth + 1, out)?;
        }
        out.push(']');
        Ok(())
    }

    fn info(&mut self) -> Result<Info, GgufError> {
        let (name, rank) = (self.text("a tensor's name")?.to_owned(), self.u32("a tensor's dimensions")?);
        if rank > MAX_RANK {
            return Err(GgufError::Rank { tensor: name, found: rank, max: MAX_RANK });
        }
        let mut shape = (0..rank).map(|_| self.u64("a tensor's dimensions")).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        Ok(Info { name, shape, kind: self.u32("a tensor's type")?, offset: self.u64("a tensor's offset")? })
    }
}
