use super::Axis;
use crate::DType;
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::tolerance::Tolerance;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for axis in [Axis::Out, Axis::In] {
        cases.push(forward([1, 1, 1], axis, false)); // whose backward is 0 by cancellation: see the unit test
        for shape in [[7, 1, 1], [7, 1, 31], [7, 33, 1], [3, 31, 33], [1, 127, 8], [16, 24, 40]] {
            cases.extend([forward(shape, axis, false), backward(shape, axis, false)]);
        }
        cases.extend([forward([7, 1024, 1024], axis, true), backward([7, 1024, 1024], axis, true)]);
    }
    cases
}

/// Mostly positive, so that `<dw, v>` does not vanish by chance.
fn inputs(shape: [usize; 3], axis: Axis) -> Vec<Input> {
    vec![Input::new("v", shape, Fill::Uniform(0.1, 1.0)), Input::new("g", [gains(shape, axis)], Fill::Uniform(-2.0, 2.0))]
}

fn gains(shape: [usize; 3], axis: Axis) -> usize {
    if axis == Axis::Out { shape[2] } else { shape[1] }
}

/// The norm is a sum of positive terms over the slice: it errs relative to itself, and so does what it scales. `dv` is the
/// difference of two rounded terms, one of them a product.
fn tolerance(shape: [usize; 3], axis: Axis) -> Check {
    let sum = Tolerance::accumulate(shape.iter().product::<usize>() / gains(shape, axis));
    Check::Within((0..4).fold(sum, |t, _| t.then_round_to(DType::F32)).via(DType::F32).via(DType::F32).via(DType::F32))
}

fn forward(shape: [usize; 3], axis: Axis, bench: bool) -> Case {
    let n: usize = shape.iter().product();
    Case {
        label: format!("{axis:?} forward {shape:?}"),
        dtype: DType::F32,
        inputs: inputs(shape, axis),
        outputs: vec![("w", tolerance(shape, axis))],
        run: Box::new(move |i| Ok(vec![super::forward(&i[0], &i[1], axis)?])),
        cost: Cost { bytes: 2 * 4 * n, flops: 3 * n },
        bench,
    }
}

fn backward(shape: [usize; 3], axis: Axis, bench: bool) -> Case {
    let n: usize = shape.iter().product();
    Case {
        label: format!("{axis:?} backward {shape:?}"),
        inputs: [vec![Input::new("dw", shape, Fill::Uniform(-0.2, 1.0))], inputs(shape, axis)].concat(),
        outputs: vec![("dv", tolerance(shape, axis)), ("dg", tolerance(shape, axis))],
        run: Box::new(move |i| super::backward(&i[0], &i[1], &i[2], axis).map(|(dv, dg)| vec![dv, dg])),
        cost: Cost { bytes: 3 * 4 * n, flops: 8 * n },
        ..forward(shape, axis, bench)
    }
}
