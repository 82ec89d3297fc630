//! Transposed convolution: `y[o, c] = bias[c] + sum_{t, i} prologue(x)[t, i] * w[o + crop - t * stride, i, c]`, or depthwise
//! (as many groups as channels) `y[o, c] = bias[c] + sum_t prologue(x)[t, c] * w[o + crop - t * stride, c, 0]`.
//!
//! | tensor   | shape             |                                                                                |
//! |----------|-------------------|--------------------------------------------------------------------------------|
//! | `x`      | `[B, T, Cin]`     |                                                                                |
//! | `weight` | `[K, Cin, Cout / groups]` | PyTorch's `[Cin, Cout / groups, K]` transposed                         |
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
use crate::cpu::gemm::Packed;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::conv1d::{self, Prologue, Ring};
use crate::ops::{check, elementwise};
use crate::quantized::Quantized;
use crate::{DType, Device, Error, Result, Shape, Tensor, dispatch_real, dispatch_stored, span};

pub static SOURCE: Source =
    Source { path: "ops/conv_transpose1d/conv_transpose1d.cu", text: include_str!("conv_transpose1d.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: "conv_transpose1d", sources: &[&SOURCE], cases: cases::cases };

/// Everything about a transposed convolution that is not a tensor. A negative right crop (PyTorch's `output_padding`) adds
/// outputs beyond the last tap, which are the bias alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub stride: usize,
    pub crop_left: usize,
    pub crop_right: isize,
    /// 1, or the number of channels.
    pub groups: usize,
}

impl Geometry {
    /// `T * stride` outputs, none of which sees a later input.
    pub fn causal(taps: usize, stride: usize) -> Geometry {
        Geometry { stride, crop_left: 0, crop_right: (taps as isize).saturating_sub_unsigned(stride), groups: 1 }
    }

    /// PyTorch's `padding` and `output_padding`.
    pub fn padded(stride: usize, padding: usize, output_padding: usize) -> Geometry {
        Geometry { stride, crop_left: padding, crop_right: (padding as isize).saturating_sub_unsigned(output_padding), groups: 1 }
    }

    /// Number of outputs for `t` inputs.
    pub fn output_len(&self, t: usize, taps: usize) -> usize {
        let Some(last) = t.checked_sub(1) else { return 0 };
        let full = last.saturating_mul(self.stride).saturating_add(taps) as i128;
        (full - self.crop_left as i128 - self.crop_right as i128).clamp(0, usize::MAX as i128) as usize
    }

    /// The convolution that undoes the shape: its forward is this op's input gradient.
    fn adjoint(&self) -> conv1d::Geometry {
        conv1d::Geometry { stride: self.stride, pad_left: self.crop_left, groups: self.groups, ..conv1d::Geometry::default() }
    }
}

/// What is fused around the sum.
#[derive(Clone, Copy, Default)]
pub struct Fused<'a> {
    pub prologue: Prologue<'a>,
    pub bias: Option<&'a Tensor>,
}

/// A weight as its device reads it best: regrouped by phase and packed for the CPU, where bf16 serves inputs in f32, the tensor as
/// it is elsewhere.
pub struct Weight {
    shape: Shape,
    /// None: codes, which suit any.
    dtype: Option<DType>,
    device: Device,
    stride: usize,
    groups: usize,
    storage: Storage,
}

enum Storage {
    Plain(Tensor),
    Packed(Packed),
}

impl Weight {
    /// Prepares `[K, Cin, Cout / groups]` for transposed convolutions of this geometry's stride and groups.
    pub fn new(weight: &Tensor, geometry: &Geometry) -> Result<Weight> {
        let shape = weight.shape();
        if shape.contains(&0) {
            return Err(Error::shape(NAME, "weight", "at least one of each", shape));
        }
        check_weight(shape, geometry)?;
        let storage = match (weight.device(), weight.dtype()) {
            (Device::Cpu, dtype) if geometry.groups == 1 => {
                Storage::Packed(dispatch_stored!(NAME, dtype, W => cpu::pack::<W>(weight, geometry.stride))?)
            }
            (Device::Cpu, DType::BF16) => return Weight::new(&elementwise::convert(weight, DType::F32)?, geometry),
            _ => Storage::Plain(weight.copy()?),
        };
        let dtype = Some(weight.dtype());
        Ok(Weight { shape, dtype, device: weight.device(), stride: geometry.stride, groups: geometry.groups, storage })
    }

