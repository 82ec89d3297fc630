//! Is it right? Two independent answers.
//!
//! [`harness`] runs every case of every operation on a device and compares it with the same operation in f64 on the CPU,
//! within tolerances that are computed from the arithmetic. [`golden`] compares with outputs and gradients of PyTorch that
//! `verify/reference/*.py` wrote into `verify/golden`. Both give [`Outcome`]s, which a [`Report`] collects.
//!
//! Would anybody notice if it were not? [`mutants`] makes the kernels wrong and looks.
//!
//! And what does it cost? [`measure`] reads it off the compiler, for the compile gate and `swara profile --static`.

pub mod golden;
pub mod harness;
pub mod measure;
pub mod mutants;
mod report;

pub use report::{CodeMatch, KernelTraffic, Outcome, Report, Skipped, Traffic};
