// One warp owns ROWS neighbouring rows (k, z, y) of the accumulator inside the windows' bounding box, each lane every
// 32nd voxel, and walks the windows in order: blockIdx.x and the warp give the box's y, blockIdx.y its z, blockIdx.z
// is k. No atomics. Rows side by side are covered by much the same windows: what is looked up for one serves all,
// and their logits are on their way together.
//
// Bytes moved per accumulator voxel: 4 read and 4 written if a window reaches its 64 voxels of the rows, and per window
// that covers it 4 read (2 if the logits are half or bfloat16). Operations per window that covers it: 3 products, 1 sum.
// Launch: grid (ceil(ceil(by / ROWS) / warps per block), bz, K), block THREADS_PER_BLOCK; the box is `bounding_box` in
// accumulate.py.

#include "accumulate.h"
#include "warp.h"

namespace {

constexpr int ROWS = 4, TOGETHER = 2;

// The windows of a group, one a lane, as a warp's rows and 64 voxels of them meet them.
struct Meeting {
    unsigned z, y;  // the rows' plane and the first of them, in the window
    int shift;      // the first voxel, in the window
    bool any;
};

// Unsigned, so that one comparison sees both ends, and a start anywhere in 32 bits wraps to outside.
__device__ __forceinline__ Meeting meet(const int* start, int z, int y, int x, unsigned window_z, unsigned window_y,
                                        int window_x) {
    const unsigned own_z = unsigned(z) - unsigned(start[0]), own_y = unsigned(y) - unsigned(start[1]);
    const int shift = int(unsigned(x) - unsigned(start[2]));
    constexpr unsigned BEFORE = ROWS - 1;  // the first row may lie above the window, if the last does not
    return {own_z, own_y, shift,
            own_z < window_z && own_y + BEFORE < window_y + BEFORE && shift < window_x &&
                shift > -dropgen::LANES * TOGETHER};
}

template <typename Logit>
__device__ __forceinline__ void accumulate_rows(float* __restrict__ sums, int size_z, int size_y, int size_x, int box_z,
                                                int box_y, int box_x, int box_size_y, int box_size_x,
                                                const Logit* __restrict__ logits, int batch, int classes, int window_z,
                                                int window_y, int window_x, const int* __restrict__ starts,
                                                const float* __restrict__ weights_z,
                                                const float* __restrict__ weights_y,
                                                const float* __restrict__ weights_x) {
    using namespace dropgen;
    const Lane own = lane();
    const int first_y = own.row * ROWS, rows = min(ROWS, box_size_y - first_y);
    if (rows <= 0) return;
    const int k = int(blockIdx.z), z = box_z + int(blockIdx.y), y = box_y + first_y;
    float* const row = sums + ((int64_t(k) * size_z + z) * size_y + y) * size_x + box_x;

#pragma unroll 1
    for (int chunk = 0; chunk < box_size_x; chunk += LANES * TOGETHER) {
        const int first = chunk + own.x;
        float sum[ROWS][TOGETHER] = {};
        bool loaded = false;
#pragma unroll 1
        for (int group = 0; group < batch; group += LANES) {
            const int b = min(group + own.x, batch - 1);
            const Meeting met = meet(starts + 3 * b, z, y, box_x + chunk, window_z, window_y, window_x);
#pragma unroll 1
            for (unsigned left = __ballot_sync(ALL_LANES, group + own.x < batch && met.any); left; left &= left - 1) {
                const int lane = __ffs(int(left)) - 1;
                const unsigned pz = __shfl_sync(ALL_LANES, met.z, lane), py = __shfl_sync(ALL_LANES, met.y, lane);
                const unsigned shift = unsigned(__shfl_sync(ALL_LANES, met.shift, lane)) + own.x;
                if (!loaded) {
#pragma unroll
                    for (int r = 0; r < ROWS; ++r)
#pragma unroll
                        for (int i = 0; i < TOGETHER; ++i)
                            sum[r][i] =
                                r < rows && first + i * LANES < box_size_x ? row[r * size_x + first + i * LANES] : 0.0f;
                    loaded = true;
                }
                const Logit* const from =
                    logits + (((int64_t(group + lane) * classes + k) * window_z + pz) * window_y + int(py)) * window_x;
                Logit logit[ROWS][TOGETHER] = {};
                float weight_x[TOGETHER] = {}, weight_y[ROWS] = {};
                const float weight_z = weights_z[pz];
#pragma unroll
                for (int r = 0; r < ROWS; ++r)
                    if (py + r < unsigned(window_y)) weight_y[r] = weights_y[py + r];
#pragma unroll
                for (int i = 0; i < TOGETHER; ++i) {
                    const unsigned px = shift + i * LANES;
                    if (px >= unsigned(window_x) || first + i * LANES >= box_size_x) continue;
#pragma unroll
                    for (int r = 0; r < ROWS; ++r)
                        if (py + r < unsigned(window_y) && r < rows) logit[r][i] = from[r * window_x + int(px)];
                    weight_x[i] = weights_x[px];
                }
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    if (py + r >= unsigned(window_y)) continue;
#pragma unroll
                    for (int i = 0; i < TOGETHER; ++i) {
                        if (shift + i * LANES >= unsigned(window_x)) continue;
                        const float weight = window_weight(weight_z, weight_y[r], weight_x[i]);
                        sum[r][i] = accumulated(sum[r][i], weight, widened(logit[r][i]));
                    }
                }
            }
        }
        if (!loaded) continue;
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i)
                if (r < rows && first + i * LANES < box_size_x) row[r * size_x + first + i * LANES] = sum[r][i];
    }
}

}  // namespace

// sums (K, Z, Y, X); box_*: its first voxel and its size; logits (B, K, wz, wy, wx); starts (B, 3) as z, y, x.
#define DROPGEN_ACCUMULATE(name, Logit)                                                                  \
    extern "C" __global__ void __launch_bounds__(256, dropgen::blocks(4))                                \
        name(float* sums, int size_z, int size_y, int size_x, int box_z, int box_y, int box_x,           \
             int box_size_y, int box_size_x, const Logit* logits, int batch, int classes, int window_z,  \
             int window_y, int window_x, const int* starts, const float* weights_z,                      \
             const float* weights_y, const float* weights_x) {                                           \
        accumulate_rows<Logit>(sums, size_z, size_y, size_x, box_z, box_y, box_x, box_size_y,            \
                               box_size_x, logits, batch, classes, window_z, window_y, window_x, starts, \
                               weights_z, weights_y, weights_x);                                         \
    }

DROPGEN_ACCUMULATE(accumulate_f32, float)
DROPGEN_ACCUMULATE(accumulate_f16, dropgen::Half)
DROPGEN_ACCUMULATE(accumulate_bf16, dropgen::BFloat16)
