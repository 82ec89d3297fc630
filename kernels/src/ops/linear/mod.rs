//! A linear layer with what usually follows it fused in: `y = residual + scale activation(x W^T + bias)`.
//!
//! | tensor     | shape     |                                                                                                  |
//! |------------|-----------|--------------------------------------------------------------------------------------------------|
//! | `x`        | `[.., K]` | f32, bf16 or f16 on CUDA, f32 or f64 on the CPU                                                  |
//! | weight     | `[N, K]`  | as PyTorch stores it, of the type of `x` (on the CPU also bf16 beside f32); prepared once by [`Weight::new`]. Or [`Quantized`], beside any type |
//! | `bias`     | `[N]`     | optional; f32 beside narrower types (f64 beside f64)                                             |
//! | `scale`    | `[H]`     | optional (layer scale); as `bias`                                                                |
//! | `residual` | `[.., H]` | optional; as `x`                                                                                 |
//! | `y`        | `[.., H]` | `H = N`; with [`Activation::SiluGate`] `H = N / 2`: `silu(u[h]) u[H + h]`, `u = x W^T + bias`    |
//!
//! Sums in f32, rounded once, after the residual. The order of a sum depends on `K`, the type and the weight's [`Product`], never on
//! the number of rows: on the CPU one chain in ascending order, on CUDA as `linear.cu` says. So a row's result does not depend on
//! the other rows. On the CPU a product with [`Quantized`] weights is bit for bit that with their values.
//! Sources: `torch.nn.functional.linear`; the gate is that of Moshi's `modules/gating.py`.

mod cases;
mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::case::Op;
use crate::cpu::gemm::Packed;
use crate::driver::Source;
use crate::driver::source::{ALL_ARCHS, FROM_SM_80};
use crate::ops::check;
use crate::quantized::{Panels, Quantized};
use crate::{DType, Device, Error, Result, Shape, Tensor, dispatch_real, dispatch_stored, span};

pub static SOURCE: Source = Source { path: "ops/linear/linear.cu", text: include_str!("linear.cu"), archs: ALL_ARCHS };
pub static HOPPER: Source = Source { path: "ops/linear/hopper.cu", text: include_str!("hopper.cu"), archs: &[90] };
pub static LOW_BIT: Source = Source { path: "ops/linear/low_bit.cu", text: include_str!("low_bit.cu"), archs: ALL_ARCHS };
pub static TF32: Source = Source { path: "ops/linear/tf32.cu", text: include_str!("tf32.cu"), archs: FROM_SM_80 };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE, &HOPPER, &LOW_BIT, &TF32], cases: cases::cases };

const NAME: &str = "linear";

/// Weights `[N, K]`, in the form that the device multiplies by.
pub struct Weight {
    prepared: Prepared,
    device: Device,
    /// None: codes, which suit any.
    dtype: Option<DType>,
    outputs: usize,
    inputs: usize,
    product: Product,
}

/// How CUDA multiplies. They sum in different orders, so a model chooses for each of its layers; the CPU has one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Product {
    /// Reads the weights once for up to 16 rows: for steps of a few streams.
    #[default]
    FewRows,
    /// Tiles, on tensor cores for bf16 and f16: for training and long inputs.
    Tiles,
    /// As [`Product::Tiles`], f32 on tensor cores as well from sm_80: each product as three of tf32, with an
    /// error of at most 2^-21. Infinities, and what rounds to one in tf32, become NaN.
    Tf32x3,
    /// Tiles by Hopper's own instructions (`wgmma`, copies by TMA): bf16 and f16 on sm_90, `K` a multiple of 8. Elsewhere, and for
    /// what else there is, as [`Product::Tiles`]. No GPU has run it yet ([`crate::ops::UNPROVEN`]), so nothing chooses it by itself.
    Wgmma,
}

enum Prepared {
    Cpu(Packed),
    Cuda(Tensor),
    CudaCodes(Quantized),
}

