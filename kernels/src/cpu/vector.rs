//! Registers of the CPU's vector unit, and work that is compiled for each kind of them.

use half::bf16;

use super::vectorised;
#[cfg(target_arch = "x86_64")]
use super::{has_avx2, has_avx512, with_avx2, with_avx512};
use crate::{DType, Element, Real};

/// Work on elements of type `T` that is written once for all registers.
pub trait Kernel<T>: Sized {
    /// `#[inline(always)]`, or it is compiled for the baseline. Only for registers that this CPU has.
    fn run<V: Vector<Scalar = T>>(self);
}

/// Whether registers of so many f32 are not kept out by a test.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn allowed(_lanes: usize) -> bool {
    #[cfg(test)]
    return _lanes <= tests::WIDEST.load(std::sync::atomic::Ordering::Relaxed);
    #[cfg(not(test))]
    true
}

/// Runs `kernel` on the widest registers of f32.
pub(crate) fn widest_f32(kernel: impl Kernel<f32>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m256, __m512};
        if has_avx512() && allowed(16) {
            // SAFETY: the features were just detected.
            return unsafe {
                with_avx512(
                    #[inline(always)]
                    || kernel.run::<__m512>(),
                )
            };
        }
        if has_avx2() && allowed(8) {
            // SAFETY: as above.
            return unsafe {
                with_avx2(
                    #[inline(always)]
                    || kernel.run::<__m256>(),
                )
            };
        }
    }
    kernel.run::<Scalars<f32>>()
}

/// Runs `kernel` on the widest registers of f64.
pub(crate) fn widest_f64(kernel: impl Kernel<f64>) {
    vectorised(
        #[inline(always)]
        || kernel.run::<Scalars<f64>>(),
    )
}

/// A register of consecutive elements.
pub trait Vector: Copy {
    const LANES: usize;
    /// Rows of two registers each that a product can sum at once.
    const ROWS: usize;
    type Scalar: Real;
    /// # Safety
    /// The CPU must have the register, and `at` must be valid for `LANES` elements; alike below.
    unsafe fn load(at: *const Self::Scalar) -> Self;
    unsafe fn load_half(at: *const bf16) -> Self;
    unsafe fn load_single(at: *const f32) -> Self;
    /// Small signed integers.
    unsafe fn bytes(at: *const i8) -> Self;
    /// The low or the high halves of bytes.
    unsafe fn nibbles(at: *const u8, high: bool) -> Self;
    /// `self * scale + start`, rounded once to f32 whatever the scalar is.
    unsafe fn scaled(self, scale: Self, start: Self) -> Self;
    /// What is stored as `W`: the scalar, f32 or bf16.
    #[inline(always)]
    unsafe fn widen<W: Element>(at: *const W) -> Self {
        // SAFETY: the caller's.
        unsafe {
            match W::DTYPE {
                DType::BF16 => Self::load_half(at.cast()),
                DType::F32 => Self::load_single(at.cast()),
                _ => Self::load(at.cast()),
            }
        }
    }
    unsafe fn store(self, at: *mut Self::Scalar);
    unsafe fn splat(v: Self::Scalar) -> Self;
    #[inline(always)]
    unsafe fn single(v: f32) -> Self {
        // SAFETY: the caller's.
        unsafe { Self::splat(Self::Scalar::of(v.into())) }
    }
    /// `self + a * b`, rounded once.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
}

/// Any type on any machine, for the oracle and for CPUs without a vector path here.
#[derive(Clone, Copy)]
pub struct Scalars<T>([T; 8]);

