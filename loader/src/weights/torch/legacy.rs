//! The format before PyTorch 1.6: five pickles - a magic number, the protocol's version, the writer's machine, the object, the
//! keys of its storages - then each storage as a count of elements and the elements.

use std::collections::BTreeMap;

use super::{Base, Header, Made, Storages, pickle};
use crate::{TorchError, WeightsError};

/// 0x1950a86a20f9469cfc6c, as a pickled number.
const MAGIC: [u8; 13] = [0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
const PROTOCOL: i64 = 1001;

pub(super) fn recognises(file: &[u8]) -> bool {
    matches!(file, [0x80, _, rest @ ..] if rest.starts_with(&MAGIC))
}

pub(super) fn parse(file: &[u8]) -> Result<Header, WeightsError> {
    let protocol_at = 2 + MAGIC.len();
    let (protocol, machine_at) = pickle::run(file, protocol_at)?;
    if !matches!(protocol.root, pickle::Value::Int(PROTOCOL)) {
        return Err(TorchError::Pickle { at: protocol_at as u64, why: format!("not protocol {PROTOCOL} of PyTorch") }.into());
    }
    let (machine, object_at) = pickle::run(file, machine_at)?;
    let big = |(key, value): &(pickle::Value, pickle::Value)| {
        matches!((key, value), (pickle::Value::Str("little_endian"), pickle::Value::Bool(false)))
    };
    if machine.dict(machine.root).is_some_and(|pairs| pairs.iter().any(big)) {
        return Err(TorchError::ByteOrder.into());
    }
    let (heap, keys_at) = pickle::run(file, object_at)?;
    let (keys, data_at) = pickle::run(file, keys_at)?;
    let keys = keys.list(keys.root).ok_or_else(|| TorchError::Pickle { at: keys_at as u64, why: "no list of storages".into() })?;
    let mut storages = Data::locate(file, data_at, &heap, keys)?;
    super::header(&heap, &mut storages, Made::new(file))
}

/// Storages by key.
struct Data(BTreeMap<String, Base>);

impl Data {
    /// The sizes of elements are in the object alone.
    fn locate(file: &[u8], mut at: usize, heap: &pickle::Heap, keys: &[pickle::Value]) -> Result<Self, WeightsError> {
        let storages = heap.objects.iter().filter_map(|object| match object {
            pickle::Object::Storage(storage) => Some((storage.key, storage.dtype?.size())),
            _ => None,
        });
        let sizes: BTreeMap<&str, usize> = storages.collect();
        let mut found = BTreeMap::new();
        for key in keys {
            let pickle::Value::Str(key) = *key else { return Err(TorchError::NoStorage("that is no text".into()).into()) };
            let size = *sizes.get(key).ok_or_else(|| TorchError::NoStorage(key.into()))?;
            let ends = || WeightsError::from(TorchError::StorageEnd { key: key.into(), available: (file.len() - at) as u64 });
            let count = file[at..].first_chunk::<8>().map(|count| u64::from_le_bytes(*count)).ok_or_else(ends)?;
            let bytes = usize::try_from(count).ok().and_then(|count| count.checked_mul(size)).ok_or_else(ends)?;
            let end = (at + 8).checked_add(bytes).filter(|&end| end <= file.len()).ok_or_else(ends)?;
            if found.insert(key.to_owned(), Base::File(at + 8..end)).is_some() {
                return Err(WeightsError::Duplicate(format!("storage {key}")));
            }
            at = end;
        }
        match file.len() - at {
            0 => Ok(Self(found)),
            bytes => Err(WeightsError::Unused { at: at as u64, bytes: bytes as u64 }),
        }
    }
}

impl Storages for Data {
    fn find(&mut self, key: &str, bytes: u64, _: &mut Made) -> Result<Base, WeightsError> {
        let base = self.0.get(key).ok_or_else(|| TorchError::NoStorage(key.into()))?;
        match base.len() as u64 {
            found if found == bytes => Ok(base.clone()),
            found => Err(TorchError::EntrySize { entry: format!("storage {key}"), expected: bytes, found }.into()),
        }
    }
}
