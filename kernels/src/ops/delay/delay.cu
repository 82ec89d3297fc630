// Token streams beside each other, some late: what a language model reads at a step, and where what it says goes. The formulas are
// those of mod.rs.
//
// Tensors    ring [batch, columns, longest + 2], given [batch, columns - generated], ids [batch, columns],
//            said and out [batch, generated], delays and initial [columns] of int; seen [batch], mask [batch] or null
// Mapping    a thread = a column of a stream.
// Bytes      a few kilobytes: what counts is that a step needs no word from the host.
// Measured   on the emulator only, for correctness; no GPU figure exists yet.
//
// kernels: delay_feed delay_take
#include "types.cuh"

#define UNGENERATED (-2)

extern "C" __global__ void delay_feed(int* ids, int* ring, const int* given, const int* seen, const unsigned char* mask,
                                      const int* delays, const int* initial, int batch, int columns, int generated, int longest) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= batch * columns) return;
    const int b = i / columns, k = i - b * columns, length = longest + 2;
    const int s = seen[b], delay = delays[k];
    const bool runs = !mask || mask[b];
    int* column = ring + i * length;
    if (runs && k >= generated) column[(s + delay) % length] = given[b * (columns - generated) + k - generated];
    ids[i] = !runs || s <= delay ? initial[k] : column[s % length];
}

extern "C" __global__ void delay_take(int* out, int* ring, const int* said, const int* seen, const unsigned char* mask, const int* delays,
                                      int batch, int columns, int generated, int longest) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= batch * generated) return;
    const int b = i / generated, k = i - b * generated, length = longest + 2;
    const int s = seen[b];
    const bool runs = !mask || mask[b];
    int* column = ring + (b * columns + k) * length;
    if (runs) column[(s + 1) % length] = said[i];
    out[i] = runs && s >= longest ? column[(s + 1 - longest + delays[k]) % length] : UNGENERATED;
}
