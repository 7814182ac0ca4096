"""Scan and labels as a web page carries them: NIfTI, few bits per voxel, compressed, in base64.

The page must stay small enough to be mailed and to fit a graphics card. What is given up for that (the last bits of the
intensities, then every other plane) is told in words, and concerns what is shown, never what was measured.
"""

import base64
import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.geometry import Geometry
from dropgen_rt.volume import Volume, nifti_bytes
from dropgen_rt.words import by

#: Compressed bytes that the scan may take: in base64 a third more, which leaves a page below 30 MB room for
#: viewer, labels and picture.
SCAN_BYTES = 19_000_000

#: Voxels shown at most: each takes some 12 bytes of graphics memory.
SHOWN_VOXELS = 2**26

#: Bytes compressed between two looks at the budget.
_BLOCK = 2**20

#: Voxels from which percentiles are taken at most.
_SAMPLED_VOXELS = 2**23

#: Percentiles between which 8 bits are spread where 16 are too many.
_EIGHT_BIT_RANGE = (0.1, 99.9)

# Places in a NIfTI-1 header: what the stored numbers are to be multiplied by, then added to (two float32); what the
# numbers mean (int16), and the code that says that they are labels.
_SCALING_AT, _INTENT_AT, _INTENT_LABEL = 112, 68, 1002


@dataclass(frozen=True)
class PackedVolumes:
    """``scan`` and ``labels`` are gzip-compressed NIfTI in base64, on one grid; ``notes`` tell what was given up."""

    scan: str
    labels: str
    notes: tuple[str, ...]


def pack(scan: Volume, labels: Volume) -> PackedVolumes:
    """Channel 0 of a scan (C, z, y, x) and its labels (1, z, y, x), as the page embeds them."""
    strides: tuple[int, int, int] = (1, 1, 1)
    while True:
        strides = _fewer_voxels(scan.geometry, strides)
        geometry = _strided(scan.geometry, strides)
        grey = scan.array[0][tuple(slice(None, None, step) for step in strides[::-1])]
        packed, notes = _pack_scan(np.ascontiguousarray(grey), geometry)
        if packed is not None:
            break
        strides = _doubled(scan.geometry, strides)
    marked = labels.array[0][tuple(slice(None, None, step) for step in strides[::-1])]
    if strides != (1, 1, 1):
        notes += (f"the viewer shows one voxel of {by(strides)} (x, y, z); volumes are those of all voxels",)
    content = bytearray(nifti_bytes(np.ascontiguousarray(marked), geometry))
    struct.pack_into("<h", content, _INTENT_AT, _INTENT_LABEL)
    packed_labels = _gzip(bytes(content), None)
    assert packed_labels is not None
    return PackedVolumes(_text(packed), _text(packed_labels), notes)


def bounds(grey: NDArray[np.float32], percentiles: tuple[float, float]) -> tuple[float, float]:
    """Two percentiles, of every n-th voxel where there are many; the extremes where the percentiles meet."""
    some = grey.ravel()[:: grey.size // _SAMPLED_VOXELS + 1]
    low, high = (float(value) for value in np.percentile(some, percentiles))
    return (low, high) if low < high else (float(grey.min()), float(grey.max()))


def _pack_scan(grey: NDArray[np.float32], geometry: Geometry) -> tuple[bytes | None, tuple[str, ...]]:
    """The scan within SCAN_BYTES, or None: exact where 16-bit integers are, else rounded, else 8 bits."""
    low, high = float(grey.min()), float(grey.max())
    limits = np.iinfo(np.int16)
    if limits.min <= low and high <= limits.max and np.array_equal(grey, np.rint(grey)):
        packed = _gzip(nifti_bytes(grey.astype(np.int16), geometry), SCAN_BYTES)
        if packed is not None:
            return packed, ()
    else:
        packed = _gzip(_scaled(grey, geometry, low, high, np.dtype(np.int16)), SCAN_BYTES)
        if packed is not None:
            return packed, ("the viewer shows intensities rounded to 16 bits",)
    low, high = bounds(grey, _EIGHT_BIT_RANGE)
    note = f"the viewer shows intensities in 256 steps from {low:g} to {high:g}"
    return _gzip(_scaled(grey, geometry, low, high, np.dtype(np.uint8)), SCAN_BYTES), (note,)


def _scaled(grey: NDArray[np.float32], geometry: Geometry, low: float, high: float, kind: np.dtype) -> bytes:
    """NIfTI whose integers span low to high, clipped, with the slope and intercept that undo it."""
    limits = np.iinfo(kind)
    slope = max((high - low) / (limits.max - limits.min), float(np.finfo(np.float32).tiny))
    intercept = low - limits.min * slope
    stored = np.clip(np.rint((grey.astype(np.float64) - intercept) / slope), limits.min, limits.max)
    content = bytearray(nifti_bytes(stored.astype(kind), geometry))
    struct.pack_into("<2f", content, _SCALING_AT, slope, intercept)
    return bytes(content)


def _gzip(content: bytes, limit: int | None) -> bytes | None:
    """One gzip member without a time stamp; None as soon as it is longer than ``limit``."""
    packer = zlib.compressobj(level=6, wbits=31)
    parts, length = [], 0
    for start in range(0, len(content), _BLOCK):
        parts.append(packer.compress(content[start : start + _BLOCK]))
        length += len(parts[-1])
        if limit is not None and length > limit:
            return None
    parts.append(packer.flush())
    return b"".join(parts) if limit is None or length + len(parts[-1]) <= limit else None


def _fewer_voxels(geometry: Geometry, strides: tuple[int, int, int]) -> tuple[int, int, int]:
    while math.prod(_strided(geometry, strides).size) > SHOWN_VOXELS:
        strides = _doubled(geometry, strides)
    return strides


def _doubled(geometry: Geometry, strides: tuple[int, int, int]) -> tuple[int, int, int]:
    """The finest axis at half its planes: voxels become more nearly cubes, and least is lost."""
    shown = [step * spacing for step, spacing in zip(strides, geometry.spacing_mm, strict=True)]
    long = [axis for axis in range(3) if geometry.size[axis] > strides[axis]]
    finest = min(long, key=lambda axis: shown[axis])
    x, y, z = (step * 2 if axis == finest else step for axis, step in enumerate(strides))
    return x, y, z


def _strided(geometry: Geometry, strides: tuple[int, int, int]) -> Geometry:
    """The grid of every n-th voxel; the first stays where it is."""
    x, y, z = (-(-size // step) for size, step in zip(geometry.size, strides, strict=True))
    a, b, c = (spacing * step for spacing, step in zip(geometry.spacing_mm, strides, strict=True))
    return Geometry((x, y, z), (a, b, c), geometry.origin_mm, geometry.direction)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
