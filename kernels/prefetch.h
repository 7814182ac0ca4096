// Rows that come up soon. The processor sees what comes next only within a page of 4 KiB, and not where rows lie apart.
#pragma once

#include <cstdint>

#include "aligned.h"

namespace dropgen {

constexpr int64_t ROWS_AHEAD = 4;

// Of a row to be read, or to be written: a store waits for its line, too.
template <typename T>
inline void prefetch(const T* row, int64_t count) {
    for (int64_t x = 0; x < count; x += int64_t(LINE_BYTES / sizeof(T))) __builtin_prefetch(row + x);
}

}  // namespace dropgen
