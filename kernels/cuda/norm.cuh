// Normalisation of the rows of x [rows, channels], and its gradients: what layer_norm.cu and rms_norm.cu share.
//
//   CENTRED   xhat = (x - mean x) / sqrt(mean (x - mean x)^2 + epsilon)        otherwise   xhat = x / sqrt(mean x^2 + epsilon)
//   y = weight xhat + bias
//   g = weight dy      dx = (g - mean g - xhat mean (g xhat)) / sqrt(..), without mean g unless CENTRED
//   dweight = sum over rows of dy xhat      dbias = sum over rows of dy
//
// Mapping    threadIdx.x = a row's vectors, in whole warps; threadIdx.y and a loop = rows; blockIdx.x = runs of `rows_per_block` rows.
//            Vector j of a thread is number j blockDim.x + threadIdx.x, so that a warp reads side by side. A thread has up to
//            VALUES elements in registers; a longer row is read again, a span at a time (forward only).
// Order      a thread over its elements, shuffles, warps: decided by the number of channels alone.
#pragma once

#include "block.cuh"
#include "vec.cuh"

// Lone elements cost an address each.
template <int N>
constexpr int VALUES = N == 1 ? 8 : 16;

// A thread's vectors of the span of channels at `base`.
template <int N>
struct Span {
    static constexpr int VECTORS = VALUES<N> / N;
    int base, channels;

    __device__ __forceinline__ int first(int j) const { return base + j * (int)blockDim.x * N; }  // of the block
    __device__ __forceinline__ int channel(int j) const { return first(j) + threadIdx.x * N; }
    __device__ __forceinline__ bool inside(int j) const { return channel(j) < channels; }
    // How many channels of vector j the block has.
    __device__ __forceinline__ int count(int j) const { return max(min(channels - first(j), (int)blockDim.x * N), 0); }

    // dst = row, zero outside it.
    template <typename T>
    __device__ __forceinline__ void load(float (&dst)[VECTORS][N], const T* row, bool active) const {
#pragma unroll
        for (int j = 0; j < VECTORS; j++) {
            if (active && inside(j)) {
                load_vector(dst[j], row + channel(j));
            } else {
#pragma unroll
                for (int i = 0; i < N; i++) dst[j][i] = 0.0f;
            }
        }
    }

    // dst = parameters [channels]; zeros if there are none. All threads of the block take part.
    __device__ __forceinline__ void load_parameters(float (&dst)[VECTORS][N], const float* parameters, float* shared) const {
        if constexpr (N * sizeof(float) > 16) {
#pragma unroll
            for (int j = 0; j < VECTORS; j++) load_columns<N>(dst[j], parameters + first(j), parameters ? count(j) : 0, shared);
        } else {
            load(dst, parameters, parameters != nullptr);
        }
    }

    template <typename F>
    __device__ __forceinline__ float sum(F f) const {
        float total = 0.0f;
#pragma unroll
        for (int j = 0; j < VECTORS; j++)
#pragma unroll
            for (int i = 0; i < N; i++) total += inside(j) ? f(j, i) : 0.0f;
        return total;
    }
};

// `sum` and `residual` are both there, and the row is x + residual as `sum` stores it; or neither.
template <typename T, bool CENTRED, int N>
__device__ __forceinline__ void normalise(T* y, T* sum, const T* x, const T* residual, const float* weight, const float* bias,
                                          float epsilon, uint64_t rows, int channels, int rows_per_block) {
    constexpr int VECTORS = Span<N>::VECTORS;
    DYNAMIC_SHARED(float, shared);
    const int step = blockDim.x * VALUES<N>;
    const bool again = channels > step;  // the row does not fit into registers
    const uint64_t first = (uint64_t)blockIdx.x * rows_per_block, end = min(first + rows_per_block, rows);
    float v[VECTORS][N], w[VECTORS][N], b[VECTORS][N];
    Span<N> span{0, channels};
    if (!again) {
        span.load_parameters(w, weight, shared);
        span.load_parameters(b, bias, shared);
    }
    for (uint64_t block_row = first; block_row < end; block_row += blockDim.y) {
        const bool active = block_row + threadIdx.y < end;
        const uint64_t row = (block_row + threadIdx.y) * channels;
        float total = 0.0f;
        for (span.base = 0; span.base < channels; span.base += step) {
            span.load(v, x + row, active);
            if (residual) {
                float r[VECTORS][N];
                span.load(r, residual + row, active);
#pragma unroll
                for (int j = 0; j < VECTORS; j++) {
#pragma unroll
                    for (int i = 0; i < N; i++) v[j][i] = to_float(from_float<T>(v[j][i] + r[j][i]));
                    if (active && span.inside(j)) store_vector(sum + row + span.channel(j), v[j]);
                }
            }
            total += span.sum([&](int j, int i) { return v[j][i]; });
        }
        const T* const source = residual ? sum : x;
        const float mean = CENTRED ? row_sum(total) / channels : 0.0f;
        float squares = 0.0f;
        for (span.base = 0; span.base < channels; span.base += step) {
            if (again) span.load(v, source + row, active);
            squares += span.sum([&](int j, int i) { return (v[j][i] - mean) * (v[j][i] - mean); });
        }
        const float inverse = 1.0f / sqrtf(row_sum(squares) / channels + epsilon);
        for (span.base = 0; span.base < channels; span.base += step) {
            if (again) {
                span.load(v, source + row, active);
                span.load_parameters(w, weight, shared);
                span.load_parameters(b, bias, shared);
            }
#pragma unroll
            for (int j = 0; j < VECTORS; j++) {
#pragma unroll
                for (int i = 0; i < N; i++) v[j][i] = fmaf((v[j][i] - mean) * inverse, w[j][i], b[j][i]);
                if (active && span.inside(j)) store_vector(y + row + span.channel(j), v[j]);
            }
        }
    }
}

