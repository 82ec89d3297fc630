use std::alloc::{Layout, handle_alloc_error};
use std::cell::RefCell;
use std::collections::HashMap;

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

use crate::device::DeviceBuffer;
use crate::{DType, Device, Element, Error, Result, Shape};

/// A dense, contiguous, row-major array that owns its memory.
///
/// There are no views and no aliasing: `&Tensor` may be read, `&mut Tensor` may be written. Memory comes from a pool, so
/// that a loop which makes the same tensors every step allocates nothing after its first one.
pub struct Tensor {
    storage: Storage,
    shape: Shape,
    dtype: DType,
}

enum Storage {
    Cpu(CpuBuffer),
    Cuda(DeviceBuffer),
}

impl Tensor {
    /// Contents are whatever was there before (NaN in debug builds); for operations that write every element.
    pub fn empty(device: &Device, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        Tensor::allocate(device, dtype, shape.into(), Contents::Any)
    }

    /// On the CPU, memory that was never used is zero, and is given by the system once something is written there.
    pub fn zeros(device: &Device, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let mut t = Tensor::allocate(device, dtype, shape.into(), Contents::Zeros)?;
        if t.device() != Device::Cpu {
            t.set_zero()?;
        }
        Ok(t)
    }

    fn allocate(device: &Device, dtype: DType, shape: Shape, contents: Contents) -> Result<Tensor> {
        let bytes = shape
            .checked_elements()
            .and_then(|n| n.checked_mul(dtype.bytes()))
            .filter(|&n| n <= isize::MAX as usize)
            .ok_or_else(|| Error::argument("tensor", format!("shape {shape:?} of {dtype} exceeds the address space")))?;
        let storage = match device {
            Device::Cpu => Storage::Cpu(CpuBuffer::take(bytes, contents)?),
            Device::Cuda(cuda) => Storage::Cuda(cuda.allocate(bytes)?),
        };
        Ok(Tensor { storage, shape, dtype })
    }

    /// Same device, shape and dtype as `self`, contents unspecified.
    pub fn empty_like(&self) -> Result<Tensor> {
        Tensor::empty(&self.device(), self.dtype, self.shape)
    }

    pub fn set_zero(&mut self) -> Result<()> {
        let bytes = self.bytes();
        match &mut self.storage {
            Storage::Cpu(buffer) => buffer.bytes_mut()[..bytes].fill(0),
            Storage::Cuda(buffer) => buffer.cuda.driver().fill(buffer.ptr, 0, bytes)?,
        }
        Ok(())
    }

    /// Copies `values` to the device, in the type they have.
    pub fn from_slice<T: Element>(device: &Device, values: &[T], shape: impl Into<Shape>) -> Result<Tensor> {
        let mut t = Tensor::empty(device, T::DTYPE, shape)?;
        t.write(values)?;
        Ok(t)
    }

    /// Rounds `values` to `dtype` and copies them to the device.
    pub fn from_f64(device: &Device, dtype: DType, values: &[f64], shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        match dtype {
            DType::F64 => Tensor::from_slice(device, values, shape),
            DType::F32 => Tensor::from_slice(device, &values.iter().map(|&v| v as f32).collect::<Vec<_>>(), shape),
            DType::BF16 => Tensor::from_slice(device, &values.iter().map(|&v| half::bf16::from_f64(v)).collect::<Vec<_>>(), shape),
            DType::F16 => Tensor::from_slice(device, &values.iter().map(|&v| half::f16::from_f64(v)).collect::<Vec<_>>(), shape),
            DType::I32 => Tensor::from_slice(device, &values.iter().map(|&v| v as i32).collect::<Vec<_>>(), shape),
            DType::U8 => Tensor::from_slice(device, &values.iter().map(|&v| v as u8).collect::<Vec<_>>(), shape),
        }
    }

    /// Overwrites all elements with host values.
    pub fn write<T: Element>(&mut self, values: &[T]) -> Result<()> {
        if T::DTYPE != self.dtype {
            return Err(Error::dtype("write", "destination", T::DTYPE.name(), self.dtype));
        }
        if values.len() != self.elements() {
            return Err(Error::shape("write", "destination", format!("{} elements", values.len()), self.shape));
        }
        match &mut self.storage {
            Storage::Cpu(buffer) => buffer.bytes_mut()[..size_of_val(values)].copy_from_slice(bytemuck::cast_slice(values)),
            Storage::Cuda(buffer) => buffer.cuda.driver().copy_in(buffer.ptr, bytemuck::cast_slice(values))?,
        }
        Ok(())
    }

