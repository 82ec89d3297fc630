//! How fast is it? Every kernel and the codec beside what the machine can do at most, measured in the same run.
//!
//! [`compare`] says whether one build is slower than another, from two result files or, on a machine that others use too, from
//! two builds run in [`turns`]. `peers/` holds the same codec in plain PyTorch, to be run in turns with this one; `gpu.sh` runs
//! the checks and the timings that a machine with a GPU can give.

pub mod ceilings;
pub mod codec;
pub mod compare;
pub mod datasheet;
pub mod kernels;
pub mod lm;
pub mod picture;
pub mod timing;
pub mod turns;

/// What its maker calls this CPU, e.g. `AMD EPYC 9654 96-Core Processor`; `cpu` where the system does not say.
pub fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or("cpu".to_owned(), |(_, name)| name.trim().to_owned())
}
