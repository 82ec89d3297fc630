// Short-time Fourier transform, its adjoint, and the magnitude of a spectrum.
//
//   X[f, k] = sum_j w_j x~[f hop + j - n/2] e^(-2 pi i j k / n),  k = 0 .. n/2       w_j = (1 - cos(2 pi j / n)) / 2
//   dx      = fold of sum_f w_j Re sum_k dX[f, k] e^(2 pi i j k / n)                 x~ = x reflected at both ends
//   |X| = sqrt(re^2 + im^2),  dX = d|X| X / |X|, 0 at 0
//
// x [B, T], X [B, F, n/2 + 1] complex, F = T / hop + 1, row-major f32; n a power of two from 2 to 4096.
//
// A real transform of n points is a complex one of N = n/2 points over (even, odd) samples, and N + 1 additions after it (for
// the adjoint: before it). The complex one is Stockham's, radix 2, in shared memory: no bit reversal, no bank conflict worse
// than its strides. Factors come from a table of e^(-2 pi i k / n), k < N, made by every block from a polynomial: the angles
// are dyadic, so their reduction is exact, and no table has to be kept on the device.
//
// Mapping
//   stft_forward      a block has 1024 / N frames (one, if N is more): windowed loads, log2 N passes, store.
//   stft_frames       the same backwards: w_j times the inverse transform, to frames [B, F, n].
//   stft_overlap_add  a thread a sample: adds its up to three positions in the padded signal over all frames that have them.
//   magnitude*        a thread a bin.
// Bytes
//   forward  4 B T + 8 B F (N + 1)     frames + overlap_add  8 B F (N + 1) + 8 B F n + 4 B T     magnitude  12 (backward 20) a bin
// Ladder
//   v1  as above. No GPU has timed it yet. Next: radix 4, overlap-add in shared memory, magnitude in the store.

#include "types.cuh"

#define THREADS 256

// (cos, sin) of pi k / half for 0 <= k < half, both powers of two. Taylor polynomials on [0, pi / 4].
__device__ __forceinline__ float2 unit(int k, int half) {
    const float turn = (float)k / (float)half;
    const float folded = turn > 0.5f ? 1.0f - turn : turn;
    const bool swapped = folded > 0.25f;
    const float x = 3.14159265358979f * (swapped ? 0.5f - folded : folded), z = x * x;
    const float sine = x * (1.0f + z * (-1.0f / 6 + z * (1.0f / 120 + z * (-1.0f / 5040 + z * (1.0f / 362880)))));
    const float cosine = 1.0f + z * (-0.5f + z * (1.0f / 24 + z * (-1.0f / 720 + z * (1.0f / 40320 + z * (-1.0f / 3628800)))));
    const float c = swapped ? sine : cosine;
    return make_float2(turn > 0.5f ? -c : c, swapped ? cosine : sine);
}

__device__ __forceinline__ float2 times(float2 a, float2 b) { return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x); }

// table[k] = e^(-2 pi i k / n), k < N.
__device__ __forceinline__ void make_table(float2* table, int points) {
    for (int k = threadIdx.x; k < points; k += THREADS) {
        const float2 u = unit(k, points);
        table[k] = make_float2(u.x, -u.y);
    }
}

// Hann window of 2 * `points` at j.
__device__ __forceinline__ float hann(const float2* table, int points, int j) {
    return 0.5f - 0.5f * (j < points ? table[j].x : -table[j - points].x);
}

// Transforms `frames` runs of 2^log_points values in `from`; `to` is as large. Returns where the result is.
template <bool INVERSE>
__device__ __forceinline__ float2* transform(float2* from, float2* to, const float2* table, int frames, int log_points) {
    const int points = 1 << log_points, half = points / 2;
    for (int stage = 0; stage < log_points; stage++) {
        const int stride = 1 << stage;
        __syncthreads();
        for (int i = threadIdx.x; i < frames * half; i += THREADS) {
            const int frame = i >> (log_points - 1), butterfly = i & (half - 1);
            const int q = butterfly & (stride - 1), p = butterfly - q;  // p = index within the stage, times its stride
            const float2* in = from + frame * points + butterfly;
            const float2 a = in[0], b = in[half];
            float2 w = table[2 * p];
            if (INVERSE) w.y = -w.y;
            float2* out = to + frame * points + q + 2 * p;
            out[0] = make_float2(a.x + b.x, a.y + b.y);
            out[stride] = times(make_float2(a.x - b.x, a.y - b.y), w);
        }
        float2* done = to;
        to = from;
        from = done;
    }
    __syncthreads();
    return from;
}

// Sample that position j of the padded signal repeats.
__device__ __forceinline__ int reflect(int j, int pad, int samples) {
    const int i = j < pad ? pad - j : j - pad;
    return i < samples ? i : 2 * (samples - 1) - i;
}

