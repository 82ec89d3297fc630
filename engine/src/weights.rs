//! Where a model's tensors come from, and the types that they are kept in.

use std::collections::BTreeMap;

use swara_kernels::ops::conv1d;
use swara_kernels::ops::elementwise;
use swara_kernels::ops::linear::Weight as Matrix;
use swara_kernels::quantized::{Bits, Panels, Quantized};
use swara_kernels::{DType, Device, Element, Tensor};
use swara_loader::quantized as codes;

use crate::{Error, Result};

/// Folded weights by name.
pub type Weights = BTreeMap<String, Tensor>;

/// Gives a model's tensors by name, in memory layout.
pub(crate) trait Source: Sync {
    fn read(&self, name: &str, dtype: DType) -> Result<Tensor>;

    /// The tensor itself, where it is in memory already.
    fn there(&self, _name: &str) -> Option<&Tensor> {
        None
    }

    /// The codes of a matrix that is kept so.
    fn quantized(&self, _name: &str) -> Result<Option<Quantized>> {
        Ok(None)
    }

    /// The same as the CPU multiplies by them, where they lie so and it is the CPU that is to.
    fn panels(&self, _name: &str) -> Result<Option<Panels>> {
        Ok(None)
    }
}

/// Codes on the CPU, in the panels that they lie in, one below the other; None where they are not alike.
pub(crate) fn in_panels(parts: &[codes::Panels]) -> Result<Option<Panels>> {
    let kind = |part: &codes::Panels| (part.columns(), part.bits(), part.group(), part.mins().is_some());
    let Some(first) = parts.first().filter(|first| parts.iter().all(|part| kind(part) == kind(first))) else { return Ok(None) };
    let (count, columns, bits) = (parts.iter().map(|part| part.rows() / Panels::ROWS).sum::<usize>(), first.columns(), of(first.bits()));
    let scales = |of: &[&[f32]]| stacked(of, [count, columns / first.group(), Panels::ROWS]);
    let mins = parts.iter().map(codes::Panels::mins).collect::<Option<Vec<_>>>();
    Ok(Some(Panels {
        bits,
        codes: stacked(&parts.iter().map(codes::Panels::codes).collect::<Vec<_>>(), [count, columns, bits.bytes(Panels::ROWS)])?,
        scales: scales(&parts.iter().map(codes::Panels::scales).collect::<Vec<_>>())?,
        mins: mins.map(|mins| scales(&mins)).transpose()?,
    }))
}

/// Elements one after the other, on the CPU.
fn stacked<T: Element>(parts: &[&[T]], shape: [usize; 3]) -> Result<Tensor> {
    let mut all = Tensor::empty(&Device::Cpu, T::DTYPE, shape)?;
    let mut rest = all.as_mut_slice::<T>()?;
    for part in parts {
        let (to, more) = rest.split_at_mut(part.len().min(rest.len()));
        to.copy_from_slice(part);
        rest = more;
    }
    Ok(all)
}

fn of(bits: codes::Bits) -> Bits {
    match bits {
        codes::Bits::Four => Bits::Four,
        codes::Bits::Eight => Bits::Eight,
    }
}

/// A matrix of codes on `device`.
pub(crate) fn upload(device: &Device, matrix: &codes::Quantized) -> Result<Quantized> {
    let (rows, groups, bits) = (matrix.rows(), matrix.columns() / matrix.group(), of(matrix.bits()));
    let scales = |values: &[f32]| Tensor::from_slice(device, values, [rows, groups]);
    Ok(Quantized {
        bits,
        codes: Tensor::from_slice(device, matrix.codes(), [rows, bits.bytes(matrix.columns())])?,
        scales: scales(matrix.scales())?,
        mins: matrix.mins().map(scales).transpose()?,
    })
}

/// Columns that share a scale where 4-bit codes are made here, if they divide a row.
const GROUPS: [usize; 2] = [64, 32];

/// Fewer weights than that are read in no time, and panels of codes are wide.
pub(crate) const LEAST_CODES: usize = 1 << 12;

/// `tensor`, converted unless it is of that type.
pub(crate) fn as_type(tensor: Tensor, dtype: DType) -> Result<Tensor> {
    Ok(if tensor.dtype() == dtype { tensor } else { elementwise::convert(&tensor, dtype)? })
}

