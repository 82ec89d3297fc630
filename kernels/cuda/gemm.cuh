#pragma once
#include "mma.cuh"
#include "ptx.cuh"
#include "snake.cuh"
#include "types.cuh"

// One matrix product for every layer: C[M, N] = A[M, K] B[K, N], f32 accumulation, K in ascending order.
//
// Operands are described, not copied. A Source maps a pair of indices (outer, inner; inner is contiguous in memory) to an
// address, or to null for an element that is zero:
//   Window  overlapping rows of an activation: im2col without the matrix
//   Taps    convolution weights, possibly regrouped by output phase (transposed convolutions)
// A plain matrix is a Window or Taps with one tap. An Output maps (m, n) back to an activation and finishes the layer.
//
// Two cores take the same Sources, tiles and Output. multiply_tensor_core: bf16 and f16 through cp.async into three stages
// of shared memory, ldmatrix and mma.sync m16n8k16; f32, if asked for, by three products of tf32 (mma.cuh). multiply_fma: f32
// (and bf16 on sm_75) in registers, 4 x 4 at a time.
// Rows that cannot be read in whole vectors take an element-wise way into the same tiles.
//
// Where this stands: no spills on any architecture (multiplications of 128x128: 140 registers for 16-bit types, 155-167 for f32);
// checked on the emulator; not yet timed. Known to be left on the table: each tap of a convolution reads its rows again
// (from L1/L2) instead of keeping them in shared memory, mma.sync reaches part of what wgmma does on sm_90, and layers with
// few rows and a long K are not split along K.

/// Tile of C that one block computes, and how its threads share it.
template <int M_, int N_, int WARPS_M_, int WARPS_N_, int LANES_N_, int RESIDENT_>
struct Tile {
    static constexpr int M = M_, N = N_;
    static constexpr int WARPS_M = WARPS_M_, WARPS_N = WARPS_N_; // tensor cores: a warp has M / WARPS_M x N / WARPS_N
    static constexpr int LANES_N = LANES_N_;                     // fma: threads along N, each with groups of 4 x 4
    static constexpr int RESIDENT = RESIDENT_;                   // blocks of a multiprocessor that registers must suffice for
    static constexpr int THREADS = 32 * WARPS_M * WARPS_N;
    static constexpr int LANES_M = THREADS / LANES_N;
};
using Tile128x128 = Tile<128, 128, 2, 4, 16, 1>;
using Tile64x64 = Tile<64, 64, 2, 2, 16, 4>;
using Tile128x32 = Tile<128, 32, 4, 1, 8, 4>;
using Tile16x64 = Tile<16, 64, 1, 2, 16, 8>;

/// Four elements that are adjacent and aligned as a whole.
template <class T>
struct alignas(4 * sizeof(T)) Four {
    T v[4];
};
template <class T>
__device__ __forceinline__ void load4(float (&to)[4], const T* from) {
    const Four<T> four = *(const Four<T>*)from;
#pragma unroll
    for (int e = 0; e < 4; ++e) to[e] = to_float(four.v[e]);
}
template <class T>
__device__ __forceinline__ void store4(T* to, const float (&from)[4]) {
    Four<T> four;
#pragma unroll
    for (int e = 0; e < 4; ++e) four.v[e] = from_float<T>(from[e]);
    *(Four<T>*)to = four;
}

/// A number written as major * extent + minor.
struct Index {
    int major, minor;
};
__device__ __forceinline__ Index split(int i, int extent) { return {i / extent, i % extent}; }
__device__ __forceinline__ void advance(Index& i, int n, int extent) {
    i.minor += n;
#pragma unroll 1
    while (i.minor >= extent) i.minor -= extent, ++i.major;
}

__device__ __forceinline__ float elu(float x) { return x > 0.0f ? x : expm1f(x); }

enum Prologue { PROLOGUE_NONE, PROLOGUE_SNAKE, PROLOGUE_ELU };
enum Epilogue { EPILOGUE_NONE, EPILOGUE_TANH, EPILOGUE_ELU };

/// What a layer does to the elements of one channel before the product. Maps zero to zero.
struct Activation {
    int prologue;
    Snake snake;

