// One warp writes one row of the output, each lane every 32nd voxel, and walks the classes: blockIdx.x and the
// warp give the output's y, blockIdx.y its z.
//
// Bytes moved per output voxel: 4 K read on the identity grid; elsewhere up to 32 K (8 corners), shared with
// neighbours in cache, so that every sum is still read from memory about once; 1 or 2 written, 4 more with the
// probability and 4 more with the margin. A corner of weight zero is not read.
// Operations per output voxel and class: 10 products, 7 sums, 1 comparison; on the identity grid 2, 0 and 1.
// Launch: grid (ceil(ny / warps per block), nz), block THREADS_PER_BLOCK.

#include "finalise.h"
#include "warp.h"

namespace {

struct Side {
    const int* lower;
    const int* upper;
    const float* fraction;
};

struct Extent {
    int z, y, x;
};

// The rows of one class's sums that make one output row: those of weight other than zero.
struct Rows {
    int count;
    int64_t offset[4];
    float weight[4];
};

// The voxels along x that one lane's output lies between.
struct Ends {
    int lower, upper;
    float near, far;
};

// Of the two neighbours along one axis those of weight other than zero, the lower first.
struct Neighbours {
    int count, at[2];
    float side[2];
};

__device__ __forceinline__ Neighbours neighbours(const Side& axis, int at) {
    const dropgen::Sides side = dropgen::sides(axis.fraction[at]);
    const int lower = axis.lower[at], upper = axis.upper[at];
    if (side.upper == 0.0f) return {1, {lower, lower}, {side.lower, side.lower}};
    if (side.lower == 0.0f) return {1, {upper, upper}, {side.upper, side.upper}};
    return {2, {lower, upper}, {side.lower, side.upper}};
}

__device__ __forceinline__ Rows rows_of(int oz, int oy, const Side& z, const Side& y, const float* totals_z,
                                        const float* totals_y, const Extent& size) {
    const Neighbours in_z = neighbours(z, oz), in_y = neighbours(y, oy);
    Rows rows;
    rows.count = in_z.count * in_y.count;
    const bool second_is_y = in_y.count == 2;
#pragma unroll
    for (int place = 0; place < 4; ++place) {
        const bool upper_z = place >= 2 || (place == 1 && !second_is_y);
        const bool upper_y = place == 3 || (place == 1 && second_is_y);
        const int at_z = upper_z ? in_z.at[1] : in_z.at[0], at_y = upper_y ? in_y.at[1] : in_y.at[0];
        rows.offset[place] = (int64_t(at_z) * size.y + at_y) * size.x;
        rows.weight[place] =
            dropgen::corner_weight(upper_z ? in_z.side[1] : in_z.side[0], upper_y ? in_y.side[1] : in_y.side[0],
                                   totals_z[at_z], totals_y[at_y]);
    }
    return rows;
}

template <int COUNT>
__device__ __forceinline__ float blended(const float* const* row, const Rows& rows, int x) {
    float value = rows.weight[0] * row[0][x];
#pragma unroll
    for (int r = 1; r < COUNT; ++r) value = value + rows.weight[r] * row[r][x];
    return value;
}

// The winner so far: its logit, the next one's, the class, and the softmax's running sum.
template <bool EXTRAS>
struct Winner {
    float best = 0.0f, second = dropgen::no_logit(), total = 1.0f;
    int label = 0;

    __device__ __forceinline__ void meet(float value, int k) {
        const bool wins = k == 0 || dropgen::beats(value, best);
        if (EXTRAS && k > 0) {
            total = dropgen::softmax_total(total, value, best);
            second = dropgen::runner_up(second, value, best);
        }
        best = wins ? value : best;
        label = wins ? k : label;
    }
};

template <int COUNT, bool IDENTITY_X>
__device__ __forceinline__ float logit(const float* const* row, const Rows& rows, const Ends& ends) {
    const float lower = blended<COUNT>(row, rows, ends.lower);
    if (IDENTITY_X) return ends.near * lower;
    return dropgen::between(ends.near, lower, ends.far, blended<COUNT>(row, rows, ends.upper));
}

template <int COUNT, bool IDENTITY_X, bool EXTRAS>
__device__ __forceinline__ Winner<EXTRAS> walk(const float* __restrict__ sums, int classes, int64_t stride, const Rows& rows,
                               const Ends& ends) {
    const float* row[COUNT];
#pragma unroll
    for (int r = 0; r < COUNT; ++r) row[r] = sums + rows.offset[r];
    Winner<EXTRAS> winner;
    // Loads of a few classes stand before the first comparison.
    constexpr int TOGETHER = COUNT == 1 && IDENTITY_X ? 8 : COUNT == 4 ? 2 : 4;
    int k = 0;
    for (; k + TOGETHER <= classes; k += TOGETHER) {
        float value[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
            value[i] = logit<COUNT, IDENTITY_X>(row, rows, ends);
#pragma unroll
            for (int r = 0; r < COUNT; ++r) row[r] += stride;
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) winner.meet(value[i], k + i);
    }
    if (k == classes) return winner;
    // The last few together, too: one after another, each would wait for the memory.
    float value[TOGETHER];
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) {
        value[i] = k + i < classes ? logit<COUNT, IDENTITY_X>(row, rows, ends) : 0.0f;
#pragma unroll
        for (int r = 0; r < COUNT; ++r) row[r] += stride;
    }
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i)
        if (k + i < classes) winner.meet(value[i], k + i);
    return winner;
}

