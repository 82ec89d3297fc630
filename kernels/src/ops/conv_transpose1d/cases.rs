use super::{Fused, Geometry, backward_input, backward_weight, backward_weight_in, forward, ring, step};
use crate::DType;
use crate::case::{Case, Check, Cost, Fill, Input, Inputs};
use crate::ops::check;
use crate::ops::conv1d::Prologue;
use crate::ops::matmul::cuda::{partial_bytes, run_length};
use crate::tolerance::Tolerance;

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
        Shape(1, 33, 8, 16, 4, Geometry { stride: 2, crop_left: 5, crop_right: 1, groups: 1 }),
        Shape(2, 31, 33, 33, 4, Geometry { groups: 33, ..causal(4, 2) }),
        Shape(3, 7, 5, 5, 7, Geometry { groups: 5, ..padded(3, 2, 2) }),
    ];
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for shape in small {
            cases.extend([forward_case(shape, dtype, false), input_gradient(shape, dtype), weight_gradient(shape, dtype)]);
        }
        cases.push(stream_case(Shape(3, 4, 6, 5, 10, causal(10, 5)), dtype));
        cases.push(stream_case(Shape(2, 3, 16, 8, 7, causal(7, 2)), dtype));
        cases.push(stream_case(Shape(2, 3, 40, 40, 5, Geometry { groups: 40, ..causal(5, 2) }), dtype));
        for shape in [Shape(2, 21, 7, 9, 5, causal(5, 2)), Shape(2, 21, 33, 33, 5, Geometry { groups: 33, ..causal(5, 2) })] {
            cases.push(fused_case(shape, dtype));
        }
        let narrowing = Shape(1, 300, 128, 8, 2, causal(2, 2));
        for shape in [narrowing, Shape(1, 18, 64, 64, 8, causal(8, 4)), Shape(1, 4, 64, 80, 8, causal(8, 4))] {
            cases.push(forward_case(shape, dtype, false));
        }
        cases.push(forward_case(Shape(2, 100, 64, 64, 4, Geometry { groups: 64, ..causal(4, 2) }), dtype, false));
        cases.extend([input_gradient(Shape(1, 300, 8, 64, 2, causal(2, 2)), dtype), weight_gradient(narrowing, dtype)]);
        if dtype != DType::F32 {
            cases.extend([small[1], narrowing].map(|shape| wide_weight_gradient(shape, dtype)));
        }
        cases.push(forward_case(Shape(1, 2048, 128, 64, 16, causal(16, 8)), dtype, true));
    }
    cases
}

fn case(kind: &str, Shape(b, t, cin, cout, k, g): Shape, dtype: DType, inputs: Vec<Input>, n: usize, run: crate::case::Run) -> Case {
    let tout = g.output_len(t, k);
    let groups = if g.groups > 1 { " depthwise" } else { "" };
    let label = format!("{kind} {b}x{t}x{cin}->{cout} k{k} s{} crop {},{}{groups}", g.stride, g.crop_left, g.crop_right);
    let tolerance = Tolerance::accumulate(n).then_round_to(dtype);
    let weights = k * cin * cout / g.groups;
    let cost = Cost { bytes: (b * t * cin + weights + b * tout * cout) * dtype.bytes(), flops: 2 * b * t * weights };
    Case { label, dtype, inputs, outputs: vec![("y", Check::Within(tolerance))], run, cost, bench: false }
}

fn operands(Shape(b, t, cin, cout, k, g): Shape) -> (Input, Input) {
    let (x, weight) = ([b, t, cin], [k, cin, cout / g.groups]);
    if g.groups > 1 {
        // Of a few products of normal numbers, one may be larger than all else, and so is its error.
        return (Input::new("x", x, Fill::Uniform(-1.0, 1.0)), Input::new("weight", weight, Fill::Uniform(-1.0, 1.0)));
    }
    let fan_in = (k.div_ceil(g.stride) * cin) as f64;
    (Input::normal("x", x), Input::new("weight", weight, Fill::Normal(fan_in.powf(-0.5))))
}

fn forward_case(shape: Shape, dtype: DType, bench: bool) -> Case {
    let Shape(_, _, cin, cout, k, g) = shape;
    let (x, w) = operands(shape);
    let run = Box::new(move |t: &Inputs| Ok(vec![forward(&t[0], &t[1], &g, Fused { bias: Some(&t[2]), ..Fused::default() })?]));
    let bias = Input::new("bias", [cout], Fill::Uniform(-1.0, 1.0));
    Case { bench, ..case("forward", shape, dtype, vec![x, w, bias], k.div_ceil(g.stride) * cin / g.groups + 1, run) }
}

