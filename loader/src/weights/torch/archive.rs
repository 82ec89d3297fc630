//! The zip archive: one folder, whose name is free, with `data.pkl`, `data/KEY` for each storage, and `byteorder`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use rawzip::{CompressionMethod, ZipArchive, ZipArchiveEntryWayfinder, ZipSliceArchive};

use super::{Base, Header, MAX_HEADER, Made, Storages, pickle};
use crate::weights::entry::Deflated;
use crate::{TorchError, WeightsError};

/// A zip file. A safetensors header of 67 MB may begin alike, but has a `{` in place of the first entry's method.
pub(super) fn recognises(file: &[u8]) -> bool {
    file.starts_with(b"PK\x03\x04") && file.get(8) != Some(&b'{')
}

struct Record {
    place: ZipArchiveEntryWayfinder,
    method: CompressionMethod,
    encrypted: bool,
    crc: u32,
}

struct Archive<'f> {
    zip: ZipSliceArchive<&'f [u8]>,
    records: BTreeMap<String, Record>,
    /// With its slash; empty for none.
    folder: String,
    storages: BTreeMap<String, Base>,
}

pub(super) fn parse(file: &[u8]) -> Result<Header, WeightsError> {
    let mut archive = Archive::open(file)?;
    let mut made = Made::new(file);
    match archive.small(file, "byteorder", 16, &mut made)?.as_deref() {
        None | Some(b"little") => {}
        Some(_) => return Err(TorchError::ByteOrder.into()),
    }
    let pickle = archive.small(file, "data.pkl", MAX_HEADER, &mut made)?.ok_or(TorchError::NoPickle)?;
    let (heap, end) = pickle::run(&pickle, 0)?;
    if end != pickle.len() {
        return Err(TorchError::Pickle { at: end as u64, why: "something follows the pickle".into() }.into());
    }
    super::header(&heap, &mut archive, made)
}

impl<'f> Archive<'f> {
    fn open(file: &'f [u8]) -> Result<Self, WeightsError> {
        let zip = ZipArchive::from_slice(file).map_err(damaged)?;
        let mut records = BTreeMap::new();
        for entry in zip.entries() {
            let entry = entry.map_err(damaged)?;
            let record = Record {
                place: entry.wayfinder(),
                method: entry.compression_method(),
                encrypted: entry.flags().is_encrypted(),
                crc: entry.crc32(),
            };
            let name = String::from_utf8_lossy(entry.file_path().as_bytes()).into_owned();
            if records.contains_key(&name) {
                return Err(TorchError::Archive(format!("two entries are called {name}")).into());
            }
            records.insert(name, record);
        }
        let mut folders = records.keys().filter_map(|name| name.strip_suffix("data.pkl")).filter(|folder| match folder.find('/') {
            None => folder.is_empty(),
            Some(slash) => slash + 1 == folder.len(),
        });
        let folder = folders.next().ok_or(TorchError::NoPickle)?.to_owned();
        if let Some(other) = folders.next() {
            return Err(TorchError::Archive(format!("both {folder}data.pkl and {other}data.pkl")).into());
        }
        Ok(Self { zip, records, folder, storages: BTreeMap::new() })
    }

    fn entry(&self, name: &str, made: &mut Made) -> Result<Option<Base>, WeightsError> {
        let name = format!("{}{name}", self.folder);
        let Some(record) = self.records.get(&name) else { return Ok(None) };
        let (begin, end) = self.zip.get_entry(record.place).map_err(damaged)?.compressed_data_range();
        // Within the file, which is in memory.
        let range: Range<usize> = begin as usize..end as usize;
        let size = record.place.uncompressed_size_hint();
        match record.method {
            _ if record.encrypted => Err(TorchError::Method { entry: name, method: "encryption".into() }.into()),
            CompressionMethod::STORE if range.len() as u64 == size => Ok(Some(Base::File(range))),
            CompressionMethod::STORE => Err(TorchError::EntrySize { entry: name, expected: size, found: range.len() as u64 }.into()),
            CompressionMethod::DEFLATE => {
                made.add(size)?;
                Ok(Some(Base::Deflated(Arc::new(Deflated::new(name, range, size as usize, record.crc)))))
            }
            method => Err(TorchError::Method { entry: name, method: method.to_string() }.into()),
        }
    }

    /// The whole of an entry of at most `max` bytes; None if there is none.
    fn small(&self, file: &'f [u8], name: &str, max: u64, made: &mut Made) -> Result<Option<Cow<'f, [u8]>>, WeightsError> {
        let Some(base) = self.entry(name, made)? else { return Ok(None) };
        let found = base.len() as u64;
        if found > max {
            return Err(TorchError::EntrySize { entry: name.into(), expected: max, found }.into());
        }
        Ok(Some(match base {
            Base::File(range) => Cow::Borrowed(&file[range]),
            Base::Deflated(deflated) => Cow::Owned(deflated.inflate(file)?),
        }))
    }
}

impl Storages for Archive<'_> {
    fn find(&mut self, key: &str, bytes: u64, made: &mut Made) -> Result<Base, WeightsError> {
        let name = format!("data/{key}");
        let base = match self.storages.get(key) {
            Some(base) => base.clone(),
            None => self.entry(&name, made)?.ok_or_else(|| TorchError::NoStorage(key.into()))?,
        };
        if base.len() as u64 != bytes {
            return Err(TorchError::EntrySize { entry: name, expected: bytes, found: base.len() as u64 }.into());
        }
        self.storages.insert(key.into(), base.clone());
        Ok(base)
    }
}

fn damaged(error: rawzip::Error) -> WeightsError {
    TorchError::Archive(error.to_string()).into()
}
