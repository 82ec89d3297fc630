use super::{Epilogue, Fused, Geometry, Prologue, Ring, backward_input, backward_weight, backward_weight_in, forward, step};
use crate::DType;
use crate::case::{Case, Check, Cost, Fill, Input, Inputs};
use crate::ops::check;
use crate::ops::matmul::cuda::{partial_bytes, run_length};
use crate::tolerance::Tolerance;

/// `B T Cin Cout K` and a geometry.
#[derive(Clone, Copy)]
struct Shape(usize, usize, usize, usize, usize, Geometry);

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

pub(super) fn cases() -> Vec<Case> {
    let g = Geometry::default();
    let causal = Geometry::causal;
    let small = [
        Shape(1, 1, 1, 1, 1, g),
        Shape(2, 31, 3, 5, 3, Geometry { pad_left: 1, pad_right: 1, ..g }),
        Shape(1, 33, 8, 17, 7, causal(7, 1, 1)),
        Shape(2, 127, 1, 16, 7, causal(7, 1, 1)),
        Shape(2, 65, 16, 1, 7, causal(7, 1, 1)),
        Shape(1, 50, 24, 24, 7, causal(7, 1, 3)),
        Shape(1, 70, 16, 16, 7, causal(7, 1, 9)),
        Shape(2, 40, 9, 12, 4, causal(4, 2, 1)),
        Shape(1, 60, 16, 33, 10, Geometry { stride: 5, pad_left: 3, pad_right: 3, ..g }),
        Shape(1, 31, 6, 4, 3, Geometry { groups: 2, pad_left: 2, ..g }),
        Shape(1, 37, 5, 5, 5, Geometry { groups: 5, stride: 2, dilation: 2, pad_left: 4, ..g }),
        Shape(2, 33, 12, 8, 5, Geometry { groups: 4, stride: 2, pad_left: 3, pad_right: 1, ..g }),
        Shape(1, 35, 9, 9, 4, Geometry { groups: 9, stride: 3, pad_left: 1, ..g }),
        Shape(1, 12, 64, 64, 3, causal(3, 1, 1)),
        Shape(1, 500, 1, 7, 5, Geometry { stride: 3, dilation: 2, pad_left: 4, pad_right: 1, ..g }),
        Shape(3, 129, 33, 1, 3, Geometry { stride: 2, dilation: 3, pad_left: 4, ..g }),
        Shape(1, 41, 5, 8, 3, Geometry { stride: 2, dilation: 3, pad_left: 5, pad_right: 2, ..g }),
        Shape(2, 300, 16, 40, 3, causal(3, 1, 1)),
        // More than one round of every loop over a block's threads.
        Shape(1, 400, 1, 72, 5, Geometry { stride: 5, dilation: 2, pad_left: 4, ..g }),
        Shape(1, 70, 64, 1, 7, causal(7, 1, 1)),
        Shape(1, 160, 4, 2, 3, Geometry { groups: 2, pad_left: 2, ..g }),
    ];
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for shape in small {
            cases.extend([forward_case(shape, dtype, false), input_gradient(shape, dtype), weight_gradient(shape, dtype)]);
        }
        for (cin, cout) in [(9, 9), (16, 24), (1, 16), (24, 1)] {
            cases.push(fused_case(Shape(2, 33, cin, cout, 7, causal(7, 1, 3)), dtype));
            cases.push(stream_case(Shape(3, 12, cin, cout, 7, causal(7, 1, 1)), dtype));
        }
        cases.push(fused_case(Shape(1, 31, 6, 4, 3, Geometry { groups: 2, pad_left: 2, ..g }), dtype));
        cases.push(stream_case(Shape(2, 20, 6, 10, 10, causal(10, 5, 1)), dtype));
        cases.push(stream_case(Shape(2, 12, 8, 8, 7, causal(7, 1, 9)), dtype));
        cases.push(stream_case(Shape(2, 30, 20, 8, 20, causal(20, 1, 1)), dtype));
        // The largest tiles, on the emulator's few processors.
        cases.push(forward_case(Shape(1, 500, 5, 129, 3, causal(3, 1, 1)), dtype, false));
        let first = Shape(1, 2000, 1, 16, 7, causal(7, 1, 1));
        let depthwise = Shape(2, 1000, 16, 16, 3, Geometry { groups: 16, pad_left: 2, ..g });
        let (narrowing, few) = (Shape(1, 300, 128, 8, 1, g), Shape(1, 4, 96, 128, 3, causal(3, 1, 1)));
        for shape in
            [first, depthwise, narrowing, few, Shape(1, 4100, 16, 1, 7, causal(7, 1, 1)), Shape(1, 18, 64, 128, 4, causal(4, 1, 1))]
        {
            cases.push(forward_case(shape, dtype, false));
        }
        cases.extend([first, depthwise, few, Shape(1, 300, 8, 128, 1, g)].map(|shape| input_gradient(shape, dtype)));
        cases.extend([first, depthwise, narrowing].map(|shape| weight_gradient(shape, dtype)));
        if dtype != DType::F32 {
            cases.extend([narrowing, few].map(|shape| wide_weight_gradient(shape, dtype)));
        }
        cases.push(stream_case(Shape(4, 60, 32, 1, 7, causal(7, 1, 9)), dtype));
        let long = causal(12, 1, 1);
        for shape in [Shape(3, 6, 5, 7, 4, causal(4, 2, 1)), Shape(2, 3, 33, 16, 12, long), Shape(2, 3, 64, 16, 12, long)] {
            cases.push(primed_case(shape, dtype));
        }
        cases.push(forward_case(Shape(1, 4096, 128, 128, 7, causal(7, 1, 1)), dtype, true));
        cases.push(forward_case(Shape(8, 16000, 16, 16, 7, causal(7, 1, 9)), dtype, true));
    }
    cases
}

