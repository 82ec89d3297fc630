//! Named tensors: safetensors, GGUF and what `torch.save` writes, memory-mapped, checked in full before the first use, read in
//! place.

mod directory;
mod entry;
mod gguf;
mod header;
mod mismatch;
mod quantized;
mod save;
#[cfg(test)]
mod tests;
mod torch;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

pub use directory::{missing, named};
pub use gguf::save_gguf_each;
pub use mismatch::{Mismatch, Misshaped};
pub use save::{Planned, TensorRef, save, save_each};

use crate::{Error, Result, WeightsError};

/// Element types, by their safetensors names; and ggml's quantised types, whose elements come in blocks
/// ([`Quantized`](crate::quantized::Quantized)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    Bool,
    U8,
    I8,
    F8E4M3,
    F8E5M2,
    U16,
    I16,
    F16,
    Bf16,
    U32,
    I32,
    F32,
    U64,
    I64,
    F64,
    Q8_0,
    Q4_0,
    Q4K,
}

impl Dtype {
    const ALL: [(Self, &'static str, usize); 18] = [
        (Self::Bool, "BOOL", 1),
        (Self::U8, "U8", 1),
        (Self::I8, "I8", 1),
        (Self::F8E4M3, "F8_E4M3", 1),
        (Self::F8E5M2, "F8_E5M2", 1),
        (Self::U16, "U16", 2),
        (Self::I16, "I16", 2),
        (Self::F16, "F16", 2),
        (Self::Bf16, "BF16", 2),
        (Self::U32, "U32", 4),
        (Self::I32, "I32", 4),
        (Self::F32, "F32", 4),
        (Self::U64, "U64", 8),
        (Self::I64, "I64", 8),
        (Self::F64, "F64", 8),
        (Self::Q8_0, "Q8_0", 34),
        (Self::Q4_0, "Q4_0", 18),
        (Self::Q4K, "Q4_K", 144),
    ];

    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Elements of a block: 1, but of ggml's quantised types.
    pub fn block(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 => 32,
            Self::Q4K => 256,
            _ => 1,
        }
    }

    /// Bytes a [block](Self::block), which is an element for most.
    pub fn size(self) -> usize {
        Self::ALL[self as usize].2
    }

    /// Of safetensors, which has no blocks.
    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(dtype, n, _)| *n == name && dtype.block() == 1).map(|(dtype, ..)| *dtype)
    }
}

/// What a file of weights is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Safetensors,
    /// A zip archive of `torch.save`.
    TorchZip,
    /// The sequence of pickles that `torch.save` wrote before PyTorch 1.6.
    TorchLegacy,
    /// Of versions 2 and 3.
    Gguf,
}

impl Format {
    pub fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::TorchZip => "PyTorch zip archive",
            Self::TorchLegacy => "PyTorch file of before 1.6",
            Self::Gguf => "GGUF",
        }
    }
}

