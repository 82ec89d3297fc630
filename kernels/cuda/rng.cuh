// Random numbers by counter, and what sampling makes of them. cpu/random.rs computes the same, bit for bit: every operation here is
// one that rounds the same everywhere.
//
//   philox(counter, key)   128 bits that look random: Philox4x32-10 of Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy
//                          as 1, 2, 3 (SC 2011)
//   log_exact(x)           of a positive normal number, to 2 units in the last place
//   gumbel(bits)           -log(-log(u)) for a u in (0, 1) made of 32 random bits: argmax(log p_i + gumbel_i) is i with probability p_i
#pragma once

#include "types.cuh"

__device__ __forceinline__ uint4 philox(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned low = 0xd2511f53u * counter.x, high = __umulhi(0xd2511f53u, counter.x);
        const unsigned low2 = 0xcd9e8d57u * counter.z, high2 = __umulhi(0xcd9e8d57u, counter.z);
        counter = make_uint4(high2 ^ counter.y ^ key.x, low2, high ^ counter.w ^ key.y, low);
        key = make_uint2(key.x + 0x9e3779b9u, key.y + 0xbb67ae85u);
    }
    return counter;
}

// x = 2^e (1 + f) with 1 + f in [2/3, 4/3); log(1 + f) = f - f^2 / 2 + f^3 q(f), q minimax (relative 5e-9).
__device__ __forceinline__ float log_exact(float x) {
    const unsigned exponent = (__float_as_uint(x) - 0x3f2aaaabu) & 0xff800000u;
    const float f = __fsub_rn(__uint_as_float(__float_as_uint(x) - exponent), 1.0f);
    float q = __fmaf_rn(f, -0.12891687f, 0.13984466f);
    q = __fmaf_rn(q, f, -0.1218426f);
    q = __fmaf_rn(q, f, 0.14005862f);
    q = __fmaf_rn(q, f, -0.16680488f);
    q = __fmaf_rn(q, f, 0.20010406f);
    q = __fmaf_rn(q, f, -0.24999797f);
    q = __fmaf_rn(q, f, 0.33333215f);
    q = __fmaf_rn(q, f, -0.5f);
    return __fmaf_rn((float)(int)exponent, 0x1.62e43p-24f, __fmaf_rn(__fmul_rn(f, f), q, f));  // e, times log 2
}

// 1 - u = (bits + 1/2) / 2^32, so that u near 1, where the largest results come from, is as fine as small numbers are; u is at least
// 2^-24. With y = u as it rounds, log u = log y + (u - y) / y; the difference is exact.
__device__ __forceinline__ float gumbel(unsigned bits) {
    const float v = fminf(__fmaf_rn((float)bits, 0x1p-32f, 0x1p-33f), 1.0f - 0x1p-24f);
    const float y = __fsub_rn(1.0f, v);
    const float exponential = __fsub_rn(__fdiv_rn(__fsub_rn(v, __fsub_rn(1.0f, y)), y), log_exact(y));
    return -log_exact(exponential);
}
