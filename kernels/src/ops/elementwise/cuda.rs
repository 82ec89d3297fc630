use super::{Binary, NAME, SOURCE};
use crate::device::Arg;
use crate::driver::Launch;
use crate::ops::launch::{self, Columns, kernel_name};
use crate::{Cuda, Result, Tensor, args};

/// As the kernels number them.
fn number(kind: Binary) -> i32 {
    match kind {
        Binary::Add => 0,
        Binary::Sub => 1,
        Binary::Mul => 2,
    }
}

pub(super) fn binary(gpu: &Cuda, kind: Binary, y: &mut Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
    let y = Arg::from(y);
    binary_into(gpu, kind, y, a, b)
}

pub fn add_assign(gpu: &Cuda, a: &mut Tensor, b: &Tensor) -> Result<()> {
    let y = Arg::from(&mut *a);
    binary_into(gpu, Binary::Add, y, a, b)
}

/// `y` may be `a`: a thread reads its elements before it writes them.
fn binary_into(gpu: &Cuda, kind: Binary, y: Arg, a: &Tensor, b: &Tensor) -> Result<()> {
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "binary", a)?)?;
    let n = a.elements();
    // SAFETY: the parameters of binary_*; n elements each.
    unsafe { kernel.launch(launch::elements(NAME, n, a.dtype().bytes())?, args![y, a, b, n as u64, number(kind)]) }
}

pub fn scale(gpu: &Cuda, y: &mut Tensor, x: &Tensor, factor: f64) -> Result<()> {
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "scale", x)?)?;
    let n = x.elements();
    // SAFETY: the parameters of scale_*; n elements each.
    unsafe { kernel.launch(launch::elements(NAME, n, x.dtype().bytes())?, args![y, x, n as u64, factor as f32]) }
}

pub fn add_row(gpu: &Cuda, y: &mut Tensor, x: &Tensor, bias: &Tensor) -> Result<()> {
    let rows = x.shape().rows();
    let columns = Columns::new(NAME, rows, x.shape().last_dim(), x.dtype())?;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "add_row", x)?)?;
    let args = args![y, x, bias, rows as u64, columns.channels, columns.rows_per_block, columns.vector as i32];
    // SAFETY: the parameters of add_row_*; `columns` covers exactly the rows and channels of x and y.
    unsafe { kernel.launch(columns.launch, args) }
}

pub fn transpose(gpu: &Cuda, y: &mut Tensor, x: &Tensor, [batch, m, n]: [usize; 3]) -> Result<()> {
    let tiles = launch::index(NAME, m.div_ceil(32).saturating_mul(n.div_ceil(32)).saturating_mul(batch))? as u32;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "transpose", x)?)?;
    let args = args![y, x, launch::index(NAME, m)?, launch::index(NAME, n)?];
    // SAFETY: the parameters of transpose_*; one block a tile of each matrix.
    unsafe { kernel.launch(Launch { grid: [tiles, 1, 1], block: [32, 8, 1], shared_bytes: 0, cooperative: false }, args) }
}

/// `x` and `y` have different types.
pub fn convert(gpu: &Cuda, y: &mut Tensor, x: &Tensor) -> Result<()> {
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, &kernel_name(NAME, "convert", x)?, y)?)?;
    let n = x.elements();
    let wide = x.dtype().bytes().max(y.dtype().bytes());
    // SAFETY: the parameters of convert_*_*; n elements each.
    unsafe { kernel.launch(launch::elements(NAME, n, wide)?, args![y, x, n as u64]) }
}
