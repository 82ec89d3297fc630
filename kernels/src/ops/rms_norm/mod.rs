//! Root-mean-square normalisation of every row, and its form with the sum of a residual stream before it.
//!
//! ```text
//! xhat = x / sqrt(mean x^2 + epsilon)        the mean over the C elements of a row
//! y    = weight xhat                         in f32, rounded once
//! dx   = (g - xhat mean (g xhat)) / sqrt(mean x^2 + epsilon)        g = weight dy
//! dweight = sum over rows of dy xhat
//! ```
//! | tensor               | shape     |                                                                        |
//! |----------------------|-----------|------------------------------------------------------------------------|
//! | `x`, `y`, `dy`, `dx` | `[.., C]` | f32, bf16 or f16 on CUDA, f32 or f64 on the CPU                        |
//! | `residual`, sum      | as `x`    | the sum is normalised as it is stored, so fusing changes no bit        |
//! | `weight`             | `[C]`     | f32 beside narrower types (f64 beside f64), and so is its gradient     |
//!
//! Order of sums and limits as in [`layer_norm`], whose kernels these are without the mean. Sources: Zhang &
//! Sennrich 2019 (arXiv 1910.07467); `torch.nn.functional.rms_norm`.

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::layer_norm::{self, Norm};
use crate::{Error, Result, Tensor};

pub static SOURCE: Source = Source { path: "ops/rms_norm/rms_norm.cu", text: include_str!("rms_norm.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NORM.name, sources: &[&SOURCE], cases: || layer_norm::cases_of(&NORM) };

static NORM: Norm =
    Norm { name: "rms_norm", spans: ["rms_norm.forward", "rms_norm.add_forward", "rms_norm.backward"], source: &SOURCE, centred: false };

/// `y = rms_norm(x)`.
///
/// # Errors
/// A weight that is not `[C]`; an epsilon that is negative or not finite.
pub fn forward(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    NORM.forward(x, weight, None, epsilon)
}

/// `(x + residual, rms_norm(x + residual))`.
pub fn add_forward(x: &Tensor, residual: &Tensor, weight: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor)> {
    NORM.add_forward(x, residual, weight, None, epsilon)
}

/// `(dx, dweight [C])` of [`forward`].
pub fn backward(dy: &Tensor, x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor)> {
    let (dx, mut sums) = NORM.backward(dy, x, weight, epsilon)?;
    let dweight = sums.pop().ok_or_else(|| Error::argument(NORM.name, "no gradient of the weight"))?;
    Ok((dx, dweight))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_gradient, normal, tensor};

    #[test]
    fn gradients_match_differences() {
        for c in [2, 7, 33] {
            check_gradient(
                &[normal([2, 5, c], 1), normal([c], 2)],
                |i| forward(&i[0], &i[1], 1e-5),
                |i, dy| backward(dy, &i[0], &i[1], 1e-5).map(|(dx, dw)| vec![Some(dx), Some(dw)]),
            );
        }
    }

    #[test]
    fn values_are_those_of_the_formula() {
        let y = forward(&tensor(&[3.0, -3.0, 0.0, 0.0], [2, 2]), &tensor(&[2.0, 4.0], [2]), 7.0).unwrap();
        assert_eq!(y.to_f64().unwrap(), [1.5, -3.0, 0.0, 0.0]);
    }

    #[test]
    fn a_weight_of_another_size_is_an_error() {
        let (x, w) = (normal([2, 3], 1), normal([2], 1));
        assert!(matches!(forward(&x, &w, 1e-5), Err(Error::Shape { operand: "weight", .. })));
        assert!(matches!(backward(&x, &x, &w, 1e-5), Err(Error::Shape { operand: "weight", .. })));
    }
}
