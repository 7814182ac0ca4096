// Rows in vectors of 8 (AVX2) or 16 (AVX-512) floats, for what the compiler does not find by itself: looking values up
// that lie near each other by permuting a vector instead of loading each. GCC's vector types, so that one text does
// for both; what is inlined into a function with a target is compiled for that target.
#pragma once

#include <cstdint>
#include <cstring>

namespace dropgen {

// How many this processor has: 16, 8, or 0 where rows are left to the compiler; defined in host.cpp.
int lanes();

// Where a group of `lanes` outputs of a row begins: the last ends with the row, so it may share some with the one
// before it, and no output is left over; they come out the same twice. A row is no shorter than a group.
inline int64_t group_begin(int64_t group, int64_t lanes, int64_t length) {
    return group * lanes < length - lanes ? group * lanes : length - lanes;
}

}  // namespace dropgen

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define DROPGEN_LANES
#define DROPGEN_INLINE inline __attribute__((always_inline))
#define DROPGEN_8_LANES __attribute__((target("avx2"), noinline)) void
#define DROPGEN_16_LANES __attribute__((target("avx512f"), noinline)) void

namespace dropgen {

template <int LANES>
struct Lanes {
    typedef float Floats __attribute__((vector_size(4 * LANES)));
    typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
};

template <typename Vector, typename Number>
DROPGEN_INLINE void load(const Number* from, Vector& vector) {
    memcpy(&vector, from, sizeof vector);
}

template <typename Vector, typename Number>
DROPGEN_INLINE void store(const Vector& vector, Number* to) {
    memcpy(to, &vector, sizeof vector);
}

}  // namespace dropgen
#endif
