// finalise on the host, in lanes: rows on a finer grid along x, or the same, where only the label is asked for.
#pragma once

#include <algorithm>

#include "finalise_problem.h"
#include "lanes.h"

namespace dropgen {
namespace {

// Empty where eight or sixteen outputs do not lie within as many inputs.
Finer finer_of(const Axis& x, int64_t count, int64_t extent) {
    Finer finer;
#ifdef DROPGEN_LANES
    finer.lanes = lanes();
    if (extent < finer.lanes) return {};
    for (int64_t i = 0; finer.lanes && i < count; ++i) {
        // Not beyond the row's end: there is none after the last row.
        if (i % finer.lanes == 0) finer.base.push_back(std::min<int64_t>(x.lower[i], extent - finer.lanes));
        const int64_t lower = x.lower[i] - finer.base.back(), upper = x.upper[i] - finer.base.back();
        if (lower < 0 || upper < 0 || lower >= finer.lanes || upper >= finer.lanes) return {};
        finer.lower.push_back(int32_t(lower));
        finer.upper.push_back(int32_t(upper));
    }
#endif
    return finer;
}

#ifdef DROPGEN_LANES
// The sums of LANES voxels from `at` on in the rows of one class that count, blended as blend_rows does.
template <int LANES, int CORNERS>
DROPGEN_INLINE void blend(const float* at, const Corners& corners, typename Lanes<LANES>::Floats& sum) {
    typename Lanes<LANES>::Floats row;
    load(at + corners.offset[0], row);
    sum = corners.weight[0] * row;
#pragma GCC unroll 4
    for (int c = 1; c < CORNERS; ++c) {
        load(at + corners.offset[c], row);
        sum = sum + corners.weight[c] * row;
    }
}

// Between neighbours on a finer grid, everything in one pass: a permutation of inputs that were loaded together does
// what a lookup for every lane would. CLASSES classes from k on, whose sums are `step` apart.
template <int LANES, int CORNERS, int CLASSES>
DROPGEN_INLINE void compete_finer(const Problem& p, const float* sums, int64_t step, const Corners& corners, int32_t k,
                                  float* best, int32_t* label) {
    typename Lanes<LANES>::Floats near, far, inputs, most;
    typename Lanes<LANES>::Ints lower, upper, winner;
    int64_t x = 0;
    for (; x + LANES <= p.out.x; x += LANES) {
        load(p.finer.lower.data() + x, lower);
        load(p.finer.upper.data() + x, upper);
        load(p.near.data() + x, near);
        load(p.far.data() + x, far);
        load(best + x, most);
        load(label + x, winner);
        const float* from = sums + p.finer.base[x / LANES];
#pragma GCC unroll 7
        for (int own = 0; own < CLASSES; ++own) {
            blend<LANES, CORNERS>(from + own * step, corners, inputs);
            const auto value = near * __builtin_shuffle(inputs, lower) + far * __builtin_shuffle(inputs, upper);
            winner = value > most ? winner * 0 + (k + own) : winner;
            most = value > most ? value : most;
        }
        store(most, best + x);
        store(winner, label + x);
    }
    for (; x < p.out.x; ++x)
        for (int own = 0; own < CLASSES; ++own) {
            float ends[2] = {};
            for (int end = 0; end < 2; ++end)
                for (int c = 0; c < CORNERS; ++c) {
                    const int64_t at = corners.offset[c] + (end ? p.x.upper[x] : p.x.lower[x]);
                    const float part = corners.weight[c] * sums[own * step + at];
                    ends[end] = c ? ends[end] + part : part;
                }
            const float value = between(p.near[x], ends[0], p.far[x], ends[1]);
            if (beats(value, best[x])) best[x] = value, label[x] = k + own;
        }
}

template <int CORNERS, int CLASSES>
DROPGEN_8_LANES compete_finer_8(const Problem& p, const float* sums, int64_t step, const Corners& corners, int32_t k,
                                float* best, int32_t* label) {
    compete_finer<8, CORNERS, CLASSES>(p, sums, step, corners, k, best, label);
}

template <int CORNERS, int CLASSES>
DROPGEN_16_LANES compete_finer_16(const Problem& p, const float* sums, int64_t step, const Corners& corners, int32_t k,
                                  float* best, int32_t* label) {
    compete_finer<16, CORNERS, CLASSES>(p, sums, step, corners, k, best, label);
}

template <int CORNERS, int CLASSES>
void compete_in_lanes(const Problem& p, const float* sums, int64_t step, const Corners& corners, int32_t k, float* best,
                      int32_t* label) {
    const auto compete = p.finer.lanes == 16 ? compete_finer_16<CORNERS, CLASSES> : compete_finer_8<CORNERS, CLASSES>;
    compete(p, sums, step, corners, k, best, label);
}
#endif

}  // namespace
}  // namespace dropgen
