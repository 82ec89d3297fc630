// Residual vector quantisation: nearest codeword, all stages of a short batch, decoder.
//
//   nearest  code_i = argmin_k sum_j (x_ij - c_kj)^2         (cosine: of rows already normalised, argmax_k sum_j x_ij c_kj)
//   search   the same S times, x -= c_code after each
//   decode   y_i = sum_s C_s[code_is]                       (code -1 adds nothing where stages may be absent)
//
// x [N, D], codebook [K, D], row-major f32. A distance is one chain of fused multiply-adds over j in ascending order, here and
// on the CPU, so both find the same code bit for bit. Equal distances: the lowest index. No distance below infinity: code 0.
//
// Mapping
//   rvq_nearest_*   a block owns 64 rows and walks over the codebook in tiles of 64; 16 x 16 threads, 4 x 4 distances each in
//                   registers; 16 dimensions of x and c at a time through shared memory. The winner is kept in registers,
//                   the codeword is subtracted by the block that found it: distances never reach memory.
//   rvq_search      N <= 32. All blocks keep the residual in shared memory and split the codewords, lane = codeword, warp = row;
//                   a stage's winner is a 64-bit atomicMax of (inverted distance, inverted index), then a grid barrier.
//   rvq_normalize   a block owns 64 rows, read and written side by side; a thread adds up a row in shared memory: the chain of
//                   the CPU, and D is 8 where this is used (DAC).
//   rvq_decode      a thread 16 bytes of a row, or an element if rows are not made of those.
// Bytes
//   nearest  4 (2 N D + N) + 4 K D for each 64 rows (from L2)        search  4 K D a stage, once, plus 8 N of keys
//   normalize  8 N D, and 4 N D again from L2                        decode  4 (N S + N D) and the codewords
// Ladder
//   v1  as above. No GPU has timed it yet. Next: 32-row tiles where N is small, tensor cores as a filter with exact re-ranking.

#include "vec.cuh"

#define TILE 64
#define DEPTH 16
#define PITCH (TILE + 4)

template <bool COSINE>
__device__ __forceinline__ float accumulate(float x, float c, float sum) {
    if (COSINE) return __fmaf_rn(-x, c, sum);
    const float difference = __fsub_rn(x, c);
    return __fmaf_rn(difference, difference, sum);
}

// tile[j][row] = rows[first + row][base + j]; zero outside, which adds nothing to a distance.
__device__ __forceinline__ void load_tile(float (*tile)[PITCH], const float* rows, int first, int count, int d, int base) {
    for (int i = threadIdx.x; i < TILE * DEPTH; i += 256) {
        const int row = i / DEPTH, j = i % DEPTH;
        const bool inside = first + row < count && base + j < d;
        tile[j][row] = inside ? rows[(size_t)(first + row) * d + base + j] : 0.0f;
    }
}

template <bool COSINE>
__device__ __forceinline__ void nearest(int* codes, int code_stride, float* residual, const float* x, const float* codebook, int n,
                                        int k, int d) {
    __shared__ __align__(16) float x_tile[DEPTH][PITCH];
    __shared__ __align__(16) float c_tile[DEPTH][PITCH];
    __shared__ int winners[TILE];
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    const int first = blockIdx.x * TILE;

    float best[4];
    int at[4];
#pragma unroll
    for (int r = 0; r < 4; r++) {
        best[r] = __int_as_float(0x7f800000);
        at[r] = 0;
    }
    for (int codewords = 0; codewords < k; codewords += TILE) {
        float sum[4][4] = {};
        for (int base = 0; base < d; base += DEPTH) {
            load_tile(x_tile, x, first, n, d, base);
            load_tile(c_tile, codebook, codewords, k, d, base);
            __syncthreads();
#pragma unroll
            for (int j = 0; j < DEPTH; j++) {
                const float4 xs = *(const float4*)&x_tile[j][4 * ty];
                const float4 cs = *(const float4*)&c_tile[j][4 * tx];
                const float xr[4] = {xs.x, xs.y, xs.z, xs.w}, cr[4] = {cs.x, cs.y, cs.z, cs.w};
#pragma unroll
                for (int r = 0; r < 4; r++)
#pragma unroll
                    for (int c = 0; c < 4; c++) sum[r][c] = accumulate<COSINE>(xr[r], cr[c], sum[r][c]);
            }
            __syncthreads();
        }
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int codeword = codewords + 4 * tx + c;
#pragma unroll
            for (int r = 0; r < 4; r++)
                if (codeword < k && sum[r][c] < best[r]) {
                    best[r] = sum[r][c];
                    at[r] = codeword;
                }
        }
    }
