// All inline PTX, and nothing but PTX: every function here is one instruction, or the few that only make sense together.
// The second half gives the same functions to the emulator, which has no PTX.
//
//   SWARA_ARCH        compute capability x 10 (75, 80, 90 ...), on a GPU and on the emulator
//   conversions       float_to_f16 f16_to_float float_to_bf16 pack_f16x2, pack_bf16x2 float_to_tf32 (sm_80)
//   approximations    exp2_approx log2_approx sin_approx cos_approx tanh_approx rcp_approx rsqrt_approx
//   loads             load_once16: 16 bytes of global memory that no other block of the multiprocessor will want; prefetch_l2
//   asynchronous copy cp_async16 cp_async8 cp_async4 cp_async_commit cp_async_wait<N>   (plain loads below sm_80)
//   matrices          ldmatrix_x1 _x2 _x4 (+ _trans), mma_m16n8k16_bf16 _f16, mma_m16n8k8_tf32 (sm_80), mma_m16n8k8_f16
//   between blocks    ld_acquire st_release grid_barrier
//   between kernels   dependents_may_start wait_for_predecessors after_predecessors   (nothing below sm_90)
//   Hopper (sm_90a)   mbarrier_* async_proxy_fence copy_tile (TMA) tile_descriptor tile_descriptor_columns
//                     wgmma_m64n256k16, _m64n128k16, _m64n64k16 (_bf16 _f16) wgmma_fence wgmma_commit wgmma_wait<N>
//                     give_registers<N> take_registers<N>
//
// Fragments (lane = 4 g + t, PTX ISA "Matrix Fragments for mma.m16n8k16"; low half of a register = lower column of A, row of B):
//   C, D   c[0..1] = row g, columns 2t, 2t+1     c[2..3] = row g+8, the same columns
//   16-bit A  a[0] = row g, columns 2t, 2t+1   a[1] = row g+8   a[2], a[3] = a[0], a[1] at columns +8 (k16 only)
//   16-bit B  b[0] = rows 2t, 2t+1 of column g  b[1] = the same at rows +8 (k16 only)
//   tf32   A  a[0] = (g, t)  a[1] = (g+8, t)  a[2] = (g, t+4)  a[3] = (g+8, t+4)     B  b[0] = (t, g)  b[1] = (t+4, g)
//   wgmma  warp w of four, rows 16 w + ..: d[4 j + i] = c[i] of columns 8 j + ..
#pragma once

#ifndef SWARA_ARCH
#define SWARA_ARCH (__CUDA_ARCH__ / 10)
#endif

// In shared memory: mbarrier_*.
struct Barrier {
    unsigned long long state;
};
// What a thread has of a 16-bit A (below).
struct Fragment {
    unsigned r[4];
};
// A parameter of a kernel, `const __grid_constant__ TensorMap`: a matrix, and how it is cut into tiles (Driver::tensor_map).
struct alignas(64) TensorMap {
    unsigned long long words[16];
};

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

// ---- loads; never of memory that the kernel writes, or one before that it has not waited for

