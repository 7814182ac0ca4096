// One warp writes one row of the output, each lane every 32nd voxel, and walks the classes: blockIdx.x and the
// warp give the output's y, blockIdx.y its z.
//
// Bytes moved per output voxel: 4 K read on the identity grid; elsewhere up to 32 K (8 corners), shared with
// neighbours in cache, so that every sum is still read from memory about once; 1 or 2 written, 4 more with the
// probability and 4 more with the margin. A corner of weight zero is not read.
// Operations per output voxel and class: 10 products, 7 sums, 1 comparison; 6 and 4 where lanes share what they blend;
// on the identity grid 2, 0 and 1.
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

// The rows of one class's sums that make one output row: those of weight other than zero. A class has fewer than 2^32
// sums: 32 bits for each offset leave registers for more loads.
struct Rows {
    int count;
    unsigned offset[4];
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
        rows.offset[place] = (unsigned(at_z) * unsigned(size.y) + unsigned(at_y)) * unsigned(size.x);
        rows.weight[place] =
            dropgen::corner_weight(upper_z ? in_z.side[1] : in_z.side[0], upper_y ? in_y.side[1] : in_y.side[0],
                                   totals_z[at_z], totals_y[at_y]);
    }
    return rows;
}

template <int COUNT>
__device__ __forceinline__ float blended(const float* sums, const Rows& rows, int x) {
    float value = rows.weight[0] * sums[rows.offset[0] + unsigned(x)];
#pragma unroll
    for (int r = 1; r < COUNT; ++r) value = value + rows.weight[r] * sums[rows.offset[r] + unsigned(x)];
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

// How a lane comes by one class's logit. Here: from its own voxel, where x is left as it is.
struct Kept {
    int x;
    float near;

    template <int COUNT>
    __device__ __forceinline__ float logit(const float* sums, const Rows& rows) const {
        return near * blended<COUNT>(sums, rows, x);
    }
};

// Here: between any two voxels along x.
struct Apart {
    Ends ends;

    template <int COUNT>
    __device__ __forceinline__ float logit(const float* sums, const Rows& rows) const {
        const float lower = blended<COUNT>(sums, rows, ends.lower);
        return dropgen::between(ends.near, lower, ends.far, blended<COUNT>(sums, rows, ends.upper));
    }
};

// Here: where the ends of all lanes lie among LANES voxels, as on any finer grid. Each lane blends the rows at one of
// these and looks its two ends up among what the others blended, which halves what is loaded.
struct Shared {
    int x;
    Ends ends;  // lower and upper: the lanes that blend them

    template <int COUNT>
    __device__ __forceinline__ float logit(const float* sums, const Rows& rows) const {
        const float own = blended<COUNT>(sums, rows, x);
        const float lower = __shfl_sync(dropgen::ALL_LANES, own, ends.lower);
        return dropgen::between(ends.near, lower, ends.far, __shfl_sync(dropgen::ALL_LANES, own, ends.upper));
    }
};

// One output row of a warp.
struct Row {
    const float* sums;
    int classes;
    int64_t stride;
    Rows rows;
    int length, lane;
};

// Walks the classes, STEP at a time: their loads stand before the first comparison, those of the last few classes, too.
// One after another each would wait for the memory; how many together is fastest was measured.
template <int COUNT, int STEP, bool EXTRAS, typename Source>
__device__ __forceinline__ Winner<EXTRAS> walk(const Row& row, const Source& source) {
    const float* __restrict__ sums = row.sums;
    const int classes = row.classes;
    Winner<EXTRAS> winner;
    int k = 0;
#pragma unroll 1
    for (; k + STEP <= classes; k += STEP) {
        float value[STEP];
#pragma unroll
        for (int i = 0; i < STEP; ++i) {
            value[i] = source.template logit<COUNT>(sums, row.rows);
            sums += row.stride;
        }
#pragma unroll
        for (int i = 0; i < STEP; ++i) winner.meet(value[i], k + i);
    }
    if (k == classes) return winner;
    float value[STEP];
#pragma unroll
    for (int i = 0; i < STEP; ++i) {
        value[i] = source.template logit<COUNT>(sums, row.rows);
        sums += k + i + 1 < classes ? row.stride : 0;  // the last class again: no load waits for a comparison
    }
#pragma unroll
    for (int i = 0; i < STEP; ++i)
        if (k + i < classes) winner.meet(value[i], k + i);
    return winner;
}

// Chooses by what the whole warp shares: how many rows count.
template <int STEP_OF_ONE, int STEP_OF_MORE, bool EXTRAS, typename Source>
__device__ __forceinline__ Winner<EXTRAS> win(const Row& row, const Source& source) {
    if (row.rows.count == 1) return walk<1, STEP_OF_ONE, EXTRAS>(row, source);
    if (row.rows.count == 2) return walk<2, STEP_OF_MORE, EXTRAS>(row, source);
    return walk<4, STEP_OF_MORE, EXTRAS>(row, source);
}

// Where a lane's output lies along x, and with which weights.
__device__ __forceinline__ Ends ends_of(const Side& axis, const float* totals, int at) {
    const dropgen::Sides side = dropgen::sides(axis.fraction[at]);
    const int lower = axis.lower[at], upper = axis.upper[at];
    return {lower, upper, dropgen::end_weight(side.lower, totals[lower]), dropgen::end_weight(side.upper, totals[upper])};
}

// The least of a value over the warp.
__device__ __forceinline__ int least(int value) {
#pragma unroll
    for (int lanes = dropgen::LANES / 2; lanes; lanes /= 2)
        value = min(value, __shfl_xor_sync(dropgen::ALL_LANES, value, lanes));
    return value;
}

template <bool EXTRAS, typename Write>
__device__ __forceinline__ void walk_kept(const Row& row, const Side& x, const float* totals_x, Write write) {
    for (int at = row.lane; at < row.length; at += dropgen::LANES) {
        const Kept kept{at, dropgen::end_weight(dropgen::sides(x.fraction[at]).lower, totals_x[at])};
        write(at, win<14, 2, EXTRAS>(row, kept));
    }
}

template <bool EXTRAS, typename Write>
__device__ __forceinline__ void walk_between(const Row& row, const Side& x, const float* totals_x, Write write) {
    // The whole warp comes along, lanes beyond the row's end too: the others may look up what they blend.
    for (int first = 0; first < row.length; first += dropgen::LANES) {
        const int at = min(first + row.lane, row.length - 1);
        const Ends ends = ends_of(x, totals_x, at);
        const int low = least(min(ends.lower, ends.upper)), high = -least(-max(ends.lower, ends.upper));
        const bool near = high - low < dropgen::LANES;
        const Shared shared{min(low + row.lane, high), {ends.lower - low, ends.upper - low, ends.near, ends.far}};
        const Winner<EXTRAS> winner =
            near ? win<4, 4, EXTRAS>(row, shared) : win<4, 2, EXTRAS>(row, Apart{ends});
        if (first + row.lane < row.length) write(at, winner);
    }
}

template <typename Label, bool EXTRAS>
__device__ __forceinline__ void finalise_row(const float* sums, int classes, const Extent& size, const float* totals_z,
                                             const float* totals_y, const float* totals_x, const Side& z, const Side& y,
                                             const Side& x, bool identity_x, int out_y, int out_x,
                                             Label* __restrict__ labels, float* __restrict__ probability,
                                             float* __restrict__ margin) {
    const dropgen::Lane lane = dropgen::lane();
    if (lane.row >= out_y) return;
    const int oz = int(blockIdx.y), oy = lane.row;
    const Row row{sums,  classes, int64_t(size.z) * size.y * size.x, rows_of(oz, oy, z, y, totals_z, totals_y, size),
                  out_x, lane.x};
    const int64_t to = (int64_t(oz) * out_y + oy) * out_x;
    const auto write = [=](int ox, const Winner<EXTRAS>& winner) {
        labels[to + ox] = Label(winner.label);
        if (EXTRAS && probability != nullptr) probability[to + ox] = 1.0f / winner.total;
        if (EXTRAS && margin != nullptr) margin[to + ox] = winner.best - winner.second;
    };
    if (identity_x)
        walk_kept<EXTRAS>(row, x, totals_x, write);
    else
        walk_between<EXTRAS>(row, x, totals_x, write);
}

}  // namespace

