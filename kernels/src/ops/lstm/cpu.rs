use super::State;
use crate::{Real, Result, Tensor};

/// On one thread: a step's product is the work.
pub fn step<T: Real>(y: &mut Tensor, state: &mut State, gates: &Tensor, recurrent: &Tensor, t: usize) -> Result<()> {
    let (steps, width) = (y.shape()[1], y.shape()[2]);
    let (gates, recurrent) = (gates.as_slice::<T>()?, recurrent.as_slice::<T>()?);
    let sigmoid = |v: T| T::one() / (T::one() + (-v).exp());
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