/// Rounds to the nearest codes: of 8 bits with a scale a row, of 4 with a scale for every 64 columns, or 32, or a row.
pub(crate) fn quantize(name: &str, shape: [usize; 2], bits: Bits, values: &[f32]) -> Result<codes::Quantized> {
    let columns = shape[1];
    let quantized = match bits {
        Bits::Four if columns.is_multiple_of(2) => {
            let group = GROUPS.into_iter().find(|&group| columns.is_multiple_of(group)).unwrap_or(columns);
            codes::Quantized::int4(shape, group, values)
        }
        Bits::Four | Bits::Eight => codes::Quantized::int8(shape, columns, values),
    };
    quantized.map_err(|why| Error::Argument(format!("tensor {name} in {bits:?}-bit codes: {why}")))
}

/// A matrix in f32 as the nearest codes, where it is.
pub(crate) fn quantized(name: &str, values: &Tensor, bits: Bits) -> Result<Quantized> {
    let &[rows, columns] = &*values.shape() else {
        return Err(Error::Argument(format!("tensor {name} of shape {:?} is no matrix", values.shape())));
    };
    let device = values.device();
    // A matrix may be a tenth of a model: no copy of it where it can be seen.
    let codes = match device {
        Device::Cpu => quantize(name, [rows, columns], bits, values.as_slice()?)?,
        Device::Cuda(_) => quantize(name, [rows, columns], bits, &values.to_vec()?)?,
    };
    upload(&device, &codes)
}

/// A tensor that its source keeps, or that was read for the one who asked.
pub(crate) enum Held<'a> {
    There(&'a Tensor),
    Read(Tensor),
}

impl Held<'_> {
    pub fn into_tensor(self) -> Result<Tensor> {
        match self {
            Held::There(tensor) => Ok(tensor.copy()?),
            Held::Read(tensor) => Ok(tensor),
        }
    }
}

impl std::ops::Deref for Held<'_> {
    type Target = Tensor;
    fn deref(&self) -> &Tensor {
        match self {
            Held::There(tensor) => tensor,
            Held::Read(tensor) => tensor,
        }
    }
}

impl Source for Weights {
    fn there(&self, name: &str) -> Option<&Tensor> {
        self.get(name)
    }

    fn read(&self, name: &str, dtype: DType) -> Result<Tensor> {
        Ok(elementwise::convert(find(self, name)?, dtype)?)
    }
}

pub(crate) fn find<'a>(weights: &'a Weights, name: &str) -> Result<&'a Tensor> {
    weights.get(name).ok_or_else(|| Error::MissingTensor(name.to_owned()))
}

/// The type of the values in a model of this type: the CPU keeps weights in bf16, but computes in f32.
pub(crate) fn values_dtype(device: &Device, dtype: DType) -> DType {
    if *device == Device::Cpu && dtype == DType::BF16 { DType::F32 } else { dtype }
}

/// What per-channel parameters beside values of type `dtype` are stored in.
fn parameter_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Takes a model's tensors in the types that its operations want, and counts them.
pub(crate) struct Reader<'a> {
    source: &'a dyn Source,
    dtype: DType,
    values: DType,
    bytes: usize,
    /// Of codes that matrices are rounded to, unless they are codes already.
    pub bits: Option<Bits>,
}

impl<'a> Reader<'a> {
    /// Weights are stored in `dtype`. The CPU computes in f32 beside bf16.
    pub fn new(source: &'a dyn Source, device: &Device, dtype: DType) -> Reader<'a> {
        Reader { source, dtype, values: values_dtype(device, dtype), bytes: 0, bits: None }
    }

    /// A reader of the same, for another thread, that counts its own.
    pub fn beside(&self) -> Reader<'a> {
        Reader { bytes: 0, ..*self }
    }