// `total` frames in all, `at_once` of them a block. Dynamic shared memory: 2 at_once N + N complex numbers.
extern "C" __global__ void __launch_bounds__(THREADS) stft_forward_f32(float* spectra, const float* x, int total, int at_once,
    int frames, int samples, int log_points, int hop) {
    DYNAMIC_SHARED(float2, shared);
    const int points = 1 << log_points, bins = points + 1;
    float2 *a = shared, *b = a + at_once * points, *table = b + at_once * points;
    const int first = blockIdx.x * at_once, mine = total - first < at_once ? total - first : at_once;

    make_table(table, points);
    __syncthreads();
    // Real samples side by side, which are complex pairs afterwards.
    for (int i = threadIdx.x; i < 2 * mine * points; i += THREADS) {
        const int frame = first + (i >> (log_points + 1)), j = i & (2 * points - 1);
        const float* row = x + (size_t)(frame / frames) * samples;
        ((float*)a)[i] = row[reflect(frame % frames * hop + j, points, samples)] * hann(table, points, j);
    }
    const float2* z = transform<false>(a, b, table, mine, log_points);
    for (int i = threadIdx.x; i < mine * bins; i += THREADS) {
        const int frame = i / bins, k = i - frame * bins;
        const float2 p = z[frame * points + (k & (points - 1))], q = z[frame * points + ((points - k) & (points - 1))];
        const float2 even = make_float2(0.5f * (p.x + q.x), 0.5f * (p.y - q.y));
        const float2 odd = make_float2(0.5f * (p.y + q.y), 0.5f * (q.x - p.x));
        const float2 turned = times(odd, k < points ? table[k] : make_float2(-1.0f, 0.0f));
        ((float2*)spectra)[(size_t)first * bins + i] = make_float2(even.x + turned.x, even.y + turned.y);
    }
}

// As stft_forward, from gradients of spectra to windowed frames [total, n].
extern "C" __global__ void __launch_bounds__(THREADS) stft_frames_f32(float* windowed, const float* dspectra, int total,
    int at_once, int log_points) {
    DYNAMIC_SHARED(float2, shared);
    const int points = 1 << log_points, bins = points + 1;
    float2 *a = shared, *b = a + at_once * points, *table = b + at_once * points;
    const int first = blockIdx.x * at_once, mine = total - first < at_once ? total - first : at_once;

    make_table(table, points);
    __syncthreads();
    for (int i = threadIdx.x; i < mine * points; i += THREADS) {
        const int frame = i >> log_points, k = i & (points - 1);
        const float2* d = (const float2*)dspectra + (size_t)(first + frame) * bins;
        // The spectrum whose inverse transform is the gradient: halved where a bin stands for its conjugate too.
        float2 p = d[k], q = d[points - k];
        p = k == 0 ? make_float2(p.x, 0.0f) : make_float2(0.5f * p.x, 0.5f * p.y);
        q = k == 0 ? make_float2(q.x, 0.0f) : make_float2(0.5f * q.x, -0.5f * q.y);
        const float2 odd = times(make_float2(p.x - q.x, p.y - q.y), make_float2(table[k].x, -table[k].y));
        a[i] = make_float2(p.x + q.x - odd.y, p.y + q.y + odd.x);
    }
    const float2* z = transform<true>(a, b, table, mine, log_points);
    for (int i = threadIdx.x; i < mine * points; i += THREADS) {
        const int j = 2 * (i & (points - 1));
        ((float2*)windowed)[(size_t)first * points + i] =
            make_float2(z[i].x * hann(table, points, j), z[i].y * hann(table, points, j + 1));
    }
}

// Sum over the frames of one item that have padded position `at`.
__device__ __forceinline__ float overlap(const float* windowed, int at, int frames, int window, int hop) {
    const int last = at / hop < frames - 1 ? at / hop : frames - 1;
    const int first = at < window ? 0 : (at - window) / hop + 1;
    float sum = 0.0f;
    for (int frame = first; frame <= last; frame++) sum += windowed[(size_t)frame * window + at - frame * hop];
    return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) stft_overlap_add_f32(float* dx, const float* windowed, int batch,
    int frames, int samples, int window, int hop) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= batch * samples) return;
    const int item = i / samples, t = i - item * samples, pad = window / 2;
    windowed += (size_t)item * frames * window;
    float sum = overlap(windowed, pad + t, frames, window, hop);
    if (t >= 1 && t <= pad) sum += overlap(windowed, pad - t, frames, window, hop);
    const int mirrored = 2 * (samples - 1) - t;
    if (t <= samples - 2 && mirrored < samples + pad) sum += overlap(windowed, pad + mirrored, frames, window, hop);
    dx[i] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) stft_magnitude_f32(float* magnitude, const float* spectra, int n) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    const float2 z = ((const float2*)spectra)[i];
    magnitude[i] = __fsqrt_rn(z.x * z.x + z.y * z.y);
}

extern "C" __global__ void __launch_bounds__(THREADS) stft_magnitude_backward_f32(float* dspectra, const float* dmagnitude,
    const float* spectra, int n) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    const float2 z = ((const float2*)spectra)[i];
    const float m = __fsqrt_rn(z.x * z.x + z.y * z.y);
    const float scale = m > 0.0f ? __fdiv_rn(dmagnitude[i], m) : 0.0f;
    ((float2*)dspectra)[i] = make_float2(z.x * scale, z.y * scale);
}
