// statistics on the host: OpenMP over pieces of planes, each with a table of its own. Shapes were checked in
// statistics.py.

#include "aligned.h"
#include "prefetch.h"
#include "statistics.h"

#include <omp.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <vector>

namespace py = pybind11;

namespace dropgen {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Table = py::array_t<int64_t, py::array::c_style>;

// Where a voxel lies: z, y, x and one that nobody reads, so that one instruction takes the least of all three.
typedef int32_t Place __attribute__((vector_size(16)));

// What a thread found of one label, a cache line.
struct alignas(64) Found {
    int64_t count = 0, sum = 0, squares = 0;
    Place low = {INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX}, high = {-1, -1, -1, -1};
};

// In two passes: in one, the compiler sees which clamped values are known and branches on them instead of using
// vectors.
DROPGEN_ROW clamp_row(const float* __restrict value, int64_t count, float offset, float scale,
                      float* __restrict clamped) {
    for (int64_t x = 0; x < count; ++x) clamped[x] = clamped_level(value[x], offset, scale);
}

DROPGEN_ROW round_row(const float* __restrict clamped, int64_t count, int32_t* __restrict levels) {
    for (int64_t x = 0; x < count; ++x) levels[x] = rounded_level(clamped[x]);
}

// A run's sum of levels and its sum of squares share a word, so that at its end one vector is added across, not two:
// 256 levels below 2^16 sum to less than 2^24, their squares to less than 2^40.
constexpr int64_t MOST_RUN = 256;
constexpr int SUM_BITS = 24;

template <typename Label>
DROPGEN_ROW greatest(const Label* __restrict label, int64_t count, Label* __restrict found) {
    Label most = 0;
    for (int64_t x = 0; x < count; ++x) most = label[x] > most ? label[x] : most;
    *found = most;
}

// Where the run of the label at `first` ends: eight bytes of labels at a time.
template <typename Label>
inline int64_t run_end(const Label* label, int64_t first, int64_t count) {
    constexpr int64_t AT_ONCE = sizeof(uint64_t) / sizeof(Label);
    const uint64_t same = label[first] * (~uint64_t(0) / Label(~Label(0)));  // the label in every place
    int64_t x = first + 1;
    for (; x + AT_ONCE <= count; x += AT_ONCE) {
        uint64_t found;
        memcpy(&found, label + x, sizeof found);
        if (found != same) return x + __builtin_ctzll(found ^ same) / (8 * int64_t(sizeof(Label)));
    }
    while (x < count && label[x] == label[first]) ++x;
    return x;
}

// All runs of the row of the volume at (z, y).
template <typename Label>
DROPGEN_ROW add_row(const Label* __restrict label, const int32_t* __restrict levels, int64_t count, int32_t z,
                    int32_t y, Found* __restrict found) {
    for (int64_t first = 0; first < count;) {
        const int64_t last = run_end(label, first, std::min(count, first + MOST_RUN));
        uint64_t both = 0;
        for (int64_t x = first; x < last; ++x) {
            const uint32_t own = uint32_t(levels[x]);
            both += (uint64_t(own * own) << SUM_BITS) + own;
        }
        Found& mine = found[label[first]];
        mine.count += last - first;
        mine.sum += int64_t(both & ((1 << SUM_BITS) - 1));
        mine.squares += int64_t(both >> SUM_BITS);
        const Place begin = {z, y, int32_t(first), 0}, end = {z, y, int32_t(last - 1), 0};
        mine.low = begin < mine.low ? begin : mine.low;
        mine.high = end > mine.high ? end : mine.high;
        first = last;
    }
}

// What a thread found joins a row of the table.
void join(const Found& found, int64_t first_z, int64_t* row) {
    if (!found.count) return;
    row[COUNT] += found.count;
    row[SUM] += found.sum;
    row[SQUARES] += found.squares;
    for (int axis = 0; axis < 3; ++axis) {
        const int64_t offset = axis ? 0 : first_z;
        row[LOW_Z + axis] = std::min(row[LOW_Z + axis], found.low[axis] + offset);
        row[HIGH_Z + axis] = std::max(row[HIGH_Z + axis], found.high[axis] + offset);
    }
}

// Returns the greatest label; where the table has no row for it, the table stays as it is.
template <typename Label>
int64_t statistics(const py::array_t<Label, py::array::c_style>& labels, const Floats& intensities, float offset,
                   float scale, int64_t first_z, Table& table) {
    const Shape size{labels.shape(0), labels.shape(1), labels.shape(2)};
    const int64_t rows = table.shape(0);
    const Label* label = labels.data();
    const float* value = intensities.data();
    int64_t* to = table.mutable_data();
    const int threads = thread_count();
    // Allocated here: an exception must not leave a parallel region.
    std::vector<std::vector<Found>> own(threads, std::vector<Found>(rows));
    std::vector<Aligned<int32_t>> rows_of_levels(threads, Aligned<int32_t>(size.x));
    std::vector<Aligned<float>> clamped_rows(threads, Aligned<float>(size.x));

    int64_t most = 0;
    py::gil_scoped_release released;
#pragma omp parallel for schedule(dynamic, 256) num_threads(threads) reduction(max : most)
    for (int64_t plane_row = 0; plane_row < size.z * size.y; ++plane_row) {
        Found* mine = own[omp_get_thread_num()].data();
        const Label* in = label + plane_row * size.x;
        const float* intensity = value + plane_row * size.x;
        if (plane_row + ROWS_AHEAD < size.z * size.y) {
            prefetch(in + ROWS_AHEAD * size.x, size.x);
            prefetch(intensity + ROWS_AHEAD * size.x, size.x);
        }
        Label own_most;
        greatest<Label>(in, size.x, &own_most);
        most = std::max(most, int64_t(own_most));
        if (most >= rows) continue;
        int32_t* levels = rows_of_levels[omp_get_thread_num()].data();
        float* clamped = clamped_rows[omp_get_thread_num()].data();
        clamp_row(intensity, size.x, offset, scale, clamped);
        round_row(clamped, size.x, levels);
        add_row<Label>(in, levels, size.x, int32_t(plane_row / size.y), int32_t(plane_row % size.y), mine);
    }
    if (most >= rows) return most;
    for (const auto& one : own)
        for (int64_t i = 0; i < rows; ++i) join(one[i], first_z, to + i * COLUMNS);
    return most;
}

template <typename Label>
void bind(py::module_& module) {
    module.def("statistics", &statistics<Label>, py::arg("labels").noconvert(), py::arg("intensities").noconvert(),
               py::arg("offset"), py::arg("scale"), py::arg("first_z"), py::arg("table").noconvert());
}

}  // namespace

void bind_statistics(py::module_& module) {
    bind<uint8_t>(module);
    bind<uint16_t>(module);
}

}  // namespace dropgen
