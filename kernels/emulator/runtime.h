// The CUDA language for a host compiler. Comes before the text of a kernel; ptx.cuh adds what PTX adds.
//
// A CUDA thread is a fiber. The scheduler lives outside and is reached through `runtime`; whatever makes threads wait for each
// other (barriers, shuffles, mma) is a meeting: each lane brings its arguments, the last one to arrive does the work for all.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __noinline__ __attribute__((noinline))
#define SWARA_EXPORT extern "C" __attribute__((visibility("default")))
// The place of a call, for reports. Default arguments are evaluated where the call is written.
#define SWARA_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ---- vector types

#define SWARA_VECTOR(type, name, align2, align4)                                                    \
    struct name##1 { type x; };                                                                     \
    struct alignas(align2) name##2 { type x, y; };                                                  \
    struct name##3 { type x, y, z; };                                                               \
    struct alignas(align4) name##4 { type x, y, z, w; };                                            \
    inline name##1 make_##name##1(type x) { return {x}; }                                           \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }                                \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }                     \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
SWARA_VECTOR(signed char, char, 2, 4)
SWARA_VECTOR(unsigned char, uchar, 2, 4)
SWARA_VECTOR(short, short, 4, 8)
SWARA_VECTOR(unsigned short, ushort, 4, 8)
SWARA_VECTOR(int, int, 8, 16)
SWARA_VECTOR(unsigned, uint, 8, 16)
SWARA_VECTOR(long long, longlong, 16, 16)
SWARA_VECTOR(unsigned long long, ulonglong, 16, 16)
SWARA_VECTOR(float, float, 8, 16)
SWARA_VECTOR(double, double, 16, 16)
#undef SWARA_VECTOR

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

// ---- the scheduler

namespace swara {

// Beginning of the scheduler's record of a thread.
struct Thread {
    uint3 thread, block, block_dim, grid_dim;
    unsigned lane;
    const char *shared_begin, *shared_end;
};

// Does the work of a meeting: `lanes[i]` is what lane i brought if bit i of `present` is set. Returns -1, or the lane at fault and why.
using Meeting = int (*)(void** lanes, unsigned present, char* why);
constexpr int WHY_BYTES = 160;

// A product of tiles that nobody has waited for yet.
struct Product {
    float* d;
    uint64_t a, b;
    unsigned fragment[4];  // or a
    uint64_t add;
    Meeting work;
    const char* file;
    int line;
};
enum BarrierOperation { INIT, ARRIVE, TEST };
enum ProductOperation { FENCE, MULTIPLY, COMMIT, NEXT };

struct Runtime {
    void (*meet)(Thread*, unsigned mask, const char* what, const char* file, int line, void* args, Meeting);
    int (*barrier)(Thread*, int operation, int value, const char* file, int line);
    void (*yield)(Thread*);
    void* (*shared)(Thread*, const void* site, const char* name, size_t bytes, size_t align);
    void* (*dynamic_shared)(Thread*);
    void (*copy_async)(Thread*, void* dst, const void* src, int bytes, int valid, const char* file, int line);
    void (*commit)(Thread*);
    void (*wait)(Thread*, int pending);
    void (*fault)(Thread*, const char* why, const char* file, int line);  // does not return
    void (*access)(Thread*, const void* p, unsigned long bytes, int how, const void* where, int line);
    void (*fence)(Thread*);
    // TEST: whether the phase of parity `value` has ended. ARRIVE: `value` bytes are expected besides.
    int (*mbarrier)(Thread*, int operation, void* barrier, unsigned value, const char* file, int line);
    // 16 bytes, of which `valid` are copied.
    void (*copy_bulk)(Thread*, void* dst, const void* src, int valid, void* barrier, const char* file, int line);
    // NEXT: whether there is a product that waiting for all but `pending` groups waits for; it is given back once.
    int (*products)(Thread*, int operation, Product*, int pending);
    void (*predecessors)(Thread*);
};

static const Runtime* runtime;
static thread_local Thread* current;

inline void meet(unsigned mask, const char* what, const char* file, int line, void* args, Meeting work) {
    runtime->meet(current, mask, what, file, line, args, work);
}
inline void copy_async(void* dst, const void* src, int bytes, bool valid, const char* file, int line) {
    runtime->copy_async(current, dst, src, bytes, valid ? bytes : 0, file, line);
}

// In a checked build the compiler reports every access (checked.h); what it cannot see, or would misread, is reported here.
enum How { READ, WRITE, ATOMIC, ACQUIRE, RELEASE, MATRIX_ROW, TILE, ALIGNED = 64 /* added: at a multiple of its size */ };
#ifdef SWARA_CHECKED
#define SWARA_UNSEEN __attribute__((no_sanitize("thread")))
SWARA_UNSEEN inline void touch(const void* p, unsigned long bytes, How how, const char* file, int line) {
    runtime->access(current, p, bytes, how, file, line);
}
SWARA_UNSEEN inline void fence() { runtime->fence(current); }
#else
#define SWARA_UNSEEN
inline void touch(const void*, unsigned long, How, const char*, int) {}
inline void fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
#endif
inline int explain(char* why, const char* text, int lane) {
    snprintf(why, WHY_BYTES, "%s", text);
    return lane;
}
inline bool in_shared(const char* p, int bytes) { return p >= current->shared_begin && p + bytes <= current->shared_end; }

// ---- kernels, called by void**

struct Kernel {
    const char* name;
    void (*call)(void** args);
    const unsigned* sizes;
    unsigned count;
};
template <class T> struct Plain { using Type = T; };
template <class T> struct Plain<const T> { using Type = T; };
template <int... I> struct Indices {};
template <int N, int... I> struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I> struct MakeIndices<0, I...> { using Type = Indices<I...>; };

template <auto KERNEL> struct Entry;
template <class... A, void (*KERNEL)(A...)> struct Entry<KERNEL> {
    static constexpr unsigned sizes[sizeof...(A) + 1] = {sizeof(A)...};
    template <int... I> SWARA_UNSEEN static void spread(void** args, Indices<I...>) { KERNEL(*(typename Plain<A>::Type*)args[I]...); }
    SWARA_UNSEEN static void call(void** args) { spread(args, typename MakeIndices<sizeof...(A)>::Type()); }
    static constexpr Kernel kernel(const char* name) { return {name, call, sizes, sizeof...(A)}; }
};
// What the name of a kernel means where the text leaves the kernel out (another architecture's, say).
struct Absent {};
template <const Absent* KERNEL> struct Entry<KERNEL> {
    static constexpr Kernel kernel(const char* name) { return {name, nullptr, nullptr, 0}; }
};

}  // namespace swara