// sums (K, Z, Y, X); totals_* (Z), (Y), (X); *_lower, *_upper, *_fraction: the three AxisMaps; labels,
// probability and margin (nz, ny, nx), the last two may be null. finalise_u8 up to 256 classes, finalise_u16 above.
#define DROPGEN_FINALISE(name, Label)                                                                    \
    extern "C" __global__ void __launch_bounds__(256, dropgen::blocks(4))                                \
        name(const float* sums, int classes, int size_z, int size_y, int size_x, const float* totals_z,  \
             const float* totals_y, const float* totals_x, const int* z_lower, const int* z_upper,       \
             const float* z_fraction, const int* y_lower, const int* y_upper, const float* y_fraction,   \
             const int* x_lower, const int* x_upper, const float* x_fraction, int x_is_identity,         \
             int out_y, int out_x, Label* labels, float* probability, float* margin) {                   \
        const Extent size{size_z, size_y, size_x};                                                       \
        const Side z{z_lower, z_upper, z_fraction}, y{y_lower, y_upper, y_fraction};                     \
        const Side x{x_lower, x_upper, x_fraction};                                                      \
        if (probability != nullptr || margin != nullptr)                                                 \
            finalise_row<Label, true>(sums, classes, size, totals_z, totals_y, totals_x, z, y, x,        \
                                      x_is_identity != 0, out_y, out_x, labels, probability, margin);    \
        else                                                                                             \
            finalise_row<Label, false>(sums, classes, size, totals_z, totals_y, totals_x, z, y, x,       \
                                       x_is_identity != 0, out_y, out_x, labels, probability, margin);   \
    }

DROPGEN_FINALISE(finalise_u8, uint8_t)
DROPGEN_FINALISE(finalise_u16, uint16_t)
