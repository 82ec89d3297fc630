// Losses between two tensors and their gradients; the formulas are in mod.rs.
//
// Tensors    x, y, dx [n] f32; partial [blocks] f32, added up by reduce.cu.
// Mapping    forward: a block = a run of `per_block` elements. Backward: a thread = 16 bytes.
// Bytes      forward: x and y read. Backward: x and y read, dx written.
// Measured   on the emulator only, for correctness; no GPU figure exists yet.
#include "vec.cuh"
#include "block.cuh"

enum Loss { L1, MSE, LOG_L1, LOG_MSE };  // as in cuda.rs

// max(x, floor), except that NaN stays NaN.
__device__ __forceinline__ float at_least(float x, float floor) { return x < floor ? floor : x; }

__device__ __forceinline__ float sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }

__device__ __forceinline__ float term(int kind, float x, float y, float floor, float added) {
    if (kind == LOG_L1) {
        const float d = log10f(at_least(x, floor)) - log10f(at_least(y, floor));
        return d > 0.0f ? added * d : -d;
    }
    const float d = kind == LOG_MSE ? log10f(x + floor) - log10f(y + floor) : x - y;
    return kind == L1 ? fabsf(d) : d * d;
}

// `factor`: what the gradient is multiplied by, over n; the 2 of a square and log10(e) included.
__device__ __forceinline__ float slope(int kind, float x, float y, float floor, float added, float factor) {
    if (kind == LOG_L1) {
        const float s = sign(x - at_least(y, floor));
        return x < floor ? 0.0f : factor * (s > 0.0f ? added : s) / x;
    }
    if (kind == LOG_MSE) return factor * (log10f(x + floor) - log10f(y + floor)) / (x + floor);
    return factor * (kind == L1 ? sign(x - y) : x - y);
}

// `per_block` is a multiple of a vector.
extern "C" __global__ void loss_f32(float* partial, const float* x, const float* y, uint64_t n, uint64_t per_block, int kind, float floor,
    float added) {
    constexpr int N = LANES<float>;
    const uint64_t start = blockIdx.x * per_block, end = start + per_block < n ? start + per_block : n;
    float total = 0.0f;
    uint64_t i = start + threadIdx.x * N;
    for (; i + N <= end; i += (uint64_t)blockDim.x * N) {
        float u[N], v[N];
        load_vector(u, x + i);
        load_vector(v, y + i);
#pragma unroll
        for (int j = 0; j < N; j++) total += term(kind, u[j], v[j], floor, added);
    }
    for (; i < end; i++) total += term(kind, x[i], y[i], floor, added);
    total = block_sum(total);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

extern "C" __global__ void loss_backward_f32(float* dx, const float* x, const float* y, uint64_t n, int kind, float floor,
    float added, float factor) {
    zip(dx, x, y, n, [=](float x, float y) { return slope(kind, x, y, floor, added, factor); });
}
