//! Weights of losses as shares of the gradient of the wave, whatever the losses' own sizes.
//!
//! ```text
//! n_i = moving average of mean over items |g_i[b]|        G = total_norm sum_i w_i / (sum w) g_i / (n_i + 1e-12)
//! ```
//! Source: `Balancer` in `audiocraft` (losses/balancer.py), arXiv 2210.13438, equation 5.

use std::collections::BTreeMap;

use swara_kernels::Tensor;
use swara_kernels::ops::{elementwise, reduce};

use super::config::BalancerRules;
use crate::{Error, Result};

/// Of every loss: sums of norms and of weights, both decaying.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Balancer {
    pub averages: BTreeMap<String, [f64; 2]>,
}

/// A loss's gradient of the wave `[B, T, 1]`, however it was weighted.
pub struct Share {
    pub name: &'static str,
    pub weight: f64,
    pub gradient: Tensor,
}

impl Balancer {
    /// The gradient to go on with, of `part` of a step's items: so much of a step the averages move.
    pub fn combine(&mut self, rules: &BalancerRules, shares: &[Share], part: f64) -> Result<Tensor> {
        let decay = rules.decay.powf(part);
        let weights: f64 = shares.iter().map(|share| share.weight).sum();
        let mut sum: Option<Tensor> = None;
        for share in shares {
            let energies = energies(&share.gradient)?.to_f64()?;
            let norm = energies.iter().map(|e| e.sqrt()).sum::<f64>() / energies.len().max(1) as f64;
            let [total, weight] = self.averages.entry(share.name.to_owned()).or_default();
            (*total, *weight) = (*total * decay + part * norm, *weight * decay + part);
            let factor = share.weight / weights * rules.total_norm / (*total / *weight + 1e-12);
            let part = elementwise::scale(&share.gradient, factor)?;
            match &mut sum {
                Some(sum) => elementwise::add_assign(sum, &part)?,
                None => sum = Some(part),
            }
        }
        sum.ok_or_else(|| Error::Argument("no loss of the wave has a weight".into()))
    }
}

/// Sums of squares of the items of `[B, T, 1]`, `[B]`.
fn energies(gradient: &Tensor) -> Result<Tensor> {
    let items = gradient.shape()[0];
    let squares = elementwise::mul(gradient, gradient)?.reshape([1, items, gradient.elements() / items.max(1)])?;
    Ok(reduce::sum_rows(&elementwise::transpose(&squares)?)?)
}

#[cfg(test)]
mod tests {
    use swara_kernels::{DType, Device};

    use super::*;

    fn shares(gradients: &[(&'static str, f64, [f64; 4])]) -> Vec<Share> {
        let tensor = |values: &[f64]| Tensor::from_f64(&Device::Cpu, DType::F64, values, [2, 2, 1]).unwrap();
        gradients.iter().map(|(name, weight, values)| Share { name, weight: *weight, gradient: tensor(values) }).collect()
    }

    #[test]
    fn opposite_losses_of_equal_weight_cancel_whatever_their_sizes() {
        let mut balancer = Balancer::default();
        for step in 1..5 {
            let size = step as f64;
            let g = balancer
                .combine(
                    &BalancerRules::default(),
                    &shares(&[("a", 1.0, [1.0; 4]), ("b", 1.0, [-100.0 * size, -100.0, -100.0, -100.0 * size])]),
                    1.0,
                )
                .unwrap()
                .to_f64()
                .unwrap();
            assert!(step > 1 || g.iter().all(|g| g.abs() < 1e-12), "{g:?}");
        }
    }

    /// By hand: norms of two items, averaged over two steps.
    #[test]
    fn norms_are_followed() {
        let rules = BalancerRules { decay: 0.5, total_norm: 2.0 };
        let mut balancer = Balancer::default();
        let first = balancer.combine(&rules, &shares(&[("a", 3.0, [3.0, 4.0, 0.0, 1.0]), ("b", 1.0, [0.0, 0.0, 1.0, 0.0])]), 1.0).unwrap();
        // |a| = (5 + 1) / 2 = 3, |b| = (0 + 1) / 2.
        let expected = [1.5, 2.0, 1.0, 0.5];
        first.to_f64().unwrap().iter().zip(expected).for_each(|(g, e)| assert!((g - e).abs() < 1e-9, "{g} {e}"));
        let second = balancer.combine(&rules, &shares(&[("a", 1.0, [0.0, 0.0, 6.0, 0.0])]), 1.0).unwrap();
        // (0.5 * 3 + 3) / (0.5 + 1) = 3.
        assert!((second.to_f64().unwrap()[2] - 4.0).abs() < 1e-9);
    }
}
