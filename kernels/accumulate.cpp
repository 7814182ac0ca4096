// accumulate on the host: OpenMP over the (k, z) planes of the windows' bounding box; within a plane the
// windows come in the order given, so the sum has the same bits whatever the number of threads. Shapes were
// checked in accumulate.py.

#include "accumulate.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define DROPGEN_F16C
#endif

namespace py = pybind11;

namespace dropgen {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<int32_t, py::array::c_style>;

struct Weights {
    const float *z, *y, *x;
};

template <typename Logit>
DROPGEN_ROW accumulate_row(float* __restrict sums, const Logit* __restrict logits, int64_t count,
                           float weight_z, float weight_y, const float* __restrict weights_x) {
    for (int64_t x = 0; x < count; ++x)
        sums[x] = accumulated(sums[x], window_weight(weight_z, weight_y, weights_x[x]), widened(logits[x]));
}

#ifdef DROPGEN_F16C
// The processor's own widening, in registers.
__attribute__((target("avx2,f16c"), noinline)) void accumulate_half_row(float* sums, const Half* logits, int64_t count,
                                                                        float weight_z, float weight_y,
                                                                        const float* weights_x) {
    const __m256 weight_zy = _mm256_set1_ps(weight_z * weight_y);
    int64_t x = 0;
    for (; x + 8 <= count; x += 8) {
        const __m256 logit = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(logits + x)));
        const __m256 weight = _mm256_mul_ps(weight_zy, _mm256_loadu_ps(weights_x + x));
        _mm256_storeu_ps(sums + x, _mm256_add_ps(_mm256_loadu_ps(sums + x), _mm256_mul_ps(weight, logit)));
    }
    for (; x < count; ++x)
        sums[x] = accumulated(sums[x], window_weight(weight_z, weight_y, weights_x[x]), widened(logits[x]));
}

void accumulate_row(float* sums, const Half* logits, int64_t count, float weight_z, float weight_y,
                    const float* weights_x) {
    static const bool has_f16c = __builtin_cpu_supports("f16c") && __builtin_cpu_supports("avx2");
    if (has_f16c) return accumulate_half_row(sums, logits, count, weight_z, weight_y, weights_x);
    accumulate_row<Half>(sums, logits, count, weight_z, weight_y, weights_x);
}
#endif

// One (wy, wx) plane of logits, at plane pz of its window, onto one plane of sums.
template <typename Logit>
void accumulate_plane(float* sums, const Shape& size, const Logit* logits, const Shape& window,
                      const int32_t* start, const Weights& weights, int64_t pz) {
    const Span ys = inside(start[1], window.y, size.y);
    const Span xs = inside(start[2], window.x, size.x);
    if (xs.first >= xs.last) return;
    for (int64_t py = ys.first; py < ys.last; ++py)
        accumulate_row(sums + (start[1] + py) * size.x + start[2] + xs.first,
                       logits + py * window.x + xs.first, xs.last - xs.first, weights.z[pz], weights.y[py],
                       weights.x + xs.first);
}

// Half and bfloat16 arrive as their bits, in uint16.
template <typename Logit, typename Stored>
void accumulate(Floats& sums, const py::array_t<Stored, py::array::c_style>& logits, const Ints& starts, const Floats& weights_z,
                const Floats& weights_y, const Floats& weights_x, int64_t first_z, int64_t last_z) {
    const int64_t batch = logits.shape(0), classes = logits.shape(1);
    const Shape size{sums.shape(1), sums.shape(2), sums.shape(3)};
    const Shape window{logits.shape(2), logits.shape(3), logits.shape(4)};
    const Weights weights{weights_z.data(), weights_y.data(), weights_x.data()};
    const int32_t* start = starts.data();
    const Logit* in = reinterpret_cast<const Logit*>(logits.data());
    float* to = sums.mutable_data();
    const int64_t planes = last_z - first_z;

    py::gil_scoped_release released;
    // Dynamic: planes differ in how many windows cover them.
#pragma omp parallel for schedule(dynamic) num_threads(thread_count())
    for (int64_t i = 0; i < classes * planes; ++i) {
        const int64_t k = i / planes, z = first_z + i % planes;
        float* plane = to + (k * size.z + z) * size.y * size.x;
        for (int64_t b = 0; b < batch; ++b) {
            const int64_t pz = z - start[3 * b];
            if (!contains(window.z, pz)) continue;
            const Logit* from = in + ((b * classes + k) * window.z + pz) * window.y * window.x;
            accumulate_plane(plane, size, from, window, start + 3 * b, weights, pz);
        }
    }
}

template <typename Logit, typename Stored>
void bind(py::module_& module, const char* name) {
    module.def(name, &accumulate<Logit, Stored>, py::arg("sums").noconvert(), py::arg("logits").noconvert(),
               py::arg("starts").noconvert(), py::arg("weights_z").noconvert(),
               py::arg("weights_y").noconvert(), py::arg("weights_x").noconvert(), py::arg("first_z"),
               py::arg("last_z"));
}

}  // namespace

void bind_accumulate(py::module_& module) {
    bind<float, float>(module, "accumulate_f32");
    bind<Half, uint16_t>(module, "accumulate_f16");
    bind<BFloat16, uint16_t>(module, "accumulate_bf16");
}

}  // namespace dropgen
