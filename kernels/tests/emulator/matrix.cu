#include "types.cuh"

// C = A B of one warp, 16 x 8 x K, by the fragment maps of the PTX ISA written out: checks mma alone.
struct MmaBf16 { static constexpr int K = 16, A = 4, B = 2, WIDTH = 2; };
struct MmaF16 : MmaBf16 {};
struct MmaF16Short { static constexpr int K = 8, A = 2, B = 1, WIDTH = 2; };
struct MmaTf32 { static constexpr int K = 8, A = 4, B = 2, WIDTH = 1; };
#if SWARA_ARCH >= 80
__device__ void multiply(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], MmaBf16) { mma_m16n8k16_bf16(d, a, b); }
__device__ void multiply(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], MmaF16) { mma_m16n8k16_f16(d, a, b); }
__device__ void multiply(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], MmaTf32) { mma_m16n8k8_tf32(d, a, b); }
#endif
__device__ void multiply(float (&d)[4], const unsigned (&a)[2], const unsigned (&b)[1], MmaF16Short) { mma_m16n8k8_f16(d, a, b); }

__device__ unsigned pack(float low, float high, MmaF16) { return float_to_f16(low) | (unsigned)float_to_f16(high) << 16; }
__device__ unsigned pack(float low, float high, MmaF16Short) { return float_to_f16(low) | (unsigned)float_to_f16(high) << 16; }
__device__ unsigned pack(float low, float high, MmaBf16) { return float_to_bf16(low) | (unsigned)float_to_bf16(high) << 16; }

template <class Mma>
__device__ void by_the_book(float* c, const float* a, const float* b, Mma mma) {
    const int g = threadIdx.x >> 2, t = threadIdx.x & 3;
    unsigned fa[Mma::A], fb[Mma::B];
    float d[4];
    for (int i = 0; i < Mma::A; i++) {
        const int row = g + (i % 2) * 8, k = t * 2 + (i / 2) * 8;
        fa[i] = pack(a[row * Mma::K + k], a[row * Mma::K + k + 1], mma);
    }
    for (int i = 0; i < Mma::B; i++) {
        const int k = t * 2 + i * 8;
        fb[i] = pack(b[k * 8 + g], b[(k + 1) * 8 + g], mma);
    }
    for (int i = 0; i < 4; i++) d[i] = c[(g + i / 2 * 8) * 8 + t * 2 + i % 2];
    multiply(d, fa, fb, mma);
    for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = d[i];
}
#if SWARA_ARCH >= 80
extern "C" __global__ void book_bf16(float* c, const float* a, const float* b) { by_the_book(c, a, b, MmaBf16()); }
extern "C" __global__ void book_f16(float* c, const float* a, const float* b) { by_the_book(c, a, b, MmaF16()); }
extern "C" __global__ void book_tf32(float* c, const float* a, const float* b) {
    const int g = threadIdx.x >> 2, t = threadIdx.x & 3;
    const unsigned fa[4] = {float_to_tf32(a[g * 8 + t]), float_to_tf32(a[(g + 8) * 8 + t]), float_to_tf32(a[g * 8 + t + 4]),
                            float_to_tf32(a[(g + 8) * 8 + t + 4])};
    const unsigned fb[2] = {float_to_tf32(b[t * 8 + g]), float_to_tf32(b[(t + 4) * 8 + g])};
    float d[4];
    for (int i = 0; i < 4; i++) d[i] = c[(g + i / 2 * 8) * 8 + t * 2 + i % 2];
    mma_m16n8k8_tf32(d, fa, fb);
    for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = d[i];
}
#endif
extern "C" __global__ void book_f16_short(float* c, const float* a, const float* b) { by_the_book(c, a, b, MmaF16Short()); }

// out[lane][m]: what each form of ldmatrix gives each lane; the tile holds 4 matrices of 8 x 8 numbers 0, 1, 2 ...
extern "C" __global__ void load_matrices(unsigned* out) {
    __shared__ alignas(16) unsigned short tile[256];
    for (int i = threadIdx.x; i < 256; i += 32) tile[i] = i;
    __syncthreads();
    const int lane = threadIdx.x;
    const void* row = tile + 8 * lane;
    unsigned one[1], two[2], four[4];
    ldmatrix_x1(one, lane < 8 ? row : tile);
    ldmatrix_x2(two, lane < 16 ? row : tile);
    ldmatrix_x4(four, row);
    unsigned* y = out + lane * 14;
    *y++ = one[0];
    for (unsigned v : two) *y++ = v;
    for (unsigned v : four) *y++ = v;
    ldmatrix_x1_trans(one, row);
    ldmatrix_x2_trans(two, row);
    ldmatrix_x4_trans(four, row);
    *y++ = one[0];
    for (unsigned v : two) *y++ = v;
    for (unsigned v : four) *y++ = v;
}

// C[M,N] = A[M,K] B[K,N] in tiles of 64 x 64 x 32: cp.async double buffering, ldmatrix, mma. 128 threads, multiples only.
#if SWARA_ARCH >= 80
extern "C" __global__ void gemm_bf16(float* c, const bf16* a, const bf16* b, int n, int k) {
    constexpr int PITCH_A = 32 + 8, PITCH_B = 64 + 8, STAGE = 64 * PITCH_A + 32 * PITCH_B;
    DYNAMIC_SHARED(bf16, tiles);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    a += (size_t)blockIdx.y * 64 * k;
    b += blockIdx.x * 64;
    auto load = [&](int stage, int k0) {
        bf16* ta = tiles + stage * STAGE;
        bf16* tb = ta + 64 * PITCH_A;
        for (int i = threadIdx.x; i < 256; i += 128) {
            cp_async16(ta + i / 4 * PITCH_A + i % 4 * 8, a + (size_t)(i / 4) * k + k0 + i % 4 * 8);
            cp_async16(tb + i / 8 * PITCH_B + i % 8 * 8, b + (size_t)(k0 + i / 8) * n + i % 8 * 8);
        }
        cp_async_commit();
    };
    float acc[8][4] = {};
    load(0, 0);
    for (int k0 = 0, stage = 0; k0 < k; k0 += 32, stage ^= 1) {
        if (k0 + 32 < k) {
            load(stage ^ 1, k0 + 32);
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        __syncthreads();
        const bf16* ta = tiles + stage * STAGE;
        const bf16* tb = ta + 64 * PITCH_A;
        for (int kk = 0; kk < 32; kk += 16) {
            unsigned fa[4];
            ldmatrix_x4(fa, ta + (warp * 16 + lane % 16) * PITCH_A + kk + lane / 16 * 8);
            for (int j = 0; j < 8; j++) {
                unsigned fb[2];
                ldmatrix_x2_trans(fb, tb + (kk + lane % 16) * PITCH_B + j * 8);
                mma_m16n8k16_bf16(acc[j], fa, fb);
            }
        }
        __syncthreads();
    }
    for (int j = 0; j < 8; j++)
        for (int e = 0; e < 4; e++) {
            const int row = blockIdx.y * 64 + warp * 16 + lane / 4 + e / 2 * 8, column = blockIdx.x * 64 + j * 8 + lane % 4 * 2 + e % 2;
            c[(size_t)row * n + column] = acc[j][e];
        }
}
#endif