__device__ __forceinline__ uint4 load_once16(const void* p) {
    uint4 v;
    asm("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

// Asks for the line of `p` to be in the second level cache: a hint, not a read, so of any memory.
__device__ __forceinline__ void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

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

// ---- between kernels: programmatic dependent launch

// Once all blocks have said so, the next kernel may start beside them, if it is launched so (gpu.rs). It sees none of their writes yet.
__device__ __forceinline__ void dependents_may_start() {
#if SWARA_ARCH >= 90
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Returns when the kernels before have ended and their writes are seen. Before it a kernel may prefetch, and access no global memory.
__device__ __forceinline__ void wait_for_predecessors() {
#if SWARA_ARCH >= 90
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- Hopper: barriers that copies report to, copies of tiles, products of four warps

#if SWARA_ARCH == 90
// In shared memory. A phase ends when as many have arrived as were announced and all bytes that they expect are there.
__device__ __forceinline__ void mbarrier_init(Barrier& barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}
// What this thread wrote to shared memory, barriers too, is seen by copies and products that begin after the next meeting.
__device__ __forceinline__ void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void mbarrier_arrive(Barrier& barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_expect(Barrier& barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes) : "memory");
}
// Returns when the phase of this parity has ended; phases are numbered from 0, and the one before the first has.
__device__ __forceinline__ void mbarrier_wait(Barrier& barrier, unsigned parity) {
    unsigned ended;
    do {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(ended)
                     : "r"(shared_address(&barrier)), "r"(parity)
                     : "memory");
    } while (!ended);
}
// The map's tile from (row, column), zero outside of the matrix; all its bytes count for the barrier. `to`: a multiple of 1024.
__device__ __forceinline__ void copy_tile(void* to, const TensorMap& map, int row, int column, Barrier& barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
                     shared_address(to)),
                 "l"(&map), "r"(shared_address(&barrier)), "r"(column), "r"(row)
                 : "memory");
}
// Before the first product, and whenever registers of sums or of a were touched since; those of a may be only after the wait.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Returns when at most the N youngest committed groups of products go on; `sums` are those that may be touched from here on.
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
template <int N, int REGISTERS>
__device__ __forceinline__ void wgmma_wait(float (&sums)[REGISTERS]) {
    wgmma_wait<N>();
#pragma unroll
    for (int i = 0; i < REGISTERS; ++i) asm volatile("" : "+f"(sums[i])::"memory"); // no use of them moves up
}
// `others` are not used before, either.
template <int N, int REGISTERS, int OTHERS>
__device__ __forceinline__ void wgmma_wait(float (&sums)[REGISTERS], float (&others)[OTHERS]) {
    wgmma_wait<N>(sums);
#pragma unroll
    for (int i = 0; i < OTHERS; ++i) asm volatile("" : "+f"(others[i])::"memory");
}

// Registers a thread of these four warps has from here on; a block has as many as it was launched with.
template <int N>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// d += a b, or d = a b: a of 64 x 16 by tile_descriptor, or in registers of the four warps as the fragments of mma_m16n8k16; b of 16 x N by
// tile_descriptor (columns of b are rows of tiles) beside tiles, by tile_descriptor_columns (rows of b are rows of tiles) beside registers.
#define SWARA_OUT_8(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SWARA_OUT_32(i) SWARA_OUT_8(i), SWARA_OUT_8(i + 8), SWARA_OUT_8(i + 16), SWARA_OUT_8(i + 24)
#define SWARA_OUT_64(i) SWARA_OUT_32(i), SWARA_OUT_32(i + 32)
#define SWARA_OUT_128(i) SWARA_OUT_64(i), SWARA_OUT_64(i + 64)
#define SWARA_LIST_32 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15" \
    ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define SWARA_LIST_64 SWARA_LIST_32 \
    ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47" \
    ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define SWARA_LIST_128 SWARA_LIST_64 \
    ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79" \
    ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95" \
    ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111" \
    ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define SWARA_WGMMA(type, n, count, a_type, operands, add, transposed, ...)                                                    \
    template <bool ADD = true>                                                                                                 \
    __device__ __forceinline__ void wgmma_m64n##n##k16_##type(float (&d)[count], a_type a, unsigned long long b) {              \
        asm volatile("{ .reg .pred add; setp.ne.u32 add, " add ", 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." #type     \
                     "." #type " {" SWARA_LIST_##count "}, " operands ", add, 1, 1, " transposed "; }"                         \
                     : SWARA_OUT_##count(0)                                                                                    \
                     : __VA_ARGS__, "l"(b), "n"((int)ADD));                                                                    \
    }
#define SWARA_WGMMA_TILES(type, n, count, operands, add) \
    SWARA_WGMMA(type, n, count, unsigned long long, operands, add, "0, 0", "l"(a))
