// One thread writes one window voxel: blockIdx.x and threadIdx.x run over a (y, x) plane, blockIdx.y is the
// window's z, blockIdx.z is window * channels + channel.
//
// Bytes moved per window voxel: 4 read (0 in padding), 4 written. Operations: 2 comparisons, 1 subtraction, 1
// product.
// Launch: grid (ceil(wy * wx / block), wz, B * C), block THREADS_PER_BLOCK.

#include "gather.h"

extern "C" __global__ void gather(const float* __restrict__ volume,  // (C, Z, Y, X)
                                  int channels, int size_z, int size_y, int size_x,
                                  const int* __restrict__ starts,  // (B, 3) as z, y, x
                                  int window_z, int window_y, int window_x,
                                  const float* __restrict__ normalisation,  // (4, C)
                                  float* __restrict__ out) {                // (B, C, wz, wy, wx)
    const unsigned plane_index = blockIdx.x * blockDim.x + threadIdx.x;
    if (plane_index >= unsigned(window_y) * unsigned(window_x)) return;
    const int py = int(plane_index / unsigned(window_x));
    const int px = int(plane_index % unsigned(window_x));
    const int pz = int(blockIdx.y);
    const int window = int(blockIdx.z) / channels;
    const int channel = int(blockIdx.z) % channels;

    const int64_t z = int64_t(starts[3 * window]) + pz;
    const int64_t y = int64_t(starts[3 * window + 1]) + py;
    const int64_t x = int64_t(starts[3 * window + 2]) + px;

    float value = 0.0f;  // padding happens after normalisation
    if (dropgen::contains(size_z, z) && dropgen::contains(size_y, y) && dropgen::contains(size_x, x)) {
        const auto n = dropgen::channel_normalisation(normalisation, channels, channel);
        value = dropgen::normalise(volume[((channel * int64_t(size_z) + z) * size_y + y) * size_x + x], n);
    }
    out[((int64_t(blockIdx.z) * window_z + pz) * window_y + py) * window_x + px] = value;
}
