// Lets a C++ compiler read a .cu file and run one CUDA thread at a time. Our kernels neither share memory nor
// wait for each other, so one thread after another gives what a GPU would.
#pragma once

#include <cmath>
#include <utility>

struct Position {
    unsigned x, y, z;
};

static Position gridDim, blockIdx, blockDim, threadIdx;

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

// Every thread of a grid in turn, with the parameters as the driver takes them: addresses of the values.
template <typename... Parameters, std::size_t... Index>
void run_grid(void (*kernel)(Parameters...), const unsigned* grid, unsigned threads, void** parameters,
              std::index_sequence<Index...>) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
                for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
                    kernel(*static_cast<Parameters*>(parameters[Index])...);
}

template <typename... Parameters>
void run_grid(void (*kernel)(Parameters...), const unsigned* grid, unsigned threads, void** parameters) {
    run_grid(kernel, grid, threads, parameters, std::index_sequence_for<Parameters...>{});
}

#define RUNS_ON_HOST(entry)                                                                                 \
    extern "C" __attribute__((visibility("default"))) void run_##entry(const unsigned* grid, unsigned threads, \
                                                                       void** parameters) {                 \
        run_grid(entry, grid, threads, parameters);                                                         \
    }

// One thread at a time needs no atomics.
template <typename Number>
Number atomicAdd(Number* address, Number value) {
    const Number before = *address;
    *address = before + value;
    return before;
}

template <typename Number>
Number atomicMin(Number* address, Number value) {
    const Number before = *address;
    *address = value < before ? value : before;
    return before;
}

template <typename Number>
Number atomicMax(Number* address, Number value) {
    const Number before = *address;
    *address = value > before ? value : before;
    return before;
}
