use super::Activation;
use crate::cpu::{math, parallel, vectorised};
use crate::{DType, Real, Result, Tensor};

/// Of [`Activation::LeakyRelu`] below zero.
const LEAK: f64 = 0.01;
/// From where on [`Activation::Mish`] is what it is given, in f32 and nearly so in f64.
const STEEP: f64 = 20.0;

fn activation<T: Real>(kind: Activation) -> fn(&mut [T]) {
    match kind {
        Activation::Identity => |_| {},
        Activation::Elu => math::elu::<T>,
        Activation::Silu => math::silu,
        Activation::Gelu => math::gelu,
        Activation::GeluTanh => math::gelu_tanh,
        Activation::Tanh => math::tanh,
        Activation::Sigmoid => |values| {
            each(
                values,
                #[inline(always)]
                |x| sigmoid(x),
            )
        },
        Activation::Relu => |values| {
            each(
                values,
                #[inline(always)]
                |x| if x < T::zero() { T::zero() } else { x },
            )
        },
        Activation::LeakyRelu => |values| {
            each(
                values,
                #[inline(always)]
                |x| if x < T::zero() { x * T::of(LEAK) } else { x },
            )
        },
        Activation::Mish => |values| {
            each(
                values,
                #[inline(always)]
                |x| if x > T::of(STEEP) { x } else { x * mish(x).0 },
            )
        },
        Activation::Softsign => |values| {
            each(
                values,
                #[inline(always)]
                |x| x / (T::one() + x.abs()),
            )
        },
    }
}

#[inline(always)]
fn each<T: Real>(values: &mut [T], f: impl Fn(T) -> T) {
    vectorised(
        #[inline(always)]
        || {
            for x in values {
                *x = f(*x);
            }
        },
    );
}

/// `tanh ln(1 + e^x)` and its slope.
#[inline(always)]
fn mish<T: Real>(x: T) -> (T, T) {
    let (e, one, two) = (exp(x), T::one(), T::of(2.0));
    let n = e * (e + two);
    (n / (n + two), T::of(4.0) * e * (one + e) / ((n + two) * (n + two)))
}

pub fn forward<T: Real>(kind: Activation, y: &mut Tensor, x: &Tensor) -> Result<()> {
    let (activate, x) = (activation::<T>(kind), x.as_slice::<T>()?);
    parallel::for_rows(y.as_mut_slice::<T>()?, 1, |at, y| {
        // In blocks that stay in cache.
        for (y, x) in y.chunks_mut(4096).zip(x[at..].chunks(4096)) {
            y.copy_from_slice(&x[..y.len()]);
            activate(y);
        }
    });
    Ok(())
}

pub fn gate<T: Real>(kind: Activation, y: &mut Tensor, x: &Tensor) -> Result<()> {
    let (activate, half, x) = (activation::<T>(kind), y.shape().last_dim(), x.as_slice::<T>()?);
    parallel::for_rows(y.as_mut_slice::<T>()?, half, |at, y| {
        for (y, x) in y.chunks_exact_mut(half).zip(x[2 * at * half..].chunks_exact(2 * half)) {
            y.copy_from_slice(&x[..half]);
            activate(y);
            y.iter_mut().zip(&x[half..]).for_each(|(y, &x)| *y *= x);
        }
    });
    Ok(())
}

