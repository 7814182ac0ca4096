// finalise on the host, in lanes: rows on a finer grid along x, or the same, where only the label is asked for.
#pragma once

#include <algorithm>

#include "finalise_problem.h"
#include "lanes.h"

namespace dropgen {
namespace {

// Empty where a row is shorter than the lanes, or as many outputs as these do not lie within as many inputs.
Finer finer_of(const Axis& x, int64_t count, int64_t extent) {
    Finer finer;
#ifdef DROPGEN_LANES
    finer.lanes = lanes();
    if (!finer.lanes || extent < finer.lanes || count < finer.lanes) return {};
    for (int64_t group = 0; group * finer.lanes < count; ++group) {
        const int64_t first = group_begin(group, finer.lanes, count);
        // Not beyond the row's end: there is none after the last row.
        const int64_t base = std::min<int64_t>(x.lower[first], extent - finer.lanes);
        for (int64_t i = first; i < first + finer.lanes; ++i) {
            const int64_t lower = x.lower[i] - base, upper = x.upper[i] - base;
            if (lower < 0 || upper < 0 || lower >= finer.lanes || upper >= finer.lanes) return {};
            finer.lower.push_back(int32_t(lower));
            finer.upper.push_back(int32_t(upper));
        }
        finer.base.push_back(base);
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
    for (int64_t group = 0; group * LANES < p.out.x; ++group) {
        const int64_t x = group_begin(group, LANES, p.out.x);
        load(p.finer.lower.data() + group * LANES, lower);
        load(p.finer.upper.data() + group * LANES, upper);
        load(p.near.data() + x, near);
        load(p.far.data() + x, far);
        load(best + x, most);
        load(label + x, winner);
        const float* from = sums + p.finer.base[group];
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