    /// Copies all elements to the host, waiting for the device.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        let mut values = vec![T::default(); self.elements()];
        self.read_into(&mut values)?;
        Ok(values)
    }

    /// As [`Tensor::to_vec`], into memory the caller has.
    pub fn read_into<T: Element>(&self, values: &mut [T]) -> Result<()> {
        if T::DTYPE != self.dtype {
            return Err(Error::dtype("read", "source", T::DTYPE.name(), self.dtype));
        }
        if values.len() != self.elements() {
            return Err(Error::shape("read", "source", format!("{} elements", values.len()), self.shape));
        }
        match &self.storage {
            Storage::Cpu(buffer) => values.copy_from_slice(&bytemuck::cast_slice(buffer.bytes())[..self.elements()]),
            Storage::Cuda(buffer) => buffer.cuda.driver().copy_out(bytemuck::cast_slice_mut(values), buffer.ptr)?,
        }
        Ok(())
    }

    /// All elements as f64, whatever the storage type.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        Ok(match self.dtype {
            DType::F64 => self.to_vec::<f64>()?,
            DType::F32 => self.to_vec::<f32>()?.into_iter().map(f64::from).collect(),
            DType::BF16 => self.to_vec::<half::bf16>()?.into_iter().map(f64::from).collect(),
            DType::F16 => self.to_vec::<half::f16>()?.into_iter().map(f64::from).collect(),
            DType::I32 => self.to_vec::<i32>()?.into_iter().map(f64::from).collect(),
            DType::U8 => self.to_vec::<u8>()?.into_iter().map(f64::from).collect(),
        })
    }

    /// A second tensor with the same contents.
    pub fn copy(&self) -> Result<Tensor> {
        let mut t = self.empty_like()?;
        t.copy_from(self)?;
        Ok(t)
    }

    /// Overwrites `self` with `source`, which has the same device, dtype and number of elements.
    pub fn copy_from(&mut self, source: &Tensor) -> Result<()> {
        if source.dtype != self.dtype {
            return Err(Error::dtype("copy", "source", self.dtype.name(), source.dtype));
        }
        if source.elements() != self.elements() {
            return Err(Error::shape("copy", "source", format!("{:?}", self.shape), source.shape));
        }
        self.copy_bytes(0, source, 0, source.bytes())
    }

    /// The elements from number `first` on, as many as fill `shape`.
    pub fn part(&self, first: usize, shape: impl Into<Shape>) -> Result<Tensor> {
        let mut t = Tensor::empty(&self.device(), self.dtype, shape)?;
        if first.checked_add(t.elements()).is_none_or(|end| end > self.elements()) {
            return Err(Error::shape("part", "source", format!("at least {} elements from {first} on", t.elements()), self.shape));
        }
        let bytes = t.bytes();
        t.copy_bytes(0, self, first * self.dtype.bytes(), bytes)?;
        Ok(t)
    }

    /// Overwrites the bytes from number `first` on with those of `source`, whatever their types.
    pub fn write_bytes(&mut self, first: usize, source: &Tensor) -> Result<()> {
        if first.checked_add(source.bytes()).is_none_or(|end| end > self.bytes()) {
            return Err(Error::shape("write bytes", "destination", format!("{} bytes from {first} on", source.bytes()), self.shape));
        }
        self.copy_bytes(first, source, 0, source.bytes())
    }

    /// Both ranges are inside their tensors.
    fn copy_bytes(&mut self, to: usize, source: &Tensor, from: usize, count: usize) -> Result<()> {
        match (&mut self.storage, &source.storage) {
            (Storage::Cpu(a), Storage::Cpu(b)) => a.bytes_mut()[to..to + count].copy_from_slice(&b.bytes()[from..from + count]),
            (Storage::Cuda(a), Storage::Cuda(b)) if a.cuda.driver_is(&b.cuda) => {
                a.cuda.driver().copy(a.ptr + to as u64, b.ptr + from as u64, count)?;
            }
            _ => return Err(Error::DeviceMismatch { op: "copy", operand: "source" }),
        }
        Ok(())
    }

    /// Overwrites the rows (of the last axis) from `first` on with those of `part`, of the same device and dtype.
    pub fn write_rows(&mut self, first: usize, part: &Tensor) -> Result<()> {
        if part.dtype != self.dtype {
            return Err(Error::dtype("write", "rows", self.dtype.name(), part.dtype));
        }
        let width = self.shape.last_dim();
        let end = first.checked_add(part.shape.rows()).filter(|&end| end <= self.shape.rows() && part.shape.last_dim() == width);
        let Some(end) = end else {
            return Err(Error::shape("write", "rows", format!("such as lie within {:?} from row {first} on", self.shape), part.shape));
        };
        let [start, end] = [first, end].map(|row| row * width * self.dtype.bytes());
        self.copy_bytes(start, part, 0, end - start)
    }

    /// The same elements under another shape of the same size.
    pub fn reshape(mut self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        if shape.checked_elements() != Some(self.elements()) {
            return Err(Error::shape("reshape", "input", format!("the size of {shape:?}"), self.shape));
        }
        self.shape = shape;
        Ok(self)
    }

    pub fn device(&self) -> Device {
        match &self.storage {
            Storage::Cpu(_) => Device::Cpu,
            Storage::Cuda(buffer) => Device::Cuda(buffer.cuda.clone()),
        }
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn elements(&self) -> usize {
        self.shape.elements()
    }

    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.bytes()
    }

    /// The elements themselves, if they are on the CPU.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        match &self.storage {
            Storage::Cpu(buffer) if T::DTYPE == self.dtype => Ok(&bytemuck::cast_slice(buffer.bytes())[..self.elements()]),
            Storage::Cpu(_) => Err(Error::dtype("slice", "tensor", T::DTYPE.name(), self.dtype)),
            Storage::Cuda(_) => Err(Error::DeviceMismatch { op: "slice", operand: "tensor" }),
        }
    }

    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        let (n, dtype) = (self.elements(), self.dtype);
        match &mut self.storage {
            Storage::Cpu(buffer) if T::DTYPE == dtype => Ok(&mut bytemuck::cast_slice_mut(buffer.bytes_mut())[..n]),
            Storage::Cpu(_) => Err(Error::dtype("slice", "tensor", T::DTYPE.name(), dtype)),
            Storage::Cuda(_) => Err(Error::DeviceMismatch { op: "slice", operand: "tensor" }),
        }
    }

    /// Address of the first element on a CUDA device; 0 for a tensor on the CPU, which no kernel is ever given.
    pub fn device_ptr(&self) -> u64 {
        match &self.storage {
            Storage::Cpu(_) => 0,
            Storage::Cuda(buffer) => buffer.ptr,
        }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:?} on {:?}", self.dtype, self.shape, self.device())
    }
}

