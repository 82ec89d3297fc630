// Scaled dot-product attention: a stream over its cache, and whole sequences.
//
//   y[i, h] = sum_j p_ij v[j, h / G],  p_ij = exp(s_ij - L_i),  s_ij = q[i, h] . k[j, h / G] / sqrt(D),  L_i = log sum_j exp(s_ij)
//
// over the keys j that query i sees: 0 <= i - j < window, causal, or all. Shapes: q, y [B, T, Hq, D]; k, v [B, S, Hkv, D], or
// rings [B, Hkv, capacity, D] whose token p lies in slot p % capacity behind what is fixed, with `seen` [B], what the streams saw before these T.
//
//   attention_few_D     rows of queries (t, g), g of the G heads that share keys: 16 a block on tensor cores, else 2. One warp.
//   attention_many_D    64 on tensor cores, else 32. Four warps, each with rows of its own.
//   attention_combine   adds up the spans of keys that long caches are cut into.
//   attention_advance   what streams have seen.
//   attention_delta, attention_dq_D, attention_dkv_D: gradients, in attention_gradient.cuh.
//
// D is 64 or 128, the padded size of a head. grid: x = tiles of rows of a stream and head of keys, y = spans of keys. A block
// goes through the keys that its rows see, a block of them at a time (64 on tensor cores, else 32) through shared memory: keys
// of the next are on their way while values of this one are, and both while the other is multiplied. Weights are of base 2;
// sums are rescaled when a larger score comes (online softmax), and divided at the end.
//
// Blocks of keys and spans begin at multiples of their size, counted from the start of the stream: what a row sums, and in which
// order, depends on its position alone. Keys that a row does not see have weight zero, which changes no bit. So few and many
// rows, streams in any chunks, and all neighbours in a batch give the same bits.
//
// Keys and values of a ring may be codes of 8 bits, with a factor for every token of a head: attention_few_D_int8 and so on.
// Codes are exact in every type, so the factors of keys multiply scores. Those of values multiply weights in float, but on tensor
// cores values, for a weight times a factor may be too small for f16; there codes come to shared memory as they are, and are
// widened when they are wanted.
//
// Beside sinks the first keys of a stream stay before the ring, and a row goes through those that are sinks before what else it sees, with
// a query of its own for them (`far`): turned by the distance that they have within the cache. Spans have one more then, the first.
//
// Two cores: attend_mma (16-bit types: scores and sums by mma.sync m16n8k16, weights rounded to the type for the second) and
// attend_fma (f32, and bf16 on sm_75: a lane has a key for scores, and a run of the head for sums).
//
// Bytes: q and y once; keys and values once a tile of rows, from L2 after the first.
//
// Ladder: v1 FlashAttention-2's order. Not yet timed on any GPU.

#include "attention.cuh"
#include "attention_gradient.cuh"
#include "block.cuh"
#include "mma.cuh"
#include "vec.cuh"

// Floats from one partial sum to the next: whole sectors.
__device__ __forceinline__ int partial_pitch(int dim) { return (dim + 9) / 8 * 8; }

// C: what keys and values are stored as, T or int8_t.
template <class T, class C>
struct Problem {
    T* y;
    float* logsum;   // [B, Hq, T] in base 2, or null
    float* partial;  // [B, Hkv, T G, spans, pitch]: sums, their largest score, the sum of weights; or null
    const T *q, *far;  // far: as sinks want them
    const C *k, *v;
    const float *k_factors, *v_factors;  // of codes, [B, Hkv, capacity]
    const int* seen;  // null: sequences, not rings
    const unsigned char* mask;
    int tokens, heads, kv_heads, keys, dim, window, causal, span, sinks;  // keys: S or the capacity; window, span, sinks: 0 for none
    float scale;                                                        // log2(e) / sqrt(D)

    __device__ int group() const { return heads / kv_heads; }
    __device__ int rows() const { return tokens * group(); }
    __device__ bool vectors() const { return dim % LANES<T> == 0; }
    // Slots before those of the ring: whole blocks.
    __device__ int fixed() const { return (sinks + 63) / 64 * 64; }
    __device__ unsigned slot(int p) const {
        const unsigned before = fixed();
        return (unsigned)p < before ? p : before + ((unsigned)p - before) % ((unsigned)keys - before);
    }
    static constexpr bool CODES = sizeof(C) == 1;
};

