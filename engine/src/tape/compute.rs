//! What products compute in.
//!
//! In bf16 the operands of a product are rounded to it, once each, and so kept for its gradient; it sums in f32. What it gives is rounded
//! as well, as its kernel stores it and `torch.autocast` does, but goes on in f32; gradients of weights and biases are sums of f32
//! that nothing rounds. Exponents are those of f32, so that no loss needs scaling.
//!
//! Products are [`Tape::conv1d`](super::Tape::conv1d), [`Tape::conv_transpose1d`](super::Tape::conv_transpose1d),
//! [`Tape::conv2d`](super::Tape::conv2d) and [`Tape::linear`](super::Tape::linear). Those from or to a single channel, so waves and what discriminators say,
//! and of several groups have nothing to give to tensor cores, and are of f32 always; so is attention between its projections, whose
//! gradient has no tensor cores.
//!
//! The CPU has no products in bf16: there the operands are widened again, which gives the same sums of the same values.

use std::collections::HashMap;
use std::rc::{Rc, Weak};

use serde::{Deserialize, Serialize};
use swara_kernels::ops::elementwise;
use swara_kernels::{DType, Device, Result, Tensor};

use super::Tape;

/// What the operands of products are rounded to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// Nothing: they are as they are.
    #[default]
    F32,
    Bf16,
}

/// How one product computes.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub rounded: bool,
    /// Type of what is around it.
    wide: DType,
}

/// Operands by what they were rounded from, as long as both are there.
pub(super) type Operands = HashMap<*const Tensor, [Weak<Tensor>; 2]>;

impl Tape {
    /// Of a weight whose last two axes are channels.
    pub(super) fn product(&self, weight: &Tensor, groups: usize) -> Product {
        let channels = weight.shape().iter().rev().take(2).all(|&n| n > 1);
        Product { rounded: self.compute.get() == Compute::Bf16 && groups == 1 && channels, wide: weight.dtype() }
    }

    /// What `product` takes of `x`, and keeps.
    pub(super) fn operand(&self, product: Product, x: &Rc<Tensor>) -> Result<Rc<Tensor>> {
        if !product.rounded {
            return Ok(x.clone());
        }
        let mut operands = self.operands.borrow_mut();
        // An address is not given to another tensor as long as there is a weak reference.
        if let Some(known) = operands.get(&Rc::as_ptr(x)).and_then(|[_, rounded]| rounded.upgrade()) {
            return Ok(known);
        }
        let rounded = Rc::new(round(x)?);
        operands.insert(Rc::as_ptr(x), [x, &rounded].map(Rc::downgrade));
        Ok(rounded)
    }
}

impl Product {
    /// A gradient as an operand.
    pub fn gradient(self, dy: &Tensor) -> Result<Option<Tensor>> {
        self.rounded.then(|| round(dy)).transpose()
    }

    /// What `kernel` makes of two operands, and of a bias.
    pub fn of(
        self,
        [a, b]: [&Tensor; 2],
        bias: Option<&Tensor>,
        kernel: impl FnOnce(&Tensor, &Tensor, Option<&Tensor>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        if !self.rounded {
            return kernel(a, b, bias);
        }
        let bias = bias.map(round).transpose()?;
        let y = match a.device() {
            Device::Cpu => {
                let bias = bias.as_ref().map(|bias| self.widen(bias)).transpose()?;
                round(&kernel(&self.widen(a)?, &self.widen(b)?, bias.as_ref())?)?
            }
            Device::Cuda(_) => kernel(a, b, bias.as_ref())?,
        };
        self.widen(&y)
    }

    /// The gradient of a weight, which `kernel` makes of two operands in the type that it is told.
    pub fn sums(self, [a, b]: [&Tensor; 2], kernel: impl FnOnce(DType, &Tensor, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        match a.device() {
            Device::Cpu if self.rounded => kernel(self.wide, &self.widen(a)?, &self.widen(b)?),
            _ => kernel(self.wide, a, b),
        }
    }

    fn widen(self, x: &Tensor) -> Result<Tensor> {
        elementwise::convert(x, self.wide)
    }
}

/// To bf16, of f64 by way of f32.
fn round(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F64 => elementwise::convert(&elementwise::convert(x, DType::F32)?, DType::BF16),
        _ => elementwise::convert(x, DType::BF16),
    }
}
