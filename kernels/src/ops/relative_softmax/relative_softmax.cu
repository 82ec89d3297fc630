// Weights of attention with a bias by distance, gated by the query.
//
//   s[i, j] = scale x[i, j] + gate[i] bias[j - i + T - 1]      y[i, j] = exp(s[i, j] - m[i]) / sum_j exp(s[i, j] - m[i])
//
// Tensors    x, y [T, S]; gate [T]; bias [T + S - 1], of the distances 1 - T to S - 1. f32.
// Mapping    a block = a row, a thread = every THREADS-th key.
// Bytes      x read (three times, from L2 after the first), y written; S floats of bias a row, from L2 after the first row.
// Measured   on the emulator only, for correctness; no GPU figure exists yet.
//
// kernels: relative_softmax_f32
#include "block.cuh"

constexpr int THREADS = 256;

extern "C" __global__ void __launch_bounds__(THREADS)
    relative_softmax_f32(float* y, const float* x, const float* gate, const float* bias, int queries, int keys, float scale) {
    const int i = blockIdx.x;
    y += (int64_t)i * keys;
    x += (int64_t)i * keys;
    bias += queries - 1 - i;
    const float g = gate[i];
    const auto score = [&](int j) { return fmaf(scale, x[j], g * bias[j]); };
    float most = score(0);
    for (int j = threadIdx.x; j < keys; j += THREADS) most = larger(most, score(j));
    most = block_max(most, most);
    float sum = 0.0f;
    for (int j = threadIdx.x; j < keys; j += THREADS) sum += expf(score(j) - most);
    const float inverse = 1.0f / block_sum(sum);
    for (int j = threadIdx.x; j < keys; j += THREADS) y[j] = expf(score(j) - most) * inverse;
}
