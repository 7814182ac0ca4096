"""What a path holds: every stack with its verdict, and what was left out and why. No pixel is read."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pydicom
from pydicom.uid import UID, ExplicitVRBigEndian, MediaStorageDirectoryStorage

from dropgen_rt.dicom.files import FileSet, find_files
from dropgen_rt.dicom.gate import Grid, Refused, gate
from dropgen_rt.dicom.guard import GuardError, Limits, in_parallel
from dropgen_rt.dicom.headers import ENCAPSULATED, read_header
from dropgen_rt.dicom.pixels import NATIVE, undecodable
from dropgen_rt.dicom.stacks import Header, Slice, Stack, is_localiser, is_uid, stacks_of
from dropgen_rt.errors import UnreadableInputError, UnsuitableInputError
from dropgen_rt.scan_header import refusal

#: Memory that parsing headers may take beyond what the program holds: the largest real ones, enhanced images of
#: thousands of frames, take some hundred MiB; a file that inflates as it is opened takes more.
HEADER_MEMORY_BYTES = 2**30

#: Processor seconds: a start, and ten times what a file of a real series takes.
HEADER_CPU_S = (20.0, 0.01)

#: SOP classes whose frames can be slices of a volume, PS3.4 B.5.
IMAGE_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT", "1.2.840.10008.5.1.4.1.1.2.1": "enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "converted CT", "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "enhanced MR", "1.2.840.10008.5.1.4.1.1.4.4": "converted MR",
    "1.2.840.10008.5.1.4.1.1.128": "PET", "1.2.840.10008.5.1.4.1.1.130": "enhanced PET",
    "1.2.840.10008.5.1.4.1.1.128.1": "converted PET", "1.2.840.10008.5.1.4.1.1.13.1.1": "X-ray 3D",
    "1.2.840.10008.5.1.4.1.1.13.1.2": "X-ray 3D craniofacial",
}  # fmt: skip

#: What a DICOMDIR, the index of a disk, is left out as: a folder is searched without it.
INDEX = "an index (DICOMDIR)"

_GREY = ("MONOCHROME1", "MONOCHROME2")


@dataclass(frozen=True)
class Candidate:
    """A stack and what the gate says of it: ``grid``, or the ``refused`` reason."""

    stack: Stack
    grid: Grid | None
    refused: Refused | None
    notes: tuple[str, ...] = ()

    @property
    def planning(self) -> bool:
        """Localisers and single images: never what is meant where there is a volume."""
        return is_localiser(self.stack.header) or len(self.stack.slices) < 2


@dataclass(frozen=True)
class Catalogue:
    """``left_out`` has a reason and a count for the files that are no slices of any stack."""

    files: FileSet
    candidates: tuple[Candidate, ...]
    left_out: tuple[tuple[str, int], ...]
    damaged: tuple[int, ...]  # files, counted from 0


def catalogue(path: Path) -> Catalogue:
    """Read all headers below ``path`` and judge every stack. Raises InputError or ResourceError."""
    files = find_files(path)
    images: list[Header] = []
    left: Counter[str] = Counter({"not a DICOM file": files.others} if files.others else {})
    damaged: list[int] = []
    bare: set[str] = set()
    for header in _headers(files):
        if "error" in header.fields or not header.sop_class:
            damaged.append(header.file)
        elif header.sop_class not in IMAGE_CLASSES or header.pixels is None:
            left[_kind_of_object(header)] += 1
            bare |= {header.series} if header.sop_class in IMAGE_CLASSES else set()
        else:
            images.append(header)
    kept, copies, clashes = _without_copies(files, images)
    if copies:
        left["a second copy of a slice"] += copies
    if damaged:
        left["a damaged DICOM file"] += len(damaged)
    candidates = tuple(_judged(files, stack, clashes, bare, kept) for stack in stacks_of(kept))
    return Catalogue(files, candidates, tuple(left.items()), tuple(damaged))


def where(files: FileSet, file: int) -> str:
    """Which file is meant, without its name, which may be a patient's."""
    return f"file {file + 1} of {len(files.files)} in name order"


