// Elementwise activations; the formulas are in mod.rs.
//
// Tensors    x, y, dy, dx: n elements of T, any shape.
// Mapping    a thread = 16 bytes of each tensor. `kind` is the same for the whole grid, so its branch never diverges.
// Bytes      forward: x read, y written. Backward: dy and x read, dx written.
// Measured   on the emulator only, for correctness; no GPU figure exists yet.
//
// kernels: activation_f32 activation_bf16 activation_f16
// kernels: activation_backward_f32 activation_backward_bf16 activation_backward_f16
#include "activation.cuh"
#include "vec.cuh"

enum Kind { ELU, SILU, GELU, GELU_TANH, TANH };  // as in cuda.rs

constexpr float CUBIC = 0.044715f;

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
        default: return tanhf(x);
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
        default: return 4.0f * sigmoid_slope(x + x);
    }
}

#define ACTIVATION(T, NAME)                                                                                     \
    extern "C" __global__ void activation_##NAME(T* y, const T* x, uint64_t n, int kind) {                       \
        map(y, x, n, [=](float x) { return value(kind, x); });                                                  \
    }                                                                                                           \
    extern "C" __global__ void activation_backward_##NAME(T* dx, const T* dy, const T* x, uint64_t n, int kind) { \
        zip(dx, dy, x, n, [=](float g, float x) { return g * slope(kind, x); });                                \
    }
ACTIVATION(float, f32)
ACTIVATION(bf16, bf16)
ACTIVATION(f16, f16)
