//! One-dimensional convolution, with what usually surrounds it fused in:
//! `y[t, o] = activation(bias[o] + residual[t, o] + sum_{k, i} prologue(x)[t * stride + k * dilation - pad_left, i] * w[k, i, o])`.
//!
//! | tensor     | shape                            |                                                               |
//! |------------|----------------------------------|---------------------------------------------------------------|
//! | `x`        | `[B, T, Cin]`                    | zero outside `0..T`                                           |
//! | `weight`   | `[K, Cin / groups, Cout]`        | PyTorch's `[Cout, Cin / groups, K]` transposed                |
//! | `bias`     | `[Cout]`                         | optional                                                      |
//! | `residual` | `[B, Tout, Cout]`                | optional                                                      |
//! | `y`        | `[B, Tout, Cout]`                | `Tout = (T + pad_left + pad_right - (K-1) dilation - 1) / stride + 1` |
//!
//! It is a matrix product whose rows are windows of `x`. The sum runs over `k`, then `i`, in that order for every output
//! whatever `B`, `T` or the chunking, so that [`step`] over a stream equals [`forward`] over the whole, bit for bit.
//! Storage f32, bf16 or f16 on CUDA (f32 accumulation), f32 or f64 on the CPU, where a prepared [`Weight`] may be bf16 beside f32.
//! Source: `torch.nn.functional.conv1d`.

mod cases;
pub mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod tests;

use crate::case::Op;
use crate::cpu::gemm::Packed;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::{check, elementwise};
use crate::quantized::{Panels, Quantized};
use crate::{DType, Device, Error, Result, Shape, Tensor, dispatch_real, dispatch_stored, span};

pub static SOURCE: Source = Source { path: "ops/conv1d/conv1d.cu", text: include_str!("conv1d.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: "conv1d", sources: &[&SOURCE], cases: cases::cases };

/// Everything about a convolution that is not a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub stride: usize,
    pub dilation: usize,
    pub groups: usize,
    pub pad_left: usize,
    pub pad_right: usize,
}

impl Default for Geometry {
    fn default() -> Self {
        Geometry { stride: 1, dilation: 1, groups: 1, pad_left: 0, pad_right: 0 }
    }
}

impl Geometry {
    /// All padding on the left, as a stream needs it: `T / stride` outputs, none of which sees the future.
    pub fn causal(taps: usize, stride: usize, dilation: usize) -> Geometry {
        let g = Geometry { stride, dilation, ..Geometry::default() };
        Geometry { pad_left: g.reach(taps).saturating_sub(stride), ..g }
    }

    /// Rows of input that one output sees.
    pub fn reach(&self, taps: usize) -> usize {
        taps.saturating_sub(1).saturating_mul(self.dilation).saturating_add(1)
    }

    fn padded(&self, t: usize) -> usize {
        t.saturating_add(self.pad_left).saturating_add(self.pad_right)
    }

    /// Number of outputs for `t` inputs.
    pub fn output_len(&self, t: usize, taps: usize) -> usize {
        self.padded(t).checked_sub(self.reach(taps)).map_or(0, |n| n / self.stride.max(1) + 1)
    }
}

/// Applied to `x` as it is read.
#[derive(Clone, Copy, Default)]
pub enum Prologue<'a> {
    #[default]
    None,
    /// Snake with `alpha [Cin]`, in f32 (f64 beside f64) as [`crate::ops::snake`] takes it.
    Snake(&'a Tensor),
    Elu,
}

/// Applied to the sum before it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Epilogue {
    #[default]
    None,
    Tanh,
    Elu,
}

/// What is fused around the product.
#[derive(Clone, Copy, Default)]
pub struct Fused<'a> {
    pub prologue: Prologue<'a>,
    pub bias: Option<&'a Tensor>,
    pub residual: Option<&'a Tensor>,
    pub epilogue: Epilogue,
}

impl Prologue<'_> {
    /// That its parameters suit `x` of `channels` channels.
    pub(super) fn check(&self, op: &'static str, x: &Tensor, channels: usize) -> Result<()> {
        match self {
            Prologue::Snake(alpha) => check::parameter(op, x, "alpha", alpha, channels),
            Prologue::None | Prologue::Elu => Ok(()),
        }
    }
}

