// resample: one warp writes one row of the working grid, each lane every 32nd voxel: blockIdx.x and the warp give its y,
// blockIdx.y its z, blockIdx.z is the channel. resample_one_tap: the same where no output voxel has more than one tap, by
// ROWS_PER_WARP rows a warp. The source is read where it lies, by its steps, so that any orientation costs no copy.
//
// Bytes moved: the source once (1, 2 or 4 per voxel; its voxels are shared by neighbours in cache), 4 written per
// output voxel. Operations per output voxel: tz * ty * (tx + 1) products and sums, with t the taps per axis: 2 each
// where the working grid is as fine as the source or finer, 2 r + 1 at most where it is r times coarser.
// Launch: grid (ceil(ny / warps per block), nz, C), of resample_one_tap (ceil(ceil(ny / ROWS_PER_WARP) / warps per block),
// nz, C), block THREADS_PER_BLOCK.

#include "resample.h"
#include "warp.h"

// Blocks that share a multiprocessor: as many as registers suffice for without spills, which differs by architecture.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 1200
#define BLOCKS 3
#else
#define BLOCKS 4
#endif

namespace {

// One output voxel from at most MOST taps per axis. Taps beyond an axis' own have weight zero and read its first voxel
// again: they add nothing, and no load waits for a comparison.
template <int MOST, typename Voxel>
__device__ __forceinline__ float tapped(const Voxel* __restrict__ at, const dropgen::Steps& steps, const int* count,
                                        const float* weight_z, const float* weight_y, const float* weight_x) {
    float sum = 0.0f;
#pragma unroll
    for (int tx = 0; tx < MOST; ++tx) {
        float row = 0.0f;
#pragma unroll
        for (int ty = 0; ty < MOST; ++ty) {
            float plane = 0.0f;
#pragma unroll
            for (int tz = 0; tz < MOST; ++tz) {
                const int64_t step = (tz < count[0] ? tz : 0) * steps.z + (ty < count[1] ? ty : 0) * steps.y +
                                     (tx < count[2] ? tx : 0) * steps.x;
                plane = dropgen::with_tap(plane, tz < count[0] ? weight_z[tz] : 0.0f, float(at[step]));
            }
            row = dropgen::with_tap(row, ty < count[1] ? weight_y[ty] : 0.0f, plane);
        }
        sum = dropgen::with_tap(sum, tx < count[2] ? weight_x[tx] : 0.0f, row);
    }
    return sum;
}

// The same for any number of taps.
template <typename Voxel>
__device__ __forceinline__ float tapped_by_many(const Voxel* __restrict__ at, const dropgen::Steps& steps,
                                                const int* count, const float* weight_z, const float* weight_y,
                                                const float* weight_x) {
    float sum = 0.0f;
    for (int tx = 0; tx < count[2]; ++tx) {
        float row = 0.0f;
        for (int ty = 0; ty < count[1]; ++ty) {
            float plane = 0.0f;
#pragma unroll 4
            for (int tz = 0; tz < count[0]; ++tz)
                plane = dropgen::with_tap(plane, weight_z[tz], float(at[tz * steps.z + ty * steps.y + tx * steps.x]));
            row = dropgen::with_tap(row, weight_y[ty], plane);
        }
        sum = dropgen::with_tap(sum, weight_x[tx], row);
    }
    return sum;
}

template <int MOST, typename Voxel>
__device__ __forceinline__ void resample_row(const Voxel* __restrict__ row, const dropgen::Steps& steps, int count_z,
                                             int count_y, const float* weight_z, const float* weight_y,
                                             const dropgen::Taps& x, int first_x, int out_x,
                                             const dropgen::ChannelNormalisation& n, float* __restrict__ to) {
#pragma unroll 1
    for (int ox = first_x; ox < out_x; ox += dropgen::LANES) {
        const int count[3] = {count_z, count_y, x.count[ox]};
        const Voxel* const at = row + x.first[ox] * steps.x;
        const float* const weight_x = x.weight + int64_t(ox) * x.most;
        const float value = MOST ? tapped<MOST>(at, steps, count, weight_z, weight_y, weight_x)
                                 : tapped_by_many(at, steps, count, weight_z, weight_y, weight_x);
        to[ox] = dropgen::normalise(value, n);
    }
}

template <typename Voxel>
__device__ __forceinline__ void resample(const Voxel* __restrict__ volume, const dropgen::Steps& steps,
                                         const dropgen::Taps& z, const dropgen::Taps& y, const dropgen::Taps& x,
                                         int out_y, int out_x, int channels, const float* normalisation,
                                         float* __restrict__ out) {
    const dropgen::Lane lane = dropgen::lane();
    if (lane.row >= out_y) return;
    const int oz = int(blockIdx.y), oy = lane.row, channel = int(blockIdx.z);
    const Voxel* const row = volume + channel * steps.channel + z.first[oz] * steps.z + y.first[oy] * steps.y;
    const auto n = dropgen::channel_normalisation(normalisation, channels, channel);
    float* const to = out + ((int64_t(channel) * gridDim.y + oz) * out_y + oy) * out_x;
    const float *const weight_z = z.weight + oz * z.most, *const weight_y = y.weight + oy * y.most;
    const int count_z = z.count[oz], count_y = y.count[oy];
    const int most = max(max(count_z, count_y), int(x.most));  // the same for the whole warp
    if (most <= 2)
        resample_row<2>(row, steps, count_z, count_y, weight_z, weight_y, x, lane.x, out_x, n, to);
    else
        resample_row<0>(row, steps, count_z, count_y, weight_z, weight_y, x, lane.x, out_x, n, to);
}

// Only the memory is waited for: many loads stand before the first use, and what a place along x has for its tap is
// looked up once for all rows.
template <typename Voxel>
__device__ __forceinline__ void resample_one_tap(const Voxel* __restrict__ volume, const dropgen::Steps& steps,
                                                 const dropgen::Taps& z, const dropgen::Taps& y, const dropgen::Taps& x,
                                                 int out_y, int out_x, int channels, const float* normalisation,
                                                 float* __restrict__ out) {
    using namespace dropgen;
    constexpr int TOGETHER = 8;
    const Lane lane = dropgen::lane();
    const int oz = int(blockIdx.y), first_y = lane.row * ROWS_PER_WARP, channel = int(blockIdx.z);
    const int end_y = min(first_y + ROWS_PER_WARP, out_y);
    const Voxel* const plane = volume + channel * steps.channel + z.first[oz] * steps.z;
    const auto n = channel_normalisation(normalisation, channels, channel);
    float* const to = out + ((int64_t(channel) * gridDim.y + oz) * out_y + first_y) * out_x;
    const float weight_z = z.weight[oz];
#pragma unroll 1
    for (int start = lane.x; start < out_x; start += LANES * TOGETHER) {
        int at[TOGETHER];  // 32 bits, as the launch makes sure, leave registers for more warps
        float weight_x[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
            const int ox = min(start + i * LANES, out_x - 1);
            at[i] = x.first[ox] * int(steps.x);
            weight_x[i] = x.weight[ox];
        }
        float* own = to + start;
#pragma unroll 1
        for (int oy = first_y; oy < end_y; ++oy, own += out_x) {
            const Voxel* const row = plane + y.first[oy] * steps.y;
            const float weight_y = y.weight[oy];
            Voxel value[TOGETHER];
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i) value[i] = row[at[i]];
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i) {
                const float along_z = with_tap(0.0f, weight_z, float(value[i]));
                const float sum = with_tap(0.0f, weight_x[i], with_tap(0.0f, weight_y, along_z));
                if (start + i * LANES < out_x) own[i * LANES] = normalise(sum, n);
            }
        }
    }
}

}  // namespace

