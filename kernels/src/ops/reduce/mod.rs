//! Sums: of everything, of squares, and of rows (a bias gradient).
//!
//! ```text
//! sum [1]      mean [1] = sum / n (NaN if empty)      sum_squares [1] = sum x^2      sum_rows [C] = sum over all axes but the last
//! ```
//! Two levels: blocks of fixed size, then the blocks in order. So the result depends on the shape alone and is the same
//! every time. Input f32, bf16 or f16 on CUDA, f32 or f64 on the CPU; the result is f32 (f64 for f64), the CPU adds in f64.

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
use crate::{Device, Real, Result, Tensor, dispatch_real, span};

mod cases;
mod cpu;
pub(super) mod cuda;

pub static SOURCE: Source = Source { path: "ops/reduce/reduce.cu", text: include_str!("reduce.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "reduce";

pub fn sum(x: &Tensor) -> Result<Tensor> {
    let _span = span::op("reduce.sum");
    total(x, Term::Value, 1.0)
}

pub fn mean(x: &Tensor) -> Result<Tensor> {
    let _span = span::op("reduce.mean");
    total(x, Term::Value, 1.0 / x.elements() as f64)
}

pub fn sum_squares(x: &Tensor) -> Result<Tensor> {
    let _span = span::op("reduce.sum_squares");
    total(x, Term::Square, 1.0)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Term {
    Value,
    Square,
}

fn total(x: &Tensor, term: Term, factor: f64) -> Result<Tensor> {
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => {
            Tensor::from_slice(&Device::Cpu, &[T::of(cpu::total::<T>(x, term)? * factor)], [1])
        }),
        Device::Cuda(gpu) => cuda::total(&gpu, x, term, factor),
    }
}

/// `x [.., C]` to `[C]`.
pub fn sum_rows(x: &Tensor) -> Result<Tensor> {
    let _span = span::op("reduce.sum_rows");
    let width = x.shape().last_dim();
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => {
            Tensor::from_f64(&Device::Cpu, check::statistics_dtype(x.dtype()), &cpu::sum_rows::<T>(x)?, [width])
        }),
        Device::Cuda(gpu) => cuda::sum_rows(&gpu, x),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{normal, tensor};

    #[test]
    fn sums_are_those_of_the_elements() {
        for n in [0, 1, 31, 500, 100_003] {
            let x = normal([n], 1);
            let v = x.to_f64().unwrap();
            let close = |found: Tensor, expected: f64| {
                let found = found.to_f64().unwrap()[0];
                assert!((found - expected).abs() <= 1e-9 || (found.is_nan() && expected.is_nan()), "{n}: {found} {expected}");
            };
            close(sum(&x).unwrap(), v.iter().sum());
            close(mean(&x).unwrap(), v.iter().sum::<f64>() / n as f64);
            close(sum_squares(&x).unwrap(), v.iter().map(|v| v * v).sum());
        }
    }

    #[test]
    fn rows_are_added_by_channel() {
        for (rows, c) in [(0, 3), (1, 1), (33, 7), (20_000, 5), (500, 100)] {
            let x = normal([rows, c], 1);
            let v = x.to_f64().unwrap();
            let found = sum_rows(&x).unwrap().to_f64().unwrap();
            for (i, f) in found.iter().enumerate() {
                assert!((f - v.iter().skip(i).step_by(c).sum::<f64>()).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn an_f32_sum_of_a_million_keeps_its_last_digit() {
        let x = Tensor::from_slice(&Device::Cpu, &vec![0.1f32; 1 << 20], [1 << 20]).unwrap();
        assert_eq!(sum(&x).unwrap().to_vec::<f32>().unwrap()[0], (0.1f32 as f64 * (1 << 20) as f64) as f32);
    }

    #[test]
    fn the_result_does_not_depend_on_the_number_of_threads() {
        let x = normal([300_001], 7);
        let on =
            |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| sum(&x).unwrap().to_f64().unwrap());
        assert_eq!(on(1), on(5));
        assert!(sum(&tensor(&[f64::NAN], [1])).unwrap().to_f64().unwrap()[0].is_nan());
    }
}
