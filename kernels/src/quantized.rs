//! Matrices whose weights are small integers, a group of which shares a scale.

use crate::{DType, Device, Error, Result, Shape, Tensor};

/// Bits of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// 0 to 15, two in a byte: the even column in the low half.
    Four,
    /// -128 to 127.
    Eight,
}

impl Bits {
    /// Bytes of so many codes, an even number of them if they have four bits.
    pub fn bytes(self, codes: usize) -> usize {
        match self {
            Bits::Four => codes / 2,
            Bits::Eight => codes,
        }
    }

    /// The code of zero, where there are no minima.
    pub fn zero(self) -> i32 {
        match self {
            Bits::Four => 8,
            Bits::Eight => 0,
        }
    }
}

/// `[N, K]` as `value = scale code - min`, rounded once, in f32.
///
/// | tensor   | shape          |                                                                                       |
/// |----------|----------------|---------------------------------------------------------------------------------------|
/// | `codes`  | `[N, K]` bytes | u8; of half as many columns with [`Bits::Four`], so that `K` is even                    |
/// | `scales` | `[N, G]`       | f32; of `K / G` columns each                                                          |
/// | `mins`   | `[N, G]`       | f32, optional: else the scale times the code of zero, 8 or 0                            |
pub struct Quantized {
    pub bits: Bits,
    pub codes: Tensor,
    pub scales: Tensor,
    pub mins: Option<Tensor>,
}

impl Quantized {
    pub fn device(&self) -> Device {
        self.codes.device()
    }

    pub fn bytes(&self) -> usize {
        [Some(&self.codes), Some(&self.scales), self.mins.as_ref()].into_iter().flatten().map(Tensor::bytes).sum()
    }

    /// `N` and `K`, of which there is at least one.
    ///
    /// # Errors
    /// Tensors of other shapes or types than those above, or on different devices.
    pub fn extents(&self, op: &'static str) -> Result<(usize, usize)> {
        let &[rows, bytes] = &*self.codes.shape() else {
            return Err(Error::shape(op, "codes", "[N, bytes of K codes]", self.codes.shape()));
        };
        let columns = match self.bits {
            Bits::Four => bytes.saturating_mul(2),
            Bits::Eight => bytes,
        };
        let groups = self.scales.shape().last_dim();
        if *self.scales.shape() != [rows, groups] || columns == 0 || groups == 0 || !columns.is_multiple_of(groups) {
            let expected = format!("[{rows}, G], G a divisor of {columns}");
            return Err(Error::shape(op, "scales", expected, self.scales.shape()));
        }
        let beside = |operand, tensor: &Tensor, shape: Shape, dtype: DType| {
            if tensor.shape() != shape {
                return Err(Error::shape(op, operand, format!("{shape:?}"), tensor.shape()));
            }
            if tensor.dtype() != dtype {
                return Err(Error::dtype(op, operand, dtype.name(), tensor.dtype()));
            }
            match tensor.device() == self.codes.device() {
                true => Ok(()),
                false => Err(Error::DeviceMismatch { op, operand }),
            }
        };
        beside("codes", &self.codes, self.codes.shape(), DType::U8)?;
        beside("scales", &self.scales, self.scales.shape(), DType::F32)?;
        self.mins.as_ref().map_or(Ok(()), |mins| beside("mins", mins, self.scales.shape(), DType::F32))?;
        Ok((rows, columns))
    }
}

/// A [`Quantized`] matrix as the CPU multiplies by it: in panels of [`ROWS`](Self::ROWS) rows, on the CPU.
///
/// | tensor   | shape            |                                                                                     |
/// |----------|------------------|-------------------------------------------------------------------------------------|
/// | `codes`  | `[N / 32, K, W]` | u8; `W` is 32, or 16 with [`Bits::Four`]: rows `i` and `i + 16` of a panel share a byte |
/// | `scales` | `[N / 32, G, 32]`| f32                                                                                 |
/// | `mins`   | `[N / 32, G, 32]`| f32, optional                                                                       |
pub struct Panels {
    pub bits: Bits,
    pub codes: Tensor,
    pub scales: Tensor,
    pub mins: Option<Tensor>,
}

impl Panels {
    /// Rows of a panel.
    pub const ROWS: usize = 32;

    /// Of codes, scales and minima.
    pub fn bytes(&self) -> usize {
        [Some(&self.codes), Some(&self.scales), self.mins.as_ref()].into_iter().flatten().map(Tensor::bytes).sum()
    }

    /// `N`, and `K`, which is not 0.
    ///
    /// # Errors
    /// Tensors of other shapes or types than those above, or elsewhere.
    pub fn extents(&self, op: &'static str) -> Result<(usize, usize)> {
        let width = self.bits.bytes(Self::ROWS);
        let &[panels, columns, found] = &*self.codes.shape() else {
            return Err(Error::shape(op, "codes", format!("[N / 32, K, {width}]"), self.codes.shape()));
        };
        if found != width || columns == 0 {
            return Err(Error::shape(op, "codes", format!("[N / 32, K, {width}]"), self.codes.shape()));
        }
        let groups = self.scales.shape().get(1).copied().unwrap_or(0);
        if *self.scales.shape() != [panels, groups, Self::ROWS] || groups == 0 || !columns.is_multiple_of(groups) {
            let expected = format!("[{panels}, G, 32], G a divisor of {columns}");
            return Err(Error::shape(op, "scales", expected, self.scales.shape()));
        }
        if let Some(mins) = self.mins.as_ref().filter(|mins| mins.shape() != self.scales.shape()) {
            return Err(Error::shape(op, "mins", format!("{:?}", self.scales.shape()), mins.shape()));
        }
        for (operand, tensor, dtype) in
            [("codes", Some(&self.codes), DType::U8), ("scales", Some(&self.scales), DType::F32), ("mins", self.mins.as_ref(), DType::F32)]
        {
            let Some(tensor) = tensor else { continue };
            if tensor.dtype() != dtype {
                return Err(Error::dtype(op, operand, dtype.name(), tensor.dtype()));
            }
            if tensor.device() != Device::Cpu {
                return Err(Error::DeviceMismatch { op, operand });
            }
        }
        Ok((panels * Self::ROWS, columns))
    }
}
