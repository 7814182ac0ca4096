// statistics: a piece is ROWS rows of a plane, as wide as a block; blocks take every n-th piece. One lane walks one
// column of it along y, so that a warp's accesses lie side by side while a lane stays long within one label. Whenever
// the label changes, a lane adds what it met to its block's table in shared memory, and the block adds that table to
// the result once, in the end: many blocks that did so would wait for each other. Atomics on whole numbers only, whose
// result does not depend on the order.
//
// Bytes moved per voxel: 1 or 2 and 4 read. Operations: 1 subtraction, 2 products, 2 comparisons, 2 sums.
// Launch: grid (up to STATISTICS_BLOCKS), block THREADS_PER_BLOCK.

#include "statistics.h"
#include "warp.h"

namespace {

using Wide = unsigned long long;

// Labels from here on, of which few models have any, go to the result at once.
constexpr int SHARED_LABELS = 256;

// Rows of a piece: enough pieces that blocks end at about the same time.
constexpr int ROWS = 128;

// What one label has in a part of a column, or in all that a block met.
struct Part {
    unsigned count;
    Wide sum, squares;
    unsigned low_z, low_y, low_x, high_z, high_y, high_x;
};

__device__ __forceinline__ void add_to_result(long long* table, int label, const Part& part) {
    long long* const row = table + int64_t(label) * dropgen::COLUMNS;
    atomicAdd(reinterpret_cast<Wide*>(row + dropgen::COUNT), Wide(part.count));
    atomicAdd(reinterpret_cast<Wide*>(row + dropgen::SUM), part.sum);
    atomicAdd(reinterpret_cast<Wide*>(row + dropgen::SQUARES), part.squares);
    atomicMin(row + dropgen::LOW_Z, (long long)part.low_z);
    atomicMin(row + dropgen::LOW_Y, (long long)part.low_y);
    atomicMin(row + dropgen::LOW_X, (long long)part.low_x);
    atomicMax(row + dropgen::HIGH_Z, (long long)part.high_z);
    atomicMax(row + dropgen::HIGH_Y, (long long)part.high_y);
    atomicMax(row + dropgen::HIGH_X, (long long)part.high_x);
}

// The same in words of 32 bits, which shared memory adds by itself; sums take two of them.
struct Words {
    unsigned count, sum[2], squares[2], low_z, low_y, low_x, high_z, high_y, high_x;
};

__device__ __forceinline__ void add_wide(unsigned* words, Wide value) {
    const unsigned low = unsigned(value), before = atomicAdd(words, low);
    const unsigned carry = before + low < before ? 1u : 0u;
    const unsigned high = unsigned(value >> 32) + carry;
    if (high) atomicAdd(words + 1, high);
}

__device__ __forceinline__ void add_to_block(Words* table, int label, const Part& part) {
    Words& words = table[label];
    atomicAdd(&words.count, part.count);
    add_wide(words.sum, part.sum);
    add_wide(words.squares, part.squares);
    // A box seldom grows, and what is read is never further out than what is there: reading first spares the rest.
    if (words.low_z > part.low_z) atomicMin(&words.low_z, part.low_z);
    if (words.low_y > part.low_y) atomicMin(&words.low_y, part.low_y);
    if (words.low_x > part.low_x) atomicMin(&words.low_x, part.low_x);
    if (words.high_z < part.high_z) atomicMax(&words.high_z, part.high_z);
    if (words.high_y < part.high_y) atomicMax(&words.high_y, part.high_y);
    if (words.high_x < part.high_x) atomicMax(&words.high_x, part.high_x);
}

__device__ __forceinline__ Wide wide(const unsigned* words) { return Wide(words[1]) << 32 | words[0]; }

// A stretch of one label on the way down a column.
struct Stretch {
    int label = -1, first_y = 0;
    unsigned sum = 0;  // 16 bits each of up to ROWS
    Wide squares = 0;
};

// Where a piece of a column lies.
struct Place {
    int z, x;
};

// `stretch`, which ends before row y, as a part of its label.
__device__ __forceinline__ Part part_of(const Stretch& stretch, int y, const Place& at) {
    const unsigned z = unsigned(at.z), x = unsigned(at.x);
    return {unsigned(y - stretch.first_y), stretch.sum, stretch.squares, z, unsigned(stretch.first_y), x,
            z, unsigned(y - 1), x};
}

// COUNT rows from `first` on: calls add(label, part) for every stretch of one label that ends among them.
template <int COUNT, typename Label, typename Add>
__device__ __forceinline__ void walk_rows(const Label* __restrict__ labels, const float* __restrict__ intensities,
                                          int64_t size_x, int first, const Place& at, float offset, float scale,
                                          Stretch& stretch, Add add) {
    Label next[COUNT];
    float values[COUNT];
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
        next[k] = labels[k * size_x];
        values[k] = intensities[k * size_x];
    }
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
        if (int(next[k]) != stretch.label) {
            if (stretch.label >= 0) add(stretch.label, part_of(stretch, first + k, at));
            stretch = Stretch{int(next[k]), first + k};
        }
        const unsigned own = unsigned(dropgen::level(values[k], offset, scale));
        stretch.sum += own;
        stretch.squares += own * own;  // 16 bits squared are 32
    }
}

