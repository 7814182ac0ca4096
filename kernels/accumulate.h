// accumulate, per voxel: how one logit joins the sum of the windows that cover it.
#pragma once

#include "portable.h"

namespace dropgen {

// The weight is separable: three tables, no weight volume. The order of the two products is part of the
// definition.
DROPGEN_HD inline float window_weight(float weight_z, float weight_y, float weight_x) {
    return (weight_z * weight_y) * weight_x;
}

DROPGEN_HD inline float accumulated(float sum, float weight, float logit) { return sum + weight * logit; }

}  // namespace dropgen
