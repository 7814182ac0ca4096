// finalise, per voxel: from sums to normalised logits, between voxels, and to the winning label.
//
// The order of operations, which NumPy, the host and the GPU share (w, s: weight and sum at a corner in z, y):
//     w      = (side_z * side_y) / (total_z * total_y)              a number per corner and output row
//     row[x] = ((w00 * s00 + w01 * s01) + w10 * s10) + w11 * s11    lower, then upper; z before y
//     value  = near * row[lower] + far * row[upper]                 x last; near = (1 - f) / total_x
// The weight tables are products, so the division splits: none is left in the loop over classes.
#pragma once

#include <cmath>

#include "portable.h"

namespace dropgen {

// The weights of the lower and the upper neighbour along one axis.
struct Sides {
    float lower, upper;
};

DROPGEN_HD inline Sides sides(float fraction) { return {1.0f - fraction, fraction}; }

DROPGEN_HD inline float corner_weight(float side_z, float side_y, float total_z, float total_y) {
    return (side_z * side_y) / (total_z * total_y);
}

DROPGEN_HD inline float end_weight(float side_x, float total_x) { return side_x / total_x; }

DROPGEN_HD inline float between(float near, float lower, float far, float upper) {
    return near * lower + far * upper;
}

// Strictly greater: on a tie the first label wins.
DROPGEN_HD inline bool beats(float value, float best) { return value > best; }

// Before any class: below every logit.
DROPGEN_HD inline float no_logit() { return -INFINITY; }

// The second greatest logit so far, when `value` joins `best` and `second`. The margin is best - second: 0 at a
// tie, infinite where there is one class.
DROPGEN_HD inline float runner_up(float second, float value, float best) {
    const float lesser = value > best ? best : value;
    return lesser > second ? lesser : second;
}

// To about 1e-7 of the greatest term, which is 1: what the GPU's own instruction gives is enough.
DROPGEN_HD inline float exponential(float value) {
#ifdef __CUDA_ARCH__
    return __expf(value);
#else
    return expf(value);
#endif
}

// The sum over the classes seen so far of exp(value - best), when the best moves with the classes.
DROPGEN_HD inline float softmax_total(float total, float value, float best) {
    const float smaller = exponential(value > best ? best - value : value - best);
    return value > best ? total * smaller + 1.0f : total + smaller;
}

}  // namespace dropgen
