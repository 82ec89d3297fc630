//! Arithmetic on buffers: tensors, devices and one folder per operation ([`ops`]).
//!
//! A [`Tensor`] lives on a [`Device`]: the CPU, or CUDA behind a [`driver::Driver`] - a real GPU, or an emulator that runs
//! the same `.cu` text on the CPU. Every operation has the same contract on all of them; the plain Rust twin in `f64` is
//! the oracle that the others are verified against.
//!
//! Layout is fixed throughout: activations are channels-last `[batch, time, channels]`, convolution weights are
//! `[taps, in_channels / groups, out_channels]`, so that a window of taps is one contiguous run of memory and every
//! convolution is a matrix product whose rows overlap.

pub mod case;
pub mod cpu;
pub mod device;
pub mod driver;
mod dtype;
mod error;
pub mod ops;
pub mod quantized;
mod shape;
pub mod span;
mod tensor;
pub mod tolerance;

pub use device::{Cuda, Device};
pub use dtype::{DType, Element, Real};
pub use error::{Error, Result};
pub use shape::Shape;
pub use tensor::{Tensor, release_idle};
