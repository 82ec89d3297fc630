// Sums, maxima and selections over a block, and sums over the rows of a matrix. The order of every sum depends on the launch shape
// alone.
//
//   block_sum(v)              the sum over a one-dimensional block of whole warps, given to every thread
//   block_max(v, least)       the largest, likewise; `least` is no larger than any
//   row_sum(v)                the sum over threadIdx.x, a row of whole warps, given to every thread of it
//   column_sum(shared, v)     the sums over threadIdx.y, left in shared memory
//   for_selected<THREADS>     the numbers below n that are selected, in ascending order, each given to every thread
//   Columns<N>                a block's share of a [rows, channels] matrix: threadIdx.x is a run of N channels, threadIdx.y a row;
//                             .load and .store move one float a channel
#pragma once

#include "types.cuh"

template <typename T, typename F>
__device__ __forceinline__ T warp_reduce(T v, F merge) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) v = merge(v, __shfl_xor_sync(0xffffffffu, v, distance));
    return v;
}

template <typename T, typename F>
__device__ __forceinline__ T block_reduce(T v, T nothing, F merge) {
    __shared__ T warps[32];
    v = warp_reduce(v, merge);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    v = warp_reduce(threadIdx.x % 32 < blockDim.x / 32 ? warps[threadIdx.x % 32] : nothing, merge);
    __syncthreads();  // before the next call writes
    return v;
}

template <typename T>
__device__ __forceinline__ T larger(T a, T b) {
    return a < b ? b : a;
}

__device__ __forceinline__ float warp_sum(float v) {
    return warp_reduce(v, [](float a, float b) { return a += b; });
}

template <typename T>
__device__ __forceinline__ T block_sum(T v) {
    return block_reduce(v, T(0), [](T a, T b) { return a += b; });
}

template <typename T>
__device__ __forceinline__ T block_max(T v, T least) {
    return block_reduce(v, least, [](T a, T b) { return larger(a, b); });
}

__device__ __forceinline__ float row_sum(float v) {
    v = warp_sum(v);
    if (blockDim.x == 32) return v;
    __shared__ float warps[32];
    const int count = blockDim.x / 32, lane = threadIdx.x % 32;
    float* const row = warps + threadIdx.y * count;
    if (lane == 0) row[threadIdx.x / 32] = v;
    __syncthreads();
    v = warp_sum(lane < count ? row[lane] : 0.0f);
    __syncthreads();  // before the next sum
    return v;
}

// Calls f(i) in every thread of a block of THREADS, for each i below n that selected(i) is true of, and returns how many there are.
// The block looks at THREADS numbers at a time and lists those it wants.
template <int THREADS, typename P, typename F>
__device__ __forceinline__ int for_selected(int n, P selected, F f) {
    __shared__ int listed[THREADS];
    __shared__ int found_by_warp[THREADS / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int count = 0;
    for (int first = 0; first < n; first += THREADS) {
        const int i = first + threadIdx.x;
        const bool mine = i < n && selected(i);
        const unsigned votes = __ballot_sync(0xffffffffu, mine);
        if (lane == 0) found_by_warp[warp] = __popc(votes);
        __syncthreads();
        int before = 0, found = 0;
        for (int w = 0; w < THREADS / 32; w++) {
            if (w < warp) before += found_by_warp[w];
            found += found_by_warp[w];
        }
        if (mine) listed[before + __popc(votes & ((1u << lane) - 1))] = i;
        __syncthreads();
        for (int m = 0; m < found; m++) f(listed[m]);
        count += found;
    }
    return count;
}

// Shared memory that holds N floats of every thread, or of every threadIdx.x its N channels: float i of all threads side by
// side, and those of the next i so much further that neighbouring channels are in different banks, too.
template <int N>
__device__ __forceinline__ int column_pitch() {
    return (blockDim.x * blockDim.y + 31) / 32 * 32 + 32 / N;
}

// Where the block's channel `c` is.
template <int N>
__device__ __forceinline__ int column_at(int c) {
    return c % N * column_pitch<N>() + c / N;
}

// Leaves the sum over threadIdx.y of channel c at shared[column_at<N>(c)]. All threads of the block take part; `shared` has
// room for N times column_pitch<N>() floats, and wants a barrier before its next use.
template <int N>
__device__ __forceinline__ void column_sum(float* shared, const float (&v)[N]) {
    const int pitch = column_pitch<N>();
    float* const mine = shared + threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
    for (int i = 0; i < N; i++) mine[i * pitch] = v[i];
    __syncthreads();
    for (int count = blockDim.y; count > 1;) {
        const int half = (count + 1) / 2;
        if (threadIdx.y + half < count) {
#pragma unroll
            for (int i = 0; i < N; i++) mine[i * pitch] += mine[half * blockDim.x + i * pitch];
        }
        __syncthreads();
        count = half;
    }
}

// dst[i] = src[threadIdx.x * N + i], 0 from `count` on, a multiple of N. The block reads side by side; all its threads take part.
template <int N>
__device__ __forceinline__ void load_columns(float (&dst)[N], const float* src, int count, float* shared) {
    for (int c = threadIdx.y * blockDim.x + threadIdx.x; c < count; c += blockDim.x * blockDim.y) shared[column_at<N>(c)] = src[c];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) dst[i] = (int)threadIdx.x * N < count ? shared[i * column_pitch<N>() + threadIdx.x] : 0.0f;
    __syncthreads();  // before the next load
}

// Writes what `column_sum` left to dst[0 .. count], side by side.
template <int N>
__device__ __forceinline__ void store_columns(float* dst, const float* shared, int count) {
    for (int c = threadIdx.y * blockDim.x + threadIdx.x; c < count; c += blockDim.x * blockDim.y) dst[c] = shared[column_at<N>(c)];
}

// blockIdx.x is a run of `rows_per_block` rows, blockIdx.y a run of blockDim.x * N channels.
template <int N>
struct Columns {
    int channel, block_channel, block_channels;  // the thread's first; the block's first, and how many it has
    uint64_t first, end;
    bool active;

    __device__ __forceinline__ Columns(uint64_t rows, int channels, int rows_per_block) {
        block_channel = blockIdx.y * blockDim.x * N;
        block_channels = min(channels - block_channel, (int)blockDim.x * N);
        channel = block_channel + threadIdx.x * N;
        active = channel < channels;
        const uint64_t start = (uint64_t)blockIdx.x * rows_per_block;
        first = start + threadIdx.y;
        end = !active ? 0 : start + rows_per_block < rows ? start + rows_per_block : rows;
    }

    // The thread's part of `src [channels]`.
    __device__ __forceinline__ void load(float (&dst)[N], const float* src, float* shared) const {
        load_columns<N>(dst, src + block_channel, block_channels, shared);
    }

    // Writes what `column_sum` left to `dst [channels]`.
    __device__ __forceinline__ void store(float* dst, const float* shared) const {
        store_columns<N>(dst + block_channel, shared, block_channels);
    }
};
