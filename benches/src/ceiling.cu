// Nothing but arithmetic: what this chip can do at most, in the instructions that the kernels here use.
#include "mma.cuh"

// Independent chains, so that latency is hidden; a result that is stored, so that nothing is removed.
constexpr int CHAINS = 8;

extern "C" __global__ void fma_f32(float* out, int steps) {
    float x[CHAINS];
    const float a = 1.0f + threadIdx.x * 1e-9f, b = 1e-9f * blockIdx.x;
    for (int c = 0; c < CHAINS; c++) x[c] = c;
    for (int i = 0; i < steps; i++) {
        for (int c = 0; c < CHAINS; c++) x[c] = fmaf(x[c], a, b);
    }
    float sum = 0;
    for (int c = 0; c < CHAINS; c++) sum += x[c];
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

template <class T>
__device__ void tensor_core(float* out, int steps) {
    float d[CHAINS][4] = {};
    // Ordinary numbers in either type: a chip draws less power, and clocks higher, on zeros.
    const unsigned x = 0x3c013c02 + threadIdx.x % 32, a[4] = {x, x + 7, x + 13, x + 29}, b[2] = {x + 3, x + 17};
    if constexpr (TensorCore<T>::available) {
        for (int i = 0; i < steps; i++) {
            for (int c = 0; c < CHAINS; c++) multiply_accumulate(d[c], a, b, T());
        }
    }
    float sum = 0;
    for (int c = 0; c < CHAINS; c++) sum += d[c][0] + d[c][1] + d[c][2] + d[c][3];
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

extern "C" __global__ void mma_f16(float* out, int steps) { tensor_core<f16>(out, steps); }
extern "C" __global__ void mma_bf16(float* out, int steps) { tensor_core<bf16>(out, steps); }
