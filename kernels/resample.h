// resample, per voxel: how one source voxel joins a sum of taps, and what the sum becomes.
//
// The order of operations, which NumPy, the host and the GPU share: along z, then y, then x; within an axis the taps in
// rising order, starting from zero.
#pragma once

#include "gather.h"
#include "portable.h"

namespace dropgen {

DROPGEN_HD inline float with_tap(float sum, float weight, float value) { return sum + weight * value; }

// The taps of one axis: output voxel i is the sum over t < count[i] of weight[i * most + t] * source[first[i] + t].
struct Taps {
    const int32_t *first, *count;
    const float* weight;
    int64_t most;
};

// Where the source's voxels lie: steps in elements, which are negative where an axis is turned.
struct Steps {
    int64_t channel, z, y, x;
};

}  // namespace dropgen
