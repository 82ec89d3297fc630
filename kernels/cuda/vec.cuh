// Vectors of float, bf16, f16 or codes of 8 bits that are floats in registers, and the walk of a kernel whose elements are alone.
//
//   LANES<T>                          elements in 16 bytes
//   load_vector<T, N>(dst, src)       N = 1: a scalar; otherwise N elements of 16 or 8 bytes in one load, src aligned to as much
//   load_vector_once<T, N>(dst, src)  past the L1 cache
//   store_vector<T, N>(dst, src)
//   for_elements<T>(n, f)             f.at<N>(i) for the elements i .. i + N of each thread
//   map(y, x, n, f)                   y[i] = f(x[i]), in float; y may be x
//   zip(y, a, b, n, f)                y[i] = f(a[i], b[i]); y may be a or b
#pragma once

#include "types.cuh"

template <typename T>
constexpr int LANES = 16 / sizeof(T);

// The N elements of T that `words` holds.
template <typename T, int N>
__device__ __forceinline__ void unpack(float (&dst)[N], const unsigned (&words)[4]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        if constexpr (sizeof(T) == 4)
            dst[i] = __uint_as_float(words[i]);
        else if constexpr (sizeof(T) == 2)
            dst[i] = to_float(T{(uint16_t)(words[i / 2] >> (16 * (i % 2)))});
        else
            dst[i] = to_float((T)(words[i / 4] >> (8 * (i % 4))));
    }
}

template <typename T, int N>
__device__ __forceinline__ void load_vector(float (&dst)[N], const T* src) {
    static_assert(N == 1 || N * sizeof(T) == 16 || N * sizeof(T) == 8, "a vector or a scalar");
    if constexpr (N == 1) {
        dst[0] = to_float(src[0]);
    } else {
        unsigned words[4];
        if constexpr (N * sizeof(T) == 16) {
            const uint4 raw = *reinterpret_cast<const uint4*>(src);
            words[0] = raw.x, words[1] = raw.y, words[2] = raw.z, words[3] = raw.w;
        } else {
            const uint2 raw = *reinterpret_cast<const uint2*>(src);
            words[0] = raw.x, words[1] = raw.y;
        }
        unpack<T>(dst, words);
    }
}

// As load_vector, of what no other block of the multiprocessor will want.
template <typename T, int N>
__device__ __forceinline__ void load_vector_once(float (&dst)[N], const T* src) {
    static_assert(N == 1 || N * sizeof(T) == 16, "a vector or a scalar");
    if constexpr (N == 1) {
        dst[0] = to_float(src[0]);
    } else {
        const uint4 raw = load_once16(src);
        const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
        unpack<T>(dst, words);
    }
}

template <typename T, int N>
__device__ __forceinline__ void store_vector(T* dst, const float (&src)[N]) {
    static_assert(N == 1 || N * sizeof(T) == 16 || N * sizeof(T) == 8, "a vector or a scalar");
    if constexpr (N == 1) {
        dst[0] = from_float<T>(src[0]);
    } else {
        unsigned words[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < N; i++) {
            if constexpr (sizeof(T) == 4)
                words[i] = __float_as_uint(src[i]);
            else
                words[i / 2] |= (unsigned)from_float<T>(src[i]).bits << (16 * (i % 2));
        }
        if constexpr (N * sizeof(T) == 16)
            *reinterpret_cast<uint4*>(dst) = make_uint4(words[0], words[1], words[2], words[3]);
        else
            *reinterpret_cast<uint2*>(dst) = make_uint2(words[0], words[1]);
    }
}

// One vector a thread; the last thread does what is left one by one. `T` is the narrowest type that is touched, so that the
// vectors of wider ones are aligned too.
template <typename T, typename F>
__device__ __forceinline__ void for_elements(uint64_t n, F f) {
    const uint64_t first = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * LANES<T>;
    if (first + LANES<T> <= n)
        f.template at<LANES<T>>(first);
    else
        for (uint64_t i = first; i < n; i++) f.template at<1>(i);
}

template <typename T, typename F>
struct Map {
    T* y;
    const T* x;
    F f;

    template <int N>
    __device__ __forceinline__ void at(uint64_t i) const {
        float v[N];
        load_vector(v, x + i);
#pragma unroll
        for (int j = 0; j < N; j++) v[j] = f(v[j]);
        store_vector(y + i, v);
    }
};

template <typename T, typename F>
__device__ __forceinline__ void map(T* y, const T* x, uint64_t n, F f) {
    for_elements<T>(n, Map<T, F>{y, x, f});
}

template <typename T, typename F>
struct Zip {
    T* y;
    const T *a, *b;
    F f;

    template <int N>
    __device__ __forceinline__ void at(uint64_t i) const {
        float u[N], v[N];
        load_vector(u, a + i);
        load_vector(v, b + i);
#pragma unroll
        for (int j = 0; j < N; j++) u[j] = f(u[j], v[j]);
        store_vector(y + i, u);
    }
};

template <typename T, typename F>
__device__ __forceinline__ void zip(T* y, const T* a, const T* b, uint64_t n, F f) {
    for_elements<T>(n, Zip<T, F>{y, a, b, f});
}
