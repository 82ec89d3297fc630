// Rows copied, reflected at the ends of a signal: y[b, t, :] = x[b, r(t - left), :].
//
// Tensors    x [items, rows, C], y [items, rows_out, C] of T. r(p) = |p|, beyond the last of `reflected` rows 2 (reflected - 1) - p;
//            rows of x that are not there are zero.
// Mapping    a thread = 16 bytes of a row of y, or an element where rows do not divide so; blocks in y = items.
// Bytes      y written, x read once but for the rows that are reflected, which are in cache.
// Measured   on the emulator only, for correctness; no GPU figure exists yet.
//
// kernels: pad_f32 pad_bf16 pad_f16
#include "vec.cuh"

template <typename T, int N>
__device__ __forceinline__ void copy_rows(T* y, const T* x, int rows_out, int rows, int reflected, int left, int channels) {
    const int runs = channels / N;
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows_out * runs) return;
    const int t = i / runs;
    int p = max(t - left, left - t);
    if (p >= reflected) p = 2 * (reflected - 1) - p;
    const bool inside = p < rows;
    const int from = p * runs + (i - t * runs);
    const int64_t item = blockIdx.y;
    float v[N] = {};
    if (inside) load_vector(v, x + (item * rows * runs + from) * N);
    store_vector(y + (item * rows_out * runs + i) * N, v);
}

#define PAD(T, NAME)                                                                                                         \
    extern "C" __global__ void pad_##NAME(T* y, const T* x, int rows_out, int rows, int reflected, int left, int channels,    \
                                          int vector) {                                                                      \
        if (vector)                                                                                                          \
            copy_rows<T, LANES<T>>(y, x, rows_out, rows, reflected, left, channels);                                         \
        else                                                                                                                 \
            copy_rows<T, 1>(y, x, rows_out, rows, reflected, left, channels);                                                \
    }
PAD(float, f32)
PAD(bf16, bf16)
PAD(f16, f16)
