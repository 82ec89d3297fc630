// Rotary position embedding, and what a stream's cache takes from it.
//
//   (y_a, y_b) = (x_a cos - x_b sin, x_a sin + x_b cos)     angle = (seen + t) frequency[i]
//   (a, b) = (2 i, 2 i + 1), or HALF-SPLIT (i, i + D / 2)
//
// Shapes: x, y [B, T, H, D]; qkv [B, T, (Hq + 2 Hkv) D]; q [B, T, Hq, D]; keys, values [B, Hkv, capacity, D], token p in slot
// p % capacity; seen [B], what streams saw before; frequency [D / 2], fractions of a turn in 64 bits, D at most 128.
//
//   rope_rotate   y = x turned, or turned back.
//   rope_append   q and k of qkv turned; k and v into the rings of the streams that `mask` lets run. Beside sinks q twice, [2 B, T, Hq, D]:
//                 the second as if at `last` at most; and slots before whole blocks of 64 that hold sinks are no part of the ring.
//   rope_append_int8   k and v as codes of 8 bits, with a factor [B, Hkv, capacity] for each: their largest over 127.
//
// grid: tokens (b, t). block: its heads, 16 bytes a thread at a time (half-split: 16 bytes of each half; element by element
// where rows are no whole vectors). Cosines and sines of the token are computed once, into shared memory.
//
// Bytes: x and y once each; append: qkv and as much again.
//
// Ladder: v1. Not yet timed on any GPU.

#include "vec.cuh"

constexpr int MAX_PAIRS = 64;

// Sine and cosine of a 64-bit fraction of a turn: its quadrant, and what is left of [-1/8, 1/8] of a turn by polynomial
// (relative 3.4e-9, absolute 1.9e-10); cutting 32 bits off the phase errs by 1.5e-9.
__device__ __forceinline__ void sin_cos_turn(float& sin, float& cos, uint64_t phase) {
    const unsigned high = (unsigned)(phase >> 32), quadrant = (high + 0x20000000u) >> 30;
    const float x = (float)(int)(high - (quadrant << 30)) * 0x1p-30f;  // quarter turns
    const float u = x * x;
    const float s = x * fmaf(u, fmaf(u, fmaf(u, -0.00460214922f, 0.0796802176f), -0.645963478f), 1.57079632f);
    const float c = fmaf(u, fmaf(u, fmaf(u, fmaf(u, 0.000906739890f, -0.0208615283f), 0.253669410f), -1.23370055f), 1.0f);
    sin = quadrant & 1 ? c : s;
    cos = quadrant & 1 ? s : c;
    if (quadrant & 2) sin = -sin;
    if ((quadrant + 1) & 2) cos = -cos;
}

// The turns of one token; pairs of a head.
struct alignas(16) Turns {
    float cos[MAX_PAIRS], sin[MAX_PAIRS];

    // All threads of the block take part.
    __device__ __forceinline__ void fill(const uint64_t* frequency, unsigned position, int pairs, float direction) {
        for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
            sin_cos_turn(sin[i], cos[i], position * frequency[i]);
            sin[i] *= direction;
        }
        __syncthreads();
    }

    // a[j], b[j] of N pairs from `first` on, which is a multiple of N.
    template <int N>
    __device__ __forceinline__ void turn(float (&a)[N], float (&b)[N], int first) const {
        constexpr int AT_ONCE = N < 4 ? N : 4;
#pragma unroll
        for (int i = 0; i < N; i += AT_ONCE) {
            float c[AT_ONCE], s[AT_ONCE];
            load_vector(c, cos + first + i);
            load_vector(s, sin + first + i);
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                const float x = a[i + j];
                a[i + j] = x * c[j] - b[i + j] * s[j];
                b[i + j] = x * s[j] + b[i + j] * c[j];
            }
        }
    }

    // y = item `i` of a head x, turned: N neighbours, or N of each half, or with N = 1 a pair.
    template <class T, int N, bool HALF_SPLIT>
    __device__ __forceinline__ void item(T* y, const T* x, int i, int dim) const {
        if constexpr (HALF_SPLIT || N == 1) {
            const int at = HALF_SPLIT ? i * N : 2 * i, apart = HALF_SPLIT ? dim / 2 : 1;
            float a[N], b[N];
            load_vector(a, x + at);
            load_vector(b, x + at + apart);
            turn(a, b, i * N);
            store_vector(y + at, a);
            store_vector(y + at + apart, b);
        } else {
            float v[N], a[N / 2], b[N / 2];
            load_vector(v, x + i * N);
#pragma unroll
            for (int j = 0; j < N / 2; j++) a[j] = v[2 * j], b[j] = v[2 * j + 1];
            turn(a, b, i * (N / 2));
#pragma unroll
            for (int j = 0; j < N / 2; j++) v[2 * j] = a[j], v[2 * j + 1] = b[j];
            store_vector(y + i * N, v);
        }
    }
};

