// AdamW, the clip scale and parameter averaging; the formulas are in mod.rs.
//
// Tensors    param, grad, m, v, shadow: n elements, f32. grad_scale, total: one f32, read and written on the device, so that
//            a training step waits for nothing.
// Mapping    a thread = 16 bytes of each tensor.
// Bytes      adamw: param, grad, m, v read; param, m, v written. ema: shadow, param read; shadow written.
// Measured   on the emulator only, for correctness; no GPU figure exists yet.
#include "vec.cuh"

struct Step {
    float *param, *m, *v;
    const float* grad;
    float scale, keep, beta1, new1, beta2, new2, rate, correction, eps;

    template <int N>
    __device__ __forceinline__ void at(uint64_t i) const {
        float p[N], g[N], first[N], second[N];
        load_vector(p, param + i);
        load_vector(g, grad + i);
        load_vector(first, m + i);
        load_vector(second, v + i);
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float scaled = g[j] * scale;
            first[j] = beta1 * first[j] + new1 * scaled;
            second[j] = beta2 * second[j] + new2 * (scaled * scaled);
            p[j] = keep * p[j] - rate * first[j] / (sqrtf(second[j]) * correction + eps);
        }
        store_vector(param + i, p);
        store_vector(m + i, first);
        store_vector(v + i, second);
    }
};

// `keep` = 1 - lr weight_decay, `new` = 1 - beta, `rate` = lr / (1 - beta1^t), `correction` = 1 / sqrt(1 - beta2^t).
extern "C" __global__ void adamw_f32(float* param, const float* grad, float* m, float* v, const float* grad_scale, uint64_t n, float keep,
                                     float beta1, float new1, float beta2, float new2, float rate, float correction, float eps) {
    const float scale = grad_scale ? *grad_scale : 1.0f;
    for_elements<float>(n, Step{param, m, v, grad, scale, keep, beta1, new1, beta2, new2, rate, correction, eps});
}

// scale = min(1, max_norm / (sqrt(total) + 1e-6)); NaN stays NaN.
extern "C" __global__ void clip_scale_f32(float* scale, const float* total, float max_norm) {
    const float s = max_norm / (sqrtf(*total) + 1e-6f);
    *scale = s > 1.0f ? 1.0f : s;
}

extern "C" __global__ void ema_f32(float* shadow, const float* param, uint64_t n, float keep, float fresh) {
    zip(shadow, shadow, param, n, [=](float s, float p) { return keep * s + fresh * p; });
}
