"""The raw NIfTI-1 and NIfTI-2 header, either byte order: what SimpleITK would repair in silence."""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dropgen_rt.errors import GeometryError, InputError, UnsuitableInputError
from dropgen_rt.geometry import Geometry
from dropgen_rt.scan_header import (
    Packing,
    Payload,
    RawHeader,
    are_coordinates,
    check_axes,
    checked_spacing,
    not_an_image,
    refusal,
    spatial_size,
    unsuitable_voxels,
)
from dropgen_rt.words import by

#: Bytes that hold either header.
HEADER_BYTES = 540

#: Header extensions before the voxels are text or DICOM of some KiB; a far offset is a broken header.
MAX_VOXEL_OFFSET = 2**26

#: How far the lengths of the sform's columns may be from pixdim, relative. Both are float32 roundings of
#: one number; SimpleITK takes pixdim, other readers the sform, so they would measure different volumes.
SPACING_AGREEMENT = 1e-2

#: How far b² + c² + d² of the quaternion may exceed 1: float32 rounding; SimpleITK renormalises any excess.
QUATERNION_EXCESS = 1e-4

#: sform and qform that put a corner further apart than this share of the smallest voxel edge disagree.
_TRANSFORM_AGREEMENT = 0.1

_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_REFUSED_TYPES = {1: "1-bit", 32: "complex", 1792: "complex", 2048: "complex", 128: "RGB", 2304: "RGBA"}
_TO_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class _Fields:
    version: int
    order: str
    dim: tuple[int, ...]
    datatype: int
    bitpix: int
    pixdim: tuple[float, ...]
    vox_offset: float
    slope: float
    intercept: float
    units: int
    qform_code: int
    sform_code: int
    quaternion: tuple[float, ...]
    sform: tuple[float, ...]


def parse_nifti(path: Path, head: bytes, packing: Packing) -> RawHeader:
    """Check the first HEADER_BYTES (unpacked) of a NIfTI file; ``packing`` is how the file is stored.

    Raises UnreadableInputError, UnsuitableInputError or GeometryError.
    """
    raw = _fields(path, head)
    size = spatial_size(path, raw.dim[1 : 1 + raw.dim[0]])
    voxel = _voxel_type(path, raw)
    scaling = _scaling(path, raw)
    unit = _TO_MM.get(raw.units, 1.0)
    spacing_mm = checked_spacing(path, [step * unit for step in raw.pixdim[1:4]])
    affines = _affines(path, raw, unit)
    length = math.prod(size) * voxel.itemsize
    payload = Payload(path, 0, packing, _voxel_offset(path, raw), length, voxel)
    reader = "NiftiImageIO" if raw.version == 1 else None
    return RawHeader(reader, size, spacing_mm, payload, affines, scaling, _warnings(raw))


