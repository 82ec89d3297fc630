// Transposed convolution, forward and gradients.
//
//   y[b, o, c]  = bias[c] + sum_{t, i} prologue(x)[b, t, i] w[o + crop - t stride, i, c]
//   dx[b, t, i] = sum_{k, c} dy[b, t stride + k - crop, c] w[k, i, c]
//   dw[k, i, c] = sum_{b, t} x[b, t, i] dy[b, t stride + k - crop, c]
//
// Shapes: x [B, T, Cin], w [K, Cin, Cout], y [B, Tout, Cout], all contiguous.
//
// forward: polyphase. With o + crop = q stride + phase, output phase `phase` of row q reads inputs q - j through taps
//   phase + j stride, j < ceil(K / stride): a product with K-dimension (j, i), rows (b, q) and columns (phase, c), whose row
//   is already the interleaved output. No column buffer, no overlap-add, and a stream's state is past input.
// depthwise: as many groups as channels, w [K, C, 1]. One thread an output, along channels; gradients are those of conv1d.
// dx: a convolution of dy with stride `stride` and each tap transposed.
// dw: products over time of windows of dy with x, [(k, c), i], in runs of rows whose f32 partial sums are added in order.
//
// grid: tiles of the product, columns first (dw: grid.y = runs of rows); block: one tile (gemm.cuh).
// Bytes, at the least: x + w + y once each. A tile re-reads its rows of x once per j, from L1/L2.
//
// Ladder: v1 implicit product on tensor cores (f32: FFMA). Not yet timed on any GPU.

#include "gemm.cuh"

template <class T>
__device__ __forceinline__ void depthwise(T* y, const Window<T>& x, const T* weight, const T* bias, int out_time, int taps, int stride,
                                          int offset) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const int channel = i % x.channels;
    const Index out = split(i / x.channels, out_time);
    if (out.major >= x.batches) return;
    const int at = out.minor + offset, phase = at % stride;
    const Activation activate = x.activation(channel);
    float sum = bias == nullptr ? 0.0f : to_float(bias[channel]);
    for (int j = 0; j < x.taps; ++j) {
        const int tap = j * stride + phase;
        if (tap >= taps) break;
        sum += activate(or_zero(x.at({out.major, at / stride}, {j, channel}))) * to_float(weight[(int64_t)tap * x.channels + channel]);
    }
    y[i] = from_float<T>(sum);
}

#define FOR_TYPE(SUFFIX, T)                                                                                                    \
    PRODUCT_KERNEL(conv_transpose1d_64x64_##SUFFIX, T, Tile64x64, false)                                                       \
    PRODUCT_KERNEL(conv_transpose1d_128x32_##SUFFIX, T, Tile128x32, false)                                                     \
    PRODUCT_KERNEL(conv_transpose1d_16x64_##SUFFIX, T, Tile16x64, false)                                                       \
    PRODUCT_KERNEL(conv_transpose1d_dx_64x64_##SUFFIX, T, Tile64x64, true)                                                     \
    CORRELATION_KERNEL(conv_transpose1d_dw_64x64_##SUFFIX, T, Tile64x64)                                                       \
    SUM_PARTIALS_KERNEL(conv_transpose1d_dw_sum_##SUFFIX, T)                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                          \
        conv_transpose1d_depthwise_##SUFFIX(T* y, const T* x, const T* weight, const T* bias, const T* ring,                   \
                                            const int* position, const float* alpha, int batches, int time, int channels,      \
                                            int past, int rows, int offset, int window_taps, int prologue, int out_time,       \
                                            int taps, int stride, int crop) {                                                  \
        depthwise<T>(y, {x, ring, position, alpha, batches, time, channels, past, rows, 1, offset, -1, window_taps, prologue}, \
                     weight, bias, out_time, taps, stride, crop);                                                              \
    }

// kernels: conv_transpose1d_depthwise_f32 conv_transpose1d_64x64_f32 conv_transpose1d_128x32_f32 conv_transpose1d_16x64_f32
// kernels: conv_transpose1d_dx_64x64_f32 conv_transpose1d_dw_64x64_f32 conv_transpose1d_dw_sum_f32
// kernels: conv_transpose1d_depthwise_bf16 conv_transpose1d_64x64_bf16 conv_transpose1d_128x32_bf16 conv_transpose1d_16x64_bf16
// kernels: conv_transpose1d_dx_64x64_bf16 conv_transpose1d_dw_64x64_bf16 conv_transpose1d_dw_sum_bf16
// kernels: conv_transpose1d_depthwise_f16 conv_transpose1d_64x64_f16 conv_transpose1d_128x32_f16 conv_transpose1d_16x64_f16
// kernels: conv_transpose1d_dx_64x64_f16 conv_transpose1d_dw_64x64_f16 conv_transpose1d_dw_sum_f16
FOR_TYPE(f32, float)
FOR_TYPE(bf16, bf16)
FOR_TYPE(f16, f16)
