use super::{Geometry, backward_input, backward_weight, backward_weight_in, forward};
use crate::DType;
use crate::case::{Case, Check, Cost, Fill, Input, Inputs, Run};
use crate::ops::check;
use crate::ops::matmul::cuda::{partial_bytes, run_length};
use crate::tolerance::Tolerance;

/// `B H W Cin Cout` and a geometry.
#[derive(Clone, Copy)]
struct Shape(usize, usize, usize, usize, usize, Geometry);

pub(super) fn cases() -> Vec<Case> {
    let same = Geometry::same;
    let point = Geometry::new([1, 1]);
    let wide = |dilation| same([3, 9], [1, 2], [dilation, 1]);
    let period = Geometry { padding: [2, 0], ..Geometry { stride: [3, 1], ..Geometry::new([5, 1]) } };
    let small = [
        Shape(1, 1, 1, 1, 1, point),
        Shape(2, 7, 31, 2, 5, same([3, 9], [1, 1], [1, 1])),
        Shape(1, 5, 33, 8, 17, wide(2)),
        Shape(2, 31, 3, 1, 8, period),
        Shape(1, 33, 5, 12, 33, period),
        Shape(1, 9, 17, 16, 1, same([3, 3], [1, 1], [1, 1])),
        Shape(1, 11, 10, 4, 6, Geometry { kernel: [2, 3], stride: [2, 4], dilation: [3, 2], padding: [1, 0] }),
        Shape(1, 6, 9, 3, 4, Geometry { kernel: [1, 2], stride: [3, 2], dilation: [1, 2], padding: [0, 3] }),
        // More than a run of a weight gradient.
        Shape(2, 20, 33, 3, 2, same([1, 3], [1, 1], [1, 1])),
        Shape(0, 4, 4, 2, 2, point),
    ];
    // Enough to count what they move, and few enough products that memory is what they wait for: of every tile, either way.
    let moving = [[16, 16], [8, 64], [64, 8]].map(|[cin, cout]| Shape(1, 40, 33, cin, cout, point));
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for shape in small.into_iter().chain(moving) {
            cases.extend([forward_case(shape, dtype), input_gradient(shape, dtype), weight_gradient(shape, dtype)]);
        }
        if dtype != DType::F32 {
            cases.extend([small[0], moving[1]].map(|shape| wide_weight_gradient(shape, dtype)));
        }
        // Half a second of a multi-band discriminator, and of one by periods.
        for shape in [Shape(8, 64, 129, 32, 32, wide(1)), Shape(8, 80, 5, 256, 256, period)] {
            let timed = [forward_case(shape, dtype), input_gradient(shape, dtype), weight_gradient(shape, dtype)];
            cases.extend(timed.map(|case| Case { bench: true, ..case }));
        }
    }
    cases
}

impl Shape {
    fn output(&self) -> [usize; 2] {
        self.5.output([self.1, self.2])
    }

    fn x(&self) -> [usize; 4] {
        [self.0, self.1, self.2, self.3]
    }

    fn y(&self) -> [usize; 4] {
        let [rows, columns] = self.output();
        [self.0, rows, columns, self.4]
    }

    fn weights(&self) -> usize {
        self.5.taps() * self.3 * self.4
    }

    fn weight(&self) -> Input {
        let depth = (self.5.taps() * self.3) as f64;
        Input::new("weight", [self.5.taps(), self.3, self.4], Fill::Normal(depth.powf(-0.5)))
    }
}

