use crate::{DType, Shape};

pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between a caller and a kernel. No input makes this crate panic.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("{op}: {operand} has shape {found:?}, expected {expected}")]
    Shape { op: &'static str, operand: &'static str, expected: String, found: Shape },
    #[error("{op}: {operand} is {found}, expected {expected}")]
    DType { op: &'static str, operand: &'static str, expected: String, found: DType },
    #[error("{op}: {operand} is on another device than the first operand")]
    DeviceMismatch { op: &'static str, operand: &'static str },
    #[error("{op}: {what}")]
    Argument { op: &'static str, what: String },
    /// The device exists but refused: out of memory, failed launch, lost context.
    #[error("{device}: {what}")]
    Driver { device: String, what: String },
    /// The device cannot be used on this machine; `hint` says what to do about it.
    #[error("{device} is not usable: {why}")]
    Unavailable { device: String, why: String, hint: Option<String> },
    /// The kernel compiler (NVRTC, or the system C++ compiler for the emulator) rejected a source.
    #[error("compiling {source_name}: {log}")]
    Compile { source_name: String, log: String },
    /// The emulator caught a kernel doing something a GPU may not forgive.
    #[error("emulator: {kernel}: {}{what}", place(.block, .thread))]
    Fault { kernel: String, block: Option<[u32; 3]>, thread: Option<[u32; 3]>, what: String },
    #[error("{path}: {why}")]
    Io { path: String, why: String },
}

impl Error {
    pub fn shape(op: &'static str, operand: &'static str, expected: impl Into<String>, found: Shape) -> Self {
        Error::Shape { op, operand, expected: expected.into(), found }
    }

    pub fn dtype(op: &'static str, operand: &'static str, expected: impl Into<String>, found: DType) -> Self {
        Error::DType { op, operand, expected: expected.into(), found }
    }

    pub fn argument(op: &'static str, what: impl Into<String>) -> Self {
        Error::Argument { op, what: what.into() }
    }
}

/// As far as it is known: a damaged guard region does not say who damaged it.
fn place(block: &Option<[u32; 3]>, thread: &Option<[u32; 3]>) -> String {
    match (block, thread) {
        (Some(block), Some(thread)) => format!("block {block:?}, thread {thread:?}: "),
        (Some(block), None) => format!("block {block:?}: "),
        _ => String::new(),
    }
}
