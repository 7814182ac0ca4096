"""Which files a path offers: a folder searched to its depth, one file, or the members of a ZIP archive."""

import lzma
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from dropgen_rt.errors import InputError, MissingInputError, ResourceError, UnreadableInputError, UnsuitableInputError
from dropgen_rt.scan_header import not_readable, refusal

#: More files than any study has; a folder with more is not one study.
MAX_FILES = 50_000

#: Most bytes that a ZIP archive may unpack to: what the largest accepted scan takes.
MAX_UNPACKED_BYTES = 2**33

PREAMBLE_BYTES = 128
MARK = b"DICM"

#: Elements that a data set may begin with in group 8: lengths, character set, image type, dates, identifiers.
_FIRST_ELEMENTS = (0x00, 0x01, 0x05, 0x08, 0x12, 0x13, 0x14, 0x16, 0x18)

#: Value types of such elements, and the most bytes that one holds.
_FIRST_VRS = (b"UL", b"CS", b"DA", b"TM", b"UI", b"SH", b"LO")
_FIRST_BYTES = 256
#: Folders that file systems keep for themselves, often closed.
_SYSTEM_FOLDERS = ("lost+found", "System Volume Information", "$RECYCLE.BIN")
_ACCEPTED = "a folder, file or ZIP archive of one DICOM study"


@dataclass(frozen=True)
class FileSet:
    """``files`` begin as DICOM files do, in name order; ``others`` counts those that do not.

    ``temporary`` is the folder that a ZIP archive was unpacked into; it goes when this object does.
    """

    source: Path
    files: tuple[Path, ...]
    others: int = 0
    temporary: tempfile.TemporaryDirectory | None = field(default=None, repr=False, compare=False)


def has_mark(path: Path) -> bool:
    """Whether a regular file begins as DICOM files do: 128 bytes of preamble, then ``DICM``; or without these."""
    try:
        return _begins_as_dicom(path)
    except OSError:
        return False


def _begins_as_dicom(path: Path) -> bool:
    """Raises OSError."""
    if not stat.S_ISREG(path.stat().st_mode):
        return False
    with path.open("rb") as file:
        head = file.read(PREAMBLE_BYTES + len(MARK) + _FIRST_BYTES)
    return head[PREAMBLE_BYTES:].startswith(MARK) or _is_bare(head)


def _is_bare(head: bytes) -> bool:
    """Whether the preamble was left out, as old archives do: two small elements of group 2 or 8 in their order."""
    place, tags = 0, []
    for _ in range(2):
        if len(head) < place + 12:
            return False
        group, element, vr, short = struct.unpack_from("<HH2sH", head, place)
        long = vr == b"OB"  # the version of a meta header
        length = short if vr in _FIRST_VRS else struct.unpack_from("<I", head, place + (8 if long else 4))[0]
        tags.append((group, element))
        if place == 0 and not ((group, element, vr) == (2, 0, b"UL") or (group == 8 and element in _FIRST_ELEMENTS)):
            return False
        if group not in (2, 8) or length > _FIRST_BYTES or length % 2:
            return False
        place += (12 if long else 8) + length
    return tags[0] < tags[1]


def is_dicom(path: Path) -> bool:
    """Whether this path is to be read as DICOM: a ``.dcm``, a ``.zip``, a marked file, a folder holding one."""
    if path.is_dir():
        return any(has_mark(Path(entry)) for entry in _walk(path))
    return path.suffix.lower() in (".dcm", ".zip") or has_mark(path)


def find_files(path: Path) -> FileSet:
    """The files of a folder (and all below it), of a ZIP archive, or the one file.

    Raises MissingInputError, UnreadableInputError, UnsuitableInputError or ResourceError.
    """
    if not path.exists():
        raise refusal(MissingInputError, path, "no such path", _ACCEPTED, "check the path")
    if path.is_dir():
        closed: list[OSError] = []
        found = _marked(path, _walk(path, closed), None, closed)
    elif path.suffix.lower() == ".zip" or (path.is_file() and not has_mark(path) and zipfile.is_zipfile(path)):
        found = _unpacked(path)
    elif path.is_file() and path.stat().st_size == 0:
        raise refusal(UnreadableInputError, path, "an empty file", _ACCEPTED, "export it again")
    else:
        found = _marked(path, [path], None)
    if not found.files:
        raise _nothing(found)
    return found


