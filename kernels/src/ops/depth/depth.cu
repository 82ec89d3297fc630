// The depth transformer of Moshi over one frame: all its steps, layers and draws in one cooperative launch.
//
//   for each step k   x = inputs_k h + table_k[said[k]]
//                     for each layer   x += out attention(project norm1(x));  x += narrow (silu(u) v), [u; v] = widen norm2(x)
//                     logits_k = linear_k norm(x) + bias;  said[k + 1] = a draw from logits_k
//
// Attention is over steps 0 .. k of the frame. Everything is rounded to T where the operations by themselves store it.
//
// Tensors    h [B, dim]; said [B, columns] i32; logits_k [B, card]; of the frame's own: x [B, width], wide [B, hidden], qkv
//            [layers, steps, B, (heads + 2 kv_heads) head_dim] of T, sums [inputs, B, width] f32. Matrices of T, or codes as in low_bit.cu.
// Phases     A list that the host wrote: a product each, or a draw. A phase's input is made in its prologue by every block for itself
//            (norm, embedding, attention: all from the L2 cache), residual, gate and bias are in its epilogue. All blocks meet between
//            phases: 4 times a layer and twice a step.
// Mapping    B at a time M rows of x, in shared memory. A group of 8 to 128 threads, as in linear.cu, has a run of the matrix's rows, R
//            at a time; all groups of the grid have as many, or one more. Attention: a warp a head, head_dim / 16 bytes lanes a key.
// Memory     w past the L1 cache. Weights depend on no activation: before blocks meet, each asks for its own rows of the next phase to be
//            in the L2 cache, so that they arrive while it waits.
// Order      products as linear.cu and low_bit.cu, bit for bit. Norms: a thread, a warp, warps in ascending order; neither B nor M
//            changes a bit.
// Bytes      every matrix once (again from L2 for every further M rows); activations stay in the L2 cache.
// Cost       Moshi (8 steps of 6 layers): 208 meetings instead of 416 launches. A meeting is an atomic and a read of it by way of L2, 1 to
//            2 us: 0.2 to 0.4 ms a frame. Matrices: 1.33 GB of bf16, 0.67 of 8 bits, 0.38 of 4: 0.28, 0.14, 0.08 ms at 4.8 TB/s, which
//            overlap with the meetings as far as the next phase's weights fit the L2 cache (at most 12 MB).
// Ladder     v1. No GPU has run it yet. Next: the first weights of a phase into shared memory before the meeting; two blocks a multiprocessor.
//
// kernels: depth_1_f32 depth_4_f32 depth_1_bf16 depth_4_bf16 depth_1_f16 depth_4_f16
#include "activation.cuh"
#include "attention.cuh"
#include "codes.cuh"
#include "sample.cuh"

// As in cuda.rs.
constexpr int THREADS = 256, LEAST_GROUP = 8, R = 4, MOST_STEPS = 32;
constexpr int WARPS = THREADS / 32, LINE = 128;
constexpr int NONE = -1;  // the id that adds nothing

enum Work { INPUT, PROJECT, ATTEND, WIDEN, NARROW, LOGITS, DRAW };

struct Phase {
    const uint8_t* weights;
    const float *scales, *mins, *bias;
    const float* alpha;  // of the norm before the product; null for none
    const void* table;   // of the step whose x begins here; null: x is there
    int work, step, layer, outputs, inputs, scaled, bits, group;
    int rows, source;    // of the table; which of the sums x begins with
    float epsilon;
    int meets;
};
constexpr int PHASE_WORDS = sizeof(Phase) / 8;
static_assert(sizeof(Phase) == 96, "as in cuda.rs");

