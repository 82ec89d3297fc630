// Convolution, forward, streaming and gradients.
//
//   y[b, t, o]  = epilogue(bias[o] + residual[b, t, o] + sum_{k, i} prologue(x)[b, t stride + k dilation - pad, i] w[k, i, o])
//   dx[b, s, i] = sum_{k, o: t stride = s + pad - k dilation} dy[b, t, o] w[k, i, o]
//   dw[k, i, o] = sum_{b, t} x[b, t stride + k dilation - pad, i] dy[b, t, o]
//
// Shapes: x [B, T, Cin], w [K, Cin / groups, Cout], y [B, Tout, Cout], all contiguous. Before time 0 x is zero, or a ring of
// the stream's past [B, P, Cin] with its position [B]; rows from it and from x enter the sum the same way.
//
//   conv1d_TILE        implicit product: rows (b, t), K-dimension (k, i), columns o. Channels-last, a row of the im2col matrix
//                      is K contiguous stretches of x, so it is read where it lies (gemm.cuh).
//                      grid: tiles of the product, columns first; block: one tile.
//   conv1d_from_one    Cin = 1 (first layers). block: 64 steps of one stream, its window in shared memory; a thread has 4
//                      output channels x 4 steps.
//   conv1d_to_one      Cout = 1 (last layers). block: 128 steps; 8 lanes share the channels of 4 steps.
//   conv1d_grouped     groups > 1. One thread an output; _dx the same, _dw a block for 16 outputs of a tap and input.
//   conv1d_dx_TILE     the product with taps transposed: rows (b, s / stride), columns (s % stride, i), K-dimension (tap of
//                      that phase, o): a transposed convolution of dy.
//   conv1d_dw_TILE     [(k, i), o], summed over rows (b, t) in grid.y runs; conv1d_dw_sum adds the f32 partial sums in order.
//   conv1d_append      block: one stream; copies the newest P rows into its ring. conv1d_reset zeroes rings, conv1d_prime
//                      fills those still unused with the first row of x.
//
// Which forward kernel runs depends on the layer alone, and all tiles sum in the same order, so a stream fed in any chunks
// gets the bits of the whole.
//
// Bytes, at the least: x + w + y once each (+ residual). A product tile re-reads its rows of x once per tap, from L1/L2.
//
// Ladder: v1 implicit product on tensor cores (f32: FFMA). Not yet timed on any GPU.

#include "gemm.cuh"

/// y for Cin = 1: a block has 64 steps of one stream; shared memory: their window.
template <class T>
__device__ __forceinline__ void from_one(const Window<T>& x, const T* weight, const Output<T>& out) {
    constexpr int STEPS = 64, AT_ONCE = 4;
    DYNAMIC_SHARED(float, window);
    const int blocks = (x.rows + STEPS - 1) / STEPS;
    const int first = blockIdx.x % blocks * STEPS, batch = blockIdx.x / blocks, channels = out.channels;
    const int width = (STEPS - 1) * x.step + (x.taps - 1) * x.tap_step + 1;
    Window<T> row = x; // element i of the window is tap i of its first row
    row.tap_step = 1;
    row.taps = width;
    const Activation activate = x.activation(0);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        window[i] = activate(or_zero(row.at({batch, first}, {i, 0})));
    }
    __syncthreads();
    const int across = (channels + 3) / 4;
    for (int item = threadIdx.x; item < across * (STEPS / AT_ONCE); item += blockDim.x) {
        const int channel = item % across * 4, step = item / across * AT_ONCE;
        float sum[AT_ONCE][4] = {};
        for (int k = 0; k < x.taps; ++k) {
            float w[4];
            if (channels % 4 == 0) {
                load4(w, weight + (int64_t)k * channels + channel);
            } else {
#pragma unroll
                for (int e = 0; e < 4; ++e) w[e] = channel + e < channels ? to_float(weight[(int64_t)k * channels + channel + e]) : 0.0f;
            }
#pragma unroll
            for (int s = 0; s < AT_ONCE; ++s) {
                const float v = window[(step + s) * x.step + k * x.tap_step];
#pragma unroll
                for (int e = 0; e < 4; ++e) sum[s][e] += v * w[e];
            }
        }
#pragma unroll
        for (int s = 0; s < AT_ONCE; ++s) {
            if (first + step + s < x.rows) out.store(batch * x.rows + first + step + s, channel, sum[s]);
        }
    }
}

