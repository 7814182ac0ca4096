// finalise on the host: what there is to do, and which rows of sums make an output row.
#pragma once

#include <vector>

#include "finalise.h"

namespace dropgen {
namespace {

struct Axis {
    const int32_t *lower, *upper;
    const float *fraction, *totals;
};

// Along x onto a finer grid, in groups of as many outputs as there are lanes: their neighbours all lie within as many
// inputs from base[group] on, at `lower` and `upper` of them, (groups, lanes). No lanes where that does not hold.
struct Finer {
    int lanes = 0;
    std::vector<int64_t> base;
    std::vector<int32_t> lower, upper;
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

}  // namespace
}  // namespace dropgen
