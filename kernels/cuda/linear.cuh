// What a linear layer does with its sums: y = residual + scale activation(sum + bias).
#pragma once

#include "activation.cuh"
#include "vec.cuh"

enum Kind { NONE, GELU, SILU, SILU_GATE };  // as in cuda.rs

template <typename T>
struct Finish {
    T* y;
    const float *bias, *scale;
    const T* residual;
    int columns, activation;

    // With a gate, `gated` is what it multiplies.
    __device__ __forceinline__ float activate(float sum, float gated) const {
        if (activation == GELU) return sum * normal_cdf(sum);
        if (activation == SILU) return sum * sigmoid(sum);
        return activation == SILU_GATE ? sum * sigmoid(sum) * gated : sum;
    }

    // `gated` is the sum `columns` further, with a gate.
    __device__ __forceinline__ void store(int row, int n, float sum, float gated) const {
        const uint64_t at = (uint64_t)row * columns + n;
        if (bias) sum += bias[n];
        if (bias && activation == SILU_GATE) gated += bias[columns + n];
        sum = activate(sum, gated);
        if (scale) sum *= scale[n];
        if (residual) sum += to_float(residual[at]);
        y[at] = from_float<T>(sum);
    }

    // Those of columns n .. n + 4 that there are; 4 divides n.
    __device__ __forceinline__ void store_four(int row, int n, const float (&sum)[4], const float (&gated)[4]) const {
        if (columns % 4 == 0) {
            if (n >= columns) return;
            const uint64_t at = (uint64_t)row * columns + n;
            float v[4], b[4] = {}, g[4] = {}, s[4] = {1.0f, 1.0f, 1.0f, 1.0f}, r[4] = {};
            if (bias) load_vector(b, bias + n);
            if (bias && activation == SILU_GATE) load_vector(g, bias + columns + n);
            if (scale) load_vector(s, scale + n);
            if (residual) load_vector(r, residual + at);
#pragma unroll
            for (int e = 0; e < 4; e++) v[e] = activate(sum[e] + b[e], gated[e] + g[e]) * s[e] + r[e];
            store_vector(y + at, v);
        } else {
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (n + e < columns) store(row, n + e, sum[e], gated[e]);
        }
    }
};