    __device__ __forceinline__ float operator()(float x) const {
        return prologue == PROLOGUE_NONE ? x : prologue == PROLOGUE_SNAKE ? snake(x) : elu(x);
    }
};

/// Rows of overlapping windows. Outer index: (batch, row). Inner index: (tap, channel). The element is
/// data[batch, row * step + tap * tap_step - offset, channel] of data [batches, time, channels].
/// Before time 0 lies the ring [batches, past, channels], whose newest row is the one before `position`; without a ring, zero.
template <class T>
struct Window {
    const T *data, *ring;
    const int* position;
    const float* alpha; // [channels], of PROLOGUE_SNAKE
    int batches, time, channels, past, rows, step, offset, tap_step, taps, prologue;

    __device__ int outer_extent() const { return rows; }
    __device__ int inner_extent() const { return channels; }

    __device__ const T* at(Index outer, Index inner) const {
        const int t = outer.minor * step + inner.major * tap_step - offset;
        if (outer.major >= batches || inner.major >= taps || t >= time) return nullptr;
        if (t >= 0) return data + ((int64_t)outer.major * time + t) * channels + inner.minor;
        if (ring == nullptr) return nullptr;
        int slot = position[outer.major] + t;
        if (slot < 0) slot += past;
        return ring + ((int64_t)outer.major * past + slot) * channels + inner.minor;
    }

    __device__ __forceinline__ Activation activation(int channel) const {
        if (prologue != PROLOGUE_SNAKE) return {prologue, {}};
        return {prologue, make_snake(alpha[channel], alpha[channel])};
    }
};

/// Convolution weights [taps, in, out]. Tap k of phase p is stored tap (k * phases + p) / dilation, zero if that is no integer
/// below `taps`. Outer index (tap, in) and inner (phase, out); if TRANSPOSED, outer (phase, in) and inner (tap, out).
template <class T, bool TRANSPOSED>
struct Taps {
    const T* data;
    int taps, in, out, phases, dilation;

    __device__ int outer_extent() const { return in; }
    __device__ int inner_extent() const { return out; }

    __device__ const T* at(Index outer, Index inner) const {
        const int phase = TRANSPOSED ? outer.major : inner.major;
        int tap = (TRANSPOSED ? inner.major : outer.major) * phases + phase;
        if (dilation > 1) {
            if (tap % dilation != 0) return nullptr;
            tap /= dilation;
        }
        if (phase >= phases || tap >= taps) return nullptr;
        return data + ((int64_t)tap * in + outer.minor) * out + inner.minor;
    }
};

/// Row m = (batch, row) and column n = (phase, channel) of the product become
/// y[batch, row * phases + phase - offset, channel] = activation(sum + bias[channel] + residual[same place]).
template <class T>
struct Output {
    T* y;               // [batches, time, channels]
    const T* bias;      // [channels] or null
    const T* residual;  // as y, or null
    int batches, time, channels, rows, phases, offset, epilogue;

    /// Columns n..n+4 of row m; n is a multiple of 4.
    __device__ void store(int m, int n, const float (&sum)[4]) const {
        const Index row = split(m, rows);
        if (row.major >= batches) return;
        Index column = split(n, channels);
        if (channels % 4 != 0 || epilogue != EPILOGUE_NONE) {
#pragma unroll 1
            for (int e = 0; e < 4 && column.major < phases; ++e) {
                // Chosen, not indexed: an array that is indexed at run time lives in local memory.
                store_one(row, column, e < 2 ? (e == 0 ? sum[0] : sum[1]) : (e == 2 ? sum[2] : sum[3]));
                advance(column, 1, channels);
            }
            return;
        }
        const int t = row.minor * phases + column.major - offset;
        if (column.major >= phases || t < 0 || t >= time) return;
        const int64_t at = ((int64_t)row.major * time + t) * channels + column.minor;
        float v[4] = {sum[0], sum[1], sum[2], sum[3]}, other[4];
        if (bias != nullptr) {
            load4(other, bias + column.minor);
#pragma unroll
            for (int e = 0; e < 4; ++e) v[e] += other[e];
        }
        if (residual != nullptr) {
            load4(other, residual + at);
#pragma unroll
            for (int e = 0; e < 4; ++e) v[e] += other[e];
        }
        store4(y + at, v);
    }

