//! Rows of tables, added up: `y[b] = onto[b] + sum over k of table_k[ids[b, first + k]]`, in the order of `k`.
//!
//! | tensor   | shape       |                                                                                                   |
//! |----------|-------------|---------------------------------------------------------------------------------------------------|
//! | `weight` | `[R, D]`    | all tables, one below the other ([`Tables`]); f32, bf16 or f16 on CUDA, f32, f64 or bf16 on the CPU |
//! | `ids`    | `[B, W]`    | i32; `K` columns from `first` on, one for each table. -1 adds nothing                             |
//! | `onto`   | `[B, S, D]` | optional; one slot of it is what the sums start from                                              |
//! | `y`      | `[B, D]`    | as `weight`; f32 for bf16 on the CPU, and `onto` like it                                          |
//!
//! One launch whatever `K` is, and nothing of it is on the host, so that a captured step reads the ids of its own time. Sums in
//! f32, rounded once: bit for bit what adding row after row in f32 gives. An id outside its table is an error on the CPU and a row
//! of NaN on CUDA; [`Tables::check`] finds those that come from outside. [`split`] makes two ids of one that names rows of two tables. The gradient is added to what is there, each row's terms
//! in the order of `b`: deterministic, and rows that no id names are not touched.
//! Sources: `torch.nn.functional.embedding`; the sum over streams is Moshi's (`models/lm.py`, `LMModel.forward_text`), -1 its
//! `zero_token_id`.

mod cases;
mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
use crate::{DType, Device, Error, Result, Tensor, dispatch_real, span};

