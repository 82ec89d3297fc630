// Scalar types and their conversions, without any CUDA header.
//
//   bf16, f16             16 bits of storage; arithmetic is always in float
//   to_float(x)           exact
//   from_float<T>(x)      round to nearest even, NaN stays NaN; f16 overflows to infinity
//   DYNAMIC_SHARED(T, p)  T* p = the launch's dynamic shared memory, 16-byte aligned
#pragma once

#include "ptx.cuh"

#ifndef SWARA_EMULATOR
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

// Declared here alone: a second declaration of another type or alignment is undefined, and NVRTC only warns of it.
extern __shared__ __align__(16) unsigned char swara_dynamic_shared[];
#define DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(swara_dynamic_shared)
#else
#define DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(swara::runtime->dynamic_shared(swara::current))
#endif

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ __forceinline__ float to_float(f16 x) { return f16_to_float(x.bits); }
__device__ __forceinline__ float to_float(int8_t x) { return (float)x; }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    return bf16{float_to_bf16(x)};
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) {
    return f16{float_to_f16(x)};
}
