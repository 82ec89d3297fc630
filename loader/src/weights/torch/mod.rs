//! What `torch.save` writes: a pickle of named tensors and, beside it, the storages they lie in.
//!
//! Two containers: the zip archive (`x/data.pkl`, `x/data/0`, ...; since PyTorch 1.6) and the sequence of pickles before it.
//! Both are known by their first bytes, whatever the file is called. Nothing is executed: see [`pickle`].
//!
//! Memory: tensors are read in place. What cannot be - deflated entries, tensors with strides - is made when first asked for,
//! and a file whose tensors of that kind need more than [`made_limit`] is refused when it is opened.

mod archive;
mod globals;
mod legacy;
mod pickle;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Format;
use super::entry::{Base, Entry, Layout, Strided, byte_count};
use super::header::{Header, MAX_HEADER};
use crate::{TorchError, WeightsError};

/// True for a file that [`parse`] is for.
pub(super) fn recognises(file: &[u8]) -> bool {
    archive::recognises(file) || legacy::recognises(file)
}

pub(super) fn parse(file: &[u8]) -> Result<Header, WeightsError> {
    Ok(match archive::recognises(file) {
        true => Header { format: Format::TorchZip, ..archive::parse(file)? },
        false => Header { format: Format::TorchLegacy, ..legacy::parse(file)? },
    })
}

/// Bytes that deflated storages and tensors with strides may take, all together.
fn made_limit(file: &[u8]) -> u64 {
    (file.len() as u64).saturating_mul(16).saturating_add(64 << 20)
}

/// The storages of a file, by key.
trait Storages {
    /// `bytes`: its size by the tensor that asks.
    fn find(&mut self, key: &str, bytes: u64, made: &mut Made) -> Result<Base, WeightsError>;
}

/// Places the tensors of a state dict in their storages.
fn header(heap: &pickle::Heap, storages: &mut impl Storages, mut made: Made) -> Result<Header, WeightsError> {
    let state = state::find(heap)?;
    let mut placed: BTreeMap<usize, Entry> = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    for (name, at) in state.tensors {
        let Some(pickle::Object::Tensor(tensor)) = heap.objects.get(at) else { continue };
        let entry = match placed.get(&at) {
            Some(entry) => entry.clone(),
            None => {
                let entry = place(&name, tensor, storages, &mut made)?;
                placed.insert(at, entry.clone());
                entry
            }
        };
        if tensors.contains_key(&name) {
            return Err(WeightsError::Duplicate(name));
        }
        tensors.insert(name, entry);
    }
    Ok(Header { tensors, metadata: state.metadata, ..Header::default() })
}

fn place(name: &str, tensor: &pickle::Tensor, storages: &mut impl Storages, made: &mut Made) -> Result<Entry, WeightsError> {
    let fail = |why: String| WeightsError::from(TorchError::Tensor { tensor: name.into(), why });
    let overflow = || WeightsError::ShapeOverflow { tensor: name.into(), shape: tensor.shape.clone() };
    let element = tensor.dtype.size();
    let shape: Vec<usize> = tensor.shape.iter().map(|&n| usize::try_from(n).map_err(|_| overflow())).collect::<Result<_, _>>()?;
    let count = byte_count(&shape, tensor.dtype).ok_or_else(overflow)? / element;
    let storage = &tensor.storage;
    let unit = storage.dtype.map_or(1, |dtype| dtype.size()) as u64;
    let claimed = storage.elements.checked_mul(unit).ok_or_else(|| fail("its storage overflows".into()))?;
    let base = storages.find(storage.key, claimed, made)?;
    let available = base.len() / element;
    if count == 0 {
        return Ok(Entry { dtype: tensor.dtype, shape, base, layout: Layout::RowMajor(0..0) });
    }
    // Checked in u64, so that no sum of products wraps.
    let reach =
        tensor.shape.iter().zip(&tensor.stride).try_fold(tensor.offset, |at, (&n, &stride)| at.checked_add((n - 1).checked_mul(stride)?));
    let last = reach.and_then(|last| usize::try_from(last).ok()).filter(|&last| last < available);
    if last.is_none() || count > available {
        let (offset, stride) = (tensor.offset, &tensor.stride);
        return Err(fail(format!("shape {shape:?}, strides {stride:?} and offset {offset} exceed its storage of {available} elements")));
    }
    // All of these are below `available` now, but for the strides of dimensions of size 1, which count for nothing.
    let offset = tensor.offset as usize;
    let stride: Vec<usize> = shape.iter().zip(&tensor.stride).map(|(&n, &s)| if n == 1 { 0 } else { s as usize }).collect();
    let mut row = 1;
    let row_major = shape.iter().zip(&stride).rev().all(|(&n, &s)| {
        let fits = n == 1 || s == row;
        row *= n;
        fits
    });
    let layout = match row_major {
        true => Layout::RowMajor(offset * element..(offset + count) * element),
        false => {
            made.add((count * element) as u64)?;
            Layout::Strided(Arc::new(Strided::new(offset, stride)))
        }
    };
    Ok(Entry { dtype: tensor.dtype, shape, base, layout })
}

/// Counts what has to be made against [`made_limit`].
struct Made {
    left: u64,
    limit: u64,
}

impl Made {
    fn new(file: &[u8]) -> Self {
        let limit = made_limit(file);
        Self { left: limit, limit }
    }

    fn add(&mut self, bytes: u64) -> Result<(), WeightsError> {
        self.left = self.left.checked_sub(bytes).ok_or(TorchError::TooLarge { limit: self.limit })?;
        Ok(())
    }
}
