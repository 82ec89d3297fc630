//! Where the bytes of a tensor are, and how they are had: in place where the file holds them as they are, made and kept when
//! first asked for where it does not.

use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::Dtype;
use crate::{TorchError, WeightsError};

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub base: Base,
    pub layout: Layout,
}

/// The bytes that a tensor lies in.
#[derive(Debug, Clone)]
pub(super) enum Base {
    /// A part of the file.
    File(Range<usize>),
    Deflated(Arc<Deflated>),
}

#[derive(Debug, Clone)]
pub(super) enum Layout {
    /// A part of the base, in bytes.
    RowMajor(Range<usize>),
    Strided(Arc<Strided>),
}

/// Of a whole tensor of whole blocks. None if it, or any stride in it, cannot be counted: [0, 2^63, 4] is too large, too.
pub(super) fn byte_count(shape: &[usize], dtype: Dtype) -> Option<usize> {
    let count = shape.iter().filter(|&&n| n != 0).try_fold(1_usize, |a, &b| a.checked_mul(b));
    let bytes = (count? / dtype.block()).checked_mul(dtype.size()).filter(|&n| n <= isize::MAX as usize)?;
    Some(if shape.contains(&0) { 0 } else { bytes })
}

impl Entry {
    pub fn in_file(dtype: Dtype, shape: Vec<usize>, range: Range<usize>) -> Self {
        let len = range.len();
        Self { dtype, shape, base: Base::File(range), layout: Layout::RowMajor(0..len) }
    }

    /// `file`: the whole of it. Ranges were checked when the entry was made.
    pub fn bytes<'a>(&'a self, file: &'a [u8]) -> Result<&'a [u8], WeightsError> {
        let base = self.base.bytes(file)?;
        Ok(match &self.layout {
            Layout::RowMajor(range) => &base[range.clone()],
            Layout::Strided(strided) => strided.gather(base, self.dtype.size(), &self.shape),
        })
    }
}

impl Base {
    pub fn bytes<'a>(&'a self, file: &'a [u8]) -> Result<&'a [u8], WeightsError> {
        match self {
            Self::File(range) => Ok(&file[range.clone()]),
            Self::Deflated(deflated) => deflated.bytes(file),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::File(range) => range.len(),
            Self::Deflated(deflated) => deflated.size,
        }
    }
}

#[derive(Debug)]
pub(super) struct Deflated {
    /// In the archive.
    pub name: String,
    /// Compressed, in the file.
    pub range: Range<usize>,
    pub size: usize,
    pub crc: u32,
    inflated: OnceLock<Result<Vec<u8>, WeightsError>>,
}

impl Deflated {
    pub fn new(name: String, range: Range<usize>, size: usize, crc: u32) -> Self {
        Self { name, range, size, crc, inflated: OnceLock::new() }
    }

    fn bytes(&self, file: &[u8]) -> Result<&[u8], WeightsError> {
        self.inflated.get_or_init(|| self.inflate(file)).as_deref().map_err(Clone::clone)
    }

    /// The size is checked before and after, so that a file which lies costs no memory.
    pub fn inflate(&self, file: &[u8]) -> Result<Vec<u8>, WeightsError> {
        /// Deflate can do no better.
        const MAX_RATIO: usize = 1032;
        let fail = |why: &str| WeightsError::from(TorchError::Inflate { entry: self.name.clone(), why: why.into() });
        let compressed = &file[self.range.clone()];
        if self.size > compressed.len().saturating_mul(MAX_RATIO) {
            return Err(fail("claims more than deflate can hold"));
        }
        let mut bytes = Vec::with_capacity(self.size);
        let mut decoder = flate2::read::DeflateDecoder::new(compressed).take(self.size as u64);
        decoder.read_to_end(&mut bytes).map_err(|e| fail(&e.to_string()))?;
        let longer = decoder.into_inner().read(&mut [0]).is_ok_and(|n| n > 0);
        if longer || bytes.len() != self.size {
            return Err(fail("inflates to another size than it claims"));
        }
        let mut crc = flate2::Crc::new();
        crc.update(&bytes);
        if crc.sum() != self.crc {
            return Err(fail("damaged: another checksum than it claims"));
        }
        Ok(bytes)
    }
}

/// Elements at `offset + sum_i index_i * stride_i` of the base.
#[derive(Debug)]
pub(super) struct Strided {
    pub offset: usize,
    pub stride: Vec<usize>,
    gathered: OnceLock<Vec<u8>>,
}

impl Strided {
    pub fn new(offset: usize, stride: Vec<usize>) -> Self {
        Self { offset, stride, gathered: OnceLock::new() }
    }

    fn gather(&self, base: &[u8], element: usize, shape: &[usize]) -> &[u8] {
        self.gathered.get_or_init(|| match element {
            1 => self.row_major(base.as_chunks::<1>().0, shape),
            2 => self.row_major(base.as_chunks::<2>().0, shape),
            4 => self.row_major(base.as_chunks::<4>().0, shape),
            _ => self.row_major(base.as_chunks::<8>().0, shape),
        })
    }

    fn row_major<const N: usize>(&self, base: &[[u8; N]], shape: &[usize]) -> Vec<u8> {
        let count: usize = shape.iter().product();
        let mut out = Vec::with_capacity(count * N);
        let (Some((&row, outer)), Some((&step, strides))) = (shape.split_last(), self.stride.split_last()) else { return out };
        let (mut index, mut at) = (vec![0; outer.len()], self.offset);
        for _ in 0..count / row.max(1) {
            for i in 0..row {
                out.extend_from_slice(&base[at + i * step]);
            }
            for d in (0..outer.len()).rev() {
                index[d] += 1;
                at += strides[d];
                if index[d] < outer[d] {
                    break;
                }
                at -= outer[d] * strides[d];
                index[d] = 0;
            }
        }
        out
    }
}
