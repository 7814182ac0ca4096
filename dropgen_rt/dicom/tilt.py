"""A tilted stack on a rectangular grid, and labels from there back on its own slices.

Slice k lies ``shift_px[k]`` pixels (x, y) within the grid's plane k. Values are interpolated linearly along x
and y; labels are taken from the nearest pixel.
"""

import numpy as np
import numpy.typing as npt


def rectify(slices: np.ndarray, shift_px: npt.NDArray[np.float64], shape: tuple[int, int, int]) -> np.ndarray:
    """(z, y, x) float32 of ``shape`` from slices (z, rows, columns); outside them stands the lowest value."""
    outside = slices.min()
    grid = np.full(shape, outside, np.float32)
    for plane, (x, y), target in zip(slices, shift_px, grid, strict=True):
        moved = _moved(_moved(plane, y, shape[1], 0, outside), x, shape[2], 1, outside)
        target[...] = moved
    return grid


def unrectify(labels: np.ndarray, shift_px: npt.NDArray[np.float64], rows: int, columns: int) -> np.ndarray:
    """(z, rows, columns) labels of the slices from the grid's (z, y, x)."""
    found = np.empty((len(labels), rows, columns), labels.dtype)
    for plane, (x, y), target in zip(labels, np.floor(shift_px + 0.5).astype(int), found, strict=True):
        target[...] = plane[y : y + rows, x : x + columns]
    return found


def _moved(plane: np.ndarray, by: float, length: int, axis: int, outside: np.float32) -> np.ndarray:
    """(rows, columns) with ``axis`` of ``length`` pixels, its contents displaced by ``by`` pixels from 0 up."""
    whole = int(np.floor(by))
    part = np.float32(by - whole)
    room = [(0, 0), (0, 0)]
    room[axis] = (whole, max(length - whole - plane.shape[axis], 0) + 1)
    wide = np.pad(plane, room, constant_values=outside)
    here = np.take(wide, range(length), axis)
    if part < 1e-6:
        return here
    before = np.roll(here, 1, axis)
    first = [slice(None), slice(None)]
    first[axis] = slice(0, 1)
    before[tuple(first)] = outside
    return (1 - part) * here + part * before