def _nothing(found: FileSet) -> InputError:
    """The refusal of a path without DICOM files; archives within are not opened, however deep they lie."""
    folder = Path(found.temporary.name) if found.temporary else found.source
    archives = sum(zipfile.is_zipfile(path) for path in _walk(folder)) if folder.is_dir() else 0
    given = f"no DICOM files ({found.others} others)" if found.source.is_dir() else "not a DICOM file"
    if archives:
        given = f"no DICOM files but ZIP archives within ({archives})"
    step = "unpack them" if archives else "export it again"
    return refusal(UnreadableInputError, found.source, given, _ACCEPTED, step)


def _walk(folder: Path, closed: list[OSError] | None = None) -> list[Path]:
    """All files below that are not hidden, in name order; links to folders are not followed, so that none leads round.

    What refuses to list a folder is added to ``closed``.
    """
    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=closed.append if closed is not None else None):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SYSTEM_FOLDERS)
        found += [Path(place) / name for name in sorted(names) if not name.startswith(".")]
        if len(found) > MAX_FILES:
            given, accepted = f"more than {MAX_FILES} files", "the folder of one study"
            raise refusal(UnsuitableInputError, folder, given, accepted, "name a folder below it")
    return found


def _marked(
    source: Path, paths: list[Path], temporary: tempfile.TemporaryDirectory | None, closed: Sequence[OSError] = ()
) -> FileSet:
    """Raises UnreadableInputError for what the system does not let us read: it may be the first or the last slice."""
    files, errors = [], list(closed)
    for path in paths:
        try:
            if _begins_as_dicom(path):
                files.append(path)
        except OSError as error:
            errors.append(error)
    if errors and not source.is_dir():
        raise not_readable(source, errors[0])
    if errors:
        given = f"{len(errors)} of its files and folders cannot be read ({errors[0].strerror})"
        step = "check permissions and broken links, or move the series to a folder of its own"
        raise refusal(UnreadableInputError, source, given, "a folder that may be read whole", step)
    return FileSet(source, tuple(files), len(paths) - len(files), temporary)


def _unpacked(path: Path) -> FileSet:
    """Members go to files named by number: their own names could lead out of the folder, or name a patient."""
    temporary = tempfile.TemporaryDirectory(prefix="dropgen-rt-")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check_members(path, members)
            files = [
                _unpack(path, archive, member, Path(temporary.name) / f"{index:06d}")
                for index, member in enumerate(members)
            ]
    # What zipfile raises for damaged, unusual (a compression that it does not implement) or encrypted archives.
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        raise refusal(
            UnreadableInputError, path, "a damaged or unusual ZIP archive", _ACCEPTED, "pack it again"
        ) from error
    except OSError as error:
        raise ResourceError(f"cannot unpack {path}: {error.strerror or error}; free some space in TMPDIR") from error
    return _marked(path, files, temporary)


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    size = sum(member.file_size for member in members)
    if len(members) > MAX_FILES or size > MAX_UNPACKED_BYTES:
        given = f"{len(members)} files of {size / 2**30:.1f} GiB in all"
        accepted = f"up to {MAX_FILES} files and {MAX_UNPACKED_BYTES // 2**30} GiB"
        raise refusal(UnsuitableInputError, path, given, accepted, "pack one series by itself")
    if any(member.flag_bits & 1 for member in members):
        step = "unpack it and name the folder"
        raise refusal(UnreadableInputError, path, "an encrypted ZIP archive", "one without a password", step)


def _unpack(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> Path:
    left = member.file_size  # a member that is longer than it says is a bomb or damaged
    with archive.open(member) as packed, target.open("wb") as file:
        while block := _next_block(packed):
            left -= len(block)
            if left < 0:
                raise zipfile.BadZipFile
            file.write(block)
    return target


def _next_block(packed: IO[bytes]) -> bytes:
    """Up to a mebibyte; what each decompressor raises for damaged bytes becomes BadZipFile."""
    try:
        return packed.read(2**20)
    except (zlib.error, lzma.LZMAError) as error:
        raise zipfile.BadZipFile from error
    except OSError as error:
        if error.errno is None:  # bzip2's word for damaged bytes; the system's errors have a number
            raise zipfile.BadZipFile from error
        raise
