use super::{AnyWeight, Extents, Fused, Geometry, NAME};
use crate::cpu::gemm::Packed;
use crate::ops::conv1d::cpu::{Activate, Upsample, Weights, correlate, past, polyphase, transpose_taps, upsample};
use crate::ops::conv1d::{self, Ring};
use crate::quantized::{Bits, Quantized};
use crate::tensor::Scratch;
use crate::{DType, Device, Element, Error, Real, Result, Tensor};

pub(super) fn pack<W: Element>(weight: &Tensor, stride: usize) -> Result<Packed> {
    let ws = weight.shape();
    polyphase(weight.as_slice::<W>()?, (ws[0], ws[1], ws[2]), stride)
}

/// Codes `[Cout, K Cin]` as rows `(phase, o)` of columns `(m, i)`: the transpose of [`polyphase`].
pub(super) fn phases(weight: &Quantized, taps: usize, stride: usize) -> Result<Quantized> {
    let (cout, depth) = weight.extents(NAME)?;
    if weight.bits != Bits::Eight || weight.scales.shape().last_dim() != 1 || weight.mins.is_some() {
        return Err(Error::argument(NAME, "codes other than of eight bits, with one scale a row and no minima"));
    }
    let (cin, history) = (depth / taps, taps.div_ceil(stride));
    let from = weight.codes.as_slice::<u8>()?;
    let mut codes = Tensor::zeros(&Device::Cpu, DType::U8, [stride * cout, history * cin])?;
    for (at, to) in codes.as_mut_slice::<u8>()?.chunks_exact_mut(cin.max(1)).enumerate() {
        let (row, m) = (at / history, at % history);
        let (phase, o) = (row / cout, row % cout);
        let k = phase + stride * (history - 1 - m);
        if k < taps {
            to.copy_from_slice(&from[o * depth + k * cin..][..cin]);
        }
    }
    let scales = Tensor::from_slice(&Device::Cpu, &weight.scales.as_slice::<f32>()?.repeat(stride), [stride * cout, 1])?;
    Ok(Quantized { bits: Bits::Eight, codes, scales, mins: None })
}

pub(super) fn forward<T: Real>(
    y: &mut Tensor,
    x: &Tensor,
    ring: Option<&Ring>,
    weight: AnyWeight,
    g: &Geometry,
    fused: &Fused,
    e: &Extents,
) -> Result<()> {
    let shape = Upsample { stride: g.stride, taps: e.taps, crop: g.crop_left, t: e.t, len: e.tout };
    let bias = fused.bias.map(Tensor::as_slice::<T>).transpose()?;
    let packed;
    let weights = match (weight.packed(), weight.tensor()) {
        (Some(packed), _) => Weights::Packed(packed),
        (None, Some(w)) if g.groups > 1 => Weights::Depthwise(w.as_slice::<T>()?),
        (None, Some(w)) => {
            packed = pack::<T>(w, g.stride)?;
            Weights::Packed(&packed)
        }
        (None, None) => return Ok(()), // a weight is one of the two
    };
    let x = (x.as_slice::<T>()?, e.cin);
    upsample(y.as_mut_slice::<T>()?, x, (weights, e.cout), bias, shape, past(ring)?, &Activate::new(fused.prologue)?)
}

pub(super) fn backward_input<T: Real>(dx: &mut Tensor, dy: &Tensor, weight: &Tensor, g: &Geometry) -> Result<()> {
    let (xs, ys, ws) = (dx.shape(), dy.shape(), weight.shape());
    let transposed = transpose_taps(weight.as_slice::<T>()?, ws[0], ws[1], ws[2], |k| k);
    conv1d::cpu::bare(dx.as_mut_slice::<T>()?, xs[1], (dy.as_slice::<T>()?, ys[1], ys[2]), (&transposed, ws[0], xs[2]), &g.adjoint())
}

pub(super) fn backward_weight<T: Real>(dw: &mut Tensor, dy: &Tensor, x: &Tensor, g: &Geometry) -> Result<()> {
    let (xs, ys, ws) = (x.shape(), dy.shape(), dw.shape());
    // The adjoint convolution reads dy and writes x: its weight gradient has the channels the other way round.
    let mut swapped = Scratch::<T>::new(ws.elements());
    correlate(&mut swapped, (dy.as_slice::<T>()?, ys[1], ys[2]), (x.as_slice::<T>()?, xs[1], xs[2]), xs[0], ws[0], &g.adjoint());
    let turned = transpose_taps(&swapped, ws[0], ws[2], ws[1], |k| k);
    dw.as_mut_slice::<T>()?.copy_from_slice(&turned);
    Ok(())
}
