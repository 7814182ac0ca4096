// The pybind11 module dropgen_rt.kernels._host: one bound function per operation, and the number of threads.

#include <omp.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <atomic>

#include "lanes.h"
#include "portable.h"
#include "stream.h"

namespace py = pybind11;

namespace dropgen {

namespace {
// Ours, not OpenMP's own setting: that one belongs to the calling thread, and a pipeline calls from several.
std::atomic<int> threads_set{0};

// Below what the processor has, only in tests.
std::atomic<int> most_lanes{16};

// As if the largest cache were this large, only in tests; 0 asks the system.
std::atomic<int64_t> cache_set{0};
}  // namespace

int thread_count() {
    const int set = threads_set.load(std::memory_order_relaxed);
    return set > 0 ? set : omp_get_max_threads();
}

int lanes() {
#ifdef DROPGEN_LANES
    const int most = most_lanes.load(std::memory_order_relaxed);
    if (most >= 16 && __builtin_cpu_supports("avx512f")) return 16;
    if (most >= 8 && __builtin_cpu_supports("avx2")) return 8;
#endif
    return 0;
}

int64_t cache_bytes() {
    const int64_t set = cache_set.load(std::memory_order_relaxed);
    if (set > 0) return set;
#ifdef _SC_LEVEL3_CACHE_SIZE
    const long told = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (told > 0) return told;
#endif
    return int64_t(1) << 24;  // where the system does not tell
}

void bind_gather(py::module_& module);
void bind_accumulate(py::module_& module);
void bind_finalise(py::module_& module);
void bind_resample(py::module_& module);
void bind_reduce(py::module_& module);
void bind_statistics(py::module_& module);

}  // namespace dropgen

PYBIND11_MODULE(_host, module) {
    module.doc() =
        "Host build of the patch kernels; call them through dropgen_rt.kernels, which checks the arguments.";
    module.def("threads", &dropgen::thread_count);
    module.def("set_threads", [](int count) { dropgen::threads_set.store(count); }, py::arg("count"));
    module.def("lanes", &dropgen::lanes);
    module.def("set_most_lanes", [](int most) { dropgen::most_lanes.store(most); }, py::arg("most"));
    module.def("set_cache_bytes", [](int64_t bytes) { dropgen::cache_set.store(bytes); }, py::arg("bytes"));
    dropgen::bind_gather(module);
    dropgen::bind_accumulate(module);
    dropgen::bind_finalise(module);
    dropgen::bind_resample(module);
    dropgen::bind_reduce(module);
    dropgen::bind_statistics(module);
}
