// How the CUDA files share out rows: one warp walks one row along x, its 32 lanes side by side, so that every
// access of a warp is 32 neighbours whatever the row's length and alignment. IN_FLIGHT values per lane are loaded
// before the first is used; that, not the width of an access, is what fills the memory's pipeline.
#pragma once

namespace dropgen {

constexpr int LANES = 32;
constexpr int IN_FLIGHT = 4;

struct Lane {
    int row, x;  // the warp's row among those of blockIdx.x, and the lane's first place along it
};

__device__ inline Lane lane() {
    const int warps = int(blockDim.x) / LANES;
    return {int(blockIdx.x) * warps + int(threadIdx.x) / LANES, int(threadIdx.x) % LANES};
}

}  // namespace dropgen
