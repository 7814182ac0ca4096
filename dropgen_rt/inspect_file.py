"""One door to the raw checks: is this file a complete, finite, rigid 3D scan?"""

from dataclasses import replace
from pathlib import Path

from dropgen_rt import scan_metaimage, scan_nifti, scan_nrrd
from dropgen_rt.errors import InputError, MissingInputError, UnreadableInputError
from dropgen_rt.scan_header import Packing, RawHeader, is_text, not_an_image, not_readable, refusal
from dropgen_rt.scan_payload import check_payload, check_undamaged, first_bytes
from dropgen_rt.scan_text import HEADER_BYTES

#: The suffixes of files that are read, in small letters.
SCAN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


def scan_suffix(path: Path) -> str:
    """The suffix of SCAN_SUFFIXES that the name ends with, in small letters; "" if none."""
    return next((suffix for suffix in SCAN_SUFFIXES if path.name.lower().endswith(suffix)), "")


def scans_in(folder: Path) -> list[Path]:
    """What lies in a folder under a scan's name, sorted; hidden names, such as macOS's ``._NAME``, are passed over."""
    return sorted(entry for entry in folder.iterdir() if scan_suffix(entry) and not entry.name.startswith("."))


def inspect_file(path: Path, keep: bytearray | None = None) -> RawHeader:
    """Check one scan from its raw header to its last byte, without SimpleITK; voxels go to ``keep`` as stored.

    Raises MissingInputError, UnreadableInputError, UnsuitableInputError or GeometryError.
    """
    header = header_of(path)
    try:
        trailing = check_payload(header.payload, keep)
    except OSError as error:
        raise not_readable(path, error) from error
    return replace(header, warnings=header.warnings + trailing)


def header_of(path: Path) -> RawHeader:
    """The checked header alone; voxels are not looked at. Raises as ``inspect_file``."""
    try:
        _check_is_file(path)
        return _parse(path)
    except OSError as error:
        raise not_readable(path, error) from error


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that hold a scan: its own and, where that is a header alone, that of its voxels. Raises as above."""
    return tuple(dict.fromkeys((path, header_of(path).payload.path)))


def _check_is_file(path: Path) -> None:
    accepted = "one of " + ", ".join(SCAN_SUFFIXES)
    if not path.exists():
        raise refusal(MissingInputError, path, "no such file", accepted, "check the path")
    if path.is_dir():
        raise refusal(UnreadableInputError, path, "a folder", accepted, "name a scan in it")
    if not path.is_file():
        raise refusal(UnreadableInputError, path, "a pipe or device", accepted, "save it to a file first")
    if not is_text(path):
        raise refusal(UnreadableInputError, path, "a name that is not UTF-8", "one that is", "rename file or folder")
    if not scan_suffix(path):
        raise refusal(UnreadableInputError, path, f"suffix {path.suffix!r}", accepted, "convert it first")
    if path.stat().st_size == 0:
        raise not_an_image(path, "an empty file")


def _parse(path: Path) -> RawHeader:
    suffix = scan_suffix(path)
    if suffix in (".nii", ".nii.gz"):
        return _parse_nifti(path, zipped=suffix == ".nii.gz")
    if suffix in (".nrrd", ".nhdr"):
        return scan_nrrd.parse_nrrd(path, first_bytes(path, "raw", HEADER_BYTES))
    return scan_metaimage.parse_metaimage(path, first_bytes(path, "raw", HEADER_BYTES))


def _parse_nifti(path: Path, zipped: bool) -> RawHeader:
    if (first_bytes(path, "raw", 2) == b"\x1f\x8b") != zipped:
        given = "not gzip data" if zipped else "gzip data under the name of a plain file"
        raise not_an_image(path, given)
    packing: Packing = "gzip" if zipped else "raw"
    try:
        return scan_nifti.parse_nifti(path, first_bytes(path, packing, scan_nifti.HEADER_BYTES), packing)
    except InputError:
        check_undamaged(path, packing)  # a broken header in a damaged stream: the damage is the cause to name
        raise