/// A tensor in its file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TensorView<'a> {
    pub dtype: Dtype,
    pub shape: &'a [usize],
    /// Little-endian, row-major; not necessarily aligned.
    pub bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// Number of elements.
    pub fn count(&self) -> usize {
        self.bytes.len() / self.dtype.size() * self.dtype.block()
    }

    /// Borrows where the file holds aligned f32. 64-bit types are rounded. None for 8-bit floats, which have no one meaning
    /// without their scales, and for quantised types, which [`Weights::to_f32`] knows.
    pub fn to_f32(&self) -> Option<Cow<'a, [f32]>> {
        fn map<'a, const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f32) -> Option<Cow<'a, [f32]>> {
            Some(Cow::Owned(bytes.as_chunks::<N>().0.iter().map(|&b| f(b)).collect()))
        }
        let b = self.bytes;
        match self.dtype {
            Dtype::F32 => match bytemuck::try_cast_slice(b) {
                Ok(values) => Some(Cow::Borrowed(values)),
                Err(_) => map(b, f32::from_le_bytes),
            },
            Dtype::F16 => map(b, |x| half::f16::from_le_bytes(x).to_f32()),
            Dtype::Bf16 => map(b, |x| half::bf16::from_le_bytes(x).to_f32()),
            Dtype::F64 => map(b, |x| f64::from_le_bytes(x) as f32),
            Dtype::Bool => map(b, |[x]| f32::from(x != 0)),
            Dtype::U8 => map(b, |[x]| f32::from(x)),
            Dtype::I8 => map(b, |x| f32::from(i8::from_le_bytes(x))),
            Dtype::U16 => map(b, |x| f32::from(u16::from_le_bytes(x))),
            Dtype::I16 => map(b, |x| f32::from(i16::from_le_bytes(x))),
            Dtype::U32 => map(b, |x| u32::from_le_bytes(x) as f32),
            Dtype::I32 => map(b, |x| i32::from_le_bytes(x) as f32),
            Dtype::U64 => map(b, |x| u64::from_le_bytes(x) as f32),
            Dtype::I64 => map(b, |x| i64::from_le_bytes(x) as f32),
            Dtype::F8E4M3 | Dtype::F8E5M2 | Dtype::Q8_0 | Dtype::Q4_0 | Dtype::Q4K => None,
        }
    }

    /// The elements as `T`, which must be of exactly this dtype's size; borrows where aligned.
    fn to_pod<T: bytemuck::Pod>(self) -> Cow<'a, [T]> {
        match bytemuck::try_cast_slice(self.bytes) {
            Ok(values) => Cow::Borrowed(values),
            Err(_) => {
                let elements = self.bytes.chunks_exact(size_of::<T>());
                Cow::Owned(elements.map(bytemuck::pod_read_unaligned).collect())
            }
        }
    }
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: Bytes,
    header: header::Header,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

impl Shard {
    fn open(path: &Path) -> Result<Self> {
        let io = |e| Error::io("open weights", path, e);
        crate::input::regular(path).map_err(io)?;
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only and private; as with every memory-mapped file, nobody may truncate it meanwhile.
        // Our own writers never do: they rename a new file over the old one.
        let bytes = match file.metadata().map_err(io)?.len() {
            0 => Bytes::Owned(Vec::new()),
            _ => Bytes::Mapped(unsafe { Mmap::map(&file) }.map_err(io)?),
        };
        Self::parse(path, bytes)
    }

    fn parse(path: &Path, bytes: Bytes) -> Result<Self> {
        let header = match &bytes[..] {
            file if gguf::recognises(file) => gguf::parse(file),
            file if torch::recognises(file) => torch::parse(file),
            file => header::parse(file),
        };
        let header = header.map_err(|why| Error::Weights { path: path.to_owned(), why })?;
        Ok(Self { path: path.to_owned(), bytes, header })
    }
}

/// Named tensors of one file, or of all the files of a directory with an index.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    shards: Vec<Shard>,
    /// Name to shard.
    names: BTreeMap<String, usize>,
}

