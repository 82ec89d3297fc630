// Linear layers over many rows, by the tiles of gemm.cuh.
#pragma once

#include "gemm.cuh"
#include "linear.cuh"

// The rows of w [outputs, k] as a Source of gemm.cuh; with `half`, by turns from its first and its second half.
template <typename T>
struct WeightRows {
    const T* data;
    int outputs, k, half;

    __device__ int outer_extent() const { return outputs; }
    __device__ int inner_extent() const { return k; }
    __device__ const T* at(Index outer, Index inner) const {
        if (outer.major != 0 || inner.major != 0) return nullptr;
        const int row = half ? outer.minor / 2 + outer.minor % 2 * half : outer.minor;
        return data + (int64_t)row * k + inner.minor;
    }
};

// An Output of gemm.cuh.
template <typename T>
struct Finished {
    Finish<T> finish;
    int rows;

    __device__ void store(int m, int n, const float (&sum)[4]) const {
        if (m >= rows) return;
        if (finish.activation == SILU_GATE) {
#pragma unroll
            for (int e = 0; e < 2; e++)
                if (n / 2 + e < finish.columns) finish.store(m, n / 2 + e, sum[2 * e], sum[2 * e + 1]);
        } else {
            finish.store_four(m, n, sum, sum);
        }
    }
};

template <typename T, typename TILE, bool TENSOR_CORE>
__device__ __forceinline__ void linear_tile(const Finish<T>& finish, const T* x, const T* w, int rows, int outputs, int k) {
    const Window<T> a{x, nullptr, nullptr, nullptr, 1, rows, k, 0, rows, 1, 0, 0, 1, PROLOGUE_NONE};
    const WeightRows<T> b{w, outputs, k, finish.activation == SILU_GATE ? finish.columns : 0};
    const int across = (outputs + TILE::N - 1) / TILE::N;
    const int m = blockIdx.x / across * TILE::M, n = blockIdx.x % across * TILE::N;
    multiply<T, TILE, true, true, TENSOR_CORE>(a, b, Finished<T>{finish, rows}, m, n, 0, k);
}

#define LINEAR_TILE(NAME, TILE, T, TENSOR_CORE)                                                                                   \
    extern "C" __global__ void __launch_bounds__(TILE::THREADS, TILE::RESIDENT)                                                   \
        NAME(T* y, const T* x, const T* w, const float* bias, const float* scale, const T* residual, int rows, int outputs,        \
             int columns, int k, int activation) {                                                                                \
        linear_tile<T, TILE, TENSOR_CORE>(Finish<T>{y, bias, scale, residual, columns, activation}, x, w, rows, outputs, k);      \
    }
