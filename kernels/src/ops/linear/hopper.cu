// Linear layers over many rows by Hopper's own means: wgmma on tiles that its copy engine (TMA) brings. As linear.cu otherwise.
//
// Tensors    x [rows, K], w [outputs, K] through tensor maps: whatever is outside reads as zero. K divides into 16 bytes.
// Mapping    a block for each multiprocessor, which takes tiles of 128 x 256, columns first, until there are none. Two groups of four warps
//            multiply, 64 x 256 of the tile each; one thread of a third starts copies. With a gate, a tile is 128 columns of the one
//            half of w and the same of the other, so that a thread has the two sums that it multiplies.
// Memory     K in steps of 64 elements, 128 bytes a row, swizzled; four stages of 48 KB in shared memory. A stage is `full` when its
//            copies have landed, `empty` when all eight warps have read it. The next tile's copies run during the stores of this one.
// Order      along K by 16, in ascending order: decided by K alone.
// Registers  128 sums a thread and what the stores want exceed the 168 that twelve warps have each: those that copy give theirs away.
// Stores     16 columns of either half at a time through 20 KB of shared memory, a part for each warp: whole sectors.
// Bytes      (outputs / 256) rows K of x and (rows / 128) outputs K of w from the L2 cache, rows N written; from memory x and w once, as
//            long as a turn of tiles of all multiprocessors fits the L2 cache.
// Cost       the tensor cores take 128 cycles for a product of 64 x 256 x 16, 1024 for a step. It reads 10 KB of shared memory in
//            that time, 80 cycles at 128 bytes, and a step's 48 KB come from the L2 cache at 48 bytes a cycle, of 64 that can:
//            the tensor cores are the limit, not by much. The stores, which nothing hides, take some 3500 cycles a tile, as long as
//            K = 220. So about 80% of the rate that the clock allows at K = 1024 and 95% at 4096, if the copies keep up; under load
//            the clock allows some 75 to 80% of the 989 Tflop/s of a data sheet. None of it was measured: no GPU has run this yet.
// Left       w for two blocks at once (clusters), stores behind the next tile's products, tiles in an order that spares the L2 cache.
// Ladder     v1.
//
// kernels: linear_wgmma_bf16 linear_wgmma_f16
#include "linear.cuh"

constexpr int TILE_M = 128, TILE_N = 256, TILE_K = 64, STAGES = 4;  // as in cuda.rs
constexpr int CONSUMERS = 8, THREADS = 32 * (CONSUMERS + 4);       // warps
constexpr int PARTS = 8, PITCH = 32 + 8;                           // of a warp's sums on their way out; 8: pairs hit all banks

template <typename T>
struct Stage {
    T a[TILE_M][TILE_K], b[2][TILE_N / 2][TILE_K];
};

__device__ __forceinline__ void multiply(float (&sums)[128], uint64_t a, uint64_t b, bf16) { wgmma_m64n256k16_bf16(sums, a, b); }
__device__ __forceinline__ void multiply(float (&sums)[128], uint64_t a, uint64_t b, f16) { wgmma_m64n256k16_f16(sums, a, b); }

// Which stage is next, and the parity of its turn.
struct Turn {
    int stage = 0;
    unsigned parity = 0;

    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

template <typename T>
__device__ __forceinline__ void linear_wgmma(const Finish<T>& finish, const TensorMap& x, const TensorMap& w, int rows, int k) {
    DYNAMIC_SHARED(char, shared);
    Stage<T>* const stages = reinterpret_cast<Stage<T>*>(shared + (1024 - (uint64_t)shared % 1024) % 1024);
    __shared__ Barrier full[STAGES], empty[STAGES];
    __shared__ alignas(16) float slabs[CONSUMERS][16 * PITCH];
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) mbarrier_init(full[i], 1), mbarrier_init(empty[i], CONSUMERS);
        async_proxy_fence();
    }
    __syncthreads();

    const bool gate = finish.activation == SILU_GATE;
    const int width = gate ? TILE_N / 2 : TILE_N, second = gate ? finish.columns : TILE_N / 2;  // of y; rows of w to the second half
    const int across = (finish.columns + width - 1) / width, tiles = (rows + TILE_M - 1) / TILE_M * across;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Turn turn;
    if (warp >= CONSUMERS) {
        give_registers<24>();
        if (threadIdx.x != 32 * CONSUMERS) return;
        for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            const int m = tile / across * TILE_M, n = tile % across * width;
            for (int base = 0; base < k; base += TILE_K, turn.next()) {
                Stage<T>& stage = stages[turn.stage];
                Barrier& barrier = full[turn.stage];
                mbarrier_wait(empty[turn.stage], turn.parity ^ 1);
                mbarrier_arrive_expect(barrier, sizeof(Stage<T>));
                copy_tile(stage.a, x, m, base, barrier);
                copy_tile(stage.b[0], w, n, base, barrier);
                copy_tile(stage.b[1], w, n + second, base, barrier);
            }
        }
        return;
    }
    take_registers<240>();
    float* const slab = slabs[warp];
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        float sums[128] = {};
        int before = 0;
        for (int base = 0; base < k; base += TILE_K, turn.next()) {
            const Stage<T>& stage = stages[turn.stage];
            const uint64_t a = tile_descriptor(stage.a[warp / 4 * 64]), b = tile_descriptor(stage.b);
            mbarrier_wait(full[turn.stage], turn.parity);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < TILE_K / 16; i++) multiply(sums, a + 2 * i, b + 2 * i, T());
            wgmma_commit();
            wgmma_wait<1>();
            if (base > 0 && lane == 0) mbarrier_arrive(empty[before]);
            before = turn.stage;
        }
        wgmma_wait<0>(sums);
        if (lane == 0) mbarrier_arrive(empty[before]);

        // A part is 16 columns of either half. Registers have no index at run time: hence the chain of ifs, and one text of what follows.
        const int m = tile / across * TILE_M + warp * 16, n = tile % across * width;
#pragma unroll 1
        for (int part = 0; part < PARTS; part++) {
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                if (p != part) continue;
#pragma unroll
                for (int i = 0; i < 8; i++) {  // rows 8 apart, blocks of eight columns, halves
                    const int at = i % 2 * 2 + i / 2 % 2 * 4 + i / 4 * 64 + p * 8;
                    float* const to = slab + (lane / 4 + i % 2 * 8) * PITCH + i / 2 * 8 + lane % 4 * 2;
                    *reinterpret_cast<float2*>(to) = make_float2(sums[at], sums[at + 1]);
                }
            }
            __syncwarp();
            const int fours = gate ? 4 : 8;  // of a row: those of the first half, then those of the second
#pragma unroll 1
            for (int i = lane; i < 16 * fours; i += 32) {
                const int row = i / fours, four = i % fours;
                float sum[4], gated[4] = {};
                load_vector(sum, slab + row * PITCH + 4 * four);
                if (gate) load_vector(gated, slab + row * PITCH + 16 + 4 * four);
                if (m + row < rows) finish.store_four(m + row, n + four / 4 * (TILE_N / 2) + part * 16 + four % 4 * 4, sum, gated);
            }
            __syncwarp();
        }
    }
}

#define LINEAR_WGMMA(T, SUFFIX)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                                      \
        linear_wgmma_##SUFFIX(T* y, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const float* bias,   \
                              const float* scale, const T* residual, int rows, int columns, int k, int activation) {               \
        linear_wgmma<T>(Finish<T>{y, bias, scale, residual, columns, activation}, x, w, rows, k);                                 \
    }
LINEAR_WGMMA(bf16, bf16)
LINEAR_WGMMA(f16, f16)
