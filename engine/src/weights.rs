//! Where a model's tensors come from, and the types that they are kept in.

use std::collections::BTreeMap;

use swara_kernels::ops::elementwise;
use swara_kernels::{DType, Device, Tensor};

use crate::{Error, Result};

/// Folded weights by name.
pub type Weights = BTreeMap<String, Tensor>;

/// Gives a model's tensors by name, in memory layout.
pub(crate) trait Source {
    fn read(&self, name: &str, dtype: DType) -> Result<Tensor>;
}

impl Source for Weights {
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
}

impl<'a> Reader<'a> {
    /// Weights are stored in `dtype`. The CPU computes in f32 beside bf16.
    pub fn new(source: &'a dyn Source, device: &Device, dtype: DType) -> Reader<'a> {
        Reader { source, dtype, values: values_dtype(device, dtype), bytes: 0 }
    }

    /// Of weights.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Of what was read.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn weight(&mut self, name: &str) -> Result<Tensor> {
        self.read(name, self.dtype)
    }

    /// What is added to values.
    pub fn bias(&mut self, name: &str) -> Result<Tensor> {
        self.read(name, self.values)
    }

    pub fn parameter(&mut self, name: &str) -> Result<Tensor> {
        self.read(name, parameter_dtype(self.values))
    }

    fn read(&mut self, name: &str, dtype: DType) -> Result<Tensor> {
        let tensor = self.source.read(name, dtype)?;
        self.bytes += tensor.bytes();
        Ok(tensor)
    }
}
