"""Lines that say what a path holds: the table of ``dropgen-rt inspect``. No voxel of DICOM is read for it."""

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from dropgen_rt.dicom.files import is_dicom
from dropgen_rt.errors import InputError, MissingModelError, UsageError
from dropgen_rt.geometry import Geometry
from dropgen_rt.manifest import SourceRule
from dropgen_rt.store import open_named
from dropgen_rt.volume import find_scans, passed_over, read_scan, scan_suffix
from dropgen_rt.words import by

#: Lines to show, and at the end why infer would use nothing of it, if so.
Lines = Generator[str, None, InputError | None]

_ROW = "{mark} {kind:<16} {size:<20} {spacing:<24} {verdict}"


def inspect_path(path: Path, series: str | None, model: str | None) -> Iterator[str | InputError]:
    """Lines of a table; at last, if infer would use nothing, the InputError that it would end with.

    Raises MissingInputError, UsageError or ModelError.
    """
    paths = find_scans([path])
    rule = _rule(model)
    yield _ROW.format(mark=" ", kind="kind", size="size", spacing="spacing mm", verdict="verdict")
    last: InputError | None = None
    for scan in paths:
        if not scan_suffix(scan) and is_dicom(scan):
            last = yield from _dicom(scan, series, rule)
        elif series is not None:
            raise UsageError(f"{path}: --series names a series of a DICOM folder, file or ZIP archive; leave it out")
        else:
            last = yield from _file(scan)
    if path.is_dir() and paths != [path]:
        yield from _passed_over(path, paths)
    if last is not None:
        yield last


def _rule(model: str | None) -> SourceRule:
    """The named or the default model's; looking into files needs none."""
    try:
        return open_named(model).manifest.source
    except MissingModelError:
        if model is not None:
            raise
        return SourceRule()


def _file(path: Path) -> Lines:
    kind = scan_suffix(path).lstrip(".") or "?"
    try:
        scan = read_scan(path)
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ")
        yield _ROW.format(mark="-", kind=kind, size="", spacing="", verdict=f"{path.name}: {reason}")
        return error
    geometry = scan.volume.geometry
    verdict = f"used: {path.name}, {geometry.orientation}, {scan.voxel_type}"
    yield _ROW.format(mark="*", kind=kind, size=_size(geometry), spacing=_spacing(geometry), verdict=verdict)
    yield from (f"    warning: {warning}" for warning in scan.warnings)
    return None


def _passed_over(folder: Path, scans: Sequence[Path]) -> Iterator[str]:
    """What a folder of scans holds besides."""
    yield from (f"left out: {count} x {reason}" for reason, count in sorted(passed_over(folder, scans).items()))


def _dicom(path: Path, series: str | None, rule: SourceRule) -> Lines:
    from dropgen_rt.dicom.catalogue import catalogue
    from dropgen_rt.dicom.choice import choose, fits, left_out

    found = catalogue(path)
    chosen, refused = None, None
    try:
        chosen = choose(found, rule, series)
    except InputError as error:
        refused = error
    for item in found.candidates:
        header, grid = item.stack.header, item.grid
        kind = " ".join(part for part in (header.modality or "?", header.body_part) if part)
        size = f"{header.columns} x {header.rows} x {len(item.stack.slices)}"
        spacing = _spacing(grid.geometry) if grid else ""
        if item is chosen:
            verdict = f"used: {grid.geometry.orientation}" if grid else ""
        elif item.refused is not None:
            verdict = f"not usable: {item.refused.given}; accepted: {item.refused.accepted}"
        elif item.planning:
            verdict = "left out: a localiser or single image"
        else:
            verdict = "possible" if fits(item, rule) else f"left out: the model takes {rule.describe()}"
        mark = "*" if item is chosen else " " if item.refused is None else "-"
        yield _ROW.format(mark=mark, kind=kind, size=size, spacing=spacing, verdict=verdict)
        details = [item.stack.distinct] if item.stack.distinct else []
        yield "    " + "; ".join([f"--series {item.stack.name}", *details])
        yield from (f"    warning: {note}" for note in (*item.notes, *(grid.warnings if grid else ())))
    yield from (f"left out: {reason}" for reason in left_out(found))
    return refused


def _size(geometry: Geometry) -> str:
    return by(geometry.size)


def _spacing(geometry: Geometry) -> str:
    return " x ".join(f"{edge:.4g}" for edge in geometry.spacing_mm)