#define SWARA_WGMMA_REGISTERS(type, n, count, operands, add) \
    SWARA_WGMMA(type, n, count, const Fragment&, operands, add, "1", "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]))
#define SWARA_FOR_TYPE(type)                                                          \
    SWARA_WGMMA_TILES(type, 256, 128, "%128, %129", "%130")                           \
    SWARA_WGMMA_TILES(type, 128, 64, "%64, %65", "%66")                               \
    SWARA_WGMMA_REGISTERS(type, 128, 64, "{%64, %65, %66, %67}, %68", "%69")          \
    SWARA_WGMMA_REGISTERS(type, 64, 32, "{%32, %33, %34, %35}, %36", "%37")
SWARA_FOR_TYPE(bf16)
SWARA_FOR_TYPE(f16)
#undef SWARA_FOR_TYPE
#undef SWARA_WGMMA_REGISTERS
#undef SWARA_WGMMA_TILES
#undef SWARA_WGMMA
#undef SWARA_LIST_32
#undef SWARA_LIST_64
#undef SWARA_LIST_128
#undef SWARA_OUT_128
#undef SWARA_OUT_64
#undef SWARA_OUT_32
#undef SWARA_OUT_8
#endif

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
inline void prefetch_l2(const void*) {}

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

// ---- between kernels: a checked build watches that nothing is accessed before the wait

inline void dependents_may_start() {}
inline void wait_for_predecessors() { swara::runtime->predecessors(swara::current); }

// ---- Hopper: the runtime copies when somebody waits for the barrier, and multiplies when the matching wait returns

#if SWARA_ARCH == 90
inline unsigned shared_address(const void* p) { return (const char*)p - swara::current->shared_begin; }

SWARA_UNSEEN inline void mbarrier_init(Barrier& barrier, unsigned arrivals, SWARA_HERE) {
    swara::runtime->mbarrier(swara::current, swara::INIT, &barrier, arrivals, file, line);
}
inline void async_proxy_fence() {}
SWARA_UNSEEN inline void mbarrier_arrive(Barrier& barrier, SWARA_HERE) {
    swara::runtime->mbarrier(swara::current, swara::ARRIVE, &barrier, 0, file, line);
}
SWARA_UNSEEN inline void mbarrier_arrive_expect(Barrier& barrier, unsigned bytes, SWARA_HERE) {
    swara::runtime->mbarrier(swara::current, swara::ARRIVE, &barrier, bytes, file, line);
}
SWARA_UNSEEN inline void mbarrier_wait(Barrier& barrier, unsigned parity, SWARA_HERE) {
    while (!swara::runtime->mbarrier(swara::current, swara::TEST, &barrier, parity, file, line)) swara::runtime->yield(swara::current);
}

namespace swara {
constexpr int ROW_BYTES = 128;  // of a tile
// Where the hardware puts what is written to, or read from, this address of a tile: eight rows have their 16-byte pieces in different
// banks. Of addresses as of offsets, for both count from a multiple of 1024.
inline uint64_t swizzled(uint64_t address) { return address ^ (address >> 7 & 7) << 4; }

// As Emulator::tensor_map writes it.
struct Map {
    uint64_t data, rows, columns, tile_rows, element_bytes;
};
inline int within(int64_t bytes, int most) { return bytes < 0 ? 0 : bytes < most ? bytes : most; }
SWARA_UNSEEN inline void copy_tile(char* to, const Map& map, int row, int column, Barrier* barrier, const char* file, int line) {
    char why[WHY_BYTES] = "";
    if ((uintptr_t)to % 1024) snprintf(why, sizeof why, "copy_tile to an address that is no multiple of 1024");
    if (row < 0 || column < 0) snprintf(why, sizeof why, "copy_tile from row %d, column %d", row, column);
    if (why[0]) runtime->fault(current, why, file, line);
    const int64_t there = ((int64_t)map.columns - column) * (int64_t)map.element_bytes;
    for (int r = 0; r < (int)map.tile_rows; r++) {
        const char* const from = (const char*)map.data + ((uint64_t)(row + r) * map.columns + column) * map.element_bytes;
        const int64_t valid = (uint64_t)row + r < map.rows ? within(there, ROW_BYTES) : 0;
        if (valid > 0) touch(from, valid, READ, file, line);
        for (int at = 0; at < ROW_BYTES; at += 16) {
            char* const piece = (char*)swizzled((uint64_t)to + r * ROW_BYTES + at);
            runtime->copy_bulk(current, piece, from + at, within(valid - at, 16), barrier, file, line);
        }
    }
}

// The row of a tile whose 16 elements a descriptor begins with, and of the rows that follow: eight are ROW_BYTES apart each, and eights
// as far as the descriptor says.
inline const char* tile_row(uint64_t descriptor, int row) {
    return current->shared_begin + ((descriptor & 0x3fff) << 4) + row / 8 * ((descriptor >> 32 & 0x3fff) << 4) + row % 8 * ROW_BYTES;
}
SWARA_UNSEEN inline void touch_rows(uint64_t descriptor, int first, int count, const char* file, int line) {
    for (int row = first; row < first + count; row += 8)
        touch((const char*)((uint64_t)tile_row(descriptor, row) & ~(uint64_t)(8 * ROW_BYTES - 1)), 8 * ROW_BYTES, TILE, file, line);
}
template <class Element>
SWARA_UNSEEN float tile_element(const char* row, int k) {
    uint16_t bits;
    memcpy(&bits, (const char*)swizzled((uint64_t)row + 2 * k), 2);
    return Element::get(bits, 0);
}

// Of a tile whose rows are rows of b: the row k of its 64 columns, or of those that follow, as far as the descriptor says.
inline uint64_t columns_row(uint64_t descriptor, int k, int columns) {
    return descriptor + columns * (descriptor >> 16 & 0x3fff) + k / 8 * (descriptor >> 32 & 0x3fff) + k % 8 * (ROW_BYTES / 16);
}
inline bool is_tile(uint64_t descriptor, int rows, char* why) {
    if (descriptor >> 62 != 1) return explain(why, "is emulated for tiles of 128-byte rows alone", 0), false;
    if (descriptor >> 49 & 7 || descriptor >> 3 & 7) return explain(why, "is given a tile that does not begin with a row of eight", 0), false;
    if (in_shared(tile_row(descriptor, 0), 32) && in_shared(tile_row(descriptor, rows - 1), 32)) return true;
    return explain(why, "is given a tile outside shared memory", 0), false;
}

// A warp's part, its 16 rows of a, when the wait for it returns. REGISTERS: a is in those.
template <class Element, int N, bool REGISTERS>
SWARA_UNSEEN __attribute__((no_sanitize("bounds"))) int multiply_tiles(void** lanes, unsigned present, char* why) {
    if (present != ~0u) return explain(why, "needs all 32 lanes of the warp", __builtin_ctz(~present));
    const Product& product = *(Product*)lanes[0];
    for (int lane = 0; lane < 32; lane++) {
        const Product& other = *(Product*)lanes[lane];
        if (other.a != product.a || other.b != product.b) return explain(why, "is given different tiles by lanes of a warp", lane);
    }
    const int first = warp() % 4 * 16;
    float a[16][16];
    if constexpr (REGISTERS) {
        for (int columns = 0; columns < N / 64; columns++) {
            const uint64_t tile = columns_row(product.b, 0, columns);
            if (!is_tile(tile, 16, why)) return 0;
            touch_rows(tile, 0, 16, product.file, product.line);
        }
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 8; i++)
                a[lane / 4 + i / 2 % 2 * 8][lane % 4 * 2 + i % 2 + i / 4 * 8] = Element::get(((Product*)lanes[lane])->fragment[i / 2], i % 2);
    } else {
        if (!is_tile(product.a, 64, why) || !is_tile(product.b, N, why)) return 0;
        touch_rows(product.a, first, 16, product.file, product.line);
        touch_rows(product.b, 0, N, product.file, product.line);
        for (int row = 0; row < 16; row++)
            for (int k = 0; k < 16; k++) a[row][k] = tile_element<Element>(tile_row(product.a, first + row), k);
    }
    for (int j = 0; j < N / 8; j++) {
        Row b[16], sum[16];
        for (int column = 0; column < 8; column++)
            for (int k = 0; k < 16; k++) {
                const int n = 8 * j + column;
                b[k][column] = REGISTERS ? tile_element<Element>(tile_row(columns_row(product.b, k, n / 64), 0), n % 64)
                                         : tile_element<Element>(tile_row(product.b, n), k);
            }
        for (int lane = 0; lane < 32; lane++)
            for (int e = 0; e < 4; e++) {
                const Product& its = *(Product*)lanes[lane];
                sum[lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2] = its.add ? its.d[4 * j + e] : 0.0f;
            }
        for (int row = 0; row < 16; row++)
            for (int k = 0; k < 16; k++) sum[row] += a[row][k] * b[k];
        for (int lane = 0; lane < 32; lane++)
            for (int e = 0; e < 4; e++) ((Product*)lanes[lane])->d[4 * j + e] = sum[lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2];
    }
    return -1;
}
}  // namespace swara

