use super::{NAME, SOURCE, Sampler};
use crate::driver::Launch;
use crate::ops::launch::{index, kernel_name, threads};
use crate::{Cuda, Result, Tensor, args};

pub fn draw(gpu: &Cuda, ids: &mut Tensor, column: usize, logits: &Tensor, sampler: &mut Sampler, mask: Option<&Tensor>) -> Result<()> {
    let (batch, n) = (logits.shape()[0], logits.shape()[1]);
    // A thread for two vectors.
    let threads = n.div_ceil(2 * 16 / logits.dtype().bytes()).next_multiple_of(32).clamp(32, 512);
    let launch = Launch { grid: [index(NAME, batch)? as u32, 1, 1], block: [threads as u32, 1, 1], shared_bytes: 0, cooperative: false };
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "sample", logits)?)?;
    let first = ids.device_ptr() + 4 * column as u64;
    let (stride, counters) = (index(NAME, ids.shape()[1])?, &mut sampler.counters);
    let args = args![first, counters, logits, &sampler.settings, mask, stride, index(NAME, n)?];
    // SAFETY: the parameters of sample_*; a block for each of the B rows of ids, which have the column, of counters, settings, mask
    // and logits, which are n long.
    unsafe { kernel.launch(launch, args) }
}

pub fn reset(gpu: &Cuda, counters: &mut Tensor, mask: &Tensor) -> Result<()> {
    let batch = mask.elements();
    let launch = threads(NAME, batch)?;
    // SAFETY: the parameters of sample_reset; B counters and flags.
    unsafe { gpu.kernel(&SOURCE, "sample_reset")?.launch(launch, args![counters, mask, index(NAME, batch)?]) }
}
