//! Activations of slices: in f32 by polynomials that fill vector registers, in f64 by the standard library.
//!
//! Errors in f32, relative to the value, in roundoffs of 2^-24 (half a unit in the last place is at most one): the exponential
//! 2, `e^x - 1` 3, the sigmoid 4, the hyperbolic tangent 5, the normal distribution 8. The tests scan for them. NaN stays NaN.

use crate::cpu::vectorised;
use crate::{DType, Real};

/// sqrt(2 / pi), and the cubic term of the tanh approximation.
pub const GELU_SLOPE: f64 = 0.797_884_560_802_865_4;
pub const GELU_CUBIC: f64 = 0.044_715;

/// `v` if positive, else `e^v - 1`.
pub fn elu<T: Real>(values: &mut [T]) {
    each(
        values,
        #[inline(always)]
        |x: f32| if x > 0.0 { x } else { expm1(x) },
        |x| if x > T::zero() { x } else { x.exp_m1() },
    );
}

pub fn tanh<T: Real>(values: &mut [T]) {
    each(
        values,
        #[inline(always)]
        |x: f32| {
            let t = expm1(-2.0 * x.abs());
            (-t / (t + 2.0)).copysign(x)
        },
        |x| x.tanh(),
    );
}

/// `v / (1 + e^-v)`.
pub fn silu<T: Real>(values: &mut [T]) {
    each(
        values,
        #[inline(always)]
        |x: f32| x * sigmoid(x),
        |x| x / (T::one() + (-x).exp()),
    );
}

/// `v` times the normal distribution function of `v`.
pub fn gelu<T: Real>(values: &mut [T]) {
    each(
        values,
        #[inline(always)]
        |x: f32| x * normal_cdf(x),
        |x| x * T::of(0.5 * libm::erfc(-x.f64() * std::f64::consts::FRAC_1_SQRT_2)),
    );
}

/// `v (1 + tanh(sqrt(2/pi) (v + 0.044715 v^3))) / 2`.
pub fn gelu_tanh<T: Real>(values: &mut [T]) {
    each(
        values,
        #[inline(always)]
        |x: f32| x * sigmoid((2.0 * GELU_SLOPE) as f32 * (x + GELU_CUBIC as f32 * x * x * x)),
        |x| {
            let double = T::of(2.0 * GELU_SLOPE) * (x + T::of(GELU_CUBIC) * x * x * x);
            x / (T::one() + (-double).exp())
        },
    );
}

#[inline(always)]
fn each<T: Real>(values: &mut [T], fast: impl Fn(f32) -> f32, exact: impl Fn(T) -> T) {
    if T::DTYPE == DType::F32 {
        let values: &mut [f32] = bytemuck::cast_slice_mut(values);
        vectorised(
            #[inline(always)]
            || {
                for v in values {
                    *v = fast(*v);
                }
            },
        )
    } else {
        for v in values {
            *v = exact(*v);
        }
    }
}

/// Adding it rounds to a whole number and leaves that in the lowest bits.
const ROUND: f32 = 12_582_912.0;

/// `n` and `e^r - 1` for `x = n ln 2 + r`, |r| <= ln 2 / 2.
#[inline(always)]
fn reduced(x: f32) -> (f32, f32) {
    const LOW: f32 = -1.904_654_3e-9; // what f32 lacks of ln 2
    let n = x.mul_add(std::f32::consts::LOG2_E, ROUND) - ROUND;
    let r = n.mul_add(-LOW, n.mul_add(-std::f32::consts::LN_2, x));
    // (e^r - 1 - r) / r^2, minimax.
    let q = polynomial(r, [0.500000001368, 0.166666666819, 0.0416664628391, 0.0083333106938, 0.00139338809632, 0.000198912473142]);
    (n, (r * r).mul_add(q, r))
}

/// `2^n` for whole `n` of -126 to 127.
#[inline(always)]
fn power_of_two(n: f32) -> f32 {
    f32::from_bits((n + ROUND).to_bits().wrapping_add(127) << 23)
}

#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f64; N]) -> f32 {
    let mut sum = coefficients[N - 1] as f32;
    for i in (0..N - 1).rev() {
        sum = sum.mul_add(x, coefficients[i] as f32);
    }
    sum
}

