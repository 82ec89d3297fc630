// Snake: y = x + sin^2(a x) / (b + 1e-9), with b = a (DAC) or a = e^log_alpha, b = e^log_beta (BigVGAN).
//
// Tensors    x, y, dy, dx [rows, channels] in T; alpha, beta and their gradients [channels] in f32;
//            partial [row blocks, 2, channels] f32.
// Mapping    threadIdx.x = 16 bytes of channels (one channel if they do not divide), threadIdx.y and the loop = rows, so that
//            a thread's parameters stay in registers. blockIdx.x = run of rows, blockIdx.y = run of channels.
// Bytes      forward: x read, y written, parameters through shared memory, so that a warp asks for whole sectors of them.
//            Backward: dy and x read, dx written; partial is below 1/8 of x for tall tensors.
// Sine       by polynomial (snake.cuh).
// Sums       each thread over its rows, a tree over the block, then snake_reduce over the blocks, all in fixed order.
// Measured   on the emulator only, for correctness; no GPU figure exists yet.
//
// kernels: snake_f32 snake_bf16 snake_f16 snake_backward_f32 snake_backward_bf16 snake_backward_f16 snake_reduce
#include "block.cuh"
#include "snake.cuh"
#include "vec.cuh"

// The snakes of a thread's channels. `log_beta` null: plain snake. All threads of the block take part.
template <int N>
__device__ __forceinline__ void load_snakes(Snake (&dst)[N], const Columns<N>& at, const float* alpha, const float* log_beta, float* shared) {
    float a[N], b[N];
    at.load(a, alpha, shared);
    if (log_beta) at.load(b, log_beta, shared);
#pragma unroll
    for (int i = 0; i < N; i++) dst[i] = log_beta ? make_snake(expf(a[i]), expf(b[i])) : make_snake(a[i], a[i]);
}

template <typename T, int N>
__device__ __forceinline__ void forward(T* y, const T* x, const float* alpha, const float* log_beta, uint64_t rows, int channels,
                                        int rows_per_block) {
    DYNAMIC_SHARED(float, shared);
    const Columns<N> at(rows, channels, rows_per_block);
    Snake c[N];
    load_snakes(c, at, alpha, log_beta, shared);
    for (uint64_t row = at.first; row < at.end; row += blockDim.y) {
        const uint64_t offset = row * channels + at.channel;
        float v[N];
        load_vector<T, N>(v, x + offset);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = c[i](v[i]);
        store_vector<T, N>(y + offset, v);
    }
}

template <typename T, int N>
__device__ __forceinline__ void backward(T* dx, float* partial, const T* dy, const T* x, const float* alpha, const float* log_beta,
                                         uint64_t rows, int channels, int rows_per_block) {
    DYNAMIC_SHARED(float, shared);
    const Columns<N> at(rows, channels, rows_per_block);
    Snake c[N];
    load_snakes(c, at, alpha, log_beta, shared);
    float frequency[N] = {}, amplitude[N] = {};
    for (uint64_t row = at.first; row < at.end; row += blockDim.y) {
        const uint64_t offset = row * channels + at.channel;
        float g[N], v[N];
        load_vector<T, N>(g, dy + offset);
        load_vector<T, N>(v, x + offset);
#pragma unroll
        for (int i = 0; i < N; i++) {
            float sin, cos;
            c[i].sin_cos(sin, cos, v[i]);
            const float twice = (sin + sin) * cos * c[i].inverse, scaled = sin * c[i].inverse;
            frequency[i] += g[i] * (v[i] * twice);
            amplitude[i] += g[i] * (scaled * scaled);
            v[i] = g[i] * fmaf(twice, c[i].alpha, 1.0f);
        }
        store_vector<T, N>(dx + offset, v);
    }
    float* const out = partial + (uint64_t)blockIdx.x * 2 * channels;
    column_sum<N>(shared, frequency);
    at.store(out, shared);
    __syncthreads();
    column_sum<N>(shared, amplitude);
    at.store(out + channels, shared);
}

// One scalar channel a thread; `blocks` rows of partial sums. `log_beta` null: plain snake, which leaves dlog_beta alone.
extern "C" __global__ void snake_reduce(float* dalpha, float* dlog_beta, const float* partial, const float* alpha, const float* log_beta,
                                        uint64_t blocks, int channels) {
    DYNAMIC_SHARED(float, shared);
    const Columns<1> at(blocks, channels, (int)blocks);
    float frequency[1] = {0.0f}, amplitude[1] = {0.0f};
    for (uint64_t row = at.first; row < at.end; row += blockDim.y) {
        frequency[0] += partial[row * 2 * channels + at.channel];
        amplitude[0] += partial[row * 2 * channels + channels + at.channel];
    }
    column_sum<1>(shared, frequency);
    frequency[0] = shared[threadIdx.x];
    __syncthreads();
    column_sum<1>(shared, amplitude);
    amplitude[0] = shared[threadIdx.x];
    if (!at.active || threadIdx.y != 0) return;
    if (log_beta) {
        dalpha[at.channel] = expf(alpha[at.channel]) * frequency[0];
        dlog_beta[at.channel] = -expf(log_beta[at.channel]) * amplitude[0];
    } else {
        dalpha[at.channel] = frequency[0] - amplitude[0];
    }
}

// `vector`: channels divide into 16 bytes.
#define SNAKE(T, NAME)                                                                                                               \
    extern "C" __global__ void snake_##NAME(T* y, const T* x, const float* alpha, const float* log_beta, uint64_t rows, int channels, \
                                            int rows_per_block, int vector) {                                                        \
        if (vector)                                                                                                                  \
            forward<T, LANES<T>>(y, x, alpha, log_beta, rows, channels, rows_per_block);                                             \
        else                                                                                                                         \
            forward<T, 1>(y, x, alpha, log_beta, rows, channels, rows_per_block);                                                    \
    }                                                                                                                                \
    extern "C" __global__ void snake_backward_##NAME(T* dx, float* partial, const T* dy, const T* x, const float* alpha,              \
                                                     const float* log_beta, uint64_t rows, int channels, int rows_per_block,          \
                                                     int vector) {                                                                   \
        if (vector)                                                                                                                  \
            backward<T, LANES<T>>(dx, partial, dy, x, alpha, log_beta, rows, channels, rows_per_block);                              \
        else                                                                                                                         \
            backward<T, 1>(dx, partial, dy, x, alpha, log_beta, rows, channels, rows_per_block);                                     \
    }
SNAKE(float, f32)
SNAKE(bf16, bf16)
SNAKE(f16, f16)