/// A weight as its device reads it best: packed once for the CPU's product, where bf16 serves inputs in f32, the tensor as it is
/// elsewhere.
pub struct Weight {
    shape: Shape,
    /// None: codes, which suit any.
    dtype: Option<DType>,
    device: Device,
    groups: usize,
    storage: Storage,
}

enum Storage {
    Plain(Tensor),
    Packed(Packed),
}

impl Weight {
    /// Prepares `[K, Cin / groups, Cout]` for convolutions of this geometry's groups.
    pub fn new(weight: &Tensor, geometry: &Geometry) -> Result<Weight> {
        let shape = weight.shape();
        let groups = geometry.groups;
        if shape.len() != 3 || shape.contains(&0) {
            return Err(Error::shape("conv1d", "weight", "[taps, in / groups, out], at least one of each", shape));
        }
        if groups == 0 || !shape[2].is_multiple_of(groups) {
            return Err(Error::shape("conv1d", "weight", format!("[_, _, a multiple of {groups} groups]"), shape));
        }
        let storage = match (weight.device(), weight.dtype()) {
            (Device::Cpu, dtype) if shape[1..] != [1, groups] => {
                Storage::Packed(dispatch_stored!("conv1d", dtype, W => cpu::pack::<W>(weight, groups))?)
            }
            // Depthwise there is no product to pack for, and little to read.
            (Device::Cpu, DType::BF16) => return Weight::new(&elementwise::convert(weight, DType::F32)?, geometry),
            _ => Storage::Plain(weight.copy()?),
        };
        Ok(Weight { shape, dtype: Some(weight.dtype()), device: weight.device(), groups, storage })
    }

    /// As [`Weight::new`], of codes `[Cout, K Cin]`, for one group. The CPU alone has such.
    pub fn quantized(weight: &Quantized, taps: usize) -> Result<Weight> {
        let extents = weight.extents("conv1d")?;
        Weight::packed(extents, taps, Packed::quantized(weight)?)
    }

    /// As [`Weight::quantized`], of codes as the CPU wants them: no copy.
    pub fn panels(weight: Panels, taps: usize) -> Result<Weight> {
        let extents = weight.extents("conv1d")?;
        Weight::packed(extents, taps, Packed::of_panels(weight)?)
    }

    fn packed((outputs, depth): (usize, usize), taps: usize, packed: Packed) -> Result<Weight> {
        if taps == 0 || !depth.is_multiple_of(taps) {
            return Err(Error::argument("conv1d", format!("codes of {depth} columns, expected a multiple of {taps} taps")));
        }
        let shape = Shape::try_from(&[taps, depth / taps, outputs][..])?;
        Ok(Weight { shape, dtype: None, device: Device::Cpu, groups: 1, storage: Storage::Packed(packed) })
    }

    /// `[K, Cin / groups, Cout]`
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

/// What a convolution takes for its weight.
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

    fn check(self, x: &Tensor, groups: usize) -> Result<()> {
        match self {
            AnyWeight::Tensor(w) => check::alike("conv1d", x, "weight", w),
            AnyWeight::Prepared(w) if w.groups != groups => {
                Err(Error::argument("conv1d", format!("the weight was prepared for {} groups, not {groups}", w.groups)))
            }
            AnyWeight::Prepared(w) => check::prepared("conv1d", x, &w.device, w.dtype),
        }
    }

    /// The tensor, unless it was packed.
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

/// The last `P` input rows of each stream, as a ring.
pub struct Ring {
    /// `[B, P, Cin]`; the row of logical time `-j` (j = 1 is the newest) is `(position - j) mod P`.
    pub(crate) rows: Tensor,
    /// `[B]` i32: rows seen so far, modulo `P`.
    pub(crate) position: Tensor,
    /// `[B]` u8: not zero once [`Ring::prime`] has seen the stream.
    primed: Tensor,
}

impl Ring {
    /// An all-zero past for `batch` streams of a causal convolution.
    pub fn new(device: &Device, dtype: DType, batch: usize, taps: usize, channels: usize, geometry: &Geometry) -> Result<Ring> {
        let past = geometry.reach(taps).checked_sub(geometry.stride).ok_or_else(|| {
            Error::argument("conv1d", format!("a stream cannot skip input: stride {} exceeds the reach of {taps} taps", geometry.stride))
        })?;
        check_extents(geometry, taps, past)?;
        Ok(Ring {
            rows: Tensor::zeros(device, dtype, [batch, past, channels])?,
            position: Tensor::zeros(device, DType::I32, [batch])?,
            primed: Tensor::zeros(device, DType::U8, [batch])?,
        })
    }

