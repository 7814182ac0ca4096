"""Extremes of windows, and exact percentiles by counting digits.

``extremes_definition`` and ``histogram_definition`` say in NumPy what the operations are. ``extremes`` and
``histogram`` are the same in C++ (reduce.cpp); reduce.cu is the same on a GPU. ``order_statistics`` finds the n-th
smallest value from histograms alone, so that CPU and GPU share it.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.kernels import _host
from dropgen_rt.kernels.checks import require_array, require_three

Float32Array = NDArray[np.float32]
Int32Array = NDArray[np.int32]

#: The digits of a key, highest first: (shift, bits).
DIGITS = ((21, 11), (10, 11), (0, 10))

#: counts(shift, bits, prefix): how many values have each digit, among those whose higher bits are ``prefix``.
CountDigits = Callable[[int, int, int], NDArray[np.int64]]


def keys_of(values: Float32Array) -> NDArray[np.uint32]:
    """Whole numbers in the order of the values: reduce.h, ``key_of``."""
    bits = values.view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))


def value_of(key: int) -> np.float32:
    """The value that has this key."""
    bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    return np.float32(np.array(bits, np.uint32).view(np.float32).item())


def no_extremes(count: int) -> NDArray[np.uint32]:
    """(count, 2) uint32: what the GPU's extremes start from, as keys."""
    return np.tile(np.array([0xFFFFFFFF, 0], np.uint32), (count, 1))


def extremes_of_keys(keys: NDArray[np.uint32]) -> Float32Array:
    """(count, 2) float32 of the GPU's keys; (inf, -inf) where no voxel was met."""
    bits = np.where(keys >> 31, keys & np.uint32(0x7FFFFFFF), ~keys)
    met = (keys != no_extremes(len(keys))).any(axis=1, keepdims=True)
    return np.where(met, bits.view(np.float32), np.array([np.inf, -np.inf], np.float32))


def extremes_definition(volume: Float32Array, starts: Int32Array, window: Sequence[int]) -> Float32Array:
    """The definition of ``extremes``, in NumPy."""
    out = np.full((len(starts), len(volume), 2), (np.inf, -np.inf), np.float32)
    for found, start in zip(out, starts.astype(np.int64), strict=True):
        first, last = np.maximum(start, 0), np.minimum(start + window, volume.shape[1:])
        if (first >= last).any():
            continue
        inside = volume[:, first[0] : last[0], first[1] : last[1], first[2] : last[2]]
        found[:] = np.stack([inside.min(axis=(1, 2, 3)), inside.max(axis=(1, 2, 3))], axis=1)
    return out


def extremes(volume: Float32Array, starts: Int32Array, window: Sequence[int]) -> Float32Array:
    """(N, C, 2) float32: the least and greatest value of each window, among its voxels inside the volume.

    volume: (C, Z, Y, X) float32. starts: (N, 3) int32, (z, y, x). window: (wz, wy, wx). A window that misses the
    volume has (inf, -inf). Raises TypeError or ValueError. Releases the GIL.
    """
    require_array("volume", volume, np.float32, ("C", "Z", "Y", "X"))
    require_array("starts", starts, np.int32, ("N", 3))
    require_three("window", window)
    out = np.empty((len(starts), len(volume), 2), np.float32)
    if out.size:
        window_z, window_y, window_x = window
        _host.extremes(volume, starts, window_z, window_y, window_x, out)
    return out


def histogram_definition(values: Float32Array, shift: int, bits: int, prefix: int) -> NDArray[np.int64]:
    """The definition of ``histogram``, in NumPy."""
    keys = keys_of(values.ravel()).astype(np.uint64)
    counted = keys[keys >> np.uint64(shift + bits) == prefix]
    digits = (counted >> np.uint64(shift)) & np.uint64((1 << bits) - 1)
    return np.bincount(digits.astype(np.int64), minlength=1 << bits)


def histogram(values: Float32Array, shift: int, bits: int, prefix: int) -> NDArray[np.int64]:
    """(1 << bits,) int64: how many values have each digit ``(key >> shift) & (2**bits - 1)`` of their key.

    Only values whose key has ``prefix`` above that digit count. values: C-contiguous float32 of any shape, no NaN.
    Raises TypeError or ValueError. Releases the GIL.
    """
    require_array("values", values.reshape(-1), np.float32, ("n",))
    out = np.zeros(1 << bits, np.int64)
    _host.histogram(values, shift, bits, prefix, out)
    return out


def order_statistics(ranks: Sequence[int], count_digits: CountDigits) -> list[np.float32]:
    """The values of these ranks (0 is the smallest), exactly; each histogram is counted once."""
    known: dict[tuple[int, int], NDArray[np.int64]] = {}

    def one(rank: int) -> np.float32:
        prefix = 0
        for shift, bits in DIGITS:
            if (shift, prefix) not in known:
                known[shift, prefix] = count_digits(shift, bits, prefix)
            below = np.cumsum(known[shift, prefix])
            digit = int(np.searchsorted(below, rank, side="right"))
            rank -= int(below[digit - 1]) if digit else 0
            prefix = (prefix << bits) | digit
        return value_of(prefix)

    return [one(rank) for rank in ranks]


def percentiles(values: Float32Array, percents: Sequence[float]) -> list[float]:
    """Percentiles by linear interpolation between ranks, as ``numpy.percentile`` has them.

    values: C-contiguous float32 without NaN, at least one.
    """
    return percentiles_of(values.size, percents, lambda *digit: histogram(values, *digit))


def percentiles_of(count: int, percents: Sequence[float], count_digits: CountDigits) -> list[float]:
    """``percentiles`` of ``count`` values whose digits are counted elsewhere."""
    places = [percent / 100 * (count - 1) for percent in percents]
    ranks = [rank for place in places for rank in (int(place), min(int(place) + 1, count - 1))]
    found = iter(order_statistics(ranks, count_digits))
    return [
        float(low) + (float(high) - float(low)) * (place - int(place))
        for place, low, high in zip(places, found, found, strict=True)
    ]
