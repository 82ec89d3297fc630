// Two-dimensional convolution, forward and gradients.
//
//   y[b, h, w, o]  = leaky(bias[o] + sum_{k, l, i} x[b, h sh + k dh - ph, w sw + l dw - pw, i] weight[(k, l), i, o])
//   dx[b, p, q, i] = sum_{k, l, o: h sh = p + ph - k dh, w sw = q + pw - l dw} dy[b, h, w, o] weight[(k, l), i, o]
//   dw[(k, l), i, o] = sum_{b, h, w} x[b, h sh + k dh - ph, w sw + l dw - pw, i] dy[b, h, w, o]
//
// Shapes: x [B, H, W, Cin], weight [KH KW, Cin, Cout], y [B, Hout, Wout, Cout], all contiguous; x is zero outside.
//
//   conv2d_TILE      implicit product: rows (b, h, w), K-dimension ((k, l), i), columns o. Channels-last, a row of the im2col
//                    matrix is KH stretches of x (KH KW with dilation across), read where they lie (gemm.cuh).
//                    grid: tiles of the product, columns first; block: one tile.
//   conv2d_dx_TILE   the product with taps transposed, one launch for each residue of the strides: rows are the positions of dx of
//                    that residue, the K-dimension the taps that meet it and o. So a stride of 2 halves each launch's work.
//   conv2d_dw_64x64  [((k, l), i), o], summed over rows (b, h, w) in grid.y runs; conv2d_dw_sum adds the f32 partial sums in order.
//
// Bytes, at the least: x + weight + y once each. A product tile re-reads its rows of x once per tap, from L1/L2; of a strided
// gradient each launch reads dy.
//
// Ladder: v1 implicit product on tensor cores (f32: FFMA). Not yet timed on any GPU. Known to be left on the table: one output
// channel fills a thirty-second of a tile; images of one or two channels are read element by element.

#include "gemm.cuh"

/// Windows of images. Outer index: (image, window), inner index: (tap, channel); windows and taps are counted row by row.
/// The element is data[image, h * step_h + k * tap_h - offset_h, w * step_w + l * tap_w - offset_w, channel].
template <class T>
struct Image {
    const T* data;
    int batches, height, width, channels, rows, columns, step_h, step_w, offset_h, offset_w, tap_h, tap_w, taps_h, taps_w;
    static constexpr int prologue = PROLOGUE_NONE;

    __device__ int outer_extent() const { return rows * columns; }
    __device__ int inner_extent() const { return channels; }

    __device__ const T* at(Index outer, Index inner) const {
        const Index window = split(outer.minor, columns), tap = split(inner.major, taps_w);
        const int h = window.major * step_h + tap.major * tap_h - offset_h;
        const int w = window.minor * step_w + tap.minor * tap_w - offset_w;
        if (outer.major >= batches || tap.major >= taps_h || h < 0 || h >= height || w < 0 || w >= width) return nullptr;
        return data + (((int64_t)outer.major * height + h) * width + w) * channels + inner.minor;
    }

    __device__ __forceinline__ Activation activation(int) const { return {PROLOGUE_NONE, {}}; }
};

/// Weights [taps, in, out] of which tap (k, l) is (first_h + k * every_h) * stored_w + first_w + l * every_w.
/// Outer index (tap, in) and inner index out; if TRANSPOSED, outer in and inner (tap, out).
template <class T, bool TRANSPOSED>
struct Kernel {
    const T* data;
    int taps_h, taps_w, stored_w, first_h, first_w, every_h, every_w, in, out;

    __device__ int outer_extent() const { return in; }
    __device__ int inner_extent() const { return out; }

    __device__ const T* at(Index outer, Index inner) const {
        const Index tap = split(TRANSPOSED ? inner.major : outer.major, taps_w);
        if (tap.major >= taps_h || (TRANSPOSED ? outer.major : inner.major) > 0) return nullptr;
        const int stored = (first_h + tap.major * every_h) * stored_w + first_w + tap.minor * every_w;
        return data + ((int64_t)stored * in + outer.minor) * out + inner.minor;
    }
};

/// Row m = (image, window) of the product becomes y[image, first_h + h * step_h, first_w + w * step_w] = leaky(sum + bias).
template <class T>
struct Pixels {
    T* y;           // [batches, height, width, channels]
    const T* bias;  // [channels] or null
    int batches, height, width, channels, rows, columns, first_h, first_w, step_h, step_w;
    float slope;

    __device__ __forceinline__ float leaky(float v) const { return v < 0.0f ? slope * v : v; }

    /// Columns n..n+4 of row m; n is a multiple of 4.
    __device__ void store(int m, int n, const float (&sum)[4]) const {
        const Index image = split(m, rows * columns);
        if (image.major >= batches || n >= channels) return;
        const Index window = split(image.minor, columns);
        const int h = first_h + window.major * step_h, w = first_w + window.minor * step_w;
        T* const to = y + (((int64_t)image.major * height + h) * width + w) * channels + n;
        if (channels % 4 != 0) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                if (n + e < channels) to[e] = from_float<T>(leaky(sum[e] + (bias == nullptr ? 0.0f : to_float(bias[n + e]))));
            }
            return;
        }
        float v[4] = {sum[0], sum[1], sum[2], sum[3]};
        if (bias != nullptr) {
            float other[4];
            load4(other, bias + n);
#pragma unroll
            for (int e = 0; e < 4; ++e) v[e] += other[e];
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) v[e] = leaky(v[e]);
        store4(to, v);
    }
};