/// y for Cout = 1: a block has 128 steps of one stream; shared memory: their window, rows of Cin + padding to 2 more than a
/// multiple of 8, and the weights.
template <class T>
__device__ __forceinline__ void to_one(const Window<T>& x, const T* weight, const Output<T>& out) {
    constexpr int STEPS = 128, LANES = 8, AT_ONCE = STEPS * LANES / 256;
    DYNAMIC_SHARED(float, window);
    const int blocks = (x.rows + STEPS - 1) / STEPS;
    const int first = blockIdx.x % blocks * STEPS, batch = blockIdx.x / blocks, channels = x.channels;
    const int pitch = (channels + 5) / 8 * 8 + 2;
    const int height = (STEPS - 1) * x.step + (x.taps - 1) * x.tap_step + 1;
    Window<T> row = x;
    row.tap_step = 1;
    row.taps = height;
    for (int i = threadIdx.x; i < height * channels; i += blockDim.x) {
        const int channel = i % channels;
        const float v = or_zero(row.at({batch, first}, {i / channels, channel}));
        window[i / channels * pitch + channel] = x.activation(channel)(v);
    }
    float* const weights = window + height * pitch;
    for (int i = threadIdx.x; i < x.taps * channels; i += blockDim.x) weights[i] = to_float(weight[i]);
    __syncthreads();
    const int lane = threadIdx.x % LANES, step = threadIdx.x / LANES * AT_ONCE;
    float sum[AT_ONCE] = {};
    for (int k = 0; k < x.taps; ++k) {
        for (int i = lane; i < channels; i += LANES) {
            const float w = weights[k * channels + i];
#pragma unroll
            for (int s = 0; s < AT_ONCE; ++s) {
                const int at = (step + s) * x.step + k * x.tap_step;
                sum[s] += window[at * pitch + i] * w;
            }
        }
    }
#pragma unroll
    for (int s = 0; s < AT_ONCE; ++s) {
#pragma unroll
        for (int apart = LANES / 2; apart > 0; apart /= 2) sum[s] += __shfl_xor_sync(0xffffffffu, sum[s], apart);
    }
    // A lane for each of the steps, so that a warp's outputs are neighbours.
    const int t = first + step + lane;
    const float v = lane < 2 ? (lane == 0 ? sum[0] : sum[1]) : (lane == 2 ? sum[2] : sum[3]);
    if (lane < AT_ONCE && t < x.rows) out.store_one({batch, t}, {0, 0}, v);
}

template <class T>
__device__ __forceinline__ void grouped(const Window<T>& x, const T* weight, const Output<T>& out, int groups) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Index row = split(i / out.channels, x.rows);
    if (row.major >= x.batches) return;
    const int channel = i % out.channels, in = x.channels / groups;
    const int first = channel / (out.channels / groups) * in;
    float sum = 0.0f;
    for (int k = 0; k < x.taps; ++k) {
        for (int c = 0; c < in; ++c) {
            const float v = x.activation(first + c)(or_zero(x.at(row, {k, first + c})));
            sum += v * to_float(weight[((int64_t)k * in + c) * out.channels + channel]);
        }
    }
    out.store_one(row, {0, channel}, sum);
}

template <class T>
__device__ __forceinline__ void grouped_dx(T* dx, const T* dy, const T* weight, int batches, int time, int channels, int taps, int out_time,
                                  int out_channels, int groups, int stride, int dilation, int pad) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const Index row = split(i / channels, time);
    if (row.major >= batches) return;
    const int s = row.minor, channel = i % channels;
    const int in = channels / groups, outs = out_channels / groups, first = channel / in * outs;
    float sum = 0.0f;
    for (int k = 0; k < taps; ++k) {
        const int at = s + pad - k * dilation;
        if (at < 0 || at % stride != 0 || at / stride >= out_time) continue;
        const T* d = dy + ((int64_t)row.major * out_time + at / stride) * out_channels + first;
        const T* w = weight + ((int64_t)k * in + channel % in) * out_channels + first;
        for (int o = 0; o < outs; ++o) sum += to_float(d[o]) * to_float(w[o]);
    }
    dx[i] = from_float<T>(sum);
}

