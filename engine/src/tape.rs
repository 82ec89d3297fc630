//! Reverse-mode differentiation: a list of what was computed, walked backwards.
//!
//! An entry keeps what its backward needs and nothing else; the tape is dropped after every step. Losses are terminal: each
//! is recorded with its weight, and [`Tape::backward`] starts from all of them, [`Tape::backward_from`] from some. Gradients
//! of values used more than once add up in the order of the tape, so they do not depend on timing.

mod compute;
mod transformer;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use swara_kernels::ops::activation::{self, Activation};
use swara_kernels::ops::conv1d::{self, Fused};
use swara_kernels::ops::linear::Weight;
use swara_kernels::ops::{
    conv_transpose1d, conv2d, elementwise, loss, lstm, matmul, pad, peak_norm, reduce, rvq_search, snake, stft, weight_norm,
};
use swara_kernels::{Result, Tensor};

pub use self::compute::Compute;
use self::compute::Operands;

/// A tensor that may have a place on a tape.
#[derive(Clone)]
pub struct Var {
    value: Rc<Tensor>,
    node: Option<usize>,
}

impl Var {
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// A constant that shares its tensor.
    pub fn from_shared(value: &Rc<Tensor>) -> Var {
        Var { value: value.clone(), node: None }
    }

    pub fn shared(&self) -> Rc<Tensor> {
        self.value.clone()
    }

    /// The same place on the tape, under another value.
    pub fn told(&self, value: Tensor) -> Var {
        Var { value: Rc::new(value), node: self.node }
    }

    /// The same value, cut off from whatever computed it.
    pub fn detached(&self) -> Var {
        Var { value: self.value.clone(), node: None }
    }
}

impl From<Tensor> for Var {
    fn from(value: Tensor) -> Var {
        Var { value: Rc::new(value), node: None }
    }
}

/// Maps the gradient of an output to those of the inputs, in order; `None` where the input is not differentiated.
type Backward = Box<dyn Fn(Tensor, &[bool]) -> Result<Vec<Option<Tensor>>>>;

enum Entry {
    Leaf,
    Operation {
        inputs: Vec<Option<usize>>,
        backward: Backward,
    },
    /// Nothing is downstream of it: its gradient needs none.
    Loss {
        input: usize,
        gradient: Box<dyn Fn() -> Result<Tensor>>,
    },
}

#[derive(Default)]
pub struct Tape {
    entries: RefCell<Vec<Entry>>,
    compute: Cell<Compute>,
    operands: RefCell<Operands>,
}

/// Gradients of the leaves.
pub struct Gradients(Vec<Option<Tensor>>);

impl Gradients {
    fn of(entries: usize) -> Gradients {
        Gradients((0..entries).map(|_| None).collect())
    }

    /// From the gradient of `entry`, number `node`, to those of its inputs.
    fn pass(&mut self, node: usize, entry: &Entry) -> Result<()> {
        let found = match entry {
            Entry::Leaf => return Ok(()),
            Entry::Operation { inputs, backward } => {
                let Some(dy) = self.0[node].take() else { return Ok(()) };
                let needed: Vec<bool> = inputs.iter().map(Option::is_some).collect();
                inputs.iter().copied().zip(backward(dy, &needed)?).collect()
            }
            Entry::Loss { input, gradient } => vec![(Some(*input), Some(gradient()?))],
        };
        for (input, gradient) in found {
            let (Some(input), Some(gradient)) = (input, gradient) else { continue };
            match &mut self.0[input] {
                Some(sum) => elementwise::add_assign(sum, &gradient)?,
                empty => *empty = Some(gradient),
            }
        }
        Ok(())
    }

    /// Takes the gradient of `leaf`; `None` if no loss depends on it.
    pub fn take(&mut self, leaf: &Var) -> Option<Tensor> {
        self.0.get_mut(leaf.node?)?.take()
    }
}