impl Weights {
    /// `path`: a file of weights, or a directory with one:
    ///
    /// - safetensors;
    /// - a file of `torch.save` (`.bin`, `.pth`, `.th`, `.pt`, `.ckpt`), zip or older. Nothing in it is executed. Its state dict may be
    ///   what was saved, or lie within it (`state_dict`, `best_state`, `model`); what lies beside it is [`metadata`](Self::metadata);
    /// - GGUF, with tensors of plain types, Q8_0, Q4_0 and Q4_K; shapes are PyTorch's, the innermost dimension last;
    /// - a directory: the file that its `config.json` calls `moshi_name`, else `model.safetensors`, else `model.safetensors.index.json` and the files it names, else the same as
    ///   `pytorch_model.bin`, else its only file with such an ending.
    ///
    /// The kind of a file is told by its contents, not by its name.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let meta = std::fs::metadata(path).map_err(|e| Error::io("open weights", path, e))?;
        let shards = if meta.is_dir() { directory::open(path)? } else { vec![Shard::open(path)?] };
        let mut names = BTreeMap::new();
        for (i, shard) in shards.iter().enumerate() {
            for name in shard.header.tensors.keys() {
                if names.insert(name.clone(), i).is_some() {
                    let why = WeightsError::Duplicate(name.clone());
                    return Err(Error::Weights { path: shard.path.clone(), why });
                }
            }
        }
        Ok(Self { path: path.to_owned(), shards, names })
    }

    /// A whole file in memory; `name` stands for its path in errors.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        let shard = Shard::parse(Path::new(name), Bytes::Owned(bytes.to_vec()))?;
        let names = shard.header.tensors.keys().map(|name| (name.clone(), 0)).collect();
        Ok(Self { path: shard.path.clone(), shards: vec![shard], names })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Of the files that tensors are in.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|shard| &*shard.path)
    }

    /// Sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// Of the file; of the first one, where there are several.
    pub fn format(&self) -> Format {
        self.shards.first().map(|s| s.header.format).unwrap_or_default()
    }

    /// `config.json` of the directory; None where there is none, and for a single file.
    pub fn config(&self) -> Result<Option<serde_json::Value>> {
        directory::config(&self.path)
    }

    /// Metadata of the file; of the first one, where there are several. Of PyTorch's files: what was saved beside the state dict.
    /// Of that and of GGUF's: text as it is and all else as JSON.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.shards.first().map_or(&NONE, |s| &s.header.metadata)
    }

    /// The tensor, in place where the file holds it row by row.
    pub fn view(&self, name: &str) -> Result<TensorView<'_>> {
        let (shard, entry) = self.find(name).ok_or_else(|| self.fail(WeightsError::NoTensor(name.into())))?;
        let bytes = entry.bytes(&shard.bytes).map_err(|why| Error::Weights { path: shard.path.clone(), why })?;
        Ok(TensorView { dtype: entry.dtype, shape: &entry.shape, bytes })
    }

    /// Dtype and shape, without a look at the tensor itself.
    pub fn info(&self, name: &str) -> Option<(Dtype, &[usize])> {
        self.find(name).map(|(_, entry)| (entry.dtype, &entry.shape[..]))
    }

    fn find(&self, name: &str) -> Option<(&Shard, &entry::Entry)> {
        let shard = self.shards.get(*self.names.get(name)?)?;
        Some((shard, shard.header.tensors.get(name)?))
    }

    /// The tensor as f32, whatever its dtype; borrowed where it is f32 already, dequantised where it has ggml's blocks.
    pub fn to_f32(&self, name: &str) -> Result<Cow<'_, [f32]>> {
        let rows = quantized::matrix(self.view(name)?.shape)[0];
        self.to_f32_rows(name, 0..rows)
    }

    /// The tensor, which must be I32.
    pub fn to_i32(&self, name: &str) -> Result<Cow<'_, [i32]>> {
        let view = self.view(name)?;
        match view.dtype {
            Dtype::I32 => Ok(view.to_pod()),
            found => Err(self.dtype_error(name, "I32", found)),
        }
    }

    /// The tensor, which must be U64.
    pub fn to_u64(&self, name: &str) -> Result<Cow<'_, [u64]>> {
        let view = self.view(name)?;
        match view.dtype {
            Dtype::U64 => Ok(view.to_pod()),
            found => Err(self.dtype_error(name, "U64", found)),
        }
    }

    /// Name and shape of every tensor.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.names().filter_map(|n| Some((n.to_owned(), self.info(n)?.1.to_vec()))).collect()
    }

    /// What is missing, unknown or of another shape than expected, all at once.
    pub fn compare(&self, expected: impl IntoIterator<Item = (String, Vec<usize>)>) -> Mismatch {
        Mismatch::new(&expected.into_iter().collect(), &self.shapes())
    }

    /// [`compare`](Self::compare), with any difference an error.
    pub fn check(&self, expected: impl IntoIterator<Item = (String, Vec<usize>)>) -> Result<()> {
        match self.compare(expected) {
            mismatch if mismatch.is_empty() => Ok(()),
            mismatch => Err(Error::Mismatch { path: self.path.clone(), mismatch }),
        }
    }

    fn dtype_error(&self, name: &str, expected: &'static str, found: Dtype) -> Error {
        self.fail(WeightsError::Dtype { tensor: name.into(), expected, found: found.name() })
    }

    fn fail(&self, why: WeightsError) -> Error {
        Error::Weights { path: self.path.clone(), why }
    }
}