#pragma unroll
    for (int r = 0; r < 4; r++) {
        for (int lanes = 8; lanes > 0; lanes /= 2) {
            const float other = __shfl_xor_sync(0xffffffffu, best[r], lanes);
            const int index = __shfl_xor_sync(0xffffffffu, at[r], lanes);
            if (other < best[r] || (other == best[r] && index < at[r])) {
                best[r] = other;
                at[r] = index;
            }
        }
        const int row = first + 4 * ty + r;
        if (tx == 0) winners[4 * ty + r] = at[r];
        if (tx == 0 && row < n) codes[(size_t)row * code_stride] = at[r];
    }
    if (residual == nullptr) return;
    __syncthreads();
    const int rows = n - first < TILE ? n - first : TILE;
    for (int i = threadIdx.x; i < rows * d; i += 256) {
        const int row = i / d, j = i - row * d;
        const size_t element = (size_t)first * d + i;
        residual[element] = __fsub_rn(x[element], codebook[(size_t)winners[row] * d + j]);
    }
}

// The code of row i goes to codes[i * code_stride]. `residual` may be null.
extern "C" __global__ void __launch_bounds__(256) rvq_nearest_euclidean_f32(int* codes, int code_stride, float* residual,
    const float* x, const float* codebook, int n, int k, int d) {
    nearest<false>(codes, code_stride, residual, x, codebook, n, k, d);
}

extern "C" __global__ void __launch_bounds__(256) rvq_nearest_cosine_f32(int* codes, int code_stride, float* residual,
    const float* x, const float* codebook, int n, int k, int d) {
    nearest<true>(codes, code_stride, residual, x, codebook, n, k, d);
}

#define NORMALIZE_DEPTH 32

// y = x / max(|x|, epsilon), row by row.
extern "C" __global__ void __launch_bounds__(256) rvq_normalize_f32(float* y, const float* x, float epsilon, int n, int d) {
    __shared__ float tile[TILE][NORMALIZE_DEPTH + 1];
    __shared__ float norms[TILE];
    const int first = blockIdx.x * TILE, rows = n - first < TILE ? n - first : TILE;
    x += (size_t)first * d;
    y += (size_t)first * d;
    float sum = 0.0f;
    for (int base = 0; base < d; base += NORMALIZE_DEPTH) {
        const int depth = d - base < NORMALIZE_DEPTH ? d - base : NORMALIZE_DEPTH;
        for (int i = threadIdx.x; i < rows * depth; i += 256) tile[i / depth][i % depth] = x[(size_t)(i / depth) * d + base + i % depth];
        __syncthreads();
        if (threadIdx.x < rows)
            for (int j = 0; j < depth; j++) sum = __fmaf_rn(tile[threadIdx.x][j], tile[threadIdx.x][j], sum);
        __syncthreads();
    }
    if (threadIdx.x < rows) {
        const float root = __fsqrt_rn(sum);
        norms[threadIdx.x] = root > epsilon ? root : epsilon;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < rows * d; i += 256) y[i] = __fdiv_rn(x[i], norms[i / d]);
}

// Up to eight codebooks travel in the argument list, so that a launch can be captured.
#define CODEBOOKS                                                                                                          \
    const float *c0, const float *c1, const float *c2, const float *c3, const float *c4, const float *c5, const float *c6, \
        const float *c7, int k0, int k1, int k2, int k3, int k4, int k5, int k6, int k7
