//! How fast is it? Every kernel and the codec beside what the machine can do at most, measured in the same run.
//!
//! `peers/` holds the same codec in plain PyTorch, to be run in turns with this one; `gpu.sh` runs the checks and the timings
//! that a machine with a GPU can give.

pub mod ceilings;
pub mod codec;
pub mod kernels;
pub mod timing;
