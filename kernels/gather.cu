// One warp writes one row of a window, each lane every 32nd voxel: blockIdx.x and the warp give the window's y,
// blockIdx.y its z, blockIdx.z is window * channels + channel.
//
// Bytes moved per window voxel: 4 read (0 in padding), 4 written: its floor is that of a copy. Operations: 2
// comparisons, 1 subtraction, 1 product.
// Launch: grid (ceil(wy / warps per block), wz, B * C), block THREADS_PER_BLOCK.

#include "gather.h"
#include "warp.h"

extern "C" __global__ void __launch_bounds__(256)
    gather(const float* __restrict__ volume,  // (C, Z, Y, X)
           int channels, int size_z, int size_y, int size_x,
           const int* __restrict__ starts,  // (B, 3) as z, y, x
           int window_z, int window_y, int window_x,
           const float* __restrict__ normalisation,  // (4, C)
           float* __restrict__ out) {                // (B, C, wz, wy, wx)
    const dropgen::Lane lane = dropgen::lane();
    if (lane.row >= window_y) return;
    const int py = lane.row, pz = int(blockIdx.y);
    const int window = int(blockIdx.z) / channels, channel = int(blockIdx.z) % channels;

    const int64_t z = int64_t(starts[3 * window]) + pz;
    const int64_t y = int64_t(starts[3 * window + 1]) + py;
    const int64_t start_x = starts[3 * window + 2];
    const dropgen::Span span = dropgen::inside(start_x, window_x, size_x);
    const bool row_inside =
        dropgen::contains(size_z, z) && dropgen::contains(size_y, y) && span.first < span.last;
    const int first_inside = row_inside ? int(span.first) : 0, end_inside = row_inside ? int(span.last) : 0;
    // Points at the volume's row as if it went on to where the window starts; read inside only.
    const float* const row = volume + ((channel * int64_t(size_z) + z) * size_y + y) * size_x + start_x;
    float* const to = out + ((int64_t(blockIdx.z) * window_z + pz) * window_y + py) * window_x;
    const auto n = dropgen::channel_normalisation(normalisation, channels, channel);

#pragma unroll 1
    for (int first = lane.x; first < window_x; first += dropgen::LANES * dropgen::IN_FLIGHT) {
        float value[dropgen::IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < dropgen::IN_FLIGHT; ++i) {
            const int px = first + i * dropgen::LANES;
            value[i] = px >= first_inside && px < end_inside ? row[px] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < dropgen::IN_FLIGHT; ++i) {
            const int px = first + i * dropgen::LANES;
            // padding happens after normalisation
            const bool inside = px >= first_inside && px < end_inside;
            if (px < window_x) to[px] = inside ? dropgen::normalise(value[i], n) : 0.0f;
        }
    }
}
