// One warp writes ROWS_PER_WARP rows of a window, two at a time, each lane every 32nd voxel: blockIdx.x and the warp
// give the rows' y, blockIdx.y their z, blockIdx.z is window * channels + channel.
//
// Bytes moved per window voxel: 4 read (0 in padding), 4 written: its floor is that of a copy. Operations: 2
// comparisons, 1 subtraction, 1 product.
// Launch: grid (ceil(ceil(wy / ROWS_PER_WARP) / warps per block), wz, B * C), block THREADS_PER_BLOCK.

#include "gather.h"
#include "warp.h"

extern "C" __global__ void __launch_bounds__(256, dropgen::blocks(6))
    gather(const float* __restrict__ volume,  // (C, Z, Y, X)
           int channels, int size_z, int size_y, int size_x,
           const int* __restrict__ starts,  // (B, 3) as z, y, x
           int window_z, int window_y, int window_x,
           const float* __restrict__ normalisation,  // (4, C)
           float* __restrict__ out) {                // (B, C, wz, wy, wx)
    using namespace dropgen;
    const Lane lane = dropgen::lane();
    const int pz = int(blockIdx.y), window = int(blockIdx.z) / channels, channel = int(blockIdx.z) % channels;
    const int first_y = lane.row * ROWS_PER_WARP, end_y = min(first_y + ROWS_PER_WARP, window_y);

    const int64_t z = int64_t(starts[3 * window]) + pz, start_y = starts[3 * window + 1];
    const int64_t start_x = starts[3 * window + 2];
    const Span span = inside(start_x, window_x, size_x), lines = inside(start_y, window_y, size_y);
    const bool meets = contains(size_z, z) && span.first < span.last && lines.first < lines.last;
    // Of a row its places in the volume, of the window its rows there; all of int: registers are what limits the warps.
    const int first_inside = meets ? int(span.first) : 0, end_inside = meets ? int(span.last) : 0;
    const int first_row = meets ? int(lines.first) : 0, end_row = meets ? int(lines.last) : 0;
    const auto n = channel_normalisation(normalisation, channels, channel);
    // Points at the volume's row as if it went on to where the window starts; read inside only.
    const float* row = volume + ((channel * int64_t(size_z) + z) * size_y + start_y + first_y) * size_x + start_x;
    float* to = out + ((int64_t(blockIdx.z) * window_z + pz) * window_y + first_y) * window_x;

    constexpr int PAIR = 2;  // rows whose loads are on their way together
    static_assert(ROWS_PER_WARP % PAIR == 0, "a warp's last pair would be another's first");
#pragma unroll 1
    for (int py = first_y; py < end_y; py += PAIR, row += PAIR * int64_t(size_x), to += PAIR * int64_t(window_x)) {
#pragma unroll 1
        for (int first = lane.x; first < window_x; first += LANES * IN_FLIGHT) {
            float value[PAIR][IN_FLIGHT];
#pragma unroll
            for (int r = 0; r < PAIR; ++r) {
                const int end = py + r >= first_row && py + r < end_row ? end_inside : 0;
#pragma unroll
                for (int i = 0; i < IN_FLIGHT; ++i) {
                    const int px = first + i * LANES;
                    value[r][i] = px >= first_inside && px < end ? row[r * int64_t(size_x) + px] : 0.0f;
                }
            }
#pragma unroll
            for (int r = 0; r < PAIR; ++r) {
                if (py + r >= end_y) break;
                const int end = py + r >= first_row && py + r < end_row ? end_inside : 0;
#pragma unroll
                for (int i = 0; i < IN_FLIGHT; ++i) {
                    const int px = first + i * LANES;
                    // padding happens after normalisation
                    if (px < window_x)
                        to[r * window_x + px] = px >= first_inside && px < end ? normalise(value[r][i], n) : 0.0f;
                }
            }
        }
    }
}