SWARA_EXPORT SWARA_UNSEEN swara::Thread** swara_bind(const swara::Runtime* r) {
    swara::runtime = r;
    return &swara::current;
}

// -fsanitize=bounds calls these when an index leaves an array whose extent is known.
namespace swara {
struct OutOfBounds {
    const char* file;
    unsigned line, column;
    struct Type {
        unsigned short kind, info;
        char name[1];
    } *array, *index;
};
}
extern "C" __attribute__((used)) void __ubsan_handle_out_of_bounds(swara::OutOfBounds* at, uintptr_t index) {
    char why[swara::WHY_BYTES];
    snprintf(why, sizeof why, "index %ld is outside %s", (long)index, at->array->name);
    swara::runtime->fault(swara::current, why, at->file, at->line);
}
extern "C" __attribute__((used)) void __ubsan_handle_out_of_bounds_abort(swara::OutOfBounds* at, uintptr_t index) {
    __ubsan_handle_out_of_bounds(at, index);
}

#define threadIdx (swara::current->thread)
#define blockIdx (swara::current->block)
#define blockDim (swara::current->block_dim)
#define gridDim (swara::current->grid_dim)
constexpr int warpSize = 32;

// ---- barriers

inline void __syncthreads(SWARA_HERE) { swara::runtime->barrier(swara::current, 0, 0, file, line); }
inline int __syncthreads_count(int p, SWARA_HERE) { return swara::runtime->barrier(swara::current, 1, p != 0, file, line); }
inline int __syncthreads_and(int p, SWARA_HERE) { return swara::runtime->barrier(swara::current, 2, p != 0, file, line); }
inline int __syncthreads_or(int p, SWARA_HERE) { return swara::runtime->barrier(swara::current, 3, p != 0, file, line); }
inline void __syncwarp(unsigned mask = ~0u, SWARA_HERE) { swara::meet(mask, "__syncwarp", file, line, nullptr, nullptr); }
inline void __nanosleep(unsigned) { swara::runtime->yield(swara::current); }
inline void __trap(SWARA_HERE) { swara::runtime->fault(swara::current, "__trap()", file, line); }
inline void __threadfence() { swara::fence(); }
inline void __threadfence_block() { swara::fence(); }
inline void __threadfence_system() { swara::fence(); }

// ---- shuffles and votes

