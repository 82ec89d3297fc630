// Sums of all elements, of their squares, and of rows.
//
// Tensors    x [n] or [rows, channels] in T; partial and results f32.
// Mapping    sum: a block = a run of `per_block` elements, a thread = 16 bytes at a time; partial [blocks].
//            sum_rows: threadIdx.x = channels, threadIdx.y and the loop = rows (block.cuh); partial [row blocks, channels].
//            A second launch adds the partial sums.
// Bytes      x read once; partial is negligible (at most 1024 blocks).
// Order      threads over their elements, shuffles, warps, blocks: fixed by the shape.
// Measured   on the emulator only, for correctness; no GPU figure exists yet.
//
// kernels: sum_f32 sum_bf16 sum_f16 sum_rows_f32 sum_rows_bf16 sum_rows_f16
#include "vec.cuh"
#include "block.cuh"

// `per_block` is a multiple of a vector.
template <typename T>
__device__ __forceinline__ void sum(float* partial, const T* x, uint64_t n, uint64_t per_block, int squares) {
    constexpr int N = LANES<T>;
    const uint64_t start = blockIdx.x * per_block, end = start + per_block < n ? start + per_block : n;
    const uint64_t step = (uint64_t)blockDim.x * N;
    float total = 0.0f;
    uint64_t i = start + threadIdx.x * N;
    for (; i + N <= end; i += step) {
        float v[N];
        load_vector(v, x + i);
#pragma unroll
        for (int j = 0; j < N; j++) total += squares ? v[j] * v[j] : v[j];
    }
    for (; i < end; i++) {  // the one thread that holds the ragged end
        const float v = to_float(x[i]);
        total += squares ? v * v : v;
    }
    total = block_sum(total);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// One block: y = factor * sum of partial.
extern "C" __global__ void finish_sum(float* y, const float* partial, int count, float factor) {
    float total = 0.0f;
    for (int i = threadIdx.x; i < count; i += blockDim.x) total += partial[i];
    total = block_sum(total);
    if (threadIdx.x == 0) *y = total * factor;
}

template <typename T, int N>
__device__ __forceinline__ void sum_rows(float* partial, const T* x, uint64_t rows, int channels, int rows_per_block) {
    DYNAMIC_SHARED(float, shared);
    const Columns<N> at(rows, channels, rows_per_block);
    float total[N] = {};
    for (uint64_t row = at.first; row < at.end; row += blockDim.y) {
        float v[N];
        load_vector(v, x + row * channels + at.channel);
#pragma unroll
        for (int i = 0; i < N; i++) total[i] += v[i];
    }
    column_sum<N>(shared, total);
    at.store(partial + (uint64_t)blockIdx.x * channels, shared);
}

#define REDUCE(T, NAME)                                                                                                         \
    extern "C" __global__ void sum_##NAME(float* partial, const T* x, uint64_t n, uint64_t per_block, int squares) {             \
        sum(partial, x, n, per_block, squares);                                                                                 \
    }                                                                                                                           \
    extern "C" __global__ void sum_rows_##NAME(float* partial, const T* x, uint64_t rows, int channels, int rows_per_block,      \
                                               int vector) {                                                                    \
        if (vector)                                                                                                             \
            sum_rows<T, LANES<T>>(partial, x, rows, channels, rows_per_block);                                                  \
        else                                                                                                                    \
            sum_rows<T, 1>(partial, x, rows, channels, rows_per_block);                                                         \
    }
REDUCE(float, f32)
REDUCE(bf16, bf16)
REDUCE(f16, f16)
