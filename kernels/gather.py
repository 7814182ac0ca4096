"""Cut a batch of windows out of a volume, padded and normalised on the way.

``gather_definition`` says in NumPy what the operation is. ``gather`` is the same in C++ (gather.cpp), bit for
bit; gather.cu is the same on a GPU. Both take their arithmetic from gather.h.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.kernels import _host
from dropgen_rt.kernels.checks import require_array, require_separate, require_three

Float32Array = NDArray[np.float32]
Int32Array = NDArray[np.int32]


@dataclass(frozen=True)
class Normalisation:
    """Per channel: value -> (clip(value, lower, upper) - offset) * scale, in float32, in this order.

    Each field holds one number per channel, in the volume's own unit except ``scale`` (its inverse).
    Raises ValueError if the lengths differ, a limit is NaN or crossed, or an offset or scale is not finite.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        lengths = {len(self.lower), len(self.upper), len(self.offset), len(self.scale)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"every field needs one value per channel, not {sorted(lengths)}")
        lower, upper, offset, scale = self.table()
        if not (lower <= upper).all():
            raise ValueError(f"lower must not exceed upper in float32, not {self.lower} and {self.upper}")
        if not (np.isfinite(offset).all() and np.isfinite(scale).all()):
            raise ValueError(f"offset and scale must be finite, not {self.offset} and {self.scale}")

    @classmethod
    def identity(cls, channels: int = 1) -> Self:
        """Leave every value as it is."""
        return cls((-np.inf,) * channels, (np.inf,) * channels, (0.0,) * channels, (1.0,) * channels)

    @property
    def channels(self) -> int:
        """The number of channels C."""
        return len(self.lower)

    def table(self) -> Float32Array:
        """The four rows lower, upper, offset, scale as (4, C) float32: what the compiled kernels read."""
        # A finite limit beyond float32 becomes infinite, which is the same limit; the rest is refused above.
        with np.errstate(over="ignore"):
            return np.array([self.lower, self.upper, self.offset, self.scale], dtype=np.float32)


def gather_definition(
    volume: Float32Array, starts: Int32Array, window: Sequence[int], normalisation: Normalisation
) -> Float32Array:
    """The definition of ``gather``, in NumPy."""
    # (4, C) -> four columns (C, 1, 1, 1), to go over (C, z, y, x)
    lower, upper, offset, scale = normalisation.table()[:, :, None, None, None]
    batch = np.zeros((len(starts), len(volume), *window), dtype=np.float32)
    for out, start in zip(batch, starts.astype(np.int64), strict=True):
        first = np.maximum(start, 0)
        last = np.minimum(start + window, volume.shape[1:])
        if (first >= last).any():  # nothing but padding
            continue
        inside = np.s_[:, first[0] : last[0], first[1] : last[1], first[2] : last[2]]
        values = volume[inside]
        values = np.where(values < lower, lower, values)
        values = np.where(values > upper, upper, values)
        first, last = first - start, last - start
        inside = np.s_[:, first[0] : last[0], first[1] : last[1], first[2] : last[2]]
        out[inside] = (values - offset) * scale
    return batch


def gather(
    volume: Float32Array,
    starts: Int32Array,
    window: Sequence[int],
    normalisation: Normalisation,
    out: Float32Array | None = None,
) -> Float32Array:
    """Cut windows out of ``volume``, normalised; voxels outside the volume are 0.0 after normalisation.

    volume: (C, Z, Y, X) float32. normalisation: for C channels.
    starts: (B, 3) int32, the first voxel of each window as (z, y, x); may be negative or beyond the volume.
    window: its size (wz, wy, wx) in voxels.
    out: (B, C, wz, wy, wx) float32 to write into, instead of a new array.

    Returns (B, C, wz, wy, wx) float32, ``out`` if it was given. Equal to ``gather_definition`` in every bit.
    Raises TypeError for a wrong dtype, ValueError for a wrong shape or layout. Releases the GIL.
    """
    require_array("volume", volume, np.float32, ("C", "Z", "Y", "X"))
    require_array("starts", starts, np.int32, ("B", 3))
    require_three("window", window)
    if min(window) < 1:
        raise ValueError(f"window must be at least one voxel along each axis, not {tuple(window)}")
    if normalisation.channels != len(volume):
        accepted = f"the volume has {len(volume)}"
        raise ValueError(f"normalisation is for {normalisation.channels} channels, {accepted}")
    shape = (len(starts), len(volume), *map(operator.index, window))
    if out is None:
        out = np.empty(shape, dtype=np.float32)
    else:
        require_array("out", out, np.float32, shape, writes=True)
        require_separate("out", out, "volume", volume)
    if out.size:
        _host.gather(volume, starts, normalisation.table(), out)
    return out