// An item of a head is as many elements, of one vector or of two.
template <int N, bool HALF_SPLIT>
constexpr int ITEM = HALF_SPLIT || N == 1 ? 2 * N : N;

template <class T, int N, bool HALF_SPLIT>
__device__ __forceinline__ void rotate(T* y, const T* x, const Turns& turns, int heads, int dim) {
    const int items = dim / ITEM<N, HALF_SPLIT>;
    const uint64_t row = (uint64_t)blockIdx.x * heads * dim;
    for (int i = threadIdx.x; i < heads * items; i += blockDim.x) {
        const uint64_t head = row + i / items * dim;
        turns.item<T, N, HALF_SPLIT>(y + head, x + head, i % items, dim);
    }
}

template <class T>
struct Rings {
    T *q, *keys, *values;
    const T* qkv;
    int heads, kv_heads, capacity, dim;
    const Turns* far;  // of queries for sinks, or null

    // From queries to those for sinks.
    __device__ __forceinline__ uint64_t apart() const { return (uint64_t)gridDim.x * heads * dim; }

    // y = all queries of this token, turned, `items` a head.
    template <int N, bool HALF_SPLIT>
    __device__ __forceinline__ void turn_queries(const Turns& turns, T* y, int items) const {
        const T* const x = qkv + (uint64_t)blockIdx.x * (heads + 2 * kv_heads) * dim;
        y += (uint64_t)blockIdx.x * heads * dim;
        for (int i = threadIdx.x; i < heads * items; i += blockDim.x) {
            const uint64_t head = (uint64_t)i / items * dim;
            turns.item<T, N, HALF_SPLIT>(y + head, x + head, i % items, dim);
        }
    }
};

// Of a position, behind `sinks` rounded up to whole blocks.
__device__ __forceinline__ int slot_of(unsigned position, int sinks, int capacity) {
    const unsigned fixed = (sinks + 63) / 64 * 64;
    return position < fixed ? position : fixed + (position - fixed) % (capacity - fixed);
}

// Queries alone, and a warp for each head of keys or values.
template <class T>
struct CodeRings {
    Rings<T> of;  // without rings
    int8_t *keys, *values;
    float *key_factors, *value_factors;
};

// Heads whose largest value is below are zero; the inverse of others is finite. kept.rs has the same.
constexpr float SMALLEST = 1e-30f;

