//! Softsign, `y = x / (1 + |x|)`, of a tensor of any shape.
//!
//! Storage f32, bf16, f16 on CUDA, f32 or f64 on the CPU. Source: `torch.nn.functional.softsign`.

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::{Device, Result, Tensor, dispatch_real, span};

mod cases;
mod cpu;
mod cuda;

pub static SOURCE: Source = Source { path: "ops/template/template.cu", text: include_str!("template.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, source: Some(&SOURCE), cases: cases::cases };

const NAME: &str = "template";

/// As `x` in shape and type.
///
/// # Errors
/// A type that the device does not store.
pub fn forward(x: &Tensor) -> Result<Tensor> {
    let _span = span::op("template.forward");
    let mut y = x.empty_like()?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::forward::<T>(&mut y, x))?,
        Device::Cuda(gpu) => cuda::forward(&gpu, &mut y, x)?,
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_formula() {
        let x = Tensor::from_slice(&Device::Cpu, &[-3.0f64, 0.0, 1.0], [3]).unwrap();
        assert_eq!(forward(&x).unwrap().to_vec::<f64>().unwrap(), [-0.75, 0.0, 0.5]);
    }

    #[test]
    fn the_emulator_computes_the_same() {
        let gpu = Device::open("emulator").expect("the emulator needs a C++ compiler");
        for case in (OP.cases)().into_iter().filter(|case| !case.bench) {
            let values = case.draw(1);
            let [found, expected] = [(&gpu, false), (&Device::Cpu, true)].map(|(device, oracle)| {
                let outputs = (case.run)(&case.upload(device, &values, oracle).unwrap()).unwrap();
                outputs[0].to_f64().unwrap()
            });
            let crate::case::Check::Within(tolerance) = &case.outputs[0].1 else { panic!("{}", case.label) };
            assert!(tolerance.compare(&found, &expected).holds(), "{} {}", case.label, case.dtype);
        }
    }
}