impl Tape {
    pub fn new() -> Tape {
        Tape::default()
    }

    /// With products of another type: see [`Compute`].
    pub fn computing(compute: Compute) -> Tape {
        Tape { compute: Cell::new(compute), ..Tape::default() }
    }

    /// What `record` records, whose products round nothing.
    pub fn in_full<T>(&self, record: impl FnOnce() -> T) -> T {
        let before = self.compute.replace(Compute::F32);
        let recorded = record();
        self.compute.set(before);
        recorded
    }

    fn push(&self, entry: Entry) -> usize {
        let mut entries = self.entries.borrow_mut();
        entries.push(entry);
        entries.len() - 1
    }

    /// A value whose gradient is wanted.
    pub fn leaf(&self, value: Rc<Tensor>) -> Var {
        Var { value, node: Some(self.push(Entry::Leaf)) }
    }

    fn record(
        &self,
        inputs: &[&Var],
        value: impl Into<Rc<Tensor>>,
        backward: impl Fn(Tensor, &[bool]) -> Result<Vec<Option<Tensor>>> + 'static,
    ) -> Var {
        let inputs: Vec<_> = inputs.iter().map(|v| v.node).collect();
        let node = inputs.iter().any(Option::is_some).then(|| self.push(Entry::Operation { inputs, backward: Box::new(backward) }));
        Var { value: value.into(), node }
    }

    fn record_loss(&self, input: &Var, value: Tensor, gradient: impl Fn() -> Result<Tensor> + 'static) -> Var {
        let node = input.node.map(|input| self.push(Entry::Loss { input, gradient: Box::new(gradient) }));
        Var { value: Rc::new(value), node }
    }

    /// Takes `gradient` of `x` from losses that another tape holds.
    pub fn pull(&self, x: &Var, gradient: Tensor) {
        if let Some(input) = x.node {
            self.push(Entry::Loss { input, gradient: Box::new(move || gradient.copy()) });
        }
    }

    /// Gradients of the weighted sum of all losses recorded so far.
    pub fn backward(self) -> Result<Gradients> {
        drop(self.operands);
        let mut entries = self.entries.into_inner();
        let mut gradients = Gradients::of(entries.len());
        // What an entry kept is freed as soon as it was used.
        while let Some(entry) = entries.pop() {
            gradients.pass(entries.len(), &entry)?;
        }
        Ok(gradients)
    }

    /// Gradients of the weighted sum of some of the losses.
    pub fn backward_from(&self, losses: &[Var]) -> Result<Gradients> {
        let entries = self.entries.borrow();
        let mut gradients = Gradients::of(entries.len());
        for (node, entry) in entries.iter().enumerate().rev() {
            if !matches!(entry, Entry::Loss { .. }) || losses.iter().any(|loss| loss.node == Some(node)) {
                gradients.pass(node, entry)?;
            }
        }
        Ok(gradients)
    }

    pub fn add(&self, a: &Var, b: &Var) -> Result<Var> {
        let value = elementwise::add(&a.value, &b.value)?;
        Ok(self.record(&[a, b], value, |dy, needed| {
            let first = if needed[0] { Some(dy.copy()?) } else { None };
            Ok(vec![first, needed[1].then_some(dy)])
        }))
    }

    pub fn sub(&self, a: &Var, b: &Var) -> Result<Var> {
        let value = elementwise::sub(&a.value, &b.value)?;
        Ok(self.record(&[a, b], value, |dy, needed| {
            let second = if needed[1] { Some(elementwise::scale(&dy, -1.0)?) } else { None };
            Ok(vec![needed[0].then_some(dy), second])
        }))
    }