template <class T, int N, bool HALF_SPLIT>
__device__ __forceinline__ void append_codes(const CodeRings<T>& codes, const Turns& turns, int stream, int slot, bool runs) {
    constexpr int PAIRS = MAX_PAIRS / 32;
    const Rings<T>& r = codes.of;
    const int items = r.dim / ITEM<N, HALF_SPLIT>, all = r.heads + 2 * r.kv_heads, pairs = r.dim / 2;
    const T* const row = r.qkv + (uint64_t)blockIdx.x * all * r.dim;
    // One after the other, for registers.
    r.template turn_queries<N, HALF_SPLIT>(turns, r.q, items);
    if (r.far != nullptr) r.template turn_queries<N, HALF_SPLIT>(*r.far, r.q + r.apart(), items);
    if (!runs) return;
    const int lane = threadIdx.x % 32;
    for (int head = threadIdx.x / 32; head < 2 * r.kv_heads; head += blockDim.x / 32) {
        const bool key = head < r.kv_heads;
        const T* const x = row + (r.heads + head) * r.dim;
        const uint64_t token = ((uint64_t)stream * r.kv_heads + head % r.kv_heads) * r.capacity + slot;
        float a[PAIRS][1], b[PAIRS][1];
        unsigned largest = 0;  // as integers, of which that of a NaN is largest
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            const int pair = lane + 32 * j;
            a[j][0] = b[j][0] = 0.0f;
            if (pair >= pairs) continue;
            if constexpr (HALF_SPLIT) {
                a[j][0] = to_float(x[pair]), b[j][0] = to_float(x[pair + pairs]);
            } else {
                struct alignas(2 * sizeof(T)) Pair {
                    T a, b;
                };
                const Pair both = reinterpret_cast<const Pair*>(x)[pair];
                a[j][0] = to_float(both.a), b[j][0] = to_float(both.b);
            }
            if (key) turns.turn(a[j], b[j], pair);
            largest = max(largest, max(__float_as_uint(fabsf(a[j][0])), __float_as_uint(fabsf(b[j][0]))));
        }
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
        const float most = __uint_as_float(largest);
        const bool nothing = most < SMALLEST;
        const float inverse = nothing ? 0.0f : 127.0f / most;
        int8_t* const to = (key ? codes.keys : codes.values) + token * r.dim;
#pragma unroll
        for (int j = PAIRS - 1; j >= 0; j--) {
            const int pair = lane + 32 * j;
            if (pair >= pairs) continue;
            const int8_t first = (int8_t)(int)rintf(a[j][0] * inverse), second = (int8_t)(int)rintf(b[j][0] * inverse);
            if constexpr (HALF_SPLIT)
                to[pair] = first, to[pair + pairs] = second;
            else
                reinterpret_cast<uint16_t*>(to)[pair] = (uint16_t)((uint8_t)first | (unsigned)(uint8_t)second << 8);
        }
        if (lane == 0) (key ? codes.key_factors : codes.value_factors)[token] = nothing ? 0.0f : most / 127.0f;
    }
}

template <class T, int N, bool HALF_SPLIT>
__device__ __forceinline__ void append(const Rings<T>& r, const Turns& turns, int stream, int slot, bool runs) {
    const int items = r.dim / ITEM<N, HALF_SPLIT>, heads = r.heads + 2 * r.kv_heads;
    if (r.far != nullptr) r.template turn_queries<N, HALF_SPLIT>(*r.far, r.q + r.apart(), items);
    const T* const row = r.qkv + (uint64_t)blockIdx.x * heads * r.dim;
    for (int i = threadIdx.x; i < heads * items; i += blockDim.x) {
        const int head = i / items, item = i % items;
        const T* const x = row + head * r.dim;
        if (head < r.heads) {
            turns.item<T, N, HALF_SPLIT>(r.q + ((uint64_t)blockIdx.x * r.heads + head) * r.dim, x, item, r.dim);
            continue;
        }
        if (!runs) continue;
        const bool key = head < r.heads + r.kv_heads;
        const int kv_head = head - r.heads - (key ? 0 : r.kv_heads);
        T* const to = (key ? r.keys : r.values) + (((uint64_t)stream * r.kv_heads + kv_head) * r.capacity + slot) * r.dim;
        if (key) {
            turns.item<T, N, HALF_SPLIT>(to, x, item, r.dim);
        } else {
            constexpr int SIZE = ITEM<N, HALF_SPLIT>, VECTORS = SIZE / N;
#pragma unroll
            for (int v = 0; v < VECTORS; v++) {
                // Vectors of a warp side by side, as those that are turned.
                const int at = HALF_SPLIT ? v * r.dim / 2 + item * N : item * SIZE + v * N;
                float values[N];
                load_vector(values, x + at);
                store_vector(to + at, values);
            }
        }
    }
}

