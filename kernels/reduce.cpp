// reduce on the host: extremes of windows (OpenMP over windows and channels) and histograms of digits (OpenMP over
// turns, each thread with counts of its own). Shapes were checked in reduce.py.

#include "prefetch.h"
#include "reduce.h"

#include <omp.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace py = pybind11;

namespace dropgen {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<int32_t, py::array::c_style>;
using Counts = py::array_t<int64_t, py::array::c_style>;

// Side by side, not one after another: a chain of comparisons would wait for each.
constexpr int SIDE_BY_SIDE = 32;

struct Extremes {
    float low[SIDE_BY_SIDE], high[SIDE_BY_SIDE];
};

DROPGEN_ROW row_extremes(const float* __restrict row, int64_t count, Extremes* __restrict found) {
    int64_t x = 0;
    for (; x + SIDE_BY_SIDE <= count; x += SIDE_BY_SIDE)
        for (int i = 0; i < SIDE_BY_SIDE; ++i) {
            found->low[i] = row[x + i] < found->low[i] ? row[x + i] : found->low[i];
            found->high[i] = row[x + i] > found->high[i] ? row[x + i] : found->high[i];
        }
    for (; x < count; ++x) {
        found->low[0] = std::min(found->low[0], row[x]);
        found->high[0] = std::max(found->high[0], row[x]);
    }
}

void extremes(const Floats& volume, const Ints& starts, int64_t window_z, int64_t window_y, int64_t window_x,
              Floats& out) {
    const int64_t channels = volume.shape(0), windows = starts.shape(0);
    const Shape size{volume.shape(1), volume.shape(2), volume.shape(3)};
    const float* in = volume.data();
    const int32_t* start = starts.data();
    float* to = out.mutable_data();

    py::gil_scoped_release released;
#pragma omp parallel for schedule(dynamic) num_threads(thread_count())
    for (int64_t i = 0; i < windows * channels; ++i) {
        const int32_t* s = start + 3 * (i / channels);
        const Span zs = inside(s[0], window_z, size.z), ys = inside(s[1], window_y, size.y);
        const Span xs = inside(s[2], window_x, size.x);
        Extremes found;
        std::fill_n(found.low, SIDE_BY_SIDE, std::numeric_limits<float>::infinity());
        std::fill_n(found.high, SIDE_BY_SIDE, -std::numeric_limits<float>::infinity());
        if (xs.first < xs.last)
            for (int64_t pz = zs.first; pz < zs.last; ++pz)
                for (int64_t py = ys.first; py < ys.last; ++py) {
                    const int64_t z = s[0] + pz, y = s[1] + py;
                    const float* row = in + ((i % channels * size.z + z) * size.y + y) * size.x + s[2];
                    if (py + ROWS_AHEAD < ys.last) prefetch(row + ROWS_AHEAD * size.x + xs.first, xs.last - xs.first);
                    row_extremes(row + xs.first, xs.last - xs.first, &found);
                }
        to[2 * i] = *std::min_element(found.low, found.low + SIDE_BY_SIDE);
        to[2 * i + 1] = *std::max_element(found.high, found.high + SIDE_BY_SIDE);
    }
}

// Counts that neighbours add to, in turn: one table would make each wait for the one before it where values repeat.
constexpr int TABLES = 8;
constexpr int64_t PIECE = 1024;       // digits found at once: a page of values
constexpr int AT_ONCE = 16;           // digits counted at once: a cache line of values
constexpr int64_t TURN = 64 * PIECE;  // values that a thread takes at a time: cores may not be equally fast

// Counts from one table to the next: the last bin takes what does not count. Half a kilobyte more than a multiple of
// 4 KiB, for a load waits for a store before it whose address has the same last 12 bits, as if it were the same one.
inline int64_t table_step(int64_t bins) { return (bins + 1 + 511) / 512 * 512 + 64; }

// The digit of each value, or `bins` for a value whose higher bits are not the prefix's.
DROPGEN_ROW digits_of(const float* __restrict in, int64_t count, Digit digit, uint32_t bins,
                      uint32_t* __restrict found) {
    if (digit.shift + digit.bits >= 32) {
        for (int64_t i = 0; i < count; ++i) found[i] = digit_of(key_of(in[i]), digit);
        return;
    }
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t key = key_of(in[i]);
        found[i] = counts_for(key, digit) ? digit_of(key, digit) : bins;
    }
}

// `tables` is (TABLES, table_step(bins)).
void count_digits(const float* in, int64_t count, const Digit& digit, uint32_t bins, int64_t* tables) {
    alignas(64) uint32_t found[PIECE];
    const int64_t step = table_step(bins);
    for (int64_t first = 0; first < count; first += PIECE) {
        const int64_t here = std::min(PIECE, count - first);
        digits_of(in + first, here, digit, bins, found);
        int64_t i = 0;
        for (; i + AT_ONCE <= here; i += AT_ONCE) {
            // The processor does not see the next page coming while it counts this one.
            __builtin_prefetch(in + first + PIECE + i);
#pragma GCC unroll 16
            for (int t = 0; t < AT_ONCE; ++t) ++tables[t % TABLES * step + found[i + t]];
        }
        for (; i < here; ++i) ++tables[found[i]];
    }
}

void histogram(const Floats& values, int shift, int bits, uint32_t prefix, Counts& out) {
    const int64_t count = values.size(), bins = int64_t(1) << bits;
    const float* in = values.data();
    int64_t* to = out.mutable_data();
    const int threads = thread_count();
    const Digit digit{shift, bits, prefix};
    // Allocated here: an exception must not leave a parallel region.
    std::vector<std::vector<int64_t>> own(threads, std::vector<int64_t>(TABLES * table_step(bins)));

    py::gil_scoped_release released;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t first = 0; first < count; first += TURN)
        count_digits(in + first, std::min(TURN, count - first), digit, uint32_t(bins),
                     own[omp_get_thread_num()].data());
    for (int64_t bin = 0; bin < bins; ++bin) {
        to[bin] = 0;
        for (const auto& tables : own)
            for (int t = 0; t < TABLES; ++t) to[bin] += tables[t * table_step(bins) + bin];
    }
}

}  // namespace

void bind_reduce(py::module_& module) {
    module.def("extremes", &extremes, py::arg("volume").noconvert(), py::arg("starts").noconvert(),
               py::arg("window_z"), py::arg("window_y"), py::arg("window_x"), py::arg("out").noconvert());
    module.def("histogram", &histogram, py::arg("values").noconvert(), py::arg("shift"), py::arg("bits"),
               py::arg("prefix"), py::arg("out").noconvert());
}

}  // namespace dropgen
