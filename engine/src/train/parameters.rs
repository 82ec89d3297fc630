//! Learnt tensors, and how they learn.

use std::collections::BTreeMap;
use std::rc::Rc;

use swara_kernels::ops::adamw::{self, AdamW};
use swara_kernels::ops::{elementwise, reduce};
use swara_kernels::{DType, Device, Shape, Tensor};

use super::config::{Decayed, Optimizer};
use crate::codec::model::{Layout, TensorSpec};
use crate::tape::{Gradients, Tape, Var};
use crate::{Error, Result};

/// A learnt tensor with its optimiser state.
pub struct Parameter {
    pub spec: TensorSpec,
    pub value: Rc<Tensor>,
    pub first_moment: Tensor,
    pub second_moment: Tensor,
}

impl Parameter {
    pub fn new(spec: TensorSpec, values: &BTreeMap<String, Vec<f64>>, device: &Device, dtype: DType) -> Result<Parameter> {
        let values = values.get(&spec.name).ok_or_else(|| Error::MissingTensor(spec.name.clone()))?;
        let shape = Shape::try_from(&spec.shape()[..])?;
        let zeros = || Tensor::zeros(device, dtype, shape);
        let value = Rc::new(Tensor::from_f64(device, dtype, values, shape)?);
        Ok(Parameter { value, first_moment: zeros()?, second_moment: zeros()?, spec })
    }

    fn decays(&self, which: Decayed) -> bool {
        match which {
            Decayed::All => true,
            Decayed::Transformer => self.spec.name.contains("transformer"),
            Decayed::Weights => match self.spec.layout {
                Layout::Conv | Layout::ConvTranspose => true,
                Layout::Plain => self.spec.published.len() == 2 && !self.spec.name.ends_with("codebook.weight"),
                _ => false,
            },
        }
    }
}

/// Every parameter as a leaf of `tape`, in order.
pub fn leaves(parameters: &[Parameter], tape: &Tape) -> Vec<Var> {
    parameters.iter().map(|p| tape.leaf(p.value.clone())).collect()
}

pub fn by_name(parameters: &[Parameter], vars: &[Var]) -> BTreeMap<String, Var> {
    parameters.iter().zip(vars).map(|(p, var)| (p.spec.name.clone(), var.clone())).collect()
}

/// Every parameter as a constant.
pub fn constants(parameters: &[Parameter]) -> BTreeMap<String, Var> {
    parameters.iter().map(|p| (p.spec.name.clone(), Var::from_shared(&p.value))).collect()
}

/// The gradients of `leaves`, in order; zeros where nothing depends on one.
pub fn gradients(leaves: &[Var], found: &mut Gradients) -> Result<Vec<Tensor>> {
    let zeros = |leaf: &Var| Tensor::zeros(&leaf.value().device(), leaf.value().dtype(), leaf.value().shape());
    Ok(leaves.iter().map(|leaf| found.take(leaf).map_or_else(|| zeros(leaf), Ok)).collect::<swara_kernels::Result<_>>()?)
}

/// `sum += part`, element by element of both.
pub fn accumulate(sum: &mut Option<Vec<Tensor>>, part: Vec<Tensor>) -> Result<()> {
    match sum {
        None => *sum = Some(part),
        Some(sum) => sum.iter_mut().zip(&part).try_for_each(|(sum, part)| elementwise::add_assign(sum, part))?,
    }
    Ok(())
}

/// Sum of the squares of all of them, `[1]`.
pub fn energy(gradients: &[Tensor]) -> Result<Tensor> {
    let mut energies = gradients.iter().map(reduce::sum_squares);
    let mut sum = energies.next().ok_or_else(|| Error::Argument("nothing to learn".into()))??;
    energies.try_for_each(|energy| elementwise::add_assign(&mut sum, &energy?))?;
    Ok(sum)
}

/// Step number `step` of the optimiser, from 0.
pub fn learn(parameters: &mut [Parameter], gradients: &[Tensor], energy: &Tensor, rules: &Optimizer, step: u64, steps: u64) -> Result<()> {
    let scale = adamw::clip_scale(energy, rules.clip)?;
    let lr = rules.rate(step, steps);
    for (parameter, gradient) in parameters.iter_mut().zip(gradients) {
        let weight_decay = if parameter.decays(rules.decayed) { rules.weight_decay } else { 0.0 };
        let adamw = AdamW { lr, beta1: rules.beta1, beta2: rules.beta2, eps: 1e-8, weight_decay };
        let value = Rc::get_mut(&mut parameter.value).ok_or_else(|| Error::Argument("a parameter is still on a tape".into()))?;
        adamw::step(value, gradient, &mut parameter.first_moment, &mut parameter.second_moment, &adamw, step + 1, Some(&scale))?;
    }
    Ok(())
}
