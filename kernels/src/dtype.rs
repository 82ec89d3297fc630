use std::fmt;

use bytemuck::Pod;
use half::{bf16, f16};

use crate::cpu::vector::{self, Kernel};

/// Storage type of a tensor's elements. Arithmetic accumulates in f32 (f64 for `F64`, which only the CPU has).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F64,
    F32,
    BF16,
    F16,
    I32,
    U8,
}

impl DType {
    pub const fn bytes(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::BF16 | DType::F16 => 2,
            DType::U8 => 1,
        }
    }

    /// Relative rounding error of one store: half a unit in the last place. Zero for integers.
    pub const fn epsilon(self) -> f64 {
        match self {
            DType::F64 => 1.1102230246251565e-16,
            DType::F32 => 5.960464477539063e-8,
            DType::BF16 => 3.90625e-3,
            DType::F16 => 4.8828125e-4,
            DType::I32 | DType::U8 => 0.0,
        }
    }

    pub const fn is_float(self) -> bool {
        !matches!(self, DType::I32 | DType::U8)
    }

    /// Name as kernels and reports spell it: `f32`, `bf16`, ...
    pub const fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::I32 => "i32",
            DType::U8 => "u8",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type that a tensor can store.
pub trait Element: Pod + Send + Sync + Default + fmt::Debug {
    const DTYPE: DType;
}

macro_rules! element {
    ($($t:ty => $d:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* };
}
element!(f64 => F64, f32 => F32, bf16 => BF16, f16 => F16, i32 => I32, u8 => U8);

/// The two types the CPU computes in: f32 is the device, f64 the oracle.
pub trait Real: Element + num_traits::Float + num_traits::NumAssign + std::iter::Sum {
    fn of(v: f64) -> Self;
    fn f64(self) -> f64;
    /// Runs `kernel` on the widest registers that this CPU has.
    fn widest(kernel: impl Kernel<Self>);
}

impl Real for f32 {
    fn of(v: f64) -> Self {
        v as f32
    }
    fn f64(self) -> f64 {
        self as f64
    }
    fn widest(kernel: impl Kernel<f32>) {
        vector::widest_f32(kernel)
    }
}

impl Real for f64 {
    fn of(v: f64) -> Self {
        v
    }
    fn f64(self) -> f64 {
        self
    }
    fn widest(kernel: impl Kernel<f64>) {
        vector::widest_f64(kernel)
    }
}

/// Runs `$body` with `$W` bound to a type that the CPU keeps weights in: `f32`, `f64`, or `bf16` beside f32.
#[macro_export]
macro_rules! dispatch_stored {
    ($op:expr, $dtype:expr, $W:ident => $body:expr) => {
        match $dtype {
            $crate::DType::BF16 => {
                type $W = half::bf16;
                $body
            }
            dtype => $crate::dispatch_real!($op, dtype, $W => $body),
        }
    };
}

/// Runs `$body` with `$T` bound to `f32` or `f64`, or returns the dtype error of `$op`.
#[macro_export]
macro_rules! dispatch_real {
    ($op:expr, $dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            found => Err($crate::Error::dtype($op, "input", "f32 or f64 on the CPU", found)),
        }
    };
}