    /// Makes the first row of `x [B, T, Cin]` the whole past of every stream that has had none since [`Ring::new`] or
    /// [`Ring::reset`], as padding by replication does. Called before each [`step`], with its `mask`.
    pub fn prime(&mut self, x: &Tensor, mask: Option<&Tensor>) -> Result<()> {
        let _span = span::op("conv1d.prime");
        self.check("conv1d", x, self.rows.shape()[1], mask)?;
        if x.elements() == 0 || self.rows.elements() == 0 {
            return Ok(());
        }
        match x.device() {
            Device::Cpu => dispatch_real!("conv1d", x.dtype(), T => cpu::prime::<T>(self, x, mask)),
            Device::Cuda(gpu) => cuda::prime(&gpu, self, x, mask),
        }
    }

    /// Forgets the past of every stream whose `mask` (u8 `[B]`) is not zero.
    pub fn reset(&mut self, mask: &Tensor) -> Result<()> {
        check::mask("conv1d", &self.rows.device(), self.rows.shape()[0], Some(mask))?;
        match self.rows.device() {
            Device::Cpu => dispatch_real!("conv1d", self.rows.dtype(), T => cpu::reset::<T>(self, mask.as_slice()?)),
            Device::Cuda(gpu) => cuda::reset(&gpu, self, mask),
        }
    }

    /// That it holds `past` rows beside `x [B, T, C]`, and `mask` a flag for each stream.
    pub(super) fn check(&self, op: &'static str, x: &Tensor, past: usize, mask: Option<&Tensor>) -> Result<()> {
        let [batch, _, channels] = x.shape()[..] else { return Err(Error::shape(op, "x", "[batch, time, channels]", x.shape())) };
        if *self.rows.shape() != [batch, past, channels] {
            return Err(Error::shape(op, "ring", format!("[{batch}, {past}, {channels}]"), self.rows.shape()));
        }
        check::alike(op, x, "ring", &self.rows)?;
        if *self.position.shape() != [batch] {
            return Err(Error::shape(op, "ring position", format!("[{batch}]"), self.position.shape()));
        }
        if self.position.dtype() != DType::I32 {
            return Err(Error::dtype(op, "ring position", "i32", self.position.dtype()));
        }
        if self.position.device() != x.device() {
            return Err(Error::DeviceMismatch { op, operand: "ring position" });
        }
        check::mask(op, &x.device(), x.shape()[0], mask)
    }

