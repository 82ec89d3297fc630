//! Two-dimensional convolution with bias and LeakyReLU:
//! `y[h, w, o] = leaky(bias[o] + sum_{k, l, i} x[h sh + k dh - ph, w sw + l dw - pw, i] w[(k, l), i, o])`, `leaky(v) = v < 0 ? slope v : v`.
//!
//! | tensor   | shape                  |                                                                                      |
//! |----------|------------------------|--------------------------------------------------------------------------------------|
//! | `x`      | `[B, H, W, Cin]`       | zero outside `0..H`, `0..W`                                                          |
//! | `weight` | `[KH KW, Cin, Cout]`   | PyTorch's `[Cout, Cin, KH, KW]` transposed; taps row by row                          |
//! | `bias`   | `[Cout]`               | optional                                                                             |
//! | `y`      | `[B, Hout, Wout, Cout]` | `Hout = (H + 2 ph - (KH - 1) dh - 1) / sh + 1`, `Wout` likewise                     |
//!
//! It is a matrix product whose rows are windows of `x`; the sum runs over taps, then channels. The gradient to `x` is one such
//! product for each residue of the strides, of the taps that meet it: no product is with a zero that a stride put there.
//! Gradients are of the bare convolution: [`crate::ops::activation::leaky_relu_backward`] comes before them, and that of the bias
//! is [`crate::ops::reduce::sum_rows`] of `dy`. Storage f32, bf16 or f16 on CUDA (f32 accumulation), f32 or f64 on the CPU.
//! Source: `torch.nn.functional.conv2d`.

mod cases;
mod cpu;
mod cuda;

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
use crate::{DType, Device, Error, Result, Tensor, dispatch_real, span};

