use std::fmt;
use std::ops::Deref;

/// Up to four extents, stored inline so that making a tensor allocates nothing but its elements.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    rank: u8,
    dims: [usize; Shape::MAX_RANK],
}

impl Shape {
    pub const MAX_RANK: usize = 4;

    /// Number of elements, or `None` if the product overflows.
    pub fn checked_elements(&self) -> Option<usize> {
        self.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
    }

    /// Number of elements. Tensors hold only shapes for which this is exact.
    pub fn elements(&self) -> usize {
        self.iter().product()
    }

    /// Extent of the last (contiguous) axis; 1 for a scalar.
    pub fn last_dim(&self) -> usize {
        self.last().copied().unwrap_or(1)
    }

    /// Product of all extents but the last: how many rows the tensor has.
    pub fn rows(&self) -> usize {
        self[..self.len().saturating_sub(1)].iter().product()
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        const { assert!(N <= Shape::MAX_RANK) };
        let mut s = Shape { rank: N as u8, dims: [0; Shape::MAX_RANK] };
        s.dims[..N].copy_from_slice(&dims);
        s
    }
}

impl TryFrom<&[usize]> for Shape {
    type Error = crate::Error;
    fn try_from(dims: &[usize]) -> crate::Result<Self> {
        if dims.len() > Shape::MAX_RANK {
            return Err(crate::Error::argument("shape", format!("rank {} exceeds {}", dims.len(), Shape::MAX_RANK)));
        }
        let mut s = Shape { rank: dims.len() as u8, dims: [0; Shape::MAX_RANK] };
        s.dims[..dims.len()].copy_from_slice(dims);
        Ok(s)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