    /// Element by element.
    pub fn mul(&self, a: &Var, b: &Var) -> Result<Var> {
        let value = elementwise::mul(&a.value, &b.value)?;
        let (a_value, b_value) = (a.value.clone(), b.value.clone());
        Ok(self.record(&[a, b], value, move |dy, needed| {
            let by = |needed: bool, other: &Tensor| needed.then(|| elementwise::mul(&dy, other)).transpose();
            Ok(vec![by(needed[0], &b_value)?, by(needed[1], &a_value)?])
        }))
    }

    pub fn reshape(&self, x: &Var, shape: impl Into<swara_kernels::Shape>) -> Result<Var> {
        let from = x.value.shape();
        let value = x.value.copy()?.reshape(shape)?;
        Ok(self.record(&[x], value, move |dy, _| Ok(vec![Some(dy.reshape(from)?)])))
    }

    pub fn activation(&self, kind: Activation, x: &Var) -> Result<Var> {
        let value = activation::forward(kind, &x.value)?;
        let x_value = x.value.clone();
        Ok(self.record(&[x], value, move |dy, _| Ok(vec![Some(activation::backward(kind, &dy, &x_value)?)])))
    }

    pub fn snake(&self, x: &Var, alpha: &Var) -> Result<Var> {
        let value = snake::forward(&x.value, &alpha.value)?;
        let (x_value, alpha_value) = (x.value.clone(), alpha.value.clone());
        Ok(self.record(&[x, alpha], value, move |dy, needed| {
            let (dx, dalpha) = snake::backward(&dy, &x_value, &alpha_value)?;
            Ok(vec![needed[0].then_some(dx), needed[1].then_some(dalpha)])
        }))
    }

    pub fn weight_norm(&self, v: &Var, g: &Var, axis: weight_norm::Axis) -> Result<Var> {
        let value = weight_norm::forward(&v.value, &g.value, axis)?;
        let (v_value, g_value) = (v.value.clone(), g.value.clone());
        Ok(self.record(&[v, g], value, move |dw, needed| {
            let (dv, dg) = weight_norm::backward(&dw, &v_value, &g_value, axis)?;
            Ok(vec![needed[0].then_some(dv), needed[1].then_some(dg)])
        }))
    }

    /// `h [B, T, H]` of `gates [B, T, 4 H]`.
    pub fn lstm(&self, gates: &Var, weight: &Var) -> Result<Var> {
        let y = Rc::new(lstm::forward(&gates.value, &Weight::new(&weight.value)?)?);
        let (saved, w_value, output) = (gates.value.clone(), weight.value.clone(), y.clone());
        Ok(self.record(&[gates, weight], y, move |dy, needed| {
            let (dgates, dweight) = lstm::backward(&dy, &saved, &w_value, &output)?;
            Ok(vec![needed[0].then_some(dgates), needed[1].then_some(dweight)])
        }))
    }

    /// `bias [C]` added to every row.
    pub fn add_row(&self, x: &Var, bias: &Var) -> Result<Var> {
        let value = elementwise::add_row(&x.value, &bias.value)?;
        Ok(self.record(&[x, bias], value, |dy, needed| {
            let dbias = if needed[1] { Some(reduce::sum_rows(&dy)?) } else { None };
            Ok(vec![needed[0].then_some(dy), dbias])
        }))
    }

    /// `x [B, T, C]` after so many copies of its first row.
    pub fn begin(&self, x: &Var, copies: usize) -> Result<Var> {
        let [batch, t, channels] = x.value.shape()[..] else {
            return Err(swara_kernels::Error::shape("begin", "x", "[batch, time, channels]", x.value.shape()));
        };
        let (rows, width) = (copies + t, channels);
        let mut value = Tensor::empty(&x.value.device(), x.value.dtype(), [batch, rows, width])?;
        for item in 0..batch {
            let first = x.value.part(item * t * width, [1, width])?;
            (0..copies).try_for_each(|i| value.write_rows(item * rows + i, &first))?;
            value.write_rows(item * rows + copies, &x.value.part(item * t * width, [t, width])?)?;
        }
        Ok(self.record(&[x], value, move |dy, _| {
            let mut dx = Tensor::empty(&dy.device(), dy.dtype(), [batch, t, width])?;
            for item in 0..batch {
                dx.write_rows(item * t, &dy.part((item * rows + copies) * width, [t, width])?)?;
                let first = reduce::sum_rows(&dy.part(item * rows * width, [copies + 1, width])?)?;
                dx.write_rows(item * t, &first.reshape([1, width])?)?;
            }
            Ok(vec![Some(dx)])
        }))
    }