/// Written so that NaN passes.
#[inline(always)]
fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// `e^x`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let (n, p) = reduced(clamp(x, -104.0, 89.0));
    // In two steps, as 2^n may not be a number when e^x is.
    let half = (0.5 * n).floor();
    (p + 1.0) * power_of_two(half) * power_of_two(n - half)
}

/// `e^x - 1` for `x <= 0`; -1 above the bound of that.
#[inline(always)]
pub fn expm1(x: f32) -> f32 {
    // Of what is below 2^-25 beside 1, nothing is seen.
    let (n, p) = reduced(clamp(x, -20.0, 0.0));
    let scale = power_of_two(n);
    let y = p.mul_add(scale, scale - 1.0);
    if x > 0.0 { x } else { y }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Of the normal distribution. Tails keep their relative accuracy.
#[inline(always)]
pub fn normal_cdf(x: f32) -> f32 {
    let u = clamp(x.abs(), 0.0, 14.5);
    let t = 1.0 / u.mul_add(0.3, 1.0);
    // erfc(u / sqrt 2) e^(u^2 / 2) / (2 t), minimax for u of 0 to 14.
    let scaled = polynomial(
        t,
        [
            0.119687693145,
            0.119551763229,
            0.110405179847,
            0.0775890643774,
            0.0984807401835,
            -0.0837425490162,
            0.196940677017,
            -0.232038482936,
            0.114040272074,
            -0.0209143597288,
        ],
    );
    let square = u * u;
    let rest = u.mul_add(u, -square);
    let bell = exp(-0.5 * square);
    let tail = rest.mul_add(-0.5 * bell, bell) * (t * scaled);
    if x > 0.0 { 1.0 - tail } else { tail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tolerance::ROUNDOFF;

    /// Largest relative error in roundoffs over numbers of all sizes between `low` and `high`.
    fn worst(low: f32, high: f32, fast: impl Fn(&mut [f32]), exact: impl Fn(f64) -> f64) -> f64 {
        let x: Vec<f32> =
            (0..u32::MAX / 2).step_by(2_003).map(f32::from_bits).flat_map(|v| [v, -v]).filter(|v| (low..=high).contains(v)).collect();
        let mut y = x.clone();
        fast(&mut y);
        let error = |(&x, &y): (&f32, &f32)| {
            let expected = exact(x as f64);
            // Where f32 has few digits left nothing is promised.
            if expected.abs() < 1e-37 { 0.0 } else { ((y as f64 - expected) / expected / ROUNDOFF).abs() }
        };
        x.iter().zip(&y).map(error).fold(0.0, f64::max)
    }

    #[test]
    fn errors_are_what_is_promised() {
        let map = |f: fn(f32) -> f32| move |v: &mut [f32]| each(v, f, f);
        let inf = f32::INFINITY;
        let phi = |x: f64| 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
        let of = [
            ("exp", 2.0, worst(-86.0, 88.0, map(exp), f64::exp)),
            ("expm1", 3.0, worst(-inf, 0.0, map(expm1), f64::exp_m1)),
            ("elu", 3.0, worst(-inf, inf, elu, |x| if x > 0.0 { x } else { x.exp_m1() })),
            ("sigmoid", 4.0, worst(-86.0, inf, map(sigmoid), |x| 1.0 / (1.0 + (-x).exp()))),
            ("tanh", 5.0, worst(-inf, inf, tanh, f64::tanh)),
            ("normal_cdf", 8.0, worst(-12.0, inf, map(normal_cdf), phi)),
            ("gelu", 9.0, worst(-12.0, 1e30, gelu, |x| x * phi(x))),
            ("silu", 5.0, worst(-80.0, 1e30, silu, |x| x / (1.0 + (-x).exp()))),
        ];
        println!("{of:?}");
        for (name, bound, found) in of {
            assert!(found <= bound, "{name}: {found} roundoffs, {bound} promised");
        }
    }

    #[test]
    fn nan_and_the_ends_are_kept() {
        for f in [elu::<f32>, tanh, silu, gelu, gelu_tanh] {
            let mut v = [f32::NAN, 0.0, 100.0, -1000.0, f32::INFINITY];
            f(&mut v);
            assert!(v[0].is_nan() && v[1] == 0.0 && v[2] >= 1.0 && (-1.0..=0.0).contains(&v[3]) && v[4] >= 1.0, "{v:?}");
        }
    }
}