// volume: the address of voxel (0, 0, 0, 0); step_*: elements from one voxel to the next along an axis;
// *_first, *_count, *_weight, *_most: the taps of each axis; normalisation (4, C); out (C, nz, ny, nx).
#define DROPGEN_RESAMPLE(operation, name, Voxel)                                                                \
    extern "C" __global__ void __launch_bounds__(256, dropgen::blocks(BLOCKS))                                  \
        name(const Voxel* volume, int64_t step_channel, int64_t step_z, int64_t step_y, int64_t step_x,         \
             const int* z_first, const int* z_count, const float* z_weight, int z_most, const int* y_first,     \
             const int* y_count, const float* y_weight, int y_most, const int* x_first, const int* x_count,     \
             const float* x_weight, int x_most, int out_y, int out_x, int channels, const float* normalisation, \
             float* out) {                                                                                      \
        operation<Voxel>(volume, {step_channel, step_z, step_y, step_x}, {z_first, z_count, z_weight, z_most},  \
                         {y_first, y_count, y_weight, y_most}, {x_first, x_count, x_weight, x_most}, out_y,     \
                         out_x, channels, normalisation, out);                                                  \
    }

DROPGEN_RESAMPLE(resample, resample_f32, float)
DROPGEN_RESAMPLE(resample, resample_i16, int16_t)
DROPGEN_RESAMPLE(resample, resample_u16, uint16_t)
DROPGEN_RESAMPLE(resample, resample_u8, uint8_t)
DROPGEN_RESAMPLE(resample_one_tap, resample_one_tap_f32, float)
DROPGEN_RESAMPLE(resample_one_tap, resample_one_tap_i16, int16_t)
DROPGEN_RESAMPLE(resample_one_tap, resample_one_tap_u16, uint16_t)
DROPGEN_RESAMPLE(resample_one_tap, resample_one_tap_u8, uint8_t)
