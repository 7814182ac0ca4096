"""What makes a process train faster on a CPU, for as long as it trains."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from dropgen_rt.train.parallel import cores

# Options of glibc's mallopt(3): never trim the heap, never take memory from beside it.
KEEPING = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0)}


@contextmanager
def fast_cpu() -> Iterator[None]:
    """All cores, or as many threads as OMP_NUM_THREADS says, no denormal numbers, and memory that is kept.

    Denormal numbers slow a CPU's convolutions manyfold. Threads and denormals are as before afterwards, and memory is
    given back; that the process keeps what it frees from then on cannot be taken back.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(_threads())
    torch.set_flush_denormal(True)
    libc = _keep_memory()
    try:
        yield
    finally:
        if libc is not None:
            libc.malloc_trim(0)
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


@cache
def _keep_memory() -> ctypes.CDLL | None:
    """Volumes that a step has done with stay with the process, for the next step's; None without glibc.

    glibc gives large ones back at once, and the kernel clears their pages anew in every step.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if libc is None or not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        return None  # another C library keeps memory as it sees fit
    for option, value in KEEPING.values():
        libc.mallopt(option, value)
    return libc


def _threads() -> int:
    """As OMP_NUM_THREADS says, which may be a list of levels. A 1 that torchrun may have set itself says nothing."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    several = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
    if not asked.isdecimal() or int(asked) == 0 or (several and int(asked) == 1):
        return cores()
    return min(int(asked), cores())