// A block's rows.
template <class T, class C>
struct Rows {
    const Problem<T, C>& a;
    int batch, kv_head, row, seen;  // the first row; what the stream saw before

    __device__ Rows(const Problem<T, C>& a, int tile) : a(a) {
        const int tiles = (a.rows() + tile - 1) / tile, head = blockIdx.x / tiles;
        batch = head / a.kv_heads, kv_head = head % a.kv_heads;
        row = blockIdx.x % tiles * tile;
        seen = a.seen == nullptr ? 0 : a.seen[batch];
    }

    __device__ bool masked() const { return a.mask != nullptr && a.mask[batch] == 0; }

    // One past the last key that row `r` sees; 0 for rows that there are not.
    __device__ int end(int r) const { return r >= a.rows() ? 0 : a.causal ? seen + r / a.group() + 1 : a.keys; }
    // The first that any row may see besides sinks: a ring's oldest.
    __device__ int lowest() const { return a.seen == nullptr ? 0 : max(a.sinks, seen + a.tokens - (a.keys - a.fixed())); }

    // Besides sinks. None for rows that there are not.
    __device__ Seen keys(int r) const {
        const int last = end(r);
        return last > 0 ? Seen{max(a.window > 0 ? last - a.window : 0, lowest()), last} : Seen{0, 0};
    }

    // Of all rows from `r` to before `end`, which see later keys in turn.
    __device__ Seen keys(int r, int end) const {
        end = min(end, a.rows());
        return r < end ? Seen{keys(r).first, keys(end - 1).end} : Seen{0, 0};
    }

    // Of the sinks, those that row `r` sees.
    __device__ Seen sinks(int r) const { return {0, r < a.rows() ? min(a.sinks, seen + r / a.group() + 1) : 0}; }

    // Offset of row `r` in q and y.
    __device__ int64_t at(int r) const {
        const int group = a.group();
        return (((int64_t)batch * a.tokens + r / group) * a.heads + kv_head * group + r % group) * a.dim;
    }

    // Where the key or value of position `p` is, and how far it is to the next of a block: a ring's capacity is whole blocks.
    __device__ int64_t key(int p) const {
        if (a.seen == nullptr) return (((int64_t)batch * a.keys + p) * a.kv_heads + kv_head) * a.dim;
        return (((int64_t)batch * a.kv_heads + kv_head) * a.keys + a.slot(p)) * a.dim;
    }
    // The factor of the key or value of position `p`.
    __device__ float factor(const float* factors, int p) const {
        return factors[((int64_t)batch * a.kv_heads + kv_head) * a.keys + a.slot(p)];
    }
    __device__ int64_t key_stride() const { return a.seen == nullptr ? (int64_t)a.kv_heads * a.dim : a.dim; }

    __device__ float* partial(int r) const {
        const int64_t at = (((int64_t)batch * a.kv_heads + kv_head) * a.rows() + r) * gridDim.y + blockIdx.y;
        return a.partial + at * partial_pitch(a.dim);
    }

    __device__ void store_logsum(int r, float value) const {
        const int group = a.group();
        if (a.logsum != nullptr) a.logsum[((int64_t)batch * a.heads + kv_head * group + r % group) * a.tokens + r / group] = value;
    }
};

// tile[i][d] = source(i)[d], zero where d >= dim and where source(i) is null. COUNT rows of WIDTH, PITCH apart, THREADS to copy.
template <int COUNT, int WIDTH, int PITCH, int THREADS, class T, class S, class F>
__device__ __forceinline__ void load_rows(S* tile, int dim, bool vectors, const T* any, F source) {
    if (vectors) {
        constexpr int N = LANES<T>, ACROSS = WIDTH / N, AT_ONCE = N <= 8 ? 4 : sizeof(S) > 1 ? 1 : 2;
#pragma unroll AT_ONCE
        for (int i = threadIdx.x; i < COUNT * ACROSS; i += THREADS) {
            const int row = i / ACROSS, d = i % ACROSS * N;
            const T* const from = source(row);
            const bool valid = from != nullptr && d < dim;
            S* const to = tile + row * PITCH + d;
            if constexpr (sizeof(T) == sizeof(S)) {
                cp_async16(to, valid ? from + d : any, valid);
            } else {
                float values[N] = {};
                if (valid) load_vector(values, from + d);
#pragma unroll
                for (int e = 0; e < N; e++) to[e] = values[e];
            }
        }
    } else {
        for (int i = threadIdx.x; i < COUNT * WIDTH; i += THREADS) {
            const int row = i / WIDTH, d = i % WIDTH;
            const T* const from = source(row);
            const bool valid = from != nullptr && d < dim;
            if constexpr (sizeof(T) == sizeof(S))
                tile[row * PITCH + d] = valid ? from[d] : T{};
            else
                tile[row * PITCH + d] = valid ? to_float(from[d]) : 0.0f;
        }
    }
}