// Rows `first` to `end` of a column, whose row `first` the pointers are at: AHEAD at a time, the last few one by one.
template <typename Label, typename Add>
__device__ __forceinline__ void walk_column(const Label* __restrict__ labels, const float* __restrict__ intensities,
                                            int first, int end, int size_x, const Place& at, float offset, float scale,
                                            Add add) {
    constexpr int AHEAD = 8;
    Stretch stretch;
    int y = first;
#pragma unroll 1
    for (; y + AHEAD <= end; y += AHEAD, labels += AHEAD * size_x, intensities += AHEAD * size_x)
        walk_rows<AHEAD>(labels, intensities, size_x, y, at, offset, scale, stretch, add);
#pragma unroll 1
    for (; y < end; ++y, labels += size_x, intensities += size_x)
        walk_rows<1>(labels, intensities, size_x, y, at, offset, scale, stretch, add);
    if (stretch.label >= 0) add(stretch.label, part_of(stretch, end, at));
}

template <typename Label>
__device__ __forceinline__ void walk(const Label* __restrict__ labels, const float* __restrict__ intensities,
                                     int size_z, int size_y, int size_x, float offset, float scale, int first_z,
                                     int known, Words* block, long long* table) {
    const int shared = min(known, SHARED_LABELS);
    for (int i = int(threadIdx.x); i < shared; i += int(blockDim.x))
        block[i] = Words{0, {0, 0}, {0, 0}, 0xffffffffu, 0xffffffffu, 0xffffffffu, 0, 0, 0};
    __syncthreads();

    const auto add = [=](int label, const Part& part) {
        if (label >= known) return;
        if (label < SHARED_LABELS) add_to_block(block, label, part);
        else add_to_result(table, label, part);
    };
    const int along_x = (size_x + int(blockDim.x) - 1) / int(blockDim.x), along_y = (size_y + ROWS - 1) / ROWS;
#pragma unroll 1
    for (int piece = int(blockIdx.x); piece < along_x * along_y * size_z; piece += int(gridDim.x)) {
        const int x = piece % along_x * int(blockDim.x) + int(threadIdx.x), in_plane = piece / along_x;
        const int first = in_plane % along_y * ROWS, z = in_plane / along_y;
        const int64_t from = (int64_t(z) * size_y + first) * size_x + x;
        if (x < size_x)
            walk_column(labels + from, intensities + from, first, min(first + ROWS, size_y), size_x,
                        Place{first_z + z, x}, offset, scale, add);
    }

    __syncthreads();
    for (int i = int(threadIdx.x); i < shared; i += int(blockDim.x)) {
        const Words& own = block[i];
        if (own.count == 0) continue;
        add_to_result(table, i, {own.count, wide(own.sum), wide(own.squares), own.low_z, own.low_y, own.low_x,
                                 own.high_z, own.high_y, own.high_x});
    }
}

}  // namespace

// labels, intensities (nz, ny, nx), the planes from first_z on; table (known, 9) int64, see statistics.py.
#define DROPGEN_STATISTICS(name, Label)                                                                            \
    extern "C" __global__ void __launch_bounds__(256, dropgen::blocks(5))                                          \
        name(const Label* labels, const float* intensities, int size_z, int size_y, int size_x, float offset,      \
             float scale, int first_z, int known, long long* table) {                                              \
        __shared__ Words block[SHARED_LABELS];                                                                     \
        walk(labels, intensities, size_z, size_y, size_x, offset, scale, first_z, known, block, table);            \
    }

DROPGEN_STATISTICS(statistics_u8, uint8_t)
DROPGEN_STATISTICS(statistics_u16, uint16_t)
