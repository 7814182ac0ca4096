"""Stored pixels to a float32 volume, slice by slice.

Stored values times slope plus intercept (PS3.3 C.11.1), each slice with its own. No presentation transform:
MONOCHROME1 says how to show an image, not what was measured.
"""

import functools
import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import get_decoder, iter_pixels
from pydicom.uid import UID

from dropgen_rt.dicom.files import FileSet
from dropgen_rt.dicom.guard import GuardError, Limits, in_parallel
from dropgen_rt.dicom.headers import DEFLATED
from dropgen_rt.dicom.stacks import Slice

#: Memory for one decoder, beyond the volume; a multi-frame file is read whole besides.
DECODER_MEMORY_BYTES = 2**30

#: Processor seconds per file and per voxel: JPEG 2000, the slowest, takes a twentieth of it.
DECODER_CPU_S = (60.0, 5e-6)

#: Hounsfield units of air: what padding outside the reconstructed circle becomes.
AIR_HU = -1000.0

#: More Hounsfield units than metal has on scanners with an extended scale: padding there is no tissue either.
METAL_HU = 31743.0

# What decoders for native pixels are handed: nothing is decoded then.
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")

# What these keep of a scan the header should say, and often does not.
_LOSSY = (pydicom.uid.JPEGBaseline8Bit, pydicom.uid.JPEGExtended12Bit)
_PERHAPS_LOSSY = (pydicom.uid.JPEGLSNearLossless, pydicom.uid.JPEG2000, pydicom.uid.HTJ2K)


@dataclass(frozen=True)
class Pixels:
    """``array`` (slices, rows, columns) float32, its extremes, and how many voxels were padding."""

    array: np.ndarray
    low: float
    high: float
    padded: int


class PixelError(Exception):
    """The pixels of ``file`` cannot be used, for this reason."""

    def __init__(self, file: int, reason: str) -> None:
        super().__init__(reason)
        self.file = file


def undecodable(syntax: str, bits_stored: int) -> str:
    """What this transfer syntax is, if its pixels cannot be read here; otherwise ""."""
    if syntax in NATIVE:
        return ""
    if syntax == pydicom.uid.JPEGExtended12Bit and bits_stored > 8:
        return "lossy JPEG of 12 bits"
    if syntax not in pydicom.uid.UID_dictionary:  # pydicom would warn of it, with its text
        return "an unknown transfer syntax"
    name = UID(syntax).name
    try:
        return "" if get_decoder(syntax).is_available else name
    except NotImplementedError:
        return name


def loss(header: Any) -> str:
    """A warning, if the pixels of this file were or may have been changed by compression; otherwise ""."""
    if header.lossy == "01" or header.syntax in _LOSSY:
        return "the images were compressed with loss"
    if header.lossy != "00" and header.syntax in _PERHAPS_LOSSY:
        return "the images may have been compressed with loss"
    return ""


def read_pixels(files: FileSet, slices: Sequence[Slice]) -> Pixels:
    """The pixels of the slices in their order. Raises PixelError.

    What must be decoded or unpacked is, in guarded children, into memory shared with them. Native pixels are only
    copied from where the header pass found them, which no contents can turn into anything else.
    """
    header = slices[0].header
    shape = (len(slices), header.rows, header.columns)
    native = all(plane.header.syntax in NATIVE and plane.header.pixels[1] != DEFLATED for plane in slices)
    if native:
        array = np.empty(shape, np.float32)
    else:
        array = np.frombuffer(mmap.mmap(-1, math.prod(shape) * 4), np.float32).reshape(shape)
    jobs: dict[int, list[tuple[int, Slice]]] = {}
    for place, plane in enumerate(slices):
        jobs.setdefault(plane.header.file, []).append((place, plane))
    order = list(jobs)
    work = functools.partial(_read_file, files, jobs, array)
    low, high, padded = np.inf, -np.inf, 0
    try:
        answers = map(work, order) if native else in_parallel(work, order, _limits(files, order, array.size))
        for file, answer in zip(order, answers, strict=True):
            if "error" in answer:
                raise PixelError(file, answer["error"])
            low, high = min(low, answer["low"]), max(high, answer["high"])
            padded += answer["padded"]
    except GuardError as error:
        raise PixelError(order[error.done], f"its pixels cannot be read: {error}") from error
    return Pixels(array, low, high, padded)


def _limits(files: FileSet, order: Sequence[int], voxels: int) -> Limits:
    largest = max(files.files[file].stat().st_size for file in order)
    cpu_s = DECODER_CPU_S[0] + DECODER_CPU_S[1] * voxels
    return Limits(DECODER_MEMORY_BYTES + 4 * largest, int(cpu_s), cpu_s)


