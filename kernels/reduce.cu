// extremes: one warp walks one row of a window through all its planes, each lane every 32nd voxel: blockIdx.x and the
// warp give the window's y, blockIdx.z is window * channels + channel. histogram: thread i of all takes every n-th
// value. Atomics on whole numbers only, whose result does not depend on the order.
//
// Bytes moved per voxel: 4 read; its floor is half that of a copy. Operations: 2 comparisons; 2 shifts, 1 comparison.
// Launch: extremes grid (ceil(wy / warps per block), 1, N * C); histogram grid (HISTOGRAM_BLOCKS); block
// THREADS_PER_BLOCK.

#include "reduce.h"
#include "warp.h"

// out (N, C, 2) as keys, filled with (0xffffffff, 0): the least and the greatest.
extern "C" __global__ void __launch_bounds__(256)
    extremes(const float* __restrict__ volume,  // (C, Z, Y, X)
             int channels, int size_z, int size_y, int size_x,
             const int* __restrict__ starts,  // (N, 3) as z, y, x
             int window_z, int window_y, int window_x, unsigned* __restrict__ out) {
    using namespace dropgen;
    const Lane own = lane();
    if (own.row >= window_y) return;
    const int window = int(blockIdx.z) / channels, channel = int(blockIdx.z) % channels;
    const int64_t start_z = starts[3 * window], start_x = starts[3 * window + 2];
    const int64_t y = int64_t(starts[3 * window + 1]) + own.row;
    const Span zs = inside(start_z, window_z, size_z), xs = inside(start_x, window_x, size_x);
    if (!contains(size_y, y)) return;

    unsigned low = 0xffffffffu, high = 0u;
    for (int64_t pz = zs.first; pz < zs.last; ++pz) {
        const float* const row = volume + ((channel * int64_t(size_z) + start_z + pz) * size_y + y) * size_x + start_x;
        for (int64_t px = xs.first + own.x; px < xs.last; px += LANES) {
            const unsigned key = key_of(row[px]);
            low = key < low ? key : low;
            high = key > high ? key : high;
        }
    }
    if (low > high) return;  // this lane met no voxel
    atomicMin(out + 2 * blockIdx.z, low);
    atomicMax(out + 2 * blockIdx.z + 1, high);
}

// counts (copies, 1 << bits), zeroed: blocks share the copies out, so that they seldom meet.
extern "C" __global__ void __launch_bounds__(256)
    histogram(const float* __restrict__ values, int64_t count, int shift, int bits, unsigned prefix, int copies,
              unsigned* __restrict__ counts) {
    using namespace dropgen;
    const Digit digit{shift, bits, prefix};
    unsigned* const own = counts + (int64_t(blockIdx.x % unsigned(copies)) << bits);
    const int64_t stride = int64_t(gridDim.x) * blockDim.x;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
        const unsigned key = key_of(values[i]);
        if (counts_for(key, digit)) atomicAdd(own + digit_of(key, digit), 1u);
    }
}
