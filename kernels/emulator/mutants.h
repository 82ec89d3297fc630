// Text with mistakes in it, each of which is made only while its number is chosen: one compilation serves them all.
#pragma once

namespace swara {

static unsigned chosen;  // 0: none
static unsigned char reached[SWARA_MUTANTS + 1];
static long long fuel;

SWARA_UNSEEN inline bool mutant(unsigned number) {
    reached[number] = 1;
    if (fuel-- <= 0) runtime->fault(current, "it does not end", "mutant", (int)chosen);
    return number == chosen;
}

// `sum += narrow(n) || x`: binds weaker than what is added. Numbers lose all but the eight bits that bf16 has, integers are off by one.
struct Narrow {
    bool chosen;
};
inline Narrow narrow(unsigned number) { return {mutant(number)}; }
inline float narrowed(float x) {
    const unsigned bits = __float_as_uint(x);
    return (bits & 0x7fffffffu) > 0x7f800000u ? x : __uint_as_float((bits + 0x7fffu + (bits >> 16 & 1)) & 0xffff0000u);
}
inline double narrowed(double x) { return narrowed((float)x); }
template <class T> T narrowed(T x) { return x + 1; }
template <class T> T operator||(Narrow number, T x) { return number.chosen ? narrowed(x) : x; }
template <int N> void narrow_each(unsigned number, float (&sums)[N]) {
    if (mutant(number))
        for (float& sum : sums) sum = narrowed(sum);
}

}  // namespace swara

SWARA_EXPORT SWARA_UNSEEN unsigned char* swara_choose(unsigned number, long long* fuel) {
    const long long left = swara::fuel;
    swara::chosen = number;
    swara::fuel = *fuel;
    *fuel = left;
    return swara::reached;
}