    /// As [`Weight::new`], of codes `[Cout, K Cin]` of eight bits with one scale a row, for one group. The CPU alone has such.
    pub fn quantized(weight: &Quantized, taps: usize, geometry: &Geometry) -> Result<Weight> {
        let (outputs, depth) = weight.extents(NAME)?;
        if taps == 0 || !depth.is_multiple_of(taps) || geometry.groups != 1 {
            return Err(Error::shape(NAME, "codes", format!("[_, a multiple of {taps} taps], of one group"), weight.codes.shape()));
        }
        let shape = Shape::try_from(&[taps, depth / taps, outputs][..])?;
        check_weight(shape, geometry)?;
        let storage = Storage::Packed(Packed::quantized(&cpu::phases(weight, taps, geometry.stride)?)?);
        Ok(Weight { shape, dtype: None, device: Device::Cpu, stride: geometry.stride, groups: 1, storage })
    }

    /// `[K, Cin, Cout / groups]`
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Size of the values as given, or of the codes.
    pub fn bytes(&self) -> usize {
        match (&self.storage, self.dtype) {
            (Storage::Packed(packed), None) => packed.bytes(),
            (_, dtype) => self.shape.elements() * dtype.map_or(0, DType::bytes),
        }
    }
}

/// What a transposed convolution takes for its weight.
#[derive(Clone, Copy)]
pub enum AnyWeight<'a> {
    Tensor(&'a Tensor),
    Prepared(&'a Weight),
}

impl<'a> From<&'a Tensor> for AnyWeight<'a> {
    fn from(weight: &'a Tensor) -> Self {
        AnyWeight::Tensor(weight)
    }
}

impl<'a> From<&'a Weight> for AnyWeight<'a> {
    fn from(weight: &'a Weight) -> Self {
        AnyWeight::Prepared(weight)
    }
}

impl<'a> AnyWeight<'a> {
    fn shape(self) -> Shape {
        match self {
            AnyWeight::Tensor(w) => w.shape(),
            AnyWeight::Prepared(w) => w.shape,
        }
    }

    fn check(self, x: &Tensor, g: &Geometry) -> Result<()> {
        match self {
            AnyWeight::Tensor(w) => check::alike(NAME, x, "weight", w),
            AnyWeight::Prepared(w) if (w.stride, w.groups) != (g.stride, g.groups) => {
                let what = format!("the weight was prepared for stride {} and {} groups, not {g:?}", w.stride, w.groups);
                Err(Error::argument(NAME, what))
            }
            AnyWeight::Prepared(w) => check::prepared(NAME, x, &w.device, w.dtype),
        }
    }

    fn tensor(self) -> Option<&'a Tensor> {
        match self {
            AnyWeight::Tensor(w) | AnyWeight::Prepared(Weight { storage: Storage::Plain(w), .. }) => Some(w),
            AnyWeight::Prepared(_) => None,
        }
    }

    fn packed(self) -> Option<&'a Packed> {
        match self {
            AnyWeight::Prepared(Weight { storage: Storage::Packed(packed), .. }) => Some(packed),
            _ => None,
        }
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

/// Taps, input and output channels of a weight of this shape.
fn check_weight(ws: Shape, g: &Geometry) -> Result<[usize; 3]> {
    let &[taps, cin, cout_group] = &*ws else { return Err(Error::shape(NAME, "weight", "[taps, in, out / groups]", ws)) };
    if g.stride == 0 || taps == 0 {
        return Err(Error::argument(NAME, format!("stride and taps must be positive: {g:?}, {taps} taps")));
    }
    if cin == 0 || cout_group == 0 {
        return Err(Error::shape(NAME, "weight", "at least one input and one output channel", ws));
    }
    if g.groups != 1 && (g.groups != cin || cout_group != 1) {
        return Err(Error::shape(NAME, "weight", format!("1 group or depthwise [_, {0}, 1] with {0} groups", g.groups), ws));
    }
    let cout = if g.groups == 1 { cout_group } else { cin };
    let regrouped = taps.checked_next_multiple_of(g.stride).and_then(|n| n.checked_mul(cin)?.checked_mul(cout_group));
    if regrouped.is_none_or(|n| n > i32::MAX as usize) {
        return Err(Error::argument(NAME, format!("{g:?} with {ws:?} exceeds 2^31 weights")));
    }
    Ok([taps, cin, cout])
}

