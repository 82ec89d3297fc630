// Sums over a block and over the rows of a matrix. The order of every sum depends on the launch shape alone.
//
//   block_sum(v)              the sum over a one-dimensional block of whole warps, given to every thread
//   column_sum(v, shared)     the sum over threadIdx.y, given to the threads with threadIdx.y = 0
//   Columns<N>                a block's share of a [rows, channels] matrix: threadIdx.x is a run of N channels, threadIdx.y a row
#pragma once

#include "types.cuh"

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(0xffffffffu, v, distance);
    return v;
}

__device__ __forceinline__ float block_sum(float v) {
    __shared__ float warps[32];
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    v = warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? warps[threadIdx.x % 32] : 0.0f);
    __syncthreads();  // before the next call writes
    return v;
}

// `shared` has room for N floats a thread. All threads of the block take part.
template <int N>
__device__ __forceinline__ void column_sum(float (&v)[N], float* shared) {
    const int width = blockDim.x * N, height = blockDim.y;
    float* const mine = shared + threadIdx.y * width + threadIdx.x;
#pragma unroll
    for (int i = 0; i < N; i++) mine[i * blockDim.x] = v[i];
    __syncthreads();
    for (int count = height; count > 1;) {
        const int half = (count + 1) / 2;
        if (threadIdx.y + half < count) {
#pragma unroll
            for (int i = 0; i < N; i++) mine[i * blockDim.x] += mine[half * width + i * blockDim.x];
        }
        __syncthreads();
        count = half;
    }
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = mine[i * blockDim.x];
    __syncthreads();  // before the next call writes
}

// blockIdx.x is a run of `rows_per_block` rows, blockIdx.y a run of blockDim.x * N channels.
template <int N>
struct Columns {
    int channel;
    uint64_t first, end;
    bool active;

    __device__ __forceinline__ Columns(uint64_t rows, int channels, int rows_per_block) {
        channel = (blockIdx.y * blockDim.x + threadIdx.x) * N;
        active = channel < channels;
        const uint64_t start = (uint64_t)blockIdx.x * rows_per_block;
        first = start + threadIdx.y;
        end = !active ? 0 : start + rows_per_block < rows ? start + rows_per_block : rows;
    }
};
