// Transposed convolution, forward and gradients.
//
//   y[b, o, c]  = bias[c] + sum_{t, i} x[b, t, i] w[o + crop - t stride, i, c]
//   dx[b, t, i] = sum_{k, c} dy[b, t stride + k - crop, c] w[k, i, c]
//   dw[k, i, c] = sum_{b, t} x[b, t, i] dy[b, t stride + k - crop, c]
//
// Shapes: x [B, T, Cin], w [K, Cin, Cout], y [B, Tout, Cout], all contiguous.
//
// forward: polyphase. With o + crop = q stride + phase, output phase `phase` of row q reads inputs q - j through taps
//   phase + j stride, j < ceil(K / stride): a product with K-dimension (j, i), rows (b, q) and columns (phase, c), whose row
//   is already the interleaved output. No column buffer, no overlap-add, and a stream's state is past input.
// dx: a convolution of dy with stride `stride` and each tap transposed.
// dw: products over time of windows of dy with x, [(k, c), i], in runs of rows whose f32 partial sums are added in order.
//
// grid: tiles of the product, columns first (dw: grid.y = runs of rows); block: one tile (gemm.cuh).
// Bytes, at the least: x + w + y once each. A tile re-reads its rows of x once per j, from L1/L2.
//
// Ladder: v1 implicit product on tensor cores (f32: FFMA). Not yet timed on any GPU.

#include "gemm.cuh"

#define FOR_TYPE(SUFFIX, T)                                                                                                    \
    PRODUCT_KERNEL(conv_transpose1d_64x64_##SUFFIX, T, Tile64x64, false)                                                       \
    PRODUCT_KERNEL(conv_transpose1d_128x32_##SUFFIX, T, Tile128x32, false)                                                     \
    PRODUCT_KERNEL(conv_transpose1d_16x64_##SUFFIX, T, Tile16x64, false)                                                       \
    PRODUCT_KERNEL(conv_transpose1d_dx_64x64_##SUFFIX, T, Tile64x64, true)                                                     \
    CORRELATION_KERNEL(conv_transpose1d_dw_64x64_##SUFFIX, T, Tile64x64)                                                       \
    SUM_PARTIALS_KERNEL(conv_transpose1d_dw_sum_##SUFFIX, T)

// kernels: conv_transpose1d_64x64_f32 conv_transpose1d_128x32_f32 conv_transpose1d_16x64_f32
// kernels: conv_transpose1d_dx_64x64_f32 conv_transpose1d_dw_64x64_f32 conv_transpose1d_dw_sum_f32
// kernels: conv_transpose1d_64x64_bf16 conv_transpose1d_128x32_bf16 conv_transpose1d_16x64_bf16
// kernels: conv_transpose1d_dx_64x64_bf16 conv_transpose1d_dw_64x64_bf16 conv_transpose1d_dw_sum_bf16
// kernels: conv_transpose1d_64x64_f16 conv_transpose1d_128x32_f16 conv_transpose1d_16x64_f16
// kernels: conv_transpose1d_dx_64x64_f16 conv_transpose1d_dw_64x64_f16 conv_transpose1d_dw_sum_f16
FOR_TYPE(f32, float)
FOR_TYPE(bf16, bf16)
FOR_TYPE(f16, f16)
