// statistics, per voxel: what one voxel adds to its label's count, box and moments. Intensities are rounded to whole
// numbers first, so that sums are exact and do not depend on the order.
#pragma once

#include "portable.h"

namespace dropgen {

// Columns of the (labels, 9) int64 table.
enum Column { COUNT, SUM, SQUARES, LOW_Z, LOW_Y, LOW_X, HIGH_Z, HIGH_Y, HIGH_X, COLUMNS };

// 16 bits over the scan's range: 2^28 voxels of 2^32 each still fit a 64-bit sum.
constexpr float MOST_LEVEL = 65535.0f;

DROPGEN_HD inline float clamped_level(float value, float offset, float scale) {
    const float scaled = (value - offset) * scale;
    const float floored = scaled > 0.0f ? scaled : 0.0f;
    return floored < MOST_LEVEL ? floored : MOST_LEVEL;
}

DROPGEN_HD inline int32_t rounded_level(float clamped) { return int32_t(clamped + 0.5f); }

DROPGEN_HD inline int32_t level(float value, float offset, float scale) {
    return rounded_level(clamped_level(value, offset, scale));
}

}  // namespace dropgen
