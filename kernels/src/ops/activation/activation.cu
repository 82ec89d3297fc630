// Elementwise activations and gates; the formulas are in mod.rs.
//
// Tensors    x, y, dy, dx: n elements of T, any shape; of a gate x [R, 2 H], y [R, H].
// Mapping    a thread = 16 bytes of each tensor; of a gate a block = (row, part of it). `kind` is the same for the whole grid, so its
//            branch never diverges.
// Bytes      forward and gate: x read, y written. Backward: dy and x read, dx written.
// Measured   on the emulator only, for correctness; no GPU figure exists yet.
//
// kernels: activation_f32 activation_bf16 activation_f16 activation_gate_f32 activation_gate_bf16 activation_gate_f16
// kernels: activation_backward_f32 activation_backward_bf16 activation_backward_f16
// kernels: leaky_relu_f32 leaky_relu_bf16 leaky_relu_f16
// kernels: leaky_relu_backward_f32 leaky_relu_backward_bf16 leaky_relu_backward_f16
#include "activation.cuh"
#include "vec.cuh"

enum Kind { IDENTITY, ELU, SILU, GELU, GELU_TANH, TANH, SIGMOID, RELU, LEAKY_RELU, MISH, SOFTSIGN };  // as in cuda.rs

constexpr float CUBIC = 0.044715f;
constexpr float LEAK = 0.01f;   // of leaky_relu
constexpr float STEEP = 20.0f;  // from where on mish is its argument
constexpr int THREADS = 256;    // of a gate

// sigmoid (1 - sigmoid) without its cancellation; a quarter of 1 - tanh^2(x / 2).
__device__ __forceinline__ float sigmoid_slope(float x) {
    const float e = expf(-fabsf(x));
    return e / ((1.0f + e) * (1.0f + e));
}
// Twice the argument of the hyperbolic tangent: (1 + tanh u) / 2 = sigmoid(2 u).
__device__ __forceinline__ float inner(float x) { return 2.0f * SLOPE * (x + CUBIC * x * x * x); }

__device__ __forceinline__ float value(int kind, float x) {
    switch (kind) {
        case ELU: return x > 0.0f ? x : expm1f(x);
        case SILU: return x * sigmoid(x);
        case GELU: return x * normal_cdf(x);
        case GELU_TANH: return x * sigmoid(inner(x));
        case TANH: return tanhf(x);
        case SIGMOID: return sigmoid(x);
        case RELU: return x < 0.0f ? 0.0f : x;
        case LEAKY_RELU: return x < 0.0f ? LEAK * x : x;
        case MISH: {
            const float e = expf(x), n = e * (e + 2.0f);
            return x > STEEP ? x : x * (n / (n + 2.0f));
        }
        case SOFTSIGN: return x / (1.0f + fabsf(x));
        default: return x;
    }
}

__device__ __forceinline__ float slope(int kind, float x) {
    switch (kind) {
        case ELU: return x > 0.0f ? 1.0f : expf(x);
        case SILU: return sigmoid(x) + x * sigmoid_slope(x);
        case GELU: return normal_cdf(x) + x * (0.5f * SLOPE * expf(-0.5f * x * x));
        case GELU_TANH: {
            const float v = inner(x);
            return sigmoid(v) + x * sigmoid_slope(v) * (2.0f * SLOPE * (1.0f + 3.0f * CUBIC * x * x));
        }
        case TANH: return 4.0f * sigmoid_slope(x + x);
        case SIGMOID: return sigmoid_slope(x);
        case RELU: return x > 0.0f ? 1.0f : 0.0f;
        case LEAKY_RELU: return x > 0.0f ? 1.0f : LEAK;
        case MISH: {
            const float e = expf(x), n = e * (e + 2.0f);
            return x > STEEP ? 1.0f : n / (n + 2.0f) + x * (4.0f * e * (1.0f + e) / ((n + 2.0f) * (n + 2.0f)));
        }
        case SOFTSIGN: return 1.0f / ((1.0f + fabsf(x)) * (1.0f + fabsf(x)));
        default: return 1.0f;
    }
}

// y[r] = f(u) v, x[r] = [u; v].
template <typename T, int N>
__device__ __forceinline__ void gate(T* y, const T* x, int half, int kind) {
    const int64_t at = ((int64_t)blockIdx.y * THREADS + threadIdx.x) * N, row = blockIdx.x;
    if (at >= half) return;
    float u[N], v[N];
    load_vector(u, x + 2 * row * half + at);
    load_vector(v, x + (2 * row + 1) * half + at);
#pragma unroll
    for (int j = 0; j < N; j++) u[j] = value(kind, u[j]) * v[j];
    store_vector(y + row * half + at, u);
}

#define ACTIVATION(T, NAME)                                                                                     \
    extern "C" __global__ void activation_##NAME(T* y, const T* x, uint64_t n, int kind) {                       \
        map(y, x, n, [=](float x) { return value(kind, x); });                                                  \
    }                                                                                                           \
    extern "C" __global__ void activation_backward_##NAME(T* dx, const T* dy, const T* x, uint64_t n, int kind) { \
        zip(dx, dy, x, n, [=](float g, float x) { return g * slope(kind, x); });                                \
    }                                                                                                           \
    extern "C" __global__ void leaky_relu_##NAME(T* y, const T* x, uint64_t n, float slope) {                    \
        map(y, x, n, [=](float x) { return x < 0.0f ? slope * x : x; });                                        \
    }                                                                                                           \
    extern "C" __global__ void leaky_relu_backward_##NAME(T* dx, const T* dy, const T* y, uint64_t n, float slope) { \
        zip(dx, dy, y, n, [=](float g, float y) { return y > 0.0f ? g : slope * g; });                          \
    }                                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                       \
        activation_gate_##NAME(T* y, const T* x, int half, int kind, int vector) {                              \
        if (vector)                                                                                             \
            gate<T, LANES<T>>(y, x, half, kind);                                                                \
        else                                                                                                    \
            gate<T, 1>(y, x, half, kind);                                                                       \
    }
ACTIVATION(float, f32)
ACTIVATION(bf16, bf16)
ACTIVATION(f16, f16)
