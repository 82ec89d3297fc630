//! A long short-term memory over whole sequences that begin with nothing:
//!
//! ```text
//! (i, f, g, o) = gates[t] + W h[t - 1]
//! c[t] = sigmoid(f) c[t - 1] + sigmoid(i) tanh(g)        h[t] = sigmoid(o) tanh(c[t])        h[-1] = c[-1] = 0
//! ```
//! | tensor  | shape        |                                                                                                     |
//! |---------|--------------|-----------------------------------------------------------------------------------------------------|
//! | `gates` | `[B, T, 4 H]` | what the input and both biases add: a [`linear`] of the whole sequence; f32, bf16 or f16 on CUDA, f32 or f64 on the CPU |
//! | weight  | `[4 H, H]`   | as PyTorch's `weight_hh`, prepared                                                                  |
//! | `h`     | `[B, T, H]`  | as `gates`; `c` is kept in f32 (f64 beside f64)                                                     |
//!
//! Two launches a step: the product, by [`linear`], whose order of summation is its own, and the cell; so, too, going back. Source:
//! Hochreiter and Schmidhuber 1997; `torch.nn.LSTM`.

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::linear::{self, Fused, Weight};
use crate::ops::{check, elementwise, matmul};
use crate::{Device, Error, Result, Tensor, dispatch_real, span};

mod cases;
mod cpu;
mod cuda;

