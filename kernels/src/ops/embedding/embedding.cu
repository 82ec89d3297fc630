// Rows of tables, added up, and the gradient of the tables.
//
//   forward    y[b] = onto[b] + sum over k of table_k[ids[b, k]], in the order of k; id -1 adds nothing, one outside its table NaN
//   int8       the same of rows that are codes of 8 bits, each times the scale of its row: rounded, then added
//   split      out[b] = (id % size, id / size - 1, the other ids of b), id the first of b; (id, -1, ..) if it is negative
//   backward   gradient_k[r] += sum over b with ids[b, k] = r of dy[b], in the order of b
//
// Tensors    table [R, D] of T, or of int8 with scales [R], holds all tables, table k its rows starts[k] .. starts[k + 1]; y [B, D]; ids [B, id_stride]; onto
//            [B, onto_stride], null for zero; dy [B, D] and gradient [R, D] f32; rows [K, B]: of R, what ids name, or none.
// Mapping    embedding, _int8    block = (b, part of D), a thread = 16 bytes of y. The block looks its ids up together, so that
//                                rows are fetched several at a time.
//            embedding_split     a thread = an element of out [B, columns].
//            embedding_rows      a thread = an id.
//            embedding_backward  block = (row of R, part of D), a thread = 16 bytes. It reads what its table's column of ids names
//                                and adds the rows of dy that it finds: no atomics, and no write where there are none.
// Bytes      forward: the rows that are named, onto and y, once each. Backward: the same rows of the gradient read and written, dy
//            once; rows, which is read for each row of R, stays in L2.
// Ladder     v1 as above. No GPU has timed it yet. Next: sorted ids, where B R is large.
//
// kernels: embedding_int8_f32 embedding_int8_bf16 embedding_int8_f16
// kernels: embedding_f32 embedding_bf16 embedding_f16 embedding_split embedding_rows embedding_backward_f32
#include "vec.cuh"
#include "block.cuh"

constexpr int NONE = -1, STRAY = -2;
constexpr int GATHER_THREADS = 64;  // of a block of embedding
constexpr int AT_ONCE = 4;          // rows that its threads wait for
constexpr int THREADS = 256;        // of embedding_backward

// Of all tables' rows the one that `id` names in table k.
__device__ __forceinline__ int row_of(int id, const int* starts, int k) {
    const int start = starts[k];
    return id == NONE ? NONE : id >= 0 && id < starts[k + 1] - start ? start + id : STRAY;
}

// N elements of a row, which is T or codes.
template <typename T, int N>
__device__ __forceinline__ void load_part(float (&v)[N], const T* row) { load_vector(v, row); }
template <int N>
__device__ __forceinline__ void load_part(float (&v)[N], const int8_t* row) {
    if constexpr (N == 4) {
        const unsigned words[4] = {*reinterpret_cast<const unsigned*>(row)};
        unpack<int8_t>(v, words);
    } else {
        load_vector(v, row);
    }
}

template <int N, typename T, typename C>
__device__ __forceinline__ void embed(T* y, const C* table, const float* scales, const int* ids, const int* starts, const T* onto,
                                      uint64_t onto_stride, int tables, int id_stride, int dim) {
    __shared__ int rows[GATHER_THREADS];
    const int at = (blockIdx.y * GATHER_THREADS + threadIdx.x) * N;
    const bool inside = at < dim;
    const int64_t b = blockIdx.x;
    float sum[N] = {};
    if (inside && onto) load_vector(sum, onto + b * onto_stride + at);
    for (int first = 0; first < tables; first += GATHER_THREADS) {
        const int mine = first + threadIdx.x, count = min(tables - first, GATHER_THREADS);
        if (mine < tables) rows[threadIdx.x] = row_of(ids[b * id_stride + mine], starts, mine);
        __syncthreads();
        for (int k = 0; k < count; k += AT_ONCE) {
            float v[AT_ONCE][N];
#pragma unroll
            for (int u = 0; u < AT_ONCE; u++) {
                const int row = k + u < count ? rows[k + u] : NONE;
#pragma unroll
                for (int j = 0; j < N; j++) v[u][j] = row == STRAY ? __int_as_float(0x7fc00000) : 0.0f;
                if (!inside || row < 0) continue;
                load_part(v[u], table + (int64_t)row * dim + at);
                if constexpr (sizeof(C) == 1) {
                    const float scale = scales[row];
#pragma unroll
                    for (int j = 0; j < N; j++) v[u][j] = __fmul_rn(v[u][j], scale);
                }
            }
#pragma unroll
            for (int u = 0; u < AT_ONCE; u++) {
#pragma unroll
                for (int j = 0; j < N; j++) sum[j] = __fadd_rn(sum[j], v[u][j]);
            }
        }
        __syncthreads();  // before the next tables' rows
    }
    if (inside) store_vector(y + b * dim + at, sum);
}