template <class T, class TILE, bool TRANSPOSED>
__device__ __forceinline__ void convolve(const Image<T>& a, const Kernel<T, TRANSPOSED>& b, const Pixels<T>& out) {
    const int across = (out.channels + TILE::N - 1) / TILE::N;
    multiply<T, TILE, true, TRANSPOSED>(a, b, out, blockIdx.x / across * TILE::M, blockIdx.x % across * TILE::N, 0,
                                        a.taps_h * a.taps_w * a.channels);
}

/// partial[split, (tap, i), o] = sum of windows[r, (tap, i)] * dy[r, o] over the `depth` rows r of split blockIdx.y.
template <class T, class TILE>
__device__ __forceinline__ void correlate(const Image<T>& a, const T* dy, float* partial, int n, int depth) {
    const int m = a.taps_h * a.taps_w * a.channels, across = (n + TILE::N - 1) / TILE::N, rows = a.rows * a.columns;
    const Window<T> b = {dy, nullptr, nullptr, nullptr, a.batches, rows, n, 0, rows, 1, 0, 0, 1, 0};
    const Output<float> out = {partial + (int64_t)blockIdx.y * m * n, nullptr, nullptr, 1, m, n, m, 1, 0, EPILOGUE_NONE};
    multiply<T, TILE, false, false>(a, b, out, blockIdx.x / across * TILE::M, blockIdx.x % across * TILE::N, blockIdx.y * depth, depth);
}

#define CONV2D_KERNEL(NAME, T, TILE, TRANSPOSED)                                                                                \
    extern "C" __global__ void __launch_bounds__(TILE::THREADS, TILE::RESIDENT)                                                \
        NAME(T* y, const T* x, const T* weight, const T* bias, int batches, int height, int width, int channels, int rows,      \
             int columns, int step_h, int step_w, int offset_h, int offset_w, int tap_h, int tap_w, int taps_h, int taps_w,     \
             int stored_w, int first_h, int first_w, int every_h, int every_w, int out_height, int out_width, int out_channels, \
             int out_first_h, int out_first_w, int out_step_h, int out_step_w, float slope) {                                   \
        convolve<T, TILE, TRANSPOSED>({x, batches, height, width, channels, rows, columns, step_h, step_w, offset_h, offset_w,  \
                                       tap_h, tap_w, taps_h, taps_w},                                                           \
                                      {weight, taps_h, taps_w, stored_w, first_h, first_w, every_h, every_w,                    \
                                       TRANSPOSED ? out_channels : channels, TRANSPOSED ? channels : out_channels},             \
                                      {y, bias, batches, out_height, out_width, out_channels, rows, columns, out_first_h,       \
                                       out_first_w, out_step_h, out_step_w, slope});                                            \
    }

#define CONV2D_DW_KERNEL(NAME, T, TILE)                                                                                         \
    extern "C" __global__ void __launch_bounds__(TILE::THREADS, TILE::RESIDENT)                                                \
        NAME(float* partial, const T* x, const T* dy, int batches, int height, int width, int channels, int rows, int columns,  \
             int step_h, int step_w, int offset_h, int offset_w, int tap_h, int tap_w, int taps_h, int taps_w, int out_channels, \
             int depth) {                                                                                                       \
        correlate<T, TILE>({x, batches, height, width, channels, rows, columns, step_h, step_w, offset_h, offset_w, tap_h,      \
                            tap_w, taps_h, taps_w},                                                                             \
                           dy, partial, out_channels, depth);                                                                   \
    }

#define FOR_TYPE(SUFFIX, T)                                                                                                     \
    CONV2D_KERNEL(conv2d_64x64_##SUFFIX, T, Tile64x64, false)                                                                   \
    CONV2D_KERNEL(conv2d_128x32_##SUFFIX, T, Tile128x32, false)                                                                 \
    CONV2D_KERNEL(conv2d_dx_64x64_##SUFFIX, T, Tile64x64, true)                                                                 \
    CONV2D_KERNEL(conv2d_dx_128x32_##SUFFIX, T, Tile128x32, true)                                                               \
    CONV2D_DW_KERNEL(conv2d_dw_64x64_##SUFFIX, T, Tile64x64)                                                                    \
    SUM_PARTIALS_KERNEL(conv2d_dw_sum_##SUFFIX, T)

// kernels: conv2d_64x64_f32 conv2d_128x32_f32 conv2d_dx_64x64_f32 conv2d_dx_128x32_f32 conv2d_dw_64x64_f32 conv2d_dw_sum_f32
// kernels: conv2d_64x64_bf16 conv2d_128x32_bf16 conv2d_dx_64x64_bf16 conv2d_dx_128x32_bf16 conv2d_dw_64x64_bf16 conv2d_dw_sum_bf16
// kernels: conv2d_64x64_f16 conv2d_128x32_f16 conv2d_dx_64x64_f16 conv2d_dx_128x32_f16 conv2d_dw_64x64_f16 conv2d_dw_sum_f16
FOR_TYPE(f32, float)
FOR_TYPE(bf16, bf16)
FOR_TYPE(f16, f16)
