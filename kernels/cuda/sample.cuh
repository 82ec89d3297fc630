// How an id is drawn from a row of logits: what sample.cu and depth.cu share. The formula and its order are in ops/sample/sample.cu.
#pragma once

#include "block.cuh"
#include "rng.cuh"
#include "vec.cuh"

// As in mod.rs.
struct Settings {
    float temperature;
    int top_k;
    unsigned sequence, seed_low, seed_high;
};

constexpr int INDEX_BITS = 21;
constexpr uint64_t LAST_INDEX = (1 << INDEX_BITS) - 1;
// Of a value of T as float: all those of f16, or of bf16, differ in the upper 19.
template <typename T>
constexpr int VALUE_BITS = sizeof(T) == 4 ? 32 : 19;

// Larger for a larger x, or for the first of equal ones.
template <int BITS>
__device__ __forceinline__ uint64_t order_of(float x, int i) {
    const unsigned bits = __float_as_uint(__fadd_rn(x, 0.0f));  // -0 becomes 0
    const unsigned value = (bits & 0x80000000u ? ~bits : bits | 0x80000000u) >> (32 - BITS);
    return (uint64_t)value << INDEX_BITS | (LAST_INDEX - i);
}

__device__ __forceinline__ int index_of(uint64_t order) { return (int)(LAST_INDEX - (order & LAST_INDEX)); }

template <typename T, int N>
struct Row {
    const T* logits;
    int n;

    // f(x, i, order) of the thread's logits, M at a time.
    template <int M, typename F>
    __device__ __forceinline__ void each(F f) const {
        for (int first = threadIdx.x * M; first < n; first += blockDim.x * M) {
            float x[M];
            load_vector(x, logits + first);
#pragma unroll
            for (int j = 0; j < M; j++) {
                if (x[j] != x[j]) x[j] = -__int_as_float(0x7f800000);
                f(x[j], first + j, order_of<VALUE_BITS<T>>(x[j], first + j));
            }
        }
    }

    // The k-th largest order, for k below n, or a number between it and the next.
    __device__ __forceinline__ uint64_t threshold(int k) const {
        uint64_t low = 0;  // more than k orders reach it
        for (int shift = (VALUE_BITS<T> + INDEX_BITS - 1) / 2 * 2;; shift -= 2) {
            const uint64_t step = (uint64_t)1 << shift;
            uint64_t reach = 0;  // how many reach low + 1, 2 and 3 steps, in a third of the bits each
            each<N>([&](float, int, uint64_t order) {
                reach += (uint64_t)(order >= low + step) | (uint64_t)(order >= low + 2 * step) << INDEX_BITS |
                         (uint64_t)(order >= low + 3 * step) << 2 * INDEX_BITS;
            });
            reach = block_sum(reach);
            for (int steps = 3; steps > 0; steps--) {
                const int count = (int)(reach >> (steps - 1) * INDEX_BITS & LAST_INDEX);
                if (count < k) continue;
                low += steps * step;
                if (count == k) return low;  // at the last bits at the latest: orders are distinct
                break;
            }
        }
    }

    __device__ __forceinline__ int draw(const Settings& s, uint64_t counter) const {
        uint64_t best = 0;
        each<N>([&](float, int, uint64_t order) { best = larger(best, order); });
        best = block_max(best, (uint64_t)0);
        const int largest = index_of(best);
        const float max = to_float(logits[largest]);
        if (!(s.temperature > 0.0f) || !(fabsf(max) < __int_as_float(0x7f800000))) return largest;

        const uint64_t least = s.top_k > 0 && s.top_k < n ? threshold(s.top_k) : 0;
        uint64_t drawn = 0;
        each<1>([&](float x, int i, uint64_t order) {
            if (order < least) return;
            const uint4 counted = make_uint4(i, s.sequence, (unsigned)counter, (unsigned)(counter >> 32));
            const unsigned bits = philox(counted, make_uint2(s.seed_low, s.seed_high)).x;
            const uint64_t score = order_of<32>(__fadd_rn(__fdiv_rn(__fsub_rn(x, max), s.temperature), gumbel(bits)), i);
            drawn = larger(drawn, score);
        });
        return index_of(block_max(drawn, (uint64_t)0));
    }
};
