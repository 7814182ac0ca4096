// extremes: one warp walks one row of a window through all its planes, each lane every 32nd voxel: blockIdx.x and the
// warp give the window's y, blockIdx.z is window * channels + channel. histogram: blocks take every n-th stretch of
// values, count them in shared memory and add what they counted to the result once. Atomics on whole numbers only,
// whose result does not depend on the order.
//
// Bytes moved per voxel: 4 read; its floor is half that of a copy. Operations: 2 comparisons; 2 shifts, 1 comparison.
// Launch: extremes grid (ceil(wy / warps per block), 1, N * C); histogram grid (up to HISTOGRAM_BLOCKS); block
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

// counts (copies, 1 << bits), zeroed, bits at most 11: blocks share the copies out, so that they seldom meet.
extern "C" __global__ void __launch_bounds__(256)
    histogram(const float* __restrict__ values, int64_t count, int shift, int bits, unsigned prefix, int copies,
              unsigned* __restrict__ counts) {
    using namespace dropgen;
    // Neighbours in an image are alike: neighbouring lanes count in different tables, or they would wait for each other.
    constexpr int TABLES = 2, MOST_BITS = 11;
    __shared__ unsigned tables[TABLES << MOST_BITS];
    for (int i = int(threadIdx.x); i < TABLES << bits; i += int(blockDim.x)) tables[i] = 0u;
    __syncthreads();

    const Digit digit{shift, bits, prefix};
    unsigned* const mine = tables + threadIdx.x % TABLES;
    const int64_t stretch = int64_t(blockDim.x) * IN_FLIGHT;
    for (int64_t first = blockIdx.x * stretch + threadIdx.x; first < count; first += gridDim.x * stretch) {
        float ahead[IN_FLIGHT];
#pragma unroll
        for (int k = 0; k < IN_FLIGHT; ++k) {
            const int64_t i = first + int64_t(k) * blockDim.x;
            ahead[k] = i < count ? values[i] : 0.0f;
        }
#pragma unroll
        for (int k = 0; k < IN_FLIGHT; ++k) {
            const unsigned key = key_of(ahead[k]);
            if (first + int64_t(k) * blockDim.x < count && counts_for(key, digit))
                atomicAdd(mine + digit_of(key, digit) * TABLES, 1u);
        }
    }

    __syncthreads();
    unsigned* const own = counts + (int64_t(blockIdx.x % unsigned(copies)) << bits);
    for (int i = int(threadIdx.x); i < 1 << bits; i += int(blockDim.x)) {
        unsigned sum = 0;
        for (int k = 0; k < TABLES; ++k) sum += tables[i * TABLES + k];
        if (sum) atomicAdd(own + i, sum);
    }
}
