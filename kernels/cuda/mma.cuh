#pragma once
#include "ptx.cuh"
#include "types.cuh"

// 16-bit tensor-core fragments of one warp: A is 16 x 16, B is 16 x 8, C is 16 x 8 in f32. Lane l holds, with g = l / 4 and
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

/// d += a b.
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

/// The A fragment whose first element is row `m`, column `k`. In shared memory a row is M (K contiguous), or K if TRANSPOSED.
template <bool TRANSPOSED, int PITCH, class T>
__device__ __forceinline__ void load_a(unsigned (&a)[4], const T* tile, int m, int k) {
    const int lane = threadIdx.x % 32;
    if (TRANSPOSED) {
        ldmatrix_x4_trans(a, tile + (k + lane / 16 * 8 + lane % 8) * PITCH + m + lane / 8 % 2 * 8);
    } else {
        ldmatrix_x4(a, tile + (m + lane % 16) * PITCH + k + lane / 16 * 8);
    }
}

/// The B fragments of columns n..n+8 (b[0]) and n+8..n+16 (b[1]). In shared memory a row is K (N contiguous), or N if TRANSPOSED.
template <bool TRANSPOSED, int PITCH, class T>
__device__ __forceinline__ void load_b(unsigned (&b)[2][2], const T* tile, int k, int n) {
    const int lane = threadIdx.x % 32;
    unsigned r[4];
    if (TRANSPOSED) {
        ldmatrix_x4(r, tile + (n + lane / 16 * 8 + lane % 8) * PITCH + k + lane / 8 % 2 * 8);
    } else {
        ldmatrix_x4_trans(r, tile + (k + lane % 16) * PITCH + n + lane / 16 * 8);
    }
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}
