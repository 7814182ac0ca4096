"""Interpolate a scan onto the working grid, three axes one after another, normalising on the way.

``resample_definition`` says in NumPy what the operation is. ``resample`` is the same in C++ (resample.cpp), bit for
bit; resample.cu is the same on a GPU. Both take their arithmetic from resample.h.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.kernels import _host
from dropgen_rt.kernels.checks import require_array, require_three
from dropgen_rt.kernels.gather import Normalisation

Float32Array = NDArray[np.float32]
VOXEL_TYPES = (np.float32, np.int16, np.uint16, np.uint8)


@dataclass(frozen=True, eq=False)
class Taps:
    """How the output voxels of one axis are summed from the input axis.

    Output voxel i is the sum over t < count[i] of weight[i, t] * v[first[i] + t], in this order.
    first, count: (n,) int32; weight: (n, most) float32, most at least 1. Raises TypeError or ValueError.
    """

    first: NDArray[np.int32]
    count: NDArray[np.int32]
    weight: Float32Array

    def __post_init__(self) -> None:
        require_array("first", self.first, np.int32, ("n",))
        require_array("count", self.count, np.int32, (len(self.first),))
        require_array("weight", self.weight, np.float32, (len(self.first), "most"))
        if len(self) and not (self.count.min() >= 1 and self.count.max() <= self.weight.shape[1]):
            raise ValueError(f"count must lie in 1 to {self.weight.shape[1]}")

    @classmethod
    def identity(cls, extent: int) -> Self:
        """Output voxel i is input voxel i, ``extent`` of them."""
        index = np.arange(extent, dtype=np.int32)
        return cls(index, np.ones(extent, np.int32), np.ones((extent, 1), np.float32))

    @classmethod
    def of_matrix(cls, matrix: NDArray[np.floating[Any]]) -> Self:
        """The taps of a (n, extent) matrix of weights whose rows are zero outside one short run."""
        used = matrix != 0
        first = used.argmax(axis=1)
        count = np.maximum(matrix.shape[1] - used[:, ::-1].argmax(axis=1) - first, 1)
        places = first[:, None] + np.arange(count.max())
        weight = np.take_along_axis(matrix, np.minimum(places, matrix.shape[1] - 1), axis=1)
        weight = np.where(np.arange(count.max()) < count[:, None], weight, 0)
        return cls(first.astype(np.int32), count.astype(np.int32), np.ascontiguousarray(weight, dtype=np.float32))

    def __len__(self) -> int:
        """The number of output voxels."""
        return len(self.first)

    def touching(self, start: int, stop: int) -> tuple[slice, slice, Self]:
        """The output voxels that input voxels ``start`` to ``stop - 1`` have a part in.

        Returns their slice, the slice of the input that they need, and the taps from the one to the other. ``first``
        and ``first + count`` must not fall, as between two grids; what lies outside the slice has no part of these.
        """
        low = int(np.searchsorted(self.first + self.count, start, side="right"))
        high = max(low, int(np.searchsorted(self.first, stop, side="left")))
        first, count = self.first[low:high], self.count[low:high]
        begin, end = (int(first[0]), int((first + count)[-1])) if high > low else (start, start)
        return slice(low, high), slice(begin, end), type(self)(first - np.int32(begin), count, self.weight[low:high])

    def require_within(self, name: str, extent: int) -> None:
        """Refuse taps outside an axis of ``extent`` voxels. Raises ValueError."""
        if len(self) and not (self.first.min() >= 0 and (self.first + self.count).max() <= extent):
            raise ValueError(f"the taps of {name} must point into 0 to {extent - 1}")


def resample_definition(volume: NDArray[Any], taps: Sequence[Taps], normalisation: Normalisation) -> Float32Array:
    """The definition of ``resample``, in NumPy."""
    array = volume.astype(np.float32)
    for axis, along in enumerate(taps, start=1):
        wide = [-1 if a == axis else 1 for a in range(4)]
        summed = np.zeros([len(along) if a == axis else n for a, n in enumerate(array.shape)], np.float32)
        for t in range(along.weight.shape[1]):
            weight = np.where(t < along.count, along.weight[:, t], np.float32(0)).reshape(wide)
            summed = summed + weight * array.take(np.minimum(along.first + t, array.shape[axis] - 1), axis)
        array = summed
    lower, upper, offset, scale = normalisation.table()[:, :, None, None, None]
    array = np.where(array < lower, lower, array)
    return (np.where(array > upper, upper, array) - offset) * scale


def resample(
    volume: NDArray[Any], taps: Sequence[Taps], normalisation: Normalisation | None = None,
    out: Float32Array | None = None,
) -> Float32Array:  # fmt: skip
    """``volume`` on another grid: (C, nz, ny, nx) float32, normalised if asked, in ``out`` if that is given.

    volume: (C, Z, Y, X) float32, int16, uint16 or uint8, finite; of any strides, so that a scan turned by views needs
    no copy. taps: of z, y and x. Equal to ``resample_definition`` in every bit, whatever the number of threads.
    Raises TypeError for a wrong dtype, ValueError for a wrong shape or taps outside the volume. Releases the GIL.
    """
    if volume.ndim != 4 or volume.dtype not in VOXEL_TYPES:
        accepted = "(C, Z, Y, X) float32, int16, uint16 or uint8"
        raise TypeError(f"volume must be {accepted}, not {volume.shape} {volume.dtype}")
    require_three("taps", taps)
    for name, along, extent in zip("zyx", taps, volume.shape[1:], strict=True):
        along.require_within(name, extent)
    chosen = Normalisation.identity(len(volume)) if normalisation is None else normalisation
    if chosen.channels != len(volume):
        raise ValueError(f"normalisation is for {chosen.channels} channels, the volume has {len(volume)}")
    shape = (len(volume), *map(len, taps))
    if out is None:
        out = np.empty(shape, np.float32)
    require_array("out", out, np.float32, shape, writes=True)
    if out.size:
        first, count, weight = zip(*((along.first, along.count, along.weight) for along in taps), strict=True)
        _host.resample(volume, first, count, weight, chosen.table(), out)
    return out
