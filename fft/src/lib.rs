//! Plans of real Fourier transforms in f32 and f64, made once for each length.
//!
//! A crate of its own because `realfft` is generic: every crate that plans with it compiles all of rustfft's kernels anew.

use std::sync::{Arc, LazyLock, Mutex};

pub use realfft::num_complex::Complex;
pub use realfft::{ComplexToReal, FftError, RealToComplex};
use realfft::{FftNum, RealFftPlanner};

/// A real type with its plans, for transforms of `n` samples.
pub trait Transform: FftNum {
    /// `n` samples to `n / 2 + 1` bins.
    fn forward_plan(n: usize) -> Arc<dyn RealToComplex<Self>>;

    /// And back, times `n`.
    fn inverse_plan(n: usize) -> Arc<dyn ComplexToReal<Self>>;
}

macro_rules! transform {
    ($t:ty, $planner:ident) => {
        static $planner: LazyLock<Mutex<RealFftPlanner<$t>>> = LazyLock::new(|| Mutex::new(RealFftPlanner::new()));

        impl Transform for $t {
            fn forward_plan(n: usize) -> Arc<dyn RealToComplex<Self>> {
                lock(&$planner).plan_fft_forward(n)
            }

            fn inverse_plan(n: usize) -> Arc<dyn ComplexToReal<Self>> {
                lock(&$planner).plan_fft_inverse(n)
            }
        }
    };
}

transform!(f32, SINGLE);
transform!(f64, DOUBLE);

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