/// One cache line; the unit of CPU allocation, so that every tensor starts on a vector boundary.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: plain bytes, no padding (size == alignment == 64), any bit pattern is valid.
unsafe impl Zeroable for Line {}
// SAFETY: as above.
unsafe impl Pod for Line {}

struct CpuBuffer(Memory);

/// Of memory that is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Contents {
    Any,
    Zeros,
}

thread_local! {
    /// Freed buffers by length. Without it every large activation is an mmap, a page fault a page, and a munmap.
    static POOL: RefCell<CpuPool> = RefCell::default();
}

#[derive(Default)]
struct CpuPool {
    free: HashMap<usize, Vec<Memory>>,
    lines: usize,
}

impl CpuPool {
    /// Beyond this much idle memory a freed buffer goes back to the system.
    const MAX_LINES: usize = (4 << 30) / 64;
}

/// Gives this thread's idle buffers back to the system: after work whose sizes will not come again, as when a model is read.
pub fn release_idle() {
    POOL.take();
}

impl CpuBuffer {
    fn take(bytes: usize, contents: Contents) -> Result<CpuBuffer> {
        let lines = bytes.div_ceil(64);
        let recycled = POOL.with_borrow_mut(|pool| {
            let buffer = pool.free.get_mut(&lines).and_then(Vec::pop);
            pool.lines -= buffer.as_ref().map_or(0, |buffer: &Memory| buffer.lines().len());
            buffer
        });
        let fresh = recycled.is_none();
        let mut buffer = CpuBuffer(match recycled {
            Some(buffer) => buffer,
            None => Memory::zeroed(lines)
                .ok_or_else(|| Error::Driver { device: Device::Cpu.name(), what: format!("out of memory: {bytes} bytes") })?,
        });
        match contents {
            Contents::Zeros if !fresh => buffer.bytes_mut().fill(0),
            Contents::Any if cfg!(debug_assertions) => buffer.bytes_mut().fill(0xff),
            Contents::Zeros | Contents::Any => {}
        }
        Ok(buffer)
    }

    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self.0.lines())
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(self.0.lines_mut())
    }
}

/// Much of it comes from the system by itself, which gives it once something is written there: in large pages, that weights are read
/// faster from.
enum Memory {
    Small(Vec<Line>),
    Large(MmapMut),
}

impl Memory {
    const LARGE: usize = 1 << 20;