    /// Convolution plus `bias` plus `residual`, which has the output's shape.
    pub fn conv1d(&self, x: &Var, weight: &Var, bias: Option<&Var>, residual: Option<&Var>, geometry: conv1d::Geometry) -> Result<Var> {
        let product = self.product(&weight.value, geometry.groups);
        let (x_value, w_value) = (self.operand(product, &x.value)?, self.operand(product, &weight.value)?);
        // Of the type of the operands, or added behind them.
        let fused = residual.filter(|_| !product.rounded).map(Var::value);
        let mut value = product.of([&x_value, &w_value], bias.map(Var::value), |x, weight, bias| {
            conv1d::forward(x, weight, &geometry, Fused { bias, residual: fused, ..Fused::default() })
        })?;
        if let Some(residual) = residual.filter(|_| product.rounded) {
            elementwise::add_assign(&mut value, &residual.value)?;
        }
        let none = Var { value: x.value.clone(), node: None };
        Ok(self.record(&[x, weight, bias.unwrap_or(&none), residual.unwrap_or(&none)], value, move |dy, needed| {
            let (t, taps) = (x_value.shape()[1], w_value.shape()[0]);
            let rounded = product.gradient(&dy)?;
            let d = rounded.as_ref().unwrap_or(&dy);
            let input = || product.of([d, &w_value], None, |dy, weight, _| conv1d::backward_input(dy, weight, &geometry, t));
            let weight = || product.sums([d, &x_value], |to, dy, x| conv1d::backward_weight_in(to, dy, x, &geometry, taps));
            let dx = needed[0].then(input).transpose()?;
            let dw = needed[1].then(weight).transpose()?;
            let db = if needed[2] { Some(reduce::sum_rows(&dy)?) } else { None };
            Ok(vec![dx, dw, db, needed[3].then_some(dy)])
        }))
    }

    pub fn conv_transpose1d(&self, x: &Var, weight: &Var, bias: Option<&Var>, geometry: conv_transpose1d::Geometry) -> Result<Var> {
        let product = self.product(&weight.value, geometry.groups);
        let (x_value, w_value) = (self.operand(product, &x.value)?, self.operand(product, &weight.value)?);
        let value = product.of([&x_value, &w_value], bias.map(Var::value), |x, weight, bias| {
            conv_transpose1d::forward(x, weight, &geometry, conv_transpose1d::Fused { bias, ..Default::default() })
        })?;
        let none = Var { value: x.value.clone(), node: None };
        Ok(self.record(&[x, weight, bias.unwrap_or(&none)], value, move |dy, needed| {
            let (t, taps) = (x_value.shape()[1], w_value.shape()[0]);
            let rounded = product.gradient(&dy)?;
            let d = rounded.as_ref().unwrap_or(&dy);
            let input = || product.of([d, &w_value], None, |dy, weight, _| conv_transpose1d::backward_input(dy, weight, &geometry, t));
            let weight = || product.sums([d, &x_value], |to, dy, x| conv_transpose1d::backward_weight_in(to, dy, x, &geometry, taps));
            let dx = needed[0].then(input).transpose()?;
            let dw = needed[1].then(weight).transpose()?;
            let db = if needed[2] { Some(reduce::sum_rows(&dy)?) } else { None };
            Ok(vec![dx, dw, db])
        }))
    }

