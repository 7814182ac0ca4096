"""Builders of scan files byte by byte, so that each field of a header can be made wrong."""

import struct
from typing import Any

import numpy as np

# The grid of every file made here, in LPS millimetres, and its voxels 0, 1, 2, … in the order x, y, z.
SIZE = (4, 5, 6)
SPACING_MM = (1.5, 2.0, 3.0)
ORIGIN_MM = (-10.0, -20.0, -30.0)
COUNT = 120
NIFTI_ROWS = [[-1.5, 0, 0, 10], [0, -2, 0, 20], [0, 0, 3, -30]]  # the same grid, RAS

NIFTI_CODES = {
    "u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768, "i8": 1024, "u8": 1280,
    "c8": 32, "c16": 1792,
}  # fmt: skip


def voxels(code: str = "f4", end: str = "<") -> bytes:
    return np.arange(COUNT).astype(end + code).tobytes()


def nifti(code: str = "f4", end: str = "<", data: bytes | None = None, version: int = 1, **fields: Any) -> bytes:
    """A NIfTI file.

    Fields: dim, pixdim, rows, quaternion, q, s, slope, inter, units, offset, magic, datatype, bits.
    """
    body = voxels(code, end) if data is None else data
    size = fields.get("dim", (3, *SIZE))
    dim = [*size, *[1] * (8 - len(size))]
    pixdim = [*fields.get("pixdim", (1, *SPACING_MM)), 0, 0, 0, 0][:8]
    rows = np.ravel(np.array(fields.get("rows", NIFTI_ROWS), dtype=float))
    quaternion = fields.get("quaternion", (0, 0, 1, 10, 20, -30))
    datatype = fields.get("datatype", NIFTI_CODES[code])
    bits = fields.get("bits", np.dtype(code).itemsize * 8)
    header = bytearray(352 if version == 1 else 544)

    def put(fmt: str, offset: int, *values: float) -> None:
        struct.pack_into(end + fmt, header, offset, *values)

    scaling = fields.get("slope", 1.0), fields.get("inter", 0.0)
    codes = fields.get("q", 0), fields.get("s", 1)
    units, offset = fields.get("units", 2), fields.get("offset", len(header))
    if version == 1:
        put("i", 0, 348)
        put("8h", 40, *dim)
        put("hh", 70, datatype, bits)
        put("8f", 76, *pixdim)
        put("3f", 108, offset, *scaling)
        put("B", 123, units)
        put("2h", 252, *codes)
        put("6f", 256, *quaternion)
        put("12f", 280, *rows)
        header[344:348] = fields.get("magic", b"n+1\0")
    else:
        put("i", 0, 540)
        put("hh", 12, datatype, bits)
        put("8q", 16, *dim)
        put("8d", 104, *pixdim)
        put("q", 168, offset)
        put("dd", 176, *scaling)
        put("ii", 344, *codes)
        put("6d", 352, *quaternion)
        put("12d", 400, *rows)
        put("i", 500, units)
        header[4:12] = fields.get("magic", b"n+2\0\r\n\x1a\n")
    return bytes(header) + body


def nrrd(data: bytes | None = None, **changes: str | None) -> bytes:
    """A NRRD file; a change of None drops the field."""
    fields: dict[str, str | None] = {
        "type": "float", "dimension": "3", "space": "left-posterior-superior", "sizes": "4 5 6",
        "space_directions": "(1.5,0,0) (0,2,0) (0,0,3)", "kinds": "domain domain domain", "endian": "little",
        "encoding": "raw", "space_origin": "(-10,-20,-30)", **changes,
    }  # fmt: skip
    lines = [f"{key.replace('_', ' ')}: {value}\n" for key, value in fields.items() if value is not None]
    return ("NRRD0004\n# a comment\n" + "".join(lines) + "\n").encode() + (voxels() if data is None else data)


def mha(data: bytes | None = None, **changes: object) -> bytes:
    """A MetaImage file; a change of None drops the field."""
    fields: dict[str, object] = {
        "ObjectType": "Image", "NDims": 3, "BinaryData": True, "BinaryDataByteOrderMSB": False,
        "CompressedData": False, "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "-10 -20 -30",
        "ElementSpacing": "1.5 2 3", "DimSize": "4 5 6", "ElementType": "MET_FLOAT", **changes,
    }  # fmt: skip
    fields["ElementDataFile"] = fields.pop("ElementDataFile", "LOCAL")
    lines = [f"{key} = {value}\n" for key, value in fields.items() if value is not None]
    return "".join(lines).encode() + (voxels() if data is None else data)
