// Lets a C++ compiler read a .cu file and run one CUDA thread at a time. Where threads wait for each other, those of a
// block at __syncthreads or those of a warp at a shuffle, each has a stack of its own and is left there until all of them
// have come as far. No file may have both.
#pragma once

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdlib>
#include <functional>
#include <ucontext.h>
#include <utility>
#include <vector>

using std::max;
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

// The threads of one block, or of one warp, that wait for each other. ucontext starts a thread on a stack of its own; from
// then on jumps lead to it and back, which spare the system calls of a change of context.
struct Block {
    static constexpr std::size_t STACK_BYTES = 1 << 16;
    unsigned first;
    std::vector<jmp_buf> waiting;
    std::vector<std::vector<char>> stacks;
    std::vector<char> done;
    jmp_buf scheduler;
    std::function<void()> work;
};

static Block block_of_threads;

inline void wait_for_the_others() {
    Block& block = block_of_threads;
    if (!_setjmp(block.waiting[threadIdx.x - block.first])) _longjmp(block.scheduler, 1);
}

inline void __syncthreads() { wait_for_the_others(); }

constexpr unsigned LANES_OF_A_WARP = 32;

// What all lanes of the warp show each other; in turns, so that none is overwritten before all have looked. Lanes that meet
// at different lines, or a warp that is not whole, are what a GPU has no defined result for.
template <typename Value>
const Value* shown(unsigned lanes, Value value, int line) {
    static Value places[2][LANES_OF_A_WARP];
    static int lines[2][LANES_OF_A_WARP];
    static unsigned turn[LANES_OF_A_WARP];
    const unsigned own = threadIdx.x % LANES_OF_A_WARP, now = turn[own]++ % 2;
    if (lanes != 0xffffffffu || blockDim.x % LANES_OF_A_WARP) std::abort();
    places[now][own] = value;
    lines[now][own] = line;
    wait_for_the_others();
    if (std::any_of(lines[now], lines[now] + LANES_OF_A_WARP, [=](int other) { return other != line; })) std::abort();
    return places[now];
}

template <typename Value>
Value __shfl_sync(unsigned lanes, Value value, int lane, int line = __builtin_LINE()) {
    return shown(lanes, value, line)[unsigned(lane) % LANES_OF_A_WARP];
}

template <typename Value>
Value __shfl_xor_sync(unsigned lanes, Value value, int other, int line = __builtin_LINE()) {
    return shown(lanes, value, line)[(threadIdx.x % LANES_OF_A_WARP) ^ unsigned(other)];
}

inline unsigned __ballot_sync(unsigned lanes, bool vote, int line = __builtin_LINE()) {
    const bool* const all = shown(lanes, vote, line);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < LANES_OF_A_WARP; ++lane) votes |= unsigned(all[lane]) << lane;
    return votes;
}

inline int __ffs(int bits) { return __builtin_ffs(bits); }

inline void run_waiting_thread() {
    block_of_threads.work();
    block_of_threads.done[threadIdx.x - block_of_threads.first] = 1;
    _longjmp(block_of_threads.scheduler, 1);
}

inline void start_thread(std::vector<char>& stack) {
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack.data();
    context.uc_stack.ss_size = Block::STACK_BYTES;
    context.uc_link = nullptr;
    makecontext(&context, run_waiting_thread, 0);
    setcontext(&context);
}

// In rounds: each of the threads from `first` on runs to its next wait, or to its end.
inline void run_together(unsigned first, unsigned threads, std::function<void()> work) {
    Block& block = block_of_threads;
    block.first = first;
    if (block.stacks.size() < threads) block.stacks.resize(threads, std::vector<char>(Block::STACK_BYTES));
    block.waiting = std::vector<jmp_buf>(threads);
    block.done.assign(threads, 0);
    block.work = std::move(work);
    // Threads that end while others wait are what a GPU has no defined result for.
    for (unsigned ended = 0, round = 0; ended < threads; ++round) {
        if (ended) std::abort();
        for (volatile unsigned i = 0; i < threads; i = i + 1) {
            threadIdx.x = first + i;
            if (_setjmp(block.scheduler)) continue;
            if (round)
                _longjmp(block.waiting[i], 1);
            else
                start_thread(block.stacks[i]);
        }
        ended = unsigned(std::count(block.done.begin(), block.done.end(), 1));
    }
}

// Every thread of a grid, `together` at a time or, if that is 0, a block of them; with the parameters as the driver takes
// them: addresses of the values.
template <unsigned together, typename... Parameters, std::size_t... Index>
void run_grid(void (*kernel)(Parameters...), const unsigned* grid, unsigned threads, void** parameters,
              std::index_sequence<Index...>) {
    const auto run_thread = [=] { kernel(*static_cast<Parameters*>(parameters[Index])...); };
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
                for (unsigned first = 0; first < threads; first += together ? together : threads)
                    if (together == 1)
                        threadIdx.x = first, run_thread();
                    else
                        run_together(first, together ? min(together, threads - first) : threads, run_thread);
}

template <unsigned together, typename... Parameters>
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
