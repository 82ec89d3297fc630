// A depth transformer, Moshi's or CSM's, over one frame: all its steps, layers and draws in one cooperative launch.
//
//   for each step k   x = inputs_k h + table_k[said[k]];   CSM: x = input h of a row before the steps, then x = table_k[said[k]]
//                     for each layer   x += out attention(turn(project norm1(x)));  x += narrow (silu(u) v), [u; v] = widen norm2(x)
//                     logits_k = linear_k norm(x) + bias;  said[k + 1] = a draw from logits_k
//
// Attention is over the rows of the frame so far. Everything is rounded to T where the operations by themselves store it.
//
// Tensors    h [B, dim]; said [B, columns] i32; logits_k [B, card]; turns [positions, head_dim] f32. Of the frame's own: x [B, width], wide
//            [B, hidden], qkv [layers, positions, B, (heads + 2 kv_heads) head_dim] of T, sums [inputs, B, width] f32. Matrices of T, or
//            codes as in low_bit.cu.
// Phases     A list that the host wrote: a product each, or a draw. A phase's input is made in its prologue by every block for itself
//            (norm, embedding, attention: all from the L2 cache), residual, gate and bias are in its epilogue. All blocks meet between
//            phases: 4 times a layer and twice a step.
// Mapping    B at a time M rows of x, in shared memory. A group of 8 to 128 threads, as in linear.cu, has a run of the matrix's rows, R
//            at a time; all groups of the grid have as many, or one more. Attention: a warp a head, head_dim / 16 bytes lanes a key, which
//            is turned as it is read.
// Memory     w past the L1 cache. Weights depend on no activation: before blocks meet, each asks for its own rows of the next phase to be
//            in the L2 cache, so that they arrive while it waits.
// Order      products by products.cuh, bit for bit those of linear.cu and low_bit.cu (tests.rs). Norms: a thread, a warp, warps in
//            ascending order; neither B nor M changes a bit.
// Bytes      every matrix once for each step that has it (again from L2 for every further M rows); activations stay in the L2 cache.
// Cost       A meeting is an atomic and a read of it by way of L2, 1 to 2 us.
//            Moshi (8 steps of 6 layers): 208 meetings instead of 416 launches, 0.2 to 0.4 ms a frame. Matrices: 1.33 GB of bf16, 0.67 of 8
//            bits, 0.38 of 4: 0.28, 0.14, 0.08 ms at 4.8 TB/s, which overlap with the meetings as far as the next phase's weights fit
//            the L2 cache (at most 12 MB).
//            CSM (31 steps and a row before them, 4 layers): 571 meetings instead of 1121 launches, 0.6 to 1.1 ms. All steps have the same
//            layers, 111 M weights: from HBM once, 0.05, 0.02, 0.01 ms, as far as they then stay in the L2 cache. One of 50 MB keeps
//            nothing of 0.22 GB of bf16 or 0.11 of 8 bits: 31 times, 6.9 and 3.5 GB, 1.4 and 0.7 ms. Of 4 bits, 56 MB and up to 14 of
//            scales and minima, it keeps a part: 2.2 GB a frame, 0.35 ms at 6 TB/s of L2 to 0.45 at those of HBM.
// Ladder     v1. No GPU has run it yet. Next: the first weights of a phase into shared memory before the meeting; two blocks a multiprocessor.
//
// kernels: depth_1_f32 depth_4_f32 depth_1_bf16 depth_4_bf16 depth_1_f16 depth_4_f16
#include "activation.cuh"
#include "attention.cuh"
#include "products.cuh"
#include "sample.cuh"

// As in cuda.rs.
constexpr int THREADS = 256, R = 4, MOST_STEPS = 32;
constexpr int WARPS = THREADS / 32, LINE = 128;
constexpr int NONE = -1;  // the id that adds nothing

enum Work { INPUT, PROJECT, ATTEND, WIDEN, NARROW, LOGITS, DRAW };

struct Phase {
    const uint8_t* weights;
    const float *scales, *mins, *bias;
    const float* alpha;  // of the norm before the product; null for none
    const void* table;   // the rows of ids that x begins with; null for none
    int work, step, layer, outputs, inputs, scaled, bits, group;
    int rows, source;      // of the table; which of the sums x begins with, -1 for none
    int position, begins;  // whether x begins here: else it is there
    float epsilon;
    int meets;
};
constexpr int PHASE_WORDS = sizeof(Phase) / 8;
static_assert(sizeof(Phase) == 104, "as in cuda.rs");

