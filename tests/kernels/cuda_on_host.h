// Lets a C++ compiler read a .cu file and run one CUDA thread at a time. Where threads wait for each other at
// __syncthreads, each has a stack of its own and is left there until all of its block have come as far.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <ucontext.h>
#include <utility>
#include <vector>

using std::min;

struct Position {
    unsigned x, y, z;
};

static Position gridDim, blockIdx, blockDim, threadIdx;

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One block runs at a time; what an earlier one left there must not matter.
#define __shared__ static

// The threads of one block that wait for each other.
struct Block {
    static constexpr std::size_t STACK_BYTES = 1 << 16;
    std::vector<ucontext_t> threads;
    std::vector<std::vector<char>> stacks;
    std::vector<char> done;
    ucontext_t scheduler;
    std::function<void()> work;
};

static Block block_of_threads;

inline void __syncthreads() {
    const unsigned mine = threadIdx.x;
    swapcontext(&block_of_threads.threads[mine], &block_of_threads.scheduler);
}

inline void run_waiting_thread() {
    block_of_threads.work();
    block_of_threads.done[threadIdx.x] = 1;
}

// In rounds: each thread runs to its next wait, or to its end.
inline void run_block_together(unsigned threads, std::function<void()> work) {
    Block& block = block_of_threads;
    block.threads.resize(threads);
    block.stacks.resize(threads, std::vector<char>(Block::STACK_BYTES));
    block.done.assign(threads, 0);
    block.work = std::move(work);
    for (unsigned i = 0; i < threads; ++i) {
        getcontext(&block.threads[i]);
        block.threads[i].uc_stack.ss_sp = block.stacks[i].data();
        block.threads[i].uc_stack.ss_size = Block::STACK_BYTES;
        block.threads[i].uc_link = &block.scheduler;
        makecontext(&block.threads[i], run_waiting_thread, 0);
    }
    // Threads that end while others wait are what a GPU has no defined result for.
    for (unsigned ended = 0; ended < threads; ended = unsigned(std::count(block.done.begin(), block.done.end(), 1))) {
        if (ended) std::abort();
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
            swapcontext(&block.scheduler, &block.threads[threadIdx.x]);
    }
}

// Every thread of a grid in turn, with the parameters as the driver takes them: addresses of the values.
template <bool together, typename... Parameters, std::size_t... Index>
void run_grid(void (*kernel)(Parameters...), const unsigned* grid, unsigned threads, void** parameters,
              std::index_sequence<Index...>) {
    const auto run_thread = [=] { kernel(*static_cast<Parameters*>(parameters[Index])...); };
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
                if (together)
                    run_block_together(threads, run_thread);
                else
                    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) run_thread();
}

template <bool together, typename... Parameters>
void run_grid(void (*kernel)(Parameters...), const unsigned* grid, unsigned threads, void** parameters) {
    run_grid<together>(kernel, grid, threads, parameters, std::index_sequence_for<Parameters...>{});
}

#define RUNS_ON_HOST(entry, together)                                                                            \
    extern "C" __attribute__((visibility("default"))) void run_##entry(const unsigned* grid, unsigned threads, \
                                                                       void** parameters) {                 \
        run_grid<together>(entry, grid, threads, parameters);                                               \
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
