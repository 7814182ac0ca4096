// How the CUDA files share out rows: one warp walks one row, or a few, along x, its 32 lanes side by side, so that every
// access of a warp is 32 neighbours whatever the row's length and alignment. (statistics walks columns, side by side.)
// Several values per lane, IN_FLIGHT where a file does not say otherwise, are loaded before the first is used; that, not the
// width of an access, is what fills the memory's pipeline.
#pragma once

namespace dropgen {

constexpr int LANES = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int IN_FLIGHT = 4;

// Rows that one warp writes, where one alone would be over before what is looked up for it has paid.
constexpr int ROWS_PER_WARP = 4;

// Blocks of 256 threads that are to share a multiprocessor, for __launch_bounds__: what is wanted, or as many as it holds.
constexpr int blocks(int wanted) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 750
    constexpr int most = 4;
#elif defined(__CUDA_ARCH__) && \
    (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 870 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ == 1200)
    constexpr int most = 6;
#else
    constexpr int most = 8;
#endif
    return wanted < most ? wanted : most;
}

struct Lane {
    int row, x;  // the warp's row among those of blockIdx.x, and the lane's first place along it
};

__device__ inline Lane lane() {
    const int warps = int(blockDim.x) / LANES;
    return {int(blockIdx.x) * warps + int(threadIdx.x) / LANES, int(threadIdx.x) % LANES};
}

}  // namespace dropgen