/// Block: 16 outputs of one tap and input; 16 threads share the sum of each over (b, t), which a tree then adds up.
template <class T>
__device__ __forceinline__ void grouped_dw(T* dw, const Window<T>& x, const T* dy, int out_channels, int groups) {
    constexpr int OUTPUTS = 16, LANES = 16;
    __shared__ float sums[LANES][OUTPUTS];
    const int in = x.channels / groups, across = (out_channels + OUTPUTS - 1) / OUTPUTS;
    const int output = threadIdx.x % OUTPUTS, lane = threadIdx.x / OUTPUTS;
    const int row = blockIdx.x / across, channel = blockIdx.x % across * OUTPUTS + output; // of dw [(tap, in), out]
    float sum = 0.0f;
    if (channel < out_channels) {
        const int from = channel / (out_channels / groups) * in + row % in;
        for (int r = lane; r < x.batches * x.rows; r += LANES) {
            sum += or_zero(x.at(split(r, x.rows), {row / in, from})) * to_float(dy[(int64_t)r * out_channels + channel]);
        }
    }
    sums[lane][output] = sum;
    for (int half = LANES / 2; half > 0; half /= 2) {
        __syncthreads();
        if (lane < half) sums[lane][output] += sums[lane + half][output];
    }
    if (lane == 0 && channel < out_channels) dw[row * out_channels + channel] = from_float<T>(sums[0][output]);
}

template <class T>
__device__ __forceinline__ void append(T* ring, int* position, const T* x, const unsigned char* mask, int past, int time, int channels) {
    const int batch = blockIdx.x;
    if (mask != nullptr && mask[batch] == 0) return;
    const int at = position[batch];
    const int skip = time > past ? time - past : 0;
    for (int i = threadIdx.x; i < (time - skip) * channels; i += blockDim.x) {
        const int r = skip + i / channels, slot = (at + r) % past;
        ring[((int64_t)batch * past + slot) * channels + i % channels] = x[((int64_t)batch * time + r) * channels + i % channels];
    }
    __syncthreads(); // everyone has read the position
    if (threadIdx.x == 0) position[batch] = (at + time) % past;
}

template <class T>
__device__ __forceinline__ void prime(T* ring, unsigned char* primed, const T* x, const unsigned char* mask, int past, int time, int channels) {
    const int batch = blockIdx.x;
    if ((mask != nullptr && mask[batch] == 0) || primed[batch] != 0) return;
    for (int i = threadIdx.x; i < past * channels; i += blockDim.x) {
        ring[(int64_t)batch * past * channels + i] = x[(int64_t)batch * time * channels + i % channels];
    }
    __syncthreads(); // everyone has read the flag
    if (threadIdx.x == 0) primed[batch] = 1;
}

template <class T>
__device__ __forceinline__ void reset(T* ring, int* position, unsigned char* primed, const unsigned char* mask, int size) {
    const int batch = blockIdx.x;
    if (mask[batch] == 0) return;
    for (int i = threadIdx.x; i < size; i += blockDim.x) ring[(int64_t)batch * size + i] = from_float<T>(0.0f);
    if (threadIdx.x == 0) {
        position[batch] = 0;
        primed[batch] = 0;
    }
}

#define DIRECT_KERNEL(NAME, T, BODY, ...)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256, 4)                                                                       \
        NAME(T* y, const T* x, const T* weight, const T* bias, const T* residual, const T* ring, const int* position,          \
             const float* alpha, int batches, int time, int channels, int past, int rows, int step, int offset, int tap_step,  \
             int taps, int prologue, int out_channels, int groups, int epilogue) {                                             \
        BODY<T>({x, ring, position, alpha, batches, time, channels, past, rows, step, offset, tap_step, taps, prologue}, weight, \
                {y, bias, residual, batches, rows, out_channels, rows, 1, 0, epilogue} __VA_ARGS__);                           \
    }

