// Matrix product C = op(A) op(B).
//
//   C[m, n] = sum_k A[m, k] B[k, n]
//
//   matmul_nn   A [M, K], B [K, N]    grid: tiles of C, columns first; block: one tile; K from 0 up in every block
//   matmul_nt   A [M, K], B [N, K]    as nn
//   matmul_tn   A [K, M], B [K, N]    grid.y: runs of k; f32 partial sums, added up in order by matmul_tn_sum. A B [N, K] is
//                                     transposed first (elementwise.cu).
//
// The tile loops, the tensor-core and the f32 cores and the edge handling are gemm.cuh; here are only the instances. Tiles:
// 128x128 for large products, 64x64 while those would not fill the device, 16x64 for a few rows. All tiles sum in the
// same order, so the choice changes no bit.
//
// Bytes, at the least: (M K + K N + M N) elements once each. A tile of TM x TN reads TM + TN elements per k for 2 TM TN
// flops: 64 flops per element at 128x128.
//
// Ladder: v1 cp.async x 3 stages, mma.sync m16n8k16 / FFMA 8 x 8 per thread. Not yet timed on any GPU.

#include "gemm.cuh"

#define FOR_TYPE(SUFFIX, T)                                                                                                    \
    PRODUCT_KERNEL(matmul_nn_128x128_##SUFFIX, T, Tile128x128, false)                                                          \
    PRODUCT_KERNEL(matmul_nn_64x64_##SUFFIX, T, Tile64x64, false)                                                              \
    PRODUCT_KERNEL(matmul_nn_16x64_##SUFFIX, T, Tile16x64, false)                                                              \
    PRODUCT_KERNEL(matmul_nt_64x64_##SUFFIX, T, Tile64x64, true)                                                               \
    PRODUCT_KERNEL(matmul_nt_16x64_##SUFFIX, T, Tile16x64, true)                                                               \
    CORRELATION_KERNEL(matmul_tn_64x64_##SUFFIX, T, Tile64x64)                                                                 \
    SUM_PARTIALS_KERNEL(matmul_tn_sum_##SUFFIX, T)

// kernels: matmul_nn_128x128_f32 matmul_nn_64x64_f32 matmul_nn_16x64_f32 matmul_nt_64x64_f32 matmul_nt_16x64_f32
// kernels: matmul_tn_64x64_f32 matmul_tn_sum_f32
// kernels: matmul_nn_128x128_bf16 matmul_nn_64x64_bf16 matmul_nn_16x64_bf16 matmul_nt_64x64_bf16 matmul_nt_16x64_bf16
// kernels: matmul_tn_64x64_bf16 matmul_tn_sum_bf16
// kernels: matmul_nn_128x128_f16 matmul_nn_64x64_f16 matmul_nn_16x64_f16 matmul_nt_64x64_f16 matmul_nt_16x64_f16
// kernels: matmul_tn_64x64_f16 matmul_tn_sum_f16
FOR_TYPE(f32, float)
FOR_TYPE(bf16, bf16)
FOR_TYPE(f16, f16)
