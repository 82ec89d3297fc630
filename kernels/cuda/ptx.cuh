// All inline PTX, and nothing but PTX: every function here is one instruction, or the few that only make sense together.
// The second half gives the same functions to the emulator, which has no PTX.
//
//   SWARA_ARCH        compute capability x 10 (75, 80, 90 ...), on a GPU and on the emulator
//   conversions       float_to_f16 f16_to_float float_to_bf16 pack_f16x2, pack_bf16x2 float_to_tf32 (sm_80)
//   approximations    exp2_approx log2_approx sin_approx cos_approx tanh_approx rcp_approx rsqrt_approx
//   loads             load_once16: 16 bytes of global memory that no other block of the multiprocessor will want
//   asynchronous copy cp_async16 cp_async8 cp_async4 cp_async_commit cp_async_wait<N>   (plain loads below sm_80)
//   matrices          ldmatrix_x1 _x2 _x4 (+ _trans), mma_m16n8k16_bf16 _f16, mma_m16n8k8_tf32 (sm_80), mma_m16n8k8_f16
//   between blocks    ld_acquire st_release grid_barrier grid_dependency_wait grid_dependency_launch
//
// Fragments (lane = 4 g + t, PTX ISA "Matrix Fragments for mma.m16n8k16"; low half of a register = lower column of A, row of B):
//   C, D   c[0..1] = row g, columns 2t, 2t+1     c[2..3] = row g+8, the same columns
//   16-bit A  a[0] = row g, columns 2t, 2t+1   a[1] = row g+8   a[2], a[3] = a[0], a[1] at columns +8 (k16 only)
//   16-bit B  b[0] = rows 2t, 2t+1 of column g  b[1] = the same at rows +8 (k16 only)
//   tf32   A  a[0] = (g, t)  a[1] = (g+8, t)  a[2] = (g, t+4)  a[3] = (g+8, t+4)     B  b[0] = (t, g)  b[1] = (t+4, g)
#pragma once

#ifndef SWARA_ARCH
#define SWARA_ARCH (__CUDA_ARCH__ / 10)
#endif

#ifndef SWARA_EMULATOR

__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// ---- conversions

