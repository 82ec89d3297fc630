use super::{NAME, SOURCE, State};
use crate::driver::Launch;
use crate::ops::launch::{THREADS, grid_y, index, kernel_name};
use crate::{Cuda, Result, Tensor, args};

pub fn step(gpu: &Cuda, y: &mut Tensor, state: &mut State, gates: &Tensor, recurrent: &Tensor, t: usize) -> Result<()> {
    let (items, steps, hidden) = (y.shape()[0], y.shape()[1], y.shape()[2]);
    let vector = hidden.is_multiple_of(4);
    let runs = if vector { hidden / 4 } else { hidden };
    index(NAME, hidden.saturating_mul(4).saturating_add(THREADS))?;
    let threads = runs.next_multiple_of(32).min(THREADS);
    let grid = [runs.div_ceil(threads) as u32, grid_y(NAME, items)?, 1];
    let launch = Launch { grid, block: [threads as u32, 1, 1], shared_bytes: 0, cooperative: false };
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "lstm", y)?)?;
    let int = |n| index(NAME, n);
    let args = args![y, &mut state.hidden, &mut state.cell, gates, recurrent, int(steps)?, int(t)?, int(hidden)?, vector as i32];
    // SAFETY: the parameters of lstm_*; all tensors were checked to have so many items, steps and hidden values.
    unsafe { kernel.launch(launch, args) }
}