    /// A reader of the same as f32, that counts its own.
    pub fn in_f32(&self) -> Reader<'a> {
        Reader { dtype: DType::F32, bytes: 0, ..*self }
    }

    /// Of weights.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Of what was read.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn weight(&mut self, name: &str) -> Result<Held<'a>> {
        let held = self.hold(name, self.dtype)?;
        self.bytes += held.bytes();
        Ok(held)
    }

    /// What rows are multiplied by.
    pub fn matrix(&mut self, name: &str) -> Result<Matrix> {
        if let Some(panels) = self.panels(name)? {
            return Ok(Matrix::panels(panels)?);
        }
        match self.codes(name)? {
            Some(codes) => Ok(Matrix::quantized(&codes)?),
            None => Ok(Matrix::new(&*self.weight(name)?)?),
        }
    }

    /// `N` matrices of the same shape, one below the other in a tensor.
    pub fn matrices<const N: usize>(&mut self, name: &str) -> Result<[Matrix; N]> {
        let part = |i: usize, t: &Tensor| t.part(i * (t.elements() / N), [t.shape().rows() / N, t.shape().last_dim()]);
        let all: Vec<Matrix> = match self.codes(name)? {
            Some(Quantized { bits, codes, scales, mins }) => {
                let mins = |i| mins.as_ref().map(|mins| part(i, mins)).transpose();
                let of =
                    |i| -> Result<Quantized> { Ok(Quantized { bits, codes: part(i, &codes)?, scales: part(i, &scales)?, mins: mins(i)? }) };
                (0..N).map(|i| Ok(Matrix::quantized(&of(i)?)?)).collect::<Result<_>>()?
            }
            None => {
                let held = self.weight(name)?;
                (0..N).map(|i| Ok(Matrix::new(&part(i, &held)?)?)).collect::<Result<_>>()?
            }
        };
        all.try_into().map_err(|_| Error::Argument(format!("tensor {name} is not {N} matrices")))
    }

    /// Of a matrix that is kept so, or is to be.
    fn codes(&mut self, name: &str) -> Result<Option<Quantized>> {
        let codes = match (self.source.quantized(name)?, self.bits) {
            (None, None) => return Ok(None),
            (None, Some(bits)) => {
                let values = self.hold(name, DType::F32)?;
                quantized(name, &values, bits)?
            }
            (Some(codes), _) => codes,
        };
        self.bytes += codes.bytes();
        Ok(Some(codes))
    }

    /// A table that its source has as codes of 8 bits with a scale a row.
    pub fn table(&mut self, name: &str) -> Result<Option<Quantized>> {
        let codes = self.source.quantized(name)?.filter(|found| found.bits == Bits::Eight && found.mins.is_none());
        let codes = codes.filter(|found| found.scales.shape().last_dim() == 1);
        self.bytes += codes.as_ref().map_or(0, Quantized::bytes);
        Ok(codes)
    }

    fn panels(&mut self, name: &str) -> Result<Option<Panels>> {
        let panels = self.source.panels(name)?;
        self.bytes += panels.as_ref().map_or(0, Panels::bytes);
        Ok(panels)
    }

    /// The filters of a convolution of so many taps.
    pub fn convolution(&mut self, name: &str, taps: usize, geometry: &conv1d::Geometry) -> Result<conv1d::Weight> {
        if let Some(panels) = self.panels(name)? {
            return Ok(conv1d::Weight::panels(panels, taps)?);
        }
        Ok(match self.filters(name, geometry.groups)? {
            Some(codes) => conv1d::Weight::quantized(&codes, taps)?,
            None => conv1d::Weight::new(&*self.weight(name)?, geometry)?,
        })
    }

    /// Filters `[taps, Cin, Cout]` of a convolution of one group as codes `[Cout, taps Cin]`; none where values are kept, or too few to
    /// weigh.
    pub fn filters(&mut self, name: &str, groups: usize) -> Result<Option<Quantized>> {
        if let Some(codes) = self.source.quantized(name)? {
            self.bytes += codes.bytes();
            return Ok(Some(codes));
        }
        let Some(bits) = self.bits.filter(|_| groups == 1) else { return Ok(None) };
        let values = self.hold(name, DType::F32)?;
        let &[taps, cin, cout] = &*values.shape() else { return Ok(None) };
        if values.elements() < LEAST_CODES {
            return Ok(None);
        }
        let depth = taps * cin;
        let rows = codes::transposed(values.as_slice()?, depth, cout);
        let codes = upload(&Device::Cpu, &quantize(name, [cout, depth], bits, &rows)?)?;
        self.bytes += codes.bytes();
        Ok(Some(codes))
    }

    /// What is added to values.
    pub fn bias(&mut self, name: &str) -> Result<Tensor> {
        self.read(name, self.values)
    }

    pub fn parameter(&mut self, name: &str) -> Result<Tensor> {
        self.read(name, parameter_dtype(self.values))
    }

    /// As [`parameter`](Self::parameter), of values that are not its source's.
    pub fn beside_values(&self, device: &Device, values: &[f32]) -> Result<Tensor> {
        as_type(Tensor::from_slice(device, values, [values.len()])?, parameter_dtype(self.values))
    }

    fn hold(&self, name: &str, dtype: DType) -> Result<Held<'a>> {
        match self.source.there(name).filter(|tensor| tensor.dtype() == dtype) {
            Some(tensor) => Ok(Held::There(tensor)),
            None => Ok(Held::Read(self.source.read(name, dtype)?)),
        }
    }

    fn read(&mut self, name: &str, dtype: DType) -> Result<Tensor> {
        let tensor = self.source.read(name, dtype)?;
        self.bytes += tensor.bytes();
        Ok(tensor)
    }
}
