// One warp writes one row of the working grid, each lane every 32nd voxel: blockIdx.x and the warp give its y,
// blockIdx.y its z, blockIdx.z is the channel. The source is read where it lies, by its steps, so that any orientation
// costs no copy.
//
// Bytes moved: the source once (1, 2 or 4 per voxel; its voxels are shared by neighbours in cache), 4 written per
// output voxel. Operations per output voxel: tz * ty * (tx + 1) products and sums, with t the taps per axis: 2 each
// where the working grid is as fine as the source or finer, 2 r + 1 at most where it is r times coarser.
// Launch: grid (ceil(ny / warps per block), nz, C), block THREADS_PER_BLOCK.

#include "resample.h"
#include "warp.h"

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
    // With one tap per axis only the memory is waited for: several voxels per lane at once.
    constexpr int TOGETHER = MOST == 1 ? 4 : 1;
#pragma unroll 1
    for (int start = first_x; start < out_x; start += dropgen::LANES * TOGETHER) {
        float value[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
            const int ox = start + i * dropgen::LANES < out_x ? start + i * dropgen::LANES : out_x - 1;
            const int count[3] = {count_z, count_y, x.count[ox]};
            const Voxel* const at = row + x.first[ox] * steps.x;
            const float* const weight_x = x.weight + int64_t(ox) * x.most;
            value[i] = MOST ? tapped<MOST>(at, steps, count, weight_z, weight_y, weight_x)
                            : tapped_by_many(at, steps, count, weight_z, weight_y, weight_x);
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i)
            if (start + i * dropgen::LANES < out_x) to[start + i * dropgen::LANES] = dropgen::normalise(value[i], n);
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
    const int64_t most_zy = count_z > count_y ? count_z : count_y;
    const int64_t most = most_zy > x.most ? most_zy : x.most;  // the same for the whole warp
    if (most == 1)
        resample_row<1>(row, steps, count_z, count_y, weight_z, weight_y, x, lane.x, out_x, n, to);
    else if (most == 2)
        resample_row<2>(row, steps, count_z, count_y, weight_z, weight_y, x, lane.x, out_x, n, to);
    else
        resample_row<0>(row, steps, count_z, count_y, weight_z, weight_y, x, lane.x, out_x, n, to);
}

}  // namespace

// volume: the address of voxel (0, 0, 0, 0); step_*: elements from one voxel to the next along an axis;
// *_first, *_count, *_weight, *_most: the taps of each axis; normalisation (4, C); out (C, nz, ny, nx).
#define DROPGEN_RESAMPLE(name, Voxel)                                                                           \
    extern "C" __global__ void __launch_bounds__(256, 3)                                                         \
        name(const Voxel* volume, int64_t step_channel, int64_t step_z, int64_t step_y, int64_t step_x,         \
             const int* z_first, const int* z_count, const float* z_weight, int z_most, const int* y_first,     \
             const int* y_count, const float* y_weight, int y_most, const int* x_first, const int* x_count,     \
             const float* x_weight, int x_most, int out_y, int out_x, int channels, const float* normalisation, \
             float* out) {                                                                                      \
        resample<Voxel>(volume, {step_channel, step_z, step_y, step_x}, {z_first, z_count, z_weight, z_most}, \
                            {y_first, y_count, y_weight, y_most}, {x_first, x_count, x_weight, x_most}, out_y,  \
                            out_x, channels, normalisation, out);                                               \
    }

DROPGEN_RESAMPLE(resample_f32, float)
DROPGEN_RESAMPLE(resample_i16, int16_t)
DROPGEN_RESAMPLE(resample_u16, uint16_t)
DROPGEN_RESAMPLE(resample_u8, uint8_t)
