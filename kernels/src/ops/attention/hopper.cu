// Attention over whole sequences by Hopper's own means: wgmma on tiles that its copy engine (TMA) brings. As attention.cu otherwise.
//
// Tensors    q, y [B, T, Hq, D]; k, v [B, S, Hkv, D] through tensor maps, as matrices [B T, Hq D] and [B S, Hkv D]; D is 64 or 128. What a
//            tile has past the last key is zero and has no weight: of several streams, S is a multiple of 128.
// Mapping    a block for 128 queries of a head, those that see most keys first. Two groups of four warps have 64 each; one thread of a
//            third starts copies.
// Memory     keys and values by 128, whole rows as tiles of 64 columns, swizzled: four slots of 256 D bytes in shared memory, keys and values
//            in turns. A slot is `full` when its copies have landed, `empty` when all eight warps have read it.
// Order      keys by 128, counted from the start of the sequence, and within those as the tensor cores do: a row's bits depend on its
//            position alone.
// Overlap    scores of the next 128 keys are multiplied while the values of these are, and their exponentials are taken meanwhile; and the
//            two groups have the tensor cores in turns by themselves.
// Registers  64 scores, 32 pairs of weights and D / 2 sums a thread, besides addresses: those that copy give theirs away.
// Bytes      q and y once; keys and values once for every 128 queries, from the L2 cache after the first.
// Cost       64 x 128 x D products twice for a group and 128 keys: 8 D cycles of the tensor cores, and 8192 exponentials at 16 a cycle,
//            512 cycles. D = 128: 1024 to 512, so tensor cores are the limit, if the two overlap. D = 64: 512 to 512, which neither hides.
//            Of causal blocks, the one on the diagonal is half wasted: 1 / (1 + T / 128) of all.
// Left       for D = 64 a third group, exponentials by polynomial; one block a multiprocessor that goes on to the next tile (the first
//            copies and the stores of a tile are not hidden); streams over their rings.
// Ladder     v1 FlashAttention-3's order. None of it was measured: no GPU has run this yet.
//
// kernels: attention_wgmma_64_bf16 attention_wgmma_128_bf16 attention_wgmma_64_f16 attention_wgmma_128_f16
#include "attention.cuh"
#include "mma.cuh"
#include "vec.cuh"

constexpr int QUERIES = 128, KEYS = 128, SLOTS = 4, COLUMNS = 64;  // as in cuda.rs; COLUMNS of a tile
constexpr int CONSUMERS = 8, THREADS = 32 * (CONSUMERS + 4);       // warps

__device__ __forceinline__ void scores_of(float (&scores)[64], uint64_t a, uint64_t b, bool first, bf16) {
    first ? wgmma_m64n128k16_bf16<false>(scores, a, b) : wgmma_m64n128k16_bf16(scores, a, b);
}
__device__ __forceinline__ void scores_of(float (&scores)[64], uint64_t a, uint64_t b, bool first, f16) {
    first ? wgmma_m64n128k16_f16<false>(scores, a, b) : wgmma_m64n128k16_f16(scores, a, b);
}
__device__ __forceinline__ void add_values(float (&sums)[64], const Fragment& a, uint64_t b, bf16) { wgmma_m64n128k16_bf16(sums, a, b); }
__device__ __forceinline__ void add_values(float (&sums)[64], const Fragment& a, uint64_t b, f16) { wgmma_m64n128k16_f16(sums, a, b); }
__device__ __forceinline__ void add_values(float (&sums)[32], const Fragment& a, uint64_t b, bf16) { wgmma_m64n64k16_bf16(sums, a, b); }
__device__ __forceinline__ void add_values(float (&sums)[32], const Fragment& a, uint64_t b, f16) { wgmma_m64n64k16_f16(sums, a, b); }

// 128 rows of a head.
template <class T, int D>
struct Tile {
    T columns[D / COLUMNS][KEYS][COLUMNS];