__device__ __forceinline__ unsigned short float_to_f16(float x) {
    unsigned short y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float f16_to_float(unsigned short x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
// `low` goes to the low half, which is the lower address.
__device__ __forceinline__ unsigned pack_f16x2(float low, float high) {
#if SWARA_ARCH >= 80
    unsigned y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
#else
    return float_to_f16(low) | ((unsigned)float_to_f16(high) << 16);
#endif
}
__device__ __forceinline__ unsigned short float_to_bf16(float x) {
#if SWARA_ARCH >= 80
    unsigned short y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
#else
    const unsigned bits = __float_as_uint(x);
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fff : (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
#endif
}
#if SWARA_ARCH >= 80
__device__ __forceinline__ unsigned pack_bf16x2(float low, float high) {
    unsigned y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
__device__ __forceinline__ unsigned float_to_tf32(float x) {
    unsigned y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
}
#endif

// ---- approximations (flush subnormals; a few units in the last place, sin and cos 2^-21 absolute on [-pi, pi])

#define SWARA_UNARY(name, instruction)                                   \
    __device__ __forceinline__ float name(float x) {                     \
        float y;                                                         \
        asm(instruction " %0, %1;" : "=f"(y) : "f"(x));                  \
        return y;                                                        \
    }
SWARA_UNARY(exp2_approx, "ex2.approx.ftz.f32")
SWARA_UNARY(log2_approx, "lg2.approx.ftz.f32")
SWARA_UNARY(sin_approx, "sin.approx.ftz.f32")
SWARA_UNARY(cos_approx, "cos.approx.ftz.f32")
SWARA_UNARY(tanh_approx, "tanh.approx.f32")
SWARA_UNARY(rcp_approx, "rcp.approx.ftz.f32")
SWARA_UNARY(rsqrt_approx, "rsqrt.approx.ftz.f32")
#undef SWARA_UNARY

// ---- loads; never of memory that the kernel writes

__device__ __forceinline__ uint4 load_once16(const void* p) {
    uint4 v;
    asm("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

// ---- asynchronous copy, global -> shared; `valid` false writes zeros and reads nothing

#if SWARA_ARCH >= 80
__device__ __forceinline__ void cp_async16(void* dst, const void* src, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void cp_async8(void* dst, const void* src, bool valid = true) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(valid ? 8 : 0) : "memory");
}
__device__ __forceinline__ void cp_async4(void* dst, const void* src, bool valid = true) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(valid ? 4 : 0) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Returns when at most the N youngest committed groups of this thread are still on their way.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#else
__device__ __forceinline__ void cp_async16(void* dst, const void* src, bool valid = true) {
    *(uint4*)dst = valid ? *(const uint4*)src : make_uint4(0, 0, 0, 0);
}
__device__ __forceinline__ void cp_async8(void* dst, const void* src, bool valid = true) {
    *(uint2*)dst = valid ? *(const uint2*)src : make_uint2(0, 0);
}
__device__ __forceinline__ void cp_async4(void* dst, const void* src, bool valid = true) {
    *(unsigned*)dst = valid ? *(const unsigned*)src : 0;
}
__device__ __forceinline__ void cp_async_commit() {}
template <int N>
__device__ __forceinline__ void cp_async_wait() {}
#endif

// ---- matrices: lane i gives the address of row i % 8 of matrix i / 8; 8 rows of 16 bytes, 16-byte aligned

#define SWARA_LDMATRIX(suffix, instruction)                                                                                    \
    __device__ __forceinline__ void ldmatrix_x1##suffix(unsigned (&r)[1], const void* row) {                                   \
        asm volatile("ldmatrix.sync.aligned.m8n8.x1" instruction " {%0}, [%1];" : "=r"(r[0]) : "r"(shared_address(row)) : "memory"); \
    }                                                                                                                          \
    __device__ __forceinline__ void ldmatrix_x2##suffix(unsigned (&r)[2], const void* row) {                                   \
        asm volatile("ldmatrix.sync.aligned.m8n8.x2" instruction " {%0, %1}, [%2];"                                            \
                     : "=r"(r[0]), "=r"(r[1])                                                                                  \
                     : "r"(shared_address(row))                                                                                \
                     : "memory");                                                                                              \
    }                                                                                                                          \
    __device__ __forceinline__ void ldmatrix_x4##suffix(unsigned (&r)[4], const void* row) {                                   \
        asm volatile("ldmatrix.sync.aligned.m8n8.x4" instruction " {%0, %1, %2, %3}, [%4];"                                    \
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                                                          \
                     : "r"(shared_address(row))                                                                                \
                     : "memory");                                                                                              \
    }
SWARA_LDMATRIX(, ".shared.b16")
SWARA_LDMATRIX(_trans, ".trans.shared.b16")
#undef SWARA_LDMATRIX

// ---- d += a b

#if SWARA_ARCH >= 80
#define SWARA_MMA(name, instruction)                                                                                           \
    __device__ __forceinline__ void name(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {                      \
        asm volatile("mma.sync.aligned." instruction " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                  \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                          \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                      \
    }
SWARA_MMA(mma_m16n8k16_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
SWARA_MMA(mma_m16n8k16_f16, "m16n8k16.row.col.f32.f16.f16.f32")
SWARA_MMA(mma_m16n8k8_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef SWARA_MMA
#endif
__device__ __forceinline__ void mma_m16n8k8_f16(float (&d)[4], const unsigned (&a)[2], const unsigned (&b)[1]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

// ---- between blocks

__device__ __forceinline__ unsigned ld_acquire(const unsigned* p) {
    unsigned v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ void st_release(unsigned* p, unsigned v) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
// Programmatic dependent launch: wait until the previous kernel's writes are visible; let the next kernel start early.
__device__ __forceinline__ void grid_dependency_wait() {
#if SWARA_ARCH >= 90
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void grid_dependency_launch() {
#if SWARA_ARCH >= 90
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#else  // ======================================================================================= the emulator's half

// ---- conversions

inline float f16_to_float(unsigned short x) {
    const unsigned sign = (x & 0x8000u) << 16, exponent = (x >> 10) & 31, mantissa = x & 1023;
    if (exponent == 0) return __uint_as_float(sign | __float_as_uint(mantissa * 0x1p-24f));
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
    return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
}
inline unsigned short float_to_f16(float x) {
    const unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fff;                // the NaN that cvt gives
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;       // 65520 and up round to infinity
    if (magnitude < 0x38800000u)                               // below 2^-14: adding 0.5 leaves multiples of 2^-24 in the low bits
        return sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u);
    return sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13);
}
inline unsigned pack_f16x2(float low, float high) { return float_to_f16(low) | (unsigned)float_to_f16(high) << 16; }
inline unsigned short float_to_bf16(float x) {
    const unsigned bits = __float_as_uint(x);
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fff : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
#if SWARA_ARCH >= 80
inline unsigned pack_bf16x2(float low, float high) { return float_to_bf16(low) | (unsigned)float_to_bf16(high) << 16; }
inline unsigned float_to_tf32(float x) {
    const unsigned bits = __float_as_uint(x);
    return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
}
#endif

// ---- approximations

inline float exp2_approx(float x) { return exp2f(x); }
inline float log2_approx(float x) { return log2f(x); }
inline float sin_approx(float x) { return sinf(x); }
inline float cos_approx(float x) { return cosf(x); }
inline float tanh_approx(float x) { return tanhf(x); }
inline float rcp_approx(float x) { return 1.0f / x; }
inline float rsqrt_approx(float x) { return 1.0f / sqrtf(x); }

// ---- loads

inline uint4 load_once16(const void* p) { return *(const uint4*)p; }

// ---- asynchronous copy: the runtime poisons the destination and copies when the matching wait returns

#if SWARA_ARCH >= 80
inline void cp_async16(void* dst, const void* src, bool valid = true, SWARA_HERE) {
    swara::copy_async(dst, src, 16, valid, file, line);
}
inline void cp_async8(void* dst, const void* src, bool valid = true, SWARA_HERE) {
    swara::copy_async(dst, src, 8, valid, file, line);
}
inline void cp_async4(void* dst, const void* src, bool valid = true, SWARA_HERE) {
    swara::copy_async(dst, src, 4, valid, file, line);
}
inline void cp_async_commit() { swara::runtime->commit(swara::current); }
template <int N>
inline void cp_async_wait() {
    swara::runtime->wait(swara::current, N);
}
#else
inline void cp_async16(void* dst, const void* src, bool valid = true) {
    *(uint4*)dst = valid ? *(const uint4*)src : make_uint4(0, 0, 0, 0);
}
inline void cp_async8(void* dst, const void* src, bool valid = true) { *(uint2*)dst = valid ? *(const uint2*)src : make_uint2(0, 0); }
inline void cp_async4(void* dst, const void* src, bool valid = true) { *(unsigned*)dst = valid ? *(const unsigned*)src : 0; }
inline void cp_async_commit() {}
template <int N>
inline void cp_async_wait() {}
#endif

// ---- matrices

namespace swara {
struct MatrixRow {
    const char* row;
    unsigned* out;
};
// Runs once for the whole warp, like every collective: `lanes[i]` is what lane i brought.
template <int COUNT, bool TRANS>
SWARA_UNSEEN int load_matrices(void** lanes, unsigned present, char* why) {
    if (present != ~0u) return explain(why, "needs all 32 lanes of the warp", __builtin_ctz(~present));
    const char* rows[32];
    for (int i = 0; i < 8 * COUNT; i++) {
        rows[i] = ((MatrixRow*)lanes[i])->row;
        if ((uintptr_t)rows[i] % 16) return explain(why, "is given a row that is not aligned to 16 bytes", i);
        if (!in_shared(rows[i], 16)) return explain(why, "is given a row outside shared memory", i);
    }
    for (int lane = 0; lane < 32; lane++)
        for (int m = 0; m < COUNT; m++) {
            unsigned short pair[2];
            for (int e = 0; e < 2; e++) {
                const int row = TRANS ? lane % 4 * 2 + e : lane / 4, column = TRANS ? lane / 4 : lane % 4 * 2 + e;
                memcpy(&pair[e], rows[8 * m + row] + 2 * column, 2);
            }
            ((MatrixRow*)lanes[lane])->out[m] = pair[0] | (unsigned)pair[1] << 16;
        }
    return -1;
}
}  // namespace swara

#define SWARA_LDMATRIX(count, suffix, trans)                                                                                  \
    inline void ldmatrix_x##count##suffix(unsigned (&r)[count], const void* row, SWARA_HERE) {                                 \
        if (swara::lane() < 8 * count) swara::touch(row, 16, swara::MATRIX_ROW, file, line);                                   \
        swara::MatrixRow args{(const char*)row, r};                                                                            \
        swara::meet(~0u, "ldmatrix", file, line, &args, swara::load_matrices<count, trans>);                                   \
    }
SWARA_LDMATRIX(1, , false)
SWARA_LDMATRIX(2, , false)
SWARA_LDMATRIX(4, , false)
SWARA_LDMATRIX(1, _trans, true)
SWARA_LDMATRIX(2, _trans, true)
SWARA_LDMATRIX(4, _trans, true)
#undef SWARA_LDMATRIX

namespace swara {
struct Fragments {
    float* d;
    const unsigned *a, *b;
};
struct Bf16Pair {
    static constexpr int WIDTH = 2;  // elements in a register
    static float get(unsigned r, int e) { return __uint_as_float(e ? r & 0xffff0000u : r << 16); }
};
struct F16Pair {
    static constexpr int WIDTH = 2;
    static float get(unsigned r, int e) { return f16_to_float(r >> (16 * e)); }
};
struct Tf32 {
    static constexpr int WIDTH = 1;
    static float get(unsigned r, int) { return __uint_as_float(r & ~0x1fffu); }  // the hardware does not look at the low bits
};
typedef float Row __attribute__((vector_size(32)));  // eight columns
template <class Element, int K>
__attribute__((no_sanitize("bounds"))) int multiply(void** lanes, unsigned present, char* why) {
    if (present != ~0u) return explain(why, "needs all 32 lanes of the warp", __builtin_ctz(~present));
    constexpr int W = Element::WIDTH, SPAN = 4 * W;  // a register of the four lanes of a row spans this many k
    float a[16][K];
    Row b[K], sum[16];
    for (int lane = 0; lane < 32; lane++) {
        const Fragments& f = *(Fragments*)lanes[lane];
        const int g = lane / 4, t = lane % 4;
        for (int half = 0; half < K / SPAN; half++)
            for (int e = 0; e < W; e++) {
                const int k = half * SPAN + t * W + e;
                a[g][k] = Element::get(f.a[2 * half], e);
                a[g + 8][k] = Element::get(f.a[2 * half + 1], e);
                b[k][g] = Element::get(f.b[half], e);
            }
        for (int e = 0; e < 4; e++) sum[g + e / 2 * 8][2 * t + e % 2] = f.d[e];
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < K; k++) sum[row] += a[row][k] * b[k];
    for (int lane = 0; lane < 32; lane++)
        for (int e = 0; e < 4; e++) ((Fragments*)lanes[lane])->d[e] = sum[lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2];
    return -1;
}
}  // namespace swara

#define SWARA_MMA(name, element, k, a_registers, b_registers)                                                                  \
    inline void name(float (&d)[4], const unsigned (&a)[a_registers], const unsigned (&b)[b_registers], SWARA_HERE) {           \
        swara::Fragments args{d, a, b};                                                                                        \
        swara::meet(~0u, #name, file, line, &args, swara::multiply<swara::element, k>);                                        \
    }
#if SWARA_ARCH >= 80
SWARA_MMA(mma_m16n8k16_bf16, Bf16Pair, 16, 4, 2)
SWARA_MMA(mma_m16n8k16_f16, F16Pair, 16, 4, 2)
SWARA_MMA(mma_m16n8k8_tf32, Tf32, 8, 4, 2)
#endif
SWARA_MMA(mma_m16n8k8_f16, F16Pair, 8, 2, 1)
#undef SWARA_MMA

// ---- between blocks

SWARA_UNSEEN inline unsigned ld_acquire(const unsigned* p, SWARA_HERE) {
    swara::touch(p, 4, swara::ACQUIRE, file, line);
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
SWARA_UNSEEN inline void st_release(unsigned* p, unsigned v, SWARA_HERE) {
    swara::touch(p, 4, swara::RELEASE, file, line);
    __atomic_store_n(p, v, __ATOMIC_RELEASE);
}
inline void grid_dependency_wait() {}
inline void grid_dependency_launch() {}

#endif

// All blocks of a cooperative launch meet. `state` is one word of device memory, zero when it is first used; it needs no
// reset, whatever the grid sizes of the launches that share it, because every meeting flips its top bit and clears the rest.
__device__ __forceinline__ void grid_barrier(unsigned* state) {
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
        const unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
        const bool first = blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0;
        __threadfence();
        const unsigned before = atomicAdd(state, first ? 0x80000000u - (blocks - 1) : 1u);
        while (((before ^ ld_acquire(state)) & 0x80000000u) == 0) __nanosleep(32);
        __threadfence();
    }
    __syncthreads();
}