// tile[i] = the key or value of position block + i, if it is one of `seen`.
template <int COUNT, int WIDTH, int PITCH, int THREADS, class T, class C, class S>
__device__ __forceinline__ void load_keys(S* tile, const C* from, const Rows<T, C>& rows, Seen seen, int block) {
    const C* const first = from + rows.key(block);
    const int64_t stride = rows.key_stride();
    load_rows<COUNT, WIDTH, PITCH, THREADS>(tile, rows.a.dim, rows.a.dim % LANES<C> == 0, from, [&](int i) -> const C* {
        return block + i >= seen.first && block + i < seen.end ? first + i * stride : nullptr;
    });
}

// tile[i][d] = codes[i][d] factor(i), COUNT rows of WIDTH.
template <int COUNT, int WIDTH, int PITCH, int THREADS, class T, class F>
__device__ __forceinline__ void widen(T* tile, const int8_t* codes, F factor) {
    constexpr int N = LANES<T>, ACROSS = WIDTH / N;
#pragma unroll 1
    for (int i = threadIdx.x; i < COUNT * ACROSS; i += THREADS) {
        float values[N];
        load_vector(values, codes + i * N);
        const float by = factor(i / ACROSS);
#pragma unroll
        for (int e = 0; e < N; e++) values[e] *= by;
        store_vector(tile + i / ACROSS * PITCH + i % ACROSS * N, values);
    }
}

// y[row] = tile row, for the COUNT rows of a warp from `first`.
template <int COUNT, int PITCH, class T, class C>
__device__ __forceinline__ void store_rows(const Rows<T, C>& rows, int first, const T* tile) {
    const int lane = threadIdx.x % 32, dim = rows.a.dim;
    if (rows.a.vectors()) {
        const int across = dim / LANES<T>;
        for (int i = lane; i < COUNT * across; i += 32) {
            const int row = i / across, d = i % across * LANES<T>;
            if (first + row < rows.a.rows())
                *reinterpret_cast<uint4*>(rows.a.y + rows.at(first + row) + d) = *reinterpret_cast<const uint4*>(tile + row * PITCH + d);
        }
    } else {
        for (int i = lane; i < COUNT * dim; i += 32) {
            const int row = i / dim;
            if (first + row < rows.a.rows()) rows.a.y[rows.at(first + row) + i % dim] = tile[row * PITCH + i % dim];
        }
    }
}

template <class T, class C>
__device__ __forceinline__ void zero_rows(const Rows<T, C>& rows, int count) {
    if (rows.a.partial != nullptr) return;  // attention_combine does
    for (int i = threadIdx.x; i < count * rows.a.dim; i += blockDim.x) {
        const int r = rows.row + i / rows.a.dim;
        if (r < rows.a.rows()) rows.a.y[rows.at(r) + i % rows.a.dim] = from_float<T>(0.0f);
    }
}

// Keys of this block's span that its rows see.
template <class T, class C>
__device__ __forceinline__ Seen in_span(const Rows<T, C>& rows, Seen all) {
    const int span = rows.a.span, number = (int)blockIdx.y - (rows.a.sinks > 0);
    if (span == 0) return all;
    if (number < 0) return {0, 0};
    const int first = (all.first / span + number) * span;
    return {max(all.first, first), min(all.end, first + span)};
}

// Blocks of `size` keys that a tile of rows goes through: of sinks, then of what else they see.
struct Blocks {
    Seen sinks, all;
    int begin, of_sinks, count, size;

    template <class T, class C>
    __device__ __forceinline__ Blocks(const Rows<T, C>& rows, int tile, int size)
        : sinks{0, 0}, all(in_span(rows, rows.keys(rows.row, rows.row + tile))), size(size) {
        if (blockIdx.y == 0) sinks = rows.sinks(min(rows.row + tile, rows.a.rows()) - 1);
        begin = all.first / size * size;
        of_sinks = (sinks.end + size - 1) / size;
        count = of_sinks + (all.first < all.end ? (all.end - begin + size - 1) / size : 0);
    }

