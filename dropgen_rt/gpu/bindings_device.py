"""The driver through NVIDIA's cuda-bindings: wheels for every Python, nothing to compile."""

import ctypes
from typing import Any

import numpy as np
from cuda.bindings import driver
from numpy.typing import DTypeLike, NDArray

from dropgen_rt.errors import DeviceError, DeviceMemoryError
from dropgen_rt.gpu.device import address_of
from dropgen_rt.gpu.graphs import StreamGraphs
from dropgen_rt.kernels.launch import Launch

_C_TYPES = {"i": ctypes.c_int32, "I": ctypes.c_uint32, "q": ctypes.c_int64, "l": ctypes.c_int64, "f": ctypes.c_float}
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


def _called(result: tuple[Any, ...]) -> Any:
    """What a driver call returned after its status. Raises DeviceError or DeviceMemoryError."""
    status, *values = result
    if status != driver.CUresult.CUDA_SUCCESS:
        kind = DeviceMemoryError if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY else DeviceError
        raise kind(f"the GPU's driver says {status.name}; check it with nvidia-smi, or use --device cpu")
    return values[0] if values else None


class BindingsDevice:
    """``Device`` over cuda-bindings."""

    library = "cuda-bindings"

    def __init__(self, number: int) -> None:
        try:
            _called(driver.cuInit(0))
        except RuntimeError as error:  # the library cannot be loaded: no driver on this machine
            raise DeviceError(f"device cuda:{number}: no NVIDIA driver ({error}); use --device cpu") from error
        if number >= _called(driver.cuDeviceGetCount()):
            raise DeviceError(f"device cuda:{number}: this machine has no such GPU; see nvidia-smi -L")
        self._device = _called(driver.cuDeviceGet(number))
        self._context = _called(driver.cuDevicePrimaryCtxRetain(self._device))
        _called(driver.cuCtxSetCurrent(self._context))
        attributes = driver.CUdevice_attribute
        self.capability = (
            self._attribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            self._attribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )
        self.l2_bytes = self._attribute(attributes.CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)
        self.name = _called(driver.cuDeviceGetName(256, self._device)).decode().strip("\0 ")
        version = _called(driver.cuDriverGetVersion())
        self.driver = f"CUDA {version // 1000}.{version % 1000 // 10}"
        self.memory_bytes = self._memory()[1]
        self._functions: dict[str, Any] = {}
        self._pinned: list[int] = []
        self._sizes: dict[int, int] = {}
        self._kept: dict[int, list[int]] = {}

    def _attribute(self, attribute: Any) -> int:
        return int(_called(driver.cuDeviceGetAttribute(attribute, self._device)))

    def _memory(self) -> tuple[int, int]:
        status, free, total = driver.cuMemGetInfo()
        _called((status,))
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        if kept := self._kept.get(size):
            address = kept.pop()
        else:
            try:
                address = int(_called(driver.cuMemAlloc(max(size, 1))))
            except DeviceMemoryError:
                self._give_back()
                address = int(_called(driver.cuMemAlloc(max(size, 1))))
        self._sizes[address] = size
        return address

    def release(self, address: int) -> None:
        # Kept for the next of this size: the driver's own calls wait for the GPU.
        self._kept.setdefault(self._sizes.pop(address), []).append(address)

    def _give_back(self) -> None:
        _called(driver.cuCtxSynchronize())
        for addresses in self._kept.values():
            for address in addresses:
                _called(driver.cuMemFree(address))
        self._kept.clear()

    def free_bytes(self) -> int:
        self._give_back()
        return self._memory()[0]

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        size = max(int(np.prod(shape)) * np.dtype(dtype).itemsize, 1)
        address = int(_called(driver.cuMemHostAlloc(size, 0)))
        self._pinned.append(address)
        buffer = (ctypes.c_uint8 * size).from_address(address)
        whole: NDArray[Any] = np.ctypeslib.as_array(buffer)
        return whole[: int(np.prod(shape)) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

    def upload(self, address: int, array: NDArray[Any], stream: int = 0) -> None:
        _called(driver.cuMemcpyHtoDAsync(address, address_of(array), array.nbytes, stream))

    def download(self, array: NDArray[Any], address: int, stream: int = 0) -> None:
        _called(driver.cuMemcpyDtoHAsync(address_of(array), address, array.nbytes, stream))

    def copy(self, to: int, source: int, size: int, stream: int = 0) -> None:
        _called(driver.cuMemcpyDtoDAsync(to, source, size, stream))

    def clear(self, address: int, size: int, stream: int = 0) -> None:
        _called(driver.cuMemsetD8Async(address, 0, size, stream))

    def clear_rows(self, address: int, pitch: int, width: int, height: int, stream: int = 0) -> None:
        _called(driver.cuMemsetD2D8Async(address, pitch, 0, width, height, stream))

    def stream(self) -> int:
        return int(_called(driver.cuStreamCreate(_NON_BLOCKING)))

    def synchronise(self, stream: int = 0) -> None:
        _called(driver.cuStreamSynchronize(stream))

    def event(self) -> int:
        return int(_called(driver.cuEventCreate(0)))

    def record(self, event: int, stream: int = 0) -> None:
        _called(driver.cuEventRecord(event, stream))

    def wait(self, stream: int, event: int) -> None:
        _called(driver.cuStreamWaitEvent(stream, event, 0))

    def elapsed_ms(self, first: int, last: int) -> float:
        _called(driver.cuEventSynchronize(last))
        return float(_called(driver.cuEventElapsedTime(first, last)))

    def load(self, image: bytes, entries: tuple[str, ...]) -> None:
        module = _called(driver.cuModuleLoadData(image))
        for entry in entries:
            self._functions[entry] = _called(driver.cuModuleGetFunction(module, entry.encode()))

    def launch(self, launch: Launch, stream: int = 0) -> None:
        values, types = [], []
        for argument in launch.arguments:
            kind = argument.dtype.char
            types.append(ctypes.c_void_p if kind in "LQ" else _C_TYPES[kind])
            values.append(argument.item())
        function = self._functions[launch.entry]
        block = launch.threads, 1, 1
        _called(driver.cuLaunchKernel(function, *launch.grid, *block, 0, stream, (tuple(values), tuple(types)), 0))

    def graphs(self) -> StreamGraphs:
        return StreamGraphs()

    def close(self) -> None:
        for address in self._pinned:
            driver.cuMemFreeHost(address)
        self._pinned.clear()
        for address in [*self._sizes, *(address for kept in self._kept.values() for address in kept)]:
            driver.cuMemFree(address)
        self._sizes.clear()
        self._kept.clear()
        driver.cuDevicePrimaryCtxRelease(self._device)
