// finalise on the host: OpenMP over strips of output rows; within a strip the classes come outermost, so that
// only a few rows of floats live beside the sums. Shapes and table ranges were checked in finalise.py.

#include "aligned.h"
#include "finalise_lanes.h"
#include "finalise_problem.h"

#include <omp.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

namespace py = pybind11;

namespace dropgen {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<int32_t, py::array::c_style>;

// Each class's sums are read in runs of this many output voxels: long enough for the memory to stream, short
// enough for the strip's best values and labels to stay in cache.
constexpr int64_t STRIP_VOXELS = 16384;

// Classes that compete in one pass, at most: best values, labels and tables are loaded once for them. Of seven, the rows
// of all corners are still few enough streams for the memory (five are slower than four and seven, measured).
constexpr int TOGETHER = 7;

// What one thread needs: a blended row, its values on the output's x axis, the state of the strip's rows.
struct Strip {
    int64_t rows;
    Aligned<float> blended, value, best, total, second;
    Aligned<int32_t> label;
    std::vector<Corners> corners;

    explicit Strip(const Problem& p)
        : rows(std::max<int64_t>(1, STRIP_VOXELS / p.out.x)),
          blended(p.size.x),
          value(p.out.x),
          best(rows * p.out.x),
          total(p.wants_probability ? rows * p.out.x : 0),
          second(p.wants_margin ? rows * p.out.x : 0),
          label(rows * p.out.x),
          corners(rows) {}
};

DROPGEN_ROW blend_one(const float* __restrict a, float wa, int64_t count, float* __restrict row) {
    for (int64_t x = 0; x < count; ++x) row[x] = wa * a[x];
}

DROPGEN_ROW blend_two(const float* __restrict a, float wa, const float* __restrict b, float wb, int64_t count,
                      float* __restrict row) {
    for (int64_t x = 0; x < count; ++x) row[x] = wa * a[x] + wb * b[x];
}

DROPGEN_ROW blend_four(const float* __restrict a, float wa, const float* __restrict b, float wb,
                       const float* __restrict c, float wc, const float* __restrict d, float wd, int64_t count,
                       float* __restrict row) {
    for (int64_t x = 0; x < count; ++x) row[x] = ((wa * a[x] + wb * b[x]) + wc * c[x]) + wd * d[x];
}

DROPGEN_ROW scale_row(const float* __restrict row, const float* __restrict near, int64_t count,
                      float* __restrict value) {
    for (int64_t x = 0; x < count; ++x) value[x] = near[x] * row[x];
}

DROPGEN_ROW interpolate_row(const float* __restrict row, const int32_t* __restrict lower,
                            const int32_t* __restrict upper, const float* __restrict near,
                            const float* __restrict far, int64_t count, float* __restrict value) {
    for (int64_t x = 0; x < count; ++x) value[x] = between(near[x], row[lower[x]], far[x], row[upper[x]]);
}

// Both values are loaded first and both are stored always: a conditional store would become a branch, which
// mispredicts at every boundary (2.5 times slower on noise).
DROPGEN_ROW keep_best(const float* __restrict value, int32_t k, int64_t count, float* __restrict best,
                      int32_t* __restrict label) {
    for (int64_t x = 0; x < count; ++x) {
        const float before = best[x];
        const int32_t winner = label[x];
        best[x] = beats(value[x], before) ? value[x] : before;
        label[x] = beats(value[x], before) ? k : winner;
    }
}

// On the identity grid, where one row counts and nothing but the label is asked for: everything in one pass, and
// several classes in it, so that best and label are loaded and stored once for them. `step` is from class to class.
template <int CLASSES>
DROPGEN_ROW compete_identity(const float* __restrict sums, int64_t step, float weight, const float* __restrict near,
                             int32_t k, int64_t count, float* __restrict best, int32_t* __restrict label) {
    for (int64_t x = 0; x < count; ++x) {
        float most = best[x];
        int32_t winner = label[x];
#pragma GCC unroll 7
        for (int own = 0; own < CLASSES; ++own) {
            const float value = near[x] * (weight * sums[x + own * step]);
            winner = beats(value, most) ? k + own : winner;
            most = beats(value, most) ? value : most;
        }
        best[x] = most;
        label[x] = winner;
    }
}

DROPGEN_ROW keep_second(const float* __restrict value, const float* __restrict best, int64_t count,
                        float* __restrict second) {
    for (int64_t x = 0; x < count; ++x) second[x] = runner_up(second[x], value[x], best[x]);
}

template <typename Label>
DROPGEN_ROW narrow_row(const int32_t* __restrict label, int64_t count, Label* __restrict out) {
    for (int64_t x = 0; x < count; ++x) out[x] = Label(label[x]);
}

// The rows of one class that count, blended.
void blend_rows(const Problem& p, const float* sums, const Corners& corners, float* row) {
    const float* at[4];
    for (int c = 0; c < corners.count; ++c) at[c] = sums + corners.offset[c];
    const float* w = corners.weight;
    if (corners.count == 0) std::fill(row, row + p.size.x, 0.0f);
    if (corners.count == 1) blend_one(at[0], w[0], p.size.x, row);
    if (corners.count == 2) blend_two(at[0], w[0], at[1], w[1], p.size.x, row);
    if (corners.count == 4) blend_four(at[0], w[0], at[1], w[1], at[2], w[2], at[3], w[3], p.size.x, row);
    if (corners.count == 3)  // a product of two weights so small that it is zero
        for (int64_t x = 0; x < p.size.x; ++x) row[x] = (w[0] * at[0][x] + w[1] * at[1][x]) + w[2] * at[2][x];
}

// CLASSES classes from k on against the best of the strip's row r, in one pass over it.
template <int CLASSES>
void compete_at_once(const Problem& p, int64_t k, int64_t r, Strip& strip) {
    const int64_t step = p.size.z * p.size.y * p.size.x;
    const float* sums = p.sums + k * step;
    const Corners& corners = strip.corners[r];
    float* best = strip.best.data() + r * p.out.x;
    int32_t* label = strip.label.data() + r * p.out.x;
    if (p.x_is_identity && corners.count == 1)
        return compete_identity<CLASSES>(sums + corners.offset[0], step, corners.weight[0], p.near.data(), int32_t(k),
                                         p.out.x, best, label);
#ifdef DROPGEN_LANES
    if (corners.count == 1) return compete_in_lanes<1, CLASSES>(p, sums, step, corners, int32_t(k), best, label);
    if (corners.count == 2) return compete_in_lanes<2, CLASSES>(p, sums, step, corners, int32_t(k), best, label);
    compete_in_lanes<4, CLASSES>(p, sums, step, corners, int32_t(k), best, label);
#endif
}

// Whether all rows of the strip can be done by compete_at_once.
bool at_once(const Problem& p, const Strip& strip, int64_t rows) {
    if (p.wants_probability || p.wants_margin) return false;
    const auto fits = [&](const Corners& corners) {
        if (p.x_is_identity && corners.count == 1) return true;
        return p.finer.lanes > 0 && (corners.count == 1 || corners.count == 2 || corners.count == 4);
    };
    return std::all_of(strip.corners.begin(), strip.corners.begin() + rows, fits);
}

// One class on one output row: leaves its interpolated logits in strip.value.
void row_values(const Problem& p, const float* sums, const Corners& corners, Strip& strip) {
    float* row = strip.blended.data();
    blend_rows(p, sums, corners, row);
    if (p.x_is_identity)
        scale_row(row, p.near.data(), p.out.x, strip.value.data());
    else
        interpolate_row(row, p.x.lower, p.x.upper, p.near.data(), p.far.data(), p.out.x, strip.value.data());
}

// Lets class k compete for the strip's row r with the values in strip.value.
void compete(const Problem& p, int64_t k, int64_t r, Strip& strip) {
    const float* value = strip.value.data();
    const int64_t count = p.out.x, at = r * count;
    float *best = strip.best.data() + at, *total = strip.total.data() + at;
    float* second = strip.second.data() + at;
    if (k == 0) {
        std::copy(value, value + count, best);
        std::fill(strip.label.data() + at, strip.label.data() + at + count, 0);
        if (p.wants_probability) std::fill(total, total + count, 1.0f);
        if (p.wants_margin) std::fill(second, second + count, no_logit());
        return;
    }
    if (p.wants_probability)
        for (int64_t x = 0; x < count; ++x) total[x] = softmax_total(total[x], value[x], best[x]);
    if (p.wants_margin) keep_second(value, best, count, second);
    keep_best(value, int32_t(k), count, best, strip.label.data() + at);
}

// Class k on all rows of the strip. Returns how many classes that was.
int64_t alone(const Problem& p, int64_t k, int64_t rows, Strip& strip) {
    for (int64_t r = 0; r < rows; ++r) {
        row_values(p, p.sums + k * p.size.z * p.size.y * p.size.x, strip.corners[r], strip);
        compete(p, k, r, strip);
    }
    return 1;
}

template <int CLASSES>
int64_t these_together(const Problem& p, int64_t k, int64_t rows, Strip& strip) {
    for (int64_t r = 0; r < rows; ++r) compete_at_once<CLASSES>(p, k, r, strip);
    return CLASSES;
}

// As many classes from k on as can be done in one pass over all rows of the strip. Returns how many that was.
int64_t together(const Problem& p, int64_t k, int64_t rows, Strip& strip) {
    const int64_t left = p.classes - k;
    if (left >= TOGETHER) return these_together<TOGETHER>(p, k, rows, strip);
    if (left >= 4) return these_together<4>(p, k, rows, strip);
    if (left >= 2) return these_together<2>(p, k, rows, strip);
    return these_together<1>(p, k, rows, strip);
}

template <typename Label>
void finalise_strips(const Problem& p, Label* labels, float* probability, float* margin) {
    const int threads = thread_count();
    // Allocated here: an exception must not leave a parallel region.
    std::vector<Strip> strips(threads, Strip(p));
    const int64_t rows = p.out.z * p.out.y, per_strip = strips[0].rows;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t first = 0; first < rows; first += per_strip) {
        Strip& strip = strips[omp_get_thread_num()];
        const int64_t count = std::min(per_strip, rows - first);
        for (int64_t r = 0; r < count; ++r) strip.corners[r] = corners_of(p, first + r);
        const bool fast = at_once(p, strip, count);
        if (fast) {
            std::fill_n(strip.best.data(), count * p.out.x, no_logit());
            std::fill_n(strip.label.data(), count * p.out.x, 0);
        }
        for (int64_t k = 0; k < p.classes;) k += fast ? together(p, k, count, strip) : alone(p, k, count, strip);
        const int64_t voxels = count * p.out.x, to = first * p.out.x;
        narrow_row<Label>(strip.label.data(), voxels, labels + to);
        if (p.wants_probability)
            for (int64_t i = 0; i < voxels; ++i) probability[to + i] = 1.0f / strip.total[i];
        if (p.wants_margin)
            for (int64_t i = 0; i < voxels; ++i) margin[to + i] = strip.best[i] - strip.second[i];
    }
}