/// A matrix as it lies on a CUDA device.
pub(crate) enum Stored<'a> {
    Values(&'a Tensor),
    Codes(&'a Quantized),
}

impl Weight {
    /// Prepares `weight [N, K]` for the device it is on, in a copy.
    ///
    /// # Errors
    /// Other than two axes, no inputs, or a type that the device does not store.
    pub fn new(weight: &Tensor) -> Result<Weight> {
        Weight::for_product(weight, Product::default())
    }

    /// As [`Weight::new`], with a choice of how CUDA multiplies.
    pub fn for_product(weight: &Tensor, product: Product) -> Result<Weight> {
        let &[outputs, inputs @ 1..=usize::MAX] = &*weight.shape() else {
            return Err(Error::shape(NAME, "weight", "[N, K > 0]", weight.shape()));
        };
        let prepared = match (weight.device(), weight.dtype()) {
            (Device::Cuda(_), DType::F32 | DType::BF16 | DType::F16) => Prepared::Cuda(weight.copy()?),
            (Device::Cuda(_), found) => return Err(Error::dtype(NAME, "weight", "f32, bf16 or f16 on CUDA", found)),
            (Device::Cpu, dtype) => {
                dispatch_stored!(NAME, dtype, W => cpu::pack::<W>(weight.as_slice()?, outputs, inputs)).map(Prepared::Cpu)?
            }
        };
        Ok(Weight { prepared, device: weight.device(), dtype: Some(weight.dtype()), outputs, inputs, product })
    }

    /// As [`Weight::new`], of codes. CUDA takes `K` and groups that are multiples of 32.
    pub fn quantized(weight: &Quantized) -> Result<Weight> {
        let (outputs, inputs) = weight.extents(NAME)?;
        let device = weight.device();
        let prepared = match device {
            Device::Cuda(_) => Prepared::CudaCodes(cuda::codes(weight, inputs)?),
            Device::Cpu => Prepared::Cpu(Packed::quantized(weight)?),
        };
        Ok(Weight { prepared, device, dtype: None, outputs, inputs, product: Product::FewRows })
    }

    /// As [`Weight::quantized`], of codes as the CPU wants them: no copy.
    pub fn panels(weight: Panels) -> Result<Weight> {
        let (outputs, inputs) = weight.extents(NAME)?;
        let prepared = Prepared::Cpu(Packed::of_panels(weight)?);
        Ok(Weight { prepared, device: Device::Cpu, dtype: None, outputs, inputs, product: Product::FewRows })
    }

    /// What CUDA reads for few rows of x of type `dtype`, and how many threads share a sum; none for another product, or for rows that
    /// are not whole vectors.
    pub(crate) fn few_rows(&self, dtype: DType) -> Option<(Stored<'_>, usize)> {
        match &self.prepared {
            Prepared::Cuda(weight) if self.product == Product::FewRows && weight.dtype() == dtype => {
                let group = cuda::values_group(self.inputs, dtype)?;
                Some((Stored::Values(weight), group))
            }
            Prepared::CudaCodes(weight) => Some((Stored::Codes(weight), cuda::codes_group(self.inputs, weight.bits, dtype))),
            _ => None,
        }
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Of what is stored.
    pub fn bytes(&self) -> usize {
        match &self.prepared {
            Prepared::Cpu(packed) => packed.bytes(),
            Prepared::Cuda(weight) => weight.bytes(),
            Prepared::CudaCodes(weight) => weight.bytes(),
        }
    }

    /// `N`.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// `K`.
    pub fn inputs(&self) -> usize {
        self.inputs
    }
}

/// What is applied to the sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    #[default]
    None,
    /// With the error function.
    Gelu,
    Silu,
    /// The first half of the outputs, through [`Activation::Silu`], times the second half.
    SiluGate,
}

/// What is fused behind the product.
#[derive(Clone, Copy, Default)]
pub struct Fused<'a> {
    pub bias: Option<&'a Tensor>,
    pub activation: Activation,
    pub scale: Option<&'a Tensor>,
    pub residual: Option<&'a Tensor>,
}

/// `residual + scale activation(x W^T + bias)`.
///
/// # Errors
/// Shapes, types or devices that do not fit; a gate over an odd number of outputs.
pub fn forward(x: &Tensor, weight: &Weight, fused: Fused) -> Result<Tensor> {
    let _span = span::op("linear.forward");
    let mut y = output(x, weight, &fused)?;
    if y.elements() == 0 {
        return Ok(y);
    }
    match (&weight.prepared, x.device()) {
        (Prepared::Cuda(w), Device::Cuda(gpu)) => cuda::forward(&gpu, &mut y, x, w, weight.product, &fused)?,
        (Prepared::CudaCodes(w), Device::Cuda(gpu)) => cuda::by_codes(&gpu, &mut y, x, w, &fused)?,
        (Prepared::Cpu(w), Device::Cpu) => dispatch_real!(NAME, x.dtype(), T => cpu::forward::<T>(&mut y, x, w, &fused))?,
        _ => return Err(Error::DeviceMismatch { op: NAME, operand: "weight" }),
    }
    Ok(y)
}

/// Checks every operand; `y` without its contents.
fn output(x: &Tensor, weight: &Weight, fused: &Fused) -> Result<Tensor> {
    check::prepared(NAME, x, &weight.device, weight.dtype)?;
    let mut shape = [0; Shape::MAX_RANK];
    let rank = x.shape().len();
    shape[..rank].copy_from_slice(&x.shape());
    let Some(last) = shape[..rank].last_mut().filter(|&&mut k| k == weight.inputs) else {
        return Err(Error::shape(NAME, "x", format!("[.., {}]", weight.inputs), x.shape()));
    };
    *last = match fused.activation {
        Activation::SiluGate if !weight.outputs.is_multiple_of(2) => {
            return Err(Error::argument(NAME, format!("a gate over {} outputs, which have no halves", weight.outputs)));
        }
        Activation::SiluGate => weight.outputs / 2,
        _ => weight.outputs,
    };
    let width = *last;
    let y = Tensor::empty(&x.device(), x.dtype(), Shape::try_from(&shape[..rank])?)?;
    fused.bias.map_or(Ok(()), |bias| check::parameter(NAME, x, "bias", bias, weight.outputs))?;
    fused.scale.map_or(Ok(()), |scale| check::parameter(NAME, x, "scale", scale, width))?;
    fused.residual.map_or(Ok(()), |residual| check::same(NAME, &y, "residual", residual))?;
    Ok(y)
}