struct Frame {
    const Phase* phases;
    unsigned* barrier;
    const void* h;
    void *x, *wide, *qkv;
    float* sums;
    int* said;
    const float* turns;  // cosines and sines where a head has its pairs; null: heads are not turned
    void* logits[MOST_STEPS];
    const unsigned char* masks[MOST_STEPS];
    uint64_t* counters[MOST_STEPS];
    const Settings* settings[MOST_STEPS];
    int count, batch, columns, positions, heads, kv_heads, head_dim, half_split;
};

// The outputs of a phase's product that the groups of threads have.
struct Share {
    int outputs, group, lane, groups, first, all;  // outputs: of the phase, half the rows with a gate; first: the block's first group

    __device__ __forceinline__ explicit Share(const Phase& phase)
        : outputs(phase.work == WIDEN ? phase.outputs / 2 : phase.outputs), group(phase.group), lane(threadIdx.x % group),
          groups(THREADS / group), first(blockIdx.x * groups), all(gridDim.x * groups) {}

    // Where those of the block's group `g` begin.
    __device__ __forceinline__ int begin(int g) const { return (first + g) * (outputs / all) + min(first + g, outputs % all); }
    __device__ __forceinline__ int mine() const { return threadIdx.x / group; }
    __device__ __forceinline__ int most() const { return (outputs + all - 1) / all; }
};

__device__ __forceinline__ void prefetch(const void* p, uint64_t bytes, const Share& share) {
    for (uint64_t at = share.lane * LINE; at < bytes; at += share.group * LINE) prefetch_l2((const uint8_t*)p + at);
}

// What this block will read of the phase's matrix.
template <typename T>
__device__ __forceinline__ void prefetch(const Phase& phase) {
    if (phase.work == DRAW) return;
    const Share share(phase);
    const int begin = share.begin(share.mine()), count = share.begin(share.mine() + 1) - begin;
    const uint64_t row = (uint64_t)phase.inputs * (phase.bits ? phase.bits : 8 * (int)sizeof(T)) / 8;
    for (int half = 0; half < (phase.work == WIDEN ? 2 : 1); half++) {
        const uint64_t at = begin + half * share.outputs;
        prefetch(phase.weights + at * row, count * row, share);
        if (phase.bits == 0) continue;
        const int scales = phase.inputs / phase.scaled;
        prefetch(phase.scales + at * scales, (uint64_t)count * scales * 4, share);
        if (phase.mins) prefetch(phase.mins + at * scales, (uint64_t)count * scales * 4, share);
    }
}

template <typename T, int M>
struct Rows {
    static constexpr int N = LANES<T>;
    const Frame& frame;
    const Phase& phase;
    T* staged;  // M rows of the product's input
    int first, count, pieces;

    __device__ __forceinline__ Rows(const Frame& frame, const Phase& phase, T* staged, int first)
        : frame(frame), phase(phase), staged(staged), first(first), count(min(frame.batch - first, M)),
          pieces(phase.bits ? 128 / phase.bits / N : 1) {}

    __device__ __forceinline__ T* at(int m, int i) const { return staged + m * phase.inputs + turned(i, pieces) * N; }

    // Vector i of row m is what load(v, m, i) makes of v = 0; of rows that are not there, 0.
    template <typename F>
    __device__ __forceinline__ void stage(F load) const {
        for (int i = threadIdx.x; i < phase.inputs / N; i += THREADS) {
#pragma unroll
            for (int m = 0; m < M; m++) {
                float v[N] = {};
                if (m < count) load(v, m, i);
                store_vector(at(m, i), v);
            }
        }
    }

    __device__ __forceinline__ void copy(const void* x) const {
        stage([&](float (&v)[N], int m, int i) { load_vector(v, (const T*)x + (uint64_t)(first + m) * phase.inputs + i * N); });
    }

    // What x begins with: a sum, the row of the id that was said last, or both.
    __device__ __forceinline__ void begin(float (&v)[N], int m, int i) const {
        if (phase.table) {
            const int id = frame.said[(uint64_t)(first + m) * frame.columns + phase.step];
            if (id >= 0 && id < phase.rows) {
                load_vector(v, (const T*)phase.table + (uint64_t)id * phase.inputs + i * N);
            } else if (id != NONE) {
#pragma unroll
                for (int j = 0; j < N; j++) v[j] = __int_as_float(0x7fc00000);
            }
        }
        if (phase.source < 0) return;
        const float* const sum = frame.sums + ((uint64_t)phase.source * frame.batch + first + m) * phase.inputs + i * N;
#pragma unroll
        for (int j = 0; j < N; j += 4) {
            float four[4];
            load_vector(four, sum + j);
#pragma unroll
            for (int e = 0; e < 4; e++) v[j + e] = four[e] + v[j + e];
        }
    }