def _headers(files: FileSet) -> list[Header]:
    limits = Limits(HEADER_MEMORY_BYTES, int(HEADER_CPU_S[0] + HEADER_CPU_S[1] * len(files.files)))
    found: list[Header] = []
    try:
        for fields in in_parallel(read_header, list(map(str, files.files)), limits):
            found.append(Header(len(found), fields))
    except GuardError as error:
        given = f"the header of {where(files, error.done)} cannot be parsed: {error}"
        accepted, step = "DICOM files as scanners write them", "remove that file or export the series again"
        raise refusal(UnreadableInputError, files.source, given, accepted, step) from error
    return found


def _kind_of_object(header: Header) -> str:
    if header.sop_class in IMAGE_CLASSES:
        return "an image without pixels"
    if header.sop_class == MediaStorageDirectoryStorage:
        return INDEX
    name = UID(header.sop_class).name if header.sop_class in pydicom.uid.UID_dictionary else "an unknown object"
    return f"{name}, which is not read"


def _without_copies(files: FileSet, images: Sequence[Header]) -> tuple[list[Header], int, set[str]]:
    """Headers without files stored twice; their number; the series where one UID names two different files."""
    first: dict[str, Header] = {}
    kept: list[Header] = []
    clashes: set[str] = set()
    for header in images:
        earlier = first.setdefault(header.sop, header) if header.sop else header
        if earlier is header:
            kept.append(header)
        elif _digest(files.files[earlier.file]) != _digest(files.files[header.file]):
            clashes |= {header.series, earlier.series}
    return kept, len(images) - len(kept), clashes


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _judged(files: FileSet, stack: Stack, clashes: set[str], bare: set[str], images: Sequence[Header]) -> Candidate:
    """``clashes`` and ``bare``: the series with one UID for two files, and with an image that has lost its pixels."""
    stack, notes = _without_repeats(files, stack)
    try:
        _check_series(stack, clashes, bare, [header for header in images if header.series == stack.series])
        for header in {_pixel_kind(plane.header): plane.header for plane in stack.slices}.values():
            _check_kind(header)
        _check_stack(files, stack)
        grid = gate([plane.plane for plane in stack.slices], stack.header.rows, stack.header.columns)
    except Refused as error:
        return Candidate(stack, None, error, notes)
    return Candidate(stack, grid, None, (*notes, *_numbering(stack)))


def _without_repeats(files: FileSet, stack: Stack) -> tuple[Stack, tuple[str, ...]]:
    """Slices in one place whose stored pixels are the same bytes are one slice."""
    seen: dict[tuple[object, ...], Slice] = {}
    kept = []
    for plane in stack.slices:
        place = (plane.plane.position, plane.slope, plane.intercept)
        earlier = seen.setdefault(place, plane)
        if earlier is plane or plane.frame or _pixels(files, earlier) != _pixels(files, plane):
            kept.append(plane)
    dropped = len(stack.slices) - len(kept)
    note = (f"{dropped} repeated slices with the same pixels are ignored",) if dropped else ()
    return (replace(stack, slices=tuple(kept)) if dropped else stack), note


def _pixels(files: FileSet, plane: Slice) -> bytes:
    offset, length, _ = plane.header.pixels
    with files.files[plane.header.file].open("rb") as file:
        file.seek(offset)
        return file.read(length) if length >= 0 else file.read()


def _check_series(stack: Stack, clashes: set[str], bare: set[str], members: Sequence[Header]) -> None:
    """What would mix patients is refused for the whole series, whichever stack is meant."""
    again = "export each by itself; if it is one, correct the headers"
    for what, name in (("patient", "patients"), ("study", "studies")):
        values = {header.fields[what] for header in members}
        if len(values) > 1:
            raise Refused(f"one series with {len(values)} {name}", f"one {what}", again, UnsuitableInputError)
    frames = {plane.header.frame_of_reference for plane in stack.slices}
    if len(frames) > 1:
        raise Refused(f"one stack with {len(frames)} frames of reference", "one", again)
    uids = [stack.series, *(plane.header.sop for plane in stack.slices), stack.header.study, *frames]
    if any(uid and not is_uid(uid) for uid in uids):
        given, accepted = "a unique identifier (UID) that is none", "digits and dots, 64 at most"
        raise Refused(given, accepted, "export the series again", UnsuitableInputError)
    if stack.series in clashes:
        given = "two different files with one SOP Instance UID"
        raise Refused(given, "a UID for each image", "export the series again", UnsuitableInputError)
    if bare & {stack.series, ""}:  # it may be the first or the last slice, where no gap would show
        given = "a file of this series without pixels"
        raise Refused(given, "complete, undamaged images", "export the whole series again", UnreadableInputError)


