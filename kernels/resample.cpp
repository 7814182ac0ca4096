// resample on the host: OpenMP over the (channel, z) planes of the output. A thread blends the source planes that
// an output plane needs, then rows, then along x. Shapes and tap ranges were checked in resample.py.

#include "resample.h"

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

// The taps of x, tap by tap: tables (most, length), so that a tap of all outputs is one run. Beyond an output's own
// taps the weight is zero, which adds nothing to a sum that began at zero.
struct TapsAlongX {
    std::vector<int32_t> place;
    std::vector<float> weight;
    bool identity;
};

TapsAlongX along_x_of(const Taps& x, int64_t length, int64_t extent) {
    TapsAlongX taps{std::vector<int32_t>(x.most * length), std::vector<float>(x.most * length), length == extent};
    for (int64_t t = 0; t < x.most; ++t)
        for (int64_t i = 0; i < length; ++i) {
            const bool own = t < x.count[i];
            taps.place[t * length + i] = own ? x.first[i] + int32_t(t) : x.first[i];
            taps.weight[t * length + i] = own ? x.weight[i * x.most + t] : 0.0f;
            taps.identity = taps.identity && x.count[i] == 1 && x.first[i] == i;
        }
    return taps;
}

DROPGEN_ROW start_tap(const float* __restrict row, const int32_t* __restrict place, const float* __restrict weight,
                      int64_t length, float* __restrict out) {
    for (int64_t x = 0; x < length; ++x) out[x] = with_tap(0.0f, weight[x], row[place[x]]);
}

DROPGEN_ROW add_tap(const float* __restrict row, const int32_t* __restrict place, const float* __restrict weight,
                    int64_t length, float* __restrict out) {
    for (int64_t x = 0; x < length; ++x) out[x] = with_tap(out[x], weight[x], row[place[x]]);
}

DROPGEN_ROW weigh(const float* __restrict row, const float* __restrict weight, int64_t length,
                  float* __restrict out) {
    for (int64_t x = 0; x < length; ++x) out[x] = with_tap(0.0f, weight[x], row[x]);
}

template <int TAPS>
DROPGEN_ROW sum_taps(const float* __restrict row, const int32_t* __restrict place, const float* __restrict weight,
                     int64_t length, float* __restrict out) {
    for (int64_t x = 0; x < length; ++x) {
        float sum = 0.0f;
#pragma GCC unroll 4
        for (int t = 0; t < TAPS; ++t) sum = with_tap(sum, weight[t * length + x], row[place[t * length + x]]);
        out[x] = sum;
    }
}

void along_x(const float* row, const TapsAlongX& taps, int64_t most, int64_t length, float* out) {
    const int32_t* place = taps.place.data();
    const float* weight = taps.weight.data();
    if (taps.identity) return weigh(row, weight, length, out);
    if (most == 2) return sum_taps<2>(row, place, weight, length, out);
    if (most == 3) return sum_taps<3>(row, place, weight, length, out);
    if (most == 4) return sum_taps<4>(row, place, weight, length, out);
    start_tap(row, place, weight, length, out);
    for (int64_t t = 1; t < most; ++t) add_tap(row, place + t * length, weight + t * length, length, out);
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

// An output plane (height, width) of single rows.
template <typename Voxel>
void single_plane(const Source<Voxel>& source, int64_t channel, const Taps& z, const Taps& y, int64_t oz,
                  int64_t height, const float* weight_x, const ChannelNormalisation& n, float* out) {
    for (int64_t oy = 0; oy < height; ++oy) {
        const Voxel* from = source.voxels + channel * source.steps.channel + z.first[oz] * source.steps.z +
                            y.first[oy] * source.steps.y;
        single_row<Voxel>(from, source.size_x, z.weight[oz * z.most], y.weight[oy * y.most], weight_x, n,
                          out + oy * source.size_x);
    }
}

// The source's (size_y, size_x) plane blended along z for output plane oz.
template <typename Voxel>
void blend_plane(const Source<Voxel>& source, int64_t channel, const Taps& z, int64_t oz, float* plane) {
    for (int64_t y = 0; y < source.size_y; ++y) {
        const Voxel* from = source.voxels + channel * source.steps.channel + z.first[oz] * source.steps.z +
                            y * source.steps.y;
        blend_rows<Voxel>(from, source.steps.z, source.steps.x, source.size_x, z.weight + oz * z.most, z.count[oz],
                          plane + y * source.size_x);
    }
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
    std::vector<std::vector<float>> planes(threads, std::vector<float>(source.size_y * source.size_x));
    std::vector<std::vector<float>> rows(threads, std::vector<float>(source.size_x));

    const bool single_yx =
        source.steps.x == 1 && taps_x.identity &&
        std::all_of(y.count, y.count + height, [](int32_t taps) { return taps == 1; });

    py::gil_scoped_release released;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < channels * depth; ++i) {
        if (single_yx && z.count[i % depth] == 1) {
            single_plane(source, i / depth, z, y, i % depth, height, taps_x.weight.data(),
                         channel_normalisation(table, channels, i / depth), to + i * height * width);
            continue;
        }
        float *plane = planes[omp_get_thread_num()].data(), *row = rows[omp_get_thread_num()].data();
        blend_plane(source, i / depth, z, i % depth, plane);
        const ChannelNormalisation n = channel_normalisation(table, channels, i / depth);
        for (int64_t oy = 0; oy < height; ++oy) {
            blend_rows<float>(plane + y.first[oy] * source.size_x, source.size_x, 1, source.size_x,
                              y.weight + oy * y.most, y.count[oy], row);
            float* own = to + (i * height + oy) * width;
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
