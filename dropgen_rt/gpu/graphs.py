"""CUDA graphs: what a stream was given once is started again with one call, instead of one per kernel.

Through the driver's own functions by ctypes, because pycuda has none for graphs; both device libraries use it.
"""

import ctypes
import sys
from collections.abc import Callable

from dropgen_rt.errors import DeviceError

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# Calls of other threads, such as those that read the next scan, go on while this one records.
_THREAD_LOCAL = 1


class StreamGraphs:
    """Graphs on the streams of one GPU, whose context must be current. ``driver`` is the library's name."""

    def __init__(self, driver: str = _DRIVER) -> None:
        try:
            self._driver = ctypes.CDLL(driver)
        except OSError as error:
            raise DeviceError(f"CUDA graphs: {error}; leave --cuda-graph out") from error

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status:
            raise DeviceError(f"CUDA graphs: {name} failed with status {status}; leave --cuda-graph out")

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """What ``work`` enqueues on ``stream`` is recorded, and not run. Returns what ``replay`` takes.

        Raises DeviceError where ``work`` does what a graph cannot hold, such as waiting for the GPU.
        """
        on, graph, ready = ctypes.c_void_p(stream), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", on, ctypes.c_int(_THREAD_LOCAL))
        try:
            work()
        finally:
            self._call("cuStreamEndCapture", on, ctypes.byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        finally:
            self._call("cuGraphDestroy", graph)
        assert ready.value
        return ready.value

    def replay(self, graph: int, stream: int) -> None:
        """Start the recorded work on ``stream``."""
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def drop(self, graph: int) -> None:
        """Free a graph that no stream runs any more."""
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))


class NetworkGraph:
    """The network on one batch of windows, from the second time on as a CUDA graph.

    The first time it runs as it is: an engine makes room for a size of batch when it first meets it. ``infer_device``
    takes the windows in the batch and the stream.
    """

    def __init__(self, recorder: StreamGraphs, stream: int, infer_device: Callable[[int, int], None]) -> None:
        self._recorder, self._stream, self._infer = recorder, stream, infer_device
        self._met: set[int] = set()
        self._graphs: dict[int, int] = {}  # by windows in the batch

    def infer(self, count: int) -> None:
        """Enqueue the network. Raises DeviceError if it does what no graph holds."""
        if count not in self._met:
            self._infer(count, self._stream)
            self._met.add(count)
            return
        if count not in self._graphs:
            self._graphs[count] = self._recorder.capture(self._stream, lambda: self._infer(count, self._stream))
        self._recorder.replay(self._graphs[count], self._stream)

    def close(self) -> None:
        """Once the stream's work is done."""
        for graph in self._graphs.values():
            self._recorder.drop(graph)
        self._graphs.clear()