    /// Appends the rows of `x` to the past of the streams that `mask` lets run. They were checked.
    pub(super) fn append(&mut self, x: &Tensor, mask: Option<&Tensor>) -> Result<()> {
        match x.device() {
            Device::Cpu => dispatch_real!("conv1d", x.dtype(), T => cpu::append::<T>(self, x, mask)),
            Device::Cuda(gpu) => cuda::append(&gpu, self, x, mask),
        }
    }
}

struct Extents {
    batch: usize,
    t: usize,
    cin: usize,
    taps: usize,
    cout: usize,
}

/// Positions in a padded input of `t` rows fit in 32 bits, so no sum of a few of them overflows, on any device.
fn check_extents(g: &Geometry, taps: usize, t: usize) -> Result<()> {
    match g.padded(t).max(g.reach(taps)).max(g.stride) {
        n if n <= i32::MAX as usize => Ok(()),
        _ => Err(Error::argument("conv1d", format!("{g:?} with {taps} taps over {t} rows exceeds 2^31 rows"))),
    }
}

fn check(x: &Tensor, weight: AnyWeight, g: &Geometry) -> Result<Extents> {
    let extents = check_shapes(x.shape(), weight.shape(), g)?;
    weight.check(x, g.groups)?;
    Ok(extents)
}

fn check_shapes(xs: Shape, ws: Shape, g: &Geometry) -> Result<Extents> {
    const OP: &str = "conv1d";
    let &[batch, t, cin] = &*xs else { return Err(Error::shape(OP, "x", "[batch, time, channels]", xs)) };
    let &[taps, cin_group, cout] = &*ws else { return Err(Error::shape(OP, "weight", "[taps, in / groups, out]", ws)) };
    if g.stride == 0 || g.dilation == 0 || g.groups == 0 || taps == 0 {
        return Err(Error::argument(OP, format!("stride, dilation, groups and taps must be positive: {g:?}, {taps} taps")));
    }
    if cin == 0 || cout == 0 {
        return Err(Error::shape(OP, "weight", "at least one input and one output channel", ws));
    }
    check_extents(g, taps, t)?;
    if !cin.is_multiple_of(g.groups) || !cout.is_multiple_of(g.groups) || cin / g.groups != cin_group {
        return Err(Error::shape(OP, "weight", format!("[_, {cin} / {} groups, a multiple of {}]", g.groups, g.groups), ws));
    }
    Ok(Extents { batch, t, cin, taps, cout })
}

fn check_fused(x: &Tensor, e: &Extents, tout: usize, fused: &Fused) -> Result<()> {
    let vector = |operand, v: Option<&Tensor>, n: usize| match v {
        Some(v) if *v.shape() != [n] => Err(Error::shape("conv1d", operand, format!("[{n}]"), v.shape())),
        Some(v) => check::alike("conv1d", x, operand, v),
        None => Ok(()),
    };
    vector("bias", fused.bias, e.cout)?;
    fused.prologue.check("conv1d", x, e.cin)?;
    match fused.residual {
        Some(r) if *r.shape() != [e.batch, tout, e.cout] => {
            Err(Error::shape("conv1d", "residual", format!("[{}, {tout}, {}]", e.batch, e.cout), r.shape()))
        }
        Some(r) => check::alike("conv1d", x, "residual", r),
        None => Ok(()),
    }
}

/// The whole signal at once.
pub fn forward<'w>(x: &Tensor, weight: impl Into<AnyWeight<'w>>, geometry: &Geometry, fused: Fused) -> Result<Tensor> {
    let _span = span::op("conv1d.forward");
    let weight = weight.into();
    let e = check(x, weight, geometry)?;
    let tout = geometry.output_len(e.t, e.taps);
    check_fused(x, &e, tout, &fused)?;
    let mut y = Tensor::empty(&x.device(), x.dtype(), [e.batch, tout, e.cout])?;
    convolve(&mut y, x, None, weight, geometry, &fused)?;
    Ok(y)
}

/// As many rows as `y` has; everything was checked.
pub(super) fn convolve(y: &mut Tensor, x: &Tensor, ring: Option<&Ring>, weight: AnyWeight, g: &Geometry, fused: &Fused) -> Result<()> {
    match x.device() {
        Device::Cpu => dispatch_real!("conv1d", x.dtype(), T => cpu::forward::<T>(y, x, ring, weight, g, fused)),
        Device::Cuda(gpu) => {
            let weight = weight.tensor().ok_or(Error::DeviceMismatch { op: "conv1d", operand: "weight" })?;
            cuda::forward(&gpu, y, x, ring, weight, g, fused)
        }
    }
}

/// The next `T` rows (a multiple of the stride) of `B` streams: reads the past from `ring` in place of left padding, then
/// appends `x` to it. Streams whose `mask` (u8 `[B]`) is zero keep their past; their output is unspecified.
pub fn step<'w>(
    x: &Tensor,
    ring: &mut Ring,
    weight: impl Into<AnyWeight<'w>>,
    geometry: &Geometry,
    fused: Fused,
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    let _span = span::op("conv1d.step");
    let weight = weight.into();
    let past = ring.rows.shape()[1];
    let g = Geometry { pad_left: past, pad_right: 0, ..*geometry };
    let e = check(x, weight, &g)?;
    if !e.t.is_multiple_of(g.stride) {
        return Err(Error::shape("conv1d", "x", format!("a multiple of the stride {} in time", g.stride), x.shape()));
    }
    ring.check("conv1d", x, g.reach(e.taps).saturating_sub(g.stride), mask)?;
    let tout = e.t / g.stride;
    check_fused(x, &e, tout, &fused)?;
    let mut y = Tensor::empty(&x.device(), x.dtype(), [e.batch, tout, e.cout])?;
    convolve(&mut y, x, Some(ring), weight, &g, &fused)?;
    ring.append(x, mask)?;
    Ok(y)
}

