use swara_kernels::ops::activation::{self, Activation};
use swara_kernels::ops::{adamw, conv_transpose1d, conv1d, cross_entropy as entropy, elementwise, loss, reduce, snake, weight_norm};
use swara_kernels::tolerance::{ROUNDOFF, Tolerance};
use swara_kernels::{DType, Device, Tensor};

use super::{Dump, Error, REVERSE, Result, SAME, SWAP, TAPS_FIRST};
use crate::Outcome;

pub fn conv1d(dump: &Dump, device: &Device, outcome: &mut Outcome) -> Result {
    let geometry = conv1d::Geometry {
        stride: dump.count("stride")?,
        dilation: dump.count("dilation")?,
        groups: dump.count("groups")?,
        pad_left: dump.count("pad_left")?,
        pad_right: dump.count("pad_right")?,
    };
    let x = dump.tensor("x", SWAP, device)?;
    let w = dump.tensor("w", REVERSE, device)?;
    let bias = dump.has("bias").then(|| dump.tensor("bias", SAME, device)).transpose()?;
    let (taps, inputs, outputs) = (w.shape()[0], w.shape()[1], w.shape()[2]);
    let y = conv1d::forward(&x, &w, &geometry, conv1d::Fused { bias: bias.as_ref(), ..Default::default() })?;
    dump.check(outcome, "y", SWAP, &y, Tolerance::accumulate(taps * inputs + 1))?;
    if !dump.has("dy") {
        return Ok(());
    }
    let dy = dump.tensor("dy", SWAP, device)?;
    let dx = conv1d::backward_input(&dy, &w, &geometry, x.shape()[1])?;
    dump.check(outcome, "dx", SWAP, &dx, Tolerance::accumulate(taps * outputs))?;
    let dw = conv1d::backward_weight(&dy, &x, &geometry, taps)?;
    dump.check(outcome, "dw", REVERSE, &dw, Tolerance::accumulate(dy.shape().rows()))?;
    if bias.is_some() {
        dump.check(outcome, "dbias", SAME, &reduce::sum_rows(&dy)?, Tolerance::accumulate(dy.shape().rows()))?;
    }
    Ok(())
}

pub fn conv_transpose1d(dump: &Dump, device: &Device, outcome: &mut Outcome) -> Result {
    if dump.count("groups")? != 1 {
        return Err(Error::Unsupported("transposed convolutions have one group".into()));
    }
    let crop_right = dump.number("trim_right")? as isize;
    let geometry = conv_transpose1d::Geometry { stride: dump.count("stride")?, crop_left: dump.count("trim_left")?, crop_right, groups: 1 };
    let x = dump.tensor("x", SWAP, device)?;
    let w = dump.tensor("w", TAPS_FIRST, device)?;
    let bias = dump.has("bias").then(|| dump.tensor("bias", SAME, device)).transpose()?;
    let (taps, inputs, outputs) = (w.shape()[0], w.shape()[1], w.shape()[2]);
    let y = conv_transpose1d::forward(&x, &w, &geometry, conv_transpose1d::Fused { bias: bias.as_ref(), ..Default::default() })?;
    dump.check(outcome, "y", SWAP, &y, Tolerance::accumulate(taps.div_ceil(geometry.stride) * inputs + 1))?;
    if !dump.has("dy") {
        return Ok(());
    }
    let dy = dump.tensor("dy", SWAP, device)?;
    let dx = conv_transpose1d::backward_input(&dy, &w, &geometry, x.shape()[1])?;
    dump.check(outcome, "dx", SWAP, &dx, Tolerance::accumulate(taps * outputs))?;
    let dw = conv_transpose1d::backward_weight(&dy, &x, &geometry, taps)?;
    dump.check(outcome, "dw", TAPS_FIRST, &dw, Tolerance::accumulate(x.shape().rows()))?;
    if bias.is_some() {
        dump.check(outcome, "dbias", SAME, &reduce::sum_rows(&dy)?, Tolerance::accumulate(dy.shape().rows()))?;
    }
    Ok(())
}