inline void copy_tile(void* to, const TensorMap& map, int row, int column, Barrier& barrier, SWARA_HERE) {
    swara::copy_tile((char*)to, *(const swara::Map*)&map, row, column, &barrier, file, line);
}
template <int N>
void give_registers() {}
template <int N>
void take_registers() {}
inline void wgmma_fence() { swara::runtime->products(swara::current, swara::FENCE, nullptr, 0); }
inline void wgmma_commit() { swara::runtime->products(swara::current, swara::COMMIT, nullptr, 0); }
template <int N>
SWARA_UNSEEN void wgmma_wait(SWARA_HERE) {
    swara::Product product;
    while (swara::runtime->products(swara::current, swara::NEXT, &product, N))
        swara::meet(~0u, "wgmma", product.file, product.line, &product, product.work);
    swara::meet(~0u, "wgmma_wait", file, line, nullptr, nullptr);
}
template <int N, int REGISTERS>
void wgmma_wait(float (&)[REGISTERS], SWARA_HERE) {
    wgmma_wait<N>(file, line);
}
template <int N, int REGISTERS, int OTHERS>
void wgmma_wait(float (&)[REGISTERS], float (&)[OTHERS], SWARA_HERE) {
    wgmma_wait<N>(file, line);
}
#define SWARA_WGMMA(type, element, n, count)                                                                                   \
    template <bool ADD = true>                                                                                                 \
    SWARA_UNSEEN inline void wgmma_m64n##n##k16_##type(float (&d)[count], unsigned long long a, unsigned long long b, SWARA_HERE) { \
        swara::Product product{d, a, b, {}, ADD, swara::multiply_tiles<swara::element, n, false>, file, line};                 \
        swara::runtime->products(swara::current, swara::MULTIPLY, &product, 0);                                               \
    }