    // x, normalised.
    __device__ __forceinline__ void norm() const {
        __shared__ float parts[WARPS][M];
        float squares[M] = {};
        stage([&](float (&v)[N], int m, int i) {
            T* const x = (T*)frame.x + (uint64_t)(first + m) * phase.inputs + i * N;
            if (phase.begins) {
                begin(v, m, i);
#pragma unroll
                for (int j = 0; j < N; j++) v[j] = to_float(from_float<T>(v[j]));
                if (blockIdx.x == 0) store_vector(x, v);
            } else {
                load_vector(v, x);
            }
#pragma unroll
            for (int j = 0; j < N; j++) squares[m] = fmaf(v[j], v[j], squares[m]);
        });
        if (phase.alpha == nullptr) return;
#pragma unroll
        for (int m = 0; m < M; m++) {
            const float sum = warp_sum(squares[m]);
            if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32][m] = sum;
        }
        __syncthreads();
        float inverse[M] = {};
#pragma unroll
        for (int m = 0; m < M; m++) {
            for (int w = 0; w < WARPS; w++) inverse[m] += parts[w][m];
            inverse[m] = 1.0f / sqrtf(inverse[m] / phase.inputs + phase.epsilon);
        }
        for (int i = threadIdx.x; i < phase.inputs / N; i += THREADS) {
            float alpha[N];
#pragma unroll
            for (int j = 0; j < N; j += 4) {
                float four[4];
                load_vector(four, phase.alpha + i * N + j);
#pragma unroll
                for (int e = 0; e < 4; e++) alpha[j + e] = four[e];
            }
#pragma unroll
            for (int m = 0; m < M; m++) {
                float v[N];
                load_vector(v, at(m, i));
#pragma unroll
                for (int j = 0; j < N; j++) v[j] = v[j] * inverse[m] * alpha[j];
                store_vector(at(m, i), v);
            }
        }
    }

    // A lane's part of a head at `position`, turned and rounded; all lanes of the warp take part.
    __device__ __forceinline__ void turn(float (&v)[N], int position, int lane, int lanes) const {
        if (frame.turns == nullptr) return;
        const float* const row = frame.turns + position * frame.head_dim;
        if (frame.half_split) {
            const int half = lanes / 2, pair = lane % half * N;
#pragma unroll
            for (int j = 0; j < N; j += 4) {
                float cos[4], sin[4];
                load_vector(cos, row + pair + j);
                load_vector(sin, row + half * N + pair + j);
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const float other = __shfl_xor_sync(0xffffffffu, v[j + e], half);
                    v[j + e] = v[j + e] * cos[e] + (lane < half ? -other : other) * sin[e];
                }
            }
        } else {
#pragma unroll
            for (int j = 0; j < N; j += 4) {
                float turn[4];
                load_vector(turn, row + lane * N + j);
#pragma unroll
                for (int e = 0; e < 4; e += 2) {
                    const float a = v[j + e], b = v[j + e + 1];
                    v[j + e] = a * turn[e] - b * turn[e + 1];
                    v[j + e + 1] = a * turn[e + 1] + b * turn[e];
                }
            }
        }
