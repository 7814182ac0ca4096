// finalise on the host: OpenMP over strips of output rows; within a strip the classes come outermost, so that
// only a few rows of floats live beside the sums. Shapes and table ranges were checked in finalise.py.

#include "finalise.h"

#include <omp.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define DROPGEN_AVX2
#endif

namespace py = pybind11;

namespace dropgen {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<int32_t, py::array::c_style>;

// Each class's sums are read in runs of this many output voxels: long enough for the memory to stream, short
// enough for the strip's best values and labels to stay in cache.
constexpr int64_t STRIP_VOXELS = 4096;

// Classes that compete in one pass.
constexpr int TOGETHER = 4;

constexpr int64_t CACHE_LINE = 64;  // bytes

struct Axis {
    const int32_t *lower, *upper;
    const float *fraction, *totals;
};

// Along x onto a finer grid: eight outputs from base[i], each at its place of eight; empty where that does not hold.
struct Finer {
    std::vector<int64_t> base;
    std::vector<int32_t> place;
};

struct Problem {
    const float* sums;
    int64_t classes;
    Shape size, out;
    Axis z, y, x;
    bool x_is_identity, wants_probability, wants_margin;
    std::vector<float> near, far;  // weights of the two neighbours along x, per output voxel
    Finer finer;
};

// The rows of one class's sums that make one output row, and their weights.
struct Corners {
    int count = 0;
    int64_t offset[4];
    float weight[4];
};

// What one thread needs: a blended row, its values on the output's x axis, the state of the strip's rows.
struct Strip {
    int64_t rows;
    std::vector<float> blended, value, best, total, second;
    std::vector<int32_t> label;
    std::vector<Corners> corners;

