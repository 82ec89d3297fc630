use swara_kernels::Device;
use swara_kernels::ops::{conv_transpose1d, conv1d, reduce};
use swara_kernels::tolerance::Tolerance;

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