#define EMBEDDING(T, NAME)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(GATHER_THREADS)                                                             \
        embedding_##NAME(T* y, const T* table, const int* ids, const int* starts, const T* onto, uint64_t onto_stride,       \
                         int tables, int id_stride, int dim, int vector) {                                                   \
        if (vector)                                                                                                          \
            embed<LANES<T>>(y, table, nullptr, ids, starts, onto, onto_stride, tables, id_stride, dim);                      \
        else                                                                                                                 \
            embed<1>(y, table, nullptr, ids, starts, onto, onto_stride, tables, id_stride, dim);                             \
    }                                                                                                                        \
    extern "C" __global__ void __launch_bounds__(GATHER_THREADS)                                                             \
        embedding_int8_##NAME(T* y, const int8_t* table, const float* scales, const int* ids, const int* starts,             \
                              const T* onto, uint64_t onto_stride, int tables, int id_stride, int dim, int vector) {         \
        if (vector)                                                                                                          \
            embed<LANES<T>>(y, table, scales, ids, starts, onto, onto_stride, tables, id_stride, dim);                       \
        else                                                                                                                 \
            embed<1>(y, table, scales, ids, starts, onto, onto_stride, tables, id_stride, dim);                              \
    }
EMBEDDING(float, f32)
EMBEDDING(bf16, bf16)
EMBEDDING(f16, f16)

extern "C" __global__ void embedding_split(int* out, const int* ids, int size, int columns, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const int b = i / columns, column = i % columns;
    const int* const mine = ids + (int64_t)b * (columns - 1);
    const int id = mine[max(column - 1, 0)];
    if (column == 0) out[i] = id < 0 ? id : id % size;
    else if (column == 1) out[i] = id < 0 ? NONE : id / size - 1;
    else out[i] = id;
}

extern "C" __global__ void embedding_rows(int* rows, const int* ids, const int* starts, int batch, int tables, int id_stride) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= batch * tables) return;
    const int k = i / batch, b = i % batch;
    rows[i] = row_of(ids[(int64_t)b * id_stride + k], starts, k);
}

template <int N>
__device__ __forceinline__ void collect(float* gradient, const float* dy, const int* rows, const int* starts, int batch, int dim) {
    const int row = blockIdx.x, at = (blockIdx.y * THREADS + threadIdx.x) * N;
    int k = 0;
    while (starts[k + 1] <= row) k++;
    const int* const named = rows + (int64_t)k * batch;
    float* const mine = gradient + (int64_t)row * dim + at;
    bool touched = false;
    float sum[N];
    for_selected<THREADS>(batch, [=](int b) { return named[b] == row; }, [&](int b) {
        if (at >= dim) return;
        if (!touched) load_vector(sum, mine);
        touched = true;
        float v[N];
        load_vector(v, dy + (int64_t)b * dim + at);
#pragma unroll
        for (int j = 0; j < N; j++) sum[j] = __fadd_rn(sum[j], v[j]);
    });
    if (touched) store_vector(mine, sum);
}

extern "C" __global__ void __launch_bounds__(THREADS) embedding_backward_f32(float* gradient, const float* dy, const int* rows,
                                                                              const int* starts, int batch, int dim, int vector) {
    if (vector)
        collect<4>(gradient, dy, rows, starts, batch, dim);
    else
        collect<1>(gradient, dy, rows, starts, batch, dim);
}
