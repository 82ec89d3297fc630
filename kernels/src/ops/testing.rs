//! Gradients against central differences, in f64; kernels on the emulator; the devices that tests can have.

use crate::case::{Check, Op, SplitMix};
use crate::driver::Arch;
use crate::driver::emulator::{Emulator, Options};
use crate::tolerance::Tolerance;
use crate::{DType, Device, Error, Result, Shape, Tensor};

/// The CPU, and the emulator of an old and of a new GPU where there is a compiler for it.
pub fn devices() -> Result<Vec<Device>> {
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

/// What `device` computes in.
pub fn float_types(device: &Device) -> &'static [DType] {
    if *device == Device::Cpu { &[DType::F32, DType::F64] } else { &[DType::F32, DType::BF16, DType::F16] }
}

/// Normal values with unit variance, the same for the same seed.
pub fn normal(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    let mut rng = SplitMix(seed);
    let mut draw = || (-2.0 * (1.0 - rng.uniform()).ln()).sqrt() * (std::f64::consts::TAU * rng.uniform()).cos();
    tensor(&(0..shape.elements()).map(|_| draw()).collect::<Vec<_>>(), shape)
}

pub fn tensor(values: &[f64], shape: impl Into<Shape>) -> Tensor {
    Tensor::from_slice(&Device::Cpu, values, shape).unwrap()
}

/// Asserts that every small case of `op` on the emulator is what the twin computes in f64. `swara verify` does more.
pub fn check_emulator(op: &Op) {
    let gpu = Device::open("emulator").expect("the emulator needs a C++ compiler");
    for case in (op.cases)().into_iter().filter(|case| !case.bench) {
        let values = case.draw(1);
        let [found, expected] = [(&gpu, false), (&Device::Cpu, true)]
            .map(|(device, oracle)| (case.run)(&case.upload(device, &values, oracle).unwrap()).unwrap());
        for (((name, check), found), expected) in case.outputs.iter().zip(&found).zip(&expected) {
            let tolerance = match check {
                Check::Within(tolerance) => *tolerance,
                Check::Exact => Tolerance::EXACT,
                Check::Index { .. } | Check::Ignore => continue,
            };
            let comparison = tolerance.compare(&found.to_f64().unwrap(), &expected.to_f64().unwrap());
            assert!(comparison.holds(), "{} {}: {name}: {:?}", case.label, case.dtype, comparison.worst);
        }
    }
}

/// Asserts that `backward` is the transpose of the derivative of `forward`, to 1e-6 of each gradient's largest element.
///
/// `backward(inputs, dy)` returns one gradient an input, `None` for those that have none. Inputs must lie away from kinks.
pub fn check_gradient(
    inputs: &[Tensor],
    forward: impl Fn(&[Tensor]) -> Result<Tensor>,
    backward: impl Fn(&[Tensor], &Tensor) -> Result<Vec<Option<Tensor>>>,
) {
    let y = forward(inputs).unwrap();
    let dy = normal(y.shape(), 0x5eed);
    let gradients = backward(inputs, &dy).unwrap();
    assert_eq!(gradients.len(), inputs.len(), "one gradient an input");
    assert!(gradients.iter().any(Option::is_some), "nothing to check");
    let weights = dy.to_f64().unwrap();

    for (n, gradient) in gradients.iter().enumerate() {
        let Some(gradient) = gradient else { continue };
        assert_eq!(gradient.shape(), inputs[n].shape(), "shape of gradient {n}");
        let found = gradient.to_f64().unwrap();
        let expected: Vec<f64> = (0..found.len()).map(|i| derivative(inputs, n, i, &weights, &forward)).collect();
        let largest = expected.iter().fold(1e-3f64, |m, e| m.max(e.abs()));
        for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
            assert!((f - e).abs() <= 1e-6 * largest, "gradient of input {n} at {i}: {f}, by differences {e} (largest {largest})");
        }
    }
}

/// d<weights, forward(inputs)> / d inputs[n][i] by the five-point stencil, whose error is of the fourth order.
fn derivative(inputs: &[Tensor], n: usize, i: usize, weights: &[f64], forward: &impl Fn(&[Tensor]) -> Result<Tensor>) -> f64 {
    let values = inputs[n].to_f64().unwrap();
    let h = 1e-3 * values[i].abs().max(1.0);
    let at = |offset: f64| {
        let mut moved = values.clone();
        moved[i] += offset;
        let moved: Vec<Tensor> =
            inputs.iter().enumerate().map(|(j, t)| if j == n { tensor(&moved, t.shape()) } else { t.copy().unwrap() }).collect();
        forward(&moved).unwrap().to_f64().unwrap()
    };
    let (l2, l1, r1, r2) = (at(-2.0 * h), at(-h), at(h), at(2.0 * h));
    weights.iter().enumerate().map(|(k, w)| w * (8.0 * (r1[k] - l1[k]) - (r2[k] - l2[k])) / (12.0 * h)).sum()
}

mod tests {
    use super::*;

    fn cube(inputs: &[Tensor]) -> Result<Tensor> {
        Ok(tensor(&inputs[0].to_f64()?.iter().map(|x| x * x * x).collect::<Vec<_>>(), inputs[0].shape()))
    }

    fn cube_backward(inputs: &[Tensor], dy: &Tensor, factor: f64) -> Result<Vec<Option<Tensor>>> {
        let dx: Vec<f64> = inputs[0].to_f64()?.iter().zip(dy.to_f64()?).map(|(x, g)| factor * x * x * g).collect();
        Ok(vec![Some(tensor(&dx, inputs[0].shape()))])
    }

    #[test]
    fn a_right_gradient_passes() {
        check_gradient(&[normal([7], 1)], cube, |x, dy| cube_backward(x, dy, 3.0));
    }

    #[test]
    #[should_panic(expected = "by differences")]
    fn a_gradient_wrong_by_a_hundred_thousandth_is_seen() {
        check_gradient(&[normal([7], 1)], cube, |x, dy| cube_backward(x, dy, 3.0 * (1.0 + 1e-5)));
    }
}
