//! How fast is it? Timing beside peers.
//!
//! `peers/` holds the same codec in plain PyTorch, to be run in turns with this one; `gpu.sh` runs the checks and the timings
//! that a machine with a GPU can give.
