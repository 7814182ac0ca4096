// statistics on the host: OpenMP over pieces of planes, each with a table of its own. Shapes were checked in
// statistics.py.

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

// One run of equal labels along x.
struct Run {
    int64_t z, y, first, last, sum, squares;
};

inline void add(int64_t* row, const Run& run) {
    row[COUNT] += run.last - run.first;
    row[SUM] += run.sum;
    row[SQUARES] += run.squares;
    const int64_t low[3] = {run.z, run.y, run.first}, high[3] = {run.z, run.y, run.last - 1};
    for (int axis = 0; axis < 3; ++axis) {
        row[LOW_Z + axis] = std::min(row[LOW_Z + axis], low[axis]);
        row[HIGH_Z + axis] = std::max(row[HIGH_Z + axis], high[axis]);
    }
}

// In two passes: in one, the compiler sees which clamped values are known and branches on them instead of using
// vectors.
DROPGEN_ROW clamp_row(const float* __restrict value, int64_t count, float offset, float scale,
                      float* __restrict clamped) {
    for (int64_t x = 0; x < count; ++x) clamped[x] = clamped_level(value[x], offset, scale);
}

DROPGEN_ROW round_row(const float* __restrict clamped, int64_t count, int32_t* __restrict levels) {
    for (int64_t x = 0; x < count; ++x) levels[x] = rounded_level(clamped[x]);
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
        if (found != same) break;
    }
    while (x < count && label[x] == label[first]) ++x;
    return x;
}

// All runs of one row of the volume. A level is below 2^16, so its square fits 32 bits.
template <typename Label>
DROPGEN_ROW add_row(const Label* __restrict label, const int32_t* __restrict levels, int64_t count, int64_t z,
                    int64_t y, int64_t* __restrict table) {
    for (int64_t first = 0; first < count;) {
        const int64_t last = run_end(label, first, count);
        uint64_t sum = 0, squares = 0;
        for (int64_t x = first; x < last; ++x) {
            const uint32_t own = uint32_t(levels[x]);
            sum += own;
            squares += own * own;
        }
        add(table + int64_t(label[first]) * COLUMNS, {z, y, first, last, int64_t(sum), int64_t(squares)});
        first = last;
    }
}

template <typename Label>
void statistics(const py::array_t<Label, py::array::c_style>& labels, const Floats& intensities, float offset,
                float scale, int64_t first_z, Table& table) {
    const Shape size{labels.shape(0), labels.shape(1), labels.shape(2)};
    const int64_t rows = table.shape(0);
    const Label* label = labels.data();
    const float* value = intensities.data();
    int64_t* to = table.mutable_data();
    const int threads = thread_count();
    // Allocated here: an exception must not leave a parallel region.
    std::vector<std::vector<int64_t>> own(threads, std::vector<int64_t>(to, to + rows * COLUMNS));
    std::vector<std::vector<int32_t>> rows_of_levels(threads, std::vector<int32_t>(size.x));
    std::vector<std::vector<float>> clamped_rows(threads, std::vector<float>(size.x));
    for (auto& one : own)
        for (int64_t i = 0; i < rows; ++i) std::fill_n(one.data() + i * COLUMNS, 3, int64_t(0));

    py::gil_scoped_release released;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t plane_row = 0; plane_row < size.z * size.y; ++plane_row) {
        int64_t* mine = own[omp_get_thread_num()].data();
        const Label* in = label + plane_row * size.x;
        int32_t* levels = rows_of_levels[omp_get_thread_num()].data();
        float* clamped = clamped_rows[omp_get_thread_num()].data();
        clamp_row(value + plane_row * size.x, size.x, offset, scale, clamped);
        round_row(clamped, size.x, levels);
        add_row<Label>(in, levels, size.x, first_z + plane_row / size.y, plane_row % size.y, mine);
    }
    for (const auto& one : own)
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t* from = one.data() + i * COLUMNS;
            int64_t* row = to + i * COLUMNS;
            for (int c = COUNT; c <= SQUARES; ++c) row[c] += from[c];
            for (int c = LOW_Z; c <= LOW_X; ++c) row[c] = std::min(row[c], from[c]);
            for (int c = HIGH_Z; c <= HIGH_X; ++c) row[c] = std::max(row[c], from[c]);
        }
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
