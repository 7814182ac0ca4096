"""What the raw header of a scan says, and the checks common to all formats.

SimpleITK repairs much in silence: it turns a zero or NaN spacing into 1 mm, a negative one into a flip, and
fills a truncated file with zeros. So the headers are read here as they stand, before it sees the file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from dropgen_rt.errors import GeometryError, InputError, UnreadableInputError, UnsuitableInputError
from dropgen_rt.geometry import DIRECTION_TOLERANCE, is_orthonormal
from dropgen_rt.words import by

#: Longest axis accepted: four times the largest detectors (4096); more is a broken header.
MAX_AXIS_VOXELS = 4096 * 4

#: Most voxels accepted: as float32 they fill 8 GiB, beyond any clinical scan and near a workstation's memory.
MAX_VOXELS = 2**31

#: Voxel edges accepted, in mm: from below synchrotron micro-CT to above any clinical slice thickness. Outside
#: it the unit of the header is wrong, and resampling would ask for absurd amounts of memory.
SPACING_LIMITS_MM = (1e-4, 100.0)

#: Largest coordinate accepted, in mm: a kilometre from the scanner's centre.
MAX_COORDINATE_MM = 1e6

Packing = Literal["raw", "gzip", "zlib"]


@dataclass(frozen=True)
class Payload:
    """Where the voxels are stored.

    From byte ``start`` of ``path`` (``stored`` bytes long, to the end if None), unpacked, after ``skip``
    unpacked bytes, come ``length`` bytes of ``voxel`` (its byte order included).
    """

    path: Path
    start: int
    packing: Packing
    skip: int
    length: int
    voxel: np.dtype
    stored: int | None = None


@dataclass(frozen=True)
class RawHeader:
    """A header that passed all checks: sizes and spacing in (x, y, z) order.

    ``reader`` is the name of SimpleITK's reader for it, or None where it has none (NIfTI-2). ``affines``
    holds, of a NIfTI file, the named (4, 4) matrices from voxel index to LPS millimetres that the header
    offers, the preferred first. ``scaling`` is the slope and intercept of the stored numbers.
    """

    reader: str | None
    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    payload: Payload
    affines: tuple[tuple[str, np.ndarray], ...] = ()
    scaling: tuple[float, float] = (1.0, 0.0)
    warnings: tuple[str, ...] = ()


def refusal(kind: type[InputError], path: Path, given: str, accepted: str, step: str) -> InputError:
    """The exception whose one line says what was given, what is accepted and what to do next."""
    name = str(path).encode(errors="replace").decode()  # bytes in a name that are no text can not be printed
    return kind(" ".join(f"{name}: {given}; accepted: {accepted}; {step}".splitlines()))


def is_text(path: Path) -> bool:
    """Whether a path is UTF-8; one that is not ends the process inside SimpleITK."""
    return not any("\ud800" <= letter <= "\udfff" for letter in str(path))


def not_an_image(path: Path, given: str) -> InputError:
    """The refusal of a file whose contents are not what its suffix says."""
    return refusal(
        UnreadableInputError, path, given, "an image of the format its suffix names", "export the scan again"
    )


def not_readable(path: Path, error: OSError) -> InputError:
    """The refusal of a path that the system does not let us read."""
    given = error.strerror or str(error)
    return refusal(UnreadableInputError, path, given, "a readable file or folder", "check its permissions")


def spatial_size(path: Path, sizes: Sequence[int]) -> tuple[int, int, int]:
    """The three sizes (x, y, z) of an image of these axes; trailing axes of size 1 are dropped.

    Raises GeometryError for sizes no scan has, UnsuitableInputError for 2D and 4D.
    """
    if any(n < 1 or n > MAX_AXIS_VOXELS for n in sizes) or math.prod(sizes) > MAX_VOXELS:
        limits = f"1 to {MAX_AXIS_VOXELS} voxels per axis, {MAX_VOXELS} in all"
        raise refusal(GeometryError, path, f"size {by(sizes)}", limits, "check how the scan was exported")
    kept = list(sizes)
    while len(kept) > 3 and kept[-1] == 1:
        kept.pop()
    if len(kept) == 3:
        return kept[0], kept[1], kept[2]
    step = "stack the slices into one volume" if len(kept) < 3 else "save each time point or component by itself"
    given = f"{len(kept)}D image of size {by(kept)}"
    raise refusal(UnsuitableInputError, path, given, "one 3D scan", step)


def checked_spacing(path: Path, spacing_mm: Sequence[float]) -> tuple[float, float, float]:
    """The spacing, if it is one that a scan can have. Raises GeometryError."""
    low, high = SPACING_LIMITS_MM
    if len(spacing_mm) != 3 or not all(math.isfinite(s) and low <= s <= high for s in spacing_mm):
        given = f"spacing {by(spacing_mm)} mm"
        accepted = f"three lengths from {low:g} to {high:g} mm"
        raise refusal(GeometryError, path, given, accepted, "correct the header or export the scan again")
    return float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2])


def check_origin(path: Path, origin_mm: Sequence[float]) -> None:
    """Raise GeometryError unless these are three coordinates that a scan can have."""
    if len(origin_mm) != 3 or not are_coordinates(origin_mm):
        accepted = f"three coordinates up to {MAX_COORDINATE_MM:g} mm"
        step = "correct the header or export the scan again"
        raise refusal(GeometryError, path, f"origin {by(origin_mm)} mm", accepted, step)


def are_coordinates(values: npt.ArrayLike) -> bool:
    """Whether all are finite and no larger than MAX_COORDINATE_MM."""
    return bool((np.abs(np.asarray(values, dtype=np.float64)) <= MAX_COORDINATE_MM).all())


def check_axes(path: Path, columns: np.ndarray, what: str) -> None:
    """Raise GeometryError unless the columns of a (3, 3) matrix are perpendicular unit vectors."""
    if is_orthonormal(columns):
        return
    finite = bool(np.isfinite(columns).all())
    singular = not finite or abs(np.linalg.det(columns)) < DIRECTION_TOLERANCE
    given = f"{what} {'not finite' if not finite else 'singular' if singular else 'sheared or scaled'}"
    accepted = f"perpendicular unit axes (within {DIRECTION_TOLERANCE:g})"
    raise refusal(GeometryError, path, given, accepted, "resample the scan onto a rectangular grid first")


def unsuitable_voxels(path: Path, given: str) -> InputError:
    """The refusal of complex, colour, vector and exotic voxels."""
    step = "save the magnitude or one channel as a scan of its own"
    accepted = "one integer or float number of up to 64 bits per voxel"
    return refusal(UnsuitableInputError, path, f"voxels of type {given}", accepted, step)


def whole_numbers(path: Path, key: str, text: str) -> tuple[int, ...]:
    """The integers of a header line. Raises UnreadableInputError."""
    try:
        return tuple(int(word) for word in text.split())
    except ValueError:
        raise not_an_image(path, f"header line {key!r} says {text[:60]!r}, not whole numbers") from None


def numbers(path: Path, key: str, text: str) -> tuple[float, ...]:
    """The numbers of a header line, NaN and infinity included. Raises UnreadableInputError."""
    try:
        return tuple(float(word) for word in text.split())
    except ValueError:
        raise not_an_image(path, f"header line {key!r} says {text[:60]!r}, not numbers") from None
