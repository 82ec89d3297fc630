// The keys that a row of attention sees, and its running softmax.
#pragma once

#include "types.cuh"

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

// Keys that a row sees, as positions.
struct Seen {
    int first, end;
};

// The running softmax of one row, in base 2.
struct Softmax {
    float largest = minus_infinity(), sum = 0.0f;
    float shift = 0.0f;  // what scores are reduced by: `largest` if there is one

    // Makes room for scores up to `score` (scaled). What was summed is to be multiplied by what is returned.
    __device__ __forceinline__ float raise(float score) {
        const float before = largest;
        largest = fmaxf(largest, score);
        shift = largest == minus_infinity() ? 0.0f : largest;
        return exp2_approx(before - shift);
    }

    __device__ __forceinline__ float weight(float score, float scale) const { return exp2_approx(fmaf(score, scale, -shift)); }

    // Written out, so that every kernel rounds alike.
    __device__ __forceinline__ void add(float rescale, float weights) { sum = fmaf(sum, rescale, weights); }

    // Makes weights of a thread's scores in a tensor core's fragments: columns 2 t, 2 t + 1 of every eight keys from `block` on, four
    // threads a row. `masked`: not all of them are seen by all. Returns what the row's sums are to be multiplied by.
    template <int EIGHTS, class Score>
    __device__ __forceinline__ float weigh(Score score, float scale, int block, Seen seen, bool masked) {
        if (masked) {
#pragma unroll
            for (int n = 0; n < EIGHTS; n++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int p = block + n * 8 + threadIdx.x % 4 * 2 + e;
                    if (p < seen.first || p >= seen.end) score(n, e) = minus_infinity();
                }
            }
        }
        float most = minus_infinity();
#pragma unroll
        for (int n = 0; n < EIGHTS; n++) {
#pragma unroll
            for (int e = 0; e < 2; e++) most = fmaxf(most, score(n, e));
        }
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        const float rescale = raise(most * scale);
        float weights = 0.0f;
#pragma unroll
        for (int n = 0; n < EIGHTS; n++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                score(n, e) = weight(score(n, e), scale);
                weights += score(n, e);
            }
        }
        add(rescale, weights);
        return rescale;
    }
};
