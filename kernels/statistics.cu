// statistics: one warp walks 32 columns of a plane along y, one per lane, so that its accesses lie side by side while a
// lane stays long within one label, and adds what it met to the table whenever the label changes: blockIdx.x and the
// warp give x / 32, blockIdx.y is z. Atomics on whole numbers only, whose result does
// not depend on the order.
//
// Bytes moved per voxel: 1 or 2 and 4 read. Operations: 1 subtraction, 2 products, 2 comparisons, 2 sums.
// Launch: grid (ceil(ceil(nx / 32) / warps per block), nz), block THREADS_PER_BLOCK.

#include "statistics.h"
#include "warp.h"

namespace {

using Wide = unsigned long long;

struct Run {
    int label = -1, first = 0, last = 0;
    Wide count = 0, sum = 0, squares = 0;
};

__device__ __forceinline__ void add(long long* table, const Run& run, int z, int x) {
    if (run.label < 0) return;
    long long* const row = table + int64_t(run.label) * dropgen::COLUMNS;
    atomicAdd(reinterpret_cast<Wide*>(row + dropgen::COUNT), run.count);
    atomicAdd(reinterpret_cast<Wide*>(row + dropgen::SUM), run.sum);
    atomicAdd(reinterpret_cast<Wide*>(row + dropgen::SQUARES), run.squares);
    // Once a label is known, most boxes lie inside its box: look before the slow part.
    if (z < row[dropgen::LOW_Z]) atomicMin(row + dropgen::LOW_Z, (long long)z);
    if (run.first < row[dropgen::LOW_Y]) atomicMin(row + dropgen::LOW_Y, (long long)run.first);
    if (x < row[dropgen::LOW_X]) atomicMin(row + dropgen::LOW_X, (long long)x);
    if (z > row[dropgen::HIGH_Z]) atomicMax(row + dropgen::HIGH_Z, (long long)z);
    if (run.last > row[dropgen::HIGH_Y]) atomicMax(row + dropgen::HIGH_Y, (long long)run.last);
    if (x > row[dropgen::HIGH_X]) atomicMax(row + dropgen::HIGH_X, (long long)x);
}

template <typename Label>
__device__ __forceinline__ void walk_column(const Label* __restrict__ labels, const float* __restrict__ intensities,
                                            int size_y, int size_x, float offset, float scale, int first_z,
                                            long long* table) {
    const dropgen::Lane lane = dropgen::lane();
    const int x = lane.row * dropgen::LANES + lane.x, z = first_z + int(blockIdx.y);
    if (x >= size_x) return;
    const int64_t plane = int64_t(blockIdx.y) * size_y * size_x;
    Run run;
    for (int y = 0; y < size_y; ++y) {
        const int64_t at = plane + int64_t(y) * size_x + x;
        const int label = int(labels[at]);
        if (label != run.label) {
            add(table, run, z, x);
            run = Run{};
            run.label = label;
            run.first = y;
        }
        const Wide own = Wide(dropgen::level(intensities[at], offset, scale));
        run.last = y;
        run.count += 1;
        run.sum += own;
        run.squares += own * own;
    }
    add(table, run, z, x);
}

}  // namespace

// labels, intensities (nz, ny, nx), the planes from first_z on; table (labels, 9) int64, see statistics.py.
#define DROPGEN_STATISTICS(name, Label)                                                                        \
    extern "C" __global__ void __launch_bounds__(256)                                                          \
        name(const Label* labels, const float* intensities, int size_y, int size_x, float offset, float scale, \
             int first_z, long long* table) {                                                                  \
        walk_column<Label>(labels, intensities, size_y, size_x, offset, scale, first_z, table);                   \
    }

DROPGEN_STATISTICS(statistics_u8, uint8_t)
DROPGEN_STATISTICS(statistics_u16, uint16_t)
