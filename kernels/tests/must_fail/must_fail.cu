// One kernel a check of the emulator, each wrong in one way. The tests assert what is said about it.
#include "types.cuh"

// kernels in pairs: RIGHT is the same kernel without the mistake.
template <bool RIGHT>
__device__ void reverse(float* y, const float* x) {
    __shared__ float tile[128];
    tile[threadIdx.x] = x[threadIdx.x];
    if (RIGHT) __syncthreads();
    y[threadIdx.x] = tile[127 - threadIdx.x];
}
extern "C" __global__ void barrier(float* y, const float* x) { reverse<true>(y, x); }
extern "C" __global__ void no_barrier(float* y, const float* x) { reverse<false>(y, x); }

// y = the sum of four tiles, loaded one ahead.
template <int LAST_WAIT, bool TRAILING>
__device__ void stream(float* y, const float* x) {
    __shared__ float tile[2][128];
    float sum = 0;
    cp_async4(&tile[0][threadIdx.x], x + threadIdx.x);
    cp_async_commit();
    for (int i = 0; i < 4; i++) {
        if (i < 3) {
            cp_async4(&tile[(i + 1) % 2][threadIdx.x], x + 128 * (i + 1) + threadIdx.x);
            cp_async_commit();
            cp_async_wait<1>();
        } else {
            cp_async_wait<LAST_WAIT>();
        }
        __syncthreads();
        sum += tile[i % 2][127 - threadIdx.x];
        if (TRAILING) __syncthreads();
    }
    y[threadIdx.x] = sum;
}
extern "C" __global__ void waits(float* y, const float* x) { stream<0, true>(y, x); }
extern "C" __global__ void wrong_wait(float* y, const float* x) { stream<1, true>(y, x); }
extern "C" __global__ void no_trailing_barrier(float* y, const float* x) { stream<0, false>(y, x); }

extern "C" __global__ void divergent_barrier(float* y) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads_or(1);
    y[threadIdx.x] = 1;
}

extern "C" __global__ void dead_lock(float* y) {
    if (threadIdx.x % 32 < 16)
        __syncwarp();
    else
        __syncthreads();
    y[threadIdx.x] = 1;
}

extern "C" __global__ void spins_forever(unsigned* flag) {
    while (ld_acquire(flag) == 0) __nanosleep(100);
}

extern "C" __global__ void outside_its_mask(float* y) {
    y[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1.f, 1);
}
extern "C" __global__ void reads_outside_the_mask(float* y) {
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.f, 20);
}
extern "C" __global__ void reads_an_exited_lane(float* y) {
    if (threadIdx.x >= 24) return;
    y[threadIdx.x] = __shfl_xor_sync(~0u, 1.f, 16);
}

__device__ __noinline__ void write_at(float* p, int at) { p[at] = 1; }
extern "C" __global__ void past_a_shared_variable(float* y, int at) {
    __shared__ float tile[32];
    write_at(tile, at);
    y[0] = tile[0];
}
extern "C" __global__ void past_dynamic_shared(float* y, int at) {
    DYNAMIC_SHARED(float, tile);
    write_at(tile, at);
    y[0] = tile[0];
}
extern "C" __global__ void index_out_of_bounds(float* y, int at) {
    __shared__ float tile[4][32];
    tile[3][at] = 1;
    y[0] = tile[3][0];
}
extern "C" __global__ void writes_at(float* y, int at) { write_at(y, at); }

