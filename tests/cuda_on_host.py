"""A GPU made of the C++ compiler: the CUDA files thread by thread on the CPU, behind the contract of a device.

It holds the launch code and the road to account where there is no GPU: grids, the order and the types of the
arguments, who copies what when. Device addresses are host addresses, events do nothing, and what is downloaded
arrives when somebody waits for the stream.
"""

import ctypes
import mmap
import shutil
import subprocess
from pathlib import Path

import numpy as np

from dropgen_rt.kernels.architectures import ENTRY_POINTS
from dropgen_rt.kernels.compile import source_folder
from dropgen_rt.kernels.launch import Launch

CXX = shutil.which("g++")
SHIM = Path(__file__).parent / "kernels" / "cuda_on_host.h"
LIBC = ctypes.CDLL(None)
UNTOUCHED = b"\xcd"
#: Bytes that an address is a multiple of: a GPU's are of more, but then as much room may lie before the guard.
ALIGNED = 16
# Jumps from stack to stack are what -D_FORTIFY_SOURCE, which some compilers set, takes for an attack.
FLAGS = (
    "-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-U_FORTIFY_SOURCE",
    "-include", str(SHIM), "-x", "c++",
)  # fmt: skip


def build(folder: Path) -> dict[str, ctypes._CFuncPtr]:
    """Compile every .cu file with the C++ compiler; the functions that run its entry points."""
    functions = {}
    for stem, entries in ENTRY_POINTS.items():
        source, library = folder / f"{stem}_on_host.cpp", folder / f"{stem}.so"
        cuda = source_folder() / f"{stem}.cu"
        lines = [f'#include "{cuda}"', *(f"RUNS_ON_HOST({entry}, {waiting(cuda.read_text())})" for entry in entries)]
        source.write_text("\n".join(lines) + "\n")
        subprocess.run([CXX, *FLAGS, source, "-o", library], check=True)
        loaded = ctypes.CDLL(str(library))
        functions.update({entry: loaded[f"run_{entry}"] for entry in entries})
    return functions


def waiting(text: str) -> int:
    """How many threads of a .cu file wait for each other: 1 (none), 32 (a warp), 0 (the whole block)."""
    block, warp = "__syncthreads" in text, "_sync(" in text
    assert not (block and warp), "cuda_on_host.h knows one kind of wait in a file"
    return 0 if block else 32 if warp else 1


class HostGraphs:
    """Graphs hold what they are to run, and run it when they are replayed."""

    def __init__(self):
        self.graphs, self.replayed = {}, 0

    def capture(self, stream, work):
        number = len(self.graphs) + 1
        self.graphs[number] = work
        return number

    def replay(self, graph, stream):
        self.replayed += 1
        self.graphs[graph]()

    def drop(self, graph):
        del self.graphs[graph]


class Guarded:
    """Memory between two pages that nobody may touch: what reads or writes there ends the process, with a stack.

    It ends against the second of them, but for the few bytes that its address is rounded by. What else lies between
    the two must be as it was when the memory is given back.
    """

    def __init__(self, size: int) -> None:
        pages = -(-max(size, 1) // mmap.PAGESIZE) + 2
        self._map = mmap.mmap(-1, pages * mmap.PAGESIZE)
        self._map[:] = UNTOUCHED * len(self._map)  # never zero: what is not written must show
        first = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._end = (pages - 1) * mmap.PAGESIZE
        for page in (first, first + self._end):
            assert LIBC.mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, 0) == 0
        self._begin = self._end - -(-max(size, 1) // ALIGNED) * ALIGNED
        self.address, self._size = first + self._begin, size

    def check(self) -> None:
        around = self._map[mmap.PAGESIZE : self._begin] + self._map[self._begin + self._size : self._end]
        assert around == UNTOUCHED * len(around), "something was written beside an array"


class HostDevice:
    """``dropgen_rt.gpu.Device`` on the CPU."""

    library, name, driver = "host", "this CPU", "none"
    capability = (0, 0)
    memory_bytes = free = 2**32
    l2_bytes = 2**20

    def __init__(self, functions: dict[str, ctypes._CFuncPtr]) -> None:
        self._functions = functions
        self.held: dict[int, Guarded] = {}
        self.launched: list[str] = []
        self.recorder = HostGraphs()
        self.unawaited = 0  # what was enqueued since somebody waited
        self._under_way: list[tuple[np.ndarray, np.ndarray]] = []

    def allocate(self, size):
        block = Guarded(size)
        self.held[block.address] = block
        return block.address

    def release(self, address):
        self.held.pop(address).check()

    def free_bytes(self):
        return self.free

    def pinned(self, shape, dtype):
        return np.empty(shape, dtype)

    def upload(self, address, array, stream=0):
        assert array.flags.c_contiguous
        self.unawaited += 1
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array, address, stream=0):
        assert array.flags.c_contiguous and array.flags.writeable
        found = np.empty_like(array)
        ctypes.memmove(found.ctypes.data, address, array.nbytes)
        self._under_way.append((array, found))  # it arrives when somebody waits for it

    def copy(self, to, source, size, stream=0):
        ctypes.memmove(to, source, size)

    def clear(self, address, size, stream=0):
        self.unawaited += 1
        ctypes.memset(address, 0, size)

    def clear_rows(self, address, pitch, width, height, stream=0):
        assert width <= pitch
        for row in range(height):
            ctypes.memset(address + row * pitch, 0, width)

    def stream(self):
        return 1

    def synchronise(self, stream=0):
        for array, found in self._under_way:
            array[...] = found
        self._under_way.clear()
        self.unawaited = 0

    def event(self):
        return 1

    def record(self, event, stream=0):
        pass

    def wait(self, stream, event):
        pass

    def elapsed_ms(self, first, last):
        return 1.0

    def load(self, image, entries):
        assert set(entries) <= set(self._functions)

    def launch(self, launch: Launch, stream=0):
        self.launched.append(launch.entry)
        self.unawaited += 1
        held = [np.asarray([argument]) for argument in launch.arguments]
        parameters = (ctypes.c_void_p * len(held))(*(value.ctypes.data for value in held))
        grid = (ctypes.c_uint * 3)(*launch.grid)
        self._functions[launch.entry](grid, ctypes.c_uint(launch.threads), parameters)

    def graphs(self):
        return self.recorder

    def close(self):
        self.held.clear()
