"""Scans in, label maps out. The only module that imports SimpleITK.

Voxels are read once, by inspect_file, which has to see every byte anyway; SimpleITK reads the header alone, and says
where the voxels lie in the patient.
"""

import hashlib
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813  the name its users know

from dropgen_rt.atomic import atomic_path
from dropgen_rt.chatter import without_chatter
from dropgen_rt.dicom.files import is_dicom
from dropgen_rt.errors import (
    DropgenError,
    GeometryError,
    InputError,
    MissingInputError,
    OutputError,
    UnreadableInputError,
    UnsuitableInputError,
)
from dropgen_rt.geometry import Geometry
from dropgen_rt.inspect_file import SCAN_SUFFIXES, inspect_file, scan_suffix, scans_in
from dropgen_rt.scan_header import RawHeader, is_text, not_readable, refusal
from dropgen_rt.scan_nifti import disagreement

__all__ = [
    "FOLDER_WITHIN", "LABEL_ENDINGS", "LABEL_SUFFIXES", "SCAN_SUFFIXES", "Scan", "Volume", "find_scans", "nifti_bytes",
    "passed_over", "read_label_map", "read_scan", "read_volume", "stem", "write_labels",
]  # fmt: skip

#: Suffixes that label maps are written under: those of one self-contained file.
LABEL_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")

#: What a folder of scans may hold that is not looked into; DICOM may lie there.
FOLDER_WITHIN = "a folder, which is not searched for scans"

#: Names ending so, before the suffix, are label maps, not scans, where a folder is searched.
LABEL_ENDINGS = ("_seg", "_dseg", "_label", "_labels")

#: Largest label accepted: tables of labels are as long as it, and 16 bits hold it.
MAX_LABEL = 2**16 - 1

#: How far what SimpleITK read may be from the raw header, relative: float32 against float64.
_READ_AGREEMENT = 1e-5

# What SimpleITK puts before its messages: an object and its address, another one in every run.
_OBJECT = re.compile(r"^ITK ERROR: (\w+\(0x\w+\): )?")

sitk.ProcessObject.SetGlobalWarningDisplay(False)


@dataclass(frozen=True)
class Volume:
    """An array (channels, z, y, x) and the grid of its voxels. Raises GeometryError if they do not match."""

    array: np.ndarray
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or self.array.shape[0] < 1 or self.array.shape[1:] != self.geometry.shape:
            accepted = f"(channels, *{self.geometry.shape})"
            raise GeometryError(f"array of shape {self.array.shape}; accepted: {accepted}")


@dataclass(frozen=True)
class Scan:
    """A volume read from a file, and what the record of a run says about it.

    ``sha256`` is of the file's bytes (header then data file, if detached), ``voxel_type`` the stored numpy
    type name, ``warnings`` one sentence each.
    """

    volume: Volume
    path: Path
    sha256: str
    voxel_type: str
    warnings: tuple[str, ...]


def read_volume(path: str | Path) -> Volume:
    """The volume of ``read_scan``."""
    return read_scan(path).volume


def read_scan(path: str | Path) -> Scan:
    """Read one 3D scan: array (1, z, y, x) float32, the header's slope and intercept applied.

    Integers beyond 2**24 are rounded to the nearest float32. A DICOM file, folder or ZIP archive is read if it
    holds one possible series. Raises MissingInputError, UnreadableInputError, UnsuitableInputError or
    GeometryError.
    """
    path = Path(path)
    if not scan_suffix(path) and is_dicom(path):
        from dropgen_rt.dicom.read import read_dicom  # which needs this module

        return read_dicom(path)
    header, stored, geometry = _load(path)
    return Scan(
        volume=Volume(_voxels(path, stored)[None], geometry),
        path=path,
        sha256=sha256_of((path, header.payload.path)),
        voxel_type=header.payload.voxel.newbyteorder("=").name,
        warnings=header.warnings + disagreement(header.affines, geometry),
    )


