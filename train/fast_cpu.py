"""What makes a process train faster on a CPU, for as long as it trains."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dropgen_rt.train.parallel import cores

# Options of glibc's mallopt(3), and the values it starts with.
TRIM_THRESHOLD, MMAP_MAX = -1, -4
USUAL = {TRIM_THRESHOLD: 128 * 1024, MMAP_MAX: 65536}
KEEPING = {TRIM_THRESHOLD: 2**31 - 1, MMAP_MAX: 0}


@contextmanager
def fast_cpu() -> Iterator[None]:
    """All cores, or as many threads as OMP_NUM_THREADS says, no denormal numbers, and memory that is kept.

    Denormal numbers slow a CPU's convolutions manyfold. All is as before afterwards.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(_threads())
    torch.set_flush_denormal(True)
    try:
        with _memory_kept():
            yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


@contextmanager
def _memory_kept() -> Iterator[None]:
    """Volumes that a step has done with stay with the process, for the next step's.

    glibc gives large ones back at once, and the kernel clears their pages anew, some of them 30 times in a step.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if libc is None or not hasattr(libc, "mallopt"):
        yield  # another C library keeps memory as it sees fit
        return
    for option, value in KEEPING.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in USUAL.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)


def _threads() -> int:
    """As OMP_NUM_THREADS says, which may be a list of levels. A 1 that torchrun may have set itself says nothing."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    several = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
    if not asked.isdecimal() or int(asked) == 0 or (several and int(asked) == 1):
        return cores()
    return min(int(asked), cores())