#pragma unroll
        for (int j = 0; j < N; j++) v[j] = to_float(from_float<T>(v[j]));
    }

    // Of the layer's queries over the keys and values of the frame's rows so far.
    __device__ __forceinline__ void attend() const {
        const int lanes = frame.head_dim / N, keys = 32 / lanes, lane = threadIdx.x % lanes, key = threadIdx.x % 32 / lanes;
        const int outputs = (frame.heads + 2 * frame.kv_heads) * frame.head_dim;
        const float scale = 1.44269504f / sqrtf((float)frame.head_dim);  // log2 e
        for (int i = threadIdx.x / 32; i < M * frame.heads; i += WARPS) {
            const int m = i / frame.heads, head = i % frame.heads, shared = head / (frame.heads / frame.kv_heads);
            float sum[N] = {};
            if (m < count) {
                const auto row = [&](int position, int head) {
                    const uint64_t slot = ((uint64_t)phase.layer * frame.positions + position) * frame.batch + first + m;
                    return (const T*)frame.qkv + slot * outputs + head * frame.head_dim + lane * N;
                };
                float q[N];
                load_vector(q, row(phase.position, head));
                turn(q, phase.position, lane, lanes);
                Softmax softmax;
                for (int from = 0; from <= phase.position; from += keys) {
                    const bool inside = from + key <= phase.position;
                    float k[N] = {}, v[N] = {};
                    if (inside) {
                        load_vector(k, row(from + key, frame.heads + shared));
                        load_vector(v, row(from + key, frame.heads + frame.kv_heads + shared));
                    }
                    turn(k, min(from + key, phase.position), lane, lanes);
                    float score = 0.0f;
#pragma unroll
                    for (int j = 0; j < N; j++) score = fmaf(q[j], k[j], score);
                    for (int distance = lanes / 2; distance > 0; distance /= 2) score += __shfl_xor_sync(0xffffffffu, score, distance);
                    if (!inside) score = minus_infinity();
                    const float rescale = softmax.raise(score * scale), weight = softmax.weight(score, scale);
                    softmax.add(rescale, weight);
#pragma unroll
                    for (int j = 0; j < N; j++) sum[j] = fmaf(sum[j], rescale, weight * v[j]);
                }
                for (int distance = lanes; distance < 32; distance *= 2) {
                    const float other = __shfl_xor_sync(0xffffffffu, softmax.largest, distance);
                    const float others = __shfl_xor_sync(0xffffffffu, softmax.sum, distance);
                    const float rescale = softmax.raise(other), factor = exp2_approx(other - softmax.shift);
                    softmax.add(rescale, others * factor);
#pragma unroll
                    for (int j = 0; j < N; j++) sum[j] = fmaf(sum[j], rescale, __shfl_xor_sync(0xffffffffu, sum[j], distance) * factor);
                }
#pragma unroll
                for (int j = 0; j < N; j++) sum[j] /= softmax.sum;
            }
            if (key == 0) store_vector(at(m, head * lanes + lane), sum);
        }
    }

    __device__ __forceinline__ void prepare() const {
        if (phase.work == INPUT)
            copy(frame.h);
        else if (phase.work == NARROW)
            copy(frame.wide);
        else if (phase.work == ATTEND)
            attend();
        else
            norm();
    }

    __device__ __forceinline__ void store(int m, int n, int outputs, float sum, float gated) const {
        const uint64_t row = first + m;
        if (phase.work == INPUT) {
            frame.sums[((uint64_t)phase.source * frame.batch + row) * outputs + n] = sum;
        } else if (phase.work == PROJECT) {
            const uint64_t slot = ((uint64_t)phase.layer * frame.positions + phase.position) * frame.batch + row;
            ((T*)frame.qkv)[slot * outputs + n] = from_float<T>(sum);
        } else if (phase.work == WIDEN) {
            ((T*)frame.wide)[row * outputs + n] = from_float<T>(sum * sigmoid(sum) * gated);
        } else if (phase.work == LOGITS) {
            ((T*)frame.logits[phase.step])[row * outputs + n] = from_float<T>(phase.bias ? sum + phase.bias[n] : sum);
        } else {
            T* const x = (T*)frame.x + row * outputs + n;
            *x = from_float<T>(sum + to_float(*x));
        }
    }

    // Of the matrix's `rows`: what a thread adds to their sums.
    template <int BITS>
    __device__ __forceinline__ void add(float (&sum)[M][R], const int (&rows)[R], const Share& share) const {
        const int inputs = phase.inputs;
        if constexpr (BITS == 0) {
            const T* const w = (const T*)phase.weights;
#pragma unroll(M == 1 ? 4 : 1)
            for (int i = share.lane; i < inputs / N; i += share.group) {
                float a[R][N];
#pragma unroll
                for (int r = 0; r < R; r++) load_vector_once(a[r], w + (uint64_t)rows[r] * inputs + i * N);
                add_products(sum, a, staged + i * N, inputs);
            }
        } else {
            constexpr int COLUMNS = Codes<BITS>::COLUMNS;
            const Codes<BITS> w{phase.weights, phase.scales, phase.mins, inputs, phase.scaled};
#pragma unroll 1
            for (int i = share.lane; i < inputs / COLUMNS; i += share.group) w.add(sum, [&](int r) { return rows[r]; }, i * COLUMNS, staged, i, inputs);
        }
    }

    __device__ __forceinline__ void multiply() const {
        __shared__ GroupSums<THREADS, M, R> sums[2];  // by turns
        const Share share(phase);
        const bool gate = phase.work == WIDEN;
        const int own = gate ? R / 2 : R, lanes = min(share.group, 32), parts = share.group / lanes;
        const int begin = share.begin(share.mine()), end = share.begin(share.mine() + 1);
        for (int done = 0, turn = 0; done < share.most(); done += own, turn ^= 1) {
            float sum[M][R] = {};
            if (begin + done < end) {
                int rows[R];
#pragma unroll
                for (int r = 0; r < R; r++) {
                    const bool second = gate && r >= R / 2;
                    rows[r] = min(begin + done + (second ? r - R / 2 : r), end - 1) + (second ? share.outputs : 0);
                }
                if (phase.bits == 0)
                    add<0>(sum, rows, share);
                else if (phase.bits == 8)
                    add<8>(sum, rows, share);
                else
                    add<4>(sum, rows, share);
            }
            sums[turn].put(sum, lanes);
            __syncthreads();
            for (int i = threadIdx.x; i < M * share.groups * own; i += THREADS) {
                const int m = i / (share.groups * own), g = i % (share.groups * own) / own, r = i % own;
                const int n = share.begin(g) + done + r;
                const float total = sums[turn].total(g, parts, m, r), gated = gate ? sums[turn].total(g, parts, m, r + R / 2) : 0.0f;
                if (m < count && n < share.begin(g + 1)) store(m, n, share.outputs, total, gated);
            }
        }
    }
};

