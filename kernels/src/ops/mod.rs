//! One folder an operation: contract and cases (`mod.rs`), plain Rust twin (`cpu.rs`), kernels (`.cu`), launches (`cuda.rs`).

pub mod activation;
pub mod adamw;
pub mod attention;
mod check;
pub mod codebook;
pub mod conv1d;
pub mod conv2d;
pub mod conv_transpose1d;
pub mod cross_entropy;
pub mod delay;
pub mod depth;
pub mod elementwise;
pub mod embedding;
mod launch;
pub mod layer_norm;
pub mod linear;
pub mod loss;
pub mod lstm;
pub mod matmul;
pub mod pad;
pub mod peak_norm;
pub mod reduce;
pub mod relative_softmax;
pub mod rms_norm;
pub mod rope;
pub mod rvq_search;
pub mod sample;
pub mod snake;
pub mod stft;
/// What `new-op.sh` copies, so that it keeps working.
#[cfg(test)]
#[path = "../../template/mod.rs"]
mod template;
#[cfg(test)]
pub mod testing;
pub mod weight_norm;

use crate::case::Op;
use crate::driver::Source;

/// Every operation, for `verify`, `bench`, the compile gate and the kernel table.
pub const REGISTRY: &[&Op] = &[
    &conv1d::OP,
    &conv2d::OP,
    &conv_transpose1d::OP,
    &matmul::OP,
    &codebook::OP,
    &rvq_search::OP,
    &stft::OP,
    &attention::OP,
    &rope::OP,
    &snake::OP,
    &activation::OP,
    &weight_norm::OP,
    &layer_norm::OP,
    &linear::OP,
    &rms_norm::OP,
    &elementwise::OP,
    &reduce::OP,
    &loss::OP,
    &adamw::OP,
    &pad::OP,
    &peak_norm::OP,
    &lstm::OP,
    &embedding::OP,
    &sample::OP,
    &cross_entropy::OP,
    &delay::OP,
    &depth::OP,
    &relative_softmax::OP,
];

/// Kernels of instructions that the emulator knows from the manual alone, and that are easily misread: it shows that the reading agrees
/// with itself, no more. Until a GPU has run them they are taken where somebody asks for them, and nowhere else.
pub const UNPROVEN: &[&Source] = &[&attention::HOPPER, &linear::HOPPER];