    // The first position of a block, and what the rows see of it.
    __device__ __forceinline__ int at(int n) const { return n < of_sinks ? n * size : begin + (n - of_sinks) * size; }
    __device__ __forceinline__ Seen seen(int n) const { return n < of_sinks ? sinks : all; }
    // And row `r` by itself.
    template <class T, class C>
    __device__ __forceinline__ Seen seen(const Rows<T, C>& rows, int n, int r) const {
        return n < of_sinks ? rows.sinks(r) : rows.keys(r);
    }
    // Whether queries for what follows sinks are to be had after this block.
    __device__ __forceinline__ bool turns(int n) const { return n + 1 == of_sinks && count > of_sinks; }
};

template <class T, class C, int D, int WARPS>
__device__ __forceinline__ void attend_mma(const Problem<T, C>& a) {
    constexpr bool CODES = Problem<T, C>::CODES;
    constexpr int KEYS = 64, PITCH = D + 8, THREADS = 32 * WARPS, TILE = 16 * WARPS;
    DYNAMIC_SHARED(T, shared);
    // Codes are widened to one tile, first keys and then values.
    T *const keys = shared, *const values = CODES ? keys : keys + KEYS * PITCH, *const queries = values + KEYS * PITCH;
    // As they come, [KEYS, D] twice, and their factors, [KEYS] twice.
    int8_t *const key_codes = reinterpret_cast<int8_t*>(queries + TILE * PITCH), *const value_codes = key_codes + KEYS * D;
    float *const key_factors = reinterpret_cast<float*>(value_codes + KEYS * D), *const value_factors = key_factors + KEYS;
    const Rows<T, C> rows(a, TILE);
    if (rows.masked()) return zero_rows(rows, TILE);
    const int lane = threadIdx.x % 32, warp_row = rows.row + threadIdx.x / 32 * 16;
    T* const warp_queries = queries + threadIdx.x / 32 * 16 * PITCH;
    const Blocks blocks(rows, TILE, KEYS);
    // Starts the copy of a block's keys, or its values; `arrive` ends it.
    const auto load = [&](bool is_key, int n) {
        const C* const from = is_key ? a.k : a.v;
        if (n < blocks.count) {
            const int block = blocks.at(n);
            const Seen all = blocks.seen(n);
            if constexpr (CODES) {
                const float* const factors = is_key ? a.k_factors : a.v_factors;
                load_keys<KEYS, D, D, THREADS>(is_key ? key_codes : value_codes, from, rows, all, block);
#pragma unroll 1
                for (int i = threadIdx.x; i < KEYS; i += THREADS) {
                    const bool seen = block + i >= all.first && block + i < all.end;
                    (is_key ? key_factors : value_factors)[i] = seen ? rows.factor(factors, block + i) : 0.0f;
                }
            } else {
                load_keys<KEYS, D, PITCH, THREADS>(is_key ? keys : values, from, rows, all, block);
            }
        }
        cp_async_commit();
    };
    const auto arrive = [&](bool is_key) {
        cp_async_wait<1>();
        __syncthreads();
        if constexpr (CODES) {
            if (is_key)
                widen<KEYS, D, PITCH, THREADS>(keys, key_codes, [](int) { return 1.0f; });
            else
                widen<KEYS, D, PITCH, THREADS>(values, value_codes, [&](int i) { return value_factors[i]; });
            __syncthreads();
        }
    };
    const auto ask = [&](const T* q) {
        load_rows<TILE, D, PITCH, THREADS>(queries, a.dim, a.vectors(), q, [&](int i) -> const T* {
            return rows.row + i < a.rows() ? q + rows.at(rows.row + i) : nullptr;
        });
    };
    ask(blocks.of_sinks > 0 ? a.far : a.q);
    load(true, 0);

    Seen mine[2];
    Softmax softmax[2];
    float sums[D / 8][4] = {};
    unsigned q[D / 16][4];
    for (int n = 0; n < blocks.count; n++) {
        load(false, n);
        arrive(true);
        if (n == 0 || n == blocks.of_sinks) {
#pragma unroll
            for (int half = 0; half < 2; half++) mine[half] = blocks.seen(rows, n, warp_row + lane / 4 + 8 * half);
#pragma unroll
            for (int d = 0; d < D / 16; d++) load_a<false, PITCH>(q[d], warp_queries, 0, d * 16);
        }
        float scores[KEYS / 8][4] = {};
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
#pragma unroll
            for (int i = 0; i < KEYS / 16; i++) {
                unsigned b[2][2];
                load_b<true, PITCH>(b, keys, d * 16, i * 16);
                multiply_accumulate(scores[2 * i], q[d], b[0], T{});
                multiply_accumulate(scores[2 * i + 1], q[d], b[1], T{});
            }
        }
        // A lane has columns 2 t, 2 t + 1 of every eight, of two rows.
        if constexpr (CODES) {
#pragma unroll
            for (int i = 0; i < KEYS / 8; i++) {
#pragma unroll
                for (int e = 0; e < 4; e++) scores[i][e] *= key_factors[i * 8 + lane % 4 * 2 + e % 2];
            }
        }
        __syncthreads();  // the keys were read, and the queries
        if (blocks.turns(n)) ask(a.q);
        load(true, n + 1);

#pragma unroll
        for (int half = 0; half < 2; half++) {
            const auto score = [&](int i, int e) -> float& { return scores[i][2 * half + e]; };
            const float rescale = softmax[half].weigh<KEYS / 8>(score, a.scale, blocks.at(n), mine[half], true);
#pragma unroll
            for (int d = 0; d < D / 8; d++) sums[d][2 * half] *= rescale, sums[d][2 * half + 1] *= rescale;
        }

        arrive(false);
#pragma unroll
        for (int i = 0; i < KEYS / 16; i++) {
            const unsigned weights[4] = {pack2(scores[2 * i][0], scores[2 * i][1], T{}), pack2(scores[2 * i][2], scores[2 * i][3], T{}),
                                         pack2(scores[2 * i + 1][0], scores[2 * i + 1][1], T{}),
                                         pack2(scores[2 * i + 1][2], scores[2 * i + 1][3], T{})};
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                unsigned b[2][2];
                load_b<false, PITCH>(b, values, i * 16, d * 16);
                multiply_accumulate(sums[2 * d], weights, b[0], T{});
                multiply_accumulate(sums[2 * d + 1], weights, b[1], T{});
            }
        }
        __syncthreads();  // the values were read
    }
    cp_async_wait<0>();

