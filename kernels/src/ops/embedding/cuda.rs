use super::{Codes, Ids, NAME, SOURCE, Tables};
use crate::driver::Launch;
use crate::ops::launch::{THREADS, check_f32, grid_y, index, kernel_name, threads};
use crate::{Cuda, DType, Result, Tensor, args};

/// Threads of a block of `embedding_*`, as in the kernel: few, so that one row is fetched by several multiprocessors.
const GATHER_THREADS: usize = 64;

/// A block for each of `rows` and each run of `threads` vectors, or elements where rows are not made of whole vectors.
fn launch(rows: usize, dim: usize, lanes: usize, threads: usize) -> Result<(Launch, i32)> {
    let vector = dim.is_multiple_of(lanes);
    let parts = (if vector { dim / lanes } else { dim }).div_ceil(threads);
    let grid = [index(NAME, rows)? as u32, grid_y(NAME, parts)?, 1];
    Ok((Launch { grid, block: [threads as u32, 1, 1], shared_bytes: 0, cooperative: false }, vector as i32))
}

pub fn forward(gpu: &Cuda, y: &mut Tensor, weight: &Tensor, tables: &Tables, ids: Ids, onto: Option<(&Tensor, usize)>) -> Result<()> {
    launch_sums(gpu, "embedding", y, (weight, None), tables, ids, onto)
}

pub fn forward_codes(
    gpu: &Cuda,
    y: &mut Tensor,
    (codes, scales): Codes,
    tables: &Tables,
    ids: Ids,
    onto: Option<(&Tensor, usize)>,
) -> Result<()> {
    launch_sums(gpu, "embedding_int8", y, (codes, Some(scales)), tables, ids, onto)
}

fn launch_sums(
    gpu: &Cuda,
    name: &str,
    y: &mut Tensor,
    (weight, scales): (&Tensor, Option<&Tensor>),
    tables: &Tables,
    (ids, first): Ids,
    onto: Option<(&Tensor, usize)>,
) -> Result<()> {
    let (batch, dim) = (y.shape()[0], y.shape()[1]);
    let (launch, vector) = launch(batch, dim, 16 / y.dtype().bytes(), GATHER_THREADS)?;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, name, y)?)?;
    let column = ids.device_ptr() + 4 * first as u64;
    let (slots, slot) = onto.map_or((0, 0), |(onto, slot)| (onto.shape()[1], slot));
    let start = onto.map_or(0, |(onto, _)| onto.device_ptr() + (slot * dim * onto.dtype().bytes()) as u64);
    let (tables_count, stride) = (index(NAME, tables.sizes.len())?, index(NAME, ids.shape()[1])?);
    let stride_onto = (slots * dim) as u64;
    let dim = index(NAME, dim)?;
    // SAFETY, of both: the parameters of the kernel; a block for each of the rows of y and ids, whose columns were checked to be there, as
    // was the slot; the kernel reads no row outside a table, and the tables and scales end where the weight does.
    match scales {
        None => {
            let args = args![y, weight, column, &tables.starts, start, stride_onto, tables_count, stride, dim, vector];
            unsafe { kernel.launch(launch, args) }
        }
        Some(scales) => {
            let args = args![y, weight, scales, column, &tables.starts, start, stride_onto, tables_count, stride, dim, vector];
            unsafe { kernel.launch(launch, args) }
        }
    }
}

pub fn split(gpu: &Cuda, out: &mut Tensor, ids: &Tensor, size: i32) -> Result<()> {
    let columns = index(NAME, out.shape()[1])?;
    index(NAME, out.elements().saturating_add(THREADS))?;
    let args = args![&*out, ids, size, columns, out.elements() as i32];
    // SAFETY: the parameters of embedding_split; a thread for each element of out, which has a column more than ids.
    unsafe { gpu.kernel(&SOURCE, "embedding_split")?.launch(threads(NAME, out.elements())?, args) }
}

pub fn backward(gpu: &Cuda, gradient: &mut Tensor, tables: &Tables, dy: &Tensor, (ids, first): Ids) -> Result<()> {
    check_f32(NAME, dy)?;
    let (batch, dim) = (dy.shape()[0], dy.shape()[1]);
    let count = tables.sizes.len();
    let named = batch.saturating_mul(count);
    let (tables_count, stride) = (index(NAME, count)?, index(NAME, ids.shape()[1])?);
    index(NAME, named.saturating_add(THREADS))?;
    let rows = Tensor::empty(&dy.device(), DType::I32, [count, batch])?;
    let column = ids.device_ptr() + 4 * first as u64;
    let args = args![&rows, column, &tables.starts, batch as i32, tables_count, stride];
    // SAFETY: the parameters of embedding_rows; a thread for each of the [count, batch] rows.
    unsafe { gpu.kernel(&SOURCE, "embedding_rows")?.launch(threads(NAME, named)?, args)? };
    let (launch, vector) = launch(tables.rows(), dim, 4, THREADS)?;
    let args = args![gradient, dy, &rows, &tables.starts, batch as i32, index(NAME, dim)?, vector];
    // SAFETY: the parameters of embedding_backward_f32; a block for each row of the gradient, each of which is in a table.
    unsafe { gpu.kernel(&SOURCE, "embedding_backward_f32")?.launch(launch, args) }
}