pub static SOURCE: Source = Source { path: "ops/embedding/embedding.cu", text: include_str!("embedding.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "embedding";
/// The id that adds nothing.
pub const NONE: i32 = -1;

/// How many rows each of the tables has that lie one below the other in a tensor.
pub struct Tables {
    /// `[K + 1]` i32: the first row of each, and the end of the last.
    starts: Tensor,
    sizes: Vec<usize>,
}

/// Columns of ids `[B, W]` from one on.
pub type Ids<'a> = (&'a Tensor, usize);

/// Rows `[R, D]` of signed codes of 8 bits (u8), and the scale of each, f32 `[R, 1]`.
pub type Codes<'a> = (&'a Tensor, &'a Tensor);

impl Tables {
    /// # Errors
    /// No tables; more than 2^31 rows.
    pub fn new(device: &Device, sizes: &[usize]) -> Result<Tables> {
        let fail = || Error::argument(NAME, format!("tables of {sizes:?} rows: at least one, and below 2^31 rows in all"));
        let mut starts = vec![0i32];
        for &size in sizes {
            let end = starts.last().and_then(|start| start.checked_add(i32::try_from(size).ok()?)).ok_or_else(fail)?;
            starts.push(end);
        }
        if sizes.is_empty() {
            return Err(fail());
        }
        Ok(Tables { starts: Tensor::from_slice(device, &starts, [starts.len()])?, sizes: sizes.to_vec() })
    }

    /// Rows of each table.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// Rows of all tables.
    pub fn rows(&self) -> usize {
        self.sizes.iter().sum()
    }

    /// That each of the ids `[B, K]` is -1 or a row of its table.
    pub fn check(&self, ids: &[i32]) -> Result<()> {
        if !ids.len().is_multiple_of(self.sizes.len()) {
            return Err(Error::argument(NAME, format!("{} ids for {} tables", ids.len(), self.sizes.len())));
        }
        self.check_columns(ids, self.sizes.len(), 0)
    }

    fn check_columns(&self, ids: &[i32], width: usize, first: usize) -> Result<()> {
        for (b, row) in ids.chunks_exact(width).enumerate() {
            for (k, (&id, &size)) in row[first..].iter().zip(&self.sizes).enumerate() {
                if id != NONE && usize::try_from(id).map_or(true, |id| id >= size) {
                    return Err(Error::argument(NAME, format!("id {id} of row {b} is not in table {k} of {size} rows")));
                }
            }
        }
        Ok(())
    }

    /// That the columns are there, on `device`, and on the CPU that their ids are in the tables. Returns `B`.
    fn check_ids(&self, (ids, first): Ids, device: &Device) -> Result<usize> {
        let &[batch, width] = &*ids.shape() else { return Err(Error::shape(NAME, "ids", "[B, W]", ids.shape())) };
        if first.checked_add(self.sizes.len()).is_none_or(|end| end > width) {
            return Err(Error::argument(NAME, format!("{} columns from {first} on of ids {:?}", self.sizes.len(), ids.shape())));
        }
        if ids.dtype() != DType::I32 {
            return Err(Error::dtype(NAME, "ids", "i32", ids.dtype()));
        }
        for (operand, tensor) in [("ids", ids), ("tables", &self.starts)] {
            if tensor.device() != *device {
                return Err(Error::DeviceMismatch { op: NAME, operand });
            }
        }
        if *device == Device::Cpu {
            self.check_columns(ids.as_slice()?, width, first)?;
        }
        Ok(batch)
    }

    /// Room for `y` of type `dtype`, beside operands that fit.
    fn sums(&self, weight: &Tensor, dtype: DType, ids: Ids, onto: Option<(&Tensor, usize)>) -> Result<Tensor> {
        let (dim, device) = (self.check_rows("weight", weight)?, weight.device());
        let batch = self.check_ids(ids, &device)?;
        let y = Tensor::empty(&device, dtype, [batch, dim])?;
        if let Some((onto, slot)) = onto {
            if !matches!(*onto.shape(), [b, slots, d] if b == batch && slot < slots && d == dim) {
                return Err(Error::shape(NAME, "onto", format!("[{batch}, more than {slot}, {dim}]"), onto.shape()));
            }
            check::alike(NAME, &y, "onto", onto)?;
        }
        Ok(y)
    }

    /// `D` of `weight [R, D]`.
    fn check_rows(&self, operand: &'static str, weight: &Tensor) -> Result<usize> {
        match *weight.shape() {
            [rows, dim] if rows == self.rows() => Ok(dim),
            _ => Err(Error::shape(NAME, operand, format!("[{}, D]", self.rows()), weight.shape())),
        }
    }
}

/// `y [B, D]`; see the table above. `onto` is a tensor and the slot of it.
///
/// # Errors
/// Operands that do not fit each other; a type that the device does not store; on the CPU an id outside its table.
pub fn forward(weight: &Tensor, tables: &Tables, ids: Ids, onto: Option<(&Tensor, usize)>) -> Result<Tensor> {
    let _span = span::op("embedding.forward");
    let device = weight.device();
    let dtype = if device == Device::Cpu && weight.dtype() == DType::BF16 { DType::F32 } else { weight.dtype() };
    let mut y = tables.sums(weight, dtype, ids, onto)?;
    match (&device, weight.dtype()) {
        (Device::Cuda(gpu), _) => cuda::forward(gpu, &mut y, weight, tables, ids, onto)?,
        (Device::Cpu, DType::F32) => cpu::forward::<f32, f32>(&mut y, weight, tables, ids, onto)?,
        (Device::Cpu, DType::F64) => cpu::forward::<f64, f64>(&mut y, weight, tables, ids, onto)?,
        (Device::Cpu, DType::BF16) => cpu::forward::<half::bf16, f32>(&mut y, weight, tables, ids, onto)?,
        (Device::Cpu, found) => return Err(Error::dtype(NAME, "weight", "f32, f64 or bf16 on the CPU", found)),
    }
    Ok(y)
}

/// As [`forward`], of rows that are codes with a scale each, to `y` of type `dtype`: a code times its row's scale is rounded to f32, then
/// added.
///
/// # Errors
/// As there; scales that are not one a row.
pub fn forward_codes(weight: Codes, tables: &Tables, ids: Ids, onto: Option<(&Tensor, usize)>, dtype: DType) -> Result<Tensor> {
    let _span = span::op("embedding.forward_codes");
    let (codes, scales) = weight;
    if *scales.shape() != [tables.rows(), 1] {
        return Err(Error::shape(NAME, "scales", format!("[{}, 1]", tables.rows()), scales.shape()));
    }
    for (operand, tensor, dtype) in [("codes", codes, DType::U8), ("scales", scales, DType::F32)] {
        if tensor.dtype() != dtype {
            return Err(Error::dtype(NAME, operand, dtype.name(), tensor.dtype()));
        }
    }
    if codes.device() != scales.device() {
        return Err(Error::DeviceMismatch { op: NAME, operand: "scales" });
    }
    let mut y = tables.sums(codes, dtype, ids, onto)?;
    match codes.device() {
        Device::Cuda(gpu) => cuda::forward_codes(&gpu, &mut y, weight, tables, ids, onto)?,
        Device::Cpu => dispatch_real!(NAME, dtype, T => cpu::forward_codes::<T>(&mut y, weight, tables, ids, onto))?,
    }
    Ok(y)
}

/// Ids `[B, W]` of which the first column holds those of two tables of `size` rows, as `[B, 1 + W]`: `left = id % size`,
/// `right = id / size - 1`, and the other columns. What is negative stays so, beside a `right` of -1.
///
/// # Errors
/// Other than ids; no rows.
pub fn split(ids: &Tensor, size: usize) -> Result<Tensor> {
    let _span = span::op("embedding.split");
    let &[batch, width @ 1..=usize::MAX] = &*ids.shape() else { return Err(Error::shape(NAME, "ids", "[B, W > 0]", ids.shape())) };
    if ids.dtype() != DType::I32 {
        return Err(Error::dtype(NAME, "ids", "i32", ids.dtype()));
    }
    let size = i32::try_from(size).ok().filter(|&size| size > 0);
    let size = size.ok_or_else(|| Error::argument(NAME, "two tables of as many rows as are not counted in 31 bits"))?;
    let mut out = Tensor::empty(&ids.device(), DType::I32, [batch, 1 + width])?;
    match ids.device() {
        Device::Cpu => cpu::split(&mut out, ids, size)?,
        Device::Cuda(gpu) => cuda::split(&gpu, &mut out, ids, size)?,
    }
    Ok(out)
}

/// Adds the gradient with respect to the tables to `gradient [R, D]`: each row of `dy [B, D]` to the rows that its ids name.
/// f32, or f64 on the CPU.
///
/// # Errors
/// Those of [`forward`]. On CUDA an id outside its table adds nothing.
pub fn backward(gradient: &mut Tensor, tables: &Tables, dy: &Tensor, ids: Ids) -> Result<()> {
    let _span = span::op("embedding.backward");
    let dim = tables.check_rows("gradient", gradient)?;
    let device = gradient.device();
    let batch = tables.check_ids(ids, &device)?;
    if *dy.shape() != [batch, dim] {
        return Err(Error::shape(NAME, "dy", format!("[{batch}, {dim}]"), dy.shape()));
    }
    check::alike(NAME, gradient, "dy", dy)?;
    match &device {
        Device::Cpu => dispatch_real!(NAME, dy.dtype(), T => cpu::backward::<T>(gradient, tables, dy, ids)),
        Device::Cuda(gpu) => cuda::backward(gpu, gradient, tables, dy, ids),
    }
}
