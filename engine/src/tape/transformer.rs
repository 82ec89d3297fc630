//! What transformers are made of.

use std::rc::Rc;

use swara_kernels::ops::attention::{self, Mask, Positions};
use swara_kernels::ops::matmul::{self, Transpose};
use swara_kernels::ops::rope::{self, Rope};
use swara_kernels::ops::{conv1d, cross_entropy, layer_norm, rms_norm};
use swara_kernels::{Result, Tensor};

use super::{Tape, Var};

impl Tape {
    /// The `rows` of `x [N, C]` from `first` on.
    pub fn rows(&self, x: &Var, first: usize, rows: usize) -> Result<Var> {
        let width = x.value.shape().last_dim();
        let value = x.value.part(first.saturating_mul(width), [rows, width])?;
        let whole = x.value.clone();
        Ok(self.record(&[x], value, move |dy, _| {
            let mut dx = Tensor::zeros(&whole.device(), whole.dtype(), whole.shape())?;
            dx.write_rows(first, &dy)?;
            Ok(vec![Some(dx)])
        }))
    }

    /// `x [.., K]` times the transpose of `weight [N, K]`.
    pub fn linear(&self, x: &Var, weight: &Var) -> Result<Var> {
        let product = self.product(&weight.value, 1);
        let (x_value, w_value) = (self.operand(product, &x.value)?, self.operand(product, &weight.value)?);
        let by = |transpose| move |a: &Tensor, b: &Tensor, _: Option<&Tensor>| matmul::forward(a, b, transpose);
        let value = product.of([&x_value, &w_value], None, by(Transpose { a: false, b: true }))?;
        Ok(self.record(&[x, weight], value, move |dy, needed| {
            let dy = product.gradient(&dy)?.unwrap_or(dy);
            let dx = if needed[0] { Some(product.of([&dy, &w_value], None, by(Transpose::default()))?) } else { None };
            let dw = if needed[1] {
                let rows = x_value.shape().rows();
                let flat = x_value.copy()?.reshape([rows, x_value.shape().last_dim()])?;
                let dy = dy.reshape([rows, w_value.shape()[0]])?;
                let transpose = Transpose { a: true, b: false };
                Some(product.sums([&dy, &flat], |to, dy, x| matmul::forward_in(to, dy, x, transpose))?)
            } else {
                None
            };
            Ok(vec![dx, dw])
        }))
    }

    /// `factors [C]` times every row of `x [B, T, C]`.
    pub fn scale_channels(&self, x: &Var, factors: &Var) -> Result<Var> {
        let channels = factors.value.elements();
        let taps = self.reshape(factors, [1, 1, channels])?;
        self.conv1d(x, &taps, None, None, conv1d::Geometry { groups: channels, ..Default::default() })
    }

    pub fn layer_norm(&self, x: &Var, weight: &Var, bias: &Var, epsilon: f64) -> Result<Var> {
        let value = layer_norm::forward(&x.value, &weight.value, &bias.value, epsilon)?;
        let (x_value, w_value) = (x.value.clone(), weight.value.clone());
        Ok(self.record(&[x, weight, bias], value, move |dy, needed| {
            let (dx, dweight, dbias) = layer_norm::backward(&dy, &x_value, &w_value, epsilon)?;
            Ok(vec![needed[0].then_some(dx), needed[1].then_some(dweight), needed[2].then_some(dbias)])
        }))
    }

    pub fn rms_norm(&self, x: &Var, weight: &Var, epsilon: f64) -> Result<Var> {
        let value = rms_norm::forward(&x.value, &weight.value, epsilon)?;
        let (x_value, w_value) = (x.value.clone(), weight.value.clone());
        Ok(self.record(&[x, weight], value, move |dy, needed| {
            let (dx, dweight) = rms_norm::backward(&dy, &x_value, &w_value, epsilon)?;
            Ok(vec![needed[0].then_some(dx), needed[1].then_some(dweight)])
        }))
    }

    /// `weight` times the cross-entropy of `logits [N, V]` with `targets` i32 `[N]`, -1 for none, as a mean by `weights [N]`. The returned
    /// value is unweighted.
    pub fn cross_entropy(&self, logits: &Var, targets: Tensor, weights: Tensor, weight: f64) -> Result<Var> {
        let found = cross_entropy::forward(&logits.value, &targets, &weights)?;
        let (value, saved) = (found.loss.copy()?, logits.value.clone());
        Ok(self.record_loss(logits, value, move || cross_entropy::backward(&found, &saved, &targets, &weights, weight)))
    }

    /// `x [B, T, H, D]` turned by the positions `0 .. T`.
    pub fn rope(&self, x: &Var, by: &Rc<Rope>) -> Result<Var> {
        let positions = Positions::new(&x.value.device(), x.value.shape()[0])?;
        let value = rope::forward(&x.value, by, &positions)?;
        let by = by.clone();
        Ok(self.record(&[x], value, move |dy, _| Ok(vec![Some(rope::backward(&dy, &by, &positions)?)])))
    }

    /// Of `q [B, T, Hq, D]` to `k` and `v [B, S, Hkv, D]`.
    pub fn attention(&self, [q, k, v]: [&Var; 3], mask: Mask) -> Result<Var> {
        let (value, logsum) = attention::forward(&q.value, &k.value, &v.value, mask)?;
        let saved = [q, k, v].map(|var| var.value.clone());
        let y = Rc::new(value);
        let output = y.clone();
        let backward = move |dy: Tensor, needed: &[bool]| {
            let gradients = attention::backward(&dy, &saved[0], &saved[1], &saved[2], &output, &logsum, mask)?;
            Ok(gradients.into_iter().zip(needed).map(|(gradient, needed)| needed.then_some(gradient)).collect())
        };
        Ok(self.record(&[q, k, v], y, backward))
    }
}
