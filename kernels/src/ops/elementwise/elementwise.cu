// Sums, products, scaling, transposition and conversion; the formulas are in mod.rs.
//
// Tensors    n elements of T; add_row [rows, channels] and bias [channels]; transpose [batch, m, n].
// Mapping    elementwise: a thread = 16 bytes. add_row: threadIdx.x = channels, threadIdx.y and the loop = rows (block.cuh).
//            transpose: a block = a tile of 32 x 32 through shared memory, one word wider against bank conflicts.
// Bytes      every operand read once, every result written once.
// Measured   on the emulator only, for correctness; no GPU figure exists yet.
//
// kernels: binary_f32 binary_bf16 binary_f16 scale_f32 scale_bf16 scale_f16
// kernels: add_row_f32 add_row_bf16 add_row_f16 transpose_f32 transpose_bf16 transpose_f16
// kernels: convert_f32_bf16 convert_f32_f16 convert_bf16_f32 convert_bf16_f16 convert_f16_f32 convert_f16_bf16
#include "vec.cuh"
#include "block.cuh"

enum Kind { ADD, SUB, MUL };  // as in cuda.rs

__device__ __forceinline__ float combine(int kind, float a, float b) { return kind == ADD ? a + b : kind == SUB ? a - b : a * b; }

template <typename T, int N>
__device__ __forceinline__ void add_row(T* y, const T* x, const T* bias, uint64_t rows, int channels, int rows_per_block) {
    const Columns<N> at(rows, channels, rows_per_block);
    if (!at.active) return;
    float b[N];
    load_vector(b, bias + at.channel);
    for (uint64_t row = at.first; row < at.end; row += blockDim.y) {
        float v[N];
        load_vector(v, x + row * channels + at.channel);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] += b[i];
        store_vector(y + row * channels + at.channel, v);
    }
}

// 32 x 8 threads; blockIdx.x counts tiles of the last axis, then of the one before, then batches.
template <typename T>
__device__ __forceinline__ void transpose(T* y, const T* x, int m, int n) {
    __shared__ T tile[32][32 + 4 / sizeof(T)];
    const unsigned across = (n + 31) / 32, down = (m + 31) / 32;
    const unsigned column = blockIdx.x % across * 32, row = blockIdx.x / across % down * 32;
    const uint64_t batch = (uint64_t)(blockIdx.x / across / down) * m * n;
    for (int j = threadIdx.y; j < 32; j += 8)
        if (row + j < m && column + threadIdx.x < n) tile[j][threadIdx.x] = x[batch + (uint64_t)(row + j) * n + column + threadIdx.x];
    __syncthreads();
    for (int j = threadIdx.y; j < 32; j += 8)
        if (column + j < n && row + threadIdx.x < m) y[batch + (uint64_t)(column + j) * m + row + threadIdx.x] = tile[threadIdx.x][j];
}

// Vectors are 16 bytes of the wider type, so 16 or 8 of the other one: neighbouring threads always touch neighbouring bytes.
template <typename To, typename From>
__device__ __forceinline__ void convert(To* y, const From* x, uint64_t n) {
    constexpr int N = LANES<To> < LANES<From> ? LANES<To> : LANES<From>;
    const uint64_t first = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (first + N > n) {
        for (uint64_t i = first; i < n; i++) y[i] = from_float<To>(to_float(x[i]));
        return;
    }
    float v[N];
    load_vector(v, x + first);
    store_vector(y + first, v);
}

#define ELEMENTWISE(T, NAME)                                                                                            \
    extern "C" __global__ void binary_##NAME(T* y, const T* a, const T* b, uint64_t n, int kind) {                       \
        zip(y, a, b, n, [=](float a, float b) { return combine(kind, a, b); });                                         \
    }                                                                                                                   \
    extern "C" __global__ void scale_##NAME(T* y, const T* x, uint64_t n, float factor) {                               \
        map(y, x, n, [=](float x) { return x * factor; });                                                              \
    }                                                                                                                   \
    extern "C" __global__ void add_row_##NAME(T* y, const T* x, const T* bias, uint64_t rows, int channels,               \
                                              int rows_per_block, int vector) {                                         \
        if (vector)                                                                                                     \
            add_row<T, LANES<T>>(y, x, bias, rows, channels, rows_per_block);                                           \
        else                                                                                                            \
            add_row<T, 1>(y, x, bias, rows, channels, rows_per_block);                                                  \
    }                                                                                                                   \
    extern "C" __global__ void transpose_##NAME(T* y, const T* x, int m, int n) { transpose(y, x, m, n); }
ELEMENTWISE(float, f32)
ELEMENTWISE(bf16, bf16)
ELEMENTWISE(f16, f16)

#define CONVERT(TO, FROM, NAME) \
    extern "C" __global__ void convert_##NAME(TO* y, const FROM* x, uint64_t n) { convert(y, x, n); }
CONVERT(bf16, float, f32_bf16)
CONVERT(f16, float, f32_f16)
CONVERT(float, bf16, bf16_f32)
CONVERT(f16, bf16, bf16_f16)
CONVERT(float, f16, f16_f32)
CONVERT(bf16, f16, f16_bf16)
