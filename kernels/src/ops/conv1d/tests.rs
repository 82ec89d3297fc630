//! A stream fed in chunks gets the bits of the whole, whichever kernel computes the layer.

use super::*;
use crate::case::SplitMix;
use crate::driver::Arch;
use crate::driver::emulator::{Emulator, Options};
use crate::ops::conv_transpose1d;

fn devices() -> Result<Vec<Device>> {
    let mut devices = vec![Device::Cpu];
    for arch in [75, 90] {
        match Emulator::new(Options { arch: Arch(arch), ..Options::default() }) {
            Ok(emulator) => devices.push(Device::on(Box::new(emulator))),
            Err(Error::Unavailable { why, .. }) => println!("skipped: the emulator, {why}"),
            Err(error) => return Err(error),
        }
    }
    Ok(devices)
}

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

fn dtypes(device: &Device) -> &'static [DType] {
    if *device == Device::Cpu { &[DType::F32, DType::F64] } else { &[DType::F32, DType::BF16, DType::F16] }
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
            for &dtype in dtypes(&device) {
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
    for (cin, cout, taps, stride) in [(16, 8, 16, 8), (5, 3, 7, 2), (9, 1, 4, 4)] {
        let g = conv_transpose1d::Geometry::causal(taps, stride);
        let mut rng = SplitMix(6);
        let x = Signal::new(&mut rng, [3, 20, cin]);
        let w = Signal::new(&mut rng, [taps, cin, cout]);
        for device in devices()? {
            for &dtype in dtypes(&device) {
                let w = w.tensor(&device, dtype)?;
                let whole = conv_transpose1d::forward(&x.tensor(&device, dtype)?, &w, None, &g)?;
                let mut ring = conv_transpose1d::ring(&device, dtype, 3, taps, cin, stride)?;
                compare(&x, &whole, 1, &mut ring, |x, ring, mask| conv_transpose1d::step(x, ring, &w, None, stride, mask))?;
            }
        }
    }
    Ok(())
}
