// One warp owns one row (k, z, y) of the accumulator inside the windows' bounding box, each lane every 32nd
// voxel, and walks the windows in order: blockIdx.x and the warp give the box's y, blockIdx.y its z, blockIdx.z is
// k. No atomics.
//
// Bytes moved per accumulator voxel: 4 read and 4 written if a window reaches its 128 voxels of the row, and per window that
// covers it 4 read (2 if the logits are half or bfloat16). Operations per window that covers it: 3 products, 1 sum.
// Launch: grid (ceil(by / warps per block), bz, K), block THREADS_PER_BLOCK; the box is `bounding_box` in
// accumulate.py.

#include "accumulate.h"
#include "warp.h"

// Blocks that share a multiprocessor: as many as registers suffice for without spills, which differs by architecture.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 1200
#define BLOCKS_OF_FLOATS 4
#else
#define BLOCKS_OF_FLOATS 5
#endif
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 1200)
#define BLOCKS_OF_HALVES 5
#else
#define BLOCKS_OF_HALVES 6
#endif

namespace {

template <typename Logit>
__device__ __forceinline__ void accumulate_row(float* __restrict__ sums, int size_z, int size_y, int size_x, int box_z,
                               int box_y, int box_x, int box_size_y, int box_size_x,
                               const Logit* __restrict__ logits, int batch, int classes, int window_z,
                               int window_y, int window_x, const int* __restrict__ starts,
                               const float* __restrict__ weights_z, const float* __restrict__ weights_y,
                               const float* __restrict__ weights_x) {
    using namespace dropgen;
    constexpr int TOGETHER = 4;
    const Lane own = lane();
    if (own.row >= box_size_y) return;
    const int k = int(blockIdx.z), z = box_z + int(blockIdx.y), y = box_y + own.row;
    float* const row = sums + ((int64_t(k) * size_z + z) * size_y + y) * size_x + box_x;

#pragma unroll 1
    for (int chunk = 0; chunk < box_size_x; chunk += LANES * TOGETHER) {
        const int first = chunk + own.x;
        float sum[TOGETHER] = {};
        bool loaded = false;
#pragma unroll 1
        for (int group = 0; group < batch; group += LANES) {
            // Each lane looks at one window: whether it covers the row, and any of the chunk. Unsigned, so that one
            // comparison sees both ends, and a start anywhere in 32 bits wraps to outside.
            const int b = group + own.x < batch ? group + own.x : batch - 1;
            const unsigned own_z = unsigned(z) - unsigned(starts[3 * b]);
            const unsigned own_y = unsigned(y) - unsigned(starts[3 * b + 1]);
            const int own_shift = int(unsigned(box_x + chunk) - unsigned(starts[3 * b + 2]));
            const bool covers = group + own.x < batch && own_z < unsigned(window_z) && own_y < unsigned(window_y) &&
                                own_shift < window_x && own_shift > -LANES * TOGETHER;
#pragma unroll 1
            for (unsigned left = __ballot_sync(ALL_LANES, covers); left; left &= left - 1) {
                const int lane = __ffs(int(left)) - 1;
                const unsigned pz = __shfl_sync(ALL_LANES, own_z, lane), py = __shfl_sync(ALL_LANES, own_y, lane);
                const unsigned shift = unsigned(__shfl_sync(ALL_LANES, own_shift, lane)) + own.x;
                if (!loaded) {
#pragma unroll
                    for (int i = 0; i < TOGETHER; ++i)
                        sum[i] = first + i * LANES < box_size_x ? row[first + i * LANES] : 0.0f;
                    loaded = true;
                }
                const Logit* const from =
                    logits + (((int64_t(group + lane) * classes + k) * window_z + pz) * window_y + py) * window_x;
                const float weight_z = weights_z[pz], weight_y = weights_y[py];
                Logit logit[TOGETHER] = {};
                float weight_x[TOGETHER] = {};
#pragma unroll
                for (int i = 0; i < TOGETHER; ++i) {
                    const unsigned px = shift + i * LANES;
                    if (px >= unsigned(window_x) || first + i * LANES >= box_size_x) continue;
                    logit[i] = from[px];
                    weight_x[i] = weights_x[px];
                }
#pragma unroll
                for (int i = 0; i < TOGETHER; ++i) {
                    if (shift + i * LANES >= unsigned(window_x)) continue;
                    const float weight = window_weight(weight_z, weight_y, weight_x[i]);
                    sum[i] = accumulated(sum[i], weight, widened(logit[i]));
                }
            }
        }
        if (!loaded) continue;
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i)
            if (first + i * LANES < box_size_x) row[first + i * LANES] = sum[i];
    }
}

}  // namespace

// sums (K, Z, Y, X); box_*: its first voxel and its size; logits (B, K, wz, wy, wx); starts (B, 3) as z, y, x.
#define DROPGEN_ACCUMULATE(name, Logit, wanted)                                                          \
    extern "C" __global__ void __launch_bounds__(256, dropgen::blocks(wanted))                           \
        name(float* sums, int size_z, int size_y, int size_x, int box_z, int box_y, int box_x,           \
             int box_size_y, int box_size_x, const Logit* logits, int batch, int classes, int window_z,  \
             int window_y, int window_x, const int* starts, const float* weights_z,                      \
             const float* weights_y, const float* weights_x) {                                           \
        accumulate_row<Logit>(sums, size_z, size_y, size_x, box_z, box_y, box_x, box_size_y, box_size_x, \
                              logits, batch, classes, window_z, window_y, window_x, starts, weights_z,   \
                              weights_y, weights_x);                                                     \
    }

DROPGEN_ACCUMULATE(accumulate_f32, float, BLOCKS_OF_FLOATS)
DROPGEN_ACCUMULATE(accumulate_f16, dropgen::Half, BLOCKS_OF_HALVES)
DROPGEN_ACCUMULATE(accumulate_bf16, dropgen::BFloat16, BLOCKS_OF_HALVES)
