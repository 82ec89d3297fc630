#include "types.cuh"

// Every index the hardware gives, in a grid and block of three dimensions.
extern "C" __global__ void indices(int* y) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    y[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}

extern "C" __global__ void shuffles(int* y) {
    const int lane = threadIdx.x % 32, v = 100 + lane;
    int* out = y + threadIdx.x;
    out[0] = __shfl_sync(~0u, v, 5);
    out[32] = __shfl_sync(~0u, v, 3, 8);
    out[64] = __shfl_up_sync(~0u, v, 2);
    out[96] = __shfl_up_sync(~0u, v, 2, 16);
    out[128] = __shfl_down_sync(~0u, v, 3);
    out[160] = __shfl_down_sync(~0u, v, 3, 4);
    out[192] = __shfl_xor_sync(~0u, v, 16);
    out[224] = __shfl_xor_sync(~0u, v, 9, 8);
    const double wide = __shfl_xor_sync(~0u, lane * 1e10, 1);
    out[256] = (int)(wide / 1e10);
    int half = 0;  // two groups of one warp meet at different places
    if (lane < 16) half = __shfl_xor_sync(0x0000ffffu, v, 1);
    else half = __shfl_xor_sync(0xffff0000u, v, 2);
    out[288] = half;
}

extern "C" __global__ void votes(unsigned* y) {
    const int lane = threadIdx.x;
    y[lane] = __ballot_sync(~0u, lane % 3 == 0);
    y[32 + lane] = __any_sync(~0u, lane == 4) + 2 * __any_sync(~0u, lane > 40) + 4 * __all_sync(~0u, lane < 32) + 8 * __all_sync(~0u, lane < 31);
    y[64 + lane] = __syncthreads_count(lane < 7) + 100 * __syncthreads_and(lane < 32) + 200 * __syncthreads_and(lane < 31) +
                   400 * __syncthreads_or(lane == 9) + 800 * __syncthreads_or(lane > 31);
    y[96 + lane] = __popc(0xf0f0u) + 100 * __ffs(8) + 1000 * __clz(1) + 100000 * (__brev(1u) == 0x80000000u);
}

// A partial warp and early exits do not disturb those who remain.
extern "C" __global__ void early_exit(int* y, int n) {
    if ((int)threadIdx.x >= n) return;
    __syncthreads();
    const unsigned mask = __ballot_sync(~0u, 1);
    y[threadIdx.x] = __popc(mask);
}

extern "C" __global__ void atomics(int* ints, unsigned* uints, unsigned long long* wide, float* floats) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(ints, 1);
    atomicMax(ints + 1, i);
    atomicMin(ints + 2, -i);
    if (atomicCAS(ints + 3, 0, 1) == 0) atomicExch(ints + 4, 7);
    atomicMax(uints, 0x80000000u + i);
    atomicOr(uints + 1, 1u << (i % 32));
    atomicAdd(wide, 1ull << 33);
    atomicMax(wide + 1, (unsigned long long)i << 32);
    atomicAdd(floats, 1.f);
}

// y = x summed over all blocks: two phases with a grid barrier between, three times over.
extern "C" __global__ void grid_sum(float* y, float* partial, const float* x, unsigned* state) {
    __shared__ float sum;
    float total = 0;
    for (int round = 0; round < 3; round++) {
        if (threadIdx.x == 0) sum = 0;
        __syncthreads();
        atomicAdd(&sum, x[blockIdx.x * blockDim.x + threadIdx.x]);
        __syncthreads();
        if (threadIdx.x == 0) partial[blockIdx.x] = sum * (round + 1);
        grid_barrier(state);
        total = 0;
        for (unsigned b = 0; b < gridDim.x; b++) total += partial[b];
        grid_barrier(state);
    }
    y[blockIdx.x * blockDim.x + threadIdx.x] = total;
}

// Two declarations in one statement, a struct, two instances of a template: all distinct.
struct Pair { float a, b; };
template <int N>
__device__ float scratch(float v) {
    __shared__ float space[N];
    space[threadIdx.x] = v;
    __syncthreads();
    return space[N - 1 - threadIdx.x];
}
extern "C" __global__ void shared_variables(float* y) {
    __shared__ float a[32], b[32];
    __shared__ Pair pairs[32];
    const int t = threadIdx.x;
    a[t] = t, b[t] = 100 + t, pairs[t] = {1000.f + t, 10000.f + t};
    const float first = scratch<32>(a[t]), second = t < 16 ? 0 : 0;
    __syncthreads();
    y[t] = a[31 - t] + b[31 - t] + pairs[31 - t].a + pairs[31 - t].b + first + second;
}

extern "C" __global__ void conversions(float* to, unsigned short* b, unsigned short* h, const float* x, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        b[i] = from_float<bf16>(x[i]).bits;
        h[i] = from_float<f16>(x[i]).bits;
    }
    for (int i = threadIdx.x; i < 65536; i += blockDim.x) {
        to[i] = to_float(bf16{(uint16_t)i});
        to[65536 + i] = to_float(f16{(uint16_t)i});
    }
}

extern "C" __global__ void architecture(int* y) {
    y[0] = SWARA_ARCH;
    y[1] = __CUDA_ARCH__;
    y[2] = min(3, 4u) + max(-1, 5);
    y[3] = (int)max(1.5f, fminf(2.f, 7.f));
}

extern "C" __global__ void add_one(float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += 1;
}

// `valid` false fills with zeros and reads nothing; each size.
extern "C" __global__ void zero_fill(unsigned* y, const unsigned* x) {
    __shared__ alignas(16) unsigned tile[12];
    cp_async16(tile, x, threadIdx.x > 0);
    cp_async8(tile + 4, x + 4);
    cp_async8(tile + 6, nullptr, false);
    cp_async4(tile + 8, x + 8);
    cp_async4(tile + 9, nullptr, false);
    cp_async_commit();
    cp_async_wait<0>();
    for (int i = 0; i < 10; i++) y[i] = tile[i];
}
