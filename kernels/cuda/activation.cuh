// The smooth steps that activations are made of.
#pragma once

#include "types.cuh"

constexpr float SLOPE = 0.797884583f;  // sqrt(2 / pi)
constexpr float SQRT_HALF = 0.707106769f;

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float normal_cdf(float x) { return 0.5f * erfcf(-x * SQRT_HALF); }