impl<T: Real> Vector for Scalars<T> {
    const LANES: usize = 8;
    const ROWS: usize = 2;
    type Scalar = T;
    #[inline(always)]
    unsafe fn load(at: *const T) -> Self {
        // SAFETY: the caller's.
        Scalars(unsafe { at.cast::<[T; 8]>().read() })
    }
    #[inline(always)]
    unsafe fn load_half(at: *const bf16) -> Self {
        // SAFETY: the caller's.
        Scalars(unsafe { at.cast::<[bf16; 8]>().read() }.map(|v| T::of(v.to_f64())))
    }
    #[inline(always)]
    unsafe fn load_single(at: *const f32) -> Self {
        // SAFETY: the caller's.
        Scalars(unsafe { at.cast::<[f32; 8]>().read() }.map(|v| T::of(v.into())))
    }
    #[inline(always)]
    unsafe fn bytes(at: *const i8) -> Self {
        // SAFETY: the caller's.
        Scalars(unsafe { at.cast::<[i8; 8]>().read() }.map(|v| T::of(v.into())))
    }
    #[inline(always)]
    unsafe fn nibbles(at: *const u8, high: bool) -> Self {
        // SAFETY: the caller's.
        Scalars(unsafe { at.cast::<[u8; 8]>().read() }.map(|v| T::of((if high { v >> 4 } else { v & 15 }).into())))
    }
    #[inline(always)]
    unsafe fn scaled(self, scale: Self, start: Self) -> Self {
        let single = |v: T| v.f64() as f32;
        Scalars(std::array::from_fn(|i| T::of(single(self.0[i]).mul_add(single(scale.0[i]), single(start.0[i])).into())))
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut T) {
        // SAFETY: the caller's.
        unsafe { at.cast::<[T; 8]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(v: T) -> Self {
        Scalars([v; 8])
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        Scalars(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], self.0[i])))
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! x86_vector {
    ($register:ty, $lanes:literal, $rows:literal, $load:ident, $store:ident, $splat:ident, $fma:ident, $half:ty, $extend:ident, $shift:ident, $bytes:ident, $nibbles:ident) => {
        impl Vector for $register {
            const LANES: usize = $lanes;
            const ROWS: usize = $rows;
            type Scalar = f32;
            #[inline(always)]
            unsafe fn load(at: *const f32) -> Self {
                // SAFETY: the caller's; alike below.
                unsafe { $load(at) }
            }
            #[inline(always)]
            unsafe fn load_half(at: *const half::bf16) -> Self {
                // The upper halves of f32.
                unsafe { std::mem::transmute($shift::<16>($extend(at.cast::<$half>().read_unaligned()))) }
            }
            #[inline(always)]
            unsafe fn load_single(at: *const f32) -> Self {
                unsafe { $load(at) }
            }
            #[inline(always)]
            unsafe fn bytes(at: *const i8) -> Self {
                unsafe { $bytes(at) }
            }
            #[inline(always)]
            unsafe fn nibbles(at: *const u8, high: bool) -> Self {
                unsafe { $nibbles(at, high) }
            }
            #[inline(always)]
            unsafe fn scaled(self, scale: Self, start: Self) -> Self {
                unsafe { $fma(self, scale, start) }
            }
            #[inline(always)]
            unsafe fn store(self, at: *mut f32) {
                unsafe { $store(at, self) }
            }
            #[inline(always)]
            unsafe fn splat(v: f32) -> Self {
                unsafe { $splat(v) }
            }
            #[inline(always)]
            unsafe fn fma(self, a: Self, b: Self) -> Self {
                unsafe { $fma(a, b, self) }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use std::arch::x86_64::*;
    x86_vector!(
        __m512,
        16,
        12,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        __m256i,
        _mm512_cvtepu16_epi32,
        _mm512_slli_epi32,
        bytes_512,
        nibbles_512
    );
    x86_vector!(
        __m256,
        8,
        6,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps,
        __m128i,
        _mm256_cvtepu16_epi32,
        _mm256_slli_epi32,
        bytes_256,
        nibbles_256
    );

    // SAFETY of these: the caller's, who has the registers and may read a byte for each of their elements.
    #[inline(always)]
    unsafe fn bytes_512(at: *const i8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
    }

    /// A permutation looks at four bits: it is the table of their values.
    #[inline(always)]
    unsafe fn nibbles_512(at: *const u8, high: bool) -> __m512 {
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()));
            let bytes = if high { _mm512_srli_epi32::<4>(bytes) } else { bytes };
            let values = _mm512_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0);
            _mm512_permutexvar_ps(bytes, values)
        }
    }

    #[inline(always)]
    unsafe fn bytes_256(at: *const i8) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()))) }
    }

    #[inline(always)]
    unsafe fn nibbles_256(at: *const u8, high: bool) -> __m256 {
        unsafe {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()));
            let bytes = if high { _mm256_srli_epi32::<4>(bytes) } else { bytes };
            _mm256_cvtepi32_ps(_mm256_and_si256(bytes, _mm256_set1_epi32(15)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::ops::attention::{self, KvCache, Positions};
    use crate::ops::rope::{self, Rope, Style};
    use crate::ops::testing::normal;
    use crate::ops::{elementwise, linear};
    use crate::{Device, Result, Tensor};

    /// Other tests may run on narrower registers meanwhile: that these give the same bits is what is tested.
    pub static WIDEST: AtomicUsize = AtomicUsize::new(usize::MAX);

    #[test]
    fn all_registers_give_the_same_bits() -> Result<()> {
        let cpu = Device::Cpu;
        let random =
            |dtype, seed, shape: &[usize]| -> Result<Tensor> { elementwise::convert(&normal(crate::Shape::try_from(shape)?, seed), dtype) };
        let run = || -> Result<Vec<Vec<f32>>> {
            let mut found = Vec::new();
            for (rows, n, k) in [(1, 33, 31), (2, 500, 127), (31, 16, 33)] {
                for stored in [DType::F32, DType::BF16] {
                    let weight = linear::Weight::new(&random(stored, 1, &[n, k])?)?;
                    let y = linear::forward(&random(DType::F32, 2, &[rows, k])?, &weight, linear::Fused::default())?;
                    found.push(y.to_vec()?);
                }
            }
            for (tokens, heads, dim, window) in [(1, 1, 2, 5), (2, 3, 64, 33), (5, 2, 90, 31), (7, 1, 24, 40)] {
                let rope = Rope::new(&cpu, dim, 1e4, Style::Interleaved)?;
                let mut cache = KvCache::new(&cpu, DType::F32, 1, heads, window + tokens - 1, dim)?;
                let mut positions = Positions::new(&cpu, 1)?;
                for step in 0..20 {
                    let qkv = random(DType::F32, 3 + step, &[1, tokens, 3 * heads * dim])?;
                    let q = rope::append(&qkv, &rope, &mut cache, &positions, None)?;
                    found.push(attention::step(&q, &cache, &positions, Some(window), None)?.to_vec()?);
                    positions.advance(tokens, None)?;
                }
            }
            Ok(found)
        };
        let expected = run()?;
        for widest in [8, 0] {
            WIDEST.store(widest, Ordering::Relaxed);
            let found = run();
            WIDEST.store(usize::MAX, Ordering::Relaxed);
            assert!(found? == expected, "registers of up to {widest} elements");
        }
        Ok(())
    }
}
