use super::{Geometry, backward_input, backward_weight, forward, ring, step};
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::ops::matmul::cuda::{partial_bytes, run_length};
use crate::tolerance::Tolerance;
use crate::{DType, Tensor};

/// `B T Cin Cout K` and a geometry.
#[derive(Clone, Copy)]
struct Shape(usize, usize, usize, usize, usize, Geometry);

pub(super) fn cases() -> Vec<Case> {
    let (causal, padded) = (Geometry::causal, Geometry::padded);
    let small = [
        Shape(1, 1, 1, 1, 2, causal(2, 1)),
        Shape(2, 17, 5, 3, 4, causal(4, 2)),
        Shape(1, 31, 16, 8, 10, causal(10, 5)),
        Shape(1, 9, 33, 16, 16, causal(16, 8)),
        Shape(2, 13, 6, 7, 10, padded(5, 3, 0)),
        Shape(1, 13, 6, 7, 10, padded(5, 3, 1)),
        Shape(1, 11, 4, 6, 7, padded(3, 2, 0)),
        Shape(1, 8, 4, 6, 3, padded(5, 0, 0)),
        Shape(2, 127, 24, 1, 4, causal(4, 2)),
        Shape(1, 33, 8, 16, 4, Geometry { stride: 2, crop_left: 5, crop_right: 1 }),
    ];
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for shape in small {
            cases.extend([forward_case(shape, dtype, false), input_gradient(shape, dtype), weight_gradient(shape, dtype)]);
        }
        cases.push(stream_case(Shape(3, 4, 6, 5, 10, causal(10, 5)), dtype));
        cases.push(stream_case(Shape(2, 3, 16, 8, 7, causal(7, 2)), dtype));
        let narrowing = Shape(1, 300, 128, 8, 2, causal(2, 2));
        for shape in [narrowing, Shape(1, 18, 64, 64, 8, causal(8, 4)), Shape(1, 4, 64, 80, 8, causal(8, 4))] {
            cases.push(forward_case(shape, dtype, false));
        }
        cases.extend([input_gradient(Shape(1, 300, 8, 64, 2, causal(2, 2)), dtype), weight_gradient(narrowing, dtype)]);
        cases.push(forward_case(Shape(1, 2048, 128, 64, 16, causal(16, 8)), dtype, true));
    }
    cases
}

fn case(kind: &str, Shape(b, t, cin, cout, k, g): Shape, dtype: DType, inputs: Vec<Input>, n: usize, run: crate::case::Run) -> Case {
    let tout = g.output_len(t, k);
    let label = format!("{kind} {b}x{t}x{cin}->{cout} k{k} s{} crop {},{}", g.stride, g.crop_left, g.crop_right);
    let tolerance = Tolerance::accumulate(n).then_round_to(dtype);
    let cost = Cost { bytes: (b * t * cin + k * cin * cout + b * tout * cout) * dtype.bytes(), flops: 2 * b * t * k * cin * cout };
    Case { label, dtype, inputs, outputs: vec![("y", Check::Within(tolerance))], run, cost, bench: false }
}

fn operands(Shape(b, t, cin, cout, k, g): Shape) -> (Input, Input) {
    let fan_in = (k.div_ceil(g.stride) * cin) as f64;
    (Input::normal("x", [b, t, cin]), Input::new("weight", [k, cin, cout], Fill::Normal(fan_in.powf(-0.5))))
}

fn forward_case(shape: Shape, dtype: DType, bench: bool) -> Case {
    let Shape(_, _, cin, cout, k, g) = shape;
    let (x, w) = operands(shape);
    let run = Box::new(move |t: &[Tensor]| Ok(vec![forward(&t[0], &t[1], Some(&t[2]), &g)?]));
    let bias = Input::new("bias", [cout], Fill::Uniform(-1.0, 1.0));
    Case { bench, ..case("forward", shape, dtype, vec![x, w, bias], k.div_ceil(g.stride) * cin + 1, run) }
}

fn input_gradient(shape: Shape, dtype: DType) -> Case {
    let Shape(b, t, _, cout, k, g) = shape;
    let dy = Input::normal("dy", [b, g.output_len(t, k), cout]);
    let run = Box::new(move |i: &[Tensor]| Ok(vec![backward_input(&i[0], &i[1], &g, t)?]));
    case("dx", shape, dtype, vec![dy, operands(shape).1], k * cout, run)
}

fn weight_gradient(shape: Shape, dtype: DType) -> Case {
    let Shape(b, t, cin, cout, k, g) = shape;
    let dy = Input::normal("dy", [b, g.output_len(t, k), cout]);
    let run = Box::new(move |i: &[Tensor]| Ok(vec![backward_weight(&i[0], &i[1], &g, k)?]));
    let mut case = case("dw", shape, dtype, vec![dy, operands(shape).0], b * t, run);
    case.cost.bytes += partial_bytes(b * t, run_length(b * t, k * cout, cin), k * cin * cout, false);
    case
}

/// Two steps of a stream; the second one's output.
fn stream_case(shape: Shape, dtype: DType) -> Case {
    let Shape(b, t, cin, _, k, g) = shape;
    let (x, w) = operands(shape);
    let run = Box::new(move |i: &[Tensor]| {
        let mut ring = ring(&i[0].device(), i[0].dtype(), b, k, cin, g.stride)?;
        step(&i[0], &mut ring, &i[1], None, g.stride, None)?;
        Ok(vec![step(&i[2], &mut ring, &i[1], None, g.stride, None)?])
    });
    let case = case("stream", shape, dtype, vec![x, w, Input::normal("x2", [b, t, cin])], k.div_ceil(g.stride) * cin, run);
    // Each step reads the past, and puts its newest rows there.
    let past = k.div_ceil(g.stride) - 1;
    let step = case.cost.bytes + b * (past + 2 * t.min(past)) * cin * dtype.bytes();
    Case { cost: Cost { bytes: 2 * step, flops: 2 * case.cost.flops }, ..case }
}
