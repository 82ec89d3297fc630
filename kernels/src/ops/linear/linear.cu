// Linear layers, y = residual + scale activation(x W^T + bias): over few rows, the weights read once for up to 16 of them, and
// over many by tiles. The layer says which, never the number of rows: they sum in different orders.
//
//   sum[m, n] = sum_k x[m, k] w[n, k]
//
// Tensors    x [rows, K], w [N, K], y and residual [rows, N] in T; bias [N], scale [N] f32. With a gate, y, residual and scale have
//            N / 2 columns: silu(sum[n] + bias[n]) (sum[n + N/2] + bias[n + N/2]).
// Mapping    few rows: a group of 8 to 128 threads, decided by K alone, has R rows of w; a block has 128 threads. A thread takes 16 bytes of
//            each of its rows, then those `group` vectors further. blockIdx.x: passes of M rows of x, fastest, then rows of w.
//            Tiles: those of gemm.cuh, columns first; with a gate, the rows of w by turns from both halves, so that a thread has
//            the two sums that it multiplies.
// Memory     w past the L1 cache, R vectors of a thread at a time on their way; x through shared memory, M rows of a chunk of K. With one
//            row, the first vectors of w are asked for before the kernels before have ended.
// Order      a thread over its vectors, shuffles, the warps of a group in ascending order: decided by K and the type alone, so that
//            neither the number of rows nor M changes a bit. Each sum is a chain of its own: M R of them a thread. Tiles: gemm.cuh.
// Bytes      N K of w and rows K of x read, rows N written; w is read again from the L2 cache for every further M rows.
// Ladder     v1: R = 4 rows of w a group (2 with M = 16, for registers). Not yet timed on any GPU.
//
// kernels: linear_16x64_f32 linear_64x64_f32 linear_128x128_f32 linear_16x64_bf16 linear_64x64_bf16 linear_128x128_bf16
// kernels: linear_16x64_f16 linear_64x64_f16 linear_128x128_f16
// kernels: linear_4_f32 linear_16_f32 linear_4_bf16 linear_16_bf16 linear_4_f16 linear_16_f16
// dependents: linear_1_f32 linear_1_bf16 linear_1_f16
#include "few_rows.cuh"
#include "linear_tile.cuh"

template <typename T, int N, int M, int R>
__device__ __forceinline__ void linear(const Finish<T>& finish, const T* x, const T* w, int rows, int outputs, int k, int group,
                                       int passes) {
    constexpr int CHUNK = STAGED_BYTES / (M * sizeof(T));  // a multiple of what a group takes at a time
    DYNAMIC_SHARED(T, staged);                             // M rows of a chunk of x
    const FewRows<T, M, R> few(finish, outputs, group, passes);
    const T* row_of_w[R];
#pragma unroll
    for (int r = 0; r < R; r++) row_of_w[r] = w + (uint64_t)few.row_of_w(r) * k;

    float sum[M][R] = {};
    for (int base = 0; base < k; base += CHUNK) {
        const int count = min(k - base, CHUNK);  // of several, a group is the block, and a thread reads what it staged itself
#pragma unroll 1
        for (int m = 0; m < M; m++) {
            const T* const row = x + (uint64_t)(few.first_row + m) * k + base;
            for (int i = threadIdx.x * N; i < count; i += THREADS * N) {
                float v[N] = {};
                if (few.first_row + m < rows) load_vector(v, row + i);
                store_vector(staged + m * CHUNK + i, v);
            }
        }
        __syncthreads();
#pragma unroll(M == 1 ? 4 : 1)
        for (int i = few.lane * N; i < count; i += group * N) {
            float a[R][N];
#pragma unroll
            for (int r = 0; r < R; r++) load_vector_once(a[r], row_of_w[r] + base + i);
            add_products(sum, a, staged + i, CHUNK);
        }
    }
    few.store(sum, rows);
}

// `vector`: K divides into 16 bytes.
#define LINEAR(M, R, T, SUFFIX)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                                                      \
        linear_##M##_##SUFFIX(T* y, const T* x, const T* w, const float* bias, const float* scale, const T* residual, int rows,    \
                              int outputs, int columns, int k, int activation, int group, int passes, int vector) {               \
        const Finish<T> finish{y, bias, scale, residual, columns, activation};                                                    \
        if constexpr (M == 1) FewRows<T, M, R>(finish, outputs, group, passes).begin(w, (uint64_t)k * sizeof(T));                 \
        if (vector)                                                                                                               \
            linear<T, LANES<T>, M, R>(finish, x, w, rows, outputs, k, group, passes);                                             \
        else                                                                                                                      \
            linear<T, 1, M, R>(finish, x, w, rows, outputs, k, group, passes);                                                    \
    }
#define FOR_TYPE(T, SUFFIX)                                                              \
    LINEAR(1, 4, T, SUFFIX) LINEAR(4, 4, T, SUFFIX) LINEAR(16, 2, T, SUFFIX)             \
    LINEAR_TILE(linear_16x64_##SUFFIX, Tile16x64, T, TensorCore<T>::available)           \
    LINEAR_TILE(linear_64x64_##SUFFIX, Tile64x64, T, TensorCore<T>::available)           \
    LINEAR_TILE(linear_128x128_##SUFFIX, Tile128x128, T, TensorCore<T>::available)
FOR_TYPE(float, f32)
FOR_TYPE(bf16, bf16)
FOR_TYPE(f16, f16)
