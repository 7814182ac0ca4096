"""From a scan to the model's working grid, and the intensity bounds found there.

Training and inference both come through here, so they cannot differ.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.errors import UnsuitableInputError
from dropgen_rt.geometry import Geometry
from dropgen_rt.kernels import Normalisation, Taps, percentiles, resample
from dropgen_rt.kernels.resample import VOXEL_TYPES
from dropgen_rt.manifest import Intensity, each_channel
from dropgen_rt.scan_header import MAX_VOXELS
from dropgen_rt.volume import Volume
from dropgen_rt.words import by

# The smallest normal float32: dividing by less leaves its range.
SMALLEST_RANGE = float(np.finfo(np.float32).tiny)

# Shares of labels that differ by less are equal: they are float32 sums of a few dozen weights.
EQUAL_SHARES = 1e-6


def working_grid(scan: Geometry, orientation: str, spacing_mm: tuple[float, float, float]) -> Geometry:
    """The model's grid over a scan's field of view.

    Raises UnsuitableInputError for a field of view that the working spacing fills with too many voxels.
    """
    working = scan.reoriented(orientation)[0].resampled(spacing_mm)
    if math.prod(working.size) > MAX_VOXELS:
        raise UnsuitableInputError(
            f"a scan of {by(scan.size)} voxels of {by(scan.spacing_mm)} mm has more than "
            f"{MAX_VOXELS} voxels at the model's spacing, {by(spacing_mm)} mm; check the scan's spacing, or crop it"
        )
    return working


def to_working_grid(volume: Volume, orientation: str, spacing_mm: tuple[float, float, float]) -> Volume:
    """Reorient and resample a scan: (C, z, y, x) float32 on the working grid, intensities untouched.

    Raises UnsuitableInputError for a field of view that the working spacing fills with too many voxels.
    """
    oriented, change = volume.geometry.reoriented(orientation)
    working = working_grid(volume.geometry, orientation, spacing_mm)
    array = change.apply(volume.array)
    taps = working_taps(oriented, working)
    if taps is None:
        return Volume(np.ascontiguousarray(array, dtype=np.float32), working)
    accepted = array if array.dtype in VOXEL_TYPES else array.astype(np.float32)
    return Volume(resample(accepted, taps), working)


def working_taps(source: Geometry, target: Geometry) -> tuple[Taps, Taps, Taps] | None:
    """The taps of z, y and x from one grid to another of the same direction; None if they are the same grid."""
    matrices = [interpolation_weights(source, target, axis) for axis in range(3)]
    if all(matrix is None for matrix in matrices):
        return None
    z, y, x = (
        Taps.identity(size) if matrix is None else Taps.of_matrix(matrix)
        for size, matrix in zip(source.shape, matrices, strict=True)
    )
    return z, y, x


def interpolation_weights(source: Geometry, target: Geometry, axis: int) -> NDArray[np.float32] | None:
    """(target size, source size) float32: linear interpolation along one array axis (0 is z); None if it is none.

    Where the target is coarser the triangle widens to the target's spacing, so that every source voxel
    counts and fine noise does not alias; rows sum to one, also at the edges.
    """
    positions = source.axis_positions(target, 2 - axis)  # geometry counts its axes x, y, z
    size = source.shape[axis]
    if len(positions) == size and np.array_equal(positions, np.arange(size)):
        return None
    ratio = target.spacing_mm[2 - axis] / source.spacing_mm[2 - axis]
    clamped = np.clip(positions, 0, size - 1)[:, None]
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(size)[None, :] - clamped) / max(ratio, 1.0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def labels_to_working_grid(
    labels: NDArray[np.integer], geometry: Geometry, orientation: str, spacing_mm: tuple[float, float, float]
) -> NDArray[np.integer]:
    """A (z, y, x) label map on the working grid, for training and evaluation: in each voxel the label of most share.

    The shares are each label's indicator, interpolated as the scan is: the nearest voxel's label would move borders
    by up to half a voxel of the coarser grid. Of equal shares the smallest label wins, whichever way the map lies.
    """
    oriented, change = geometry.reoriented(orientation)
    array = np.ascontiguousarray(change.apply(labels))
    taps = working_taps(oriented, oriented.resampled(spacing_mm))
    if taps is None:
        return array
    z, y, x = map(len, taps)
    found, most = np.zeros((z, y, x), labels.dtype), np.zeros((z, y, x), np.float32)
    for value, box in label_boxes(array).items():
        # Where no voxel of the label counts its share is 0: most labels fill a small part of a scan.
        outputs, inputs, near = zip(*(t.touching(s.start, s.stop) for t, s in zip(taps, box, strict=True)), strict=True)
        share = resample((array[inputs] == value).view(np.uint8)[None], near)[0]
        greater = share > most[outputs] + EQUAL_SHARES
        found[outputs][greater] = value
        np.maximum(share, most[outputs], out=most[outputs])
    return found


def label_boxes(labels: NDArray[np.integer]) -> dict[int, tuple[slice, slice, slice]]:
    """The smallest box (z, y, x) around each value of a label map, in the order of values."""
    planes: dict[int, list[int]] = {}
    for z, plane in enumerate(labels):
        for value in np.unique(plane).tolist():
            planes.setdefault(value, []).append(z)
    boxes = {}
    for value in sorted(planes):
        along_z = slice(planes[value][0], planes[value][-1] + 1)
        seen = (labels[along_z] == value).any(axis=0)
        boxes[value] = (along_z, _span(seen.any(axis=1)), _span(seen.any(axis=0)))
    return boxes


def _span(used: NDArray[np.bool_]) -> slice:
    """From the first True to the last."""
    places = np.flatnonzero(used)
    return slice(int(places[0]), int(places[-1]) + 1)


def normalisation(working: Volume, intensity: Sequence[Intensity]) -> Normalisation:
    """The per-channel clip and scale of this scan, by one intensity for all channels or one for each.

    Raises UnsuitableInputError if a channel has no contrast.
    """

    def of_channel(channel: int, percents: Sequence[float]) -> list[float]:
        return percentiles(np.ascontiguousarray(working.array[channel]), percents)

    return normalisation_of(of_channel, len(working.array), intensity)


def normalisation_of(
    channel_percentiles: Callable[[int, Sequence[float]], list[float]], channels: int, intensity: Sequence[Intensity]
) -> Normalisation:
    """``normalisation`` of a scan whose percentiles are counted elsewhere: channel_percentiles(channel, percents)."""
    lower, upper = [], []
    for index, own in zip(range(channels), each_channel(intensity, channels), strict=True):
        low, high = own.lower, own.upper
        if own.kind == "percentile":
            low, high = channel_percentiles(index, [low, high])
            if low == high:  # a small object in much air: the percentiles meet, the extremes do not
                low, high = channel_percentiles(index, [0, 100])
        if not low < high:
            raise UnsuitableInputError(
                f"channel {index} holds the single value {low:g} on the model's grid; give a scan with contrast"
            )
        if high - low < SMALLEST_RANGE:
            raise UnsuitableInputError(
                f"channel {index} goes from {low:g} to {high:g} only, too little to scale by; give a scan with contrast"
            )
        lower.append(float(low))
        upper.append(float(high))
    scale = tuple(1.0 / (high - low) for low, high in zip(lower, upper, strict=True))
    return Normalisation(lower=tuple(lower), upper=tuple(upper), offset=tuple(lower), scale=scale)