pub static SOURCE: Source = Source { path: "ops/conv2d/conv2d.cu", text: include_str!("conv2d.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "conv2d";

/// Everything about a convolution that is not a tensor: along the height, along the width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    /// Zeros at either end.
    pub padding: [usize; 2],
}

impl Geometry {
    /// Stride 1, no dilation, no padding.
    pub fn new(kernel: [usize; 2]) -> Geometry {
        Geometry { kernel, stride: [1, 1], dilation: [1, 1], padding: [0, 0] }
    }

    /// As many rows and columns as `x` has, over the stride.
    pub fn same(kernel: [usize; 2], stride: [usize; 2], dilation: [usize; 2]) -> Geometry {
        let padding = [0, 1].map(|axis| kernel[axis].saturating_sub(1).saturating_mul(dilation[axis]) / 2);
        Geometry { kernel, stride, dilation, padding }
    }

    pub fn taps(&self) -> usize {
        self.kernel[0].saturating_mul(self.kernel[1])
    }

    fn reach(&self, axis: usize) -> usize {
        self.kernel[axis].saturating_sub(1).saturating_mul(self.dilation[axis]).saturating_add(1)
    }

    fn padded(&self, axis: usize, n: usize) -> usize {
        n.saturating_add(self.padding[axis].saturating_mul(2))
    }

    /// Height and width of the output for those of `x`.
    pub fn output(&self, size: [usize; 2]) -> [usize; 2] {
        [0, 1].map(|axis| self.padded(axis, size[axis]).checked_sub(self.reach(axis)).map_or(0, |n| n / self.stride[axis].max(1) + 1))
    }

    /// The positions `residue`, `residue + stride`, .. of an axis of `x` that has `n`.
    fn phase(&self, axis: usize, residue: usize, n: usize) -> Phase {
        let (kernel, stride, dilation) = (self.kernel[axis], self.stride[axis], self.dilation[axis]);
        let common = gcd(stride, dilation);
        let every = stride / common;
        let from = |tap: usize| (residue + self.padding[axis]) as isize - (tap * dilation) as isize;
        let first = (0..every.min(kernel)).find(|&tap| from(tap) % stride as isize == 0);
        Phase {
            rows: n.saturating_sub(residue).div_ceil(stride),
            first: first.unwrap_or(0),
            every,
            taps: first.map_or(0, |first| (kernel - first).div_ceil(every)),
            start: first.map_or(0, |first| from(first) / stride as isize),
            step: dilation / common,
        }
    }
}

/// What reads the `q`-th of `rows` positions that are a stride apart: output `q + start - j step` through tap `first + j every`, for
/// every `j < taps`.
struct Phase {
    rows: usize,
    first: usize,
    every: usize,
    taps: usize,
    start: isize,
    step: usize,
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn four(operand: &'static str, x: &Tensor) -> Result<[usize; 4]> {
    x.shape()[..].try_into().map_err(|_| Error::shape(NAME, operand, "[batch, height, width, channels]", x.shape()))
}

/// That a `weight` over images of `size` is one, and positions fit in 32 bits.
fn check(g: &Geometry, size: [usize; 2], channels: usize, weight: &Tensor) -> Result<()> {
    if [g.kernel, g.stride, g.dilation].concat().contains(&0) {
        return Err(Error::argument(NAME, format!("kernel, stride and dilation must be positive: {g:?}")));
    }
    for axis in 0..2 {
        if g.padded(axis, size[axis]).max(g.reach(axis)).max(g.stride[axis]) > i32::MAX as usize {
            return Err(Error::argument(NAME, format!("{g:?} over {size:?} exceeds 2^31 positions")));
        }
    }
    match *weight.shape() {
        [taps, cin, cout] if taps == g.taps() && cin == channels && cin > 0 && cout > 0 => Ok(()),
        _ => Err(Error::shape(NAME, "weight", format!("[{}, {channels}, out]", g.taps()), weight.shape())),
    }
}

/// `slope`: of the LeakyReLU, 1 without.
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, geometry: &Geometry, slope: f64) -> Result<Tensor> {
    let _span = span::op("conv2d.forward");
    let [batch, height, width, cin] = four("x", x)?;
    check(geometry, [height, width], cin, weight)?;
    check::alike(NAME, x, "weight", weight)?;
    let cout = weight.shape()[2];
    if let Some(bias) = bias {
        if *bias.shape() != [cout] {
            return Err(Error::shape(NAME, "bias", format!("[{cout}]"), bias.shape()));
        }
        check::alike(NAME, x, "bias", bias)?;
    }
    let [rows, columns] = geometry.output([height, width]);
    let mut y = Tensor::empty(&x.device(), x.dtype(), [batch, rows, columns, cout])?;
    if y.elements() == 0 {
        return Ok(y);
    }
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::forward::<T>(&mut y, x, weight, bias, geometry, slope))?,
        Device::Cuda(gpu) => cuda::forward(&gpu, &mut y, x, weight, bias, geometry, slope)?,
    }
    Ok(y)
}

fn check_gradient(dy: &Tensor, g: &Geometry, size: [usize; 2], cout: usize) -> Result<[usize; 4]> {
    let shape = four("dy", dy)?;
    let [rows, columns] = g.output(size);
    if shape[1..] != [rows, columns, cout] {
        return Err(Error::shape(NAME, "dy", format!("[_, {rows}, {columns}, {cout}]"), dy.shape()));
    }
    Ok(shape)
}

