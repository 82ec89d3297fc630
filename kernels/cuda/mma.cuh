#pragma once
#include "ptx.cuh"
#include "types.cuh"

// Tensor-core fragments of one warp: A is 16 x K, B is K x 8, C is 16 x 8 in f32. Lane l holds, with g = l / 4 and
// t = l % 4, rows g and g + 8 and columns 2t and 2t + 1 of C.

template <class T>
struct TensorCore {
    static constexpr bool available = false;
};
template <>
struct TensorCore<bf16> {
    static constexpr bool available = SWARA_ARCH >= 80;
};
template <>
struct TensorCore<f16> {
    static constexpr bool available = true;
};

/// Two neighbours of a fragment, the lower column in `low`.
__device__ __forceinline__ unsigned pack2(float low, float high, f16) { return pack_f16x2(low, high); }
__device__ __forceinline__ unsigned pack2(float low, float high, bf16) {
#if SWARA_ARCH >= 80
    return pack_bf16x2(low, high);
#else
    return float_to_bf16(low) | (unsigned)float_to_bf16(high) << 16;
#endif
}

/// d += a b. `K` of the fragments is 32 bytes: 16, or 8 of f32.
__device__ __forceinline__ void multiply_accumulate(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], bf16) {
#if SWARA_ARCH >= 80
    mma_m16n8k16_bf16(d, a, b);
#endif
}
__device__ __forceinline__ void multiply_accumulate(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], f16) {
#if SWARA_ARCH >= 80
    mma_m16n8k16_f16(d, a, b);
#else
    // Turing multiplies half of the depth at a time; the halves of the fragments are the same registers.
    const unsigned a0[2] = {a[0], a[1]}, a1[2] = {a[2], a[3]}, b0[1] = {b[0]}, b1[1] = {b[1]};
    mma_m16n8k8_f16(d, a0, b0);
    mma_m16n8k8_f16(d, a1, b1);
#endif
}

#if SWARA_ARCH >= 80
// A number as what tf32 keeps of it and what tf32 keeps of the rest: 22 bits at least.
template <int N>
__device__ __forceinline__ void split_tf32(unsigned (&high)[N], unsigned (&low)[N], const unsigned (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        high[i] = float_to_tf32(__uint_as_float(x[i]));
        low[i] = __float_as_uint(__uint_as_float(x[i]) - __uint_as_float(high[i]));
    }
}
/// Three products, without that of the two rests. Tensor cores cut off what does not fit a sum: hence sums of few, added outside.
__device__ __forceinline__ void multiply_accumulate(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], float) {
    unsigned a_high[4], a_low[4], b_high[2], b_low[2];
    split_tf32(a_high, a_low, a);
    split_tf32(b_high, b_low, b);
    float sum[4] = {};
    mma_m16n8k8_tf32(sum, a_low, b_high);
    mma_m16n8k8_tf32(sum, a_high, b_low);
    mma_m16n8k8_tf32(sum, a_high, b_high);
#pragma unroll
    for (int i = 0; i < 4; i++) d[i] += sum[i];
}
#endif

/// The A fragment whose first element is row `m`, column `k`. In shared memory a row is M (K contiguous), or K if TRANSPOSED.
template <bool TRANSPOSED, int PITCH, class T>
__device__ __forceinline__ void load_a(unsigned (&a)[4], const T* tile, int m, int k) {
    static_assert(!TRANSPOSED || sizeof(T) == 2, "matrices of 16-bit numbers are transposed");
    const int lane = threadIdx.x % 32;
    if (TRANSPOSED) {
        ldmatrix_x4_trans(a, tile + (k + lane / 16 * 8 + lane % 8) * PITCH + m + lane / 8 % 2 * 8);
    } else {
        ldmatrix_x4(a, tile + (m + lane % 16) * PITCH + k + lane / 16 * (16 / sizeof(T)));
    }
}

/// The B fragments of columns n..n+8 (b[0]) and n+8..n+16 (b[1]). In shared memory a row is K (N contiguous), or N if TRANSPOSED.
template <bool TRANSPOSED, int PITCH, class T>
__device__ __forceinline__ void load_b(unsigned (&b)[2][2], const T* tile, int k, int n) {
    static_assert(TRANSPOSED || sizeof(T) == 2, "matrices of 16-bit numbers are transposed");
    const int lane = threadIdx.x % 32;
    unsigned r[4];
    if (TRANSPOSED) {
        ldmatrix_x4(r, tile + (n + lane / 16 * 8 + lane % 8) * PITCH + k + lane / 8 % 2 * (16 / sizeof(T)));
    } else {
        ldmatrix_x4_trans(r, tile + (k + lane % 16) * PITCH + n + lane / 16 * 8);
    }
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}
