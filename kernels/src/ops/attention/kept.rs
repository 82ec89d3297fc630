//! What keys and values are kept as.

use half::bf16;

use crate::cpu::vector::Vector;
use crate::{DType, Real, Result, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The type of the queries; on the CPU bf16 beside any.
    Values(DType),
    /// Codes of 8 bits with a factor for every token of a head: the largest of its values over 127.
    Int8,
}

impl From<DType> for Kept {
    fn from(dtype: DType) -> Kept {
        Kept::Values(dtype)
    }
}

impl Kept {
    /// As reports spell it: `f32`, `int8`, ...
    pub const fn name(self) -> &'static str {
        match self {
            Kept::Values(dtype) => dtype.name(),
            Kept::Int8 => "int8",
        }
    }

    /// A head of a token, its factor with it.
    pub const fn bytes(self, head_dim: usize) -> usize {
        match self {
            Kept::Values(dtype) => head_dim * dtype.bytes(),
            Kept::Int8 => head_dim + 4,
        }
    }
}

/// Elements of a ring.
pub(crate) trait Stored: Copy + Send + Sync + 'static {
    fn slice(tensor: &Tensor) -> Result<&[Self]>;
    fn slice_mut(tensor: &mut Tensor) -> Result<&mut [Self]>;
    /// # Safety
    /// As [`Vector::load`].
    unsafe fn load<V: Vector>(at: *const Self) -> V;
    fn value<T: Real>(self) -> T;
    /// What is stored for `x`; `inverse` is of [`factors`].
    fn of<T: Real>(x: T, inverse: f32) -> Self;
}

macro_rules! stored {
    ($type:ty, $of:expr) => {
        impl Stored for $type {
            fn slice(tensor: &Tensor) -> Result<&[Self]> {
                tensor.as_slice()
            }
            fn slice_mut(tensor: &mut Tensor) -> Result<&mut [Self]> {
                tensor.as_mut_slice()
            }
            #[inline(always)]
            unsafe fn load<V: Vector>(at: *const Self) -> V {
                // SAFETY: the caller's.
                unsafe { V::widen(at) }
            }
            #[inline(always)]
            fn value<T: Real>(self) -> T {
                T::of(f64::from(self))
            }
            #[inline(always)]
            fn of<T: Real>(x: T, _: f32) -> Self {
                let of: fn(f64) -> Self = $of;
                of(x.f64())
            }
        }
    };
}
stored!(f64, |x| x);
stored!(f32, |x| x as f32);
stored!(bf16, bf16::from_f64);

impl Stored for i8 {
    fn slice(tensor: &Tensor) -> Result<&[Self]> {
        Ok(bytemuck::cast_slice(tensor.as_slice::<u8>()?))
    }
    fn slice_mut(tensor: &mut Tensor) -> Result<&mut [Self]> {
        Ok(bytemuck::cast_slice_mut(tensor.as_mut_slice::<u8>()?))
    }
    #[inline(always)]
    unsafe fn load<V: Vector>(at: *const Self) -> V {
        // SAFETY: the caller's.
        unsafe { V::bytes(at) }
    }
    #[inline(always)]
    fn value<T: Real>(self) -> T {
        T::of(self.into())
    }
    #[inline(always)]
    fn of<T: Real>(x: T, inverse: f32) -> Self {
        (x.f64() as f32 * inverse).round_ties_even() as i8
    }
}

/// Rows whose largest value is below are zero; the inverse of others is finite. rope.cu has the same.
const SMALLEST: f32 = 1e-30;

/// What the codes of a row are multiplied by, and what its values are to become codes. What is not finite makes the row NaN.
pub(crate) fn factors<T: Real>(row: &[T]) -> [f32; 2] {
    // As integers, of which that of a NaN is largest.
    let largest = row.iter().map(|x| (x.f64() as f32).abs().to_bits()).max().unwrap_or(0);
    match f32::from_bits(largest) {
        largest if largest < SMALLEST => [0.0, 0.0],
        largest => [largest / 127.0, 127.0 / largest],
    }
}