pub static SOURCE: Source = Source { path: "ops/lstm/lstm.cu", text: include_str!("lstm.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "lstm";

/// `h [B, T, H]` of `gates [B, T, 4 H]`.
///
/// # Errors
/// A weight that is not `[4 H, H]`; types or devices that do not fit.
pub fn forward(gates: &Tensor, weight: &Weight) -> Result<Tensor> {
    let _span = span::op("lstm.forward");
    let &[batch, steps, width] = &*gates.shape() else {
        return Err(Error::shape(NAME, "gates", "[batch, time, 4 hidden]", gates.shape()));
    };
    let hidden = weight.inputs();
    if weight.outputs() != hidden.saturating_mul(4) || width != weight.outputs() {
        return Err(Error::shape(NAME, "gates", format!("[B, T, {0}] beside a weight [{0}, {1}]", 4 * hidden, width / 4), gates.shape()));
    }
    let device = gates.device();
    let mut y = Tensor::empty(&device, gates.dtype(), [batch, steps, hidden])?;
    if y.elements() == 0 {
        return Ok(y);
    }
    let mut state = State {
        hidden: Tensor::zeros(&device, gates.dtype(), [batch, hidden])?,
        cell: Tensor::zeros(&device, check::statistics_dtype(gates.dtype()), [batch, hidden])?,
    };
    for t in 0..steps {
        let recurrent = linear::forward(&state.hidden, weight, Fused::default())?;
        step(&mut y, &mut state, gates, &recurrent, t)?;
    }
    Ok(y)
}

/// `(dgates, dweight [4 H, H])` of [`forward`], which gave `y`; `weight [4 H, H]` as it is.
///
/// What the cells held is computed anew, all products of it as one.
pub fn backward(dy: &Tensor, gates: &Tensor, weight: &Tensor, y: &Tensor) -> Result<(Tensor, Tensor)> {
    let _span = span::op("lstm.backward");
    check::same(NAME, y, "dy", dy)?;
    let prepared = Weight::new(weight)?;
    let &[batch, steps, hidden] = &*y.shape() else { return Err(Error::shape(NAME, "y", "[batch, time, hidden]", y.shape())) };
    if prepared.inputs() != hidden || prepared.outputs() != hidden.saturating_mul(4) {
        return Err(Error::shape(NAME, "weight", format!("[{}, {hidden}]", 4 * hidden), weight.shape()));
    }
    if *gates.shape() != [batch, steps, 4 * hidden] {
        return Err(Error::shape(NAME, "gates", format!("[{batch}, {steps}, {}]", 4 * hidden), gates.shape()));
    }
    check::alike(NAME, y, "gates", gates)?;
    let device = gates.device();
    let mut dgates = gates.empty_like()?;
    if y.elements() == 0 {
        return Ok((dgates, Tensor::zeros(&device, weight.dtype(), weight.shape())?));
    }
    let before = delayed(y)?;
    let sums = linear::forward(&before, &prepared, Fused { residual: Some(gates), ..Fused::default() })?;
    let cells = cells(&sums, hidden)?;
    // Of the step after: what its hidden value and its cell pull.
    let mut pull = Pull {
        hidden: Tensor::zeros(&device, gates.dtype(), [batch, hidden])?,
        cell: Tensor::zeros(&device, check::statistics_dtype(gates.dtype()), [batch, hidden])?,
        gates: Tensor::empty(&device, gates.dtype(), [batch, 4 * hidden])?,
    };
    let turned = elementwise::transpose(&weight.copy()?.reshape([1, 4 * hidden, hidden])?)?;
    let turned = Weight::new(&turned.reshape([hidden, 4 * hidden])?)?;
    for t in (0..steps).rev() {
        step_backward(&mut dgates, &mut pull, dy, &sums, &cells, t)?;
        if t > 0 {
            pull.hidden = linear::forward(&pull.gates, &turned, Fused::default())?;
        }
    }
    let rows = batch * steps;
    let flat = dgates.copy()?.reshape([rows, 4 * hidden])?;
    let dweight = matmul::forward(&flat, &before.reshape([rows, hidden])?, matmul::Transpose { a: true, b: false })?;
    Ok((dgates, dweight))
}

/// What a step pulls at the one before it: at its hidden value and its cell `[B, H]`; and its own gates' gradients `[B, 4 H]`.
struct Pull {
    hidden: Tensor,
    cell: Tensor,
    gates: Tensor,
}

/// `h[t - 1]` of every step.
fn delayed(y: &Tensor) -> Result<Tensor> {
    let [batch, steps, hidden] = [y.shape()[0], y.shape()[1], y.shape()[2]];
    let mut before = Tensor::zeros(&y.device(), y.dtype(), y.shape())?;
    for item in 0..batch {
        before.write_rows(item * steps + 1, &y.part(item * steps * hidden, [steps - 1, hidden])?)?;
    }
    Ok(before)
}

/// Cells `[B, T, H]` of the sums `[B, T, 4 H]` of gates and recurrent products.
fn cells(sums: &Tensor, hidden: usize) -> Result<Tensor> {
    let _span = span::op("lstm.cells");
    let shape = [sums.shape()[0], sums.shape()[1], hidden];
    let mut cells = Tensor::empty(&sums.device(), check::statistics_dtype(sums.dtype()), shape)?;
    match sums.device() {
        Device::Cpu => dispatch_real!(NAME, sums.dtype(), T => cpu::cells::<T>(&mut cells, sums))?,
        Device::Cuda(gpu) => cuda::cells(&gpu, &mut cells, sums)?,
    }
    Ok(cells)
}

/// Step `t`, going back. Everything was checked.
fn step_backward(dgates: &mut Tensor, pull: &mut Pull, dy: &Tensor, sums: &Tensor, cells: &Tensor, t: usize) -> Result<()> {
    let _span = span::op("lstm.step_backward");
    match dy.device() {
        Device::Cpu => dispatch_real!(NAME, dy.dtype(), T => cpu::step_backward::<T>(dgates, pull, dy, sums, cells, t)),
        Device::Cuda(gpu) => cuda::step_backward(&gpu, dgates, pull, dy, sums, cells, t),
    }
}

/// What a step leaves to the next, `[B, H]` each.
struct State {
    hidden: Tensor,
    cell: Tensor,
}

/// Step `t`; `recurrent [B, 4 H]` is `W h[t - 1]`. Everything was checked.
fn step(y: &mut Tensor, state: &mut State, gates: &Tensor, recurrent: &Tensor, t: usize) -> Result<()> {
    let _span = span::op("lstm.step");
    match gates.device() {
        Device::Cpu => dispatch_real!(NAME, gates.dtype(), T => cpu::step::<T>(y, state, gates, recurrent, t)),
        Device::Cuda(gpu) => cuda::step(&gpu, y, state, gates, recurrent, t),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_emulator, check_gradient, normal, tensor};

    #[test]
    fn values_are_those_of_the_formula() {
        let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
        let gates = [0.3, -0.2, 0.9, 0.5, -1.0, 0.4, 0.1, 2.0];
        let weight = [0.5, -0.25, 1.5, -2.0];
        let y = forward(&tensor(&gates, [1, 2, 4]), &Weight::new(&tensor(&weight, [4, 1])).unwrap()).unwrap();
        let (mut h, mut c, mut expected) = (0.0, 0.0, Vec::new());
        for gates in gates.chunks(4) {
            let z: Vec<f64> = gates.iter().zip(weight).map(|(g, w)| g + w * h).collect();
            c = sigmoid(z[1]) * c + sigmoid(z[0]) * z[2].tanh();
            h = sigmoid(z[3]) * c.tanh();
            expected.push(h);
        }
        for (found, expected) in y.to_vec::<f64>().unwrap().into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
    }

    #[test]
    fn sequences_of_a_batch_do_not_see_each_other() {
        let (gates, weight) = (normal([2, 5, 12], 1), Weight::new(&normal([12, 3], 2)).unwrap());
        let both = forward(&gates, &weight).unwrap().to_vec::<f64>().unwrap();
        for (i, one) in gates.to_vec::<f64>().unwrap().chunks(60).enumerate() {
            let alone = forward(&tensor(one, [1, 5, 12]), &weight).unwrap().to_vec::<f64>().unwrap();
            assert_eq!(alone, both[i * 15..][..15]);
        }
    }

    #[test]
    fn gradients_match_differences() {
        for (batch, steps, hidden) in [(1, 1, 1), (2, 5, 3), (3, 2, 4)] {
            check_gradient(
                &[normal([batch, steps, 4 * hidden], 1), normal([4 * hidden, hidden], 2)],
                |i| forward(&i[0], &Weight::new(&i[1])?),
                |i, dy| {
                    let (dgates, dweight) = backward(dy, &i[0], &i[1], &forward(&i[0], &Weight::new(&i[1])?)?)?;
                    Ok(vec![Some(dgates), Some(dweight)])
                },
            );
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let weight = Weight::new(&normal([12, 3], 2)).unwrap();
        for shape in [&[1, 5, 9][..], &[5, 12], &[1, 5, 0]] {
            assert!(forward(&normal(crate::Shape::try_from(shape).unwrap(), 1), &weight).is_err(), "{shape:?}");
        }
        let square = Weight::new(&normal([3, 3], 2)).unwrap();
        assert!(forward(&normal([1, 5, 3], 1), &square).is_err());
        for shape in [[0, 5, 12], [2, 0, 12]] {
            assert_eq!(*forward(&normal(shape, 1), &weight).unwrap().shape(), [shape[0], shape[1], 3]);
        }
    }

    #[test]
    fn the_emulator_computes_the_same() {
        check_emulator(&OP);
    }
}
