use super::Activation;
use crate::cpu::parallel;
use crate::{Real, Result, Tensor};

/// sqrt(2 / pi), and the cubic term of the tanh approximation.
const SLOPE: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;

pub fn forward<T: Real>(kind: Activation, y: &mut Tensor, x: &Tensor) -> Result<()> {
    let half = T::of(0.5);
    match kind {
        Activation::Elu => map(y, x, |x: T| if x > T::zero() { x } else { x.exp_m1() }),
        Activation::Silu => map(y, x, |x: T| x * sigmoid(x)),
        Activation::Gelu => map(y, x, |x: T| x * normal_cdf(x)),
        Activation::GeluTanh => map(y, x, |x: T| half * x * (T::one() + inner(x).tanh())),
        Activation::Tanh => map(y, x, |x: T| x.tanh()),
    }
}

pub fn backward<T: Real>(kind: Activation, dx: &mut Tensor, dy: &Tensor, x: &Tensor) -> Result<()> {
    let one = T::one();
    match kind {
        Activation::Elu => map2(dx, dy, x, |dy, x: T| if x > T::zero() { dy } else { dy * x.exp() }),
        Activation::Silu => map2(dx, dy, x, |dy, x: T| {
            let s = sigmoid(x);
            dy * s * (one + x * (one - s))
        }),
        Activation::Gelu => map2(dx, dy, x, |dy, x: T| {
            let density = (-x * x * T::of(0.5)).exp() * T::of(0.5 * SLOPE);
            dy * (normal_cdf(x) + x * density)
        }),
        Activation::GeluTanh => map2(dx, dy, x, |dy, x: T| {
            let t = inner(x).tanh();
            let slope = T::of(SLOPE) * (one + T::of(3.0 * CUBIC) * x * x);
            dy * T::of(0.5) * ((one + t) + x * (one - t * t) * slope)
        }),
        Activation::Tanh => map2(dx, dy, x, |dy, x: T| {
            let t = x.tanh();
            dy * (one - t * t)
        }),
    }
}

fn sigmoid<T: Real>(x: T) -> T {
    (T::one() + (-x).exp()).recip()
}

fn normal_cdf<T: Real>(x: T) -> T {
    T::of(0.5 * libm::erfc(-x.f64() * std::f64::consts::FRAC_1_SQRT_2))
}

fn inner<T: Real>(x: T) -> T {
    T::of(SLOPE) * (x + T::of(CUBIC) * x * x * x)
}

fn map<T: Real>(y: &mut Tensor, x: &Tensor, f: impl Fn(T) -> T + Sync + Send) -> Result<()> {
    let x = x.as_slice::<T>()?;
    parallel::for_rows(y.as_mut_slice::<T>()?, 1, |at, y| y.iter_mut().zip(&x[at..]).for_each(|(y, &x)| *y = f(x)));
    Ok(())
}

fn map2<T: Real>(y: &mut Tensor, a: &Tensor, b: &Tensor, f: impl Fn(T, T) -> T + Sync + Send) -> Result<()> {
    let (a, b) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
    parallel::for_rows(y.as_mut_slice::<T>()?, 1, |at, y| {
        y.iter_mut().zip(a[at..].iter().zip(&b[at..])).for_each(|(y, (&a, &b))| *y = f(a, b));
    });
    Ok(())
}