    /// Convolution of images plus `bias`, then a LeakyReLU of `slope`, unless that is 1.
    pub fn conv2d(&self, x: &Var, weight: &Var, bias: Option<&Var>, geometry: conv2d::Geometry, slope: f64) -> Result<Var> {
        let product = self.product(&weight.value, 1);
        let (x_value, w_value) = (self.operand(product, &x.value)?, self.operand(product, &weight.value)?);
        let value = Rc::new(
            product.of([&x_value, &w_value], bias.map(Var::value), |x, weight, bias| conv2d::forward(x, weight, bias, &geometry, slope))?,
        );
        let y_value = value.clone();
        let none = x.detached();
        Ok(self.record(&[x, weight, bias.unwrap_or(&none)], value, move |dy, needed| {
            let dy = if slope == 1.0 { dy } else { activation::leaky_relu_backward(&dy, &y_value, slope)? };
            let size = [x_value.shape()[1], x_value.shape()[2]];
            let rounded = product.gradient(&dy)?;
            let d = rounded.as_ref().unwrap_or(&dy);
            let input = || product.of([d, &w_value], None, |dy, weight, _| conv2d::backward_input(dy, weight, &geometry, size));
            let weight = || product.sums([d, &x_value], |to, dy, x| conv2d::backward_weight_in(to, dy, x, &geometry));
            let dx = needed[0].then(input).transpose()?;
            let dw = needed[1].then(weight).transpose()?;
            let db = if needed[2] { Some(reduce::sum_rows(&dy)?) } else { None };
            Ok(vec![dx, dw, db])
        }))
    }

    pub fn leaky_relu(&self, x: &Var, slope: f64) -> Result<Var> {
        let value = Rc::new(activation::leaky_relu(&x.value, slope)?);
        let y_value = value.clone();
        Ok(self.record(&[x], value, move |dy, _| Ok(vec![Some(activation::leaky_relu_backward(&dy, &y_value, slope)?)])))
    }

    pub fn scale(&self, x: &Var, factor: f64) -> Result<Var> {
        let value = elementwise::scale(&x.value, factor)?;
        Ok(self.record(&[x], value, move |dy, _| Ok(vec![Some(elementwise::scale(&dy, factor)?)])))
    }

    /// `x * x`, element by element.
    pub fn square(&self, x: &Var) -> Result<Var> {
        let (value, x_value) = (elementwise::mul(&x.value, &x.value)?, x.value.clone());
        Ok(self.record(&[x], value, move |dy, _| Ok(vec![Some(elementwise::scale(&elementwise::mul(&dy, &x_value)?, 2.0)?)])))
    }

    /// Rows without their mean, at a peak of `level`.
    pub fn peak_norm(&self, x: &Var, level: f64) -> Result<Var> {
        let value = peak_norm::forward(&x.value, level)?;
        let x_value = x.value.clone();
        Ok(self.record(&[x], value, move |dy, _| Ok(vec![Some(peak_norm::backward(&dy, &x_value, level)?)])))
    }

    /// `x [B, T, C]` with rows more at its ends, reflected, or fewer.
    pub fn pad(&self, x: &Var, left: isize, right: isize) -> Result<Var> {
        let value = pad::reflect(&x.value, left, right)?;
        let rows = x.value.shape()[1];
        Ok(self.record(&[x], value, move |dy, _| Ok(vec![Some(pad::reflect_backward(&dy, left, right, rows)?)])))
    }

    /// `[B, T1 + T2 + .., C]` of `[B, T1, C]`, `[B, T2, C]`, ..
    pub fn concat(&self, parts: &[Var]) -> Result<Var> {
        let value = pad::concat(&parts.iter().map(Var::value).collect::<Vec<_>>())?;
        let rows: Vec<isize> = parts.iter().map(|part| part.value.shape()[1] as isize).collect();
        Ok(self.record(&parts.iter().collect::<Vec<_>>(), value, move |dy, needed| {
            let total: isize = rows.iter().sum();
            let mut before = 0;
            let part = |(&rows, &needed): (&isize, &bool)| {
                let at = before;
                before += rows;
                needed.then(|| pad::reflect(&dy, -at, at + rows - total)).transpose()
            };
            rows.iter().zip(needed).map(part).collect()
        }))
    }

