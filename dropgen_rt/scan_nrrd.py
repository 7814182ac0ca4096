"""The text header of NRRD files, attached (.nrrd) and detached (.nhdr)."""

import math
import re
from pathlib import Path

import numpy as np

from dropgen_rt.errors import GeometryError, UnsuitableInputError
from dropgen_rt.scan_header import (
    Packing,
    Payload,
    RawHeader,
    check_axes,
    check_origin,
    checked_spacing,
    not_an_image,
    numbers,
    refusal,
    spatial_size,
    unsuitable_voxels,
)
from dropgen_rt.scan_text import axis_sizes, place_of_voxels

_NAMES = {
    "i1": "signed char|int8|int8_t", "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t", "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float", "f8": "double",
}  # fmt: skip
_TYPES = {name: code for code, names in _NAMES.items() for name in names.split("|")}
_PACKINGS: dict[str, Packing] = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}
_ALIASES = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}
_SPATIAL_KINDS = {"domain", "space", "???", "none"}
_ANATOMICAL = {
    "left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las",
}  # fmt: skip


def parse_nrrd(path: Path, head: bytes) -> RawHeader:
    """Check the header in the first HEADER_BYTES of the file.

    Raises UnreadableInputError, UnsuitableInputError or GeometryError.
    """
    fields, end = _fields(path, head)
    sizes = axis_sizes(path, fields, "dimension", "sizes")
    axes = _spatial_axes(path, fields, sizes)
    size = spatial_size(path, [sizes[axis] for axis in axes])
    voxel = _voxel_type(path, fields)
    _check_units(path, fields)
    spacing_mm = checked_spacing(path, _spacing(path, fields, axes[:3]))
    payload = _payload(path, fields, end, voxel, math.prod(size) * voxel.itemsize)
    return RawHeader("NrrdImageIO", size, spacing_mm, payload, warnings=_warnings(fields))


def _fields(path: Path, head: bytes) -> tuple[dict[str, str], int]:
    """The ``key: value`` lines, keys in small letters, and the byte at which the header ends."""
    if not re.match(rb"NRRD000\d\r?\n", head):
        raise not_an_image(path, "no NRRD signature")
    blank = re.search(rb"\r?\n\r?\n", head)
    # Of a header beside its data the end is the file's, with or without a blank line.
    text = head[: blank.start() if blank else len(head)].decode("latin-1").rstrip("\r\n")
    fields = {}
    # Not splitlines(): in UTF-8 some letters hold a byte that it takes for the end of a line.
    for line in text.split("\n")[1:]:
        if line.startswith("#") or ":=" in line:
            continue
        key, colon, value = line.partition(":")
        if not colon:
            raise not_an_image(path, f"NRRD header line {line[:60]!r}")
        key = key.strip().lower()
        fields[_ALIASES.get(key, key)] = value.strip()
    if blank is None and "data file" not in fields:
        raise not_an_image(path, "a NRRD header without an end")
    return fields, blank.end() if blank else len(head)


def _vectors(fields: dict[str, str]) -> list[str] | None:
    text = fields.get("space directions")
    return re.findall(r"none|\([^)]*\)", text) or [""] if text is not None else None  # [""]: as many as no axes has


def _spatial_axes(path: Path, fields: dict[str, str], sizes: tuple[int, ...]) -> list[int]:
    """The axes that lie in space; the others must have one element."""
    vectors = _vectors(fields) or ["()"] * len(sizes)
    kinds = fields.get("kinds", "").split() or ["domain"] * len(sizes)
    if len(vectors) != len(sizes) or len(kinds) != len(sizes):
        raise not_an_image(path, "a NRRD header whose axes and sizes disagree")
    spatial = [a for a in range(len(sizes)) if vectors[a] != "none" and kinds[a].lower() in _SPATIAL_KINDS]
    if len(spatial) < 3 and "none" in vectors and set(map(str.lower, kinds)) <= _SPATIAL_KINDS:
        given, step = "an axis without direction", "correct the header"
        raise refusal(GeometryError, path, given, "three spatial axes", step)
    channels = math.prod(size for axis, size in enumerate(sizes) if axis not in spatial)
    if channels != 1:
        raise unsuitable_voxels(path, f"vector of {channels}")
    return spatial


def _voxel_type(path: Path, fields: dict[str, str]) -> np.dtype:
    name = fields.get("type", "").lower()
    if name not in _TYPES:
        raise unsuitable_voxels(path, repr(name))
    return np.dtype((">" if fields.get("endian", "little").lower() == "big" else "<") + _TYPES[name])


def _check_units(path: Path, fields: dict[str, str]) -> None:
    named = set(re.findall(r'"([^"]*)"', fields.get("space units", "") + fields.get("units", "")))
    wrong = named - {"mm", "millimeter", "millimetre", "", "???"}
    if wrong:  # SimpleITK reads the numbers as mm whatever the unit
        step = "convert the header to mm"
        raise refusal(GeometryError, path, f"lengths in {', '.join(sorted(wrong))}", "mm", step)


def _spacing(path: Path, fields: dict[str, str], axes: list[int]) -> list[float]:
    vectors = _vectors(fields)
    if vectors is None:
        if "spacings" not in fields:
            accepted = "space directions or spacings"
            raise refusal(GeometryError, path, "no spacing", accepted, "correct the header")
        spacings = numbers(path, "spacings", fields["spacings"])
        return [spacings[axis] for axis in axes if axis < len(spacings)]
    rows = [numbers(path, "space directions", vectors[a].strip("()").replace(",", " "))[:3] for a in axes]
    if any(len(row) != 3 for row in rows):
        raise not_an_image(path, "space directions that are not three vectors")
    if "space origin" in fields:
        origin = numbers(path, "space origin", fields["space origin"].strip("()").replace(",", " "))
        check_origin(path, origin[:3] if len(origin) == len(_vectors(fields) or ()) else origin)
    columns = np.array(rows).T
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(columns, axis=0)
    checked_spacing(path, lengths.tolist())
    check_axes(path, columns / lengths, "space directions")
    return [float(length) for length in lengths]


def _payload(path: Path, fields: dict[str, str], end: int, voxel: np.dtype, length: int) -> Payload:
    encoding = fields.get("encoding", "").lower()
    if encoding not in _PACKINGS:
        given = f"NRRD encoding {encoding!r}"
        raise refusal(UnsuitableInputError, path, given, "raw or gzip", "save the scan as .nii.gz")
    if fields.get("line skip", "0") != "0":
        raise refusal(UnsuitableInputError, path, "NRRD line skip", "none", "save the scan as .nii.gz")
    packing = _PACKINGS[encoding]
    name = fields.get("data file")
    source, start, skip = place_of_voxels(path, name, end, fields, "byte skip", length if packing == "raw" else None)
    return Payload(source, start, packing, skip, length, voxel)


def _warnings(fields: dict[str, str]) -> tuple[str, ...]:
    space = fields.get("space", "").lower()
    if not space:
        return ("the header names no space: left, right and position are not known",)
    if space.removesuffix("-time") not in _ANATOMICAL:
        return (f"the space {space!r} is not anatomical: read as LPS",)
    return ()