pub fn backward<T: Real>(kind: Activation, dx: &mut Tensor, dy: &Tensor, x: &Tensor) -> Result<()> {
    let one = T::one();
    match kind {
        Activation::Identity => map2(
            dx,
            dy,
            x,
            #[inline(always)]
            |dy, _: T| dy,
        ),
        Activation::Elu => map2(
            dx,
            dy,
            x,
            #[inline(always)]
            |dy, x: T| if x > T::zero() { dy } else { dy * exp(x) },
        ),
        Activation::Silu => map2(
            dx,
            dy,
            x,
            #[inline(always)]
            |dy, x: T| dy * (sigmoid(x) + x * sigmoid_slope(x)),
        ),
        Activation::Gelu => map2(
            dx,
            dy,
            x,
            #[inline(always)]
            |dy, x: T| {
                let density = exp(-x * x * T::of(0.5)) * T::of(0.5 * math::GELU_SLOPE);
                dy * (normal_cdf(x) + x * density)
            },
        ),
        Activation::GeluTanh => map2(
            dx,
            dy,
            x,
            #[inline(always)]
            |dy, x: T| {
                let (v, slope) = (inner(x), T::of(2.0 * math::GELU_SLOPE) * (one + T::of(3.0 * math::GELU_CUBIC) * x * x));
                dy * (sigmoid(v) + x * sigmoid_slope(v) * slope)
            },
        ),
        Activation::Tanh => map2(
            dx,
            dy,
            x,
            #[inline(always)]
            |dy, x: T| dy * T::of(4.0) * sigmoid_slope(x + x),
        ),
        Activation::Sigmoid => map2(
            dx,
            dy,
            x,
            #[inline(always)]
            |dy, x: T| dy * sigmoid_slope(x),
        ),
        Activation::Relu => map2(
            dx,
            dy,
            x,
            #[inline(always)]
            |dy, x: T| if x > T::zero() { dy } else { T::zero() },
        ),
        Activation::LeakyRelu => map2(
            dx,
            dy,
            x,
            #[inline(always)]
            |dy, x: T| if x > T::zero() { dy } else { dy * T::of(LEAK) },
        ),
        Activation::Mish => map2(
            dx,
            dy,
            x,
            #[inline(always)]
            |dy, x: T| {
                let (value, slope) = mish(x);
                if x > T::of(STEEP) { dy } else { dy * (value + x * slope) }
            },
        ),
        Activation::Softsign => map2(
            dx,
            dy,
            x,
            #[inline(always)]
            |dy, x: T| dy / ((one + x.abs()) * (one + x.abs())),
        ),
    }
}

pub fn leaky_relu<T: Real>(y: &mut Tensor, x: &Tensor, slope: f64) -> Result<()> {
    let (x, slope) = (x.as_slice::<T>()?, T::of(slope));
    parallel::for_rows(y.as_mut_slice::<T>()?, 1, |at, y| {
        let x = &x[at..][..y.len()];
        vectorised(
            #[inline(always)]
            || y.iter_mut().zip(x).for_each(|(y, &x)| *y = if x < T::zero() { slope * x } else { x }),
        );
    });
    Ok(())
}

pub fn leaky_relu_backward<T: Real>(dx: &mut Tensor, dy: &Tensor, y: &Tensor, slope: f64) -> Result<()> {
    let (dy, y, slope) = (dy.as_slice::<T>()?, y.as_slice::<T>()?, T::of(slope));
    parallel::for_rows(dx.as_mut_slice::<T>()?, 1, |at, dx| {
        let n = dx.len();
        let (dy, y) = (&dy[at..][..n], &y[at..][..n]);
        vectorised(
            #[inline(always)]
            || (0..n).for_each(|i| dx[i] = if y[i] > T::zero() { dy[i] } else { slope * dy[i] }),
        );
    });
    Ok(())
}

#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    (T::one() + exp(-x)).recip()
}

#[inline(always)]
fn exp<T: Real>(x: T) -> T {
    if T::DTYPE == DType::F32 { T::of(math::exp(x.f64() as f32).into()) } else { x.exp() }
}

#[inline(always)]
fn normal_cdf<T: Real>(x: T) -> T {
    if T::DTYPE == DType::F32 {
        return T::of(math::normal_cdf(x.f64() as f32).into());
    }
    T::of(0.5 * libm::erfc(-x.f64() * std::f64::consts::FRAC_1_SQRT_2))
}

/// `sigmoid (1 - sigmoid)` without its cancellation; a quarter of `1 - tanh^2(x / 2)`.
#[inline(always)]
fn sigmoid_slope<T: Real>(x: T) -> T {
    let e = exp(-x.abs());
    e / ((T::one() + e) * (T::one() + e))
}

/// Twice the argument of the hyperbolic tangent, since `(1 + tanh u) / 2 = sigmoid(2 u)`.
#[inline(always)]
fn inner<T: Real>(x: T) -> T {
    T::of(2.0 * math::GELU_SLOPE) * (x + T::of(math::GELU_CUBIC) * x * x * x)
}

fn map2<T: Real>(y: &mut Tensor, a: &Tensor, b: &Tensor, f: impl Fn(T, T) -> T + Sync + Send) -> Result<()> {
    let (a, b) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
    parallel::for_rows(y.as_mut_slice::<T>()?, 1, |at, y| {
        let n = y.len();
        let (a, b) = (&a[at..][..n], &b[at..][..n]);
        vectorised(
            #[inline(always)]
            || (0..n).for_each(|i| y[i] = f(a[i], b[i])),
        );
    });
    Ok(())
}
