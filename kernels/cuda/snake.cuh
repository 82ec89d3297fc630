// Snake of one channel, x + sin^2(alpha x) / (beta + 1e-9), and the sine it needs.
//
// The sine is of half a turn, by polynomial, as sin^2 has period pi. alpha x / pi is reduced to [-1/2, 1/2] before anything is
// rounded away, so the error does not grow with x: below 2^-23 for |alpha x / pi| up to 2^22. ops/snake/cpu.rs has the same.
#pragma once

#include "types.cuh"

struct Snake {
    float turns, turns_low, alpha, inverse;  // alpha / pi = turns + turns_low, inverse = 1 / (beta + 1e-9)

    // sin(alpha x) and cos(alpha x) up to a common sign.
    __device__ __forceinline__ void sin_cos(float& sin, float& cos, float x) const {
        const float u = half_turn(sin, x);
        cos = fmaf(u, fmaf(u, fmaf(u, fmaf(u, 0.219696799123f, -1.33188016148f), 4.0584119142f), -4.93479285868f), 0.999999953467f);
    }

    __device__ __forceinline__ float operator()(float x) const {
        float sin;
        half_turn(sin, x);
        return fmaf(sin * sin, inverse, x);
    }

    // The sine; returns the square of the reduced argument.
    __device__ __forceinline__ float half_turn(float& sin, float x) const {
        const float t = x * turns;
        const float r = (t - rintf(t)) + fmaf(x, turns_low, fmaf(x, turns, -t));
        const float u = r * r;
        sin = r * fmaf(u, fmaf(u, fmaf(u, fmaf(u, 0.0775603867908f, -0.598242126342f), 2.55006972633f), -5.1677096848f), 3.1415926369f);
        return u;
    }
};

__device__ __forceinline__ Snake make_snake(float alpha, float beta) {
    constexpr float PER_PI = 0.318309873f, PER_PI_LOW = 1.28412766e-8f;
    const float turns = alpha * PER_PI;
    return {turns, fmaf(alpha, PER_PI, -turns) + alpha * PER_PI_LOW, alpha, 1.0f / (beta + 1e-9f)};
}