    /// `x [.., K]` times a constant matrix `[K, N]`.
    pub fn project(&self, x: &Var, matrix: &Rc<Tensor>) -> Result<Var> {
        let value = matmul::forward(&x.value, matrix, matmul::Transpose::default())?;
        let matrix = matrix.clone();
        Ok(self.record(&[x], value, move |dy, _| Ok(vec![Some(matmul::forward(&dy, &matrix, matmul::Transpose { a: false, b: true })?)])))
    }

    /// Spectrum `[B, F, bins, 2]` of a signal `[B, T]`.
    pub fn stft(&self, x: &Var, window: usize, hop: usize) -> Result<Var> {
        let samples = x.value.shape().last_dim();
        let value = stft::forward(&x.value, window, hop)?;
        Ok(self.record(&[x], value, move |dy, _| Ok(vec![Some(stft::backward(&dy, samples, window, hop)?)])))
    }

    pub fn magnitude(&self, spectrum: &Var) -> Result<Var> {
        let value = stft::magnitude(&spectrum.value)?;
        let saved = spectrum.value.clone();
        Ok(self.record(&[spectrum], value, move |dy, _| Ok(vec![Some(stft::magnitude_backward(&dy, &saved)?)])))
    }

    /// Rows `codes [N]` of `codebook [K, D]`.
    pub fn gather(&self, codebook: &Var, codes: &Rc<Tensor>) -> Result<Var> {
        let value = rvq_search::gather(&codebook.value, codes)?;
        let (codes, rows) = (codes.clone(), codebook.value.shape()[0]);
        Ok(self.record(&[codebook], value, move |dy, _| Ok(vec![Some(rvq_search::scatter_add(&dy, &codes, rows)?)])))
    }

    /// Means of `stride` rows each: `[B, T / stride, C]` of `x [B, T, C]`.
    pub fn mean_pool(&self, x: &Var, stride: usize) -> Result<Var> {
        let Some(taps) = every_tap(x, stride, 1.0 / stride as f64, |channels| [stride, 1, channels])? else { return Ok(x.clone()) };
        let groups = taps.value.shape().last_dim();
        self.conv1d(x, &taps, None, None, conv1d::Geometry { stride, groups, ..Default::default() })
    }

    /// Every row `stride` times: `[B, T * stride, C]`.
    pub fn repeat(&self, x: &Var, stride: usize) -> Result<Var> {
        let Some(taps) = every_tap(x, stride, 1.0, |channels| [stride, channels, 1])? else { return Ok(x.clone()) };
        let groups = x.value.shape().last_dim();
        self.conv_transpose1d(x, &taps, None, conv_transpose1d::Geometry { groups, ..conv_transpose1d::Geometry::padded(stride, 0, 0) })
    }

    /// `value` going forward, the gradient of `x` going back.
    pub fn straight_through(&self, x: &Var, value: Tensor) -> Var {
        self.record(&[x], value, |dy, _| Ok(vec![Some(dy)]))
    }

    /// `weight * mean |x - target|`; alike below. The returned value is unweighted.
    pub fn l1_loss(&self, x: &Var, target: &Var, weight: f64) -> Result<Var> {
        let value = loss::l1(&x.value, &target.value)?;
        let (x_value, target) = (x.value.clone(), target.value.clone());
        Ok(self.record_loss(x, value, move || loss::l1_backward(&x_value, &target, weight)))
    }

    pub fn mse_loss(&self, x: &Var, target: &Var, weight: f64) -> Result<Var> {
        let value = loss::mse(&x.value, &target.value)?;
        let (x_value, target) = (x.value.clone(), target.value.clone());
        Ok(self.record_loss(x, value, move || loss::mse_backward(&x_value, &target, weight)))
    }

