use super::{Pull, State};
use crate::{Real, Result, Tensor};

/// On one thread: a step's product is the work.
pub fn step<T: Real>(y: &mut Tensor, state: &mut State, gates: &Tensor, recurrent: &Tensor, t: usize) -> Result<()> {
    let (steps, width) = (y.shape()[1], y.shape()[2]);
    let (gates, recurrent) = (gates.as_slice::<T>()?, recurrent.as_slice::<T>()?);
    let cells = state.cell.as_mut_slice::<T>()?.chunks_exact_mut(width);
    let y = y.as_mut_slice::<T>()?;
    for (b, (cell, hidden)) in cells.zip(state.hidden.as_mut_slice::<T>()?.chunks_exact_mut(width)).enumerate() {
        let (gates, recurrent) = (&gates[(b * steps + t) * 4 * width..][..4 * width], &recurrent[b * 4 * width..][..4 * width]);
        for (n, (c, h)) in cell.iter_mut().zip(hidden.iter_mut()).enumerate() {
            let [i, f, g, o] = [0, 1, 2, 3].map(|gate| gates[gate * width + n] + recurrent[gate * width + n]);
            *c = sigmoid(f) * *c + sigmoid(i) * g.tanh();
            *h = sigmoid(o) * c.tanh();
        }
        y[(b * steps + t) * width..][..width].copy_from_slice(hidden);
    }
    Ok(())
}

fn sigmoid<T: Real>(v: T) -> T {
    T::one() / (T::one() + (-v).exp())
}

pub fn cells<T: Real>(cells: &mut Tensor, sums: &Tensor) -> Result<()> {
    let (steps, width) = (cells.shape()[1], cells.shape()[2]);
    let sums = sums.as_slice::<T>()?;
    let mut before = vec![T::zero(); width];
    for (row, cell) in cells.as_mut_slice::<T>()?.chunks_exact_mut(width).enumerate() {
        if row % steps == 0 {
            before.fill(T::zero());
        }
        let z = &sums[row * 4 * width..][..4 * width];
        for (n, (c, before)) in cell.iter_mut().zip(&mut before).enumerate() {
            *c = sigmoid(z[width + n]) * *before + sigmoid(z[n]) * z[2 * width + n].tanh();
            *before = *c;
        }
    }
    Ok(())
}

pub fn step_backward<T: Real>(dgates: &mut Tensor, pull: &mut Pull, dy: &Tensor, sums: &Tensor, cells: &Tensor, t: usize) -> Result<()> {
    let (batch, steps, width) = (dy.shape()[0], dy.shape()[1], dy.shape()[2]);
    let (dy, sums, cells, hidden) = (dy.as_slice::<T>()?, sums.as_slice::<T>()?, cells.as_slice::<T>()?, pull.hidden.as_slice::<T>()?);
    let (dcell, step, all) = (pull.cell.as_mut_slice::<T>()?, pull.gates.as_mut_slice::<T>()?, dgates.as_mut_slice::<T>()?);
    for b in 0..batch {
        let row = b * steps + t;
        for n in 0..width {
            let [i, f, o] = [0, 1, 3].map(|gate| sigmoid(sums[(row * 4 + gate) * width + n]));
            let g = sums[(row * 4 + 2) * width + n].tanh();
            let through = cells[row * width + n].tanh();
            let before = if t > 0 { cells[(row - 1) * width + n] } else { T::zero() };
            let dh = dy[row * width + n] + hidden[b * width + n];
            let dc = dcell[b * width + n] + dh * o * (T::one() - through * through);
            let slope = |s: T| s * (T::one() - s);
            let gradients = [dc * g * slope(i), dc * before * slope(f), dc * i * (T::one() - g * g), dh * through * slope(o)];
            dcell[b * width + n] = dc * f;
            for (gate, gradient) in gradients.into_iter().enumerate() {
                step[(b * 4 + gate) * width + n] = gradient;
                all[(row * 4 + gate) * width + n] = gradient;
            }
        }
    }
    Ok(())
}
