"""Arrays on the device that are released together."""

import weakref
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dropgen_rt.errors import DeviceError
from dropgen_rt.gpu.device import Device
from dropgen_rt.kernels import AxisMap, Taps
from dropgen_rt.kernels.launch import AxisTables, TapTables


class Buffers:
    """What one piece of work holds on ``device``; use it in a ``with`` block."""

    def __init__(self, device: Device, stream: int = 0) -> None:
        self.device, self.stream = device, stream
        self._held: list[int] = []

    def room(self, shape: tuple[int, ...], dtype: DTypeLike) -> int:
        """The address of an array that is not written yet."""
        address = self.device.allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self._held.append(address)
        return address

    def put(self, array: NDArray[Any]) -> int:
        """The address of a copy of a C-contiguous host array; ``array`` must live until the stream has passed."""
        address = self.room(array.shape, array.dtype)
        if array.size:
            self.device.upload(address, array, self.stream)
        return address

    def put_axis(self, axis: AxisMap) -> AxisTables:
        """An AxisMap on the device."""
        return AxisTables(self.put(axis.lower), self.put(axis.upper), self.put(axis.fraction), len(axis))

    def put_taps(self, taps: Taps) -> TapTables:
        """Taps on the device."""
        tables = self.put(taps.first), self.put(taps.count), self.put(taps.weight)
        return TapTables(*tables, taps.weight.shape[1], len(taps))

    def get(self, address: int, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A new host array with what is at ``address`` once the stream's work is done."""
        array = np.empty(shape, dtype)
        if array.size:
            self.device.download(array, address, self.stream)
        self.device.synchronise(self.stream)
        return array

    def __enter__(self) -> "Buffers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._held:
            self.device.release(self._held.pop())


#: Pinned memory is taken from the whole machine: arrays beyond this many bytes are of plain memory.
MOST_PINNED_BYTES = 2**30


class PinnedArrays:
    """Host arrays that a device writes to directly, and that come back here when nobody holds them any more.

    Pinning takes longer than the copy it saves, so memory once pinned is kept for later scans. It ends with the device:
    what is to outlive that must be copied.
    """

    def __init__(self, device: Device, most_bytes: int = MOST_PINNED_BYTES) -> None:
        self._device, self._most_bytes = device, most_bytes
        self._free: list[NDArray[np.uint8]] = []
        self._bytes = 0

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array that is not written yet; of plain memory where too much is pinned."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        fitting = [place for place, block in enumerate(self._free) if block.nbytes >= size]
        if fitting:
            block = self._free.pop(min(fitting, key=lambda place: self._free[place].nbytes))
        elif (pinned := self._pin(size)) is not None:
            block = pinned
        else:
            return np.empty(shape, dtype)
        holder = _Holder(block[:size].view(dtype).reshape(shape))
        weakref.finalize(holder, self._free.append, block).atexit = False
        return np.asarray(holder)

    def _pin(self, size: int) -> NDArray[np.uint8] | None:
        """New memory for ``size`` bytes; None beyond the limit, or where the machine pins no more."""
        wanted = 1 << max(size - 1, 0).bit_length()  # scans differ in size: powers of two are used again
        if self._bytes + wanted > self._most_bytes:
            return None
        try:
            block = self._device.pinned((wanted,), np.uint8)
        except DeviceError:
            return None
        self._bytes += wanted
        return block


class _Holder:
    """What arrays are views of: it lives as long as the last of them, which no array between does."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.__array_interface__ = array.__array_interface__
