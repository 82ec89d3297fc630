// Gradients of attention over whole sequences.
//
//   p_ij = 2^(scale q_i . k_j - L_i),   delta_i = dy_i . y_i,   ds_ij = p_ij (dy_i . v_j - delta_i)
//   dq_i = sum_j ds_ij k_j / sqrt(D),   dk_j = sum_i ds_ij q_i / sqrt(D),   dv_j = sum_i p_ij dy_i
//
// Shapes: q, y, dy, dq [B, T, Hq, D]; k, v, dk, dv [B, S, Hkv, D]; L, delta [B, Hq, T] in f32, L in base 2. A head of keys has
// the T G rows (t, g) of the query heads that share it.
//
//   attention_delta      a warp a row.
//   attention_dq_D       a block has 32 rows, and goes through the keys that they see, 16 at a time.
//   attention_dkv_D      a block has 32 keys, and goes through the rows that see them, 16 at a time.
//
// Both are one template: a tile of its own, tiles of the others, and between them the weights of 32 x 16 pairs. D is 64 or 128, the
// padded size of a head; all of it is f32 in shared memory. Others come in ascending order, nothing is added by atomics.
//
// Bytes: own tiles and outputs once; the others once a tile of 32, from L2 after the first.
//
// Ladder: v1 FFMA for every type. Tensor cores are left on the table, and so are copies ahead. Not yet timed on any GPU.

#pragma once

#include "block.cuh"
#include "vec.cuh"

struct Sequences {
    int tokens, heads, kv_heads, keys, dim, window, causal;
    float scale;  // 1 / sqrt(D)

    __device__ int group() const { return heads / kv_heads; }
    __device__ int rows() const { return tokens * group(); }
    __device__ int64_t query(int batch, int kv_head, int r) const {
        return (((int64_t)batch * tokens + r / group()) * heads + kv_head * group() + r % group()) * dim;
    }
    __device__ int64_t key(int batch, int kv_head, int j) const { return (((int64_t)batch * keys + j) * kv_heads + kv_head) * dim; }
    __device__ int64_t statistic(int batch, int kv_head, int r) const {
        return ((int64_t)batch * heads + kv_head * group() + r % group()) * tokens + r / group();
    }
    __device__ bool sees(int r, int j) const {
        const int t = r / group();
        return r < rows() && j < keys && (!causal || (j <= t && (window == 0 || t - j < window)));
    }
    // Of the other side, what `first .. first + count` of one side may have to do with.
    __device__ int first_key(int r) const { return causal && window > 0 ? max(r / group() + 1 - window, 0) : 0; }
    __device__ int end_key(int r, int count) const { return causal ? (min(r + count, rows()) - 1) / group() + 1 : keys; }
    __device__ int first_row(int j) const { return causal ? j * group() : 0; }
    __device__ int end_row(int j, int count) const {
        const int last = min(j + count, keys) - 1;
        return causal && window > 0 ? min((int64_t)last + window, (int64_t)tokens) * group() : rows();
    }
};

template <class T>
struct Operands {
    T *first_gradient, *second_gradient;  // dk and dv; or dq
    const T *q, *k, *v, *dy;
    const float *logsum, *delta;
};

// COUNT rows of `from`, which `at(i)` are, or zero where it is negative; PITCH apart.
template <int COUNT, int D, int PITCH, class T, class F>
__device__ __forceinline__ void load_tile(float* tile, const T* from, int dim, F at) {
    if (dim % LANES<T> == 0) {
        constexpr int N = LANES<T>, ACROSS = D / N;
        for (int i = threadIdx.x; i < COUNT * ACROSS; i += blockDim.x) {
            const int row = i / ACROSS, d = i % ACROSS * N;
            const int64_t offset = at(row);
            float values[N] = {};
            if (offset >= 0 && d < dim) load_vector(values, from + offset + d);
#pragma unroll
            for (int e = 0; e < N; e += 4) {
                const float four[4] = {values[e], values[e + 1], values[e + 2], values[e + 3]};
                store_vector(tile + row * PITCH + d + e, four);
            }
        }
    } else {
        for (int i = threadIdx.x; i < COUNT * D; i += blockDim.x) {
            const int row = i / D, d = i % D;
            const int64_t offset = at(row);
            tile[row * PITCH + d] = offset >= 0 && d < dim ? to_float(from[offset + d]) : 0.0f;
        }
    }
}

