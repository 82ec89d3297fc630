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

/// Elements of a slice.
fn slice(shape: [usize; 3], axis: Axis) -> usize {
    shape.iter().product::<usize>() / gains(shape, axis)
}

fn forward(shape: [usize; 3], axis: Axis, bench: bool) -> Case {
    let n: usize = shape.iter().product();
    Case {
        label: format!("{axis:?} forward {shape:?}"),
        dtype: DType::F32,
        inputs: inputs(shape, axis),
        // The norm's sum is of positive terms; root, division and product.
        outputs: vec![("w", Check::Within(Tolerance::positive_sum(slice(shape, axis)).then_rounded(3)))],
        run: Box::new(move |i| Ok(vec![super::forward(&i[0], &i[1], axis)?])),
        cost: Cost { bytes: 2 * 4 * n, flops: 3 * n },
        bench,
    }
}

fn backward(shape: [usize; 3], axis: Axis, bench: bool) -> Case {
    let n: usize = shape.iter().product();
    let terms = slice(shape, axis);
    let norm = Tolerance::positive_sum(terms).then_rounded(3);
    // `dw - <dw, v> / |v|^2 v` is about as large as each of its terms: two sums, then three roundings of the second term, two
    // of the difference and its factor; that factor has the norm's error.
    let (dg, dv) = (norm.via(DType::F32, terms), norm.via(DType::F32, 2 * terms + 5));
    Case {
        label: format!("{axis:?} backward {shape:?}"),
        inputs: [vec![Input::new("dw", shape, Fill::Uniform(-0.2, 1.0))], inputs(shape, axis)].concat(),
        outputs: vec![("dv", Check::Within(dv)), ("dg", Check::Within(dg))],
        run: Box::new(move |i| super::backward(&i[0], &i[1], &i[2], axis).map(|(dv, dg)| vec![dv, dg])),
        cost: Cost { bytes: 3 * 4 * n, flops: 8 * n },
        ..forward(shape, axis, bench)
    }
}
