//! One product over packed panels. What follows the sums is applied to parts of the output as they come.

use super::{Activation, Fused};
use crate::cpu::gemm::{Gather, Packed, Start, product};
use crate::cpu::{math, parallel};
use crate::tensor::Scratch;
use crate::{Element, Real, Result, Tensor};

/// `[N, K]` as the product reads it.
pub fn pack<W: Element>(weight: &[W], outputs: usize, inputs: usize) -> Result<Packed> {
    Packed::from_rows(inputs, outputs, |k, first, row: &mut [W]| {
        row.iter_mut().enumerate().for_each(|(n, w)| *w = weight[(first + n) * inputs + k]);
    })
}

pub fn forward<T: Real>(y: &mut Tensor, x: &Tensor, weight: &Packed, fused: &Fused) -> Result<()> {
    let (inputs, width, rows) = (x.shape().last_dim(), y.shape().last_dim(), y.shape().rows());
    let (bias, scale, residual) = (slice_of::<T>(fused.bias)?, slice_of(fused.scale)?, slice_of(fused.residual)?);
    let a = Gather { data: x.as_slice::<T>()?, row_stride: inputs, taps: 1, tap_stride: 0, width: inputs, column_stride: 1 };
    let (panels, start) = (weight.panels()?, bias.map_or(Start::Zero, Start::Bias));
    // The part of row `i` from column `j` on, once activated.
    let finish = |i: usize, j: usize, part: &mut [T]| {
        if let Some(scale) = scale {
            part.iter_mut().zip(&scale[j..]).for_each(|(y, &s)| *y *= s);
        }
        if let Some(residual) = residual {
            part.iter_mut().zip(&residual[i * width + j..]).for_each(|(y, &r)| *y += r);
        }
    };
    let y = y.as_mut_slice::<T>()?;
    if fused.activation == Activation::SiluGate {
        let mut sums = Scratch::<T>::new(rows * 2 * width);
        product(&mut sums, rows, a, panels, start, |_, _, _| {});
        parallel::for_rows(y, width, |first, y| {
            for (i, (y, sums)) in y.chunks_exact_mut(width).zip(sums[first * 2 * width..].chunks_exact(2 * width)).enumerate() {
                let (gate, value) = sums.split_at(width);
                y.copy_from_slice(gate);
                math::silu(y);
                y.iter_mut().zip(value).for_each(|(y, &v)| *y *= v);
                finish(first + i, 0, y);
            }
        });
        return Ok(());
    }
    product(y, rows, a, panels, start, |i, j, part| {
        match fused.activation {
            Activation::None | Activation::SiluGate => {}
            Activation::Gelu => math::gelu(part),
            Activation::Silu => math::silu(part),
        }
        finish(i, j, part);
    });
    Ok(())
}

fn slice_of<T: Real>(t: Option<&Tensor>) -> Result<Option<&[T]>> {
    t.map(Tensor::as_slice).transpose()
}