/// Every pointwise function and both snakes, by the dump's name.
pub fn activation(dump: &Dump, device: &Device, outcome: &mut Outcome) -> Result {
    let x = dump.tensor("x", SWAP, device)?;
    let dy = dump.tensor("dy", SWAP, device)?;
    // A few roundings of terms as large as the result.
    let value = Tolerance::accumulate(16);
    let vector = |name: &str| -> Result<Tensor> {
        let t = dump.tensor(name, SAME, device)?;
        let n = t.elements();
        Ok(t.reshape([n])?)
    };
    match dump.name() {
        "snake" | "snake_wide" => {
            let alpha = vector("alpha")?;
            let a = alpha.to_f64()?;
            let Snakes { y, dx, sum } = snakes(&x, &dy, &a, &a, 0.0)?;
            dump.check(outcome, "y", SWAP, &snake::forward(&x, &alpha)?, y)?;
            let (found, dalpha) = snake::backward(&dy, &x, &alpha)?;
            dump.check(outcome, "dx", SWAP, &found, dx)?;
            dump.check(outcome, "dalpha", SAME, &dalpha, sum)
        }
        "snake_beta" => {
            let (alpha, beta) = (vector("alpha")?, vector("beta")?);
            let linear = |t: &Tensor| -> Result<Vec<f64>> { Ok(t.to_f64()?.into_iter().map(f64::exp).collect()) };
            // Exponentials err by one unit in the last place, two roundoffs.
            let Snakes { y, dx, sum } = snakes(&x, &dy, &linear(&alpha)?, &linear(&beta)?, 2.0 * ROUNDOFF)?;
            dump.check(outcome, "y", SWAP, &snake::beta_forward(&x, &alpha, &beta)?, y)?;
            let (found, dalpha, dbeta) = snake::beta_backward(&dy, &x, &alpha, &beta)?;
            dump.check(outcome, "dx", SWAP, &found, dx)?;
            dump.check(outcome, "dalpha", SAME, &dalpha, sum)?;
            dump.check(outcome, "dbeta", SAME, &dbeta, sum)
        }
        name => {
            let kind = match name {
                "elu" => Activation::Elu,
                "silu" => Activation::Silu,
                "gelu_erf" => Activation::Gelu,
                "gelu_tanh" => Activation::GeluTanh,
                "tanh" => Activation::Tanh,
                _ => return Err(Error::Unsupported(format!("no activation {name}"))),
            };
            dump.check(outcome, "y", SWAP, &activation::forward(kind, &x)?, value)?;
            let dx = activation::backward(kind, &dy, &x)?;
            dump.check(outcome, "dx", SWAP, &dx, value)
        }
    }
}

struct Snakes {
    y: Tolerance,
    dx: Tolerance,
    /// Of the parameters' gradients.
    sum: Tolerance,
}

/// Budgets of `x + sin^2(a x) / b`, as the operation's own cases derive them (kernels/src/ops/snake/cases.rs), for these inputs.
fn snakes(x: &Tensor, dy: &Tensor, a: &[f64], b: &[f64], parameter_error: f64) -> Result<Snakes> {
    let phase = x.to_f64()?.chunks(a.len()).flat_map(|row| row.iter().zip(a)).map(|(x, a)| (x * a).abs()).fold(0.0, f64::max);
    let inverse = b.iter().map(|b| b.recip()).fold(0.0, f64::max);
    let ratio = a.iter().zip(b).map(|(a, b)| a / b).fold(0.0, f64::max);
    let largest = dy.to_f64()?.into_iter().map(f64::abs).fold(0.0, f64::max);
    let of_phase = phase * parameter_error;
    let sum = Tolerance::accumulate(x.shape().rows() + 62);
    Ok(Snakes {
        y: Tolerance::roundings(1).plus((9.0 * ROUNDOFF + of_phase) * inverse),
        dx: Tolerance::roundings(1).plus((15.0 * ROUNDOFF + 2.0 * of_phase) * ratio * largest),
        sum: sum.via(DType::F32, (2.0 * of_phase / ROUNDOFF).powi(2).ceil() as usize),
    })
}

pub fn weight_norm(dump: &Dump, device: &Device, outcome: &mut Outcome) -> Result {
    let (axis, order) = match dump.name() {
        name if name.starts_with("conv_transpose1d") => (weight_norm::Axis::In, TAPS_FIRST),
        _ => (weight_norm::Axis::Out, REVERSE),
    };
    let v = dump.tensor("v", order, device)?;
    let g = dump.tensor("g", SAME, device)?;
    let n = g.elements();
    let g = g.reshape([n])?;
    let dw = dump.tensor("dw", order, device)?;
    let summed = Tolerance::accumulate(v.elements() / n.max(1) + 4);
    dump.check(outcome, "w", order, &weight_norm::forward(&v, &g, axis)?, summed)?;
    let (dv, dg) = weight_norm::backward(&dw, &v, &g, axis)?;
    // dv is a difference that vanishes where a row has one weight: the budget is that of its terms.
    if v.elements() > n {
        dump.check(outcome, "dv", order, &dv, summed)?;
    }
    dump.check(outcome, "dg", SAME, &dg, summed)
}

