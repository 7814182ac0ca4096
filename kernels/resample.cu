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

template <typename Voxel>
__device__ __forceinline__ float blended(const Voxel* __restrict__ at, const dropgen::Steps& steps, int count_z,
                                         const float* __restrict__ weight_z, int count_y,
                                         const float* __restrict__ weight_y) {
    float row = 0.0f;
    for (int ty = 0; ty < count_y; ++ty) {
        float plane = 0.0f;
        for (int tz = 0; tz < count_z; ++tz)
            plane = dropgen::with_tap(plane, weight_z[tz], float(at[tz * steps.z + ty * steps.y]));
        row = dropgen::with_tap(row, weight_y[ty], plane);
    }
    return row;
}

template <typename Voxel>
__device__ __forceinline__ void resample_row(const Voxel* __restrict__ volume, const dropgen::Steps& steps,
                                             const dropgen::Taps& z, const dropgen::Taps& y, const dropgen::Taps& x,
                                             int out_y, int out_x, int channels, const float* normalisation,
                                             float* __restrict__ out) {
    const dropgen::Lane lane = dropgen::lane();
    if (lane.row >= out_y) return;
    const int oz = int(blockIdx.y), oy = lane.row, channel = int(blockIdx.z);
    const Voxel* const row = volume + channel * steps.channel + z.first[oz] * steps.z + y.first[oy] * steps.y;
    const auto n = dropgen::channel_normalisation(normalisation, channels, channel);
    float* const to = out + ((int64_t(channel) * gridDim.y + oz) * out_y + oy) * out_x;
    for (int ox = lane.x; ox < out_x; ox += dropgen::LANES) {
        float sum = 0.0f;
        for (int tx = 0; tx < x.count[ox]; ++tx) {
            const float value = blended(row + (x.first[ox] + tx) * steps.x, steps, z.count[oz], z.weight + oz * z.most,
                                        y.count[oy], y.weight + oy * y.most);
            sum = dropgen::with_tap(sum, x.weight[ox * x.most + tx], value);
        }
        to[ox] = dropgen::normalise(sum, n);
    }
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
        resample_row<Voxel>(volume, {step_channel, step_z, step_y, step_x}, {z_first, z_count, z_weight, z_most}, \
                            {y_first, y_count, y_weight, y_most}, {x_first, x_count, x_weight, x_most}, out_y,  \
                            out_x, channels, normalisation, out);                                               \
    }

DROPGEN_RESAMPLE(resample_f32, float)
DROPGEN_RESAMPLE(resample_i16, int16_t)
DROPGEN_RESAMPLE(resample_u16, uint16_t)
DROPGEN_RESAMPLE(resample_u8, uint8_t)
