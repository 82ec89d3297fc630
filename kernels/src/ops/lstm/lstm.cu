// One step of a long short-term memory, after its product: c = sigmoid(f) c + sigmoid(i) tanh(g), h = sigmoid(o) tanh(c).
//
// Tensors    gates [items, steps, 4 H] and recurrent [items, 4 H] of T, whose sum is (i, f, g, o); hidden [items, H] of T and
//            cell [items, H] of float are replaced; y [items, steps, H] of T gets h at step t.
// Backward   lstm_cells: cells [items, steps, H] of float from sums [items, steps, 4 H] of T, all steps of a thread in turn.
//            lstm_backward: step t from dy [items, steps, H] and pulled [items, H] of T, what the next step's product gives back; cell
//            [items, H] of float is the gradient that the next cell passes on, and replaced; dgates [items, steps, 4 H] gets step t,
//            gates [items, 4 H] the same for the product.
// Mapping    a thread = four of h, so that neighbours' floats of the cell adjoin, or one where H does not divide so; blocks in y = items.
// Bytes      a step of gates, recurrent and cell read; cell, hidden and a step of y written. The product before it, which reads 4 H H
//            weights, weighs far more.
// Measured   on the emulator only, for correctness; no GPU figure exists yet.
//
// kernels: lstm_f32 lstm_bf16 lstm_f16 lstm_cells_f32 lstm_cells_bf16 lstm_cells_f16 lstm_backward_f32 lstm_backward_bf16 lstm_backward_f16
#include "activation.cuh"
#include "vec.cuh"

template <typename T, int N>
__device__ __forceinline__ void step(T* y, T* hidden, float* cell, const T* gates, const T* recurrent, int steps, int t, int H) {
    const int n = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (n >= H) return;
    const int64_t item = blockIdx.y, row = item * steps + t;
    float z[4][N], c[N], h[N];
#pragma unroll
    for (int gate = 0; gate < 4; gate++) {
        float r[N];
        load_vector(z[gate], gates + row * 4 * H + gate * H + n);
        load_vector(r, recurrent + item * 4 * H + gate * H + n);
#pragma unroll
        for (int j = 0; j < N; j++) z[gate][j] += r[j];
    }
    load_vector(c, cell + item * H + n);
#pragma unroll
    for (int j = 0; j < N; j++) {
        c[j] = sigmoid(z[1][j]) * c[j] + sigmoid(z[0][j]) * tanhf(z[2][j]);
        h[j] = sigmoid(z[3][j]) * tanhf(c[j]);
    }
    store_vector(cell + item * H + n, c);
    store_vector(hidden + item * H + n, h);
    store_vector(y + row * H + n, h);
}

template <typename T, int N>
__device__ __forceinline__ void all_cells(float* cells, const T* sums, int steps, int H) {
    const int n = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (n >= H) return;
    float c[N] = {};
    for (int t = 0; t < steps; t++) {
        const int64_t row = (int64_t)blockIdx.y * steps + t;
        float i[N], f[N], g[N];
        load_vector(i, sums + row * 4 * H + n);
        load_vector(f, sums + row * 4 * H + H + n);
        load_vector(g, sums + row * 4 * H + 2 * H + n);
#pragma unroll
        for (int j = 0; j < N; j++) c[j] = sigmoid(f[j]) * c[j] + sigmoid(i[j]) * tanhf(g[j]);
        store_vector(cells + row * H + n, c);
    }
}

template <typename T, int N>
__device__ __forceinline__ void step_backward(T* dgates, T* gates, float* cell, const T* pulled, const T* dy, const T* sums,
                                              const float* cells, int steps, int t, int H) {
    const int n = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (n >= H) return;
    const int64_t item = blockIdx.y, row = item * steps + t;
    float z[4][N], dh[N], more[N], dc[N], c[N], before[N] = {};
#pragma unroll
    for (int gate = 0; gate < 4; gate++) load_vector(z[gate], sums + row * 4 * H + gate * H + n);
    load_vector(dh, dy + row * H + n);
    load_vector(more, pulled + item * H + n);
    load_vector(dc, cell + item * H + n);
    load_vector(c, cells + row * H + n);
    if (t > 0) load_vector(before, cells + (row - 1) * H + n);
#pragma unroll
    for (int j = 0; j < N; j++) {
        const float i = sigmoid(z[0][j]), f = sigmoid(z[1][j]), g = tanhf(z[2][j]), o = sigmoid(z[3][j]), through = tanhf(c[j]);
        const float h = dh[j] + more[j], d = dc[j] + h * o * (1.0f - through * through);
        dc[j] = d * f;
        z[0][j] = d * g * (i * (1.0f - i));
        z[1][j] = d * before[j] * (f * (1.0f - f));
        z[2][j] = d * i * (1.0f - g * g);
        z[3][j] = h * through * (o * (1.0f - o));
    }
    store_vector(cell + item * H + n, dc);
#pragma unroll
    for (int gate = 0; gate < 4; gate++) {
        store_vector(dgates + row * 4 * H + gate * H + n, z[gate]);
        store_vector(gates + item * 4 * H + gate * H + n, z[gate]);
    }
}

#define LSTM(T, NAME)                                                                                                        \
    extern "C" __global__ void lstm_##NAME(T* y, T* hidden, float* cell, const T* gates, const T* recurrent, int steps, int t, \
                                           int H, int vector) {                                                              \
        if (vector)                                                                                                          \
            step<T, 4>(y, hidden, cell, gates, recurrent, steps, t, H);                                                      \
        else                                                                                                                 \
            step<T, 1>(y, hidden, cell, gates, recurrent, steps, t, H);                                                      \
    }                                                                                                                        \
    extern "C" __global__ void lstm_cells_##NAME(float* cells, const T* sums, int steps, int H, int vector) {                \
        if (vector)                                                                                                          \
            all_cells<T, 4>(cells, sums, steps, H);                                                                          \
        else                                                                                                                 \
            all_cells<T, 1>(cells, sums, steps, H);                                                                          \
    }                                                                                                                        \
    extern "C" __global__ void lstm_backward_##NAME(T* dgates, T* gates, float* cell, const T* pulled, const T* dy,          \
                                                    const T* sums, const float* cells, int steps, int t, int H, int vector) { \
        if (vector)                                                                                                          \
            step_backward<T, 4>(dgates, gates, cell, pulled, dy, sums, cells, steps, t, H);                                  \
        else                                                                                                                 \
            step_backward<T, 1>(dgates, gates, cell, pulled, dy, sums, cells, steps, t, H);                                  \
    }
LSTM(float, f32)
LSTM(bf16, bf16)
LSTM(f16, f16)
