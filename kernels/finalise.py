"""From weighted sums to labels on any grid: normalise, interpolate the K logits, keep the best.

``finalise_definition`` says in NumPy what the operation is. ``finalise`` is the same in C++
(finalise.cpp), bit for bit in the labels; finalise.cu is the same on a GPU. Both take their
arithmetic from finalise.h.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.kernels import _host
from dropgen_rt.kernels.checks import require_array, require_three

Float32Array = NDArray[np.float32]
Int32Array = NDArray[np.int32]
LabelArray = NDArray[np.uint8] | NDArray[np.uint16]

ONE = np.float32(1)


@dataclass(frozen=True, eq=False)
class AxisMap:
    """Where the output voxels of one axis lie on the input axis: between voxels ``lower`` and ``upper``.

    Output voxel i takes (1 - fraction[i]) * v[lower[i]] + fraction[i] * v[upper[i]].
    lower, upper: (n,) int32, indices of input voxels. fraction: (n,) float32, in [0, 1].
    Raises TypeError for a wrong dtype, ValueError for a wrong shape. Ranges are checked at use.

        input    0         1         2         output voxel 1 at 0.75: lower 0, upper 1, fraction 0.75
        output     0    1    2    3            beyond an end, lower and upper are both the end voxel
    """

    lower: Int32Array
    upper: Int32Array
    fraction: Float32Array

    def __post_init__(self) -> None:
        require_array("lower", self.lower, np.int32, ("n",))
        require_array("upper", self.upper, np.int32, (len(self.lower),))
        require_array("fraction", self.fraction, np.float32, (len(self.lower),))

    @classmethod
    def identity(cls, extent: int) -> Self:
        """Output voxel i is input voxel i, ``extent`` of them."""
        index = np.arange(extent, dtype=np.int32)
        return cls(index, index, np.zeros(extent, dtype=np.float32))

    def __len__(self) -> int:
        """The number of output voxels."""
        return len(self.lower)

    def is_identity(self, extent: int) -> bool:
        """Whether the output axis is the input axis, of ``extent`` voxels."""
        return np.array_equal(self.lower, np.arange(extent)) and not self.fraction.any()

    def require_within(self, name: str, extent: int) -> None:
        """Refuse a map that points outside an axis of ``extent`` voxels. Raises ValueError."""
        if not len(self):
            return
        first = min(self.lower.min(), self.upper.min())
        last = max(self.lower.max(), self.upper.max())
        if first < 0 or last >= extent:
            raise ValueError(f"the map of {name} must point into 0 to {extent - 1}, not {first} to {last}")
        if not ((self.fraction >= 0) & (self.fraction <= 1)).all():
            raise ValueError(f"the fractions of {name} must lie in 0 to 1")

    def sides(self) -> Iterator[tuple[Int32Array, Float32Array]]:
        """The two sides (index, weight): lower, then upper."""
        yield self.lower, ONE - self.fraction
        yield self.upper, self.fraction


def finalise_definition(
    sums: Float32Array, totals: Sequence[Float32Array], axes: Sequence[AxisMap]
) -> tuple[NDArray[np.int64], Float32Array, Float32Array]:
    """The definition of ``finalise``, in NumPy: labels, their probability, and all K interpolated logits."""
    total_z, total_y, total_x = totals
    z, y, x = axes
    rows: Any = 0  # (K, nz, ny, X): interpolated along z and y, not yet along x
    for at_z, side_z in z.sides():
        for at_y, side_y in y.sides():
            total = total_z[at_z, None, None] * total_y[at_y, None]
            weight = (side_z[:, None, None] * side_y[:, None]) / total
            rows = rows + weight * sums[:, at_z][:, :, at_y]
    (lower, side_lower), (upper, side_upper) = x.sides()
    near, far = side_lower / total_x[lower], side_upper / total_x[upper]
    logits = near * rows[..., lower] + far * rows[..., upper]
    probability = 1 / np.exp(logits - logits.max(axis=0)).sum(axis=0)
    return logits.argmax(axis=0), probability, logits


class Finalised(NamedTuple):
    """What ``finalise`` returns; ``probability`` and ``margin`` are None unless asked for."""

    labels: LabelArray
    probability: Float32Array | None
    margin: Float32Array | None


def margin_definition(logits: Float32Array) -> Float32Array:
    """The definition of the margin: the winning logit minus the next one, (nz, ny, nx); infinite for one class."""
    if len(logits) == 1:
        return np.full(logits.shape[1:], np.inf, np.float32)
    second, best = np.partition(logits, len(logits) - 2, axis=0)[-2:]
    return best - second


def finalise(
    sums: Float32Array, totals: Sequence[Float32Array], axes: Sequence[AxisMap], *, probability: bool = False,
    margin: bool = False, out: LabelArray | None = None,
) -> Finalised:  # fmt: skip
    """Label every voxel of an output grid with the class of the greatest interpolated logit.

    sums: (K, Z, Y, X) float32, what ``accumulate`` left; finite.
    totals: three positive float32 tables of lengths Z, Y, X, the sums of the window weights along each axis;
    the total weight at a voxel is their product.
    axes: the ``AxisMap`` of z, y and x.

    The K logits are divided by the total weight, interpolated trilinearly (order of operations: finalise.h)
    and compared; on a tie the first class wins. No array of K values per output voxel is formed.

    Returns labels (nz, ny, nx), uint8 up to 256 classes and uint16 above (in ``out`` if it was given); if asked, the
    softmax probability of the label at each voxel and its margin, the logit above the next one, infinite for one class:
    float32 of the same shape, else None.
    Raises TypeError for a wrong dtype; ValueError for a wrong shape or layout, a map that points outside the
    sums, or totals that are not positive. Releases the GIL.
    """
    require_array("sums", sums, np.float32, ("K", "Z", "Y", "X"))
    require_three("totals", totals)
    require_three("axes", axes)
    classes, *extents = sums.shape
    if not 1 <= classes <= 2**16:
        raise ValueError(f"sums must hold 1 to 65536 classes, not {classes}")
    for name, table, axis, extent in zip("zyx", totals, axes, extents, strict=True):
        require_array(f"totals of {name}", table, np.float32, (extent,))
        axis.require_within(name, extent)
    _require_positive(totals)

    shape = tuple(len(axis) for axis in axes)
    dtype = np.uint8 if classes <= 256 else np.uint16
    if out is not None:
        require_array("out", out, dtype, shape, writes=True)
    labels = np.empty(shape, dtype) if out is None else out
    above = np.empty(shape, dtype=np.float32) if margin else None
    softmax = np.empty(shape, dtype=np.float32) if probability else None
    if labels.size:
        lower, upper, fraction = zip(*((axis.lower, axis.upper, axis.fraction) for axis in axes), strict=True)
        _host.finalise(sums, totals, lower, upper, fraction, axes[2].is_identity(extents[2]), labels, softmax, above)
    return Finalised(labels, softmax, above)


def _require_positive(totals: Sequence[Float32Array]) -> None:
    """Refuse totals whose product somewhere has no finite float32 inverse."""
    if not all(table.size for table in totals):
        return
    smallest = np.prod([table.min() for table in totals], dtype=np.float64)
    greatest = np.prod([table.max() for table in totals], dtype=np.float64)
    float32 = np.finfo(np.float32)
    positive = all(table.min() > 0 for table in totals)
    if not (positive and smallest >= float32.tiny and greatest <= float32.max):
        given = f"{smallest:g} to {greatest:g}"
        raise ValueError(f"the totals must be positive, with a product in float32, not {given}")
