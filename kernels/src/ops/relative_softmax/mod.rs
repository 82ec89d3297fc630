//! Weights of attention whose scores have a bias by distance, gated by the query.
//!
//! ```text
//! s[i, j] = scale x[i, j] + gate[i] bias[j - i + T - 1]
//! y[i, j] = exp(s[i, j] - m[i]) / sum_j exp(s[i, j] - m[i]),  m[i] = max_j s[i, j]
//! ```
//! | tensor   | shape         |                                                       |
//! |----------|---------------|-------------------------------------------------------|
//! | `x`, `y` | `[T, S]`      | products of queries and keys; f32, or f64 on the CPU  |
//! | `gate`   | `[T]`         | as `x`                                                |
//! | `bias`   | `[T + S - 1]` | as `x`; of the distances `1 - T` to `S - 1`           |
//!
//! Between two products this is the attention of one head of WavLM, whose bias would fill as much memory as the scores if it were written
//! out. Deterministic.
//! Source: `WavLMAttention` of `transformers` (modeling_wavlm.py).

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
use crate::{DType, Device, Error, Result, Tensor, dispatch_real, span};

mod cases;
mod cpu;
mod cuda;

pub static SOURCE: Source =
    Source { path: "ops/relative_softmax/relative_softmax.cu", text: include_str!("relative_softmax.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "relative_softmax";

/// # Errors
/// Other shapes than those above; no keys; types that are not those above.
pub fn forward(x: &Tensor, gate: &Tensor, bias: &Tensor, scale: f64) -> Result<Tensor> {
    let _span = span::op("relative_softmax.forward");
    let &[queries, keys @ 1..=usize::MAX] = &*x.shape() else { return Err(Error::shape(NAME, "x", "[T, S > 0]", x.shape())) };
    if !matches!(x.dtype(), DType::F32 | DType::F64) {
        return Err(Error::dtype(NAME, "x", "f32", x.dtype()));
    }
    check::parameter(NAME, x, "gate", gate, queries)?;
    check::parameter(NAME, x, "bias", bias, queries.saturating_add(keys) - 1)?;
    let mut y = x.empty_like()?;
    if y.elements() == 0 {
        return Ok(y);
    }
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::forward::<T>(&mut y, x, gate, bias, scale))?,
        Device::Cuda(gpu) => cuda::forward(&gpu, &mut y, x, gate, bias, scale)?,
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_emulator, normal, tensor};

    #[test]
    fn rows_add_up_to_one_and_the_bias_goes_by_distance() {
        let (x, gate) = (tensor(&[0.0; 6], [2, 3]), tensor(&[1.0, -2.0], [2]));
        // Of the distances -1, 0, 1, 2: the first query has its key at distance 0, the second at -1.
        let bias = tensor(&[0.1, 0.2, 0.4, 0.8], [4]);
        let y = forward(&x, &gate, &bias, 1.0).unwrap().to_f64().unwrap();
        for (row, scores) in y.chunks(3).zip([[0.2, 0.4, 0.8], [-0.2, -0.4, -0.8f64]]) {
            let sum: f64 = scores.iter().map(|s| s.exp()).sum();
            assert!(row.iter().zip(scores).all(|(y, s)| (y - s.exp() / sum).abs() < 1e-15), "{row:?}");
        }
        let y = forward(&normal([5, 127], 1), &normal([5], 2), &normal([131], 3), 0.3).unwrap().to_f64().unwrap();
        assert!(y.chunks(127).all(|row| (row.iter().sum::<f64>() - 1.0).abs() < 1e-12));
    }

    #[test]
    fn operands_that_do_not_fit_are_an_error() {
        let found = |x: [usize; 2], gate: usize, bias: usize| forward(&normal(x, 1), &normal([gate], 2), &normal([bias], 3), 1.0);
        assert!(found([2, 3], 2, 4).is_ok());
        assert!(matches!(found([2, 3], 3, 4), Err(Error::Shape { operand: "gate", .. })));
        assert!(matches!(found([2, 3], 2, 5), Err(Error::Shape { operand: "bias", .. })));
        assert!(matches!(found([2, 0], 2, 1), Err(Error::Shape { operand: "x", .. })));
        assert_eq!(found([0, 3], 0, 2).unwrap().elements(), 0);
    }

    #[test]
    fn the_emulator_computes_the_same() {
        check_emulator(&OP);
    }
}