// Sums over threadIdx.y to out [channels].
template <int N>
__device__ __forceinline__ void store_sums(float* out, const Span<N>& span, const float (&v)[Span<N>::VECTORS][N], float* shared) {
#pragma unroll
    for (int j = 0; j < Span<N>::VECTORS; j++) {
        column_sum<N>(shared, v[j]);
        store_columns<N>(out + span.first(j), shared, span.count(j));
        __syncthreads();
    }
}

// partial_weight and partial_bias [blocks, channels]: a block's sums over its rows; partial_bias is there if CENTRED.
template <typename T, bool CENTRED, int N>
__device__ __forceinline__ void normalise_backward(T* dx, float* partial_weight, float* partial_bias, const T* dy, const T* x,
                                                   const float* weight, float epsilon, uint64_t rows, int channels, int rows_per_block) {
    constexpr int VECTORS = Span<N>::VECTORS;
    DYNAMIC_SHARED(float, shared);
    const uint64_t first = (uint64_t)blockIdx.x * rows_per_block, end = min(first + rows_per_block, rows);
    const Span<N> span{0, channels};
    float dweight[VECTORS][N] = {}, dbias[VECTORS][N] = {};
    // The weight stays in shared memory, for the registers are full.
    const int pitch = column_pitch<N>();
#pragma unroll
    for (int j = 0; j < VECTORS; j++)
        for (int c = threadIdx.y * blockDim.x + threadIdx.x; c < span.count(j); c += blockDim.x * blockDim.y)
            shared[j * N * pitch + column_at<N>(c)] = weight[span.first(j) + c];
    __syncthreads();
    for (uint64_t block_row = first; block_row < end; block_row += blockDim.y) {
        const bool active = block_row + threadIdx.y < end;
        const uint64_t row = (block_row + threadIdx.y) * channels;
        float v[VECTORS][N], g[VECTORS][N];
        span.load(v, x + row, active);
        span.load(g, dy + row, active);
        const float mean = CENTRED ? row_sum(span.sum([&](int j, int i) { return v[j][i]; })) / channels : 0.0f;
        const float squares = row_sum(span.sum([&](int j, int i) { return (v[j][i] - mean) * (v[j][i] - mean); }));
        const float inverse = 1.0f / sqrtf(squares / channels + epsilon);
#pragma unroll
        for (int j = 0; j < VECTORS; j++)
#pragma unroll
            for (int i = 0; i < N; i++) {
                v[j][i] = (v[j][i] - mean) * inverse;
                dweight[j][i] = fmaf(g[j][i], v[j][i], dweight[j][i]);
                if constexpr (CENTRED) dbias[j][i] += g[j][i];
                g[j][i] *= span.inside(j) ? shared[(j * N + i) * pitch + threadIdx.x] : 0.0f;
            }
        const float level = CENTRED ? row_sum(span.sum([&](int j, int i) { return g[j][i]; })) / channels : 0.0f;
        const float slope = row_sum(span.sum([&](int j, int i) { return g[j][i] * v[j][i]; })) / channels;
#pragma unroll
        for (int j = 0; j < VECTORS; j++) {
#pragma unroll
            for (int i = 0; i < N; i++) v[j][i] = inverse * (g[j][i] - level - v[j][i] * slope);
            if (active && span.inside(j)) store_vector(dx + row + span.channel(j), v[j]);
        }
    }
    __syncthreads();  // the weight was read
    store_sums<N>(partial_weight + (uint64_t)blockIdx.x * channels, span, dweight, shared);
    if constexpr (CENTRED) store_sums<N>(partial_bias + (uint64_t)blockIdx.x * channels, span, dbias, shared);
}

// `vector`: channels divide into 16 bytes. The launches are in ops/layer_norm/cuda.rs.
#define NORM_KERNELS(NAME, CENTRED, T, SUFFIX)                                                                                        \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                                             \
        NAME##_##SUFFIX(T* y, T* sum, const T* x, const T* residual, const float* weight, const float* bias, float epsilon,          \
                        uint64_t rows, int channels, int rows_per_block, int vector) {                                               \
        after_predecessors();                                                                                                        \
        if (vector)                                                                                                                  \
            normalise<T, CENTRED, LANES<T>>(y, sum, x, residual, weight, bias, epsilon, rows, channels, rows_per_block);             \
        else                                                                                                                         \
            normalise<T, CENTRED, 1>(y, sum, x, residual, weight, bias, epsilon, rows, channels, rows_per_block);                    \
    }                                                                                                                                \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                                             \
        NAME##_backward_##SUFFIX(T* dx, float* partial_weight, float* partial_bias, const T* dy, const T* x, const float* weight,    \
                                 float epsilon, uint64_t rows, int channels, int rows_per_block, int vector) {                       \
        if (vector)                                                                                                                  \
            normalise_backward<T, CENTRED, LANES<T>>(dx, partial_weight, partial_bias, dy, x, weight, epsilon, rows, channels,       \
                                                     rows_per_block);                                                                \
        else                                                                                                                         \
            normalise_backward<T, CENTRED, 1>(dx, partial_weight, partial_bias, dy, x, weight, epsilon, rows, channels,              \
                                              rows_per_block);                                                                       \
    }
