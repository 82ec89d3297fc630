// Softsign, y = x / (1 + |x| / limit).
//
// Tensors    x, y, dy, dx: n elements of T, any shape.
// Mapping    a thread = 16 bytes of each tensor.
// Bytes      forward: x read, y written. Backward: dy and x read, dx written.
// Measured   on the emulator only, for correctness; no GPU figure exists yet.
//
// kernels: template_f32 template_bf16 template_f16
// kernels: template_backward_f32 template_backward_bf16 template_backward_f16
#include "vec.cuh"

__device__ __forceinline__ float divisor(float x, float limit) { return 1.0f + fabsf(x) / limit; }

#define KERNELS(T, suffix)                                                                                             \
    extern "C" __global__ void template_##suffix(T* y, const T* x, uint64_t n, float limit) {                          \
        map(y, x, n, [=](float x) { return x / divisor(x, limit); });                                                  \
    }                                                                                                                  \
    extern "C" __global__ void template_backward_##suffix(T* dx, const T* dy, const T* x, uint64_t n, float limit) {   \
        zip(dx, dy, x, n, [=](float dy, float x) { return dy / (divisor(x, limit) * divisor(x, limit)); });            \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
KERNELS(f16, f16)