template <typename Label>
void finalise(const Floats& sums, const std::array<Floats, 3>& totals, const std::array<Ints, 3>& lower,
              const std::array<Ints, 3>& upper, const std::array<Floats, 3>& fraction, bool x_is_identity,
              py::array_t<Label, py::array::c_style>& labels, std::optional<Floats>& probability,
              std::optional<Floats>& margin) {
    const auto axis = [&](int i) {
        return Axis{lower[i].data(), upper[i].data(), fraction[i].data(), totals[i].data()};
    };
    Problem p{sums.data(),
              sums.shape(0),
              {sums.shape(1), sums.shape(2), sums.shape(3)},
              {labels.shape(0), labels.shape(1), labels.shape(2)},
              axis(0),
              axis(1),
              axis(2),
              x_is_identity,
              probability.has_value(),
              margin.has_value(),
              {},
              {},
              {}};
    p.finer = finer_of(p.x, p.out.x, p.size.x);
    for (int64_t x = 0; x < p.out.x; ++x) {
        const Sides side = sides(p.x.fraction[x]);
        p.near.push_back(end_weight(side.lower, p.x.totals[p.x.lower[x]]));
        p.far.push_back(end_weight(side.upper, p.x.totals[p.x.upper[x]]));
    }
    Label* to = labels.mutable_data();
    float* probability_to = probability ? probability->mutable_data() : nullptr;
    float* margin_to = margin ? margin->mutable_data() : nullptr;
    py::gil_scoped_release released;
    finalise_strips(p, to, probability_to, margin_to);
}

template <typename Label>
void bind(py::module_& module) {
    module.def("finalise", &finalise<Label>, py::arg("sums").noconvert(), py::arg("totals").noconvert(),
               py::arg("lower").noconvert(), py::arg("upper").noconvert(), py::arg("fraction").noconvert(),
               py::arg("x_is_identity"), py::arg("labels").noconvert(), py::arg("probability").noconvert(),
               py::arg("margin").noconvert());
}

}  // namespace

void bind_finalise(py::module_& module) {
    bind<uint8_t>(module);
    bind<uint16_t>(module);
}

}  // namespace dropgen
