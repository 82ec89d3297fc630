// One step of a long short-term memory, after its product: c = sigmoid(f) c + sigmoid(i) tanh(g), h = sigmoid(o) tanh(c).
//
// Tensors    gates [items, steps, 4 H] and recurrent [items, 4 H] of T, whose sum is (i, f, g, o); hidden [items, H] of T and
//            cell [items, H] of float are replaced; y [items, steps, H] of T gets h at step t.
// Mapping    a thread = four of h, so that neighbours' floats of the cell adjoin, or one where H does not divide so; blocks in y = items.
// Bytes      a step of gates, recurrent and cell read; cell, hidden and a step of y written. The product before it, which reads 4 H H
//            weights, weighs far more.
// Measured   on the emulator only, for correctness; no GPU figure exists yet.
//
// kernels: lstm_f32 lstm_bf16 lstm_f16
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

#define LSTM(T, NAME)                                                                                                        \
    extern "C" __global__ void lstm_##NAME(T* y, T* hidden, float* cell, const T* gates, const T* recurrent, int steps, int t, \
                                           int H, int vector) {                                                              \
        if (vector)                                                                                                          \
            step<T, 4>(y, hidden, cell, gates, recurrent, steps, t, H);                                                      \
        else                                                                                                                 \
            step<T, 1>(y, hidden, cell, gates, recurrent, steps, t, H);                                                      \
    }
LSTM(float, f32)
LSTM(bf16, bf16)
LSTM(f16, f16)