/// Gradient with respect to `x [B, t, Cin]` of the bare convolution (no prologue, no epilogue).
pub fn backward_input(dy: &Tensor, weight: &Tensor, geometry: &Geometry, t: usize) -> Result<Tensor> {
    let _span = span::op("conv1d.backward_input");
    let &[batch, tout, cout] = &*dy.shape() else { return Err(Error::shape("conv1d", "dy", "[batch, time, channels]", dy.shape())) };
    let &[taps, cin_group, _] = &*weight.shape() else {
        return Err(Error::shape("conv1d", "weight", "[taps, in / groups, out]", weight.shape()));
    };
    if cout != weight.shape()[2] || tout != geometry.output_len(t, taps) {
        let expected = format!("[{batch}, {}, {}]", geometry.output_len(t, taps), weight.shape()[2]);
        return Err(Error::shape("conv1d", "dy", expected, dy.shape()));
    }
    let mut dx = Tensor::empty(&dy.device(), dy.dtype(), [batch, t, cin_group.saturating_mul(geometry.groups)])?;
    check(&dx, weight.into(), geometry)?;
    match dy.device() {
        Device::Cpu => dispatch_real!("conv1d", dy.dtype(), T => cpu::backward_input::<T>(&mut dx, dy, weight, geometry))?,
        Device::Cuda(gpu) => cuda::backward_input(&gpu, &mut dx, dy, weight, geometry)?,
    }
    Ok(dx)
}

/// Gradient with respect to `weight [taps, Cin / groups, Cout]`. That of the bias is [`crate::ops::reduce::sum_rows`] of `dy`.
pub fn backward_weight(dy: &Tensor, x: &Tensor, geometry: &Geometry, taps: usize) -> Result<Tensor> {
    backward_weight_in(x.dtype(), dy, x, geometry, taps)
}

/// As [`backward_weight`], in `dtype`: that of `x`, or on CUDA, of one group, f32, without the rounding of a store.
pub fn backward_weight_in(dtype: DType, dy: &Tensor, x: &Tensor, geometry: &Geometry, taps: usize) -> Result<Tensor> {
    let _span = span::op("conv1d.backward_weight");
    let &[batch, t, cin] = &*x.shape() else { return Err(Error::shape("conv1d", "x", "[batch, time, channels]", x.shape())) };
    let &[_, _, cout] = &*dy.shape() else { return Err(Error::shape("conv1d", "dy", "[batch, time, channels]", dy.shape())) };
    if *dy.shape() != [batch, geometry.output_len(t, taps), cout] {
        return Err(Error::shape("conv1d", "dy", format!("[{batch}, {}, _]", geometry.output_len(t, taps)), dy.shape()));
    }
    check::sums("conv1d", x, "dw", dtype, geometry.groups == 1)?;
    let mut dw = Tensor::empty(&x.device(), dtype, [taps, cin / geometry.groups.max(1), cout])?;
    check_shapes(x.shape(), dw.shape(), geometry)?;
    check::alike("conv1d", x, "dy", dy)?;
    correlate(&mut dw, dy, x, geometry)?;
    Ok(dw)
}

/// [`backward_weight`] for as many taps as `dw` has; everything was checked.
pub(super) fn correlate(dw: &mut Tensor, dy: &Tensor, x: &Tensor, geometry: &Geometry) -> Result<()> {
    match x.device() {
        Device::Cpu => dispatch_real!("conv1d", x.dtype(), T => cpu::backward_weight::<T>(dw, dy, x, geometry)),
        Device::Cuda(gpu) => cuda::backward_weight(&gpu, dw, dy, x, geometry),
    }
}