#pragma unroll
    for (int half = 0; half < 2; half++) {
        float& sum = softmax[half].sum;
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const int row = lane / 4 + 8 * half, r = warp_row + row;
        if (a.partial != nullptr) {
            if (r >= a.rows()) continue;
            float* const to = rows.partial(r);
#pragma unroll
            for (int d = 0; d < D / 8; d++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int column = d * 8 + lane % 4 * 2 + e;
                    if (column < a.dim) to[column] = sums[d][2 * half + e];
                }
            }
            if (lane % 4 == 0) to[a.dim] = softmax[half].largest, to[a.dim + 1] = sum;
        } else {
            const float inverse = 1.0f / sum;
#pragma unroll
            for (int d = 0; d < D / 8; d++) {
                const unsigned pair = pack2(sums[d][2 * half] * inverse, sums[d][2 * half + 1] * inverse, T{});
                *reinterpret_cast<unsigned*>(warp_queries + row * PITCH + d * 8 + lane % 4 * 2) = pair;
            }
            if (lane % 4 == 0 && r < a.rows()) rows.store_logsum(r, softmax[half].shift + log2_approx(sum));
        }
    }
    if (a.partial != nullptr) return;
    __syncwarp();
    store_rows<16, PITCH>(rows, warp_row, warp_queries);
}

