use super::Activation;
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::tolerance::Tolerance;
use crate::{DType, Shape};

pub fn cases() -> Vec<Case> {
    let shapes: [Shape; 6] = [[0].into(), [1].into(), [31, 33].into(), [127].into(), [500, 8].into(), [2, 33, 31].into()];
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for kind in Activation::ALL {
            cases.extend(shapes.iter().flat_map(|&shape| [forward(kind, shape, dtype, false), backward(kind, shape, dtype, false)]));
        }
        let large = [8, 48_000, 64].into();
        cases.extend([forward(Activation::Elu, large, dtype, true), backward(Activation::Elu, large, dtype, true)]);
    }
    cases
}

/// Device functions err by up to 6 units in the last place (`erfcf`, CUDA's guide), and an exponential turns the rounding of
/// its argument - at most 7 here, rounded three times - into as many times that, relative to the value.
fn tolerance(dtype: DType) -> Check {
    Check::Within((0..24).fold(Tolerance::accumulate(16), |t, _| t.then_round_to(DType::F32)).then_round_to(dtype))
}

/// A lone element lies where no derivative vanishes: there is no other to measure its error by.
fn x(shape: Shape) -> Input {
    Input::new("x", shape, if shape.elements() == 1 { Fill::Values(vec![0.7]) } else { Fill::Uniform(-3.0, 3.0) })
}

fn forward(kind: Activation, shape: Shape, dtype: DType, bench: bool) -> Case {
    Case {
        label: format!("{kind:?} forward {shape:?}"),
        dtype,
        inputs: vec![x(shape)],
        outputs: vec![("y", tolerance(dtype))],
        run: Box::new(move |i| Ok(vec![super::forward(kind, &i[0])?])),
        cost: Cost { bytes: 2 * shape.elements() * dtype.bytes(), flops: 20 * shape.elements() },
        bench,
    }
}

fn backward(kind: Activation, shape: Shape, dtype: DType, bench: bool) -> Case {
    Case {
        label: format!("{kind:?} backward {shape:?}"),
        dtype,
        inputs: vec![Input::normal("dy", shape), x(shape)],
        outputs: vec![("dx", tolerance(dtype))],
        run: Box::new(move |i| Ok(vec![super::backward(kind, &i[0], &i[1])?])),
        cost: Cost { bytes: 3 * shape.elements() * dtype.bytes(), flops: 30 * shape.elements() },
        bench,
    }
}