    __device__ __forceinline__ void copy(const TensorMap& map, int row, int column, Barrier& barrier) {
        mbarrier_arrive_expect(barrier, sizeof(Tile));
#pragma unroll
        for (int i = 0; i < D / COLUMNS; i++) copy_tile(columns[i], map, row, column + i * COLUMNS, barrier);
    }
};
template <class T, int D>
struct Shared {
    static constexpr int PITCH = D + 8;
    Tile<T, D> queries, slots[SLOTS];
    T out[CONSUMERS][16 * PITCH];
};

// A slot's number is that of what is in it, keys of the block n at 2 n and its values at 2 n + 1.
__device__ __forceinline__ unsigned parity(int number) { return number / SLOTS & 1; }

template <class T, int D>
__device__ __forceinline__ void attention_wgmma(T* y, float* logsum, const TensorMap& q, const TensorMap& k, const TensorMap& v, int tokens,
                                                int heads, int kv_heads, int keys, int window, int causal, float scale) {
    static_assert(QUERIES == KEYS, "a tile has as many rows of either");
    DYNAMIC_SHARED(char, dynamic);
    Shared<T, D>& shared = *reinterpret_cast<Shared<T, D>*>(dynamic + (1024 - (uint64_t)dynamic % 1024) % 1024);
    __shared__ Barrier asked, full[SLOTS], empty[SLOTS];
    if (threadIdx.x == 0) {
        mbarrier_init(asked, 1);
        for (int i = 0; i < SLOTS; i++) mbarrier_init(full[i], 1), mbarrier_init(empty[i], CONSUMERS);
        async_proxy_fence();
    }
    __syncthreads();

    const int tiles = (tokens + QUERIES - 1) / QUERIES, own = blockIdx.x / tiles, head = own % heads, batch = own / heads;
    const int query = (tiles - 1 - blockIdx.x % tiles) * QUERIES;
    const auto seen = [&](int token) -> Seen {
        if (token >= tokens) return {0, 0};
        if (!causal) return {0, keys};
        return {window > 0 ? max(token + 1 - window, 0) : 0, token + 1};
    };
    const int begin = seen(query).first / KEYS * KEYS, end = seen(min(query + QUERIES, tokens) - 1).end;
    const int blocks = (end - begin + KEYS - 1) / KEYS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp >= CONSUMERS) {
        give_registers<24>();
        if (threadIdx.x != 32 * CONSUMERS) return;
        shared.queries.copy(q, batch * tokens + query, head * D, asked);
        const int column = head / (heads / kv_heads) * D;
        for (int n = 0; n < 2 * blocks; n++) {
            mbarrier_wait(empty[n % SLOTS], parity(n) ^ 1);
            shared.slots[n % SLOTS].copy(n % 2 ? v : k, batch * keys + begin + n / 2 * KEYS, column, full[n % SLOTS]);
        }
        return;
    }
    take_registers<240>();

    float scores[KEYS / 2], sums[D / 2] = {};
    Fragment weights[KEYS / 16];
    Softmax softmax[2];
    const int row = query + warp * 16 + lane / 4;
    const Seen mine[2] = {seen(row), seen(row + 8)};
    const Seen first = seen(query + warp * 16), last = seen(query + warp * 16 + 15);  // {0, 0} if there is no such row
    const auto multiply_keys = [&](int n) {
        const auto& tile = shared.slots[2 * n % SLOTS].columns;
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            const uint64_t a = tile_descriptor(shared.queries.columns[d / COLUMNS][warp / 4 * 64]) + d % COLUMNS / 8;
            scores_of(scores, a, tile_descriptor(tile[d / COLUMNS]) + d % COLUMNS / 8, d == 0, T());
        }
        wgmma_commit();
    };
    const auto multiply_values = [&](int n) {
        const uint64_t tile = tile_descriptor_columns(shared.slots[(2 * n + 1) % SLOTS].columns, KEYS * COLUMNS * sizeof(T));
#pragma unroll
        for (int i = 0; i < KEYS / 16; i++) add_values(sums, weights[i], tile + 128 * i, T());
        wgmma_commit();
    };
    const auto wait = [&](int number) { mbarrier_wait(full[number % SLOTS], parity(number)); };
    const auto release = [&](int number) {
        if (lane == 0) mbarrier_arrive(empty[number % SLOTS]);
    };
    const auto weigh = [&](int n, float (&rescale)[2]) {
        const int block = begin + n * KEYS;
        const bool masked = block < last.first || block + KEYS > min(first.end, last.end);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const auto score = [&](int n, int e) -> float& { return scores[4 * n + 2 * half + e]; };
            rescale[half] = softmax[half].weigh<KEYS / 8>(score, scale, block, mine[half], masked);
        }
    };
    const auto pack = [&] {
#pragma unroll
        for (int i = 0; i < KEYS / 4; i++) weights[i / 4].r[i % 4] = pack2(scores[2 * i], scores[2 * i + 1], T());
    };

    float rescale[2];
    mbarrier_wait(asked, 0);
    wait(0);
    wgmma_fence();
    multiply_keys(0);
    wgmma_wait<0>(scores);
    release(0);
    weigh(0, rescale);
    pack();
    for (int n = 0; n + 1 < blocks; n++) {
        wait(2 * n + 2);
        wgmma_fence();
        multiply_keys(n + 1);
        wait(2 * n + 1);
        multiply_values(n);
        wgmma_wait<1>(scores);
        release(2 * n + 2);
        weigh(n + 1, rescale);
        wgmma_wait<0>(sums, scores);  // weights of the products that end here are not overwritten before
        release(2 * n + 1);
#pragma unroll
        for (int i = 0; i < D / 2; i++) sums[i] *= rescale[i / 2 % 2];
        pack();
    }
    wait(2 * blocks - 1);
    wgmma_fence();
    multiply_values(blocks - 1);
    wgmma_wait<0>(sums);

    constexpr int PITCH = Shared<T, D>::PITCH;
    T* const out = shared.out[warp];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float& sum = softmax[half].sum;
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const float inverse = 1.0f / sum;
#pragma unroll
        for (int d = 0; d < D / 8; d++) {
            const unsigned pair = pack2(sums[4 * d + 2 * half] * inverse, sums[4 * d + 2 * half + 1] * inverse, T());
            *reinterpret_cast<unsigned*>(out + (lane / 4 + 8 * half) * PITCH + d * 8 + lane % 4 * 2) = pair;
        }
        const int token = row + 8 * half;
        if (lane % 4 == 0 && token < tokens)
            logsum[((int64_t)batch * heads + head) * tokens + token] = softmax[half].shift + log2_approx(sum);
    }
    __syncwarp();
    constexpr int ACROSS = D / LANES<T>;
    for (int i = lane; i < 16 * ACROSS; i += 32) {
        const int token = query + warp * 16 + i / ACROSS, d = i % ACROSS * LANES<T>;
        if (token >= tokens) continue;
        T* const to = y + (((int64_t)batch * tokens + token) * heads + head) * D + d;
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(out + i / ACROSS * PITCH + d);
    }
}

#define ATTENTION_WGMMA(T, D, SUFFIX)                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                                      \
        attention_wgmma_##D##_##SUFFIX(T* y, float* logsum, const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, \
                                       const __grid_constant__ TensorMap v, int tokens, int heads, int kv_heads, int keys, int window, \
                                       int causal, float scale) {                                                                 \
        attention_wgmma<T, D>(y, logsum, q, k, v, tokens, heads, kv_heads, keys, window, causal, scale);                          \
    }
ATTENTION_WGMMA(bf16, 64, bf16)
ATTENTION_WGMMA(bf16, 128, bf16)
ATTENTION_WGMMA(f16, 64, f16)
ATTENTION_WGMMA(f16, 128, f16)