// Chooses by what the whole warp shares: how many rows count, and whether x is left as it is.
template <bool EXTRAS>
__device__ __forceinline__ Winner<EXTRAS> win(const float* sums, int classes, int64_t stride, const Rows& rows, const Ends& ends,
                              bool identity_x) {
    if (rows.count == 1)
        return identity_x ? walk<1, true, EXTRAS>(sums, classes, stride, rows, ends)
                          : walk<1, false, EXTRAS>(sums, classes, stride, rows, ends);
    if (rows.count == 2)
        return identity_x ? walk<2, true, EXTRAS>(sums, classes, stride, rows, ends)
                          : walk<2, false, EXTRAS>(sums, classes, stride, rows, ends);
    return identity_x ? walk<4, true, EXTRAS>(sums, classes, stride, rows, ends)
                      : walk<4, false, EXTRAS>(sums, classes, stride, rows, ends);
}

template <typename Label, bool EXTRAS>
__device__ __forceinline__ void finalise_row(const float* sums, int classes, const Extent& size, const float* totals_z,
                             const float* totals_y, const float* totals_x, const Side& z, const Side& y,
                             const Side& x, bool identity_x, int out_y, int out_x, Label* __restrict__ labels,
                             float* __restrict__ probability, float* __restrict__ margin) {
    const dropgen::Lane lane = dropgen::lane();
    if (lane.row >= out_y) return;
    const int oz = int(blockIdx.y), oy = lane.row;
    const Rows rows = rows_of(oz, oy, z, y, totals_z, totals_y, size);
    const int64_t stride = int64_t(size.z) * size.y * size.x;
    const int64_t to = (int64_t(oz) * out_y + oy) * out_x;
    for (int ox = lane.x; ox < out_x; ox += dropgen::LANES) {
        const dropgen::Sides side = dropgen::sides(x.fraction[ox]);
        const int lower = x.lower[ox], upper = x.upper[ox];
        const Ends ends{lower, upper, dropgen::end_weight(side.lower, totals_x[lower]),
                        dropgen::end_weight(side.upper, totals_x[upper])};
        const Winner<EXTRAS> winner = win<EXTRAS>(sums, classes, stride, rows, ends, identity_x);
        labels[to + ox] = Label(winner.label);
        if (!EXTRAS) continue;
        if (probability != nullptr) probability[to + ox] = 1.0f / winner.total;
        if (margin != nullptr) margin[to + ox] = winner.best - winner.second;
    }
}

}  // namespace

// sums (K, Z, Y, X); totals_* (Z), (Y), (X); *_lower, *_upper, *_fraction: the three AxisMaps; labels,
// probability and margin (nz, ny, nx), the last two may be null. finalise_u8 up to 256 classes, finalise_u16 above.
#define DROPGEN_FINALISE(name, Label)                                                                        \
    extern "C" __global__ void __launch_bounds__(256, 3) name(                                              \
        const float* sums, int classes, int size_z, int size_y, int size_x,   \
                                    const float* totals_z, const float* totals_y, const float* totals_x,     \
                                    const int* z_lower, const int* z_upper, const float* z_fraction,         \
                                    const int* y_lower, const int* y_upper, const float* y_fraction,         \
                                    const int* x_lower, const int* x_upper, const float* x_fraction,         \
                                    int x_is_identity, int out_y, int out_x, Label* labels,                  \
                                    float* probability, float* margin) {                                     \
        const Extent size{size_z, size_y, size_x};                                                           \
        const Side z{z_lower, z_upper, z_fraction}, y{y_lower, y_upper, y_fraction};                         \
        const Side x{x_lower, x_upper, x_fraction};                                                          \
        if (probability != nullptr || margin != nullptr)                                                     \
            finalise_row<Label, true>(sums, classes, size, totals_z, totals_y, totals_x, z, y, x,            \
                                      x_is_identity != 0, out_y, out_x, labels, probability, margin);        \
        else                                                                                                 \
            finalise_row<Label, false>(sums, classes, size, totals_z, totals_y, totals_x, z, y, x,           \
                                       x_is_identity != 0, out_y, out_x, labels, probability, margin);       \
    }

DROPGEN_FINALISE(finalise_u8, uint8_t)
DROPGEN_FINALISE(finalise_u16, uint16_t)
