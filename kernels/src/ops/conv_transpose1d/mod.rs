//! Transposed convolution: `y[o, c] = bias[c] + sum_{t, i} x[t, i] * w[o + crop - t * stride, i, c]`.
//!
//! | tensor   | shape             |                                                                                |
//! |----------|-------------------|--------------------------------------------------------------------------------|
//! | `x`      | `[B, T, Cin]`     |                                                                                |
//! | `weight` | `[K, Cin, Cout]`  | PyTorch's `[Cin, Cout, K]` transposed                                          |
//! | `bias`   | `[Cout]`          | optional                                                                       |
//! | `y`      | `[B, Tout, Cout]` | `Tout = (T-1) stride + K - crop_left - crop_right` (PyTorch: crop = padding, less output_padding on the right) |
//!
//! Polyphase: a stretch of `stride` outputs is one row of a convolution with `ceil(K / stride)` taps and `stride * Cout`
//! columns. Channels-last, that row is already the interleaved output, and the state of a stream is past input: no column
//! buffer, no overlap-add. Source: `torch.nn.functional.conv_transpose1d`.

mod cases;
mod cpu;
mod cuda;

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
use crate::ops::conv1d::{self, Ring};
use crate::{DType, Device, Error, Result, Tensor, dispatch_real, span};

pub static SOURCE: Source =
    Source { path: "ops/conv_transpose1d/conv_transpose1d.cu", text: include_str!("conv_transpose1d.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: "conv_transpose1d", source: Some(&SOURCE), cases: cases::cases };

/// Everything about a transposed convolution that is not a tensor. A negative right crop (PyTorch's `output_padding`) adds
/// outputs beyond the last tap, which are the bias alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub stride: usize,
    pub crop_left: usize,
    pub crop_right: isize,
}

impl Geometry {
    /// `T * stride` outputs, none of which sees a later input.
    pub fn causal(taps: usize, stride: usize) -> Geometry {
        Geometry { stride, crop_left: 0, crop_right: (taps as isize).saturating_sub_unsigned(stride) }
    }

    /// PyTorch's `padding` and `output_padding`.
    pub fn padded(stride: usize, padding: usize, output_padding: usize) -> Geometry {
        Geometry { stride, crop_left: padding, crop_right: (padding as isize).saturating_sub_unsigned(output_padding) }
    }

    /// Number of outputs for `t` inputs.
    pub fn output_len(&self, t: usize, taps: usize) -> usize {
        let Some(last) = t.checked_sub(1) else { return 0 };
        let full = last.saturating_mul(self.stride).saturating_add(taps) as i128;
        (full - self.crop_left as i128 - self.crop_right as i128).clamp(0, usize::MAX as i128) as usize
    }

    /// The convolution that undoes the shape: its forward is this op's input gradient.
    fn adjoint(&self) -> conv1d::Geometry {
        conv1d::Geometry { stride: self.stride, pad_left: self.crop_left, pad_right: 0, ..conv1d::Geometry::default() }
    }
}

struct Extents {
    batch: usize,
    t: usize,
    cin: usize,
    taps: usize,
    cout: usize,
    tout: usize,
}

const NAME: &str = "conv_transpose1d";

fn check(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, g: &Geometry) -> Result<Extents> {
    let (xs, ws) = (x.shape(), weight.shape());
    let &[batch, t, cin] = &*xs else { return Err(Error::shape(NAME, "x", "[batch, time, channels]", xs)) };
    let &[taps, w_in, cout] = &*ws else { return Err(Error::shape(NAME, "weight", "[taps, in, out]", ws)) };
    if g.stride == 0 || taps == 0 {
        return Err(Error::argument(NAME, format!("stride and taps must be positive: {g:?}, {taps} taps")));
    }
    if cin == 0 || cout == 0 {
        return Err(Error::shape(NAME, "weight", "at least one input and one output channel", ws));
    }
    // Positions fit in 32 bits, so no sum of a few of them overflows, and so do the elements of the regrouped weight.
    let tout = g.output_len(t, taps);
    let regrouped = taps.checked_next_multiple_of(g.stride).and_then(|n| n.checked_mul(cin)?.checked_mul(cout));
    let extents = [regrouped, tout.checked_add(g.crop_left), t.checked_mul(g.stride)];
    if extents.iter().any(|n| n.is_none_or(|n| n > i32::MAX as usize)) {
        return Err(Error::argument(NAME, format!("{g:?} with {ws:?} over {t} rows exceeds 2^31 rows or weights")));
    }
    if w_in != cin {
        return Err(Error::shape(NAME, "weight", format!("[_, {cin}, _]"), ws));
    }
    if let Some(b) = bias
        && *b.shape() != [cout]
    {
        return Err(Error::shape(NAME, "bias", format!("[{cout}]"), b.shape()));
    }
    for (operand, other) in [("weight", Some(weight)), ("bias", bias)] {
        other.map_or(Ok(()), |other| check::alike(NAME, x, operand, other))?;
    }
    Ok(Extents { batch, t, cin, taps, cout, tout })
}

/// The whole signal at once.
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, geometry: &Geometry) -> Result<Tensor> {
    let _span = span::op("conv_transpose1d.forward");
    let e = check(x, weight, bias, geometry)?;
    let mut y = Tensor::empty(&x.device(), x.dtype(), [e.batch, e.tout, e.cout])?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::forward::<T>(&mut y, x, None, weight, bias, geometry, &e))?,
        Device::Cuda(gpu) => cuda::forward(&gpu, &mut y, x, None, weight, bias, geometry, &e)?,
    }
    Ok(y)
}

