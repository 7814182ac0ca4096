// One thread writes one output voxel and walks the classes: blockIdx.x and threadIdx.x run over a (y, x)
// plane of the output, blockIdx.y is its z.
//
// Bytes moved per output voxel: 32 K read (8 corners, shared with neighbours in cache: 4 K on the identity
// grid), 1 or 2 written, 4 more with the probability.
// Operations per output voxel and class: 10 products, 7 sums, 1 comparison.
// Launch: grid (ceil(ny * nx / block), nz), block THREADS_PER_BLOCK.

#include "finalise.h"

namespace {

struct Side {
    const int* lower;
    const int* upper;
    const float* fraction;
};

template <typename Label>
__device__ void finalise_voxel(const float* __restrict__ sums, int classes, int size_z, int size_y,
                               int size_x, const float* __restrict__ totals_z,
                               const float* __restrict__ totals_y, const float* __restrict__ totals_x, Side z,
                               Side y, Side x, int out_y, int out_x, Label* __restrict__ labels,
                               float* __restrict__ probability) {
    const unsigned plane_index = blockIdx.x * blockDim.x + threadIdx.x;
    if (plane_index >= unsigned(out_y) * unsigned(out_x)) return;
    const int oz = int(blockIdx.y);
    const int oy = int(plane_index / unsigned(out_x));
    const int ox = int(plane_index % unsigned(out_x));

    // Corner 2 * (upper z) + (upper y), and end e of x: the weights do not depend on the class.
    const dropgen::Sides side_z = dropgen::sides(z.fraction[oz]), side_y = dropgen::sides(y.fraction[oy]);
    const dropgen::Sides side_x = dropgen::sides(x.fraction[ox]);
    const int at_x[2] = {x.lower[ox], x.upper[ox]};
    const float near = dropgen::end_weight(side_x.lower, totals_x[at_x[0]]);
    const float far = dropgen::end_weight(side_x.upper, totals_x[at_x[1]]);
    int64_t row[4];
    float weight[4];
    for (int corner = 0; corner < 4; ++corner) {
        const int at_z = corner / 2 ? z.upper[oz] : z.lower[oz];
        const int at_y = corner % 2 ? y.upper[oy] : y.lower[oy];
        row[corner] = (int64_t(at_z) * size_y + at_y) * size_x;
        weight[corner] =
            dropgen::corner_weight(corner / 2 ? side_z.upper : side_z.lower,
                                   corner % 2 ? side_y.upper : side_y.lower, totals_z[at_z], totals_y[at_y]);
    }

    const int64_t stride = int64_t(size_z) * size_y * size_x;
    float best = 0.0f, total = 1.0f;
    int label = 0;
    for (int k = 0; k < classes; ++k) {
        const float* const own = sums + k * stride;
        float end[2];
        for (int e = 0; e < 2; ++e) {
            end[e] = weight[0] * own[row[0] + at_x[e]];
            for (int corner = 1; corner < 4; ++corner)
                end[e] = end[e] + weight[corner] * own[row[corner] + at_x[e]];
        }
        const float value = dropgen::between(near, end[0], far, end[1]);
        if (k > 0 && probability != nullptr) total = dropgen::softmax_total(total, value, best);
        if (k == 0 || dropgen::beats(value, best)) {
            best = value;
            label = k;
        }
    }
    const int64_t out = (int64_t(oz) * out_y + oy) * out_x + ox;
    labels[out] = Label(label);
    if (probability != nullptr) probability[out] = 1.0f / total;
}

}  // namespace

// sums (K, Z, Y, X); totals_* (Z), (Y), (X); *_lower, *_upper, *_fraction: the three AxisMaps; labels and
// probability (nz, ny, nx), probability may be null. finalise_u8 up to 256 classes, finalise_u16 above.
#define DROPGEN_FINALISE(name, Label)                                                                    \
    extern "C" __global__ void name(const float* sums, int classes, int size_z, int size_y, int size_x,  \
                                    const float* totals_z, const float* totals_y, const float* totals_x, \
                                    const int* z_lower, const int* z_upper, const float* z_fraction,     \
                                    const int* y_lower, const int* y_upper, const float* y_fraction,     \
                                    const int* x_lower, const int* x_upper, const float* x_fraction,     \
                                    int out_y, int out_x, Label* labels, float* probability) {           \
        finalise_voxel<Label>(sums, classes, size_z, size_y, size_x, totals_z, totals_y, totals_x,       \
                              {z_lower, z_upper, z_fraction}, {y_lower, y_upper, y_fraction},            \
                              {x_lower, x_upper, x_fraction}, out_y, out_x, labels, probability);        \
    }

DROPGEN_FINALISE(finalise_u8, uint8_t)
DROPGEN_FINALISE(finalise_u16, uint16_t)