#define PICK(of, s)                                                                              \
    ((s) < 4 ? ((s) < 2 ? ((s) == 0 ? of##0 : of##1) : ((s) == 2 ? of##2 : of##3))               \
             : ((s) < 6 ? ((s) == 4 ? of##4 : of##5) : ((s) == 6 ? of##6 : of##7)))

#define WARPS 8
#define ROWS_A_WARP 4
#define CHUNK 32

// Dynamic shared memory: the residual [n, d]. `keys` [stages, n] and `barrier` start as zero. Codes of row i go to
// codes[i * code_stride + s].
extern "C" __global__ void __launch_bounds__(256, 1) rvq_search_f32(int* codes, float* residual,
    unsigned long long* keys, unsigned* barrier, const float* x, CODEBOOKS, int n, int d, int stages, int code_stride) {
    DYNAMIC_SHARED(float, rest);
    __shared__ float tile[CHUNK][CHUNK + 1];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float infinity = __int_as_float(0x7f800000);

    for (int i = threadIdx.x; i < n * d; i += 256) rest[i] = x[i];
    for (int s = 0; s < stages; s++) {
        const float* codebook = PICK(c, s);
        const int k = PICK(k, s);
        float best[ROWS_A_WARP];
        int at[ROWS_A_WARP];
#pragma unroll
        for (int r = 0; r < ROWS_A_WARP; r++) {
            best[r] = infinity;
            at[r] = 0;
        }
        for (int first = blockIdx.x * 32; first < k; first += gridDim.x * 32) {
            float sum[ROWS_A_WARP] = {};
            for (int base = 0; base < d; base += CHUNK) {
                const int depth = d - base < CHUNK ? d - base : CHUNK;
                __syncthreads();  // the tile and, in a stage's first round, the residual
                for (int c = warp; c < 32; c += WARPS)
                    if (first + c < k && lane < depth) tile[c][lane] = codebook[(size_t)(first + c) * d + base + lane];
                __syncthreads();
                if (first + lane < k)
                    for (int j = 0; j < depth; j++)
#pragma unroll
                        for (int r = 0; r < ROWS_A_WARP; r++) {
                            const int row = warp + r * WARPS;
                            if (row < n) sum[r] = accumulate<false>(rest[row * d + base + j], tile[lane][j], sum[r]);
                        }
            }
#pragma unroll
            for (int r = 0; r < ROWS_A_WARP; r++)
                if (first + lane < k && sum[r] < best[r]) {
                    best[r] = sum[r];
                    at[r] = first + lane;
                }
        }
#pragma unroll
        for (int r = 0; r < ROWS_A_WARP; r++) {
            for (int lanes = 16; lanes > 0; lanes /= 2) {
                const float other = __shfl_xor_sync(0xffffffffu, best[r], lanes);
                const int index = __shfl_xor_sync(0xffffffffu, at[r], lanes);
                if (other < best[r] || (other == best[r] && index < at[r])) {
                    best[r] = other;
                    at[r] = index;
                }
            }
            // Distances are not negative, so their bits are in their order.
            const int row = warp + r * WARPS;
            const unsigned long long key = (unsigned long long)~__float_as_uint(best[r]) << 32 | ~(unsigned)at[r];
            if (lane == 0 && row < n && best[r] < infinity) atomicMax(&keys[s * n + row], key);
        }
        grid_barrier(barrier);
        for (int i = threadIdx.x; i < n * d; i += 256) {
            const int row = i / d, j = i - row * d;
            // The low word is the index; the first level cache may hold the line as it was a stage ago.
            const unsigned found = ld_acquire((const unsigned*)&keys[s * n + row]);
            const int code = found == 0 ? 0 : (int)~found;
            rest[i] = __fsub_rn(rest[i], codebook[(size_t)code * d + j]);
            if (blockIdx.x == 0 && j == 0) codes[row * code_stride + s] = code;
        }
    }
    if (blockIdx.x == 0)
        for (int i = threadIdx.x; i < n * d; i += 256) residual[i] = rest[i];
}

template <int N>
__device__ __forceinline__ void decode(float* y, const float* start, const int* codes, CODEBOOKS, int n, int d, int stages,
                                       int code_stride, int absent) {
    const int i = (blockIdx.x * 256 + threadIdx.x) * N;
    if (i >= n * d) return;
    const int row = i / d, j = i - row * d;
    float sum[N] = {};
    if (start) load_vector(sum, start + i);
    for (int s = 0; s < stages; s++) {
        const int code = codes[(size_t)row * code_stride + s];
        if (absent && code == -1) continue;
        float v[N];
        if (code >= 0 && code < PICK(k, s)) {
            load_vector(v, PICK(c, s) + (size_t)code * d + j);
        } else {
#pragma unroll
            for (int e = 0; e < N; e++) v[e] = __int_as_float(0x7fc00000);
        }
#pragma unroll
        for (int e = 0; e < N; e++) sum[e] = __fadd_rn(sum[e], v[e]);
    }
    store_vector(y + i, sum);
}

// y [n, d] = start + sum_s C_s[codes[i * code_stride + s]]; `start` may be null. A code outside its codebook gives NaN, but for -1, which
// adds nothing where codes may be `absent`.
extern "C" __global__ void __launch_bounds__(256) rvq_decode_f32(float* y, const float* start, const int* codes, CODEBOOKS,
    int n, int d, int stages, int code_stride, int absent) {
    if (d % 4 == 0)
        decode<4>(y, start, codes, c0, c1, c2, c3, c4, c5, c6, c7, k0, k1, k2, k3, k4, k5, k6, k7, n, d, stages, code_stride, absent);
    else
        decode<1>(y, start, codes, c0, c1, c2, c3, c4, c5, c6, c7, k0, k1, k2, k3, k4, k5, k6, k7, n, d, stages, code_stride, absent);
}
