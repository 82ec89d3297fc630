// Weight normalisation: w = g v / |v|, the norm over the slice of v [taps, in, out] that shares a gain.
//
// Tensors    v, w, dw, dv [taps, in, out]; g, dg [out] or [in]. All f32.
// Mapping    axis out: a block = 8 columns (one 32-byte sector) x 32 lanes over rows. axis in: a block = one input channel,
//            threads over outputs, then taps. Either way a block owns whole slices: it sums, then scales what it just read.
// Bytes      forward: v read (twice, the second time from L2), w written. Backward: dw and v read (twice), dv written.
// Measured   on the emulator only, for correctness; no GPU figure exists yet.
#include "types.cuh"
#include "block.cuh"

// The elements of a thread's slice, `step` apart; a slice is `runs` runs of `length` elements.
struct Slice {
    int gain;  // negative: this thread has none
    uint64_t first, element_step, run_step;
    int lane, lanes, length, runs;
};

// blockDim is [8, 32].
__device__ __forceinline__ Slice slice_of(int taps, int in, int out, bool by_input) {
    if (by_input) {
        const int lane = threadIdx.y * blockDim.x + threadIdx.x;
        return {(int)blockIdx.x, (uint64_t)blockIdx.x * out, 1, (uint64_t)in * out, lane, (int)(blockDim.x * blockDim.y), out, taps};
    }
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    return {column < out ? column : -1, (uint64_t)column, (uint64_t)out, 0, (int)threadIdx.y, (int)blockDim.y, taps * in, 1};
}

template <typename F>
__device__ __forceinline__ void for_slice(const Slice& s, F f) {
    if (s.gain < 0) return;
    for (int run = 0; run < s.runs; run++)
        for (int i = s.lane; i < s.length; i += s.lanes) f(s.first + run * s.run_step + i * s.element_step);
}

// The sum over the threads of a slice, given to all of them. `shared` has 256 floats.
__device__ __forceinline__ float slice_sum(float v, bool by_input, float* shared) {
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, count = by_input ? 1 : blockDim.x;
    shared[thread] = v;
    __syncthreads();
    for (int half = 128; half >= count; half /= 2) {
        if (thread < half) shared[thread] += shared[thread + half];
        __syncthreads();
    }
    v = shared[thread % count];
    __syncthreads();
    return v;
}

extern "C" __global__ void weight_norm_f32(float* w, const float* v, const float* g, int taps, int in, int out, int by_input) {
    __shared__ float shared[256];
    const Slice s = slice_of(taps, in, out, by_input);
    float squares = 0.0f;
    for_slice(s, [&](uint64_t i) { squares += v[i] * v[i]; });
    squares = slice_sum(squares, by_input, shared);
    if (s.gain < 0) return;
    const float scale = g[s.gain] / sqrtf(squares);
    for_slice(s, [&](uint64_t i) { w[i] = scale * v[i]; });
}

extern "C" __global__ void weight_norm_backward_f32(float* dv, float* dg, const float* dw, const float* v, const float* g, int taps, int in,
                                                    int out, int by_input) {
    __shared__ float shared[256];
    const Slice s = slice_of(taps, in, out, by_input);
    float squares = 0.0f, products = 0.0f;
    for_slice(s, [&](uint64_t i) {
        squares += v[i] * v[i];
        products += dw[i] * v[i];
    });
    squares = slice_sum(squares, by_input, shared);
    products = slice_sum(products, by_input, shared);
    if (s.gain < 0) return;
    const float norm = sqrtf(squares), scale = g[s.gain] / norm, along = products / squares;
    if (s.lane == 0) dg[s.gain] = products / norm;
    for_slice(s, [&](uint64_t i) { dv[i] = scale * (dw[i] - along * v[i]); });
}
