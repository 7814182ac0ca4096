// gather, per voxel: what one volume value becomes on its way into a window.
#pragma once

#include "portable.h"

namespace dropgen {

// The rows of the normalisation table (4, C): one value per channel in each.
struct ChannelNormalisation {
    float lower, upper, offset, scale;
};

DROPGEN_HD inline ChannelNormalisation channel_normalisation(const float* table, int64_t channels,
                                                             int64_t channel) {
    return {table[channel], table[channels + channel], table[2 * channels + channel],
            table[3 * channels + channel]};
}

// Comparisons, not fminf/fmaxf: a NaN passes through and is seen, instead of turning into a limit.
DROPGEN_HD inline float normalise(float value, const ChannelNormalisation& n) {
    const float floored = value < n.lower ? n.lower : value;
    const float clipped = floored > n.upper ? n.upper : floored;
    return (clipped - n.offset) * n.scale;
}

}  // namespace dropgen