    __device__ void store_one(Index row, Index column, float v) const {
        const int t = row.minor * phases + column.major - offset;
        if (t < 0 || t >= time) return;
        const int64_t at = ((int64_t)row.major * time + t) * channels + column.minor;
        if (bias != nullptr) v += to_float(bias[column.minor]);
        if (residual != nullptr) v += to_float(residual[at]);
        y[at] = from_float<T>(activate(v));
    }

    __device__ float activate(float v) const {
        if (epilogue == EPILOGUE_TANH) return tanhf(v);
        if (epilogue == EPILOGUE_ELU) return elu(v);
        return v;
    }
};

/// What one thread reads of a tile OUTER x INNER: CHUNK contiguous elements in each of PASSES rows, moving along K. PITCHED: rows of
/// the tile are CHUNK further apart than they are long.
template <int OUTER, int INNER, int CHUNK_, int THREADS, bool K_INNER, bool PITCHED = false>
struct Cursor {
    static constexpr int CHUNK = CHUNK_, ACROSS = INNER / CHUNK, DOWN = THREADS / ACROSS, PASSES = OUTER / DOWN;
    static_assert(INNER % CHUNK == 0 && THREADS % ACROSS == 0 && OUTER % DOWN == 0, "the threads must cover the tile evenly");
    Index outer[PASSES], inner;

    __device__ static int column() { return threadIdx.x % ACROSS * CHUNK; }
    __device__ static int row(int pass) {
        const int row = threadIdx.x / ACROSS;
        // Eight lanes copy two rows of four 16-byte chunks at a time: those four apart, which a pitch of 80 bytes puts into
        // different halves of the banks.
        if constexpr (PITCHED && ACROSS == 4) {
            static_assert(DOWN % 8 == 0, "rows are exchanged within eight");
            return row / 8 * 8 + row % 2 * 4 + row % 8 / 2 + pass * DOWN;
        }
        return row + pass * DOWN;
    }

    template <class Source>
    __device__ Cursor(const Source& source, int outer0, int inner0) {
        inner = split(inner0 + column(), source.inner_extent());
#pragma unroll
        for (int p = 0; p < PASSES; ++p) outer[p] = split(outer0 + row(p), source.outer_extent());
    }

    template <class Source>
    __device__ void step(const Source& source, int k) {
        if (K_INNER) {
            advance(inner, k, source.inner_extent());
        } else {
#pragma unroll
            for (int p = 0; p < PASSES; ++p) advance(outer[p], k, source.outer_extent());
        }
    }

    /// Whether a chunk lies within one run of contiguous, aligned memory.
    template <class Source>
    __device__ static bool vectors(const Source& source) {
        return source.inner_extent() % CHUNK == 0;
    }
};

template <class T>
__device__ __forceinline__ float or_zero(const T* p) {
    return p == nullptr ? 0.0f : to_float(*p);
}

/// Where element e of a thread's chunk in pass p lies in a tile whose rows are PITCH apart; FLIP: the tile has K as its row.
template <class C, int PITCH, bool FLIP>
__device__ __forceinline__ int place(int p, int e) {
    return FLIP ? (C::column() + e) * PITCH + C::row(p) : C::row(p) * PITCH + C::column() + e;
}

/// Copies this thread's part of a tile element by element.
template <int PITCH, bool FLIP, class T, class C, class Source>
__device__ __forceinline__ void copy_elements(T* tile, const C& cursor, const Source& source) {
    Index inner = cursor.inner;
#pragma unroll 1
    for (int e = 0; e < C::CHUNK; ++e) {
#pragma unroll
        for (int p = 0; p < C::PASSES; ++p) {
            tile[place<C, PITCH, FLIP>(p, e)] = from_float<T>(or_zero(source.at(cursor.outer[p], inner)));
        }
        advance(inner, 1, source.inner_extent());
    }
}

/// Applies the source's prologue to what this thread itself copied; `inner` is where the cursor stood then.
template <int PITCH, bool FLIP, class C, class Element, class Source>
__device__ __forceinline__ void activate_elements(Element* tile, Index inner, const Source& source) {
#pragma unroll 1
    for (int e = 0; e < C::CHUNK; ++e) {
        const Activation activate = source.activation(inner.minor);
#pragma unroll 1
        for (int p = 0; p < C::PASSES; ++p) {
            Element* at = tile + place<C, PITCH, FLIP>(p, e);
            *at = from_float<Element>(activate(to_float(*at)));
        }
        advance(inner, 1, source.inner_extent());
    }
}

