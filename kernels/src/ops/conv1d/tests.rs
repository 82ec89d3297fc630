//! A stream fed in chunks gets the bits of the whole, whichever kernel computes the layer.

use super::*;
use crate::case::SplitMix;
use crate::ops::conv_transpose1d;
use crate::ops::testing::{devices, float_types, normal};
use crate::quantized::Bits;

struct Signal {
    values: Vec<f64>,
    shape: [usize; 3],
}

impl Signal {
    fn new(rng: &mut SplitMix, shape: [usize; 3]) -> Signal {
        Signal { values: (0..shape.iter().product()).map(|_| rng.uniform() - 0.5).collect(), shape }
    }

    fn tensor(&self, device: &Device, dtype: DType) -> Result<Tensor> {
        Tensor::from_f64(device, dtype, &self.values, self.shape)
    }

    /// Rows `from..from + len` of every stream.
    fn chunk(&self, device: &Device, dtype: DType, from: usize, len: usize) -> Result<Tensor> {
        let [batch, time, channels] = self.shape;
        let rows = |b: usize| &self.values[(b * time + from) * channels..][..len * channels];
        Tensor::from_f64(device, dtype, &(0..batch).flat_map(rows).copied().collect::<Vec<_>>(), [batch, len, channels])
    }
}

/// Feeds `x` through `step` in chunks of a few `unit`s and compares with `whole`. Between chunks, stream 0 is paused
/// while the others are not: it must not notice.
fn compare(
    x: &Signal,
    whole: &Tensor,
    unit: usize,
    ring: &mut Ring,
    mut step: impl FnMut(&Tensor, &mut Ring, Option<&Tensor>) -> Result<Tensor>,
) -> Result<()> {
    let (device, dtype) = (whole.device(), whole.dtype());
    let [batch, time, channels] = x.shape;
    let [_, tout, cout] = whole.shape()[..] else { return Err(Error::shape("test", "whole", "three axes", whole.shape())) };
    let whole = whole.to_f64()?;
    let mut rng = SplitMix(11);
    let mut from = 0;
    while from < time {
        let len = (unit * (1 + rng.next() as usize % 4)).min(time - from);
        if rng.next().is_multiple_of(2) {
            let nobody = Tensor::from_slice(&device, &vec![0u8; batch], [batch])?;
            step(&Signal::new(&mut rng, [batch, unit, channels]).tensor(&device, dtype)?, ring, Some(&nobody))?;
        }
        let y = step(&x.chunk(&device, dtype, from, len)?, ring, None)?;
        let (first, rows) = (from * tout / time, y.shape()[1]);
        for (b, y) in y.to_f64()?.chunks(rows * cout).enumerate() {
            assert_eq!(y, &whole[(b * tout + first) * cout..][..rows * cout], "{device:?} {dtype} stream {b}, rows {first}..");
        }
        from += len;
    }
    Ok(())
}

#[test]
fn streaming_equals_offline_bit_for_bit() -> Result<()> {
    // (in, out, taps, stride, dilation): vector and element-wise products, both one-channel kernels.
    for (cin, cout, taps, stride, dilation) in [(16, 24, 7, 1, 3), (5, 33, 4, 2, 1), (1, 16, 7, 1, 1), (24, 1, 7, 1, 1), (8, 8, 10, 5, 1)] {
        let g = Geometry::causal(taps, stride, dilation);
        let mut rng = SplitMix(5);
        let x = Signal::new(&mut rng, [3, 20 * stride, cin]);
        let w = Signal::new(&mut rng, [taps, cin, cout]);
        for device in devices()? {
            for &dtype in float_types(&device) {
                let w = w.tensor(&device, dtype)?;
                let whole = forward(&x.tensor(&device, dtype)?, &w, &g, Fused::default())?;
                let mut ring = Ring::new(&device, dtype, 3, taps, cin, &g)?;
                compare(&x, &whole, stride, &mut ring, |x, ring, mask| step(x, ring, &w, &g, Fused::default(), mask))?;
            }
        }
    }
    Ok(())
}