#define SWARA_WGMMA_REGISTERS(type, element, n, count)                                                                         \
    template <bool ADD = true>                                                                                                 \
    SWARA_UNSEEN inline void wgmma_m64n##n##k16_##type(float (&d)[count], const Fragment& a, unsigned long long b, SWARA_HERE) { \
        swara::Product product{d, 0, b, {a.r[0], a.r[1], a.r[2], a.r[3]}, ADD, swara::multiply_tiles<swara::element, n, true>, file, line};                   \
        swara::runtime->products(swara::current, swara::MULTIPLY, &product, 0);                                               \
    }
#define SWARA_FOR_TYPE(type, element)              \
    SWARA_WGMMA(type, element, 256, 128)           \
    SWARA_WGMMA(type, element, 128, 64)            \
    SWARA_WGMMA_REGISTERS(type, element, 128, 64)  \
    SWARA_WGMMA_REGISTERS(type, element, 64, 32)
SWARA_FOR_TYPE(bf16, Bf16Pair)
SWARA_FOR_TYPE(f16, F16Pair)
#undef SWARA_FOR_TYPE
#undef SWARA_WGMMA_REGISTERS
#undef SWARA_WGMMA
#endif

#endif

#if SWARA_ARCH == 90
// Rows of 128 bytes in shared memory as copy_tile leaves them, eight of them swizzled in 1024 bytes (PTX ISA, "Matrix Descriptor": start,
// stride from eight rows to the next, 128-byte swizzle; the leading dimension is not looked at). 16 elements on in a row: + 2.
__device__ __forceinline__ unsigned long long tile_descriptor(const void* rows) {
    return (shared_address(rows) & 0x3ffff) >> 4 | 1ull << 16 | 1024ull >> 4 << 32 | 1ull << 62;
}
// The same of tiles whose rows are rows of b, 64 columns, the next 64 `next` bytes further: the leading dimension. 16 rows on: + 128.
__device__ __forceinline__ unsigned long long tile_descriptor_columns(const void* rows, unsigned next) {
    return (shared_address(rows) & 0x3ffff) >> 4 | (unsigned long long)(next >> 4) << 16 | 1024ull >> 4 << 32 | 1ull << 62;
}
#endif

// How a kernel begins that has nothing to prefetch.
__device__ __forceinline__ void after_predecessors() {
    dependents_may_start();
    wait_for_predecessors();
}

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