// KEYS: own are keys, others rows; else the reverse.
template <class T, int D, bool KEYS>
__device__ __forceinline__ void gradients(const Operands<T>& o, const Sequences& a) {
    constexpr int OWN = 32, OTHERS = 16, PITCH = D + 4, WEIGHTS = OTHERS + 1, CHUNKS = D / 32, THREADS = 256;
    DYNAMIC_SHARED(float, shared);
    float *const own_a = shared, *const own_b = own_a + OWN * PITCH;
    float *const other_a = own_b + OWN * PITCH, *const other_b = other_a + OTHERS * PITCH;
    float *const weights = other_b + OTHERS * PITCH, *const slopes = weights + OWN * WEIGHTS;
    float *const logsums = slopes + OWN * WEIGHTS, *const deltas = logsums + OWN;  // of the tile of rows
    const int count = KEYS ? a.keys : a.rows(), tiles = (count + OWN - 1) / OWN;
    const int head = blockIdx.x / tiles, batch = head / a.kv_heads, kv_head = head % a.kv_heads, own = blockIdx.x % tiles * OWN;
    const auto key = [&](int j) { return j < a.keys ? a.key(batch, kv_head, j) : (int64_t)-1; };
    const auto query = [&](int r) { return r < a.rows() ? a.query(batch, kv_head, r) : (int64_t)-1; };
    const auto load_statistics = [&](int first, int rows) {
        const int r = first + threadIdx.x;
        if (threadIdx.x >= rows || r >= a.rows()) return;
        logsums[threadIdx.x] = o.logsum[a.statistic(batch, kv_head, r)];
        deltas[threadIdx.x] = o.delta[a.statistic(batch, kv_head, r)];
    };
    const auto mine = [&](int i) { return KEYS ? key(own + i) : query(own + i); };
    load_tile<OWN, D, PITCH>(own_a, KEYS ? o.k : o.q, a.dim, mine);
    load_tile<OWN, D, PITCH>(own_b, KEYS ? o.v : o.dy, a.dim, mine);
    if constexpr (!KEYS) load_statistics(own, OWN);

    // A thread sums 4 elements of every 32 of one of its own.
    const int row = threadIdx.x / 8, column = threadIdx.x % 8 * 4;
    float first_sum[CHUNKS][4] = {}, second_sum[CHUNKS][4] = {};
    const int begin = KEYS ? a.first_row(own) : a.first_key(own), end = KEYS ? a.end_row(own, OWN) : a.end_key(own, OWN);
    for (int other = begin; other < end; other += OTHERS) {
        const auto theirs = [&](int i) { return KEYS ? query(other + i) : key(other + i); };
        load_tile<OTHERS, D, PITCH>(other_a, KEYS ? o.q : o.k, a.dim, theirs);
        load_tile<OTHERS, D, PITCH>(other_b, KEYS ? o.dy : o.v, a.dim, theirs);
        if constexpr (KEYS) load_statistics(other, OTHERS);
        __syncthreads();
#pragma unroll
        for (int pair = threadIdx.x; pair < OWN * OTHERS; pair += THREADS) {
            const int i = pair / OTHERS, j = pair % OTHERS;
            float score = 0.0f, slope = 0.0f;
#pragma unroll 4
            for (int d = 0; d < D; d += 4) {
                float oa[4], ob[4], ta[4], tb[4];
                load_vector(oa, own_a + i * PITCH + d);
                load_vector(ta, other_a + j * PITCH + d);
                load_vector(ob, own_b + i * PITCH + d);
                load_vector(tb, other_b + j * PITCH + d);
#pragma unroll
                for (int e = 0; e < 4; e++) score = fmaf(oa[e], ta[e], score), slope = fmaf(ob[e], tb[e], slope);
            }
            const int r = KEYS ? other + j : own + i;
            float weight = 0.0f;
            if (a.sees(r, KEYS ? own + i : other + j)) {
                const int at = KEYS ? j : i;
                weight = exp2_approx(fmaf(score, a.scale * 1.44269504f, -logsums[at]));
                slope = weight * (slope - deltas[at]);
            } else {
                slope = 0.0f;
            }
            weights[i * WEIGHTS + j] = weight;
            slopes[i * WEIGHTS + j] = slope;
        }
        __syncthreads();
#pragma unroll 2
        for (int j = 0; j < OTHERS; j++) {
            const float slope = slopes[row * WEIGHTS + j], weight = weights[row * WEIGHTS + j];
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                float v[4];
                load_vector(v, other_a + j * PITCH + c * 32 + column);
#pragma unroll
                for (int e = 0; e < 4; e++) first_sum[c][e] = fmaf(slope, v[e], first_sum[c][e]);
                if constexpr (KEYS) {
                    load_vector(v, other_b + j * PITCH + c * 32 + column);
#pragma unroll
                    for (int e = 0; e < 4; e++) second_sum[c][e] = fmaf(weight, v[e], second_sum[c][e]);
                }
            }
        }
        __syncthreads();  // tiles, statistics and weights were read
    }
    const int64_t at = mine(row);
    if (at < 0) return;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int d = c * 32 + column;
#pragma unroll
        for (int e = 0; e < 4; e++) first_sum[c][e] *= a.scale;
        if (a.dim % 4 == 0) {
            if (d >= a.dim) continue;
            store_vector(o.first_gradient + at + d, first_sum[c]);
            if constexpr (KEYS) store_vector(o.second_gradient + at + d, second_sum[c]);
        } else {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if (d + e >= a.dim) continue;
                o.first_gradient[at + d + e] = from_float<T>(first_sum[c][e]);
                if constexpr (KEYS) o.second_gradient[at + d + e] = from_float<T>(second_sum[c][e]);
            }
        }
    }
}

// delta [B, Hq, T] of rows (b, t, h).
template <class T>
__device__ __forceinline__ void deltas(float* delta, const T* dy, const T* y, uint64_t rows, int tokens, int heads, int dim) {
    const uint64_t row = (uint64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    float sum = 0.0f;
    if (dim % LANES<T> == 0) {
        for (int d = threadIdx.x % 32 * LANES<T>; d < dim; d += 32 * LANES<T>) {
            float a[LANES<T>], b[LANES<T>];
            load_vector(a, dy + row * dim + d);
            load_vector(b, y + row * dim + d);
#pragma unroll
            for (int e = 0; e < LANES<T>; e++) sum = fmaf(a[e], b[e], sum);
        }
    } else {
        for (int d = threadIdx.x % 32; d < dim; d += 32) sum = fmaf(to_float(dy[row * dim + d]), to_float(y[row * dim + d]), sum);
    }
    sum = warp_sum(sum);
    const uint64_t token = row / heads;
    if (threadIdx.x % 32 == 0) delta[(token / tokens * heads + row % heads) * tokens + token % tokens] = sum;
}
