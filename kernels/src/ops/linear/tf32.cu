// Linear layers of f32 over many rows on tensor cores: each number as the sum of two of tf32, a product as three. As linear.cu otherwise.
//
//   x w = x_high w_high + x_high w_low + x_low w_high,  x_high = tf32(x),  x_low = tf32(x - x_high)
//
// Tensors    as linear.cu. Infinities, and what rounds to one in tf32 (beyond 3.4e38), become NaN: their rest is none.
// Mapping    the tiles of gemm.cuh, columns first.
// Memory     K in steps of 16, three stages of (M + N) 80 bytes in shared memory.
// Order      along K by 8: three products from zero, the smaller first, then one addition to the sum: decided by K alone.
// Error      of a product of two numbers at most 2^-21, 2^-23.7 in the mean square: of low bits that go and of x_low w_low; of a sum as of
//            f32, in steps of 8.
// Bytes      as linear.cu by tiles.
// Cost       for 16 x 8 x 8, three mma.sync of 1024 products each, against 32 FFMA of 32 lanes; besides, 8 instructions that clear and
//            add up, and 3 for each number that a warp reads (5 a product of the 128 x 128 tile). On sm_90 the tensor cores take 12
//            cycles for the three, at best, and the scheduler 16: so the scheduler is the limit, at 0.5 of what an FFMA kernel at its
//            own limit takes.
// Ladder     v1. Not yet timed on any GPU.
//
// kernels: linear_tf32x3_16x64_f32 linear_tf32x3_64x64_f32 linear_tf32x3_128x128_f32
#include "linear_tile.cuh"

using Tile64x64Less = Tile<64, 64, 2, 2, 16, 3>;  // halves and rests want registers

LINEAR_TILE(linear_tf32x3_16x64_f32, Tile16x64, float, true)
LINEAR_TILE(linear_tf32x3_64x64_f32, Tile64x64Less, float, true)
LINEAR_TILE(linear_tf32x3_128x128_f32, Tile128x128, float, true)
