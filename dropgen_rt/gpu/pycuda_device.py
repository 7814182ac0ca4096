"""The driver through pycuda: context, memory pool, pinned staging, streams and events."""

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pycuda.driver as cuda
from numpy.typing import DTypeLike, NDArray
from pycuda.tools import DeviceMemoryPool

from dropgen_rt.errors import DeviceError, DeviceMemoryError
from dropgen_rt.gpu.graphs import StreamGraphs
from dropgen_rt.kernels.launch import Launch


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Turn pycuda's exceptions into ours."""
    try:
        yield
    except cuda.MemoryError as error:
        raise DeviceMemoryError(f"{what}: the GPU's memory is out; close other programs") from error
    except cuda.Error as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise DeviceError(f"{what}: {reason}; check the GPU with nvidia-smi, or use --device cpu") from error


class PycudaDevice:
    """``Device`` over pycuda. Freed memory goes back to a pool, so that the next scan asks the driver for none."""

    library = "pycuda"

    def __init__(self, number: int) -> None:
        with _refusals(f"device cuda:{number}"):
            cuda.init()
            if number >= cuda.Device.count():
                raise DeviceError(f"device cuda:{number}: this machine has no such GPU; see nvidia-smi -L")
            device = cuda.Device(number)
            # The primary context: the one that PyTorch and TensorRT use in this process.
            self._context = device.retain_primary_context()
            self._context.push()
            self.name = device.name()
            self.capability = device.compute_capability()
            self.memory_bytes = device.total_memory()
            self.l2_bytes = device.get_attribute(cuda.device_attribute.L2_CACHE_SIZE)
            version = cuda.get_driver_version()
            self.driver = f"CUDA {version // 1000}.{version % 1000 // 10}"
            self._pool = DeviceMemoryPool()
        self._held: dict[int, Any] = {}
        self._streams: dict[int, Any] = {0: None}
        self._events: dict[int, Any] = {}
        self._modules: list[Any] = []
        self._functions: dict[str, Any] = {}
        # pycuda aborts the process if a context is still on its stack when Python ends.
        atexit.register(self.close)

    def allocate(self, size: int) -> int:
        with _refusals(f"allocating {size} bytes"):
            held = self._pool.allocate(max(size, 1))
        self._held[int(held)] = held
        return int(held)

    def release(self, address: int) -> None:
        self._held.pop(address).free()

    def free_bytes(self) -> int:
        with _refusals("asking for free memory"):
            self._pool.free_held()
            return int(cuda.mem_get_info()[0])

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        with _refusals("allocating pinned memory"):
            return np.asarray(cuda.pagelocked_empty(shape, np.dtype(dtype)))

    def upload(self, address: int, array: NDArray[Any], stream: int = 0) -> None:
        with _refusals("copying to the GPU"):
            cuda.memcpy_htod_async(address, array, self._streams[stream])

    def download(self, array: NDArray[Any], address: int, stream: int = 0) -> None:
        with _refusals("copying from the GPU"):
            cuda.memcpy_dtoh_async(array, address, self._streams[stream])

    def copy(self, to: int, source: int, size: int, stream: int = 0) -> None:
        with _refusals("copying on the GPU"):
            cuda.memcpy_dtod_async(to, source, size, self._streams[stream])

    def clear(self, address: int, size: int, stream: int = 0) -> None:
        with _refusals("clearing the GPU's memory"):
            cuda.memset_d8_async(address, 0, size, self._streams[stream])

    def clear_rows(self, address: int, pitch: int, width: int, height: int, stream: int = 0) -> None:
        with _refusals("clearing the GPU's memory"):
            cuda.memset_d2d8_async(address, pitch, 0, width, height, self._streams[stream])

    def stream(self) -> int:
        with _refusals("making a stream"):
            stream = cuda.Stream(1)  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
        self._streams[stream.handle] = stream
        return int(stream.handle)

    def synchronise(self, stream: int = 0) -> None:
        with _refusals("waiting for the GPU"):
            own = self._streams[stream]
            cuda.Context.synchronize() if own is None else own.synchronize()

    def event(self) -> int:
        with _refusals("making an event"):
            event = cuda.Event()
        self._events[id(event)] = event
        return id(event)

    def record(self, event: int, stream: int = 0) -> None:
        with _refusals("recording an event"):
            self._events[event].record(self._streams[stream])

    def wait(self, stream: int, event: int) -> None:
        with _refusals("waiting for an event"):
            self._streams[stream].wait_for_event(self._events[event])

    def elapsed_ms(self, first: int, last: int) -> float:
        with _refusals("reading the GPU's clock"):
            self._events[last].synchronize()
            return float(self._events[last].time_since(self._events[first]))

    def load(self, image: bytes, entries: tuple[str, ...]) -> None:
        with _refusals("loading the kernels"):
            module = cuda.module_from_buffer(image)
            self._modules.append(module)
            self._functions.update({entry: module.get_function(entry) for entry in entries})

    def launch(self, launch: Launch, stream: int = 0) -> None:
        with _refusals(f"starting {launch.entry}"):
            function, block = self._functions[launch.entry], (launch.threads, 1, 1)
            function(*launch.arguments, block=block, grid=launch.grid, stream=self._streams[stream])

    def graphs(self) -> StreamGraphs:
        return StreamGraphs()

    def close(self) -> None:
        atexit.unregister(self.close)
        with _refusals("closing the GPU"):
            for held in self._held.values():
                held.free()
            for kept in (self._held, self._events, self._functions, self._modules):
                kept.clear()
            self._pool.stop_holding()
            self._streams = {0: None}
            self._context.pop()
            self._context.detach()