fn label(kind: &str, Shape(b, t, cin, cout, k, g): Shape) -> String {
    let mut s = format!("{kind} {b}x{t}x{cin}->{cout} k{k}");
    for (name, value, default) in
        [("s", g.stride, 1), ("d", g.dilation, 1), ("g", g.groups, 1), ("l", g.pad_left, 0), ("r", g.pad_right, 0)]
    {
        if value != default {
            s += &format!(" {name}{value}");
        }
    }
    s
}

/// Of `x`, `weight` and `y`, once each, and `bytes` more.
fn cost(Shape(b, t, cin, cout, k, g): Shape, dtype: DType, bytes: usize) -> Cost {
    let tout = g.output_len(t, k);
    let weights = k * cin / g.groups * cout;
    Cost { bytes: (b * t * cin + weights + b * tout * cout) * dtype.bytes() + bytes, flops: 2 * b * tout * weights }
}

/// `sums` outputs, each a sum of `n` products. Of more than some thousands of sums one errs by more than the four standard
/// deviations that a budget has: those get 5.6.
fn case(kind: &str, shape: Shape, dtype: DType, inputs: Vec<Input>, [sums, n]: [usize; 2], run: crate::case::Run) -> Case {
    let tolerance = Tolerance::accumulate(if sums > 8192 { 2 * n } else { n }).then_round_to(dtype);
    Case {
        label: label(kind, shape),
        dtype,
        inputs,
        outputs: vec![("y", Check::Within(tolerance))],
        run,
        cost: cost(shape, dtype, 0),
        bench: false,
    }
}

fn operands(Shape(b, t, cin, cout, k, g): Shape) -> (Input, Input) {
    (
        Input::normal("x", [b, t, cin]),
        Input::new("weight", [k, cin / g.groups, cout], Fill::Normal(((k * cin / g.groups) as f64).powf(-0.5))),
    )
}

/// No larger than the sums it starts, so that partial sums are no larger than the result.
fn bias(cout: usize) -> Input {
    Input::new("bias", [cout], Fill::Uniform(-1.0, 1.0))
}