struct Frame {
    const Phase* phases;
    unsigned* barrier;
    const void* h;
    void *x, *wide, *qkv;
    float* sums;
    int* said;
    void* logits[MOST_STEPS];
    const unsigned char* masks[MOST_STEPS];
    uint64_t* counters[MOST_STEPS];
    const Settings* settings[MOST_STEPS];
    int count, batch, columns, steps, width, heads, kv_heads, head_dim;
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

// Where the i-th vector of a row of x lies, so that threads whose codes have `pieces` of them find theirs in different banks.
__device__ __forceinline__ int turned(int i, int pieces) {
    const int owner = i / pieces;
    return owner * pieces + (i + owner * pieces / 8) % pieces;
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

    // The sum that the step's x begins with, and the row of the id that was said last.
    __device__ __forceinline__ void embed(float (&v)[N], int m, int i) const {
        const int id = frame.said[(uint64_t)(first + m) * frame.columns + phase.step];
        float row[N] = {};
        if (id >= 0 && id < phase.rows) load_vector(row, (const T*)phase.table + (uint64_t)id * phase.inputs + i * N);
        const float* const sum = frame.sums + ((uint64_t)phase.source * frame.batch + first + m) * phase.inputs + i * N;
#pragma unroll
        for (int j = 0; j < N; j += 4) {
            float four[4];
            load_vector(four, sum + j);
#pragma unroll
            for (int e = 0; e < 4; e++) v[j + e] = four[e] + (id == NONE || (id >= 0 && id < phase.rows) ? row[j + e] : __int_as_float(0x7fc00000));
        }
    }

    // x, normalised.
    __device__ __forceinline__ void norm() const {
        __shared__ float parts[WARPS][M];
        float squares[M] = {};
        stage([&](float (&v)[N], int m, int i) {
            T* const x = (T*)frame.x + (uint64_t)(first + m) * phase.inputs + i * N;
            if (phase.table) {
                embed(v, m, i);
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

    // Of the layer's queries over the keys and values of the frame's steps so far.
    __device__ __forceinline__ void attend() const {
        const int lanes = frame.head_dim / N, keys = 32 / lanes, lane = threadIdx.x % lanes, key = threadIdx.x % 32 / lanes;
        const int outputs = (frame.heads + 2 * frame.kv_heads) * frame.head_dim;
        const float scale = 1.44269504f / sqrtf((float)frame.head_dim);  // log2 e
        for (int i = threadIdx.x / 32; i < M * frame.heads; i += WARPS) {
            const int m = i / frame.heads, head = i % frame.heads, shared = head / (frame.heads / frame.kv_heads);
            float sum[N] = {};
            if (m < count) {
                const auto row = [&](int step, int head) {
                    const uint64_t slot = ((uint64_t)phase.layer * frame.steps + step) * frame.batch + first + m;
                    return (const T*)frame.qkv + slot * outputs + head * frame.head_dim + lane * N;
                };
                float q[N];
                load_vector(q, row(phase.step, head));
                Softmax softmax;
                for (int from = 0; from <= phase.step; from += keys) {
                    const bool inside = from + key <= phase.step;
                    float k[N] = {}, v[N] = {};
                    if (inside) {
                        load_vector(k, row(from + key, frame.heads + shared));
                        load_vector(v, row(from + key, frame.heads + frame.kv_heads + shared));
                    }
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
            const uint64_t slot = ((uint64_t)phase.layer * frame.steps + phase.step) * frame.batch + row;
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
    __device__ __forceinline__ void add(float (&sum)[M][R], const uint64_t (&rows)[R], const Share& share) const {
        constexpr int COLUMNS = BITS ? 128 / (BITS ? BITS : 1) : N, PIECES = COLUMNS / N;
        const int inputs = phase.inputs, scales = BITS ? inputs / phase.scaled : 0;
#pragma unroll(BITS == 0 && M == 1 ? 4 : 1)
        for (int i = share.lane; i < inputs / COLUMNS; i += share.group) {
            unsigned words[R][4];
            float scale[R], min[R];
#pragma unroll
            for (int r = 0; r < R; r++) {
                const uint64_t bytes = BITS ? (rows[r] * inputs + i * COLUMNS) * BITS / 8 : (rows[r] * inputs + i * COLUMNS) * sizeof(T);
                const uint4 raw = load_once16(phase.weights + bytes);
                words[r][0] = raw.x, words[r][1] = raw.y, words[r][2] = raw.z, words[r][3] = raw.w;
                if constexpr (BITS != 0) {
                    const uint64_t at = rows[r] * scales + i * COLUMNS / phase.scaled;
                    scale[r] = phase.scales[at];
                    min[r] = phase.mins ? phase.mins[at] : (BITS == 4 ? 8.0f : 0.0f) * scale[r];
                }
            }
#pragma unroll
            for (int piece = 0; piece < PIECES; piece++) {
                float a[R][N];
#pragma unroll
                for (int r = 0; r < R; r++) {
                    if constexpr (BITS == 0) {
                        unpack<T>(a[r], words[r]);
                    } else {
                        decode<BITS>(a[r], words[r], piece);
#pragma unroll
                        for (int e = 0; e < N; e++) a[r][e] = fmaf(scale[r], a[r][e], -min[r]);
                    }
                }
#pragma unroll
                for (int m = 0; m < M; m++) {
                    float b[N];
                    load_vector(b, staged + m * inputs + (i * PIECES + (piece + i * PIECES / 8) % PIECES) * N);
#pragma unroll
                    for (int r = 0; r < R; r++)
#pragma unroll
                        for (int e = 0; e < N; e++) sum[m][r] = fmaf(a[r][e], b[e], sum[m][r]);
                }
            }
        }
    }

    __device__ __forceinline__ void multiply() const {
        __shared__ float sums[2][THREADS / LEAST_GROUP][M * R + 1];  // by turns, of the lanes of a group in one warp; apart in the banks
        const Share share(phase);
        const bool gate = phase.work == WIDEN;
        const int own = gate ? R / 2 : R, lanes = min(share.group, 32), parts = share.group / lanes;
        const int begin = share.begin(share.mine()), end = share.begin(share.mine() + 1);
        for (int done = 0, turn = 0; done < share.most(); done += own, turn ^= 1) {
            float sum[M][R] = {};
            if (begin + done < end) {
                uint64_t rows[R];
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
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int r = 0; r < R; r++) {
                    float v = sum[m][r];
                    for (int distance = lanes / 2; distance > 0; distance /= 2) v += __shfl_xor_sync(0xffffffffu, v, distance);
                    if (threadIdx.x % lanes == 0) sums[turn][threadIdx.x / lanes][m * R + r] = v;
                }
            __syncthreads();
            for (int i = threadIdx.x; i < M * share.groups * own; i += THREADS) {
                const int m = i / (share.groups * own), g = i % (share.groups * own) / own, r = i % own;
                const int n = share.begin(g) + done + r;
                float total = 0.0f, gated = 0.0f;
                for (int part = g * parts; part < (g + 1) * parts; part++) {
                    total += sums[turn][part][m * R + r];
                    if (gate) gated += sums[turn][part][m * R + r + R / 2];
                }
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
        const Row<T, LANES<T>> row{(const T*)frame.logits[k] + (uint64_t)b * phase.outputs, phase.outputs};
        const int id = row.draw(frame.settings[k][b], counter);  // meets all threads, which have read the counter
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
                __syncthreads();  // before the next rows of x
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
