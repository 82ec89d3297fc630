// Layer normalisation, y = weight (x - mean) / sqrt(variance + epsilon) + bias, with the residual's sum fused before it.
//
// Tensors    x, residual, sum, y, dy, dx [rows, channels] in T; weight, bias [channels] f32;
//            partial_weight, partial_bias [blocks, channels] f32.
// Mapping    norm.cuh: a row in the registers of one warp up to 512 channels, of up to 16 warps up to 8192; parameters in registers
//            over all rows of a block.
// Bytes      forward: x (and residual) read, y (and sum) written. Backward: dy and x read, dx written, statistics computed anew
//            from the row that is there; the sums of at most 512 blocks, added up by sum_rows (reduce.cu).
// Ladder     v1: mean, then squares around it, from registers. Not yet timed on any GPU.
//
// dependents: layer_norm_f32 layer_norm_bf16 layer_norm_f16
// kernels: layer_norm_backward_f32 layer_norm_backward_bf16 layer_norm_backward_f16
#include "norm.cuh"

NORM_KERNELS(layer_norm, true, float, f32)
NORM_KERNELS(layer_norm, true, bf16, bf16)
NORM_KERNELS(layer_norm, true, f16, f16)
