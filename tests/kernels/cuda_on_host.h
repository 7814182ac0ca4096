// Lets a C++ compiler read a .cu file and run one CUDA thread at a time. Our kernels neither share memory nor
// wait for each other, so one thread after another gives what a GPU would.
#pragma once

struct Position {
    unsigned x, y, z;
};

static Position blockIdx, blockDim, threadIdx;

#define __global__ __attribute__((visibility("default")))
#define __device__

extern "C" __global__ void place_thread(unsigned block_x, unsigned block_y, unsigned block_z,
                                        unsigned threads, unsigned thread) {
    blockIdx = {block_x, block_y, block_z};
    blockDim = {threads, 1, 1};
    threadIdx = {thread, 0, 0};
}
