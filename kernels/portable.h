// What the host and CUDA builds share: the function qualifier, shapes, and where a window meets a volume.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define DROPGEN_HD __host__ __device__
#else
#define DROPGEN_HD
#endif

// Row functions are compiled three times on x86-64 with glibc (AVX-512, AVX2, any) and chosen when the library loads: a
// wheel must run on any x86-64. All round alike: contraction into fused multiply-adds is off.
#if !defined(__CUDACC__) && defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && \
    !defined(__clang__)
#define DROPGEN_ROW __attribute__((target_clones("arch=x86-64-v4", "avx2", "default"), noinline)) void
#else
#define DROPGEN_ROW void
#endif

namespace dropgen {

struct Shape {
    int64_t z, y, x;
};

// The part of a window that lies inside the volume, along one axis, as window indices [first, last).
//
//     start -2, window 5, extent 10         volume      0 1 2 3 4 5 6 7 8 9
//     first  2, last   5                    window  0 1 2 3 4
//
// A window that misses the volume has first >= last.
struct Span {
    int64_t first, last;
};

DROPGEN_HD inline Span inside(int64_t start, int64_t window, int64_t extent) {
    const int64_t first = start < 0 ? -start : 0;
    const int64_t last = start + window > extent ? extent - start : window;
    return {first, last};
}

DROPGEN_HD inline bool contains(int64_t extent, int64_t index) { return index >= 0 && index < extent; }

// Logits come in float, half or bfloat16; sums are float. The two short types are carried as their bits, and
// widened exactly: every half and every bfloat16 is a float.
struct Half {
    uint16_t bits;
};

struct BFloat16 {
    uint16_t bits;
};

DROPGEN_HD inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

DROPGEN_HD inline float widened(float value) { return value; }

DROPGEN_HD inline float widened(BFloat16 value) { return float_of_bits(uint32_t(value.bits) << 16); }

// The exponent moves from 5 to 8 bits. A subnormal half is made one too large by the hidden bit, which is then
// taken off again: no subnormal float appears, so a flush to zero changes nothing.
DROPGEN_HD inline float widened(Half value) {
#ifdef __CUDA_ARCH__
    return __half2float(__ushort_as_half(value.bits));  // the same value, in one instruction
#else
    const uint32_t magnitude = (value.bits & 0x7fffu) << 13, sign = (value.bits & 0x8000u) << 16;
    const uint32_t exponent = magnitude & 0x0f800000u;
    const uint32_t bias = exponent == 0x0f800000u ? 224u << 23 : exponent ? 112u << 23 : 113u << 23;
    const float wide = float_of_bits(magnitude + bias);
    const float result = exponent ? wide : wide - float_of_bits(113u << 23);
    uint32_t bits;
    memcpy(&bits, &result, sizeof bits);
    return float_of_bits(bits | sign);
#endif
}

#ifndef __CUDACC__
// How many OpenMP threads a kernel uses; defined in host.cpp, set from Python.
int thread_count();
#endif

}  // namespace dropgen