/// `x`, weight and `y`, once each; sums of `n` products. Of more than some thousands of sums one errs by more than the four standard
/// deviations that a budget has: those get 5.6.
fn case(kind: &str, shape: Shape, dtype: DType, inputs: Vec<Input>, sums: usize, n: usize, run: Run) -> Case {
    let Shape(b, h, w, cin, cout, g) = shape;
    let tolerance = Tolerance::accumulate(if sums > 8192 { 2 * n } else { n }).then_round_to(dtype);
    let [x, y] = [shape.x(), shape.y()].map(|s| s.iter().product::<usize>());
    let [kernel, stride, dilation, padding] = [g.kernel, g.stride, g.dilation, g.padding].map(|[h, w]| format!("{h},{w}"));
    Case {
        label: format!("{kind} {b}x{h}x{w}x{cin}->{cout} k{kernel} s{stride} d{dilation} p{padding}"),
        dtype,
        inputs,
        outputs: vec![("y", Check::Within(tolerance))],
        run,
        cost: Cost { bytes: (x + shape.weights() + y) * dtype.bytes(), flops: 2 * (y / cout) * shape.weights() },
        bench: false,
    }
}

fn forward_case(shape: Shape, dtype: DType) -> Case {
    let Shape(_, _, _, cin, cout, g) = shape;
    // No larger than the sums it starts, so that partial sums are no larger than the result.
    let bias = Input::new("bias", [cout], Fill::Uniform(-1.0, 1.0));
    let inputs = vec![Input::normal("x", shape.x()), shape.weight(), bias];
    let run: Run = Box::new(move |i: &Inputs| Ok(vec![forward(&i[0], &i[1], Some(&i[2]), &g, 0.5)?]));
    // One more rounding for the slope, which halves what is negative: as much as the error of it.
    let case = case("forward", shape, dtype, inputs, shape.y().iter().product(), 2 * (g.taps() * cin + 2), run);
    let cost = Cost { bytes: case.cost.bytes + cout * dtype.bytes(), ..case.cost };
    Case { cost, ..case }
}

fn input_gradient(shape: Shape, dtype: DType) -> Case {
    let Shape(_, h, w, _, cout, g) = shape;
    let inputs = vec![Input::normal("dy", shape.y()), shape.weight()];
    let run: Run = Box::new(move |i: &Inputs| Ok(vec![backward_input(&i[0], &i[1], &g, [h, w])?]));
    case("dx", shape, dtype, inputs, shape.x().iter().product(), g.taps() * cout, run)
}

fn weight_gradient(shape: Shape, dtype: DType) -> Case {
    let Shape(b, _, _, cin, cout, g) = shape;
    let [rows, columns] = shape.output();
    let (total, depth) = (b * rows * columns, g.taps() * cin);
    let inputs = vec![Input::normal("dy", shape.y()), Input::normal("x", shape.x())];
    let run: Run = Box::new(move |i: &Inputs| Ok(vec![backward_weight(&i[0], &i[1], &g)?]));
    let case = case("dw", shape, dtype, inputs, shape.weights(), total, run);
    let partial = if total == 0 { 0 } else { partial_bytes(total, run_length(total, depth, cout), shape.weights(), dtype == DType::F32) };
    let cost = Cost { bytes: case.cost.bytes + partial, ..case.cost };
    Case { cost, ..case }
}

/// Stored in f32.
fn wide_weight_gradient(shape: Shape, dtype: DType) -> Case {
    let Shape(b, _, _, cin, cout, g) = shape;
    let ([rows, columns], weights) = (shape.output(), shape.weights());
    let (total, depth) = (b * rows * columns, g.taps() * cin);
    let run: Run = Box::new(move |i: &Inputs| Ok(vec![backward_weight_in(check::statistics_dtype(i[1].dtype()), &i[0], &i[1], &g)?]));
    let case = weight_gradient(shape, dtype);
    let partial = |as_is| partial_bytes(total, run_length(total, depth, cout), weights, as_is);
    let cost = Cost { bytes: case.cost.bytes + weights * (4 - dtype.bytes()) + partial(true) - partial(false), ..case.cost };
    let outputs = vec![("y", Check::Within(Tolerance::accumulate(total)))];
    Case { label: case.label.replace("dw", "dw in f32"), run, outputs, cost, ..case }
}
