// Softsign, y = x / (1 + |x|).
//
// Tensors    x, y: n elements of T, any shape.
// Mapping    a thread = 16 bytes of each tensor.
// Bytes      x read, y written.
// Measured   on the emulator only, for correctness; no GPU figure exists yet.
//
// kernels: template_f32 template_bf16 template_f16
#include "vec.cuh"

struct Softsign {
    __device__ __forceinline__ float operator()(float x) const { return x / (1.0f + fabsf(x)); }
};

#define KERNEL(T, suffix) \
    extern "C" __global__ void template_##suffix(T* y, const T* x, uint64_t n) { map(y, x, n, Softsign()); }
KERNEL(float, f32)
KERNEL(bf16, bf16)
KERNEL(f16, f16)
