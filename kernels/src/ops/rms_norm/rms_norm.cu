// Root-mean-square normalisation, y = weight x / sqrt(mean x^2 + epsilon), with the residual's sum fused before it.
//
// Tensors    x, residual, sum, y, dy, dx [rows, channels] in T; weight [channels] f32;
//            partial_weight [blocks, channels] f32.
// Mapping    norm.cuh: a row in the registers of one warp up to 512 channels, of up to 16 warps up to 8192; parameters in registers
//            over all rows of a block.
// Bytes      forward: x (and residual) read, y (and sum) written. Backward: dy and x read, dx written, statistics computed anew
//            from the row that is there; the sums of at most 512 blocks, added up by sum_rows (reduce.cu).
// Ladder     v1: squares, then the quotient, from registers. Not yet timed on any GPU.
//
// dependents: rms_norm_f32 rms_norm_bf16 rms_norm_f16
// kernels: rms_norm_backward_f32 rms_norm_backward_bf16 rms_norm_backward_f16
#include "norm.cuh"

NORM_KERNELS(rms_norm, false, float, f32)
NORM_KERNELS(rms_norm, false, bf16, bf16)
NORM_KERNELS(rms_norm, false, f16, f16)
