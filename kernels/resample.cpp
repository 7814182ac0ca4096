// resample on the host: OpenMP over the (channel, z) planes of the output. A thread blends the source rows that an output
// row needs along z, each once for a plane, then along y, then along x. Shapes and tap ranges were checked in
// resample.py.

#include "aligned.h"
#include "prefetch.h"
#include "resample.h"
#include "resample_along_x.h"
#include "stream.h"

#include <omp.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <vector>

namespace py = pybind11;

namespace dropgen {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<int32_t, py::array::c_style>;

template <typename Voxel>
struct Source {
    const Voxel* voxels;
    int64_t size_y, size_x;
    Steps steps;
};

template <typename Voxel>
DROPGEN_ROW start_row(const Voxel* __restrict from, int64_t step, int64_t count, float weight,
                      float* __restrict row) {
    if (step == 1)
        for (int64_t x = 0; x < count; ++x) row[x] = with_tap(0.0f, weight, float(from[x]));
    else
        for (int64_t x = 0; x < count; ++x) row[x] = with_tap(0.0f, weight, float(from[x * step]));
}

template <typename Voxel>
DROPGEN_ROW add_row(const Voxel* __restrict from, int64_t step, int64_t count, float weight, float* __restrict row) {
    if (step == 1)
        for (int64_t x = 0; x < count; ++x) row[x] = with_tap(row[x], weight, float(from[x]));
    else
        for (int64_t x = 0; x < count; ++x) row[x] = with_tap(row[x], weight, float(from[x * step]));
}

// TAPS rows, `apart` from each other, in one pass: the sum stays in a register.
template <int TAPS, typename Voxel>
DROPGEN_ROW blend_taps(const Voxel* __restrict from, int64_t apart, int64_t count, const float* __restrict weight,
                       float* __restrict row) {
    for (int64_t x = 0; x < count; ++x) {
        float sum = 0.0f;
#pragma GCC unroll 4
        for (int t = 0; t < TAPS; ++t) sum = with_tap(sum, weight[t], float(from[t * apart + x]));
        row[x] = sum;
    }
}

// The rows of `count` taps, each `length` voxels that are `step` apart, summed.
template <typename Voxel>
void blend_rows(const Voxel* from, int64_t apart, int64_t step, int64_t length, const float* weight, int32_t count,
                float* row) {
    if (step == 1 && count == 2) return blend_taps<2, Voxel>(from, apart, length, weight, row);
    if (step == 1 && count == 3) return blend_taps<3, Voxel>(from, apart, length, weight, row);
    if (step == 1 && count == 4) return blend_taps<4, Voxel>(from, apart, length, weight, row);
    start_row<Voxel>(from, step, length, weight[0], row);
    for (int32_t t = 1; t < count; ++t) add_row<Voxel>(from + t * apart, step, length, weight[t], row);
}

DROPGEN_ROW normalise_row(float* __restrict row, int64_t count, ChannelNormalisation n) {
    for (int64_t x = 0; x < count; ++x) row[x] = normalise(row[x], n);
}

// One source row that alone makes an output row: all three axes and the normalisation in one pass.
template <typename Voxel>
DROPGEN_ROW single_row(const Voxel* __restrict from, int64_t count, float weight_z, float weight_y,
                       const float* __restrict weight_x, ChannelNormalisation n, float* __restrict out) {
    for (int64_t x = 0; x < count; ++x) {
        const float along_z = with_tap(0.0f, weight_z, float(from[x]));
        out[x] = normalise(with_tap(0.0f, weight_x[x], with_tap(0.0f, weight_y, along_z)), n);
    }
}

// An output plane (height, width) of single rows; `row` is where they are made if they are streamed.
template <typename Voxel>
void single_plane(const Source<Voxel>& source, int64_t channel, const Taps& z, const Taps& y, int64_t oz,
                  int64_t height, const float* weight_x, const ChannelNormalisation& n, bool streams, float* row,
                  float* out) {
    for (int64_t oy = 0; oy < height; ++oy, out += source.size_x) {
        const Voxel* from = source.voxels + channel * source.steps.channel + z.first[oz] * source.steps.z +
                            y.first[oy] * source.steps.y;
        single_row<Voxel>(from, source.size_x, z.weight[oz * z.most], y.weight[oy * y.most], weight_x, n,
                          streams ? row : out);
        if (streams) stream_row(row, source.size_x, out);
    }
}

// Source rows blended along z for one output plane, each once, as many as an output row takes: they stay in cache.
class RowsAlongZ {
public:
    RowsAlongZ(int64_t most, int64_t length) : length_(whole_lines(length)), held_(most), rows_(most * length_) {}

    void next_plane() { std::fill(held_.begin(), held_.end(), -1); }