def _fields(path: Path, head: bytes) -> _Fields:
    for order in "<>":
        if len(head) >= 348 and struct.unpack_from(f"{order}i", head)[0] == 348:
            fields = _nifti1(head, order)
            return _signed(path, fields, head[344:348], b"n+1\0", b"ni1\0")
        if len(head) >= 540 and struct.unpack_from(f"{order}i", head)[0] == 540:
            fields = _nifti2(head, order)
            return _signed(path, fields, head[4:12], b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n")
    raise not_an_image(path, "not a NIfTI header")


def _signed(path: Path, fields: _Fields, magic: bytes, single: bytes, pair: bytes) -> _Fields:
    if magic == pair:
        raise not_an_image(path, "the header of a .hdr/.img pair")
    if magic != single:
        raise not_an_image(path, "an ANALYZE or damaged header without the NIfTI signature")
    if not 1 <= fields.dim[0] <= 7:
        raise not_an_image(path, f"a header of {fields.dim[0]} dimensions")
    return fields


def _nifti1(head: bytes, order: str) -> _Fields:
    def at(code: str, offset: int) -> tuple:
        return struct.unpack_from(order + code, head, offset)

    values = (
        1, order, at("8h", 40), *at("hh", 70), at("8f", 76), *at("3f", 108), head[123] & 7,
        *at("hh", 252), at("6f", 256), at("12f", 280),
    )  # fmt: skip
    return _Fields(*values)


def _nifti2(head: bytes, order: str) -> _Fields:
    def at(code: str, offset: int) -> tuple:
        return struct.unpack_from(order + code, head, offset)

    values = (
        2, order, at("8q", 16), *at("hh", 12), at("8d", 104), *at("q", 168), *at("dd", 176),
        at("i", 500)[0] & 7, *at("ii", 344), at("6d", 352), at("12d", 400),
    )  # fmt: skip
    return _Fields(*values)


def _voxel_type(path: Path, raw: _Fields) -> np.dtype:
    if raw.datatype not in _TYPES:
        raise unsuitable_voxels(path, _REFUSED_TYPES.get(raw.datatype, f"code {raw.datatype}"))
    voxel = np.dtype(raw.order + _TYPES[raw.datatype])
    if raw.bitpix != voxel.itemsize * 8:
        raise not_an_image(path, f"a header of {raw.bitpix} bits per {voxel.name} voxel")
    return voxel


def _scaling(path: Path, raw: _Fields) -> tuple[float, float]:
    # A slope of 0 or NaN means "not scaled" by the standard. SimpleITK still adds the intercept then.
    scaled = math.isfinite(raw.slope) and raw.slope != 0
    if scaled and math.isfinite(raw.intercept):
        return raw.slope, raw.intercept
    if math.isnan(raw.slope) or raw.slope == raw.intercept == 0:
        return 1.0, 0.0
    given = f"voxel scaling with slope {raw.slope:g} and intercept {raw.intercept:g}"
    raise refusal(UnsuitableInputError, path, given, "finite, or both 0", "correct the header")


def _voxel_offset(path: Path, raw: _Fields) -> int:
    first = 352 if raw.version == 1 else 544
    if not first <= raw.vox_offset <= MAX_VOXEL_OFFSET or raw.vox_offset != int(raw.vox_offset):
        raise not_an_image(path, f"voxels from byte {raw.vox_offset:g}, where the header ends at {first}")
    return int(raw.vox_offset)


def _affines(path: Path, raw: _Fields, unit: float) -> tuple[tuple[str, np.ndarray], ...]:
    """The transforms that the header sets, in LPS millimetres, the one that is sure to be read checked."""
    found = []
    if raw.sform_code > 0:
        sform = np.vstack([np.reshape(raw.sform, (3, 4)), [0, 0, 0, 1]])
        if not are_coordinates(sform):
            raise _bad_transform(path, "sform with NaN, infinite or huge numbers")
        # With a qform beside it, SimpleITK leaves a sheared sform unused: volume.py then compares the two.
        if raw.qform_code <= 0 or raw.version == 2:
            _check_sform(path, sform[:3], raw.pixdim[1:4])
        found.append(("sform", _in_mm(sform, unit)))
    if raw.qform_code > 0:
        found.append(("qform", _in_mm(_qform(path, raw), unit)))
    return tuple(found)


def _in_mm(affine: np.ndarray, unit: float) -> np.ndarray:
    return np.asarray(_TO_LPS @ np.diag([unit, unit, unit, 1.0]) @ affine)


def _check_sform(path: Path, sform: np.ndarray, pixdim: tuple[float, ...]) -> None:
    lengths = np.linalg.norm(sform[:, :3], axis=0)
    if not lengths.all():
        raise _bad_transform(path, "singular sform")
    check_axes(path, sform[:, :3] / lengths, "sform")
    if not np.allclose(lengths, pixdim, rtol=SPACING_AGREEMENT, atol=0):
        raise _bad_transform(path, f"sform with voxels of {by(lengths)} where pixdim says {by(pixdim)}")


def _bad_transform(path: Path, given: str) -> InputError:
    accepted = "a rotation, a position and the spacing of pixdim"
    return refusal(GeometryError, path, given, accepted, "correct the header or export the scan again")


def _qform(path: Path, raw: _Fields) -> np.ndarray:
    """The (4, 4) matrix of the quaternion, pixdim and qfac, in the header's unit, RAS."""
    b, c, d, *position = raw.quaternion
    square = b * b + c * c + d * d
    if not are_coordinates(raw.quaternion) or square > 1 + QUATERNION_EXCESS:
        raise _bad_transform(path, f"qform quaternion {b:g}, {c:g}, {d:g} at {position}")
    if raw.pixdim[0] < 0 and raw.pixdim[0] != -1:  # SimpleITK flips z then, other readers do not
        raise _bad_transform(path, f"qform handedness {raw.pixdim[0]:g}")
    a = math.sqrt(max(0.0, 1 - square))
    turn = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ])  # fmt: skip
    affine = np.eye(4)
    affine[:3, :3] = turn * raw.pixdim[1:4] * (1, 1, -1 if raw.pixdim[0] < 0 else 1)
    affine[:3, 3] = position
    return affine


def _warnings(raw: _Fields) -> tuple[str, ...]:
    found = []
    if raw.sform_code <= 0 and raw.qform_code <= 0:
        found.append("the header sets neither sform nor qform: left, right and position are not known")
    if raw.units == 0:
        found.append("the header names no unit of length: taken as mm")
    elif raw.units not in _TO_MM:
        found.append(f"the header's unit of length has the unknown code {raw.units}: taken as mm")
    elif raw.units != 2:
        found.append(f"the header is in {'metres' if raw.units == 1 else 'micrometres'}: converted to mm")
    return tuple(found)


def disagreement(affines: tuple[tuple[str, np.ndarray], ...], geometry: Geometry) -> tuple[str, ...]:
    """The warning that sform and qform, or sform and pixdim, place the scan differently, and which is in use."""
    if not affines:
        return ()
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(geometry.size) - 1)
    here = geometry.to_world(corners)
    apart = {
        name: float(np.linalg.norm(corners @ affine[:3, :3].T + affine[:3, 3] - here, axis=1).max())
        for name, affine in affines
    }
    unused = max(apart, key=lambda name: apart[name] if np.isfinite(apart[name]) else np.inf)
    if apart[unused] <= _TRANSFORM_AGREEMENT * min(geometry.spacing_mm):
        return ()
    if len(affines) == 1:
        return (
            f"{unused} and pixdim place corners up to {apart[unused]:.3g} mm apart: the voxels are those of pixdim",
        )
    used = "qform" if unused == "sform" else "sform"
    return (f"sform and qform place the scan up to {apart[unused]:.3g} mm apart: the {used} is used",)
