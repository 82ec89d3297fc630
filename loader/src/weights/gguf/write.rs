use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use super::{DEFAULT_ALIGNMENT, KINDS, MAGIC, MAX_RANK, TEXT};
use crate::output::AtomicFile;
use crate::weights::Planned;
use crate::weights::entry::byte_count;
use crate::{Error, GgufError, Result, WeightsError};

/// Writes a GGUF file of version 3, whole or not at all, of tensors whose bytes `make` gives one by one, in the order of their
/// names; metadata is text.
///
/// # Errors
/// Those of `make`; bytes of another number than the tensor's shape says; names that come twice; types, ranks and rows that the format
/// does not have.
pub fn save_gguf_each<'a, E: From<Error>>(
    path: impl AsRef<Path>,
    mut tensors: Vec<Planned>,
    metadata: &BTreeMap<String, String>,
    mut make: impl FnMut(&Planned) -> Result<Cow<'a, [u8]>, E>,
) -> Result<(), E> {
    let path = path.as_ref();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let (header, sizes) = header(&tensors, metadata).map_err(|why| Error::Weights { path: path.to_owned(), why })?;
    let mut file = AtomicFile::create(path)?;
    file.write(&header)?;
    for (tensor, size) in tensors.iter().zip(sizes) {
        let bytes = make(tensor)?;
        if bytes.len() != size {
            return Err(Error::Weights { path: path.to_owned(), why: tensor.misfit(Some(size), bytes.len()) }.into());
        }
        file.write(&bytes)?;
        file.write(&[0; DEFAULT_ALIGNMENT][..size.next_multiple_of(DEFAULT_ALIGNMENT) - size])?;
    }
    Ok(file.commit()?)
}

/// All that is before the tensors, and the size of each of these.
fn header(tensors: &[Planned], metadata: &BTreeMap<String, String>) -> Result<(Vec<u8>, Vec<usize>), WeightsError> {
    let mut header = [MAGIC, &3u32.to_le_bytes(), &(tensors.len() as u64).to_le_bytes(), &(metadata.len() as u64).to_le_bytes()].concat();
    let text = |header: &mut Vec<u8>, text: &str| {
        header.extend((text.len() as u64).to_le_bytes());
        header.extend(text.as_bytes());
    };
    for (key, value) in metadata {
        text(&mut header, key);
        header.extend(TEXT.to_le_bytes());
        text(&mut header, value);
    }
    let (mut at, mut sizes) = (0usize, Vec::with_capacity(tensors.len()));
    for (i, t) in tensors.iter().enumerate() {
        let name = || t.name.clone();
        let Some((kind, _)) = KINDS.iter().find(|(_, dtype)| *dtype == t.dtype) else {
            return Err(WeightsError::Dtype { tensor: name(), expected: "one of GGUF", found: t.dtype.name() });
        };
        if i > 0 && tensors[i - 1].name == t.name {
            return Err(WeightsError::Duplicate(name()));
        }
        if t.shape.len() > MAX_RANK as usize {
            return Err(GgufError::Rank { tensor: name(), found: t.shape.len() as u32, max: MAX_RANK }.into());
        }
        if !t.shape.last().unwrap_or(&1).is_multiple_of(t.dtype.block()) {
            return Err(GgufError::Blocks { tensor: name(), shape: t.shape.clone(), block: t.dtype.block() }.into());
        }
        let size =
            byte_count(&t.shape, t.dtype).and_then(|size| Some((size, at.checked_add(size.checked_next_multiple_of(DEFAULT_ALIGNMENT)?)?)));
        let Some((size, end)) = size else { return Err(t.misfit(None, 0)) };
        text(&mut header, &t.name);
        header.extend((t.shape.len() as u32).to_le_bytes());
        header.extend(t.shape.iter().rev().flat_map(|&n| (n as u64).to_le_bytes()));
        header.extend(kind.to_le_bytes());
        header.extend((at as u64).to_le_bytes());
        sizes.push(size);
        at = end;
    }
    header.resize(header.len().next_multiple_of(DEFAULT_ALIGNMENT), 0);
    Ok((header, sizes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Dtype, Weights};

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let planned = |name: &str, dtype, shape: &[usize]| Planned { name: name.into(), dtype, shape: shape.to_vec() };
        let all = [
            planned("b", Dtype::F32, &[1, 1, 3]),
            planned("a", Dtype::Q8_0, &[2, 64]),
            planned("c.weight", Dtype::Q4K, &[1, 256]),
            planned("d", Dtype::Bf16, &[0, 5]),
            planned("e", Dtype::F16, &[7]),
        ];
        let size = |t: &Planned| byte_count(&t.shape, t.dtype).unwrap();
        let bytes = |t: &Planned| vec![t.name.as_bytes()[0]; size(t)];
        let metadata = BTreeMap::from([("general.architecture".to_owned(), "moshi".to_owned())]);
        let save = |tensors: &[Planned]| save_gguf_each::<Error>(&path, tensors.to_vec(), &metadata, |t| Ok(bytes(t).into()));
        save(&all).unwrap();
        let file = Weights::open(&path).unwrap();
        assert_eq!((file.names().count(), file.metadata()), (5, &metadata));
        for t in &all {
            let view = file.view(&t.name).unwrap();
            assert_eq!((view.dtype, view.shape, view.bytes), (t.dtype, &t.shape[..], &bytes(t)[..]));
        }
        let before = std::fs::read(&path).unwrap();
        for (wrong, says) in [
            (planned("b", Dtype::F32, &[1]), "twice"),
            (planned("x", Dtype::U8, &[1]), "one of GGUF"),
            (planned("x", Dtype::Q8_0, &[2, 33]), "no whole blocks"),
            (planned("x", Dtype::F32, &[1; 5]), "at most 4"),
            (planned("x", Dtype::F32, &[usize::MAX, 2]), "bytes"),
        ] {
            let error = save(&[&all[..], &[wrong]].concat()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let short = save_gguf_each::<Error>(&path, all.to_vec(), &metadata, |_| Ok(vec![0; 3].into()));
        assert!(short.unwrap_err().to_string().contains("got 3"));
        assert_eq!((std::fs::read(&path).unwrap(), std::fs::read_dir(dir.path()).unwrap().count()), (before, 1));
    }
}