namespace swara {
struct Shuffle {
    uint64_t value;
    int source;  // lane
    uint64_t result;
};
inline int shuffle(void** lanes, unsigned present, char* why) {
    for (int i = 0; i < 32; i++) {
        if (!(present >> i & 1)) continue;
        Shuffle& mine = *(Shuffle*)lanes[i];
        if (!(present >> mine.source & 1)) {
            snprintf(why, WHY_BYTES, "reads lane %d, which is outside the mask or has exited", mine.source);
            return i;
        }
        mine.result = ((Shuffle*)lanes[mine.source])->value;
    }
    return -1;
}
template <class T>
T exchange(unsigned mask, T value, int source, const char* what, const char* file, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    Shuffle args{0, source, 0};
    memcpy(&args.value, &value, sizeof value);
    meet(mask, what, file, line, &args, shuffle);
    memcpy(&value, &args.result, sizeof value);
    return value;
}
inline int lane() { return current->lane; }
inline int warp() {
    const uint3 &i = current->thread, &n = current->block_dim;
    return (i.x + n.x * (i.y + n.y * i.z)) / 32;
}
inline int segment(int width) { return current->lane & ~(width - 1); }

struct Vote {
    int predicate;
    unsigned ballot, present;
};
inline int vote(void** lanes, unsigned present, char*) {
    unsigned ballot = 0;
    for (int i = 0; i < 32; i++)
        if (present >> i & 1) ballot |= (unsigned)(((Vote*)lanes[i])->predicate != 0) << i;
    for (int i = 0; i < 32; i++)
        if (present >> i & 1) *(Vote*)lanes[i] = {0, ballot, present};
    return -1;
}
inline Vote ask(unsigned mask, int predicate, const char* what, const char* file, int line) {
    Vote args{predicate, 0, 0};
    meet(mask, what, file, line, &args, vote);
    return args;
}
}  // namespace swara

template <class T> T __shfl_sync(unsigned mask, T v, int source, int width = 32, SWARA_HERE) {
    return swara::exchange(mask, v, swara::segment(width) | (source & (width - 1)), "__shfl_sync", file, line);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, SWARA_HERE) {
    const int source = swara::lane() - (int)delta;
    return swara::exchange(mask, v, source < swara::segment(width) ? swara::lane() : source, "__shfl_up_sync", file, line);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, SWARA_HERE) {
    const int source = swara::lane() + (int)delta;
    return swara::exchange(mask, v, source >= swara::segment(width) + width ? swara::lane() : source, "__shfl_down_sync", file, line);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32, SWARA_HERE) {
    const int source = swara::lane() ^ lanes;
    return swara::exchange(mask, v, source >= swara::segment(width) + width ? swara::lane() : source, "__shfl_xor_sync", file, line);
}
inline unsigned __ballot_sync(unsigned mask, int p, SWARA_HERE) { return swara::ask(mask, p, "__ballot_sync", file, line).ballot; }
inline int __any_sync(unsigned mask, int p, SWARA_HERE) { return swara::ask(mask, p, "__any_sync", file, line).ballot != 0; }
inline int __all_sync(unsigned mask, int p, SWARA_HERE) {
    const swara::Vote v = swara::ask(mask, p, "__all_sync", file, line);
    return v.ballot == v.present;
}
// A thread may count on nobody but itself to be converged with it.
inline unsigned __activemask() { return 1u << swara::lane(); }

// ---- atomics: real ones, since blocks run on several host threads

namespace swara {
template <class T, class F> SWARA_UNSEEN T atomic(T* p, F next, const char* file, int line) {
    T old, to;
    touch(p, sizeof(T), ATOMIC, file, line);
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    do to = next(old);
    while (!__atomic_compare_exchange(p, &old, &to, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
template <class T> struct Same { using Type = T; };
template <class T> using As = typename Same<T>::Type;  // keeps an argument out of template deduction, so that it converts
}  // namespace swara
#define SWARA_ATOMIC(name, expression)                                                  \
    template <class T> T name(T* p, swara::As<T> v, SWARA_HERE) {                       \
        return swara::atomic(p, [v](T old) -> T { return expression; }, file, line);    \
    }
SWARA_ATOMIC(atomicAdd, old + v)
SWARA_ATOMIC(atomicSub, old - v)
SWARA_ATOMIC(atomicMax, old > v ? old : v)
SWARA_ATOMIC(atomicMin, old < v ? old : v)
SWARA_ATOMIC(atomicAnd, old & v)
SWARA_ATOMIC(atomicOr, old | v)
SWARA_ATOMIC(atomicXor, old ^ v)
SWARA_ATOMIC(atomicExch, ((void)old, v))
SWARA_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
#undef SWARA_ATOMIC
template <class T> T atomicCAS(T* p, swara::As<T> expected, swara::As<T> v, SWARA_HERE) {
    return swara::atomic(p, [=](T old) { return old == expected ? v : old; }, file, line);
}

// ---- memory, bits

template <class T> T __ldg(const T* p) { return *p; }
template <class T> __forceinline__ T __ldca(const T* p) { return *p; }
template <class T> __forceinline__ T __ldcg(const T* p) { return *p; }
template <class T> __forceinline__ T __ldcs(const T* p) { return *p; }
template <class T> __forceinline__ void __stcg(T* p, swara::As<T> v) { *p = v; }
template <class T> __forceinline__ void __stcs(T* p, swara::As<T> v) { *p = v; }

namespace swara {
template <class To, class From> To bits(From v) {
    static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
    To r;
    memcpy(&r, &v, sizeof r);
    return r;
}
}  // namespace swara
inline int __float_as_int(float v) { return swara::bits<int>(v); }
inline unsigned __float_as_uint(float v) { return swara::bits<unsigned>(v); }
inline float __int_as_float(int v) { return swara::bits<float>(v); }
inline float __uint_as_float(unsigned v) { return swara::bits<float>(v); }
inline long long __double_as_longlong(double v) { return swara::bits<long long>(v); }
inline double __longlong_as_double(long long v) { return swara::bits<double>(v); }

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return v ? __builtin_clz(v) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll(v) : 64; }
inline unsigned __brev(unsigned v) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (v >> i & 1) << (31 - i);
    return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
inline int __mulhi(int a, int b) { return (int64_t)a * b >> 32; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned __int128)a * b >> 64; }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n) { return ((uint64_t)high << 32 | low) << (n & 31) >> 32; }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n) { return ((uint64_t)high << 32 | low) >> (n & 31); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t bytes = (uint64_t)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned s = selector >> (4 * i);
        unsigned b = bytes >> (8 * (s & 7)) & 255;
        if (s & 8) b = b & 128 ? 255 : 0;
        r |= b << (8 * i);
    }
    return r;
}