template <typename T>
__device__ __forceinline__ void draw(const Frame& frame, const Phase& phase) {
    const int k = phase.step;
    for (int b = blockIdx.x; b < frame.batch; b += gridDim.x) {
        if (frame.masks[k] && frame.masks[k][b] == 0) continue;
        const uint64_t counter = frame.counters[k][b];
        const T* const logits = (const T*)frame.logits[k] + (uint64_t)b * phase.outputs;
        // Meets all threads, which have read the counter.
        const int id = phase.outputs % LANES<T> == 0 ? Row<T, LANES<T>>{logits, phase.outputs}.draw(frame.settings[k][b], counter)
                                                     : Row<T, 1>{logits, phase.outputs}.draw(frame.settings[k][b], counter);
        if (threadIdx.x == 0) {
            frame.said[(uint64_t)b * frame.columns + k + 1] = id;
            frame.counters[k][b] = counter + 1;
        }
    }
}

template <typename T, int M>
__device__ __forceinline__ void run(const Frame& frame) {
    DYNAMIC_SHARED(T, staged);
    __shared__ uint64_t phases[2][PHASE_WORDS];
    if (threadIdx.x < PHASE_WORDS) phases[0][threadIdx.x] = ((const uint64_t*)frame.phases)[threadIdx.x];
    for (int p = 0; p < frame.count; p++) {
        const Phase& phase = *(const Phase*)phases[p % 2];
        const Phase& next = *(const Phase*)phases[(p + 1) % 2];
        const bool more = p + 1 < frame.count;
        if (more && threadIdx.x < PHASE_WORDS) phases[(p + 1) % 2][threadIdx.x] = ((const uint64_t*)(frame.phases + p + 1))[threadIdx.x];
        __syncthreads();
        if (phase.work == DRAW) {
            draw<T>(frame, phase);
        } else {
            for (int first = 0; first < frame.batch; first += M) {
                const Rows<T, M> rows(frame, phase, staged, first);
                rows.prepare();
                __syncthreads();
                rows.multiply();
            }
        }
        if (more) prefetch<T>(next);
        if (phase.meets)
            grid_barrier(frame.barrier);
        else
            __syncthreads();  // before a phase is overwritten
    }
}

// Dynamic shared memory: M rows of x, of the longest input.
#define DEPTH(M, T, SUFFIX)                                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) depth_##M##_##SUFFIX(const __grid_constant__ Frame frame) { \
        run<T, M>(frame);                                                                                           \
    }
DEPTH(1, float, f32)
DEPTH(4, float, f32)
DEPTH(1, bf16, bf16)
DEPTH(4, bf16, bf16)
DEPTH(1, f16, f16)
DEPTH(4, f16, f16)