def read_label_map(path: str | Path) -> tuple[np.ndarray, Geometry]:
    """A label map (z, y, x) int32 and its grid; unlike a scan it may be constant.

    Raises MissingInputError, UnreadableInputError, GeometryError, or UnsuitableInputError if a value is not
    a whole number from 0 to MAX_LABEL.
    """
    path = Path(path)
    _, stored, geometry = _load(path)
    whole = stored.dtype.kind in "iu" or np.array_equal(stored, np.rint(stored))
    if not (stored.min() >= 0 and whole):
        given = "values that are not whole numbers from 0 up"
        raise refusal(UnsuitableInputError, path, given, "a label map", "check that the right file was given")
    if not stored.max() <= MAX_LABEL:
        accepted = f"labels up to {MAX_LABEL}"
        raise refusal(UnsuitableInputError, path, f"values up to {stored.max():.10g}", accepted, "renumber them")
    return stored.astype(np.int32), geometry


def write_labels(labels: np.ndarray, geometry: Geometry, path: str | Path) -> None:
    """Write labels (z, y, x), unsigned integers, compressed; the file appears whole or not at all.

    The format follows the suffix, one of LABEL_SUFFIXES. Raises GeometryError if labels and grid do not
    match, OutputError if the file cannot be written.
    """
    path = Path(path)
    if labels.shape != geometry.shape:
        raise GeometryError(f"{path}: labels of shape {labels.shape}; accepted: the grid's {geometry.shape}")
    if labels.dtype.kind != "u":
        raise TypeError(f"labels of type {labels.dtype}; accepted: unsigned integers")
    if scan_suffix(path) not in LABEL_SUFFIXES:
        accepted = ", ".join(LABEL_SUFFIXES)
        raise OutputError(f"cannot write {path}: suffix {path.suffix!r}; accepted: {accepted}; rename it")
    if not is_text(path):
        raise OutputError(f"cannot write {str(path)!r}: its name is not UTF-8; rename the scan or its folder")
    with atomic_path(path) as temporary:
        _write(labels, geometry, path, temporary)


def nifti_bytes(array: np.ndarray, geometry: Geometry) -> bytes:
    """An uncompressed NIfTI-1 file (little-endian) of a (z, y, x) array of real numbers on its grid."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii"
        sitk.WriteImage(_on_grid(array, geometry), str(path), useCompression=False)
        return path.read_bytes()


def find_scans(paths: Sequence[str | Path]) -> list[Path]:
    """The scans that the arguments name, in order, each once; folders stand for the scans in them, sorted.

    Folders are not entered further; hidden files and names ending in LABEL_ENDINGS are passed over there. A
    folder with DICOM files in it or below stands for itself. Raises MissingInputError for a path that does not
    exist or a folder without scans, UnreadableInputError for one without permission.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        try:
            found.update(dict.fromkeys(_scans_in(path) if path.is_dir() else [_existing(path)]))
        except OSError as error:
            raise not_readable(path, error) from error
    return list(found)


def passed_over(folder: Path, scans: Sequence[Path]) -> Counter[str]:
    """What a folder of ``scans`` holds besides: how many entries of each kind."""
    known = set(scans)
    return Counter(
        FOLDER_WITHIN if entry.is_dir()
        else "a label map, by its name" if scan_suffix(entry) and not entry.name.startswith(".")
        else "not a scan"
        for entry in folder.iterdir()
        if entry not in known
    )  # fmt: skip


def stem(path: str | Path) -> str:
    """The file's name without its scan suffix: ``a.b`` of ``a.b.nii.gz``."""
    path = Path(path)
    suffix = scan_suffix(path)
    return path.name[: -len(suffix)] if suffix else path.stem


def _existing(path: Path) -> Path:
    if not path.exists():
        raise refusal(MissingInputError, path, "no such path", "scans and folders", "check the path")
    return path


def _scans_in(folder: Path) -> list[Path]:
    scans = [entry for entry in scans_in(folder) if entry.is_file() and not _is_label_name(entry)]
    if scans and any(entry.suffix.lower() == ".dcm" for entry in folder.iterdir()):
        step = "name the scans one by one, or the DICOM folder by itself"
        raise refusal(UnsuitableInputError, folder, "a folder with both scans and DICOM files", "one of the two", step)
    if not scans and is_dicom(folder):
        return [folder]
    if not scans:
        accepted = "DICOM, or scans ending in " + ", ".join(SCAN_SUFFIXES)
        packed = any(entry.suffix.lower() == ".zip" for entry in folder.iterdir())
        step = "name the ZIP archive in it" if packed else "check the path"
        raise refusal(MissingInputError, folder, "a folder without scans", accepted, step)
    return scans


