// Stores that do not first read what they overwrite: for results larger than the caches, which nobody reads soon.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace dropgen {

// The largest cache. A result larger than it leaves the caches anyway, a smaller one is better kept there; defined in
// host.cpp.
int64_t cache_bytes();

// A row that was computed in cache goes to memory: whole lines past the caches, for half a line would have to be read
// after all. After its last row a thread must call streamed().
inline void stream_row(const float* from, int64_t count, float* to) {
#if defined(__SSE2__)
    constexpr int64_t LINE = 64, AT_ONCE = LINE / sizeof(float);
    int64_t x = 0;
    while (x < count && reinterpret_cast<uintptr_t>(to + x) % LINE) to[x] = from[x], ++x;
    for (; x + AT_ONCE <= count; x += AT_ONCE)
        for (int64_t i = 0; i < AT_ONCE; i += 4) _mm_stream_ps(to + x + i, _mm_loadu_ps(from + x + i));
    for (; x < count; ++x) to[x] = from[x];
#else
    memcpy(to, from, count * sizeof(float));
#endif
}

inline void streamed() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

}  // namespace dropgen
