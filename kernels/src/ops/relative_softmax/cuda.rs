use super::{NAME, SOURCE};
use crate::driver::Launch;
use crate::ops::launch::index;
use crate::{Cuda, Result, Tensor, args};

/// As in relative_softmax.cu.
const THREADS: u32 = 256;

pub fn forward(gpu: &Cuda, y: &mut Tensor, x: &Tensor, gate: &Tensor, bias: &Tensor, scale: f64) -> Result<()> {
    let [queries, keys] = [x.shape().rows(), x.shape().last_dim()];
    // A thread beyond the end still counts in 32 bits.
    index(NAME, queries.saturating_add(keys).saturating_add(THREADS as usize))?;
    let launch = Launch { grid: [queries as u32, 1, 1], block: [THREADS, 1, 1], shared_bytes: 0, cooperative: false };
    let kernel = gpu.kernel(&SOURCE, "relative_softmax_f32")?;
    // SAFETY: the parameters of relative_softmax_f32; `forward` lets no other type through on CUDA, x and y have `queries` rows of
    // `keys`, gate an element a row and bias queries + keys - 1.
    unsafe { kernel.launch(launch, args![y, x, gate, bias, queries as i32, keys as i32, scale as f32]) }
}