    // The row at y; `blend` makes it where it is not held. Rows of one output lie side by side, so none takes
    // another's place.
    template <typename Blend>
    const float* row(int64_t y, const Blend& blend) {
        const int64_t place = y % int64_t(held_.size());
        float* own = rows_.data() + place * length_;
        if (held_[place] != y) blend(y, own);
        held_[place] = y;
        return own;
    }

private:
    int64_t length_;
    std::vector<int64_t> held_;
    Aligned<float> rows_;
};

template <int TAPS>
DROPGEN_ROW sum_rows(const float* const* __restrict rows, const float* __restrict weight, int64_t length,
                     float* __restrict out) {
    for (int64_t x = 0; x < length; ++x) {
        float sum = 0.0f;
#pragma GCC unroll 4
        for (int t = 0; t < TAPS; ++t) sum = with_tap(sum, weight[t], rows[t][x]);
        out[x] = sum;
    }
}

// The output row oy of the plane before its taps along x.
template <typename Blend>
void blend_along_y(const Taps& y, int64_t oy, RowsAlongZ& along_z, const Blend& blend, int64_t length,
                   std::vector<const float*>& rows, float* out) {
    const float* weight = y.weight + oy * y.most;
    const int32_t count = y.count[oy];
    for (int32_t t = 0; t < count; ++t) rows[t] = along_z.row(y.first[oy] + t, blend);
    if (count == 2) return sum_rows<2>(rows.data(), weight, length, out);
    if (count == 3) return sum_rows<3>(rows.data(), weight, length, out);
    if (count == 4) return sum_rows<4>(rows.data(), weight, length, out);
    start_row<float>(rows[0], 1, length, weight[0], out);
    for (int32_t t = 1; t < count; ++t) add_row<float>(rows[t], 1, length, weight[t], out);
}

template <typename Voxel>
void resample(const py::array_t<Voxel>& volume, const std::array<Ints, 3>& first, const std::array<Ints, 3>& count,
              const std::array<Floats, 3>& weight, const Floats& normalisation, Floats& out) {
    const auto taps = [&](int axis) {
        return Taps{first[axis].data(), count[axis].data(), weight[axis].data(), weight[axis].shape(1)};
    };
    const Taps z = taps(0), y = taps(1), x = taps(2);
    const auto step = [&](int axis) { return volume.strides(axis) / int64_t(sizeof(Voxel)); };
    const Source<Voxel> source{volume.data(), volume.shape(2), volume.shape(3), {step(0), step(1), step(2), step(3)}};
    const int64_t channels = out.shape(0), depth = out.shape(1), height = out.shape(2), width = out.shape(3);
    const float* table = normalisation.data();
    float* to = out.mutable_data();
    const int threads = thread_count();
    const TapsAlongX taps_x = along_x_of(x, width, source.size_x);
    // Allocated here: an exception must not leave a parallel region.
    std::vector<RowsAlongZ> rows_along_z(threads, RowsAlongZ(y.most, source.size_x));
    std::vector<std::vector<const float*>> tap_rows(threads, std::vector<const float*>(y.most));
    std::vector<Aligned<float>> rows(threads, Aligned<float>(source.size_x + ROOM));

    const bool single_yx =
        source.steps.x == 1 && taps_x.identity &&
        std::all_of(y.count, y.count + height, [](int32_t taps) { return taps == 1; });

    const bool streams = out.nbytes() > cache_bytes();

    py::gil_scoped_release released;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < channels * depth; ++i) {
        const int thread = omp_get_thread_num();
        if (single_yx && z.count[i % depth] == 1) {
            single_plane(source, i / depth, z, y, i % depth, height, taps_x.weight.data(),
                         channel_normalisation(table, channels, i / depth), streams,
                         rows[thread].data(), to + i * height * width);
            streamed();
            continue;
        }
        RowsAlongZ& along_z = rows_along_z[thread];
        along_z.next_plane();
        const int64_t oz = i % depth;
        const Voxel* plane = source.voxels + i / depth * source.steps.channel + z.first[oz] * source.steps.z;
        const auto blend_along_z = [&](int64_t row, float* blended) {
            if (source.steps.x == 1 && row + ROWS_AHEAD < source.size_y)
                for (int64_t t = 0; t < z.count[oz]; ++t)
                    prefetch(plane + (row + ROWS_AHEAD) * source.steps.y + t * source.steps.z, source.size_x);
            blend_rows<Voxel>(plane + row * source.steps.y, source.steps.z, source.steps.x, source.size_x,
                              z.weight + oz * z.most, z.count[oz], blended);
        };
        float* row = rows[thread].data();
        const ChannelNormalisation n = channel_normalisation(table, channels, i / depth);
        for (int64_t oy = 0; oy < height; ++oy) {
            blend_along_y(y, oy, along_z, blend_along_z, source.size_x, tap_rows[thread], row);
            float* own = to + (i * height + oy) * width;
            if (oy + ROWS_AHEAD < height) prefetch(own + ROWS_AHEAD * width, width);
            along_x(row, taps_x, x.most, width, own);
            normalise_row(own, width, n);
        }
    }
}

template <typename Voxel>
void bind(py::module_& module) {
    module.def("resample", &resample<Voxel>, py::arg("volume").noconvert(), py::arg("first").noconvert(),
               py::arg("count").noconvert(), py::arg("weight").noconvert(), py::arg("normalisation").noconvert(),
               py::arg("out").noconvert());
}

}  // namespace

void bind_resample(py::module_& module) {
    bind<float>(module);
    bind<int16_t>(module);
    bind<uint16_t>(module);
    bind<uint8_t>(module);
}

}  // namespace dropgen