/// Gradient with respect to `x [B, H, W, Cin]` of `size` `H`, `W`.
pub fn backward_input(dy: &Tensor, weight: &Tensor, geometry: &Geometry, size: [usize; 2]) -> Result<Tensor> {
    let _span = span::op("conv2d.backward_input");
    let &[_, cin, cout] = &*weight.shape() else { return Err(Error::shape(NAME, "weight", "[taps, in, out]", weight.shape())) };
    check(geometry, size, cin, weight)?;
    let [batch, ..] = check_gradient(dy, geometry, size, cout)?;
    check::alike(NAME, dy, "weight", weight)?;
    let mut dx = Tensor::empty(&dy.device(), dy.dtype(), [batch, size[0], size[1], cin])?;
    if dx.elements() == 0 || dy.elements() == 0 {
        dx.set_zero()?;
        return Ok(dx);
    }
    match dy.device() {
        Device::Cpu => dispatch_real!(NAME, dy.dtype(), T => cpu::backward_input::<T>(&mut dx, dy, weight, geometry))?,
        Device::Cuda(gpu) => cuda::backward_input(&gpu, &mut dx, dy, weight, geometry)?,
    }
    Ok(dx)
}

/// Gradient with respect to `weight [KH KW, Cin, Cout]`.
pub fn backward_weight(dy: &Tensor, x: &Tensor, geometry: &Geometry) -> Result<Tensor> {
    backward_weight_in(x.dtype(), dy, x, geometry)
}

