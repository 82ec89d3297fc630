// Codebooks learnt by averages.
//
//   statistics  counts_k = |{i : code_i = k}|,  sums_k = sum over those i, in ascending order, of x_i
//   embedding   e_k = sum_k / max(usage_k, epsilon)
//   replace     usage_k = value, sum_k = value sample_m        for k = rows_m, each at most once
//
// x [N, D], codes [N], counts and usage [K], sums, sum and e [K, D], samples [M, D]; row-major f32, codes i32.
//
// Mapping
//   statistics  a block owns codeword blockIdx.x and 256 columns; it lists its own of all codes in order (block.cuh) and
//               adds their rows, a thread a column. No atomics: the sum is the CPU's, bit for bit.
//   embedding   a thread an element.
//   replace     a thread 16 bytes of a row, or an element if rows are not made of those.
// Bytes
//   statistics  4 (N D + K D + K), and 4 N K of codes, which stay in L2       the others  each operand once
// Ladder
//   v1  as above. No GPU has timed it yet. Next: sort the codes first where N K is large.

#include "vec.cuh"
#include "block.cuh"

#define THREADS 256

extern "C" __global__ void __launch_bounds__(THREADS) codebook_statistics_f32(float* counts, float* sums, const float* x,
    const int* codes, int n, int d) {
    const int codeword = blockIdx.x, column = blockIdx.y * THREADS + threadIdx.x;
    float sum = 0.0f;
    const int count = for_selected<THREADS>(n, [=](int i) { return codes[i] == codeword; }, [&](int i) {
        if (column < d) sum = __fadd_rn(sum, x[(size_t)i * d + column]);
    });
    if (column < d) sums[(size_t)codeword * d + column] = sum;
    if (blockIdx.y == 0 && threadIdx.x == 0) counts[codeword] = (float)count;
}

extern "C" __global__ void __launch_bounds__(THREADS) codebook_embedding_f32(float* embedding, const float* usage,
    const float* sum, float epsilon, int k, int d) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= k * d) return;
    const float used = usage[i / d];
    embedding[i] = __fdiv_rn(sum[i], used > epsilon ? used : epsilon);
}

template <int N>
__device__ __forceinline__ void replace(float* sum, float* usage, const int* rows, const float* samples, float value, int m, int d) {
    const int i = (blockIdx.x * THREADS + threadIdx.x) * N;
    if (i >= m * d) return;
    const int row = rows[i / d], column = i % d;
    float v[N];
    load_vector(v, samples + i);
#pragma unroll
    for (int e = 0; e < N; e++) v[e] = __fmul_rn(value, v[e]);
    store_vector(sum + (size_t)row * d + column, v);
    if (column == 0) usage[row] = value;
}

extern "C" __global__ void __launch_bounds__(THREADS) codebook_replace_f32(float* sum, float* usage, const int* rows,
    const float* samples, float value, int m, int d) {
    if (d % 4 == 0)
        replace<4>(sum, usage, rows, samples, value, m, d);
    else
        replace<1>(sum, usage, rows, samples, value, m, d);
}