// A warp has R rows.
template <class T, class C, int D, int WARPS, int R>
__device__ __forceinline__ void attend_fma(const Problem<T, C>& a) {
    constexpr bool CODES = Problem<T, C>::CODES;
    constexpr int KEYS = 32, PITCH = D + 4, THREADS = 32 * WARPS, TILE = R * WARPS, RUN = D / 32;
    DYNAMIC_SHARED(float, shared);
    float *const keys = shared, *const values = keys + KEYS * PITCH, *const queries = values + KEYS * PITCH;
    const Rows<T, C> rows(a, TILE);
    if (rows.masked()) return zero_rows(rows, TILE);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warp_row = rows.row + warp * R;
    float* const warp_queries = queries + warp * R * D;
    float* const weights = queries + TILE * D + warp * R * KEYS;
    const Blocks blocks(rows, TILE, KEYS);
    const auto load = [&](float* tile, const C* from, int n) {
        if (n < blocks.count) load_keys<KEYS, D, PITCH, THREADS>(tile, from, rows, blocks.seen(n), blocks.at(n));
        cp_async_commit();
    };
    const auto ask = [&](const T* q) {
        load_rows<TILE, D, D, THREADS>(queries, a.dim, a.vectors(), q, [&](int i) -> const T* {
            return rows.row + i < a.rows() ? q + rows.at(rows.row + i) : nullptr;
        });
    };
    ask(blocks.of_sinks > 0 ? a.far : a.q);
    load(keys, a.k, 0);

    // Rows see up to `ends`, and of that `reach` keys, from `lowest` on.
    int ends[R];
#pragma unroll
    for (int r = 0; r < R; r++) ends[r] = rows.end(warp_row + r);
    constexpr int ALL = 0x7fffffff;
    Softmax softmax[R];
    float sums[R][RUN] = {};
    for (int n = 0; n < blocks.count; n++) {
        load(values, a.v, n);
        cp_async_wait<1>();
        __syncthreads();
        float scores[R] = {};
#pragma unroll 4
        for (int d = 0; d < D; d += 4) {
            float k[4];
            load_vector(k, keys + lane * PITCH + d);
#pragma unroll
            for (int r = 0; r < R; r++) {
                float q[4];
                load_vector(q, warp_queries + r * D + d);
#pragma unroll
                for (int e = 0; e < 4; e++) scores[r] = fmaf(q[e], k[e], scores[r]);
            }
        }
        __syncthreads();  // the keys were read, and the queries
        if (blocks.turns(n)) ask(a.q);
        load(keys, a.k, n + 1);

        const int p = blocks.at(n) + lane;
        const Seen all = blocks.seen(n);
        const bool sinks = n < blocks.of_sinks;
        const int reach = sinks || a.window == 0 ? ALL : a.window, lowest = sinks ? 0 : rows.lowest(), limit = sinks ? a.sinks : ALL;
        float value_factor = 0.0f;
        if constexpr (CODES) {
            const bool seen = p >= all.first && p < all.end;
            const float key_factor = seen ? rows.factor(a.k_factors, p) : 0.0f;
            value_factor = seen ? rows.factor(a.v_factors, p) : 0.0f;
#pragma unroll
            for (int r = 0; r < R; r++) scores[r] *= key_factor;
        }
#pragma unroll
        for (int r = 0; r < R; r++) {
            const float score = p < max(ends[r] - reach, lowest) || p >= min(ends[r], limit) ? minus_infinity() : scores[r];
            float largest = score;
#pragma unroll
            for (int distance = 16; distance > 0; distance /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
            const float rescale = softmax[r].raise(largest * a.scale);
            const float weight = softmax[r].weight(score, a.scale);
            softmax[r].add(rescale, weight);
            weights[r * KEYS + lane] = CODES ? weight * value_factor : weight;
#pragma unroll
            for (int e = 0; e < RUN; e++) sums[r][e] *= rescale;
        }

        cp_async_wait<1>();
        __syncthreads();
#pragma unroll 2
        for (int j = 0; j < KEYS; j += 4) {
            float v[4][RUN];
#pragma unroll
            for (int e = 0; e < 4; e++) load_vector(v[e], values + (j + e) * PITCH + lane * RUN);
#pragma unroll
            for (int r = 0; r < R; r++) {
                float w[4];
                load_vector(w, weights + r * KEYS + j);
#pragma unroll
                for (int e = 0; e < 4; e++) {
#pragma unroll
                    for (int d = 0; d < RUN; d++) sums[r][d] = fmaf(w[e], v[e][d], sums[r][d]);
                }
            }
        }
        __syncthreads();  // values and weights were read
    }
    cp_async_wait<0>();

#pragma unroll
    for (int r = 0; r < R; r++) {
        const int at = warp_row + r;
        const float sum = warp_sum(softmax[r].sum);  // a lane's weights were rescaled as they went
        if (at >= a.rows()) continue;
        const bool whole = lane * RUN + RUN <= a.dim && a.dim % RUN == 0;
        if (a.partial != nullptr) {
            float* const to = rows.partial(at);
#pragma unroll
            for (int e = 0; e < RUN; e++) {
                if (lane * RUN + e < a.dim) to[lane * RUN + e] = sums[r][e];
            }
            if (lane == 0) to[a.dim] = softmax[r].largest, to[a.dim + 1] = sum;
            continue;
        }
        const float inverse = 1.0f / sum;
#pragma unroll
        for (int e = 0; e < RUN; e++) sums[r][e] *= inverse;
        T* const to = a.y + rows.at(at) + lane * RUN;
        if constexpr (sizeof(T) * RUN >= 8) {
            if (whole) {
                store_vector(to, sums[r]);
            } else {
#pragma unroll
                for (int e = 0; e < RUN; e++) {
                    if (lane * RUN + e < a.dim) to[e] = from_float<T>(sums[r][e]);
                }
            }
        } else {
#pragma unroll
            for (int e = 0; e < RUN; e++) {
                if (lane * RUN + e < a.dim) to[e] = from_float<T>(sums[r][e]);
            }
        }
        if (lane == 0) rows.store_logsum(at, softmax[r].shift + log2_approx(sum));
    }
}

template <class T, class C, int D, bool MANY>
__device__ __forceinline__ void attend(const Problem<T, C>& a) {
    if constexpr (TensorCore<T>::available)
        attend_mma<T, C, D, MANY ? 4 : 1>(a);
    else
        attend_fma<T, C, D, MANY ? 4 : 1, MANY ? 8 : 2>(a);
}

// y of a row from its spans, in order. grid: rows (b, kv head, row); block: elements of the head.
template <class T>
__device__ __forceinline__ void combine(T* y, const float* partial, const unsigned char* mask, int tokens, int heads, int kv_heads, int dim, int spans) {
    const int group = heads / kv_heads, count = tokens * group;
    const int r = blockIdx.x % count, head = blockIdx.x / count, batch = head / kv_heads;
    T* const to = y + (((int64_t)batch * tokens + r / group) * heads + head % kv_heads * group + r % group) * dim;
    const bool masked = mask != nullptr && mask[batch] == 0;
    const int pitch = partial_pitch(dim);
    const float* const from = partial + (int64_t)blockIdx.x * spans * pitch;
    for (int d = threadIdx.x; d < dim; d += blockDim.x) {
        if (masked) {
            to[d] = from_float<T>(0.0f);
            continue;
        }
        float largest = minus_infinity(), sum = 0.0f, weights = 0.0f;
        for (int s = 0; s < spans; s++) largest = fmaxf(largest, from[s * pitch + dim]);
        for (int s = 0; s < spans; s++) {
            const float* const span = from + s * pitch;
            const float weight = exp2_approx(span[dim] - largest);
            sum = fmaf(weight, span[d], sum);
            weights = fmaf(weight, span[dim + 1], weights);
        }
        to[d] = from_float<T>(sum / weights);
    }
}

// seen += tokens, or = 0, where the mask lets it.
extern "C" __global__ void __launch_bounds__(256) attention_advance(int* seen, const unsigned char* mask, int batch, int tokens, int reset) {
    const int b = blockIdx.x * blockDim.x + threadIdx.x;
    if (b >= batch || (mask != nullptr && mask[b] == 0)) return;
    seen[b] = reset ? 0 : (int)((unsigned)seen[b] + tokens);
}

// Left to itself the compiler spills there, for a block more on a multiprocessor.
constexpr int LEAST_BLOCKS = SWARA_ARCH >= 120 ? 2 : 0;

#define ATTENTION_KERNEL(NAME, T, C, D, MANY)                                                                                  \
    extern "C" __global__ void __launch_bounds__(MANY ? 128 : 32, MANY && D == 64 && sizeof(C) == 2 ? LEAST_BLOCKS : 0)       \
        NAME(T* y, float* logsum, float* partial, const T* q, const T* far, const C* k, const C* v, const float* k_factors,    \
             const float* v_factors, const int* seen, const unsigned char* mask, int tokens, int heads, int kv_heads,          \
             int keys, int dim, int window, int causal, int sinks, int span, float scale) {                                    \
        if constexpr (!MANY) after_predecessors();                                                                             \
        attend<T, C, D, MANY>({y, logsum, partial, q, far, k, v, k_factors, v_factors, seen, mask, tokens, heads, kv_heads,    \
                               keys, dim, window, causal, span, sinks, scale});                                                \
    }

#define GRADIENT_KERNEL(NAME, T, D, KEYS)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256, 1)                                                                       \
        NAME(T* first, T* second, const T* q, const T* k, const T* v, const T* dy, const float* logsum, const float* delta,    \
             int tokens, int heads, int kv_heads, int keys, int dim, int window, int causal, float scale) {                    \
        gradients<T, D, KEYS>({first, second, q, k, v, dy, logsum, delta},                                                     \
                              {tokens, heads, kv_heads, keys, dim, window, causal, scale});                                    \
    }

#define FOR_TYPE(SUFFIX, T)                                                                                                    \
    GRADIENT_KERNEL(attention_dq_64_##SUFFIX, T, 64, false)                                                                    \
    GRADIENT_KERNEL(attention_dkv_64_##SUFFIX, T, 64, true)                                                                    \
    GRADIENT_KERNEL(attention_dq_128_##SUFFIX, T, 128, false)                                                                  \
    GRADIENT_KERNEL(attention_dkv_128_##SUFFIX, T, 128, true)                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                          \
        attention_delta_##SUFFIX(float* delta, const T* dy, const T* y, uint64_t rows, int tokens, int heads, int dim) {       \
        deltas(delta, dy, y, rows, tokens, heads, dim);                                                                        \
    }                                                                                                                          \
    ATTENTION_KERNEL(attention_few_64_##SUFFIX, T, T, 64, false)                                                               \
    ATTENTION_KERNEL(attention_few_64_int8_##SUFFIX, T, int8_t, 64, false)                                                     \
    ATTENTION_KERNEL(attention_many_64_##SUFFIX, T, T, 64, true)                                                               \
    ATTENTION_KERNEL(attention_many_64_int8_##SUFFIX, T, int8_t, 64, true)                                                     \
    ATTENTION_KERNEL(attention_few_128_##SUFFIX, T, T, 128, false)                                                             \
    ATTENTION_KERNEL(attention_few_128_int8_##SUFFIX, T, int8_t, 128, false)                                                   \
    ATTENTION_KERNEL(attention_many_128_##SUFFIX, T, T, 128, true)                                                             \
    ATTENTION_KERNEL(attention_many_128_int8_##SUFFIX, T, int8_t, 128, true)                                                   \
    extern "C" __global__ void __launch_bounds__(128)                                                                          \
        attention_combine_##SUFFIX(T* y, const float* partial, const unsigned char* mask, int tokens, int heads, int kv_heads, \
                                   int dim, int spans) {                                                                       \
        after_predecessors();                                                                                                  \
        combine(y, partial, mask, tokens, heads, kv_heads, dim, spans);                                                        \
    }

// dependents: attention_few_64_int8_f32 attention_few_128_int8_f32
// kernels: attention_many_64_int8_f32 attention_many_128_int8_f32
// dependents: attention_few_64_f32 attention_few_128_f32 attention_combine_f32
// kernels: attention_many_64_f32 attention_many_128_f32
// dependents: attention_few_64_int8_bf16 attention_few_128_int8_bf16
// kernels: attention_many_64_int8_bf16 attention_many_128_int8_bf16
// dependents: attention_few_64_bf16 attention_few_128_bf16 attention_combine_bf16
// kernels: attention_many_64_bf16 attention_many_128_bf16
// dependents: attention_few_64_int8_f16 attention_few_128_int8_f16
// kernels: attention_many_64_int8_f16 attention_many_128_int8_f16
// dependents: attention_few_64_f16 attention_few_128_f16 attention_combine_f16
// kernels: attention_many_64_f16 attention_many_128_f16
// kernels: attention_delta_f32 attention_dq_64_f32 attention_dkv_64_f32 attention_dq_128_f32 attention_dkv_128_f32
// kernels: attention_delta_bf16 attention_dq_64_bf16 attention_dkv_64_bf16 attention_dq_128_bf16 attention_dkv_128_bf16
// kernels: attention_delta_f16 attention_dq_64_f16 attention_dkv_64_f16 attention_dq_128_f16 attention_dkv_128_f16
FOR_TYPE(f32, float)
FOR_TYPE(bf16, bf16)
FOR_TYPE(f16, f16)
