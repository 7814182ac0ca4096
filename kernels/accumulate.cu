// One thread owns one accumulator voxel (k, z, y, x) of the windows' bounding box and walks the windows in
// order: blockIdx.x and threadIdx.x run over a (y, x) plane of the box, blockIdx.y is its z, blockIdx.z is k.
// No atomics.
//
// Bytes moved per accumulator voxel: 4 read and 4 written if a window covers it, 4 read per window that does.
// Operations per window that covers it: 3 products, 1 sum.
// Launch: grid (ceil(by * bx / block), bz, K), block THREADS_PER_BLOCK; the box is `bounding_box` in
// accumulate.py.

#include "accumulate.h"

extern "C" __global__ void accumulate(float* __restrict__ sums,  // (K, Z, Y, X)
                                      int size_z, int size_y, int size_x, int box_z, int box_y,
                                      int box_x,  // first voxel of the box
                                      int box_size_y, int box_size_x,
                                      const float* __restrict__ logits,  // (B, K, wz, wy, wx)
                                      int batch, int classes, int window_z, int window_y, int window_x,
                                      const int* __restrict__ starts,  // (B, 3) as z, y, x
                                      const float* __restrict__ weights_z,
                                      const float* __restrict__ weights_y,
                                      const float* __restrict__ weights_x) {
    const unsigned plane_index = blockIdx.x * blockDim.x + threadIdx.x;
    if (plane_index >= unsigned(box_size_y) * unsigned(box_size_x)) return;
    const int64_t k = blockIdx.z;
    const int64_t z = int64_t(box_z) + blockIdx.y;
    const int64_t y = int64_t(box_y) + plane_index / unsigned(box_size_x);
    const int64_t x = int64_t(box_x) + plane_index % unsigned(box_size_x);

    float* const own = sums + ((k * size_z + z) * size_y + y) * size_x + x;
    float sum = *own;
    bool covered = false;
    for (int b = 0; b < batch; ++b) {
        const int64_t pz = z - starts[3 * b];
        const int64_t py = y - starts[3 * b + 1];
        const int64_t px = x - starts[3 * b + 2];
        if (!dropgen::contains(window_z, pz) || !dropgen::contains(window_y, py) ||
            !dropgen::contains(window_x, px))
            continue;
        const float weight = dropgen::window_weight(weights_z[pz], weights_y[py], weights_x[px]);
        const int64_t at = (((b * int64_t(classes) + k) * window_z + pz) * window_y + py) * window_x + px;
        sum = dropgen::accumulated(sum, weight, logits[at]);
        covered = true;
    }
    if (covered) *own = sum;
}