/// An all-zero past for `batch` streams: `ceil(taps / stride) - 1` input rows.
pub fn ring(device: &Device, dtype: DType, batch: usize, taps: usize, channels: usize, stride: usize) -> Result<Ring> {
    let history = taps.div_ceil(stride.max(1)).max(1);
    Ring::new(device, dtype, batch, history, channels, &conv1d::Geometry::default())
}

/// The next `T` rows of `B` streams: `T * stride` outputs, as [`forward`] with [`Geometry::causal`] over the whole would give,
/// bit for bit. Streams whose `mask` (u8 `[B]`) is zero keep their past; their output is unspecified.
pub fn step(x: &Tensor, ring: &mut Ring, weight: &Tensor, bias: Option<&Tensor>, stride: usize, mask: Option<&Tensor>) -> Result<Tensor> {
    let _span = span::op("conv_transpose1d.step");
    let taps = weight.shape().first().copied().unwrap_or(0);
    let geometry = Geometry::causal(taps, stride);
    let mut e = check(x, weight, bias, &geometry)?;
    e.tout = e.t * stride;
    let past = e.taps.div_ceil(stride) - 1;
    ring.check(NAME, x, past, mask)?;
    let mut y = Tensor::empty(&x.device(), x.dtype(), [e.batch, e.tout, e.cout])?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::forward::<T>(&mut y, x, Some(ring), weight, bias, &geometry, &e))?,
        Device::Cuda(gpu) => cuda::forward(&gpu, &mut y, x, Some(ring), weight, bias, &geometry, &e)?,
    }
    ring.append(x, mask)?;
    Ok(y)
}

/// Gradient with respect to `x [B, t, Cin]`: a strided convolution of `dy` with each tap transposed.
pub fn backward_input(dy: &Tensor, weight: &Tensor, geometry: &Geometry, t: usize) -> Result<Tensor> {
    let _span = span::op("conv_transpose1d.backward_input");
    let &[batch, tout, cout] = &*dy.shape() else { return Err(Error::shape(NAME, "dy", "[batch, time, channels]", dy.shape())) };
    let &[taps, cin, w_out] = &*weight.shape() else { return Err(Error::shape(NAME, "weight", "[taps, in, out]", weight.shape())) };
    if cout != w_out || tout != geometry.output_len(t, taps) {
        let expected = format!("[{batch}, {}, {w_out}]", geometry.output_len(t, taps));
        return Err(Error::shape(NAME, "dy", expected, dy.shape()));
    }
    let mut dx = Tensor::empty(&dy.device(), dy.dtype(), [batch, t, cin])?;
    check(&dx, weight, None, geometry)?;
    match dy.device() {
        Device::Cpu => dispatch_real!(NAME, dy.dtype(), T => cpu::backward_input::<T>(&mut dx, dy, weight, geometry))?,
        Device::Cuda(gpu) => cuda::backward_input(&gpu, &mut dx, dy, weight, geometry)?,
    }
    Ok(dx)
}

/// Gradient with respect to `weight [taps, Cin, Cout]`.
pub fn backward_weight(dy: &Tensor, x: &Tensor, geometry: &Geometry, taps: usize) -> Result<Tensor> {
    let _span = span::op("conv_transpose1d.backward_weight");
    let &[batch, t, cin] = &*x.shape() else { return Err(Error::shape(NAME, "x", "[batch, time, channels]", x.shape())) };
    let &[_, _, cout] = &*dy.shape() else { return Err(Error::shape(NAME, "dy", "[batch, time, channels]", dy.shape())) };
    if *dy.shape() != [batch, geometry.output_len(t, taps), cout] {
        return Err(Error::shape(NAME, "dy", format!("[{batch}, {}, {cout}]", geometry.output_len(t, taps)), dy.shape()));
    }
    let mut dw = Tensor::empty(&x.device(), x.dtype(), [taps, cin, cout])?;
    check(x, &dw, None, geometry)?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::backward_weight::<T>(&mut dw, dy, x, geometry))?,
        Device::Cuda(gpu) => cuda::backward_weight(&gpu, &mut dw, dy, x, geometry)?,
    }
    Ok(dw)
}