    /// `weight * mean |log10 max(x, floor) - log10 max(target, floor)|`; where `x` is the larger, times `added`.
    pub fn log_l1_loss(&self, x: &Var, target: &Var, floor: f64, added: f64, weight: f64) -> Result<Var> {
        let value = loss::log_l1(&x.value, &target.value, floor, added)?;
        let (x_value, target) = (x.value.clone(), target.value.clone());
        Ok(self.record_loss(x, value, move || loss::log_l1_backward(&x_value, &target, floor, added, weight)))
    }

    /// `weight * mean (log10(x + floor) - log10(target + floor))^2`.
    pub fn log_mse_loss(&self, x: &Var, target: &Var, floor: f64, weight: f64) -> Result<Var> {
        let value = loss::log_mse(&x.value, &target.value, floor)?;
        let (x_value, target) = (x.value.clone(), target.value.clone());
        Ok(self.record_loss(x, value, move || loss::log_mse_backward(&x_value, &target, floor, weight)))
    }

    /// `weight * mean (x - target)^2` for a number.
    pub fn square_loss(&self, x: &Var, target: f64, weight: f64) -> Result<Var> {
        self.mse_loss(x, &Var::from(filled(&x.value, target)?), weight)
    }

    /// `weight * mean max(0, 1 - sign x)`.
    pub fn hinge_loss(&self, x: &Var, sign: f64, weight: f64) -> Result<Var> {
        const RELU: activation::Activation = activation::Activation::Relu;
        let short = elementwise::sub(&filled(&x.value, 1.0)?, &elementwise::scale(&x.value, sign)?)?;
        let value = reduce::mean(&activation::forward(RELU, &short)?)?;
        Ok(self.record_loss(x, value, move || {
            activation::backward(RELU, &filled(&short, -sign * weight / short.elements().max(1) as f64)?, &short)
        }))
    }

    /// `weight * mean x`.
    pub fn mean_loss(&self, x: &Var, weight: f64) -> Result<Var> {
        let (value, x_value) = (reduce::mean(&x.value)?, x.value.clone());
        Ok(self.record_loss(x, value, move || filled(&x_value, weight / x_value.elements().max(1) as f64)))
    }

    /// `x * mask`, element by element; the mask is a constant.
    pub fn mask(&self, x: &Var, mask: &Rc<Tensor>) -> Result<Var> {
        let (value, mask) = (elementwise::mul(&x.value, mask)?, mask.clone());
        Ok(self.record(&[x], value, move |dy, _| Ok(vec![Some(elementwise::mul(&dy, &mask)?)])))
    }

    /// A loss whose gradient is known already: `weight * gradient`.
    pub fn known_loss(&self, x: &Var, value: Tensor, gradient: Tensor, weight: f64) -> Var {
        self.record_loss(x, value, move || elementwise::scale(&gradient, weight))
    }
}

/// Constant filters of one `value` for depthwise convolutions over as many rows as `stride`; None if that is one.
fn every_tap(x: &Var, stride: usize, value: f64, shape: impl Fn(usize) -> [usize; 3]) -> Result<Option<Var>> {
    let channels = x.value.shape().last_dim();
    let taps = || Tensor::from_f64(&x.value.device(), x.value.dtype(), &vec![value; stride * channels], shape(channels));
    (stride > 1).then(taps).transpose().map(|taps| taps.map(Var::from))
}

/// As `like`, of one value.
fn filled(like: &Tensor, value: f64) -> Result<Tensor> {
    let width = like.shape().last_dim();
    let row = Tensor::from_f64(&like.device(), like.dtype(), &vec![value; width], [width])?;
    elementwise::add_row(&Tensor::zeros(&like.device(), like.dtype(), like.shape())?, &row)
}