def _pixel_kind(header: Header) -> tuple[object, ...]:
    """All that ``_check_kind`` looks at: slices of one stack may differ in it."""
    names = ("samples", "photometric", "burned_in", "image_type", "frames", "enhanced", "bits_allocated",
             "bits_stored", "high_bit", "signed", "syntax", "rows", "columns", "modality_lut", "pixel_vr")  # fmt: skip
    return tuple(str(getattr(header, name)) for name in names)


def _check_kind(header: Header) -> None:
    def refuse(given: str, accepted: str, step: str) -> None:
        raise Refused(given, accepted, step, UnsuitableInputError)

    original = "name the original series instead"
    if header.samples != 1 or header.photometric not in _GREY:
        refuse(f"{header.photometric or 'colour'} images", "greyscale images", original)
    if header.burned_in:
        refuse("images with burned-in text", "images without", original)
    if "MOSAIC" in header.image_type:
        refuse("mosaic images, all slices tiled in one", "one slice per image", "export it as enhanced DICOM")
    if header.frames > 1 and not header.enhanced:
        refuse("a multi-frame image without functional groups", "enhanced multi-frame images", original)
    stored = header.bits_stored or 0
    if (
        header.bits_allocated not in (8, 16, 32)
        or not 0 < stored <= header.bits_allocated
        or header.high_bit != stored - 1
    ):
        given = f"{header.bits_stored} bits stored in {header.bits_allocated}, high bit {header.high_bit}"
        refuse(given, "8, 16 or 32 bits, stored from bit 0 up", "export the series again")
    if header.signed not in (0, 1):  # the sign of every value hangs on it
        given = "no pixel representation" if header.signed is None else f"pixel representation {header.signed}"
        refuse(given, "0 (unsigned) or 1 (signed)", "export the series again")
    if header.modality_lut:
        refuse("values behind a modality lookup table", "a rescale slope and intercept, or neither", original)
    if header.syntax == ExplicitVRBigEndian and header.pixel_vr != "OW" and stored > 8:
        refuse(f"big endian pixels of type {header.pixel_vr}", "words (OW)", "export the series again")
    if compressed := undecodable(header.syntax, stored):
        accepted = "uncompressed, deflated, RLE, JPEG lossless, JPEG of 8 bits, JPEG-LS, JPEG 2000, HTJ2K"
        refuse(f"pixels stored as {compressed}", accepted, "export the series uncompressed")
    if not header.rows or not header.columns:
        refuse("images without a size", "rows and columns from 1 up", "export the series again")


def _check_stack(files: FileSet, stack: Stack) -> None:
    for header in dict.fromkeys(plane.header for plane in stack.slices):
        needed = header.frames * header.rows * header.columns * header.bits_allocated // 8
        _, length, declared = header.pixels
        needed = max(needed, declared - 1)  # the last byte may be padding that was not written
        given = ""
        if header.syntax in NATIVE and 0 <= length < needed:
            given = f"truncated: {length} of {needed} bytes of pixels"
        elif header.syntax not in NATIVE and (length != ENCAPSULATED or not header.whole):
            given = "truncated: its compressed pixels are not complete"
        if given:
            accepted, step = "complete, undamaged images", "export the whole series again"
            raise Refused(f"{where(files, header.file)}: {given}", accepted, step, UnreadableInputError)
    scaled = sum(plane.slope is not None for plane in stack.slices)
    if 0 < scaled < len(stack.slices):
        given = f"a rescale slope in {scaled} of {len(stack.slices)} slices"
        raise Refused(given, "all or none", "export the series again", UnsuitableInputError)


def _numbering(stack: Stack) -> tuple[str, ...]:
    """Instance numbers with holes hint at slices that are missing at an end, where no gap shows."""
    if stack.header.enhanced:
        return ()
    numbers = sorted({plane.header.instance for plane in stack.slices} - {None})
    count = len(stack.slices)
    if len(numbers) < count or numbers[-1] - numbers[0] + 1 == count or stack.index:
        return ()
    steps = {b - a for a, b in itertools.pairwise(numbers)}
    if len(steps) == 1:
        return ()
    return (f"instance numbers {numbers[0]} to {numbers[-1]} for {count} slices: some may be missing at an end",)
