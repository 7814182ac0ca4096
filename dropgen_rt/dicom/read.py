"""A chosen stack read into a scan that the rest of the program takes like any other."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dropgen_rt.dicom.catalogue import Candidate, Catalogue, catalogue, where
from dropgen_rt.dicom.choice import choose, fits, left_out
from dropgen_rt.dicom.files import FileSet
from dropgen_rt.dicom.gate import Grid
from dropgen_rt.dicom.pixels import AIR_HU, PixelError, Pixels, loss, read_pixels
from dropgen_rt.dicom.stacks import Slice
from dropgen_rt.dicom.tilt import rectify, unrectify
from dropgen_rt.errors import ResourceError, UnreadableInputError, UnsuitableInputError
from dropgen_rt.manifest import SourceRule
from dropgen_rt.scan_header import refusal
from dropgen_rt.volume import Scan, Volume

#: CT without a voxel below the first or above the second value, in HU, has probably lost its rescaling.
PLAUSIBLE_HU = (-200.0, 0.0)


@dataclass(frozen=True)
class DicomScan(Scan):
    """A scan and where each of its slices came from: ``slices[k]`` is index k along z, as the grid orders them.

    ``path`` is a name made from the series' UID, not the path that was given, which may name a patient.
    """

    files: FileSet
    slices: tuple[Slice, ...]
    grid: Grid

    def on_source(self, labels: np.ndarray) -> np.ndarray:
        """Labels (z, y, x) of the volume's grid on the source slices: (slices, rows, columns)."""
        if self.grid.shift_px is None:
            return labels
        header = self.slices[0].header
        return unrectify(labels, self.grid.shift_px, header.rows, header.columns)


def read_dicom(path: str | Path, series: str | None = None, rule: SourceRule | None = None) -> DicomScan:
    """Find, choose, gate and read one series of a folder, file or ZIP archive.

    ``series`` is a Series Instance UID, or UID:NUMBER where it has several stacks. The array is (1, z, y, x)
    float32: stored values with each slice's slope and intercept. Raises InputError or ResourceError.
    """
    return read_candidate(*find_series(Path(path), series, rule or SourceRule()))


def find_series(path: Path, series: str | None, rule: SourceRule) -> tuple[Catalogue, Candidate]:
    """What a path holds, and the stack of it that is meant; no pixel is read. Raises InputError, ResourceError."""
    found = catalogue(path)
    return found, choose(found, rule, series)


def scan_name(item: Candidate) -> str:
    """A file name for this stack's results: made from its UID by digest, so that it tells of no patient."""
    return "dicom-" + hashlib.sha256(item.stack.name.encode()).hexdigest()[:12]


def read_candidate(found: Catalogue, item: Candidate, rule: SourceRule | None = None) -> DicomScan:
    """Read the pixels of a stack that the gate passed; one named against the model's ``rule`` gets a warning."""
    assert item.grid is not None
    slices = tuple(item.stack.slices[index] for index in item.grid.order)
    pixels, digest = _read(found.files, slices)
    if pixels.low == pixels.high:
        given, step = f"every voxel is {pixels.low:g}", "check that the right series was exported"
        raise refusal(UnsuitableInputError, found.files.source, given, "an image with contrast", step)
    array = pixels.array
    if item.grid.shift_px is not None:
        array = rectify(array, item.grid.shift_px, item.grid.geometry.shape)
    header = item.stack.header
    return DicomScan(
        volume=Volume(array[None], item.grid.geometry),
        path=Path(scan_name(item)),
        sha256=digest,
        voxel_type=f"{'' if header.signed else 'u'}int{header.bits_allocated}",
        warnings=(*_against(item, rule), *_warnings(found, item, slices, pixels)),
        files=found.files,
        slices=slices,
        grid=item.grid,
    )


def _against(item: Candidate, rule: SourceRule | None) -> tuple[str, ...]:
    if rule is None or fits(item, rule):
        return ()
    header = item.stack.header
    given = " ".join(part for part in (header.modality, header.body_part) if part)
    return (f"the model is for {rule.describe()}, this series is {given}: labels may be meaningless",)


def _read(files: FileSet, slices: Sequence[Slice]) -> tuple[Pixels, str]:
    """The pixels, and meanwhile the SHA-256 of the SHA-256 of each file in slice order."""
    sources = list(dict.fromkeys(plane.header.file for plane in slices))
    try:
        with ThreadPoolExecutor(1) as pool:
            digests = pool.map(_file_digest, [files.files[file] for file in sources])
            pixels = read_pixels(files, slices)
            digest = hashlib.sha256(b"".join(digests)).hexdigest()
    except PixelError as error:
        step = "export the whole series again"
        given = f"{where(files, error.file)}: {error}"
        raise refusal(UnreadableInputError, files.source, given, "complete, undamaged images", step) from error
    except (MemoryError, OSError) as error:
        voxels = len(slices) * slices[0].header.rows * slices[0].header.columns
        raise ResourceError(
            f"{files.source}: reading its {voxels} voxels failed; {voxels * 4 / 2**30:.1f} GiB of memory are needed"
        ) from error
    return pixels, digest


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _left_out(found: Catalogue, item: Candidate) -> list[str]:
    """What was passed over without a question: at an end of the stack it could be a slice that lost its mark."""
    planning = sum(other is not item and other.planning for other in found.candidates)
    reasons = [*left_out(found), *([f"{planning} x a localiser or single image"] if planning else [])]
    return [f"left out: {'; '.join(reasons)}"] if reasons else []


def _warnings(found: Catalogue, item: Candidate, slices: Sequence[Slice], pixels: Pixels) -> tuple[str, ...]:
    assert item.grid is not None
    header = slices[0].header
    lines = [*item.notes, *item.grid.warnings, *_left_out(found, item)]
    if header.modality == "CT" and slices[0].slope is None:
        lines.append("CT without rescale slope and intercept: stored values are taken as Hounsfield units")
    elif header.modality == "CT" and (pixels.low > PLAUSIBLE_HU[0] or pixels.high < PLAUSIBLE_HU[1]):
        lines.append(f"values from {pixels.low:g} to {pixels.high:g} are unusual for CT in Hounsfield units")
    if pixels.padded:
        lines.append(f"{pixels.padded} voxels of padding are set to {AIR_HU:g} HU (air)")
    if header.photometric == "MONOCHROME1":
        lines.append("MONOCHROME1: measured values are used, not their inverse")
    lines += sorted({loss(plane.header) for plane in slices} - {""})
    if not item.stack.series:
        lines.append("no Series Instance UID: all such files are taken as one series")
    return tuple(lines)