pub fn losses(dump: &Dump, device: &Device, outcome: &mut Outcome) -> Result {
    let (x, y) = (dump.tensor("x", SAME, device)?, dump.tensor("y", SAME, device)?);
    let (value, dx) = match dump.name() {
        "l1" => (loss::l1(&x, &y)?, loss::l1_backward(&x, &y, 1.0)?),
        "l2" => (loss::mse(&x, &y)?, loss::mse_backward(&x, &y, 1.0)?),
        "log_magnitude" => {
            let floor = dump.number("eps")?;
            (loss::log_l1(&x, &y, floor, 1.0)?, loss::log_l1_backward(&x, &y, floor, 1.0, 1.0)?)
        }
        name => return Err(Error::Unsupported(format!("no loss {name}"))),
    };
    dump.check(outcome, "loss", SAME, &value, Tolerance::accumulate(x.elements()))?;
    dump.check(outcome, "dx", SAME, &dx, Tolerance::accumulate(16))
}

pub fn cross_entropy(dump: &Dump, device: &Device, outcome: &mut Outcome) -> Result {
    let [x, targets, weights] = ["x", "targets", "weights"].map(|name| dump.tensor(name, SAME, device));
    let (x, targets, weights) = (x?, targets?, weights?);
    let found = entropy::forward(&x, &targets, &weights)?;
    let dx = entropy::backward(&found, &x, &targets, &weights, 1.0)?;
    // Differences of logits round, exponentials err by two units in the last place, three of them on a log sum's way.
    let range = 2.0 * x.to_f64()?.into_iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    let [rows, classes] = [x.shape()[0], x.shape()[1]];
    let log_sum = (3.0 * (range + 4.0) + 2.0 * (classes as f64).sqrt() + range + 20.0) * ROUNDOFF;
    let counted: Vec<f64> =
        targets.to_f64()?.into_iter().zip(weights.to_f64()?).map(|(target, weight)| if target < 0.0 { 0.0 } else { weight }).collect();
    let largest = counted.iter().copied().fold(0.0, f64::max) / counted.iter().sum::<f64>();
    let mean = Tolerance::positive_sum(rows).then_rounded(4);
    dump.check(outcome, "loss", SAME, &found.loss, mean.plus(log_sum + 2.0 * range * ROUNDOFF))?;
    dump.check(outcome, "dx", SAME, &dx, mean.plus(largest * (log_sum + (range + 16.0) * ROUNDOFF)))
}

pub fn adamw(dump: &Dump, device: &Device, outcome: &mut Outcome) -> Result {
    let list = |field: &str| -> Result<Vec<f64>> {
        Ok(dump.fact(field)?.as_array().into_iter().flatten().filter_map(serde_json::Value::as_f64).collect())
    };
    let (rates, betas) = (list("lr")?, list("betas")?);
    let [beta1, beta2] = betas[..] else { return Err(Error::Unsupported("expected two betas".into())) };
    let clip = dump.fact("clip")?.as_f64();
    let names = ["a", "b"];
    let start = |n: &&str| dump.tensor(&format!("{n}.start"), SAME, device);
    let mut params = names.iter().map(start).collect::<Result<Vec<_>>>()?;
    let mut averages = names.iter().map(start).collect::<Result<Vec<_>>>()?;
    let zeros =
        |params: &[Tensor]| params.iter().map(|p| Tensor::zeros(device, p.dtype(), p.shape())).collect::<swara_kernels::Result<Vec<_>>>();
    let (mut first, mut second) = (zeros(&params)?, zeros(&params)?);
    let norms = dump.values("norm", SAME)?.0;
    for (i, &lr) in rates.iter().enumerate() {
        let step = i as u64 + 1;
        let options = adamw::AdamW { lr, beta1, beta2, eps: dump.number("eps")?, weight_decay: dump.number("weight_decay")? };
        let grads = names.iter().map(|n| dump.tensor(&format!("{n}.grad.{step}"), SAME, device)).collect::<Result<Vec<_>>>()?;
        let squares = elementwise::add(&reduce::sum_squares(&grads[0])?, &reduce::sum_squares(&grads[1])?)?;
        let norm = squares.to_f64()?.first().map_or(f64::NAN, |s| s.sqrt());
        dump.check_number(outcome, "norm", norm, norms[i], 1e-6 * norms[i]);
        let scale = clip.map(|clip| adamw::clip_scale(&squares, clip)).transpose()?;
        for (j, name) in names.iter().enumerate() {
            adamw::step(&mut params[j], &grads[j], &mut first[j], &mut second[j], &options, step, scale.as_ref())?;
            adamw::ema(&mut averages[j], &params[j], dump.number("ema_decay")?)?;
            dump.check(outcome, &format!("{name}.step.{step}"), SAME, &params[j], Tolerance::accumulate(16))?;
        }
    }
    for (j, name) in names.iter().enumerate() {
        dump.check(outcome, &format!("{name}.m"), SAME, &first[j], Tolerance::accumulate(16))?;
        dump.check(outcome, &format!("{name}.v"), SAME, &second[j], Tolerance::accumulate(16))?;
        dump.check(outcome, &format!("{name}.ema"), SAME, &averages[j], Tolerance::accumulate(16))?;
    }
    Ok(())
}
