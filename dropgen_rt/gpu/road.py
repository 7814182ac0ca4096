"""The road of a scan on a GPU: up once as it is stored, down once as labels.

Resampling and percentiles are here; gathering, the network, accumulating and finalising in roll.py. All work on one
stream and one device's memory.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.air import Greatest
from dropgen_rt.gpu.buffers import Buffers, PinnedArrays
from dropgen_rt.gpu.device import Device, address_of
from dropgen_rt.gpu.images import load_kernels
from dropgen_rt.kernels import Normalisation, Taps
from dropgen_rt.kernels.launch import HISTOGRAM_COPIES, Launch, extremes_launch, histogram_launch, resample_launch
from dropgen_rt.kernels.reduce import extremes_of_keys, no_extremes, percentiles_of

FLOAT = 4
PIECE = 2**24


class GpuRoad:
    """What stays on one GPU from scan to scan: kernels, a stream, staging memory. ``close`` leaves the device open."""

    def __init__(self, device: Device, *, kernels_loaded: bool = False) -> None:
        self.device = device
        if not kernels_loaded:
            load_kernels(device)
        self.stream = device.stream()
        self._staging = np.empty(0, np.uint8)
        self.pinned = PinnedArrays(device)

    def upload(self, array: NDArray[np.generic], held: Buffers) -> int:
        """A copy of a C-contiguous array on the device, through pinned memory that later scans use again."""
        if self._staging.nbytes < array.nbytes:
            self._staging = self.device.pinned((array.nbytes,), np.uint8)
        staged, given = self._staging[: array.nbytes], array.reshape(-1).view(np.uint8)
        self.device.synchronise(self.stream)  # the memory may still be on its way to the device
        address = held.room(array.shape, array.dtype)
        for first in range(0, array.nbytes, PIECE):  # one piece travels while the next is copied
            piece = staged[first : first + PIECE]
            np.copyto(piece, given[first : first + PIECE])
            self.device.upload(address + first, piece, self.stream)
        return address

    def resample(self, array: NDArray[np.generic], taps: Sequence[Taps], held: Buffers) -> int:
        """(C, nz, ny, nx) float32 on the device: ``array`` (C, z, y, x), a view of any strides, on the working grid."""
        stored = array.base if array.base is not None and array.base.flags.c_contiguous else array
        if not (isinstance(stored, np.ndarray) and stored.dtype == array.dtype and stored.flags.c_contiguous):
            stored = array = np.ascontiguousarray(array)
        offset = address_of(array) - address_of(stored)
        with Buffers(self.device, self.stream) as mine:
            at = self.upload(stored, mine) + offset
            out = held.room((len(array), *map(len, taps)), np.float32)
            steps = [step // array.itemsize for step in array.strides]
            identity = mine.put(Normalisation.identity(len(array)).table())
            tables = [mine.put_taps(along) for along in taps]
            self.launch(resample_launch(at, array.dtype.name, steps, array.shape, tables, identity, out))
            self.device.synchronise(self.stream)
        return out

    def launch(self, launch: Launch) -> None:
        """Start a kernel on the road's stream."""
        self.device.launch(launch, self.stream)

    def channel_percentiles(self, image: int, shape: Sequence[int]) -> Callable[[int, Sequence[float]], list[float]]:
        """Percentiles of one channel of the image (C, z, y, x) on the device."""
        count = int(np.prod(shape[1:]))

        def of_channel(channel: int, percents: Sequence[float]) -> list[float]:
            def digits(shift: int, bits: int, prefix: int) -> NDArray[np.int64]:
                with Buffers(self.device, self.stream) as held:
                    zeros = np.zeros((HISTOGRAM_COPIES, 1 << bits), np.uint32)
                    counts = held.put(zeros)
                    values = image + FLOAT * channel * count
                    self.launch(histogram_launch(values, count, (shift, bits, prefix), counts))
                    return held.get(counts, zeros.shape, np.uint32).sum(axis=0, dtype=np.int64)

            return percentiles_of(count, percents, digits)

        return of_channel

    def greatest(self, image: int, shape: Sequence[int]) -> Greatest:
        """``air.Greatest`` of the image (C, z, y, x) on the device."""

        def of_windows(starts: NDArray[np.int32], window: Sequence[int]) -> NDArray[np.float32]:
            count = len(starts) * shape[0]
            with Buffers(self.device, self.stream) as held:
                out = held.put(no_extremes(count))
                self.launch(extremes_launch(image, shape, held.put(starts), len(starts), window, out))
                found = extremes_of_keys(held.get(out, (count, 2), np.uint32))
            return found[:, 1].reshape(len(starts), shape[0])

        return of_windows