    /// None where there is no more.
    fn zeroed(lines: usize) -> Option<Memory> {
        let bytes = lines.checked_mul(size_of::<Line>())?;
        if bytes < Self::LARGE {
            return bytemuck::allocation::try_zeroed_slice_box(lines).ok().map(|lines| Memory::Small(lines.into_vec()));
        }
        let memory = MmapMut::map_anon(bytes).ok()?;
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage); // not every kernel has such
        Some(Memory::Large(memory))
    }

    fn lines(&self) -> &[Line] {
        match self {
            Memory::Small(lines) => lines,
            Memory::Large(memory) => bytemuck::cast_slice(memory),
        }
    }

    fn lines_mut(&mut self) -> &mut [Line] {
        match self {
            Memory::Small(lines) => lines,
            Memory::Large(memory) => bytemuck::cast_slice_mut(memory),
        }
    }
}

/// Pooled CPU memory for one call: `n` elements with unspecified contents.
pub(crate) struct Scratch<T> {
    buffer: CpuBuffer,
    len: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Scratch<T> {
    pub(crate) fn new(len: usize) -> Self {
        let buffer = CpuBuffer::take(len * size_of::<T>(), Contents::Any).unwrap_or_else(|_| handle_alloc_error(Layout::new::<T>()));
        Scratch { buffer, len, element: std::marker::PhantomData }
    }
}

impl<T: Element> std::ops::Deref for Scratch<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(self.buffer.bytes())[..self.len]
    }
}

impl<T: Element> std::ops::DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(self.buffer.bytes_mut())[..self.len]
    }
}

impl Drop for CpuBuffer {
    fn drop(&mut self) {
        let buffer = std::mem::replace(&mut self.0, Memory::Small(Vec::new()));
        let lines = buffer.lines().len();
        // The pool is gone while its thread is being torn down; then the memory simply goes back to the system.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.lines + lines <= CpuPool::MAX_LINES {
                pool.lines += lines;
                pool.free.entry(lines).or_default().push(buffer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_zero_in_memory_that_was_used() {
        for elements in [1000, 3 << 20] {
            for _ in 0..2 {
                let mut x = Tensor::zeros(&Device::Cpu, DType::F32, [elements]).unwrap();
                assert!(x.as_slice::<f32>().unwrap().iter().all(|v| v.to_bits() == 0));
                x.as_mut_slice::<f32>().unwrap().fill(1.0);
            }
        }
    }

    #[test]
    fn rows_are_written_where_they_belong_and_nowhere_else() {
        for device in crate::ops::testing::devices().unwrap() {
            let mut x = Tensor::from_slice(&device, &[0f32; 15], [5, 3]).unwrap();
            let part = Tensor::from_slice(&device, &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3]).unwrap();
            x.write_rows(2, &part).unwrap();
            assert_eq!(x.to_vec::<f32>().unwrap()[5..13], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0]);
            for first in [4, 5, usize::MAX] {
                assert!(matches!(x.write_rows(first, &part), Err(Error::Shape { .. })), "row {first}");
            }
            let narrow = Tensor::from_slice(&device, &[1f32; 4], [2, 2]).unwrap();
            assert!(x.write_rows(0, &narrow).is_err());
            let other = Tensor::from_slice(&device, &[1i32; 6], [2, 3]).unwrap();
            assert!(x.write_rows(0, &other).is_err());
        }
    }

    #[test]
    fn parts_and_bytes_stay_inside() {
        for device in crate::ops::testing::devices().unwrap() {
            let x = Tensor::from_slice(&device, &[1i32, 2, 3, 4, 5], [5]).unwrap();
            assert_eq!(x.part(1, [2, 2]).unwrap().to_vec::<i32>().unwrap(), [2, 3, 4, 5]);
            assert_eq!(x.part(5, [0]).unwrap().elements(), 0);
            assert!(x.part(2, [4]).is_err() && x.part(usize::MAX, [2]).is_err());
            let mut bytes = Tensor::zeros(&device, DType::U8, [24]).unwrap();
            bytes.write_bytes(4, &x).unwrap();
            let found: Vec<i32> = bytes.to_vec::<u8>().unwrap().chunks(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            assert_eq!(found, [0, 1, 2, 3, 4, 5]);
            assert!(bytes.write_bytes(5, &x).is_err() && bytes.write_bytes(usize::MAX, &x).is_err());
            assert!(Device::Cpu == device || bytes.write_bytes(0, &Tensor::zeros(&Device::Cpu, DType::U8, [1]).unwrap()).is_err());
        }
    }
}
