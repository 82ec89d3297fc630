// Products of few rows of x, in shared memory, with rows of w: what linear.cu, low_bit.cu and depth.cu share, so that they round alike.
//
// Groups of 8 to 128 threads have R rows of w each. A thread takes 16 bytes of each, then those `group` vectors further. A sum is a chain a
// thread, shuffles, then the warps of a group in ascending order.
#pragma once

#include "codes.cuh"
#include "vec.cuh"

constexpr int LEAST_GROUP = 8;

// N columns of R rows of w beside M rows of x that are `pitch` apart.
template <typename T, int N, int M, int R>
__device__ __forceinline__ void add_products(float (&sum)[M][R], const float (&a)[R][N], const T* x, int pitch) {
#pragma unroll
    for (int m = 0; m < M; m++) {
        float b[N];
        load_vector(b, x + m * pitch);
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int e = 0; e < N; e++) sum[m][r] = fmaf(a[r][e], b[e], sum[m][r]);
    }
}

// Where the i-th vector of a row of x lies, so that threads whose codes have `pieces` of them find theirs in different banks.
__device__ __forceinline__ int turned(int i, int pieces) {
    const int owner = i / pieces;
    return owner * pieces + (i + owner * pieces / 8) % pieces;
}

// A matrix as low_bit.cu has it.
template <int BITS>
struct Codes {
    static constexpr int COLUMNS = 128 / BITS;  // in 16 bytes
    const uint8_t* codes;
    const float *scales, *mins;
    int k, scaled;  // columns, and those that share a scale

    // The codes from `column` on beside the i-th COLUMNS of x, turned.
    template <typename T, int M, int R, class Row>
    __device__ __forceinline__ void add(float (&sum)[M][R], const Row& row_of, int column, const T* x, int i, int pitch) const {
        constexpr int N = LANES<T>, PIECES = COLUMNS / N;
        const int groups = k / scaled, turn = i * PIECES / 8;
        unsigned words[R][4];
        float scale[R], min[R];
#pragma unroll
        for (int r = 0; r < R; r++) {
            const uint64_t row = row_of(r), at = row * groups + column / scaled;
            const uint4 raw = load_once16(codes + (row * k + column) * BITS / 8);
            words[r][0] = raw.x, words[r][1] = raw.y, words[r][2] = raw.z, words[r][3] = raw.w;
            scale[r] = scales[at];
            min[r] = mins ? mins[at] : (BITS == 4 ? 8.0f : 0.0f) * scale[r];
        }
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            float a[R][N];
#pragma unroll
            for (int r = 0; r < R; r++) {
                decode<BITS>(a[r], words[r], piece);
#pragma unroll
                for (int e = 0; e < N; e++) a[r][e] = fmaf(scale[r], a[r][e], -min[r]);
            }
            add_products(sum, a, x + (i * PIECES + (piece + turn) % PIECES) * N, pitch);
        }
    }
};

// Sums of the lanes that a group has in one warp; apart in the banks.
template <int THREADS, int M, int R>
struct GroupSums {
    float of[THREADS / LEAST_GROUP][M * R + 1];

    __device__ __forceinline__ void put(const float (&sum)[M][R], int lanes) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int r = 0; r < R; r++) {
                float v = sum[m][r];
                for (int distance = lanes / 2; distance > 0; distance /= 2) v += __shfl_xor_sync(0xffffffffu, v, distance);
                if (threadIdx.x % lanes == 0) of[threadIdx.x / lanes][m * R + r] = v;
            }
    }

    // Of a group that has lanes in `parts` warps.
    __device__ __forceinline__ float total(int group, int parts, int m, int r) const {
        float total = 0.0f;
        for (int part = group * parts, end = part + parts; part < end; part++) total += of[part][m * R + r];
        return total;
    }
};
