use swara_kernels::ops::activation::{self, Activation};
use swara_kernels::ops::{adamw, conv_transpose1d, conv1d, elementwise, loss, reduce, snake, weight_norm};
use swara_kernels::tolerance::Tolerance;
use swara_kernels::{Device, Tensor};

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
    let dy = dump.tensor("dy", SWAP, device)?;
    let bias = dump.has("bias").then(|| dump.tensor("bias", SAME, device)).transpose()?;
    let (taps, inputs, outputs) = (w.shape()[0], w.shape()[1], w.shape()[2]);
    let y = conv1d::forward(&x, &w, &geometry, conv1d::Fused { bias: bias.as_ref(), ..Default::default() })?;
    dump.check(outcome, "y", SWAP, &y, Tolerance::accumulate(taps * inputs + 1))?;
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
    let geometry = conv_transpose1d::Geometry { stride: dump.count("stride")?, crop_left: dump.count("trim_left")?, crop_right };
    let x = dump.tensor("x", SWAP, device)?;
    let w = dump.tensor("w", TAPS_FIRST, device)?;
    let dy = dump.tensor("dy", SWAP, device)?;
    let bias = dump.has("bias").then(|| dump.tensor("bias", SAME, device)).transpose()?;
    let (taps, inputs, outputs) = (w.shape()[0], w.shape()[1], w.shape()[2]);
    let y = conv_transpose1d::forward(&x, &w, bias.as_ref(), &geometry)?;
    dump.check(outcome, "y", SWAP, &y, Tolerance::accumulate(taps.div_ceil(geometry.stride) * inputs + 1))?;
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
    let rows = x.shape().rows();
    // A few roundings of a value that may be far larger than the result, as x + sin(x)^2 / alpha is.
    let value = Tolerance::accumulate(16);
    let vector = |name: &str| -> Result<Tensor> {
        let t = dump.tensor(name, SAME, device)?;
        let n = t.elements();
        Ok(t.reshape([n])?)
    };
    match dump.name() {
        "snake" | "snake_wide" => {
            let alpha = vector("alpha")?;
            // sin(alpha x) loses what alpha x has beyond one turn: an error of |alpha x| 2^-24, divided by alpha.
            let value = value.with_approximation(16.0 * f64::from(f32::EPSILON));
            dump.check(outcome, "y", SWAP, &snake::forward(&x, &alpha)?, value)?;
            let (dx, dalpha) = snake::backward(&dy, &x, &alpha)?;
            let slope = slope_tolerance(&x, &alpha.to_f64()?, rows)?;
            dump.check(outcome, "dx", SWAP, &dx, slope)?;
            dump.check(outcome, "dalpha", SAME, &dalpha, slope)
        }
        "snake_beta" => {
            let (alpha, beta) = (vector("alpha")?, vector("beta")?);
            dump.check(outcome, "y", SWAP, &snake::beta_forward(&x, &alpha, &beta)?, value)?;
            let (dx, dalpha, dbeta) = snake::beta_backward(&dy, &x, &alpha, &beta)?;
            let linear: Vec<f64> = alpha.to_f64()?.iter().map(|a| a.exp()).collect();
            let slope = slope_tolerance(&x, &linear, rows)?;
            dump.check(outcome, "dx", SWAP, &dx, slope)?;
            dump.check(outcome, "dalpha", SAME, &dalpha, slope)?;
            dump.check(outcome, "dbeta", SAME, &dbeta, slope)
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
            let slope = value.with_approximation(cancellation(kind, &x, &dy, &dx)?);
            dump.check(outcome, "dx", SWAP, &dx, slope)
        }
    }
}

/// `1 - tanh^2` loses everything but an absolute 2^-23 where the tanh is near 1. What that makes of `dx`, relative to its rms.
fn cancellation(kind: Activation, x: &Tensor, dy: &Tensor, dx: &Tensor) -> Result<f64> {
    let factor = |x: f64| match kind {
        Activation::Tanh => 1.0,
        // Half of x times the derivative of the tanh's argument.
        Activation::GeluTanh => 0.5 * x.abs() * 0.7978845608 * (1.0 + 3.0 * 0.044715 * x * x),
        _ => 0.0,
    };
    let rms = |v: &[f64]| (v.iter().map(|v| v * v).sum::<f64>() / v.len().max(1) as f64).sqrt();
    let lost: Vec<f64> = x.to_f64()?.into_iter().zip(dy.to_f64()?).map(|(x, dy)| factor(x) * dy).collect();
    Ok(f64::from(f32::EPSILON) * rms(&lost) / rms(&dx.to_f64()?))
}

/// The argument of a sine is rounded to f32: its error grows with the largest `|alpha x|`.
fn slope_tolerance(x: &Tensor, alpha: &[f64], rows: usize) -> Result<Tolerance> {
    let widest = x.to_f64()?.chunks(alpha.len()).flat_map(|row| row.iter().zip(alpha)).map(|(x, a)| (x * a).abs()).fold(1.0, f64::max);
    Ok(Tolerance::accumulate(rows).with_approximation(widest * f64::from(f32::EPSILON)))
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
            (loss::log_l1(&x, &y, floor)?, loss::log_l1_backward(&x, &y, floor, 1.0)?)
        }
        name => return Err(Error::Unsupported(format!("no loss {name}"))),
    };
    dump.check(outcome, "loss", SAME, &value, Tolerance::accumulate(x.elements()))?;
    dump.check(outcome, "dx", SAME, &dx, Tolerance::accumulate(16))
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
