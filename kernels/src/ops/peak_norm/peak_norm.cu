// Rows without their mean and at a given peak; the formulas are in mod.rs.
//
// Tensors    x, y, dy, dx [rows, width] f32.
// Mapping    a block = a row: a few of them, of some ten thousand samples.
// Bytes      forward: x read (three times, from L2 after the first), y written. Backward: x and dy read likewise, dx written.
// Measured   on the emulator only, for correctness; no GPU figure exists yet.
//
// kernels: peak_norm_f32 peak_norm_backward_f32
#include "block.cuh"

constexpr int THREADS = 1024;

__device__ __forceinline__ float row_mean(const float* x, int width) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < width; i += THREADS) sum += x[i];
    return block_sum(sum) / width;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    peak_norm_f32(float* y, const float* x, int width, float level, float epsilon) {
    y += (int64_t)blockIdx.x * width;
    x += (int64_t)blockIdx.x * width;
    const float mean = row_mean(x, width);
    float peak = 0.0f;
    for (int i = threadIdx.x; i < width; i += THREADS) peak = fmaxf(peak, fabsf(x[i] - mean));
    const float scale = level / (block_max(peak, 0.0f) + epsilon);
    for (int i = threadIdx.x; i < width; i += THREADS) y[i] = scale * (x[i] - mean);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    peak_norm_backward_f32(float* dx, const float* dy, const float* x, int width, float level, float epsilon) {
    dx += (int64_t)blockIdx.x * width;
    dy += (int64_t)blockIdx.x * width;
    x += (int64_t)blockIdx.x * width;
    const float mean = row_mean(x, width);
    // The magnitude above, and below it what is larger for an earlier element. The bits of floats that are not negative are in order.
    uint64_t best = 0;
    float total = 0.0f, along = 0.0f;
    for (int i = threadIdx.x; i < width; i += THREADS) {
        const float c = x[i] - mean, g = dy[i];
        best = larger(best, (uint64_t)__float_as_uint(fabsf(c)) << 32 | (0xffffffffu - (unsigned)i));
        total += g;
        along += g * c;
    }
    best = block_max(best, (uint64_t)0);
    total = block_sum(total);
    along = block_sum(along);
    const int at = (int)(0xffffffffu - (unsigned)best);
    const float peak = __uint_as_float((unsigned)(best >> 32)) + epsilon, scale = level / peak;
    const float c = x[at] - mean;
    const float of_peak = (c > 0.0f ? -scale : scale) / peak * along;
    const float less = (scale * total + of_peak) / width;
    for (int i = threadIdx.x; i < width; i += THREADS) dx[i] = scale * dy[i] - less + (i == at ? of_peak : 0.0f);
}