#define COMMA ,
#define FOR_TYPE(SUFFIX, T)                                                                                                    \
    PRODUCT_KERNEL(conv1d_128x128_##SUFFIX, T, Tile128x128, false)                                                             \
    PRODUCT_KERNEL(conv1d_64x64_##SUFFIX, T, Tile64x64, false)                                                                 \
    PRODUCT_KERNEL(conv1d_128x32_##SUFFIX, T, Tile128x32, false)                                                               \
    PRODUCT_KERNEL(conv1d_16x64_##SUFFIX, T, Tile16x64, false)                                                                 \
    DIRECT_KERNEL(conv1d_from_one_##SUFFIX, T, from_one)                                                                       \
    DIRECT_KERNEL(conv1d_to_one_##SUFFIX, T, to_one)                                                                           \
    DIRECT_KERNEL(conv1d_grouped_##SUFFIX, T, grouped, COMMA groups)                                                           \
    PRODUCT_KERNEL(conv1d_dx_64x64_##SUFFIX, T, Tile64x64, true)                                                               \
    PRODUCT_KERNEL(conv1d_dx_128x32_##SUFFIX, T, Tile128x32, true)                                                             \
    CORRELATION_KERNEL(conv1d_dw_64x64_##SUFFIX, T, Tile64x64)                                                                 \
    SUM_PARTIALS_KERNEL(conv1d_dw_sum_##SUFFIX, T)                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                                          \
        conv1d_grouped_dx_##SUFFIX(T* dx, const T* dy, const T* weight, int batches, int time, int channels, int taps,         \
                                   int out_time, int out_channels, int groups, int stride, int dilation, int pad) {            \
        grouped_dx(dx, dy, weight, batches, time, channels, taps, out_time, out_channels, groups, stride, dilation, pad);      \
    }                                                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                                          \
        conv1d_grouped_dw_##SUFFIX(T* dw, const T* x, const T* dy, int batches, int time, int channels, int step, int offset,  \
                                   int tap_step, int taps, int rows, int out_channels, int groups) {                           \
        grouped_dw<T>(dw,                                                                                                      \
                      {x, nullptr, nullptr, nullptr, batches, time, channels, 0, rows, step, offset, tap_step, taps, 0}, dy,   \
                      out_channels, groups);                                                                                   \
    }                                                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                                          \
        conv1d_append_##SUFFIX(T* ring, int* position, const T* x, const unsigned char* mask, int past, int time, int channels) { \
        append(ring, position, x, mask, past, time, channels);                                                                 \
    }                                                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                                          \
        conv1d_prime_##SUFFIX(T* ring, unsigned char* primed, const T* x, const unsigned char* mask, int past, int time,       \
                              int channels) {                                                                                  \
        prime(ring, primed, x, mask, past, time, channels);                                                                    \
    }                                                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                                          \
        conv1d_reset_##SUFFIX(T* ring, int* position, unsigned char* primed, const unsigned char* mask, int size) {            \
        reset(ring, position, primed, mask, size);                                                                             \
    }

// kernels: conv1d_128x128_f32 conv1d_64x64_f32 conv1d_128x32_f32 conv1d_16x64_f32 conv1d_from_one_f32 conv1d_to_one_f32
// kernels: conv1d_grouped_f32 conv1d_dx_64x64_f32 conv1d_dx_128x32_f32 conv1d_dw_64x64_f32 conv1d_dw_sum_f32
// kernels: conv1d_grouped_dx_f32 conv1d_grouped_dw_f32 conv1d_append_f32 conv1d_prime_f32 conv1d_reset_f32
// kernels: conv1d_128x128_bf16 conv1d_64x64_bf16 conv1d_128x32_bf16 conv1d_16x64_bf16 conv1d_from_one_bf16 conv1d_to_one_bf16
// kernels: conv1d_grouped_bf16 conv1d_dx_64x64_bf16 conv1d_dx_128x32_bf16 conv1d_dw_64x64_bf16 conv1d_dw_sum_bf16
// kernels: conv1d_grouped_dx_bf16 conv1d_grouped_dw_bf16 conv1d_append_bf16 conv1d_prime_bf16 conv1d_reset_bf16
// kernels: conv1d_128x128_f16 conv1d_64x64_f16 conv1d_128x32_f16 conv1d_16x64_f16 conv1d_from_one_f16 conv1d_to_one_f16
// kernels: conv1d_grouped_f16 conv1d_dx_64x64_f16 conv1d_dx_128x32_f16 conv1d_dw_64x64_f16 conv1d_dw_sum_f16
// kernels: conv1d_grouped_dx_f16 conv1d_grouped_dw_f16 conv1d_append_f16 conv1d_prime_f16 conv1d_reset_f16
FOR_TYPE(f32, float)
FOR_TYPE(bf16, bf16)
FOR_TYPE(f16, f16)
