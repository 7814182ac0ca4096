// Vectors that begin on a cache line: a 64-byte store across two lines takes several times as long, and malloc alone
// aligns to 16, so that a kernel's speed would depend on the heap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace dropgen {

constexpr std::size_t LINE_BYTES = 64;

template <typename T>
struct OnLines {
    using value_type = T;

    OnLines() = default;
    template <typename Other>
    OnLines(const OnLines<Other>&) {}

    T* allocate(std::size_t count) {
        return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(LINE_BYTES)));
    }
    void deallocate(T* at, std::size_t) { ::operator delete(at, std::align_val_t(LINE_BYTES)); }

    friend bool operator==(const OnLines&, const OnLines&) { return true; }
    friend bool operator!=(const OnLines&, const OnLines&) { return false; }
};

template <typename T>
using Aligned = std::vector<T, OnLines<T>>;

// The next length at which a row of floats ends on a cache line.
inline int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace dropgen
