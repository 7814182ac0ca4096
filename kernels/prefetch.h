// Rows that come up soon. The processor sees what comes next only within a page of 4 KiB, and not where rows lie apart.
#pragma once

#include <cstdint>

#include "aligned.h"

namespace dropgen {

constexpr int64_t ROWS_AHEAD = 4;

template <typename T>
inline void prefetch(const T* row, int64_t count) {
    for (int64_t x = 0; x < count; x += int64_t(LINE_BYTES / sizeof(T))) __builtin_prefetch(row + x);
}

// Of what will be written, not read.
template <typename T>
inline void prefetch_to_write(T* row, int64_t count) {
    for (int64_t x = 0; x < count; x += int64_t(LINE_BYTES / sizeof(T))) __builtin_prefetch(row + x, 1);
}

}  // namespace dropgen