fn check(x: &Tensor, weight: AnyWeight, g: &Geometry, fused: &Fused) -> Result<Extents> {
    let extents = check_shapes(x.shape(), weight.shape(), g)?;
    if let Some(b) = fused.bias {
        if *b.shape() != [extents.cout] {
            return Err(Error::shape(NAME, "bias", format!("[{}]", extents.cout), b.shape()));
        }
        check::alike(NAME, x, "bias", b)?;
    }
    fused.prologue.check(NAME, x, extents.cin)?;
    weight.check(x, g)?;
    Ok(extents)
}

fn check_shapes(xs: Shape, ws: Shape, g: &Geometry) -> Result<Extents> {
    let &[batch, t, cin] = &*xs else { return Err(Error::shape(NAME, "x", "[batch, time, channels]", xs)) };
    let [taps, w_in, cout] = check_weight(ws, g)?;
    // Positions fit in 32 bits, so no sum of a few of them overflows.
    let tout = g.output_len(t, taps);
    let extents = [tout.checked_add(g.crop_left), t.checked_mul(g.stride)];
    if extents.iter().any(|n| n.is_none_or(|n| n > i32::MAX as usize)) {
        return Err(Error::argument(NAME, format!("{g:?} with {taps} taps over {t} rows exceeds 2^31 rows")));
    }
    if w_in != cin {
        return Err(Error::shape(NAME, "weight", format!("[_, {cin}, _]"), ws));
    }
    Ok(Extents { batch, t, cin, taps, cout, tout })
}

fn run(x: &Tensor, ring: Option<&Ring>, weight: AnyWeight, geometry: &Geometry, fused: &Fused, e: &Extents) -> Result<Tensor> {
    let mut y = Tensor::empty(&x.device(), x.dtype(), [e.batch, e.tout, e.cout])?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::forward::<T>(&mut y, x, ring, weight, geometry, fused, e))?,
        Device::Cuda(gpu) => {
            let weight = weight.tensor().ok_or(Error::DeviceMismatch { op: NAME, operand: "weight" })?;
            cuda::forward(&gpu, &mut y, x, ring, weight, geometry, fused, e)?;
        }
    }
    Ok(y)
}

/// The whole signal at once.
pub fn forward<'w>(x: &Tensor, weight: impl Into<AnyWeight<'w>>, geometry: &Geometry, fused: Fused) -> Result<Tensor> {
    let _span = span::op("conv_transpose1d.forward");
    let weight = weight.into();
    let e = check(x, weight, geometry, &fused)?;
    run(x, None, weight, geometry, &fused, &e)
}

/// An all-zero past for `batch` streams: `ceil(taps / stride) - 1` input rows.
pub fn ring(device: &Device, dtype: DType, batch: usize, taps: usize, channels: usize, stride: usize) -> Result<Ring> {
    let history = taps.div_ceil(stride.max(1)).max(1);
    Ring::new(device, dtype, batch, history, channels, &conv1d::Geometry::default())
}

/// The next `T` rows of `B` streams: `T * stride` outputs, as [`forward`] with [`Geometry::causal`] over the whole would give,
/// bit for bit, whatever crops `geometry` has. Streams whose `mask` (u8 `[B]`) is zero keep their past; their output is
/// unspecified.
pub fn step<'w>(
    x: &Tensor,
    ring: &mut Ring,
    weight: impl Into<AnyWeight<'w>>,
    geometry: &Geometry,
    fused: Fused,
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    let _span = span::op("conv_transpose1d.step");
    let weight = weight.into();
    let taps = weight.shape().first().copied().unwrap_or(0);
    let geometry = Geometry { groups: geometry.groups, ..Geometry::causal(taps, geometry.stride) };
    let mut e = check(x, weight, &geometry, &fused)?;
    e.tout = e.t * geometry.stride;
    let past = e.taps.div_ceil(geometry.stride) - 1;
    ring.check(NAME, x, past, mask)?;
    let y = run(x, Some(ring), weight, &geometry, &fused, &e)?;
    ring.append(x, mask)?;
    Ok(y)
}

