#include "types.cuh"

// C[64, 256] = A[64, 16] B[16, 256] by four warps, from tiles that are laid out here by the PTX ISA's words, not by copy_tile's: in 1024
// bytes are eight rows of 128, and the 16-byte piece p of row r lies where p ^ r would. `at`: the first of the 16 of a row's 64 elements.
extern "C" __global__ void book_wgmma(float* c, const float* a, const float* b, int at) {
    DYNAMIC_SHARED(char, shared);
    char* const tiles = shared + (1024 - (uint64_t)shared % 1024) % 1024;
    for (int i = threadIdx.x; i < (64 + 256) * 64; i += 128) {
        const int row = i / 64, k = i % 64 - at;  // rows of A, then columns of B
        const float v = k < 0 || k >= 16 ? 1e9f : row < 64 ? a[row * 16 + k] : b[k * 256 + row - 64];
        const int piece = i % 64 / 8, place = row * 128 + (piece ^ row % 8) * 16 + i % 8 * 2;
        *(uint16_t*)(tiles + place) = float_to_bf16(v);
    }
    async_proxy_fence();
    __syncthreads();
    float d[128];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int i = 0; i < 128; i++) d[i] = c[(warp * 16 + lane / 4 + i / 2 % 2 * 8) * 256 + i / 4 * 8 + lane % 4 * 2 + i % 2];
    wgmma_fence();
    wgmma_m64n256k16_bf16(d, tile_descriptor(tiles) + at / 8, tile_descriptor(tiles + 64 * 128) + at / 8);
    wgmma_commit();
    wgmma_wait<0>(d);
    for (int i = 0; i < 128; i++) c[(warp * 16 + lane / 4 + i / 2 % 2 * 8) * 256 + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i];
}

// y[16, 64] = the tile from (row, column), written out by the same words.
extern "C" __global__ void tile(float* y, const __grid_constant__ TensorMap map, int row, int column) {
    DYNAMIC_SHARED(char, shared);
    char* const to = shared + (1024 - (uint64_t)shared % 1024) % 1024;
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) mbarrier_init(barrier, 1), async_proxy_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, 16 * 128);
        copy_tile(to, map, row, column, barrier);
    }
    mbarrier_wait(barrier, 0);
    for (int i = threadIdx.x; i < 16 * 64; i += 128) {
        const int r = i / 64, piece = i % 64 / 8;
        y[i] = to_float(*(bf16*)(to + r * 128 + (piece ^ r % 8) * 16 + i % 8 * 2));
    }
}

// One thread of a second group of warps copies tiles of 256 x 64, one after the other to the same place; the first group adds up
// y[64, 64] = the sum of each one's first 64 rows times the same transposed.
enum Mistake { NONE, NO_FULL, NO_EMPTY, EARLY_ARRIVAL, NO_WAIT, NO_FENCE, NO_BYTES, NO_INIT, TWO_ARRIVALS, UNALIGNED };
extern "C" __global__ void relay(float* y, const __grid_constant__ TensorMap map, int tiles, int mistake) {
    DYNAMIC_SHARED(char, shared);
    char* const tile = shared + (1024 - (uint64_t)shared % 1024) % 1024 + (mistake == UNALIGNED ? 128 : 0);
    __shared__ Barrier full, empty;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x == 0 && mistake != NO_INIT) mbarrier_init(full, 1), mbarrier_init(empty, 4), async_proxy_fence();
    __syncthreads();
    if (warp >= 4) {
        if (threadIdx.x != 128) return;
        for (int i = 0; i < tiles; i++) {
            if (mistake != NO_EMPTY) mbarrier_wait(empty, i % 2 ^ 1);
            if (mistake == NO_BYTES) mbarrier_arrive(full); else mbarrier_arrive_expect(full, 256 * 128);
            if (mistake == TWO_ARRIVALS) mbarrier_arrive(full);
            copy_tile(tile, map, 256 * i, 0, full);
        }
        return;
    }
    float d[128] = {};
    for (int i = 0; i < tiles; i++) {
        if (mistake != NO_FULL) mbarrier_wait(full, i % 2);
        if (mistake != NO_FENCE) wgmma_fence();
        for (int k = 0; k < 4; k++) wgmma_m64n256k16_bf16(d, tile_descriptor(tile) + 2 * k, tile_descriptor(tile) + 2 * k);
        wgmma_commit();
        if (mistake == EARLY_ARRIVAL && lane == 0) mbarrier_arrive(empty);
        if (mistake == NO_WAIT) wgmma_wait<1>(d); else wgmma_wait<0>(d);
        if (mistake != EARLY_ARRIVAL && lane == 0) mbarrier_arrive(empty);
    }
    for (int i = 0; i < 32; i++) y[(warp * 16 + lane / 4 + i / 2 % 2 * 8) * 64 + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i];
}
