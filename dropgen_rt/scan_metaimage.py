"""The text header of MetaImage files, attached (.mha) and detached (.mhd)."""

import math
from pathlib import Path

import numpy as np

from dropgen_rt.errors import GeometryError, UnsuitableInputError
from dropgen_rt.scan_header import (
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
    whole_numbers,
)
from dropgen_rt.scan_text import axis_sizes, place_of_voxels

_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_DIRECTION_KEYS = ("TransformMatrix", "Rotation", "Orientation")


def parse_metaimage(path: Path, head: bytes) -> RawHeader:
    """Check the header in the first HEADER_BYTES of the file.

    Raises UnreadableInputError, UnsuitableInputError or GeometryError.
    """
    fields, end = _fields(path, head)
    sizes = axis_sizes(path, fields, "NDims", "DimSize")
    size = spatial_size(path, sizes)
    voxel = _voxel_type(path, fields)
    spacing_mm = checked_spacing(path, _spacing(path, fields, len(sizes)))
    warnings = _check_direction(path, fields, len(sizes)) + _check_origin(path, fields, len(sizes))
    payload = _payload(path, fields, end, voxel, math.prod(size) * voxel.itemsize)
    return RawHeader("MetaImageIO", size, spacing_mm, payload, warnings=warnings)


def _fields(path: Path, head: bytes) -> tuple[dict[str, str], int]:
    """The ``key = value`` lines up to ElementDataFile, and the byte at which they end."""
    fields: dict[str, str] = {}
    position = 0
    while position < len(head):
        stop = head.find(b"\n", position)
        stop = len(head) if stop < 0 else stop
        key, equals, value = head[position:stop].decode("latin-1").partition("=")
        position = stop + 1
        if not equals or len(key) > 80:
            raise not_an_image(path, "not a MetaImage header")
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            return fields, position
    raise not_an_image(path, "a MetaImage header without ElementDataFile")


def _is_true(fields: dict[str, str], *keys: str) -> bool:
    return any(fields.get(key, "")[:1] in ("T", "t", "1") for key in keys)


def _voxel_type(path: Path, fields: dict[str, str]) -> np.dtype:
    name, channels = fields.get("ElementType", ""), fields.get("ElementNumberOfChannels", "1")
    if name not in _TYPES or channels != "1":
        raise unsuitable_voxels(path, f"{name!r} with {channels} channels")
    big = _is_true(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    return np.dtype((">" if big else "<") + _TYPES[name])


def _spacing(path: Path, fields: dict[str, str], dimensions: int) -> tuple[float, ...]:
    unit = fields.get("DistanceUnits", "mm")
    if unit.lower() not in ("mm", "?"):  # SimpleITK reads the numbers as mm whatever the unit
        raise refusal(GeometryError, path, f"lengths in {unit}", "mm", "convert the header to mm")
    text = fields.get("ElementSpacing", fields.get("ElementSize"))
    if text is None:
        raise refusal(GeometryError, path, "no ElementSpacing", "one in mm", "correct the header")
    spacing = numbers(path, "ElementSpacing", text)
    return spacing[:3] if len(spacing) == dimensions else spacing


def _check_direction(path: Path, fields: dict[str, str], dimensions: int) -> tuple[str, ...]:
    """Check the direction; returns the warning that there is none."""
    key = next((key for key in _DIRECTION_KEYS if key in fields), None)
    if key is None:
        return ("the header sets no TransformMatrix: left, right and position are not known",)
    values = numbers(path, key, fields[key])
    if len(values) != dimensions**2:
        raise not_an_image(path, f"{key} of {len(values)} numbers")
    check_axes(path, np.reshape(values, (dimensions, dimensions))[:3, :3].T, key)
    return ()


def _check_origin(path: Path, fields: dict[str, str], dimensions: int) -> tuple[str, ...]:
    """Check the position; returns the warning that there is none."""
    key = next((key for key in ("Offset", "Position", "Origin") if key in fields), None)
    if key is None:
        return ("the header sets no Offset: the position is not known",)
    origin = numbers(path, key, fields[key])  # SimpleITK reads a NaN as 0
    check_origin(path, origin[:3] if len(origin) == dimensions else origin)
    return ()


def _payload(path: Path, fields: dict[str, str], end: int, voxel: np.dtype, length: int) -> Payload:
    if fields.get("BinaryData", "True")[:1] not in ("T", "t", "1"):
        raise refusal(UnsuitableInputError, path, "voxels as text", "binary data", "save the scan as .nii.gz")
    name = None if fields["ElementDataFile"].upper() == "LOCAL" else fields["ElementDataFile"]
    if _is_true(fields, "CompressedData"):
        source, start, _ = place_of_voxels(path, name, end, {}, "HeaderSize", None)
        stored = _stored(path, fields, name is None)
        if stored is not None and start + stored > source.stat().st_size:  # SimpleITK asks for as much memory
            raise not_an_image(path, f"CompressedDataSize {stored}, beyond the end of the file")
        return Payload(source, start, "zlib", 0, length, voxel, stored)
    if name is None and fields.get("HeaderSize", "0") not in ("0", "-1"):
        whole_numbers(path, "HeaderSize", fields["HeaderSize"])
        raise not_an_image(path, "HeaderSize and voxels in the same file")  # SimpleITK counts it from the first byte
    source, start, _ = place_of_voxels(path, name, end, fields, "HeaderSize", length)
    return Payload(source, start, "raw", 0, length, voxel)


def _stored(path: Path, fields: dict[str, str], local: bool) -> int | None:
    if "CompressedDataSize" in fields:
        stored = whole_numbers(path, "CompressedDataSize", fields["CompressedDataSize"])
        if len(stored) != 1 or stored[0] < 0:
            raise not_an_image(path, f"CompressedDataSize {fields['CompressedDataSize'][:60]!r}")
        return stored[0]
    if local:  # SimpleITK then returns whatever lies in memory
        raise not_an_image(path, "compressed voxels without CompressedDataSize")
    return None
