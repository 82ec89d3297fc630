use super::forward;
use crate::DType;
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::tolerance::{ROUNDOFF, Tolerance};

/// Of products, gates and biases.
const LIMIT: f64 = 2.0;
const SCALE: f64 = 0.7;
/// Scores are within this.
const SCORE: f64 = SCALE * LIMIT + LIMIT * LIMIT;

pub(super) fn cases() -> Vec<Case> {
    let shapes = [[0, 7], [1, 1], [1, 33], [31, 31], [33, 1], [127, 127], [2, 500], [3, 257], [64, 300], [130, 255], [1500, 1500]];
    shapes.into_iter().map(case).chain([nan()]).collect()
}

fn case([queries, keys]: [usize; 2]) -> Case {
    let n = queries * keys;
    let uniform = |name, shape: usize| Input::new(name, [shape], Fill::Uniform(-LIMIT, LIMIT));
    // The scale, two products, one of which rounds again with the sum, and the difference from the largest; twice, as that errs as well.
    let score = 2.0 * (SCALE * LIMIT + 2.0 * SCORE) * ROUNDOFF + 2.0 * SCORE * ROUNDOFF;
    // The exponential, a sum of such, which errs as its terms do, a quotient and a product.
    let relative = 2.0 * (score + 4.0 * ROUNDOFF) / ROUNDOFF;
    Case {
        label: format!("{queries}x{keys}"),
        dtype: DType::F32,
        inputs: vec![
            Input::new("x", [queries, keys], Fill::Uniform(-LIMIT, LIMIT)),
            uniform("gate", queries),
            uniform("bias", queries + keys - 1),
        ],
        outputs: vec![("y", Check::Within(Tolerance::positive_sum(keys).then_rounded(relative.ceil() as usize + 2)))],
        run: Box::new(|i| Ok(vec![forward(&i[0], &i[1], &i[2], SCALE)?])),
        cost: Cost { bytes: if n == 0 { 0 } else { 4 * (2 * n + 2 * queries + keys - 1) }, flops: 8 * n },
        bench: n > 1 << 20,
    }
}

/// What is no number spoils its row, and no other.
fn nan() -> Case {
    let mut x = vec![0.5; 4 * 3];
    x[4] = f64::NAN;
    let mut case = case([4, 3]);
    case.label += " NaN";
    case.inputs[0] = Input::new("x", [4, 3], Fill::Values(x));
    case
}
