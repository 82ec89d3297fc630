// Cross-entropy of logits with targets, a weighted mean, and its gradient.
//
//   lse[n] = log sum over v of e^x[n, v]      loss = sum w[n] (lse[n] - x[n, t[n]]) / W      W = sum w[n]
//   dx[n, v] = scale w[n] / W (e^(x[n, v] - lse[n]) - [v = t[n]])
//
// Tensors    x and dx [N, V] of T; t [N]; w, lse, terms [N], loss and W [1] float. A row with target -1 or weight 0 counts for nothing.
// Mapping    cross_entropy           block = row, a thread = 16 bytes at a time; each thread keeps a maximum and a sum relative to it
//                                    (online softmax), which the block merges. terms[n] = w (lse - x[t]).
//            cross_entropy_mean      one block adds terms and weights.
//            cross_entropy_backward  block = row, a thread = 16 bytes at a time.
// Bytes      forward: x once; a row that counts for nothing is not read. Backward: x read, dx written.
// Order      threads over their logits, shuffles, warps, rows: fixed by the shape.
// Ladder     v1 as above. No GPU has timed it yet.
//
// kernels: cross_entropy_f32 cross_entropy_bf16 cross_entropy_f16 cross_entropy_mean
// kernels: cross_entropy_backward_f32 cross_entropy_backward_bf16 cross_entropy_backward_f16
#include "vec.cuh"
#include "block.cuh"

constexpr int NONE = -1;

// f(x, v) of the thread's logits of a row.
template <typename T, int N, typename F>
__device__ __forceinline__ void each(const T* row, int classes, F f) {
    for (int first = threadIdx.x * N; first < classes; first += blockDim.x * N) {
        float x[N];
        load_vector(x, row + first);
        f(x, first);
    }
}

__device__ __forceinline__ float counted(int target, float weight) { return target == NONE ? 0.0f : weight; }

template <typename T, int N>
__device__ __forceinline__ void forward(float* terms, float* log_sums, const T* logits, const int* targets, const float* weights,
                                        int classes) {
    constexpr float LOWEST = -3.402823466e38f;  // finite, so that a difference is a number when all logits are -infinity
    const int64_t n = blockIdx.x;
    const int target = targets[n];
    const float weight = counted(target, weights[n]);
    if (weight == 0.0f) {
        if (threadIdx.x == 0) terms[n] = 0.0f;
        return;
    }
    const T* const row = logits + n * classes;
    float max = LOWEST, sum = 0.0f;
    each<T, N>(row, classes, [&](const float (&x)[N], int) {
        float larger = max;
#pragma unroll
        for (int j = 0; j < N; j++) larger = fmaxf(larger, x[j]);
        sum *= expf(max - larger);
        max = larger;
#pragma unroll
        for (int j = 0; j < N; j++) sum += expf(x[j] - max);
    });
    const float largest = block_max(max, LOWEST);
    const float log_sum = largest + logf(block_sum(sum * expf(max - largest)));
    if (threadIdx.x == 0) {
        const bool inside = target >= 0 && target < classes;
        terms[n] = weight * (inside ? log_sum - to_float(row[target]) : __int_as_float(0x7fc00000));
        log_sums[n] = log_sum;
    }
}

// One block.
extern "C" __global__ void cross_entropy_mean(float* loss, float* total_weight, const float* terms, const int* targets,
                                              const float* weights, int rows) {
    float total = 0.0f, weight = 0.0f;
    for (int n = threadIdx.x; n < rows; n += blockDim.x) {
        total += terms[n];
        weight += counted(targets[n], weights[n]);
    }
    total = block_sum(total);
    weight = block_sum(weight);
    if (threadIdx.x == 0) {
        *loss = total / weight;
        *total_weight = weight;
    }
}

template <typename T, int N>
__device__ __forceinline__ void backward(T* dx, const float* log_sums, const float* total_weight, const T* logits, const int* targets,
                                         const float* weights, float scale, int classes) {
    const int64_t n = blockIdx.x;
    const int target = targets[n];
    const float weight = counted(target, weights[n]);
    T* const to = dx + n * classes;
    if (weight == 0.0f) {
        const float zeros[N] = {};
        for (int v = threadIdx.x * N; v < classes; v += blockDim.x * N) store_vector(to + v, zeros);
        return;
    }
    const bool inside = target >= 0 && target < classes;
    const float factor = inside ? scale * weight / *total_weight : __int_as_float(0x7fc00000), log_sum = log_sums[n];
    each<T, N>(logits + n * classes, classes, [&](const float (&x)[N], int first) {
        float d[N];
#pragma unroll
        for (int j = 0; j < N; j++) d[j] = (expf(x[j] - log_sum) - (first + j == target ? 1.0f : 0.0f)) * factor;
        store_vector(to + first, d);
    });
}

#define CROSS_ENTROPY(T, NAME)                                                                                               \
    extern "C" __global__ void __launch_bounds__(1024)                                                                       \
        cross_entropy_##NAME(float* terms, float* log_sums, const T* logits, const int* targets, const float* weights,       \
                             int classes) {                                                                                  \
        if (classes % LANES<T> == 0)                                                                                         \
            forward<T, LANES<T>>(terms, log_sums, logits, targets, weights, classes);                                        \
        else                                                                                                                 \
            forward<T, 1>(terms, log_sums, logits, targets, weights, classes);                                               \
    }                                                                                                                        \
    extern "C" __global__ void __launch_bounds__(1024)                                                                       \
        cross_entropy_backward_##NAME(T* dx, const float* log_sums, const float* total_weight, const T* logits,              \
                                      const int* targets, const float* weights, float scale, int classes) {                  \
        if (classes % LANES<T> == 0)                                                                                         \
            backward<T, LANES<T>>(dx, log_sums, total_weight, logits, targets, weights, scale, classes);                     \
        else                                                                                                                 \
            backward<T, 1>(dx, log_sums, total_weight, logits, targets, weights, scale, classes);                            \
    }
CROSS_ENTROPY(float, f32)
CROSS_ENTROPY(bf16, bf16)
CROSS_ENTROPY(f16, f16)
