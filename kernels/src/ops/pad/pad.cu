// Rows copied, reflected at the ends of a signal: y[b, t, :] = x[b, r(t - left), :].
//
// Tensors    x [items, rows, C], y [items, rows_out, C] of T. r(p) = |p|, beyond the last of `reflected` rows 2 (reflected - 1) - p;
//            rows of x that are not there are zero.
// Mapping    a thread = 16 bytes of a row of y, or an element where rows do not divide so; an item has blocks of its own.
//            pad_backward: the same of dx, which adds the rows of dy that it became. concat: the same of a part.
// Bytes      y written, x read once but for the rows that are reflected, which are in cache. pad_backward: dy read, dx written.
//            concat: all parts read, y written.
// Measured   on the emulator only, for correctness; no GPU figure exists yet.
//
// kernels: pad_f32 pad_bf16 pad_f16 pad_backward_f32 pad_backward_bf16 pad_backward_f16 concat_f32 concat_bf16 concat_f16
#include "vec.cuh"

// What a thread has: run `i` of the `runs` of an item, if there are so many.
struct Own {
    int64_t item;
    int i;

    __device__ __forceinline__ explicit Own(int runs) {
        const int blocks = (runs + blockDim.x - 1) / blockDim.x, block = blockIdx.x;
        item = block / blocks;
        i = block % blocks * blockDim.x + threadIdx.x;
    }
};

template <typename T, int N>
__device__ __forceinline__ void copy_rows(T* y, const T* x, int rows_out, int rows, int reflected, int left, int channels) {
    const int runs = channels / N;
    const Own own(rows_out * runs);
    const int64_t item = own.item;
    const int i = own.i;
    if (i >= rows_out * runs) return;
    const int t = i / runs;
    int p = max(t - left, left - t);
    if (p >= reflected) p = 2 * (reflected - 1) - p;
    const bool inside = p < rows;
    const int from = p * runs + (i - t * runs);
    float v[N] = {};
    if (inside) load_vector(v, x + (item * rows * runs + from) * N);
    store_vector(y + (item * rows_out * runs + i) * N, v);
}

template <typename T, int N>
__device__ __forceinline__ void add_rows(T* dx, const T* dy, int rows_out, int rows, int reflected, int left, int channels) {
    const int runs = channels / N;
    const Own own(rows * runs);
    const int64_t item = own.item;
    const int i = own.i;
    if (i >= rows * runs) return;
    const int t = i / runs, last = reflected - 1;
    float sum[N] = {};
#pragma unroll
    for (int way = 0; way < 3; way++) {
        // As it is; mirrored at the first row, which is not repeated; mirrored at the last.
        const int u = way == 0 ? left + t : way == 1 ? left - t : left + 2 * last - t;
        if (u < 0 || u >= rows_out || (way == 1 && t == 0) || (way == 2 && t >= last)) continue;
        float v[N];
        load_vector(v, dy + (item * rows_out * runs + u * runs + (i - t * runs)) * N);
#pragma unroll
        for (int j = 0; j < N; j++) sum[j] += v[j];
    }
    store_vector(dx + (item * rows * runs + i) * N, sum);
}

template <typename T, int N>
__device__ __forceinline__ void put_rows(T* y, const T* part, int rows_out, int rows, int first, int channels) {
    const int runs = channels / N;
    const Own own(rows * runs);
    const int64_t item = own.item;
    const int i = own.i;
    if (i >= rows * runs) return;
    float v[N];
    load_vector(v, part + (item * rows * runs + i) * N);
    store_vector(y + ((item * rows_out + first) * runs + i) * N, v);
}

#define PAD(T, NAME)                                                                                                         \
    extern "C" __global__ void pad_##NAME(T* y, const T* x, int rows_out, int rows, int reflected, int left, int channels,    \
                                          int vector) {                                                                      \
        if (vector)                                                                                                          \
            copy_rows<T, LANES<T>>(y, x, rows_out, rows, reflected, left, channels);                                         \
        else                                                                                                                 \
            copy_rows<T, 1>(y, x, rows_out, rows, reflected, left, channels);                                                \
    }                                                                                                                        \
    extern "C" __global__ void pad_backward_##NAME(T* dx, const T* dy, int rows_out, int rows, int reflected, int left,       \
                                                   int channels, int vector) {                                               \
        if (vector)                                                                                                          \
            add_rows<T, LANES<T>>(dx, dy, rows_out, rows, reflected, left, channels);                                        \
        else                                                                                                                 \
            add_rows<T, 1>(dx, dy, rows_out, rows, reflected, left, channels);                                               \
    }                                                                                                                        \
    extern "C" __global__ void concat_##NAME(T* y, const T* part, int rows_out, int rows, int first, int channels, int vector) { \
        if (vector)                                                                                                          \
            put_rows<T, LANES<T>>(y, part, rows_out, rows, first, channels);                                                 \
        else                                                                                                                 \
            put_rows<T, 1>(y, part, rows_out, rows, first, channels);                                                        \
    }
PAD(float, f32)
PAD(bf16, bf16)
PAD(f16, f16)
