// gather on the host: OpenMP over the (window, channel, z) planes of the batch. Shapes were checked in
// gather.py.

#include "gather.h"
#include "prefetch.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>

namespace py = pybind11;

namespace dropgen {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<int32_t, py::array::c_style>;

DROPGEN_ROW normalise_row(const float* __restrict in, int64_t count, ChannelNormalisation n,
                          float* __restrict out) {
    for (int64_t x = 0; x < count; ++x) out[x] = normalise(in[x], n);
}

// One (wy, wx) plane of one window; `plane` is the volume's plane at that z, or null outside the volume.
void gather_plane(const float* plane, const Shape& size, const Shape& window, int64_t start_y,
                  int64_t start_x, const ChannelNormalisation& n, float* out) {
    const Span ys = inside(start_y, window.y, size.y);
    const Span xs = inside(start_x, window.x, size.x);
    for (int64_t py = 0; py < window.y; ++py, out += window.x) {
        if (plane == nullptr || py < ys.first || py >= ys.last || xs.first >= xs.last) {
            std::fill(out, out + window.x, 0.0f);
            continue;
        }
        const float* in = plane + (start_y + py) * size.x + start_x + xs.first;
        if (py + ROWS_AHEAD < ys.last) prefetch(in + ROWS_AHEAD * size.x, xs.last - xs.first);
        if (py + ROWS_AHEAD < window.y) prefetch(out + ROWS_AHEAD * window.x, window.x);
        std::fill(out, out + xs.first, 0.0f);
        normalise_row(in, xs.last - xs.first, n, out + xs.first);
        std::fill(out + xs.last, out + window.x, 0.0f);
    }
}

void gather(const Floats& volume, const Ints& starts, const Floats& normalisation, Floats& out) {
    const int64_t channels = volume.shape(0);
    const Shape size{volume.shape(1), volume.shape(2), volume.shape(3)};
    const Shape window{out.shape(2), out.shape(3), out.shape(4)};
    const float* in = volume.data();
    const int32_t* start = starts.data();
    const float* table = normalisation.data();
    float* to = out.mutable_data();
    const int64_t planes = out.shape(0) * channels * window.z;

    py::gil_scoped_release released;
    // Dynamic: cores may not be equally fast.
#pragma omp parallel for schedule(dynamic, 8) num_threads(thread_count())
    for (int64_t i = 0; i < planes; ++i) {
        const int64_t pz = i % window.z;
        const int64_t channel = i / window.z % channels;
        const int32_t* s = start + 3 * (i / window.z / channels);
        const int64_t z = int64_t(s[0]) + pz;
        const float* plane = contains(size.z, z) ? in + (channel * size.z + z) * size.y * size.x : nullptr;
        gather_plane(plane, size, window, s[1], s[2], channel_normalisation(table, channels, channel),
                     to + i * window.y * window.x);
    }
}

}  // namespace

void bind_gather(py::module_& module) {
    module.def("gather", &gather, py::arg("volume").noconvert(), py::arg("starts").noconvert(),
               py::arg("normalisation").noconvert(), py::arg("out").noconvert());
}

}  // namespace dropgen