/// Gradient with respect to `x [B, t, Cin]`: a strided convolution of `dy` with each tap transposed.
pub fn backward_input(dy: &Tensor, weight: &Tensor, geometry: &Geometry, t: usize) -> Result<Tensor> {
    let _span = span::op("conv_transpose1d.backward_input");
    let &[batch, tout, cout] = &*dy.shape() else { return Err(Error::shape(NAME, "dy", "[batch, time, channels]", dy.shape())) };
    let [taps, cin, w_out] = check_weight(weight.shape(), geometry)?;
    if cout != w_out || tout != geometry.output_len(t, taps) {
        let expected = format!("[{batch}, {}, {w_out}]", geometry.output_len(t, taps));
        return Err(Error::shape(NAME, "dy", expected, dy.shape()));
    }
    let mut dx = Tensor::empty(&dy.device(), dy.dtype(), [batch, t, cin])?;
    check(&dx, weight.into(), geometry, &Fused::default())?;
    if geometry.groups > 1 {
        let weight = weight.copy()?.reshape([taps, 1, cin])?;
        conv1d::convolve(&mut dx, dy, None, (&weight).into(), &geometry.adjoint(), &conv1d::Fused::default())?;
        return Ok(dx);
    }
    match dy.device() {
        Device::Cpu => dispatch_real!(NAME, dy.dtype(), T => cpu::backward_input::<T>(&mut dx, dy, weight, geometry))?,
        Device::Cuda(gpu) => cuda::backward_input(&gpu, &mut dx, dy, weight, geometry)?,
    }
    Ok(dx)
}

/// Gradient with respect to `weight [taps, Cin, Cout / groups]`.
pub fn backward_weight(dy: &Tensor, x: &Tensor, geometry: &Geometry, taps: usize) -> Result<Tensor> {
    backward_weight_in(x.dtype(), dy, x, geometry, taps)
}

/// As [`backward_weight`], in `dtype`: that of `x`, or on CUDA, of one group, f32, without the rounding of a store.
pub fn backward_weight_in(dtype: DType, dy: &Tensor, x: &Tensor, geometry: &Geometry, taps: usize) -> Result<Tensor> {
    let _span = span::op("conv_transpose1d.backward_weight");
    let &[batch, t, cin] = &*x.shape() else { return Err(Error::shape(NAME, "x", "[batch, time, channels]", x.shape())) };
    let &[_, _, cout] = &*dy.shape() else { return Err(Error::shape(NAME, "dy", "[batch, time, channels]", dy.shape())) };
    if *dy.shape() != [batch, geometry.output_len(t, taps), cout] {
        return Err(Error::shape(NAME, "dy", format!("[{batch}, {}, {cout}]", geometry.output_len(t, taps)), dy.shape()));
    }
    check::sums(NAME, x, "dw", dtype, geometry.groups == 1)?;
    let mut dw = Tensor::empty(&x.device(), dtype, [taps, cin, cout / geometry.groups.max(1)])?;
    check_shapes(x.shape(), dw.shape(), geometry)?;
    check::alike(NAME, x, "dy", dy)?;
    if geometry.groups > 1 {
        let mut turned = dw.reshape([taps, 1, cin])?;
        conv1d::correlate(&mut turned, x, dy, &geometry.adjoint())?;
        return turned.reshape([taps, cin, 1]);
    }
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::backward_weight::<T>(&mut dw, dy, x, geometry))?,
        Device::Cuda(gpu) => cuda::backward_weight(&gpu, &mut dw, dy, x, geometry)?,
    }
    Ok(dw)
}