#[test]
fn transposed_streaming_equals_offline_bit_for_bit() -> Result<()> {
    for (cin, cout, taps, stride, groups) in [(16, 8, 16, 8, 1), (5, 3, 7, 2, 1), (9, 1, 4, 4, 1), (33, 33, 4, 2, 33)] {
        let g = conv_transpose1d::Geometry { groups, ..conv_transpose1d::Geometry::causal(taps, stride) };
        let mut rng = SplitMix(6);
        let x = Signal::new(&mut rng, [3, 20, cin]);
        let w = Signal::new(&mut rng, [taps, cin, cout / groups]);
        for device in devices()? {
            for &dtype in float_types(&device) {
                let w = w.tensor(&device, dtype)?;
                let whole = conv_transpose1d::forward(&x.tensor(&device, dtype)?, &w, &g, Default::default())?;
                let mut ring = conv_transpose1d::ring(&device, dtype, 3, taps, cin, stride)?;
                compare(&x, &whole, 1, &mut ring, |x, ring, mask| conv_transpose1d::step(x, ring, &w, &g, Default::default(), mask))?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_primed_stream_is_the_signal_padded_with_its_first_row() -> Result<()> {
    let (batch, cin, cout, taps) = (3, 5, 7, 6);
    let g = Geometry::causal(taps, 2, 1);
    let mut rng = SplitMix(8);
    let x = Signal::new(&mut rng, [batch, 40, cin]);
    let w = Signal::new(&mut rng, [taps, cin, cout]);
    let rows = |b: usize| &x.values[b * 40 * cin..][..40 * cin];
    let padded = (0..batch).flat_map(|b| rows(b)[..cin].repeat(g.pad_left).into_iter().chain(rows(b).iter().copied()));
    let padded = Signal { values: padded.collect(), shape: [batch, 40 + g.pad_left, cin] };
    for device in devices()? {
        for &dtype in float_types(&device) {
            let w = w.tensor(&device, dtype)?;
            let whole = forward(&padded.tensor(&device, dtype)?, &w, &Geometry { pad_left: 0, ..g }, Fused::default())?;
            let mut ring = Ring::new(&device, dtype, batch, taps, cin, &g)?;
            for _ in 0..2 {
                compare(&x, &whole, 2, &mut ring, |x, ring, mask| {
                    ring.prime(x, mask)?;
                    step(x, ring, &w, &g, Fused::default(), mask)
                })?;
                ring.reset(&Tensor::from_slice(&device, &[1u8; 3], [batch])?)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_prepared_weight_computes_the_bits_of_its_tensor() -> Result<()> {
    let mut rng = SplitMix(12);
    for (cin, cout, taps, stride, groups) in [(5, 33, 3, 1, 1), (16, 48, 4, 2, 1), (6, 9, 3, 1, 3), (40, 40, 4, 2, 40)] {
        let g = Geometry { groups, ..Geometry::causal(taps, stride, 1) };
        let x = Signal::new(&mut rng, [2, 12 * stride, cin]);
        let (w, turned) = (Signal::new(&mut rng, [taps, cin / groups, cout]), Signal::new(&mut rng, [taps, cin, cout / groups]));
        for device in devices()? {
            // On the CPU bf16 beside f32, too.
            let halves = (device == Device::Cpu).then_some((DType::F32, DType::BF16));
            for (dtype, stored) in float_types(&device).iter().map(|&dtype| (dtype, dtype)).chain(halves) {
                let (x, w) = (x.tensor(&device, dtype)?, w.tensor(&device, stored)?);
                let prepared = Weight::new(&w, &g)?;
                let w = elementwise::convert(&w, dtype)?;
                let fused = Fused { prologue: Prologue::Elu, ..Fused::default() };
                assert_eq!(forward(&x, &prepared, &g, fused)?.to_f64()?, forward(&x, &w, &g, fused)?.to_f64()?);
                assert!(forward(&x, &prepared, &Geometry { groups: groups + 1, ..g }, fused).is_err());
                if groups != 1 && groups != cin {
                    continue;
                }
                let g = conv_transpose1d::Geometry { groups, ..conv_transpose1d::Geometry::causal(taps, stride) };
                let fused = conv_transpose1d::Fused { prologue: Prologue::Elu, bias: None };
                let w = turned.tensor(&device, stored)?;
                let prepared = conv_transpose1d::Weight::new(&w, &g)?;
                let w = elementwise::convert(&w, dtype)?;
                let y = conv_transpose1d::forward(&x, &prepared, &g, fused)?;
                assert_eq!(y.to_f64()?, conv_transpose1d::forward(&x, &w, &g, fused)?.to_f64()?);
                let other = conv_transpose1d::Geometry { stride: stride + 1, ..g };
                assert!(conv_transpose1d::forward(&x, &prepared, &other, fused).is_err());
            }
        }
    }
    Ok(())
}

/// Codes `[cout, taps cin]` with a scale a row, and the filters `[taps, cin, cout]` that they stand for.
fn coded(taps: usize, cin: usize, cout: usize) -> Result<(Quantized, Tensor)> {
    let depth = taps * cin;
    let mut rng = SplitMix(depth as u64);
    let codes: Vec<u8> = (0..cout * depth).map(|_| rng.next() as u8).collect();
    let scales: Vec<f32> = (0..cout).map(|_| 0.5 + rng.uniform() as f32).collect();
    let value = |at: usize| f32::from(codes[at % cout * depth + at / cout] as i8) * scales[at % cout];
    let values: Vec<f32> = (0..depth * cout).map(value).collect();
    let codes = Tensor::from_slice(&Device::Cpu, &codes, [cout, depth])?;
    let scales = Tensor::from_slice(&Device::Cpu, &scales, [cout, 1])?;
    Ok((Quantized { bits: Bits::Eight, codes, scales, mins: None }, Tensor::from_slice(&Device::Cpu, &values, [taps, cin, cout])?))
}

#[test]
fn codes_compute_the_bits_of_their_values() -> Result<()> {
    for (taps, cin, cout, stride) in [(1, 1, 1, 1), (7, 33, 65, 1), (4, 64, 31, 2), (3, 127, 33, 2), (8, 31, 127, 4), (5, 12, 96, 3)] {
        let (codes, values) = coded(taps, cin, cout)?;
        let x = elementwise::convert(&normal([2, 31, cin], 1), DType::F32)?;
        let geometry = Geometry { stride, pad_left: taps - 1, ..Geometry::default() };
        let [found, expected] = [&Weight::quantized(&codes, taps)?, &Weight::new(&values, &geometry)?]
            .map(|weight| forward(&x, weight, &geometry, Fused::default()).unwrap().to_vec::<f32>().unwrap());
        assert_eq!(found, expected, "{taps} taps, {cin} to {cout}, stride {stride}");

        let geometry = conv_transpose1d::Geometry::padded(stride, 0, 0);
        let coded = conv_transpose1d::Weight::quantized(&codes, taps, &geometry)?;
        let valued = conv_transpose1d::Weight::new(&values, &geometry)?;
        let [found, expected] = [&coded, &valued]
            .map(|weight| conv_transpose1d::forward(&x, weight, &geometry, Default::default()).unwrap().to_vec::<f32>().unwrap());
        assert_eq!(found, expected, "{taps} taps, {cin} to {cout}, transposed by {stride}");
    }
    let (codes, _) = coded(3, 4, 5)?;
    assert!(Weight::quantized(&codes, 0).is_err() && Weight::quantized(&codes, 5).is_err());
    let grouped = conv_transpose1d::Geometry { groups: 2, ..conv_transpose1d::Geometry::padded(1, 0, 0) };
    assert!(conv_transpose1d::Weight::quantized(&codes, 3, &grouped).is_err());
    let geometry = conv_transpose1d::Geometry::padded(1, 0, 0);
    let mins = Tensor::from_slice(&Device::Cpu, &[0f32; 5], [5, 1])?;
    let with_minima = Quantized { mins: Some(mins), ..coded(3, 4, 5)?.0 };
    assert!(conv_transpose1d::Weight::quantized(&with_minima, 3, &geometry).is_err());
    Ok(())
}

/// `<forward(x), dy> = <x, backward_input(dy)>`, in every way that the CPU has for groups.
#[test]
fn the_gradient_of_groups_is_the_adjoint() -> Result<()> {
    let g = Geometry::default();
    for (cin, cout, taps, g) in [
        (12, 8, 5, Geometry { groups: 4, pad_left: 2, pad_right: 1, ..g }),
        (8, 12, 3, Geometry { groups: 2, dilation: 3, pad_left: 6, ..g }),
        (12, 24, 5, Geometry { groups: 4, stride: 3, pad_left: 4, ..g }),
        (6, 6, 7, Geometry { groups: 6, pad_left: 6, ..g }),
        (6, 6, 7, Geometry { groups: 6, stride: 2, pad_left: 3, pad_right: 2, ..g }),
        (6, 12, 4, Geometry { groups: 6, stride: 2, pad_left: 3, ..g }),
        (6, 4, 3, Geometry { groups: 2, pad_left: 9, ..g }),
        (6, 4, 3, Geometry { groups: 2, stride: 2, dilation: 2, pad_left: 1, ..g }),
    ] {
        let (x, w) = (normal([2, 41, cin], 1), normal([taps, cin / g.groups, cout], 2));
        let y = forward(&x, &w, &g, Fused::default())?;
        let dy = normal([2, y.shape()[1], cout], 3);
        let dx = backward_input(&dy, &w, &g, 41)?;
        let dot = |a: &Tensor, b: &Tensor| -> Result<f64> { Ok(a.to_f64()?.iter().zip(b.to_f64()?).map(|(a, b)| a * b).sum()) };
        let (there, back) = (dot(&y, &dy)?, dot(&x, &dx)?);
        assert!((there - back).abs() < 1e-10 * there.abs().max(1.0), "{cin} -> {cout}, {g:?}: {there} and {back}");
    }
    Ok(())
}
