// statistics: one warp walks 32 columns of a plane along y, one per lane, so that its accesses lie side by side while a
// lane stays long within one label: blockIdx.x and the warp give x / 32, blockIdx.y is z. Whenever the label changes, a
// lane adds what it met to its block's table in shared memory, and the block adds that table to the result once.
// Atomics on whole numbers only, whose result does not depend on the order.
//
// Bytes moved per voxel: 1 or 2 and 4 read. Operations: 1 subtraction, 2 products, 2 comparisons, 2 sums.
// Launch: grid (ceil(ceil(nx / 32) / warps per block), nz), block THREADS_PER_BLOCK.

#include "statistics.h"
#include "warp.h"

namespace {

using Wide = unsigned long long;

// Labels from here on, of which few models have any, go to the result at once.
constexpr int SHARED_LABELS = 256;

// Lanes of a warp are mostly within one label, and would wait for each other at its sums: they share out a few tables.
constexpr int TABLES = 2;

// What one label has in one plane, or in a part of a column.
struct Part {
    unsigned count;
    Wide sum, squares;
    unsigned low_y, low_x, high_y, high_x;
};

__device__ __forceinline__ void add_to_result(long long* table, int label, const Part& part, int z) {
    long long* const row = table + int64_t(label) * dropgen::COLUMNS;
    atomicAdd(reinterpret_cast<Wide*>(row + dropgen::COUNT), Wide(part.count));
    atomicAdd(reinterpret_cast<Wide*>(row + dropgen::SUM), part.sum);
    atomicAdd(reinterpret_cast<Wide*>(row + dropgen::SQUARES), part.squares);
    atomicMin(row + dropgen::LOW_Z, (long long)z);
    atomicMin(row + dropgen::LOW_Y, (long long)part.low_y);
    atomicMin(row + dropgen::LOW_X, (long long)part.low_x);
    atomicMax(row + dropgen::HIGH_Z, (long long)z);
    atomicMax(row + dropgen::HIGH_Y, (long long)part.high_y);
    atomicMax(row + dropgen::HIGH_X, (long long)part.high_x);
}

// The same of a block's plane in words of 32 bits, which shared memory adds by itself; sums take two of them.
struct Words {
    unsigned count, sum[2], squares[2], low_y, low_x, high_y, high_x;
};

__device__ __forceinline__ void add_wide(unsigned* words, Wide value) {
    const unsigned low = unsigned(value), before = atomicAdd(words, low);
    const unsigned carry = before + low < before ? 1u : 0u;
    const unsigned high = unsigned(value >> 32) + carry;
    if (high) atomicAdd(words + 1, high);
}

__device__ __forceinline__ void add_to_block(Words* table, int label, const Part& part) {
    Words& words = table[label * TABLES];
    atomicAdd(&words.count, part.count);
    add_wide(words.sum, part.sum);
    add_wide(words.squares, part.squares);
    // A box seldom grows, and what is read is never further out than what is there: reading first spares the rest.
    if (words.low_y > part.low_y) atomicMin(&words.low_y, part.low_y);
    if (words.low_x > part.low_x) atomicMin(&words.low_x, part.low_x);
    if (words.high_y < part.high_y) atomicMax(&words.high_y, part.high_y);
    if (words.high_x < part.high_x) atomicMax(&words.high_x, part.high_x);
}

__device__ __forceinline__ Wide wide(const unsigned* words) { return Wide(words[1]) << 32 | words[0]; }

// A stretch of one label on the way down a column.
struct Stretch {
    int label = -1, first_y = 0;
    unsigned sum = 0;  // of up to 65536 rows, as the launch makes sure
    Wide squares = 0;
};

// `stretch`, which ends before row y of column x, as a part of its label.
__device__ __forceinline__ Part part_of(const Stretch& stretch, int y, int x) {
    return {unsigned(y - stretch.first_y), stretch.sum,     stretch.squares, unsigned(stretch.first_y),
            unsigned(x),                   unsigned(y - 1), unsigned(x)};
}

// ROWS rows of column x from `first` on: calls add(label, part) for every stretch of one label that ends among them.
template <int ROWS, typename Label, typename Add>
__device__ __forceinline__ void walk_rows(const Label* __restrict__ labels, const float* __restrict__ intensities,
                                          int64_t size_x, int first, int x, float offset, float scale, Stretch& stretch,
                                          Add add) {
    Label next[ROWS];
    float values[ROWS];
#pragma unroll
    for (int k = 0; k < ROWS; ++k) {
        next[k] = labels[k * size_x];
        values[k] = intensities[k * size_x];
    }
#pragma unroll
    for (int k = 0; k < ROWS; ++k) {
        if (int(next[k]) != stretch.label) {
            if (stretch.label >= 0) add(stretch.label, part_of(stretch, first + k, x));
            stretch = Stretch{int(next[k]), first + k};
        }
        const unsigned own = unsigned(dropgen::level(values[k], offset, scale));
        stretch.sum += own;
        stretch.squares += own * own;  // 16 bits squared are 32
    }
}

// Column x of one plane, AHEAD rows at a time, and the last few one by one.
template <typename Label, typename Add>
__device__ __forceinline__ void walk_column(const Label* __restrict__ labels, const float* __restrict__ intensities,
                                            int size_y, int size_x, int x, float offset, float scale, Add add) {
    constexpr int AHEAD = 8;
    labels += x;
    intensities += x;
    Stretch stretch;
    int y = 0;
#pragma unroll 1
    for (; y + AHEAD <= size_y; y += AHEAD, labels += AHEAD * size_x, intensities += AHEAD * size_x)
        walk_rows<AHEAD>(labels, intensities, size_x, y, x, offset, scale, stretch, add);
#pragma unroll 1
    for (; y < size_y; ++y, labels += size_x, intensities += size_x)
        walk_rows<1>(labels, intensities, size_x, y, x, offset, scale, stretch, add);
    if (stretch.label >= 0) add(stretch.label, part_of(stretch, size_y, x));
}

template <typename Label>
__device__ __forceinline__ void walk_plane(const Label* __restrict__ labels, const float* __restrict__ intensities,
                                           int size_y, int size_x, float offset, float scale, int z, Words* block,
                                           long long* table) {
    for (int i = int(threadIdx.x); i < TABLES * SHARED_LABELS; i += int(blockDim.x))
        block[i] = Words{0, {0, 0}, {0, 0}, 0xffffffffu, 0xffffffffu, 0, 0};
    __syncthreads();

    const dropgen::Lane lane = dropgen::lane();
    const int x = lane.row * dropgen::LANES + lane.x;
    const int64_t plane = int64_t(blockIdx.y) * size_y * size_x;
    Words* const mine = block + lane.x % TABLES;
    if (x < size_x)
        walk_column(labels + plane, intensities + plane, size_y, size_x, x, offset, scale,
                    [=](int label, const Part& part) {
                        if (label < SHARED_LABELS) add_to_block(mine, label, part);
                        else add_to_result(table, label, part, z);
                    });

    __syncthreads();
    for (int i = int(threadIdx.x); i < TABLES * SHARED_LABELS; i += int(blockDim.x)) {
        const Words& own = block[i];
        if (own.count == 0) continue;
        const Part part{own.count, wide(own.sum), wide(own.squares), own.low_y, own.low_x, own.high_y, own.high_x};
        add_to_result(table, i / TABLES, part, z);
    }
}

}  // namespace

// labels, intensities (nz, ny, nx), the planes from first_z on; table (labels, 9) int64, see statistics.py.
#define DROPGEN_STATISTICS(name, Label)                                                                        \
    extern "C" __global__ void __launch_bounds__(256, dropgen::blocks(5))                                      \
        name(const Label* labels, const float* intensities, int size_y, int size_x, float offset, float scale, \
             int first_z, long long* table) {                                                                  \
        __shared__ Words block[TABLES * SHARED_LABELS];                                                        \
        const int z = first_z + int(blockIdx.y);                                                               \
        walk_plane(labels, intensities, size_y, size_x, offset, scale, z, block, table);                       \
    }

DROPGEN_STATISTICS(statistics_u8, uint8_t)
DROPGEN_STATISTICS(statistics_u16, uint16_t)
