// Linear layers over few rows whose weights are small integers, as linear.cu otherwise.
//
//   sum[m, n] = sum_k x[m, k] (scale code[n, k] - min)
//
// Tensors    codes [N, K] of four bits (two in a byte, the even column low, zero = 8) or of eight (signed, zero = 0), rows of whole 16
//            bytes; scales and mins [N, K / group] f32, mins perhaps absent: then they are the scale times zero. A group is a
//            multiple of 32, or K.
// Mapping    as linear.cu: a thread takes 16 bytes of codes of each of its R rows, 32 or 16 columns of one group.
// Memory     codes past the L1 cache; x through shared memory, M rows of a chunk of K. A thread's columns of x are several pieces of
//            16 bytes, kept turned so that eight threads find theirs in different banks.
// Order      as linear.cu: decided by K, the bits and the type of x alone. Whatever M is, a chunk of x is whole turns of a group.
// Bytes      N K codes once for every M rows of x, N K / group scales. Integers become floats by a byte permutation below the exponent of
//            2^23 and one subtraction, values by one more instruction: four to five a weight with its product (M = 1). A
//            multiprocessor of an H200 issues 128 a cycle and is brought 25 weights of eight bits or 50 of four: 0.8 and 1.8 of what it can.
// Left       tensor cores, for four bits and for M > 1: half the instructions.
// Ladder     v1. Not yet timed on any GPU.
//
// dependents: linear_int4_1_f32 linear_int4_1_bf16 linear_int4_1_f16 linear_int8_1_f32 linear_int8_1_bf16 linear_int8_1_f16
// kernels: linear_int4_4_f32 linear_int4_8_f32 linear_int4_4_bf16 linear_int4_8_bf16 linear_int4_4_f16 linear_int4_8_f16
// kernels: linear_int8_4_f32 linear_int8_8_f32 linear_int8_4_bf16 linear_int8_8_bf16 linear_int8_4_f16 linear_int8_8_f16
#include "few_rows.cuh"

template <typename T, int BITS, int M, int R>
__device__ __forceinline__ void linear_codes(const Finish<T>& finish, const T* x, const uint8_t* codes, const float* scales,
                                             const float* mins, int rows, int outputs, int k, int scaled, int group, int passes) {
    constexpr int N = LANES<T>, COLUMNS = Codes<BITS>::COLUMNS, PIECES = COLUMNS / N;  // pieces of x beside 16 bytes of codes
    constexpr int CHUNK = STAGED_BYTES / (M * sizeof(T));
    DYNAMIC_SHARED(T, staged);  // M rows of a chunk of x
    const FewRows<T, M, R> few(finish, outputs, group, passes);
    if constexpr (M == 1) few.begin(codes, (uint64_t)k * BITS / 8);
    const Codes<BITS> w{codes, scales, mins, k, scaled};
    const auto row_of_w = [&](int r) { return few.row_of_w(r); };

    float sum[M][R] = {};
    for (int base = 0; base < k; base += CHUNK) {
        const int count = min(k - base, CHUNK);
        if (base > 0) __syncthreads();
#pragma unroll 1
        for (int m = 0; m < M; m++) {
            const T* const row = x + (uint64_t)(few.first_row + m) * k + base;
            for (int i = threadIdx.x; i < count / N; i += THREADS) {
                float v[N] = {};
                if (few.first_row + m < rows) load_vector(v, row + i * N);
                store_vector(staged + m * CHUNK + turned(i, PIECES) * N, v);
            }
        }
        __syncthreads();
        for (int i = few.lane; i < count / COLUMNS; i += group) w.add(sum, row_of_w, base + i * COLUMNS, staged, i, CHUNK);
    }
    few.store(sum, rows);
}

// `scaled`: columns that share a scale.
#define LINEAR_CODES(BITS, M, R, T, SUFFIX)                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, M == 1 ? 4 : 3)                                                      \
        linear_int##BITS##_##M##_##SUFFIX(T* y, const T* x, const uint8_t* codes, const float* scales, const float* mins,       \
                                          const float* bias, const float* scale, const T* residual, int rows, int outputs,      \
                                          int columns, int k, int scaled, int activation, int group, int passes) {              \
        const Finish<T> finish{y, bias, scale, residual, columns, activation};                                                 \
        linear_codes<T, BITS, M, R>(finish, x, codes, scales, mins, rows, outputs, k, scaled, group, passes);                   \
    }
#define FOR_TYPE(T, SUFFIX)                                                                                      \
    LINEAR_CODES(4, 1, 4, T, SUFFIX) LINEAR_CODES(4, 4, 4, T, SUFFIX) LINEAR_CODES(4, 8, 2, T, SUFFIX)           \
    LINEAR_CODES(8, 1, 4, T, SUFFIX) LINEAR_CODES(8, 4, 4, T, SUFFIX) LINEAR_CODES(8, 8, 2, T, SUFFIX)
FOR_TYPE(float, f32)
FOR_TYPE(bf16, bf16)
FOR_TYPE(f16, f16)