fn forward_case(shape: Shape, dtype: DType, bench: bool) -> Case {
    let Shape(b, t, cin, cout, k, g) = shape;
    let (x, w) = operands(shape);
    let run = Box::new(move |t: &Inputs| Ok(vec![forward(&t[0], &t[1], &g, Fused { bias: Some(&t[2]), ..Fused::default() })?]));
    let cost = cost(shape, dtype, cout * dtype.bytes());
    Case {
        bench,
        cost,
        ..case("forward", shape, dtype, vec![x, w, bias(cout)], [b * g.output_len(t, k) * cout, k * cin / g.groups + 1], run)
    }
}

fn input_gradient(shape: Shape, dtype: DType) -> Case {
    let Shape(b, t, cin, cout, k, g) = shape;
    let dy = Input::normal("dy", [b, g.output_len(t, k), cout]);
    let run = Box::new(move |i: &Inputs| Ok(vec![backward_input(&i[0], &i[1], &g, t)?]));
    case("dx", shape, dtype, vec![dy, operands(shape).1], [b * t * cin, k * cout / g.groups], run)
}

fn weight_gradient(shape: Shape, dtype: DType) -> Case {
    let Shape(b, t, cin, cout, k, g) = shape;
    let tout = g.output_len(t, k);
    let run = Box::new(move |i: &Inputs| Ok(vec![backward_weight(&i[0], &i[1], &g, k)?]));
    let sums = match g.groups {
        1 => partial_bytes(b * tout, run_length(b * tout, k * cin, cout), k * cin * cout, dtype == DType::F32),
        _ => 0,
    };
    let cost = cost(shape, dtype, sums);
    let inputs = vec![Input::normal("dy", [b, tout, cout]), operands(shape).0];
    Case { cost, ..case("dw", shape, dtype, inputs, [k * cin / g.groups * cout, b * tout], run) }
}

/// Stored in f32.
fn wide_weight_gradient(shape: Shape, dtype: DType) -> Case {
    let Shape(b, t, cin, cout, k, g) = shape;
    let (total, weights) = (b * g.output_len(t, k), k * cin * cout);
    let run = Box::new(move |i: &Inputs| Ok(vec![backward_weight_in(check::statistics_dtype(i[1].dtype()), &i[0], &i[1], &g, k)?]));
    let case = weight_gradient(shape, dtype);
    let sums = partial_bytes(total, run_length(total, k * cin, cout), weights, true) + weights * (4 - dtype.bytes());
    let outputs = vec![("y", Check::Within(Tolerance::accumulate(if weights > 8192 { 2 * total } else { total })))];
    Case { label: label("dw in f32", shape), run, outputs, cost: cost(shape, dtype, sums), ..case }
}

fn fused_case(shape: Shape, dtype: DType) -> Case {
    let Shape(b, t, cin, cout, k, g) = shape;
    let (x, w) = operands(shape);
    let inputs = vec![
        x,
        w,
        bias(cout),
        Input::normal("residual", [b, g.output_len(t, k), cout]),
        Input::new("alpha", [cin], Fill::Uniform(0.5, 2.0)).f32(),
    ];
    let run = Box::new(move |i: &Inputs| {
        let snake = Fused { prologue: Prologue::Snake(&i[4]), bias: Some(&i[2]), residual: Some(&i[3]), epilogue: Epilogue::Tanh };
        let elu = Fused { prologue: Prologue::Elu, bias: None, residual: None, epilogue: Epilogue::Elu };
        let sums = Fused { prologue: Prologue::None, bias: Some(&i[2]), residual: Some(&i[3]), epilogue: Epilogue::None };
        [snake, elu, sums].into_iter().map(|fused| forward(&i[0], &i[1], &g, fused)).collect()
    });
    // A snake's element errs by 11 roundoffs / 0.5 at most (ops/snake/cases.rs), is stored in `dtype`, and elements err
    // independently, so that one counts as one rounding of the sum. The sums before tanh have an rms of up to 2, after it 0.7.
    let elements = Tolerance::accumulate(k * cin / g.groups + 2).via(DType::F32, 22 * 22).via(dtype, 1);
    let tolerance = elements.of_sum_larger_by(3.0).then_rounded(4).then_round_to(dtype);
    let sums = Tolerance::accumulate(k * cin / g.groups + 2).then_round_to(dtype);
    let outputs = vec![
        ("snake, bias, residual, tanh", Check::Within(tolerance)),
        ("elu, elu", Check::Within(tolerance)),
        ("bias, residual", Check::Within(sums)),
    ];
    // Three runs, two of them with bias and residual, one with alpha.
    let cost = {
        let (one, more) = (cost(shape, dtype, 0), 2 * (cout + b * g.output_len(t, k) * cout) * dtype.bytes() + 4 * cin);
        Cost { bytes: 3 * one.bytes + more, flops: 3 * one.flops }
    };
    Case { outputs, cost, ..case("fused", shape, dtype, inputs, [b * g.output_len(t, k) * cout, k * cin], run) }
}

