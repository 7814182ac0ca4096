// resample on the host: the taps of a row along x, the last of the three axes.
#pragma once

#include <algorithm>
#include <vector>

#include "aligned.h"
#include "lanes.h"
#include "resample.h"

namespace dropgen {
namespace {

// The taps of x, tap by tap: tables (most, length), so that a tap of all outputs is one run. Beyond an output's own
// taps the weight is zero, which adds nothing to a sum that began at zero.
struct TapsAlongX {
    std::vector<int32_t> place;
    std::vector<float> weight;
    bool identity;
    // Groups of as many outputs as there are lanes: where all their taps lie within twice as many inputs, from where
    // on, and the places among those, (groups, most, lanes); else no lanes.
    int lanes = 0;
    std::vector<int64_t> base;
    std::vector<int32_t> among;
};

// Floats beyond a row's end that may be loaded, though not used.
constexpr int64_t ROOM = 32;

void look_near(TapsAlongX& taps, int64_t most, int64_t length) {
#ifdef DROPGEN_LANES
    const int64_t at_once = lanes();
    if (!at_once || length < at_once) return;
    for (int64_t group = 0; group * at_once < length; ++group) {
        const int64_t first = group_begin(group, at_once, length);
        int32_t low = taps.place[first];
        for (int64_t t = 0; t < most; ++t) {
            const int32_t* place = &taps.place[t * length + first];
            low = std::min(low, *std::min_element(place, place + at_once));
        }
        for (int64_t t = 0; t < most; ++t)
            for (int64_t i = first; i < first + at_once; ++i) {
                taps.among.push_back(taps.place[t * length + i] - low);
                if (taps.among.back() >= 2 * at_once) return;
            }
        taps.base.push_back(low);
    }
    taps.lanes = int(at_once);
#endif
}

TapsAlongX along_x_of(const Taps& x, int64_t length, int64_t extent) {
    TapsAlongX taps{
        std::vector<int32_t>(x.most * length), std::vector<float>(x.most * length), length == extent};
    for (int64_t t = 0; t < x.most; ++t)
        for (int64_t i = 0; i < length; ++i) {
            const bool own = t < x.count[i];
            taps.place[t * length + i] = own ? x.first[i] + int32_t(t) : x.first[i];
            taps.weight[t * length + i] = own ? x.weight[i * x.most + t] : 0.0f;
            taps.identity = taps.identity && x.count[i] == 1 && x.first[i] == i;
        }
    look_near(taps, x.most, length);
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

#ifdef DROPGEN_LANES
// A permutation of inputs that were loaded together does what a lookup for every lane would. The row has room for twice
// the lanes beyond its end.
template <int LANES, int TAPS>
DROPGEN_INLINE void sum_near_taps(const float* row, const TapsAlongX& taps, int64_t length, float* out) {
    typename Lanes<LANES>::Floats lower, upper, weight, sum;
    typename Lanes<LANES>::Ints among;
    for (int64_t group = 0; group * LANES < length; ++group) {
        const int64_t x = group_begin(group, LANES, length);
        const float* from = row + taps.base[group];
        load(from, lower);
        load(from + LANES, upper);
        sum = typename Lanes<LANES>::Floats{};
#pragma GCC unroll 4
        for (int t = 0; t < TAPS; ++t) {
            load(taps.among.data() + (group * TAPS + t) * LANES, among);
            load(taps.weight.data() + t * length + x, weight);
            sum = sum + weight * __builtin_shuffle(lower, upper, among);
        }
        store(sum, out + x);
    }
}

template <int TAPS>
DROPGEN_8_LANES sum_near_taps_8(const float* row, const TapsAlongX& taps, int64_t length, float* out) {
    sum_near_taps<8, TAPS>(row, taps, length, out);
}

template <int TAPS>
DROPGEN_16_LANES sum_near_taps_16(const float* row, const TapsAlongX& taps, int64_t length, float* out) {
    sum_near_taps<16, TAPS>(row, taps, length, out);
}

template <int TAPS>
void sum_in_lanes(const float* row, const TapsAlongX& taps, int64_t length, float* out) {
    (taps.lanes == 16 ? sum_near_taps_16<TAPS> : sum_near_taps_8<TAPS>)(row, taps, length, out);
}
#endif

void along_x(const float* row, const TapsAlongX& taps, int64_t most, int64_t length, float* out) {
    const int32_t* place = taps.place.data();
    const float* weight = taps.weight.data();
    if (taps.identity) return weigh(row, weight, length, out);
#ifdef DROPGEN_LANES
    if (taps.lanes && most == 2) return sum_in_lanes<2>(row, taps, length, out);
    if (taps.lanes && most == 3) return sum_in_lanes<3>(row, taps, length, out);
    if (taps.lanes && most == 4) return sum_in_lanes<4>(row, taps, length, out);
#endif
    if (most == 2) return sum_taps<2>(row, place, weight, length, out);
    if (most == 3) return sum_taps<3>(row, place, weight, length, out);
    if (most == 4) return sum_taps<4>(row, place, weight, length, out);
    start_tap(row, place, weight, length, out);
    for (int64_t t = 1; t < most; ++t) add_tap(row, place + t * length, weight + t * length, length, out);
}

}  // namespace
}  // namespace dropgen