/// As [`backward_weight`], in `dtype`: that of `x`, or on CUDA f32, without the rounding of a store.
pub fn backward_weight_in(dtype: DType, dy: &Tensor, x: &Tensor, geometry: &Geometry) -> Result<Tensor> {
    let _span = span::op("conv2d.backward_weight");
    let [batch, height, width, cin] = four("x", x)?;
    let [_, _, _, cout] = four("dy", dy)?;
    check::sums(NAME, x, "dw", dtype, true)?;
    let mut dw = Tensor::empty(&x.device(), dtype, [geometry.taps(), cin, cout])?;
    check(geometry, [height, width], cin, &dw)?;
    if check_gradient(dy, geometry, [height, width], cout)?[0] != batch {
        return Err(Error::shape(NAME, "dy", format!("[{batch}, ..]"), dy.shape()));
    }
    check::alike(NAME, x, "dy", dy)?;
    if x.elements() == 0 || dy.elements() == 0 {
        dw.set_zero()?;
        return Ok(dw);
    }
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::backward_weight::<T>(&mut dw, dy, x, geometry))?,
        Device::Cuda(gpu) => cuda::backward_weight(&gpu, &mut dw, dy, x, geometry)?,
    }
    Ok(dw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_emulator, check_gradient, normal};

    const GEOMETRIES: [Geometry; 6] = [
        Geometry { kernel: [3, 3], stride: [1, 1], dilation: [1, 1], padding: [1, 1] },
        Geometry { kernel: [5, 1], stride: [3, 1], dilation: [1, 1], padding: [2, 0] },
        Geometry { kernel: [3, 5], stride: [1, 2], dilation: [2, 1], padding: [2, 2] },
        Geometry { kernel: [2, 3], stride: [2, 4], dilation: [3, 2], padding: [1, 0] },
        Geometry { kernel: [1, 2], stride: [3, 2], dilation: [1, 2], padding: [0, 3] },
        Geometry { kernel: [4, 4], stride: [2, 3], dilation: [1, 1], padding: [3, 1] },
    ];

    /// The formula, one multiply at a time.
    fn defined(x: &Tensor, weight: &Tensor, bias: &Tensor, g: &Geometry, slope: f64) -> Vec<f64> {
        let ([batch, height, width, cin], cout) = (four("x", x).unwrap(), weight.shape()[2]);
        let (x, w, bias) = (x.to_f64().unwrap(), weight.to_f64().unwrap(), bias.to_f64().unwrap());
        let [rows, columns] = g.output([height, width]);
        let at = |axis: usize, out: usize, tap: usize, n: usize| {
            (out * g.stride[axis] + tap * g.dilation[axis]).checked_sub(g.padding[axis]).filter(|&at| at < n)
        };
        let mut y = Vec::new();
        for (b, h, v, o) in (0..batch * rows * columns * cout)
            .map(|i| (i / (rows * columns * cout), i / (columns * cout) % rows, i / cout % columns, i % cout))
        {
            let mut sum = bias[o];
            for (k, l) in (0..g.taps()).map(|tap| (tap / g.kernel[1], tap % g.kernel[1])) {
                let (Some(p), Some(q)) = (at(0, h, k, height), at(1, v, l, width)) else { continue };
                for i in 0..cin {
                    sum += x[((b * height + p) * width + q) * cin + i] * w[((k * g.kernel[1] + l) * cin + i) * cout + o];
                }
            }
            y.push(if sum < 0.0 { slope * sum } else { sum });
        }
        y
    }

    #[test]
    fn values_are_those_of_the_formula() {
        // Widths on either side of what is gathered once for all threads.
        for (g, (cin, cout)) in GEOMETRIES.iter().flat_map(|g| [(1, 3), (5, 17), (90, 130)].map(|c| (g, c))) {
            let (x, w, bias) = (normal([2, 9, 11, cin], 1), normal([g.taps(), cin, cout], 2), normal([cout], 3));
            let found = forward(&x, &w, Some(&bias), g, 0.1).unwrap().to_f64().unwrap();
            let expected = defined(&x, &w, &bias, g, 0.1);
            assert_eq!(found.len(), expected.len());
            assert!(found.iter().zip(&expected).all(|(f, e)| (f - e).abs() < 1e-11), "{g:?} {cin} to {cout}");
        }
    }

    #[test]
    fn gradients_match_differences() {
        for g in &GEOMETRIES {
            let (x, w) = (normal([2, 7, 8, 3], 1), normal([g.taps(), 3, 4], 2));
            check_gradient(
                &[x, w],
                |i| forward(&i[0], &i[1], None, g, 1.0),
                |i, dy| Ok(vec![Some(backward_input(dy, &i[1], g, [7, 8])?), Some(backward_weight(dy, &i[0], g)?)]),
            );
        }
    }

    #[test]
    fn rows_do_not_depend_on_how_many_there_are() {
        let g = GEOMETRIES[0];
        let (x, w) = (normal([3, 40, 5, 64], 1), normal([9, 64, 128], 2));
        let whole = forward(&x, &w, None, &g, 1.0).unwrap().to_f64().unwrap();
        let last = forward(&x.part(2 * 40 * 5 * 64, [1, 40, 5, 64]).unwrap(), &w, None, &g, 1.0).unwrap().to_f64().unwrap();
        assert_eq!(whole[2 * last.len()..], last);
    }

    #[test]
    fn what_is_no_convolution_is_an_error() {
        let (x, w) = (normal([1, 4, 4, 2], 1), normal([9, 2, 3], 2));
        let g = Geometry::new([3, 3]);
        assert!(forward(&x, &w, None, &g, 1.0).is_ok());
        assert_eq!(*forward(&x, &w, None, &Geometry { dilation: [2, 1], ..g }, 1.0).unwrap().shape(), [1, 0, 2, 3]);
        for g in [
            Geometry { stride: [0, 1], ..g },
            Geometry { dilation: [1, 0], ..g },
            Geometry { kernel: [0, 9], ..g },
            Geometry { kernel: [3, 2], ..g },
            Geometry { padding: [usize::MAX, 1], ..g },
            Geometry { kernel: [usize::MAX, usize::MAX], ..g },
        ] {
            assert!(forward(&x, &w, None, &g, 1.0).is_err(), "{g:?}");
            assert!(backward_input(&normal([1, 2, 2, 3], 3), &w, &g, [4, 4]).is_err(), "{g:?}");
        }
        assert!(forward(&x, &w, Some(&normal([2], 1)), &g, 1.0).is_err());
        assert!(backward_input(&normal([1, 2, 3, 3], 3), &w, &g, [4, 4]).is_err());
        assert!(backward_weight(&normal([2, 2, 2, 3], 3), &x, &g).is_err());
    }

    #[test]
    fn the_emulator_computes_the_same() {
        check_emulator(&OP);
    }
}
