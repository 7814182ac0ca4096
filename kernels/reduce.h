// reduce, per voxel: the order of floats as whole numbers, so that extremes and counts need no atomics on floats
// and come out the same whatever the order.
#pragma once

#include "portable.h"

namespace dropgen {

// Rises with the value: of two numbers the greater has the greater key (-0 just below +0; no NaN).
DROPGEN_HD inline uint32_t key_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// One digit of a key, and whether all higher bits are those of `prefix`.
struct Digit {
    int shift, bits;
    uint32_t prefix;
};

DROPGEN_HD inline bool counts_for(uint32_t key, const Digit& digit) {
    const int above = digit.shift + digit.bits;
    return above >= 32 || (key >> above) == digit.prefix;
}

DROPGEN_HD inline uint32_t digit_of(uint32_t key, const Digit& digit) {
    return (key >> digit.shift) & ((1u << digit.bits) - 1u);
}

}  // namespace dropgen
