// Small integers as floats, by a byte permutation below the exponent of 2^23 and one subtraction.
#pragma once

#include "types.cuh"

// The bytes of `word`, less `offset`.
__device__ __forceinline__ void bytes_to_floats(float (&v)[4], unsigned word, float offset) {
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u | i)) - (8388608.0f + offset);
}

// N codes, those of the i-th piece.
template <int BITS, int N>
__device__ __forceinline__ void decode(float (&v)[N], const unsigned (&words)[4], int i) {
    if constexpr (BITS == 8) {
#pragma unroll
        for (int w = 0; w < N / 4; w++) {
            float four[4];
            bytes_to_floats(four, words[i * (N / 4) + w] ^ 0x80808080u, 128.0f);
#pragma unroll
            for (int e = 0; e < 4; e++) v[4 * w + e] = four[e];
        }
    } else {
        const unsigned word = words[i * N / 8] >> (i * N % 8 * 4);
        float even[4], odd[4];
        bytes_to_floats(even, word & 0x0f0f0f0fu, 0.0f);
        bytes_to_floats(odd, word >> 4 & 0x0f0f0f0fu, 0.0f);
#pragma unroll
        for (int e = 0; e < N; e++) v[e] = e % 2 ? odd[e / 2] : even[e / 2];
    }
}
