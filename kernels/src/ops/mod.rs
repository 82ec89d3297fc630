//! One folder an operation: contract and cases (`mod.rs`), plain Rust twin (`cpu.rs`), kernels (`.cu`), launches (`cuda.rs`).


use crate::case::Op;

/// Every operation, for `verify`, `bench`, the compile gate and the kernel table.
pub const REGISTRY: &[&Op] = &[];