    explicit Strip(const Problem& p)
        : rows(std::max<int64_t>(1, STRIP_VOXELS / p.out.x)),
          blended(TOGETHER * (p.size.x + 16), 0.0f),  // room to load eight beyond the end
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

// On the identity grid, where one row counts and nothing but the label is asked for: everything in one pass, and four
// classes in it, so that best and label are loaded and stored once for them. `step` is from class to class.
template <int CLASSES>
DROPGEN_ROW compete_identity(const float* __restrict sums, int64_t step, float weight, const float* __restrict near,
                             int32_t k, int64_t count, float* __restrict best, int32_t* __restrict label) {
    for (int64_t x = 0; x < count; ++x) {
        float most = best[x];
        int32_t winner = label[x];
#pragma GCC unroll 4
        for (int own = 0; own < CLASSES; ++own) {
            const float value = near[x] * (weight * sums[x + own * step]);
            winner = beats(value, most) ? k + own : winner;
            most = beats(value, most) ? value : most;
        }
        best[x] = most;
        label[x] = winner;
    }
}

#ifdef DROPGEN_AVX2
// Between neighbours on a finer grid, eight outputs lie within eight inputs: two loads and two permutations do what
// sixteen lookups would. upper is lower + 1, or the last voxel, whose far is 0; the row has room beyond its end.
// `rows` are those of CLASSES classes from k on, `step` apart.
template <int CLASSES>
__attribute__((target("avx2"), noinline)) void compete_finer(const float* rows, int64_t step, const Finer& finer,
                                                             const float* near, const float* far, int32_t k,
                                                             int64_t count, float* best, int32_t* label) {
    for (int64_t x = 0; x + 8 <= count; x += 8) {
        const float* from = rows + finer.base[x / 8];
        const __m256i place = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(finer.place.data() + x));
        const __m256 of_lower = _mm256_loadu_ps(near + x), of_upper = _mm256_loadu_ps(far + x);
        __m256 most = _mm256_loadu_ps(best + x);
        __m256i* to = reinterpret_cast<__m256i*>(label + x);
        __m256i winner = _mm256_loadu_si256(to);
#pragma GCC unroll 4
        for (int own = 0; own < CLASSES; ++own) {
            const __m256 lower = _mm256_permutevar8x32_ps(_mm256_loadu_ps(from + own * step), place);
            const __m256 upper = _mm256_permutevar8x32_ps(_mm256_loadu_ps(from + own * step + 1), place);
            const __m256 value = _mm256_add_ps(_mm256_mul_ps(of_lower, lower), _mm256_mul_ps(of_upper, upper));
            const __m256 wins = _mm256_cmp_ps(value, most, _CMP_GT_OQ);
            winner = _mm256_blendv_epi8(winner, _mm256_set1_epi32(k + own), _mm256_castps_si256(wins));
            most = _mm256_blendv_ps(most, value, wins);
        }
        _mm256_storeu_si256(to, winner);
        _mm256_storeu_ps(best + x, most);
    }
    for (int64_t x = count / 8 * 8; x < count; ++x)
        for (int own = 0; own < CLASSES; ++own) {
            const float* at = rows + own * step + finer.base[x / 8] + finer.place[x];
            const float value = between(near[x], at[0], far[x], at[1]);
            if (beats(value, best[x])) best[x] = value, label[x] = k + own;
        }
}
#endif

DROPGEN_ROW keep_second(const float* __restrict value, const float* __restrict best, int64_t count,
                        float* __restrict second) {
    for (int64_t x = 0; x < count; ++x) second[x] = runner_up(second[x], value[x], best[x]);
}

// A corner of weight zero is not read: on the identity grid that leaves one row of four, with the same bits.
Corners corners_of(const Problem& p, int64_t row) {
    const int64_t oz = row / p.out.y, oy = row % p.out.y;
    const Sides side_z = sides(p.z.fraction[oz]), side_y = sides(p.y.fraction[oy]);
    Corners corners;
    for (int corner = 0; corner < 4; ++corner) {
        const int64_t at_z = corner / 2 ? p.z.upper[oz] : p.z.lower[oz];
        const int64_t at_y = corner % 2 ? p.y.upper[oy] : p.y.lower[oy];
        const float weight =
            corner_weight(corner / 2 ? side_z.upper : side_z.lower, corner % 2 ? side_y.upper : side_y.lower,
                          p.z.totals[at_z], p.y.totals[at_y]);
        if (weight == 0.0f) continue;
        corners.offset[corners.count] = (at_z * p.size.y + at_y) * p.size.x;
        corners.weight[corners.count++] = weight;
    }
    return corners;
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

// CLASSES classes from k > 0 on against the best of the strip's row r, in one pass over it.
template <int CLASSES>
void compete_at_once(const Problem& p, const float* sums, int64_t step, int64_t k, int64_t r, Strip& strip) {
    const Corners& corners = strip.corners[r];
    float* best = strip.best.data() + r * p.out.x;
    int32_t* label = strip.label.data() + r * p.out.x;
    if (p.x_is_identity) {
        // The same row of the next classes comes up after this strip's other rows: the memory can begin with it now.
        for (int64_t own = CLASSES; own < std::min<int64_t>(2 * CLASSES, p.classes - k); ++own)
            for (int64_t x = 0; x < p.size.x; x += CACHE_LINE / int64_t(sizeof(float)))
                __builtin_prefetch(sums + own * step + corners.offset[0] + x);
        return compete_identity<CLASSES>(sums + corners.offset[0], step, corners.weight[0], p.near.data(), int32_t(k),
                                         p.out.x, best, label);
    }
#ifdef DROPGEN_AVX2
    const int64_t apart = int64_t(strip.blended.size()) / TOGETHER;
    for (int own = 0; own < CLASSES; ++own)
        blend_rows(p, sums + own * step, corners, strip.blended.data() + own * apart);
    compete_finer<CLASSES>(strip.blended.data(), apart, p.finer, p.near.data(), p.far.data(), int32_t(k), p.out.x,
                           best, label);
#endif
}

// Whether all rows of the strip can be done by compete_at_once.
bool at_once(const Problem& p, const Strip& strip, int64_t rows) {
    if (p.wants_probability || p.wants_margin) return false;
    if (!p.x_is_identity) return !p.finer.base.empty();
    const auto single = [](const Corners& corners) { return corners.count == 1; };
    return std::all_of(strip.corners.begin(), strip.corners.begin() + rows, single);
}

// Where eight outputs always lie within eight inputs and between neighbours; else empty.
Finer finer_of(const Axis& x, int64_t count, int64_t extent) {
    Finer finer;
#ifdef DROPGEN_AVX2
    if (!__builtin_cpu_supports("avx2")) return {};
    for (int64_t i = 0; i < count; ++i) {
        const bool last = x.lower[i] == extent - 1 && x.fraction[i] == 0.0f;
        if (x.upper[i] != x.lower[i] + 1 && !last) return {};
        if (i % 8 == 0) finer.base.push_back(x.lower[i]);
        const int64_t place = x.lower[i] - finer.base.back();
        if (place < 0 || place > 7) return {};
        finer.place.push_back(int32_t(place));
    }
#endif
    return finer;
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

template <typename Label>
void finalise_strips(const Problem& p, Label* labels, float* probability, float* margin) {
    const int threads = thread_count();
    // Allocated here: an exception must not leave a parallel region.
    std::vector<Strip> strips(threads, Strip(p));
    const int64_t rows = p.out.z * p.out.y, per_strip = strips[0].rows;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t first = 0; first < rows; first += per_strip) {
        Strip& strip = strips[omp_get_thread_num()];
        const int64_t count = std::min(per_strip, rows - first);
        for (int64_t r = 0; r < count; ++r) strip.corners[r] = corners_of(p, first + r);
        const int64_t step = p.size.z * p.size.y * p.size.x;
        const bool fast = at_once(p, strip, count);
        for (int64_t k = 0; k < p.classes;) {
            const float* sums = p.sums + k * step;
            const bool several = fast && k > 0 && k + TOGETHER <= p.classes;
            for (int64_t r = 0; r < count; ++r) {
                if (several) {
                    compete_at_once<TOGETHER>(p, sums, step, k, r, strip);
                } else if (fast && k > 0) {
                    compete_at_once<1>(p, sums, step, k, r, strip);
                } else {
                    row_values(p, sums, strip.corners[r], strip);
                    compete(p, k, r, strip);
                }
            }
            k += several ? TOGETHER : 1;
        }
        for (int64_t i = 0; i < count * p.out.x; ++i) labels[first * p.out.x + i] = Label(strip.label[i]);
        const int64_t voxels = count * p.out.x, to = first * p.out.x;
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
