//! One folder an operation: contract and cases (`mod.rs`), plain Rust twin (`cpu.rs`), kernels (`.cu`), launches (`cuda.rs`).

pub mod conv1d;
pub mod conv_transpose1d;
pub mod matmul;

use crate::case::Op;

/// Every operation, for `verify`, `bench`, the compile gate and the kernel table.
pub const REGISTRY: &[&Op] = &[&conv1d::OP, &conv_transpose1d::OP, &matmul::OP];