def _is_label_name(path: Path) -> bool:
    return stem(path).lower().endswith(LABEL_ENDINGS)


def _load(path: Path) -> tuple[RawHeader, np.ndarray, Geometry]:
    """A file that passed all checks: its header, its numbers (z, y, x), scaled where the header says so, its grid."""
    content = bytearray()
    header = inspect_file(path, content)
    geometry = _affine_geometry(header) if header.reader is None else _itk_geometry(path, header)
    _check_unchanged(path, header, geometry)
    stored = np.frombuffer(content, header.payload.voxel).reshape(geometry.shape)
    slope, intercept = header.scaling
    return header, stored if header.scaling == (1.0, 0.0) else stored * np.float64(slope) + intercept, geometry


def _itk_geometry(path: Path, header: RawHeader) -> Geometry:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(header.reader or "")
    try:
        with without_chatter():
            reader.ReadImageInformation()
    except RuntimeError as error:
        reason = _OBJECT.sub("", str(error).strip().splitlines()[-1].strip())
        kind: type[InputError] = GeometryError if "orthonormal" in reason else UnreadableInputError
        step = "export the scan again"
        raise refusal(kind, path, f"SimpleITK says {reason!r}", "a scan it can read", step) from error
    dimensions = reader.GetDimension()
    direction = np.reshape(reader.GetDirection(), (dimensions, dimensions))[:3, :3]
    size, spacing, origin = reader.GetSize()[:3], reader.GetSpacing()[:3], reader.GetOrigin()[:3]
    return _checked_geometry(path, size, spacing, origin, direction)


def _affine_geometry(header: RawHeader) -> Geometry:
    """SimpleITK has no reader for NIfTI-2; its header is checked, so its preferred affine says all."""
    axes, origin = np.eye(3), np.zeros(3)
    if header.affines:
        _, affine = header.affines[0]
        axes, origin = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0), affine[:3, 3]
    return _checked_geometry(header.payload.path, header.size, header.spacing_mm, origin.tolist(), axes)


def _checked_geometry(
    path: Path, size: Sequence[int], spacing_mm: Sequence[float], origin_mm: Sequence[float], axes: np.ndarray
) -> Geometry:
    (x, y, z), (i, j, k), (a, b, c) = size, spacing_mm, origin_mm
    try:
        return Geometry((x, y, z), (i, j, k), (a, b, c), tuple(axes.ravel().tolist()))
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}; export the scan again") from error


def _check_unchanged(path: Path, header: RawHeader, geometry: Geometry) -> None:
    """A repair that the raw checks do not know must not pass unseen."""
    same_spacing = np.allclose(geometry.spacing_mm, header.spacing_mm, rtol=_READ_AGREEMENT, atol=0)
    if geometry.size != header.size or not same_spacing:
        given = f"header says {header.size} voxels of {header.spacing_mm} mm, SimpleITK"
        given += f" reads {geometry.size} of {geometry.spacing_mm}"
        raise refusal(GeometryError, path, given, "a header read one way", "save the scan as .nii.gz")


def _voxels(path: Path, stored: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = stored.astype(np.float32)
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        step = "rescale the values"
        raise refusal(UnsuitableInputError, path, "voxels beyond float32", "magnitudes below 3.4e38", step)
    if low == high:
        given, step = f"every voxel is {low:g}", "check that the right file was exported"
        raise refusal(UnsuitableInputError, path, given, "an image with contrast", step)
    return array


def sha256_of(files: Iterable[Path]) -> str:
    """Of the content of files one after another, each once: of a scan's header and the file of its voxels."""
    digest = hashlib.sha256()
    for source in dict.fromkeys(files):
        with source.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _write(labels: np.ndarray, geometry: Geometry, final: Path, temporary: Path) -> None:
    try:
        with without_chatter():
            sitk.WriteImage(_on_grid(labels, geometry), str(temporary), useCompression=True)
        inspect_file(temporary)  # on a full disk the NIfTI writer reports success and leaves half a file
    except (RuntimeError, DropgenError) as error:
        free = shutil.disk_usage(temporary.parent).free
        raise OutputError(
            f"cannot write {final}: it came out incomplete, with {free // 2**20} MiB free on that disk; "
            "free some space or name another output folder"
        ) from error


def _on_grid(array: np.ndarray, geometry: Geometry) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction)
    return image