/// Starts the copy of this thread's part of a tile.
template <int PITCH, class T, class C, class Source>
__device__ __forceinline__ void copy_async(T* tile, const C& cursor, const Source& source) {
    if (!C::vectors(source)) return copy_elements<PITCH, false>(tile, cursor, source);
#pragma unroll
    for (int p = 0; p < C::PASSES; ++p) {
        const T* from = source.at(cursor.outer[p], cursor.inner);
        cp_async16(tile + place<C, PITCH, false>(p, 0), from == nullptr ? source.data : from, from != nullptr);
    }
}

/// Finishes ROWS rows of sums that lie in shared memory, through which they go so that stores to memory are wide.
/// `row_of` gives the row of C that each is.
template <class TILE, int ROWS, int PITCH, class OUT, class RowOf>
__device__ __forceinline__ void store_slab(const float* slab, const OUT& out, int n0, RowOf row_of) {
    __syncthreads();
#pragma unroll 1
    for (int c = threadIdx.x * 4; c < ROWS * TILE::N; c += TILE::THREADS * 4) {
        const int row = c / TILE::N, column = c % TILE::N;
        float v[4];
        load4(v, slab + row * PITCH + column);
        out.store(row_of(row), n0 + column, v);
    }
}

template <class T, class TILE, bool A_K_INNER, bool B_K_INNER, class A, class B, class OUT>
__device__ void multiply_tensor_core(const A& a, const B& b, const OUT& out, int m0, int n0, int k0, int steps) {
    constexpr int STAGES = 3, CHUNK = 16 / sizeof(T), BK = 4 * CHUNK;
    constexpr int PAD = CHUNK; // spreads the eight rows of an ldmatrix over all banks
    constexpr int WM = TILE::M / TILE::WARPS_M, WN = TILE::N / TILE::WARPS_N, MI = WM / 16, NI = WN / 8;
    constexpr int A_ROWS = A_K_INNER ? TILE::M : BK, A_PITCH = (A_K_INNER ? BK : TILE::M) + PAD;
    constexpr int B_ROWS = B_K_INNER ? TILE::N : BK, B_PITCH = (B_K_INNER ? BK : TILE::N) + PAD;
    constexpr int STAGE = A_ROWS * A_PITCH + B_ROWS * B_PITCH;
    using CursorA = Cursor<A_ROWS, A_PITCH - PAD, CHUNK, TILE::THREADS, A_K_INNER, true>;
    using CursorB = Cursor<B_ROWS, B_PITCH - PAD, CHUNK, TILE::THREADS, B_K_INNER, true>;
    DYNAMIC_SHARED(float, shared);
    T* tiles = (T*)shared;

    CursorA ca(a, A_K_INNER ? m0 : k0, A_K_INNER ? k0 : m0);
    CursorB cb(b, B_K_INNER ? n0 : k0, B_K_INNER ? k0 : n0);
    Index activated = ca.inner;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_m = warp / TILE::WARPS_N, warp_n = warp % TILE::WARPS_N;
    float sum[MI][NI][4] = {};
    int stage = 0, next = 0;
#pragma unroll 1
    for (int s = 1 - STAGES; s < steps; ++s) {
        T* tile_a = tiles + stage * STAGE;
        const T* tile_b = tile_a + A_ROWS * A_PITCH;
        if (s >= 0) {
            cp_async_wait<STAGES - 2>();
            if constexpr (A_K_INNER) {
                if (a.prologue != PROLOGUE_NONE) {
                    activate_elements<A_PITCH, false, CursorA>(tile_a, activated, a);
                    advance(activated, BK, a.channels);
                }
            }
            __syncthreads(); // this stage has arrived, and everyone is done with the one that is loaded next
        }
        if (s + STAGES - 1 < steps) {
            T* tile = tiles + next * STAGE;
            copy_async<A_PITCH>(tile, ca, a);
            copy_async<B_PITCH>(tile + A_ROWS * A_PITCH, cb, b);
            ca.step(a, BK);
            cb.step(b, BK);
            next = next + 1 == STAGES ? 0 : next + 1;
        }
        cp_async_commit();
        if (s < 0) continue;
#pragma unroll
        for (int k = 0; k < BK; k += 2 * CHUNK) {
            unsigned fa[MI][4], fb[NI / 2][2][2];
#pragma unroll
            for (int i = 0; i < MI; ++i) load_a<!A_K_INNER, A_PITCH>(fa[i], tile_a, warp_m * WM + i * 16, k);
#pragma unroll
            for (int j = 0; j < NI / 2; ++j) load_b<B_K_INNER, B_PITCH>(fb[j], tile_b, k, warp_n * WN + j * 16);
#pragma unroll
            for (int i = 0; i < MI; ++i)
#pragma unroll
                for (int j = 0; j < NI; ++j) multiply_accumulate(sum[i][j], fa[i], fb[j / 2][j % 2], T());
        }
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    cp_async_wait<0>();

    constexpr int PITCH = TILE::N + 8; // 8: the pairs of a half warp hit all banks
#pragma unroll
    for (int i = 0; i < MI; ++i) {
        __syncthreads();
#pragma unroll
        for (int j = 0; j < NI; ++j) {
            float* at = shared + (warp_m * 16 + lane / 4) * PITCH + warp_n * WN + j * 8 + lane % 4 * 2;
            *(float2*)at = make_float2(sum[i][j][0], sum[i][j][1]);
            *(float2*)(at + 8 * PITCH) = make_float2(sum[i][j][2], sum[i][j][3]);
        }
        store_slab<TILE, TILE::WARPS_M * 16, PITCH>(shared, out, n0, [&](int row) { return m0 + row / 16 * WM + i * 16 + row % 16; });
    }
}

/// This thread's part of a tile whose chunks are vectors, in registers.
template <class T, class C, class Source>
__device__ __forceinline__ void fetch(float (&v)[C::PASSES][4], const C& cursor, const Source& source) {
#pragma unroll
    for (int p = 0; p < C::PASSES; ++p) {
        const T* from = source.at(cursor.outer[p], cursor.inner);
#pragma unroll
        for (int e = 0; e < 4; ++e) v[p][e] = 0.0f;
        if (from != nullptr) load4(v[p], from);
    }
}

template <class C, int PITCH, bool FLIP>
__device__ __forceinline__ void put(float* tile, const float (&v)[C::PASSES][4]) {
#pragma unroll
    for (int p = 0; p < C::PASSES; ++p) {
        if (FLIP) {
#pragma unroll
            for (int e = 0; e < 4; ++e) tile[place<C, PITCH, FLIP>(p, e)] = v[p][e];
        } else {
            store4(tile + place<C, PITCH, FLIP>(p, 0), v[p]);
        }
    }
}

template <class T, class TILE, bool A_K_INNER, bool B_K_INNER, class A, class B, class OUT>
__device__ void multiply_fma(const A& a, const B& b, const OUT& out, int m0, int n0, int k0, int steps) {
    constexpr int BK = 16, A_PITCH = TILE::M + 4, B_PITCH = TILE::N + 4, STAGE = BK * (A_PITCH + B_PITCH);
    constexpr int GM = TILE::M / (TILE::LANES_M * 4), GN = TILE::N / (TILE::LANES_N * 4);
    using CursorA = Cursor<A_K_INNER ? TILE::M : BK, A_K_INNER ? BK : TILE::M, 4, TILE::THREADS, A_K_INNER>;
    using CursorB = Cursor<B_K_INNER ? TILE::N : BK, B_K_INNER ? BK : TILE::N, 4, TILE::THREADS, B_K_INNER>;
    DYNAMIC_SHARED(float, shared);

    CursorA ca(a, A_K_INNER ? m0 : k0, A_K_INNER ? k0 : m0);
    CursorB cb(b, B_K_INNER ? n0 : k0, B_K_INNER ? k0 : n0);
    const bool vectors_a = CursorA::vectors(a), vectors_b = CursorB::vectors(b);
    const int column = threadIdx.x % TILE::LANES_N * 4, row = threadIdx.x / TILE::LANES_N * 4;
    float va[CursorA::PASSES][4] = {}, vb[CursorB::PASSES][4] = {}; // the next step's tiles, on their way
    float sum[GM][GN][4][4] = {};
#pragma unroll 1
    for (int s = -1; s < steps; ++s) {
        __syncthreads();
        float* next_a = shared + (s + 1) % 2 * STAGE;
        float* next_b = next_a + BK * A_PITCH;
        const Index inner = ca.inner;
        if (s + 1 < steps) {
            if (vectors_a) fetch<T>(va, ca, a); else copy_elements<A_PITCH, A_K_INNER>(next_a, ca, a);
            if (vectors_b) fetch<T>(vb, cb, b); else copy_elements<B_PITCH, B_K_INNER>(next_b, cb, b);
            ca.step(a, BK);
            cb.step(b, BK);
        }
        const float* tile_a = shared + (s & 1) * STAGE;
        const float* tile_b = tile_a + BK * A_PITCH;
        if (s >= 0) {
#pragma unroll
            for (int k = 0; k < BK; ++k) {
                float fa[GM][4], fb[GN][4];
#pragma unroll
                for (int i = 0; i < GM; ++i) load4(fa[i], tile_a + k * A_PITCH + i * TILE::LANES_M * 4 + row);
#pragma unroll
                for (int j = 0; j < GN; ++j) load4(fb[j], tile_b + k * B_PITCH + j * TILE::LANES_N * 4 + column);
#pragma unroll
                for (int i = 0; i < GM; ++i)
#pragma unroll
                    for (int j = 0; j < GN; ++j)
#pragma unroll
                        for (int r = 0; r < 4; ++r)
#pragma unroll
                            for (int c = 0; c < 4; ++c) sum[i][j][r][c] += fa[i][r] * fb[j][c];
            }
        }
        if (s + 1 < steps) {
            if (vectors_a) put<CursorA, A_PITCH, A_K_INNER>(next_a, va);
            if (vectors_b) put<CursorB, B_PITCH, B_K_INNER>(next_b, vb);
            if constexpr (A_K_INNER) {
                if (a.prologue != PROLOGUE_NONE) activate_elements<A_PITCH, true, CursorA>(next_a, inner, a);
            }
        }
    }

    constexpr int PITCH = TILE::N + 4, ROWS = TILE::LANES_M * 4;
#pragma unroll
    for (int i = 0; i < GM; ++i) {
        __syncthreads();
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
            for (int j = 0; j < GN; ++j) store4(shared + (row + r) * PITCH + j * TILE::LANES_N * 4 + column, sum[i][j][r]);
        store_slab<TILE, ROWS, PITCH>(shared, out, n0, [&](int row) { return m0 + i * ROWS + row; });
    }
}

/// The tile at (m0, n0) of A B, summed over k0 .. k0 + depth. A_K_INNER, B_K_INNER: K is the contiguous axis of the operand.
template <class T, class TILE, bool A_K_INNER, bool B_K_INNER, bool TENSOR_CORE = TensorCore<T>::available, class A, class B, class OUT>
__device__ void multiply(const A& a, const B& b, const OUT& out, int m0, int n0, int k0, int depth) {
    if constexpr (TENSOR_CORE) {
        constexpr int BK = 64 / sizeof(T);
        multiply_tensor_core<T, TILE, A_K_INNER, B_K_INNER>(a, b, out, m0, n0, k0, (depth + BK - 1) / BK);
    } else {
        multiply_fma<T, TILE, A_K_INNER, B_K_INNER>(a, b, out, m0, n0, k0, (depth + 15) / 16);
    }
}

/// One tile of a layer; blocks run through the columns first, so that neighbours share rows of A.
template <class T, class TILE, bool TRANSPOSED>
__device__ __forceinline__ void product(const Window<T>& a, const Taps<T, TRANSPOSED>& b, const Output<T>& out) {
    const int columns = out.phases * out.channels, across = (columns + TILE::N - 1) / TILE::N;
    multiply<T, TILE, true, TRANSPOSED>(a, b, out, blockIdx.x / across * TILE::M, blockIdx.x % across * TILE::N, 0, a.taps * a.channels);
}

/// partial[split, (tap, i), j] = sum of window[r, (tap, i)] * rows[r, j] over the `depth` rows r of split blockIdx.y.
template <class T, class TILE>
__device__ __forceinline__ void correlation(const Window<T>& a, const Window<T>& b, float* partial, int depth) {
    const int m = a.taps * a.channels, n = b.channels, across = (n + TILE::N - 1) / TILE::N;
    const Output<float> out = {partial + (int64_t)blockIdx.y * m * n, nullptr, nullptr, 1, m, n, m, 1, 0, EPILOGUE_NONE};
    multiply<T, TILE, false, false>(a, b, out, blockIdx.x / across * TILE::M, blockIdx.x % across * TILE::N, blockIdx.y * depth, depth);
}

// Kernels are made of these by name, so that their parameter lists are written once. The launches are in ops/matmul/cuda.rs.
#define PRODUCT_KERNEL(NAME, T, TILE, TRANSPOSED)                                                                              \
    extern "C" __global__ void __launch_bounds__(TILE::THREADS, TILE::RESIDENT)                                               \
        NAME(T* y, const T* x, const T* weight, const T* bias, const T* residual, const T* ring, const int* position,          \
             const float* alpha, int batches, int time, int channels, int past, int rows, int step, int offset, int tap_step,  \
             int history, int prologue, int taps, int weight_in, int weight_out, int phases, int dilation, int out_time,       \
             int out_channels, int out_offset, int epilogue) {                                                                 \
        product<T, TILE, TRANSPOSED>({x, ring, position, alpha, batches, time, channels, past, rows, step, offset, tap_step,    \
                                      history, prologue},                                                                      \
                                     {weight, taps, weight_in, weight_out, phases, dilation},                                  \
                                     {y, bias, residual, batches, out_time, out_channels, rows, phases, out_offset, epilogue}); \
    }

#define CORRELATION_KERNEL(NAME, T, TILE)                                                                                      \
    extern "C" __global__ void __launch_bounds__(TILE::THREADS, TILE::RESIDENT)                                               \
        NAME(float* partial, const T* x, const T* dy, int batches, int time, int channels, int step, int offset, int tap_step, \
             int taps, int rows, int dy_channels, int depth) {                                                                 \
        correlation<T, TILE>({x, nullptr, nullptr, nullptr, batches, time, channels, 0, rows, step, offset, tap_step, taps, 0}, \
                             {dy, nullptr, nullptr, nullptr, batches, rows, dy_channels, 0, rows, 1, 0, 0, 1, 0}, partial, depth); \
    }

/// dw[i] = sum over splits of partial[split, i]; if SWAPPED, partial is [split, (tap, out), in] and dw [tap, in, out], by tiles of
/// 16 x 16 through shared memory. 256 threads: 256 elements, or a tile.
template <class T>
__device__ __forceinline__ void sum_partials(T* dw, const float* partial, int splits, int taps, int in, int out, int swapped) {
    __shared__ float tile[16][17];
    const int n = taps * in * out, column = threadIdx.x % 16, row = threadIdx.x / 16;
    const int across = (in + 15) / 16, down = (out + 15) / 16;
    const int in0 = blockIdx.x % across * 16, out0 = blockIdx.x / across % down * 16, tap = blockIdx.x / across / down;
    const bool inside = in0 + column < in && out0 + row < out;
    const int from = swapped ? (tap * out + out0 + row) * in + in0 + column : blockIdx.x * 256 + threadIdx.x;
    float sum = 0.0f;
    if (swapped ? inside : from < n) {
        for (int s = 0; s < splits; ++s) sum += partial[(int64_t)s * n + from];
        if (!swapped) dw[from] = from_float<T>(sum);
    }
    if (!swapped) return;
    tile[row][column] = sum;
    __syncthreads();
    if (in0 + row < in && out0 + column < out) dw[(tap * in + in0 + row) * out + out0 + column] = from_float<T>(tile[column][row]);
}

#define SUM_PARTIALS_KERNEL(NAME, T)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                                                          \
        NAME(T* dw, const float* partial, int splits, int taps, int in, int out, int swapped) {                                \
        sum_partials(dw, partial, splits, taps, in, out, swapped);                                                             \
    }
