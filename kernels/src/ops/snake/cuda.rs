use super::{NAME, SOURCE};
use crate::ops::launch::{Columns, kernel_name};
use crate::{Cuda, DType, Device, Result, Tensor, args};

fn columns(x: &Tensor) -> Result<Columns> {
    Columns::new(NAME, x.shape().rows(), x.shape().last_dim(), x.dtype())
}

/// `beta: None` is the plain snake; otherwise both parameters are logarithms.
pub fn forward(gpu: &Cuda, y: &mut Tensor, x: &Tensor, alpha: &Tensor, beta: Option<&Tensor>) -> Result<()> {
    let columns = columns(x)?;
    let rows = x.shape().rows() as u64;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "snake", x)?)?;
    let args = args![y, x, alpha, beta, rows, columns.channels, columns.rows_per_block, columns.vector as i32];
    // SAFETY: the parameters of snake_*; `columns` covers exactly the rows and channels of x and y.
    unsafe { kernel.launch(columns.launch, args) }
}

/// Writes `dx`; returns the gradients of `alpha` and, unspecified without one, of `beta`.
pub fn backward(gpu: &Cuda, dx: &mut Tensor, dy: &Tensor, x: &Tensor, alpha: &Tensor, beta: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    let (rows, channels) = (x.shape().rows(), x.shape().last_dim());
    let columns = columns(x)?;
    let row_blocks = columns.row_blocks();
    let mut partial = Tensor::empty(&Device::Cuda(gpu.clone()), DType::F32, [row_blocks, 2, channels])?;
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, "snake_backward", x)?)?;
    let (dalpha, dbeta) = (alpha.empty_like()?, alpha.empty_like()?);
    {
        let args =
            args![dx, &mut partial, dy, x, alpha, beta, rows as u64, columns.channels, columns.rows_per_block, columns.vector as i32];
        // SAFETY: the parameters of snake_backward_*; partial has two rows a row block.
        unsafe { kernel.launch(columns.launch, args)? };
    }
    let kernel = gpu.kernel(&SOURCE, "snake_reduce")?;
    let args = args![&dalpha, &dbeta, &partial, alpha, beta, row_blocks as u64, columns.channels];
    // SAFETY: the parameters of snake_reduce; one column a thread over all rows of partial.
    unsafe { kernel.launch(Columns::reduce(NAME, channels, row_blocks)?, args)? };
    Ok((dalpha, dbeta))
}