/// Three steps of a stream, the second of which stream 0 sits out; the last step's output and the ring.
fn stream_case(shape: Shape, dtype: DType) -> Case {
    let Shape(b, t, cin, cout, k, g) = shape;
    let (x, w) = operands(shape);
    let mask = Fill::Values(std::iter::once(0.0).chain(std::iter::repeat_n(1.0, b - 1)).collect());
    let more = |name| Input::normal(name, [b, t, cin]);
    let inputs = vec![x, w, more("x2"), more("x3"), Input::new("mask", [b], mask).integer(DType::U8)];
    let run = Box::new(move |i: &Inputs| {
        let mut ring = Ring::new(&i[0].device(), i[0].dtype(), b, k, cin, &g)?;
        step(&i[0], &mut ring, &i[1], &g, Fused::default(), None)?;
        step(&i[2], &mut ring, &i[1], &g, Fused::default(), Some(&i[4]))?;
        let y = step(&i[3], &mut ring, &i[1], &g, Fused::default(), None)?;
        ring.reset(&i[4])?;
        Ok(vec![y, ring.rows, ring.position])
    });
    let case = case("stream", shape, dtype, inputs, [b * g.output_len(t, k) * cout, k * cin], run);
    let outputs = vec![case.outputs[0].clone(), ("ring", Check::Exact), ("position", Check::Exact)];
    // The past is read by every step, all of it if steps are not shorter than the dilation; a step's newest rows are read again
    // and put into the past of the streams that are not masked.
    let past = g.reach(k) - g.stride;
    let appended = 2 * (3 * b - 1) * t.min(past) * cin;
    let step = cost(shape, dtype, b * past * cin * dtype.bytes());
    let bytes = 3 * step.bytes + (appended + (b - 1) * past * cin) * dtype.bytes();
    Case { outputs, cost: Cost { bytes, flops: 3 * step.flops }, ..case }
}

/// Two primed steps of a stream, the first of which stream 0 sits out, and a third after all but stream 0 were reset; the last
/// output and the ring.
fn primed_case(shape: Shape, dtype: DType) -> Case {
    let Shape(b, _, cin, _, k, g) = shape;
    let past = g.reach(k) - g.stride;
    let stream = stream_case(shape, dtype);
    let run = Box::new(move |i: &Inputs| {
        let mut ring = Ring::new(&i[0].device(), i[0].dtype(), b, k, cin, &g)?;
        for (x, mask) in [(&i[0], Some(&i[4])), (&i[2], None)] {
            ring.prime(x, mask)?;
            step(x, &mut ring, &i[1], &g, Fused::default(), mask)?;
        }
        ring.reset(&i[4])?;
        ring.prime(&i[3], None)?;
        let y = step(&i[3], &mut ring, &i[1], &g, Fused::default(), None)?;
        Ok(vec![y, ring.rows, ring.position])
    });
    // Every stream is primed once and all but the first twice.
    let bytes = stream.cost.bytes + (2 * b - 1) * (past + 1) * cin * dtype.bytes();
    Case { label: label("primed", shape), run, cost: Cost { bytes, ..stream.cost }, ..stream }
}