/// Behind a snake, and behind an ELU.
fn fused_case(shape: Shape, dtype: DType) -> Case {
    let Shape(_, _, cin, cout, k, g) = shape;
    let alpha = Input::new("alpha", [cin], Fill::Uniform(0.5, 2.0)).f32();
    let run = Box::new(move |i: &Inputs| {
        let prologues = [Prologue::Snake(&i[3]), Prologue::Elu];
        prologues.into_iter().map(|prologue| forward(&i[0], &i[1], &g, Fused { prologue, bias: Some(&i[2]) })).collect()
    });
    let plain = forward_case(shape, dtype, false);
    let label = plain.label.replace("forward", "fused");
    let n = k.div_ceil(g.stride) * cin / g.groups + 1;
    // An element of a snake errs by 22 roundoffs at most and is stored in `dtype`: ops/conv1d/cases.rs.
    let snake = Tolerance::accumulate(n).via(DType::F32, 22 * 22).via(dtype, 1).then_round_to(dtype);
    let outputs = vec![("snake", Check::Within(snake)), ("elu", Check::Within(snake))];
    let Cost { bytes, flops } = plain.cost;
    let bytes = 2 * (bytes + cout * dtype.bytes()) + 4 * cin;
    let inputs = plain.inputs.into_iter().chain([alpha]).collect();
    Case { label, inputs, outputs, run, cost: Cost { bytes, flops: 2 * flops }, ..plain }
}

fn input_gradient(shape: Shape, dtype: DType) -> Case {
    let Shape(b, t, _, cout, k, g) = shape;
    let dy = Input::normal("dy", [b, g.output_len(t, k), cout]);
    let run = Box::new(move |i: &Inputs| Ok(vec![backward_input(&i[0], &i[1], &g, t)?]));
    case("dx", shape, dtype, vec![dy, operands(shape).1], k * cout / g.groups, run)
}

fn weight_gradient(shape: Shape, dtype: DType) -> Case {
    let Shape(b, t, cin, cout, k, g) = shape;
    let dy = Input::normal("dy", [b, g.output_len(t, k), cout]);
    let run = Box::new(move |i: &Inputs| Ok(vec![backward_weight(&i[0], &i[1], &g, k)?]));
    let mut case = case("dw", shape, dtype, vec![dy, operands(shape).0], b * t, run);
    if g.groups == 1 {
        case.cost.bytes += partial_bytes(b * t, run_length(b * t, k * cout, cin), k * cin * cout, false);
    }
    case
}

/// Stored in f32.
fn wide_weight_gradient(shape: Shape, dtype: DType) -> Case {
    let Shape(b, t, cin, cout, k, g) = shape;
    let run = Box::new(move |i: &Inputs| Ok(vec![backward_weight_in(check::statistics_dtype(i[1].dtype()), &i[0], &i[1], &g, k)?]));
    let case = weight_gradient(shape, dtype);
    let cost = Cost { bytes: case.cost.bytes + k * cin * cout * (4 - dtype.bytes()), ..case.cost };
    let outputs = vec![("y", Check::Within(Tolerance::accumulate(b * t)))];
    Case { label: case.label.replace("dw", "dw in f32"), run, outputs, cost, ..case }
}

/// Two steps of a stream; the second one's output.
fn stream_case(shape: Shape, dtype: DType) -> Case {
    let Shape(b, t, cin, _, k, g) = shape;
    let (x, w) = operands(shape);
    let run = Box::new(move |i: &Inputs| {
        let mut ring = ring(&i[0].device(), i[0].dtype(), b, k, cin, g.stride)?;
        step(&i[0], &mut ring, &i[1], &g, Fused::default(), None)?;
        Ok(vec![step(&i[2], &mut ring, &i[1], &g, Fused::default(), None)?])
    });
    let case = case("stream", shape, dtype, vec![x, w, Input::normal("x2", [b, t, cin])], k.div_ceil(g.stride) * cin / g.groups, run);
    // Each step reads the past, and puts its newest rows there.
    let past = k.div_ceil(g.stride) - 1;
    let step = case.cost.bytes + b * (past + 2 * t.min(past)) * cin * dtype.bytes();
    Case { cost: Cost { bytes: 2 * step, flops: 2 * case.cost.flops }, ..case }
}