extern "C" __global__ void reads_unwritten_shared(float* y) {
    __shared__ float tile[32];
    if (threadIdx.x != 7) tile[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}
extern "C" __global__ void reads_unwritten_dynamic(float* y) {
    DYNAMIC_SHARED(float, tile);
    if (threadIdx.x != 7) tile[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}
extern "C" __global__ void copies(float* y, const float* x) { y[threadIdx.x] = x[threadIdx.x]; }

// The last warp to write wins.
extern "C" __global__ void race(float* y) {
    __shared__ float winner;
    winner = threadIdx.x / 32;
    __syncthreads();
    y[threadIdx.x] = winner;
}
// The lanes of one warp are not in step either.
extern "C" __global__ void race_in_a_warp(float* y) {
    __shared__ float tile[32];
    tile[threadIdx.x] = threadIdx.x;
    y[threadIdx.x] = tile[31 - threadIdx.x];
}

extern "C" __global__ void too_much_static_shared(float* y) {
    __shared__ float tile[13 << 10];
    tile[threadIdx.x] = 1;
    y[0] = tile[threadIdx.x];
}

extern "C" __global__ void misaligned_vector(float* y, const float* x) { *(float4*)y = *(const float4*)(x + 1); }
extern "C" __global__ void wild_address(float* y, unsigned long long address) { y[0] = *(const float*)address; }
extern "C" __global__ void divides(int* y, int by) { y[0] = 100 / by; }
extern "C" __global__ void traps(float* y) {
    if (threadIdx.x == 3) __trap();
    y[threadIdx.x] = 1;
}
__device__ __noinline__ float recurse(int depth) {
    volatile float local[1024];
    local[depth % 1024] = depth;
    return depth == 0 ? 0 : recurse(depth - 1) + local[depth % 1024];
}
extern "C" __global__ void overflows_its_stack(float* y) {
    y[0] = recurse(100);
    __syncthreads();
}

extern "C" __global__ void cp_async_misaligned(float* y, const float* x) {
    DYNAMIC_SHARED(float, tile);
    cp_async16(tile, x + 1);
    y[0] = tile[0];
}
extern "C" __global__ void cp_async_past_the_source(float* y, const float* x, int at) {
    DYNAMIC_SHARED(float, tile);
    cp_async16(tile, x + at);
    y[0] = tile[0];
}
extern "C" __global__ void cp_async_to_global(float* y, const float* x) { cp_async16(y, x); }
extern "C" __global__ void ldmatrix_misaligned(unsigned* y) {
    DYNAMIC_SHARED(unsigned, tile);
    unsigned r[1];
    ldmatrix_x1(r, tile + 4 * (threadIdx.x % 8) + 1);
    y[threadIdx.x] = r[0];
}
extern "C" __global__ void half_a_warp_multiplies(float* y) {
    const unsigned a[2] = {}, b[1] = {};
    float d[4] = {};
    if (threadIdx.x < 16) return;
    mma_m16n8k8_f16(d, a, b);
    y[threadIdx.x] = d[0];
}

// ---- what only a checked build sees

template <bool RIGHT>
__device__ void reverse_in_a_warp(float* y) {
    __shared__ float tile[32];
    tile[threadIdx.x] = threadIdx.x;
    if (RIGHT) __syncwarp();
    y[threadIdx.x] = tile[31 - threadIdx.x];
}
extern "C" __global__ void warp_in_step(float* y) { reverse_in_a_warp<true>(y); }
extern "C" __global__ void warp_out_of_step(float* y) { reverse_in_a_warp<false>(y); }

// The same value from everybody.
extern "C" __global__ void race_without_effect(float* y) {
    __shared__ float agreed;
    agreed = 1;
    __syncthreads();
    y[threadIdx.x] = agreed;
}
extern "C" __global__ void race_of_blocks(float* y) { y[threadIdx.x] = 1; }

// Each block leaves a number for the next one.
template <bool FENCE, bool MEET>
__device__ void pass_on(float* y, float* numbers, unsigned* state) {
    const unsigned next = (blockIdx.x + 1) % gridDim.x;
    if (threadIdx.x == 0) numbers[blockIdx.x] = blockIdx.x;
    if (MEET) {
        grid_barrier(state);
    } else {
        // As grid_barrier does it, but for the fence.
        __syncthreads();
        if (threadIdx.x == 0) {
            if (FENCE) __threadfence();
            atomicAdd(state, 1u);
            while (ld_acquire(state) < gridDim.x) __nanosleep(32);
        }
        __syncthreads();
    }
    y[blockIdx.x * blockDim.x + threadIdx.x] = numbers[next];
}
extern "C" __global__ void blocks_meet(float* y, float* numbers, unsigned* state) { pass_on<true, true>(y, numbers, state); }
extern "C" __global__ void blocks_count(float* y, float* numbers, unsigned* state) { pass_on<true, false>(y, numbers, state); }
extern "C" __global__ void blocks_without_a_fence(float* y, float* numbers, unsigned* state) {
    pass_on<false, false>(y, numbers, state);
}

// Blocks that have passed unlike numbers of barriers read what one of them writes once they have met.
template <bool MEET>
__device__ void read_then_write(float* y, float* number, unsigned* state) {
    if (blockIdx.x == 0 && threadIdx.x == 0) number[0] = 1.0f;
    for (unsigned turn = 0; turn < 3 * blockIdx.x; turn++) __syncthreads();
    grid_barrier(state);
    y[blockIdx.x * blockDim.x + threadIdx.x] = number[0];
    if (MEET) grid_barrier(state);
    if (blockIdx.x == 1 && threadIdx.x == 0) number[0] = 2.0f;
}
extern "C" __global__ void blocks_read_and_meet(float* y, float* number, unsigned* state) { read_then_write<true>(y, number, state); }
extern "C" __global__ void blocks_read(float* y, float* number, unsigned* state) { read_then_write<false>(y, number, state); }

// The last thread's own update is ordered before its read; those of the others are not.
template <bool BARRIER>
__device__ void count(unsigned* total) {
    atomicAdd(&total[0], 1u);
    if (BARRIER) __syncthreads();
    if (threadIdx.x == blockDim.x - 1) total[1] = total[0];
}
extern "C" __global__ void counts_together(unsigned* total) { count<true>(total); }
extern "C" __global__ void reads_own_update(unsigned* total) { count<false>(total); }

// Two warps of the first block read what the second block overwrites; unless they meet, the first one's fence does not speak for
// the second one.
template <bool BARRIER>
__device__ void hand_over(float* y, float* numbers, unsigned* state) {
    if (blockIdx.x == 0) {
        if (threadIdx.x % 32 == 0) y[threadIdx.x] = numbers[0];
        if (BARRIER) __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd(state, 1u);
        }
    } else if (threadIdx.x == 0) {
        while (ld_acquire(state) == 0) __nanosleep(32);
        numbers[0] = 1;
    }
}
extern "C" __global__ void hands_over(float* y, float* numbers, unsigned* state) { hand_over<true>(y, numbers, state); }
extern "C" __global__ void hands_over_too_early(float* y, float* numbers, unsigned* state) { hand_over<false>(y, numbers, state); }

extern "C" __global__ void reads_past_shared(float* y, int at) {
    __shared__ float tile[32];
    const float* volatile p = tile;
    tile[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = p[threadIdx.x + at];
}
extern "C" __global__ void counts_unwritten(int* y, const int* x) { y[threadIdx.x] = x[threadIdx.x] + 1; }
extern "C" __global__ void unwritten_but_unused(float* y) {
    __shared__ float tile[32];
    if (threadIdx.x < 31) tile[threadIdx.x] = 1;
    __syncthreads();
    const float v = tile[threadIdx.x];
    y[threadIdx.x] = threadIdx.x < 31 ? v : 0;
}
// Before the copy has arrived, in the thread that asked for it.
extern "C" __global__ void reads_a_copy_too_early(float* y, const float* x) {
    __shared__ float tile[32];
    cp_async4(&tile[threadIdx.x], x + threadIdx.x);
    cp_async_commit();
    const float v = tile[threadIdx.x];
    cp_async_wait<0>();
    y[threadIdx.x] = tile[threadIdx.x] + 0 * v;
}

// Where a GPU would end the launch; the host minds only vectors of 16 bytes.
extern "C" __global__ void misaligned_pair(float* y, const float* x) {
    reinterpret_cast<float2*>(y + 1)[threadIdx.x] = make_float2(x[threadIdx.x], 0.0f);
}

// Traffic that can be counted by hand: y = x, n floats, `stride` apart.
extern "C" __global__ void strided(float* y, const float* x, int n, int stride) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i * stride];
}
extern "C" __global__ void vectors(float* y, const float* x) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    float4 v = ((const float4*)x)[i];
    v.y += v.x;
    ((float4*)y)[i] = v;
}
template <int PITCH>
__device__ void transpose(float* y, const float* x) {
    __shared__ float tile[32][PITCH];
    tile[threadIdx.y][threadIdx.x] = x[32 * threadIdx.y + threadIdx.x];
    __syncthreads();
    y[32 * threadIdx.y + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}
extern "C" __global__ void transpose_in_conflict(float* y, const float* x) { transpose<32>(y, x); }
extern "C" __global__ void transpose_padded(float* y, const float* x) { transpose<33>(y, x); }

// Kernels that may start before the kernel before them has ended.
// dependents: dependent dependent_reads_early dependent_writes_early dependent_copies_early dependent_never_waits
#define DEPENDENT(NAME) extern "C" __global__ void NAME(float* y, const float* x)
DEPENDENT(dependent) {
    prefetch_l2(x + threadIdx.x);
    after_predecessors();
    y[blockIdx.x * blockDim.x + threadIdx.x] = x[threadIdx.x];
}
DEPENDENT(dependent_reads_early) {
    const float early = x[threadIdx.x];
    after_predecessors();
    y[blockIdx.x * blockDim.x + threadIdx.x] = early;
}
DEPENDENT(dependent_writes_early) {
    y[threadIdx.x] = 0.0f;
    after_predecessors();
    y[threadIdx.x] = x[threadIdx.x];
}
DEPENDENT(dependent_copies_early) {
    __shared__ float tile[64];
    cp_async4(&tile[threadIdx.x], x + threadIdx.x);
    cp_async_commit();
    after_predecessors();
    cp_async_wait<0>();
    y[threadIdx.x] = tile[threadIdx.x];
}
DEPENDENT(dependent_never_waits) {
    dependents_may_start();
    if (x == nullptr) y[threadIdx.x] = 0.0f;
}