// ---- mathematics: where the GPU approximates, libm is exact to an ulp or so. glibc reserves the same __names: hence macros.

#define __sinf sinf
#define __cosf cosf
#define __tanf tanf
#define __expf expf
#define __exp10f(x) exp2f((x) * 3.32192809488736235f)
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __powf powf
#define __sincosf sincosf
#define __fmaf_rn fmaf
#define __fdividef(a, b) ((a) / (b))
#define __fsqrt_rn sqrtf
#define __frsqrt_rn rsqrtf
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }  // NaN becomes 0, as on the GPU
inline float sinpif(float x) { return (float)sin(3.14159265358979323846 * fmod(x, 2.0)); }
inline float cospif(float x) { return (float)cos(3.14159265358979323846 * fmod(x, 2.0)); }

// Conversions saturate and turn NaN into 0.
namespace swara {
template <class T> T saturate(double x, double low, double high) {
    return x != x ? 0 : x <= low ? (T)low : x >= high ? (T)high : (T)x;
}
inline int to_int(float x) { return saturate<int>(x, -2147483648.0, 2147483647.0); }
inline unsigned to_uint(float x) { return saturate<unsigned>(x, 0.0, 4294967295.0); }
}  // namespace swara
inline int __float2int_rn(float x) { return swara::to_int(rintf(x)); }
inline int __float2int_rz(float x) { return swara::to_int(truncf(x)); }
inline int __float2int_rd(float x) { return swara::to_int(floorf(x)); }
inline int __float2int_ru(float x) { return swara::to_int(ceilf(x)); }
inline unsigned __float2uint_rn(float x) { return swara::to_uint(rintf(x)); }
inline unsigned __float2uint_rz(float x) { return swara::to_uint(truncf(x)); }
inline float __int2float_rn(int x) { return x; }
inline float __uint2float_rn(unsigned x) { return x; }

#define SWARA_MIN_MAX(A, B, R)                              \
    inline R min(A a, B b) { return (R)a < (R)b ? (R)a : (R)b; } \
    inline R max(A a, B b) { return (R)a > (R)b ? (R)a : (R)b; }
SWARA_MIN_MAX(int, int, int)
SWARA_MIN_MAX(unsigned, unsigned, unsigned)
SWARA_MIN_MAX(int, unsigned, unsigned)
SWARA_MIN_MAX(unsigned, int, unsigned)
SWARA_MIN_MAX(long, long, long)
SWARA_MIN_MAX(unsigned long, unsigned long, unsigned long)
SWARA_MIN_MAX(long, unsigned long, unsigned long)
SWARA_MIN_MAX(unsigned long, long, unsigned long)
SWARA_MIN_MAX(long long, long long, long long)
SWARA_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
SWARA_MIN_MAX(long long, unsigned long long, unsigned long long)
SWARA_MIN_MAX(unsigned long long, long long, unsigned long long)
#undef SWARA_MIN_MAX
// As fminf, fmaxf: a NaN loses.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(float a, double b) { return fmin(a, b); }
inline double max(float a, double b) { return fmax(a, b); }
inline double min(double a, float b) { return fmin(a, b); }
inline double max(double a, float b) { return fmax(a, b); }