// f<N, HALF_SPLIT>(): vectors where rows are made of whole ones.
#define FOR_STYLE(T, f, ...)                                                                                                   \
    if (half_split) {                                                                                                          \
        if (dim % (2 * LANES<T>) == 0)                                                                                         \
            f<T, LANES<T>, true>(__VA_ARGS__);                                                                                 \
        else                                                                                                                   \
            f<T, 1, true>(__VA_ARGS__);                                                                                        \
    } else if (dim % LANES<T> == 0) {                                                                                          \
        f<T, LANES<T>, false>(__VA_ARGS__);                                                                                    \
    } else {                                                                                                                   \
        f<T, 1, false>(__VA_ARGS__);                                                                                           \
    }

#define FOR_TYPE(SUFFIX, T)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(256)                                                                          \
        rope_rotate_##SUFFIX(T* y, const T* x, const uint64_t* frequency, const int* seen, int tokens, int heads, int dim,     \
                             int half_split, int back) {                                                                       \
        __shared__ Turns turns;                                                                                                \
        turns.fill(frequency, (unsigned)seen[blockIdx.x / tokens] + blockIdx.x % tokens, dim / 2, back ? -1.0f : 1.0f);        \
        FOR_STYLE(T, rotate, y, x, turns, heads, dim)                                                                          \
    }                                                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                                          \
        rope_append_##SUFFIX(T* q, T* keys, T* values, const T* qkv, const uint64_t* frequency, const int* seen,               \
                             const unsigned char* mask, int tokens, int heads, int kv_heads, int capacity, int dim,            \
                             int sinks, int last, int half_split) {                                                            \
        after_predecessors();                                                                                                  \
        __shared__ Turns turns, far;                                                                                           \
        const int stream = blockIdx.x / tokens;                                                                                \
        const unsigned position = (unsigned)seen[stream] + blockIdx.x % tokens;                                                \
        turns.fill(frequency, position, dim / 2, 1.0f);                                                                        \
        if (sinks > 0) far.fill(frequency, min(position, (unsigned)last), dim / 2, 1.0f);                                      \
        const Rings<T> rings = {q, keys, values, qkv, heads, kv_heads, capacity, dim, sinks > 0 ? &far : nullptr};             \
        const int slot = slot_of(position, sinks, capacity);                                                                   \
        const bool runs = mask == nullptr || mask[stream] != 0;                                                                \
        FOR_STYLE(T, append, rings, turns, stream, slot, runs)                                                                 \
    }                                                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                                          \
        rope_append_int8_##SUFFIX(T* q, int8_t* keys, int8_t* values, float* key_factors, float* value_factors, const T* qkv,  \
                                  const uint64_t* frequency, const int* seen, const unsigned char* mask, int tokens,           \
                                  int heads, int kv_heads, int capacity, int dim, int sinks, int last, int half_split) {       \
        after_predecessors();                                                                                                  \
        __shared__ Turns turns, far;                                                                                           \
        const int stream = blockIdx.x / tokens;                                                                                \
        const unsigned position = (unsigned)seen[stream] + blockIdx.x % tokens;                                                \
        turns.fill(frequency, position, dim / 2, 1.0f);                                                                        \
        if (sinks > 0) far.fill(frequency, min(position, (unsigned)last), dim / 2, 1.0f);                                      \
        const Rings<T> queries = {q, nullptr, nullptr, qkv, heads, kv_heads, capacity, dim, sinks > 0 ? &far : nullptr};       \
        const CodeRings<T> rings = {queries, keys, values, key_factors, value_factors};                                        \
        const int slot = slot_of(position, sinks, capacity);                                                                   \
        const bool runs = mask == nullptr || mask[stream] != 0;                                                                \
        FOR_STYLE(T, append_codes, rings, turns, stream, slot, runs)                                                           \
    }

// dependents: rope_append_f32 rope_append_bf16 rope_append_f16 rope_append_int8_f32 rope_append_int8_bf16 rope_append_int8_f16
// kernels: rope_rotate_f32 rope_rotate_bf16 rope_rotate_f16
FOR_TYPE(f32, float)
FOR_TYPE(bf16, bf16)
FOR_TYPE(f16, f16)
