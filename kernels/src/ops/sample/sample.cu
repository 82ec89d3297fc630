// One id a row of logits: the largest, or a draw from what temperature and top-k leave.
//
//   greedy   the largest logit (temperature not above 0, or an infinite largest logit)
//   draw     argmax over the k largest logits x of (x - max) / temperature + gumbel(philox(i, sequence, counter; seed))
//
// which is i with probability softmax(x / temperature)_i among those k. Equal ones in the order of their index; NaN is -infinity.
//
// Tensors    logits [B, V] of T, V below 2^21; settings [B]; counters [B], each row's advanced by its draw; ids [B, id_stride], written
//            at [b, 0]; mask [B], null for all: a row that it leaves out keeps id and counter.
// Mapping    a block a row, a thread 16 bytes at a time; one logit at a time where numbers are drawn.
// Search     Orders: a logit's bits, mapped so that they compare as it does, above its index from the end. They are distinct, so the
//            k-th largest is a threshold, found two bits a pass from the top, and mostly long before the last: as soon as k are above.
//            No sort, no histogram, no atomics.
// Bytes      logits once; a row's passes after the first are from the caches.
// Ladder     v1 as above. No GPU has timed it yet. Next: a thread's logits in registers.
//
// kernels: sample_f32 sample_bf16 sample_f16 sample_reset
#include "sample.cuh"

template <typename T, int N>
__device__ __forceinline__ void sample(int* ids, uint64_t* counters, const T* logits, const Settings* settings, const unsigned char* mask,
                                       int id_stride, int n) {
    const int64_t b = blockIdx.x;
    if (mask && mask[b] == 0) return;
    const uint64_t counter = counters[b];
    const int id = Row<T, N>{logits + b * n, n}.draw(settings[b], counter);  // meets all threads, which have read the counter
    if (threadIdx.x == 0) {
        ids[b * id_stride] = id;
        counters[b] = counter + 1;
    }
}

#define SAMPLE(T, NAME)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(512)                                                                        \
        sample_##NAME(int* ids, uint64_t* counters, const T* logits, const Settings* settings, const unsigned char* mask,    \
                      int id_stride, int n) {                                                                                \
        if (n % LANES<T> == 0)                                                                                               \
            sample<T, LANES<T>>(ids, counters, logits, settings, mask, id_stride, n);                                        \
        else                                                                                                                 \
            sample<T, 1>(ids, counters, logits, settings, mask, id_stride, n);                                               \
    }
SAMPLE(float, f32)
SAMPLE(bf16, bf16)
SAMPLE(f16, f16)

// A thread a row.
extern "C" __global__ void sample_reset(uint64_t* counters, const unsigned char* mask, int batch) {
    const int b = blockIdx.x * blockDim.x + threadIdx.x;
    if (b < batch && mask[b] != 0) counters[b] = 0;
}
