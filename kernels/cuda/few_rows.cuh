// The frame of a product over few rows: which threads sum what, and what becomes of their sums.
#pragma once

#include "linear.cuh"
#include "products.cuh"

// Blocks of THREADS. blockIdx.x: passes of M rows of x, fastest, then rows of w.
constexpr int THREADS = 128;
constexpr int STAGED_BYTES = 32 << 10;  // of x in shared memory; as in cuda.rs

template <typename T, int M, int R>
struct FewRows {
    const Finish<T>& finish;
    int outputs, group, lane, own, groups, first_row, block_column;  // own: columns of y that a group has

    __device__ __forceinline__ FewRows(const Finish<T>& finish, int outputs, int group, int passes)
        : finish(finish), outputs(outputs), group(group), lane(threadIdx.x % group), own(finish.activation == SILU_GATE ? R / 2 : R),
          groups(THREADS / group), first_row(blockIdx.x % passes * M), block_column(blockIdx.x / passes * groups * own) {}

    // Of w, the r-th of this thread; with a gate, half of them are of the second half.
    __device__ __forceinline__ int row_of_w(int r) const {
        const bool second = finish.activation == SILU_GATE && r >= R / 2;
        const int column = block_column + threadIdx.x / group * own + (second ? r - R / 2 : r);
        return min(min(column, finish.columns - 1) + (second ? finish.columns : 0), outputs - 1);
    }

    // What needs no kernel before this one: the rows of w, `bytes` each, whose first vectors are asked for. All threads, first of all.
    __device__ __forceinline__ void begin(const void* w, uint64_t bytes) const {
        dependents_may_start();
#if SWARA_ARCH >= 90
        // Allocations begin at multiples of 16, so that none before a row is outside.
        const uint64_t first = reinterpret_cast<uint64_t>(w) + min((uint64_t)lane * 16, max(bytes, (uint64_t)1) - 1);
#pragma unroll
        for (int r = 0; r < R; r++) prefetch_l2(reinterpret_cast<const void*>((first + row_of_w(r) * bytes) & ~(uint64_t)15));
#endif
        wait_for_predecessors();
    }

    __device__ __forceinline__ void store(const float (&sum)[M][R], int rows) const {
        __shared__ GroupSums<THREADS, M, R> sums;
        const bool gate = finish.activation == SILU_GATE;
        const int lanes = min(group, 32), parts = group / lanes;
        sums.put(sum, lanes);
        __syncthreads();
        for (int i = threadIdx.x; i < M * groups * own; i += THREADS) {
            const int m = i / (groups * own), n = i % (groups * own), r = n % own;
            const float total = sums.total(n / own, parts, m, r), gated = gate ? sums.total(n / own, parts, m, r + R / 2) : 0.0f;
            if (first_row + m < rows && block_column + n < finish.columns) finish.store(first_row + m, block_column + n, total, gated);
        }
    }
};
