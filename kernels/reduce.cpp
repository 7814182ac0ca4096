// reduce on the host: extremes of windows (OpenMP over planes) and histograms of digits (OpenMP over
// turns, each thread with counts of its own). Shapes were checked in reduce.py.

#include "prefetch.h"
#include "reduce.h"

#include <omp.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <limits>
#include <map>
#include <utility>
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

    Extremes() {
        std::fill_n(low, SIDE_BY_SIDE, std::numeric_limits<float>::infinity());
        std::fill_n(high, SIDE_BY_SIDE, -std::numeric_limits<float>::infinity());
    }
};

struct Ends {
    float low = std::numeric_limits<float>::infinity(), high = -std::numeric_limits<float>::infinity();
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

// Where windows lie in y and x: the windows of one column differ in z alone, and share what is found in a plane.
struct Columns {
    std::vector<Span> ys, xs;          // inside the volume, as its indices
    std::vector<int64_t> of_window;

    Columns(const int32_t* starts, int64_t windows, int64_t window_y, int64_t window_x, const Shape& size)
        : of_window(windows) {
        std::map<std::pair<int32_t, int32_t>, int64_t> known;
        for (int64_t i = 0; i < windows; ++i) {
            const int32_t y = starts[3 * i + 1], x = starts[3 * i + 2];
            const auto [place, is_new] = known.try_emplace({y, x}, count());
            of_window[i] = place->second;
            if (!is_new) continue;
            const Span in_y = inside(y, window_y, size.y), in_x = inside(x, window_x, size.x);
            ys.push_back({y + in_y.first, y + in_y.last});
            xs.push_back({x + in_x.first, std::max(x + in_x.first, x + in_x.last)});
        }
    }

    int64_t count() const { return int64_t(ys.size()); }
};

// The extremes of each column in one plane: its rows come from memory once, however many windows cover them.
void plane_extremes(const float* plane, const Shape& size, const Columns& columns, std::vector<Extremes>& found,
                    Ends* to) {
    std::fill(found.begin(), found.end(), Extremes());
    for (int64_t y = 0; y < size.y; ++y) {
        const float* row = plane + y * size.x;
        if (y + ROWS_AHEAD < size.y) prefetch(row + ROWS_AHEAD * size.x, size.x);
        for (int64_t c = 0; c < columns.count(); ++c)
            if (columns.ys[c].first <= y && y < columns.ys[c].last)
                row_extremes(row + columns.xs[c].first, columns.xs[c].last - columns.xs[c].first, &found[c]);
    }
    for (int64_t c = 0; c < columns.count(); ++c)
        to[c] = {*std::min_element(found[c].low, found[c].low + SIDE_BY_SIDE),
                 *std::max_element(found[c].high, found[c].high + SIDE_BY_SIDE)};
}

void extremes(const Floats& volume, const Ints& starts, int64_t window_z, int64_t window_y, int64_t window_x,
              Floats& out) {
    const int64_t channels = volume.shape(0), windows = starts.shape(0);
    const Shape size{volume.shape(1), volume.shape(2), volume.shape(3)};
    const float* in = volume.data();
    const int32_t* start = starts.data();
    float* to = out.mutable_data();

    py::gil_scoped_release released;
    const Columns columns(start, windows, window_y, window_x, size);
    std::vector<Ends> planes(channels * size.z * columns.count());
    const int threads = thread_count();
    // Allocated here: an exception must not leave a parallel region.
    std::vector<std::vector<Extremes>> own(threads, std::vector<Extremes>(columns.count()));
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t plane = 0; plane < channels * size.z; ++plane)
        plane_extremes(in + plane * size.y * size.x, size, columns, own[omp_get_thread_num()],
                       planes.data() + plane * columns.count());
    for (int64_t i = 0; i < windows * channels; ++i) {
        const int64_t window = i / channels, first_plane = i % channels * size.z + start[3 * window];
        const Span zs = inside(start[3 * window], window_z, size.z);
        Ends ends;
        for (int64_t pz = zs.first; pz < zs.last; ++pz) {
            const Ends& here = planes[(first_plane + pz) * columns.count() + columns.of_window[window]];
            ends = {std::min(ends.low, here.low), std::max(ends.high, here.high)};
        }
        to[2 * i] = ends.low;
        to[2 * i + 1] = ends.high;
    }
}

// Counts that neighbours add to, in turn: one table would make each wait for the one before it where values repeat.
constexpr int TABLES = 8;
constexpr int64_t PIECE = 1024;       // digits found at once: a page of values
constexpr int AT_ONCE = 16;           // digits counted at once: a cache line of values
constexpr int64_t TURN = 64 * PIECE;  // values that a thread takes at a time: cores may not be equally fast

// Half the width of the result, so that twice the bins stay in the first cache. No table takes more than an eighth of the
// values: to overflow a bin would take 2^35 of them, 128 GiB.
using Count = uint32_t;

// Counts from one table to the next: the last bin takes what does not count. Half a kilobyte more than a multiple of
// 4 KiB, for a load waits for a store before it whose address has the same last 12 bits, as if it were the same one.
inline int64_t table_step(int64_t bins) {
    constexpr int64_t PAGE = 4096 / sizeof(Count);
    return (bins + 1 + PAGE - 1) / PAGE * PAGE + PAGE / 8;
}

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
void count_digits(const float* in, int64_t count, const Digit& digit, uint32_t bins, Count* tables) {
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
    std::vector<std::vector<Count>> own(threads, std::vector<Count>(TABLES * table_step(bins)));

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