def _read_file(
    files: FileSet, jobs: dict[int, list[tuple[int, Slice]]], array: np.ndarray, file: int
) -> dict[str, Any]:
    """Put the wanted frames of one file, decoded and rescaled, into their places of ``array``; an answer as JSON."""
    wanted = jobs[file]
    header = wanted[0][1].header
    path = files.files[file]
    try:
        frames = _stored(path, header, [plane.frame for _, plane in wanted])
        low, high, padded = np.inf, -np.inf, 0
        for (place, plane), stored in zip(wanted, frames, strict=True):
            if stored.shape != (header.rows, header.columns):
                return {"error": "pixels of another size than its header says"}
            out = array[place]
            padded += _rescale(_within_stored_bits(stored, header), plane, out)
            low, high = min(low, float(out.min())), max(high, float(out.max()))
    except _ShortError as error:
        return {"error": str(error)}
    except MemoryError:
        raise
    except Exception:  # decoders raise what they like, and quote the file
        return {"error": f"its pixels cannot be decoded ({UID(header.syntax).name})"}
    if not np.isfinite([low, high]).all():
        return {"error": "its rescaled values are not finite"}
    return {"low": low, "high": high, "padded": padded}


class _ShortError(Exception):
    pass


def _stored(path: Path, header: Any, frames: list[int]) -> Iterator[np.ndarray]:
    """The stored values (rows, columns) of these frames."""
    offset, length, _ = header.pixels
    if header.syntax not in NATIVE:
        yield from iter_pixels(path, indices=frames, raw=True)
        return
    voxel = np.dtype(f"<{'i' if header.signed else 'u'}{header.bits_allocated // 8}")
    count = header.rows * header.columns
    needed = header.frames * count * voxel.itemsize
    content = None
    if length == DEFLATED:  # the whole data set has to be unpacked
        content = pydicom.dcmread(path, force=True).PixelData
        offset, length = 0, len(content)
    if length < needed:
        raise _ShortError(f"truncated: {max(length, 0)} of {needed} bytes of pixels")
    if header.syntax == pydicom.uid.ExplicitVRBigEndian and header.pixel_vr == "OW":
        # Words of 16 bits whatever the pixels are (PS3.5 6.2, OW): two pixels of 8 bits lie in each, or half of one.
        content = np.fromfile(path, ">u2", length // 2, offset=offset).astype("<u2").tobytes()
        offset = 0
    for frame in frames:
        place = offset + frame * count * voxel.itemsize
        if content is None:
            flat = np.fromfile(path, voxel, count, offset=place)
        else:
            flat = np.frombuffer(content, voxel, count, place)
        yield flat.reshape(header.rows, header.columns)


def _within_stored_bits(stored: np.ndarray, header: Any) -> np.ndarray:
    """Bits beyond BitsStored may hold overlays or nothing (PS3.5 8.1.1): they are dropped, the sign extended.

    Compressed pixels may hold them too: RLE and raw JPEG-LS pack words as they are.
    """
    spare = stored.dtype.itemsize * 8 - header.bits_stored
    lowest = -(1 << header.bits_stored - 1) if header.signed else 0
    if spare <= 0:
        return stored
    if stored.min() >= lowest and stored.max() < lowest + (1 << header.bits_stored):
        return stored
    native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    return (native << spare) >> spare


def _rescale(stored: np.ndarray, plane: Slice, out: np.ndarray) -> int:
    slope = 1.0 if plane.slope is None else plane.slope
    intercept = plane.intercept or 0.0
    exact = intercept == 0 or (stored.dtype.itemsize <= 2 and intercept.is_integer() and abs(intercept) < 2**23)
    if slope == 1.0 and exact:  # whole numbers below 2**24 have no rounding in float32; without intercept there is one
        np.add(stored, np.float32(intercept), out=out, dtype=np.float32, casting="unsafe")
    else:
        out[...] = stored.astype(np.float64) * slope + intercept
    return _padding_to_air(stored, plane, out)


def _padding_to_air(stored: np.ndarray, plane: Slice, out: np.ndarray) -> int:
    """In CT, pixels of the padding value (PS3.3 C.7.5.1.1.2) that no tissue has become air; their number."""
    value, limit = plane.header.padding
    if value is None or plane.header.modality != "CT":
        return 0
    lowest, highest = sorted((value, value if limit is None else limit))
    padding = (stored >= lowest) & (stored <= highest) & ((out < AIR_HU) | (out > METAL_HU))
    out[padding] = AIR_HU
    return int(np.count_nonzero(padding))
