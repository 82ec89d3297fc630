use super::{NAME, Pull, SOURCE, State};
use crate::driver::Launch;
use crate::ops::launch::{THREADS, grid_y, index, kernel_name};
use crate::{Cuda, Result, Tensor, args};

pub fn step(gpu: &Cuda, y: &mut Tensor, state: &mut State, gates: &Tensor, recurrent: &Tensor, t: usize) -> Result<()> {
    let (steps, hidden) = (y.shape()[1], y.shape()[2]);
    let (launch, vector) = mapping(y)?;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "lstm", y)?)?;
    let int = |n| index(NAME, n);
    let args = args![y, &mut state.hidden, &mut state.cell, gates, recurrent, int(steps)?, int(t)?, int(hidden)?, vector as i32];
    // SAFETY: the parameters of lstm_*; all tensors were checked to have so many items, steps and hidden values.
    unsafe { kernel.launch(launch, args) }
}

pub fn cells(gpu: &Cuda, cells: &mut Tensor, sums: &Tensor) -> Result<()> {
    let (steps, hidden) = (cells.shape()[1], cells.shape()[2]);
    let (launch, vector) = mapping(cells)?;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "lstm_cells", sums)?)?;
    let args = args![cells, sums, index(NAME, steps)?, index(NAME, hidden)?, vector as i32];
    // SAFETY: the parameters of lstm_cells_*; both tensors have so many items, steps and hidden values.
    unsafe { kernel.launch(launch, args) }
}

pub fn step_backward(gpu: &Cuda, dgates: &mut Tensor, pull: &mut Pull, dy: &Tensor, sums: &Tensor, cells: &Tensor, t: usize) -> Result<()> {
    let (steps, hidden) = (dy.shape()[1], dy.shape()[2]);
    let (launch, vector) = mapping(dy)?;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "lstm_backward", dy)?)?;
    let int = |n| index(NAME, n);
    let Pull { hidden: pulled, cell, gates } = pull;
    let args = args![dgates, gates, cell, pulled, dy, sums, cells, int(steps)?, int(t)?, int(hidden)?, vector as i32];
    // SAFETY: the parameters of lstm_backward_*; all tensors were made or checked to have so many items, steps and hidden values.
    unsafe { kernel.launch(launch, args) }
}

/// A thread for every hidden value of `y [B, T, H]`'s items, or for every four.
fn mapping(y: &Tensor) -> Result<(Launch, bool)> {
    let (items, hidden) = (y.shape()[0], y.shape()[2]);
    let vector = hidden.is_multiple_of(4);
    let runs = if vector { hidden / 4 } else { hidden };
    index(NAME, hidden.saturating_mul(4).saturating_add(THREADS))?;
    let threads = runs.next_multiple_of(32).min(THREADS);
    let grid = [runs.div_ceil(threads) as u32, grid_y(NAME, items)?, 1];
    Ok((Launch { grid, block: [threads as u32, 1, 1], shared_bytes: 0, cooperative: false }, vector))
}
