"""Every file of a data set read once before training: what is wrong with it, and what it looks like.

Torch is not imported here: the work runs in processes that would each pay for it.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dropgen_rt.atomic import atomic_path
from dropgen_rt.channels import SAME_GRID
from dropgen_rt.dataset_labels import LabelTable
from dropgen_rt.errors import DropgenError, FaultyDatasetError
from dropgen_rt.evaluate import SCANS_VALUES, apart_mm, same_grid
from dropgen_rt.geometry import Geometry
from dropgen_rt.inspect_file import files_of
from dropgen_rt.train.layout import Case
from dropgen_rt.train.parallel import each
from dropgen_rt.volume import Scan, read_label_map, read_scan, sha256_of

# Of the notes that are kept of cases; raised with every fault that is newly looked for, or sound notes would hide it.
FORMAT = "dropgen-rt survey 4"
PERCENTILES = (0.5, 50.0, 99.5)
# Every so many voxels of a scan are enough for its percentiles.
SAMPLED_VOXELS = 200_000
# A scan with whole numbers down to here looks like CT: air is -1000.
CT_AIR = -500.0
SHOWN_FAULTS = 50
Read = TypeVar("Read")


@dataclass(frozen=True)
class Finding:
    """One case as it lies on disk. ``size`` and ``spacing_mm`` are (x, y, z) of the LPS-oriented scan.

    ``percentiles`` holds per channel those of PERCENTILES over the whole scan and, after them, inside the
    labels, ``hounsfield`` whether its values look like Hounsfield units; ``voxels`` the count of each label of the
    table, background left out.
    """

    case: str
    faults: tuple[str, ...]
    digests: tuple[str, ...] = ()
    size: tuple[int, int, int] = (0, 0, 0)
    spacing_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    percentiles: tuple[tuple[float, ...], ...] = ()
    hounsfield: tuple[bool, ...] = ()
    voxels: tuple[int, ...] = field(default_factory=tuple)


def inspect_case(case: Case, table: LabelTable) -> Finding:
    """Read a case's files; what is wrong stands in ``faults``, nothing is raised for it."""
    faults: list[str] = []
    scans = [scan for scan in (_tried(partial(read_scan, path), faults) for path in case.images) if scan]
    label = _tried(partial(read_label_map, case.label), faults)
    if label is None or len(scans) != len(case.images):
        return Finding(case.name, tuple(faults))
    labels, geometry = label
    faults += _unlike(case, scans, geometry)
    digest = sha256_of(files_of(case.label))
    faults += [f"{scan.path}: is the label map itself; name the scan" for scan in scans if scan.sha256 == digest]
    values = np.unique(labels)
    strange = sorted({int(value) for value in values} - table.known)
    if strange:
        shown = ", ".join(map(str, strange[:8])) + (" …" if len(strange) > 8 else "")
        step = 'add them, as "background": [0, …] if they are none of the labels'
        if len(strange) > SCANS_VALUES:
            step = "if this is a scan, name its label map"
        faults.append(f"{case.label}: values that dataset.json does not list: {shown}; {step}")
    merged = table.merge(labels)
    voxels = np.bincount(merged.ravel(), minlength=len(table.labels) + 1)[1:]
    if not voxels.any():
        faults.append(f"{case.label}: no voxel of any label; remove the case or label it")
    if faults:
        return Finding(case.name, tuple(faults), voxels=tuple(map(int, voxels)))
    return _described(case, scans, merged, voxels, digest)


def _tried(read: Callable[[], Read], faults: list[str]) -> Read | None:
    try:
        return read()
    except DropgenError as error:
        faults.append(str(error))
        return None


def _unlike(case: Case, scans: Sequence[Scan], label: Geometry) -> Iterator[str]:
    """A sentence per file that is off the others' grid: the label map, or those channels that do not agree with it."""
    within = SAME_GRID * min(label.spacing_mm)
    agree = [same_grid(scan.volume.geometry, label, within) for scan in scans]
    if not all(agree) and not agree[0]:
        yield f"{case.label}: {_differs(label, scans[0].volume.geometry, scans[0].path.name)}; resample it to the image"
        return
    for scan, alike in zip(scans, agree, strict=True):
        if not alike:
            differs = _differs(scan.volume.geometry, label, case.label.name)
            yield f"{scan.path}: {differs}; resample it to the other channels"


def _differs(mine: Geometry, theirs: Geometry, name: str) -> str:
    if _grid(mine) != _grid(theirs):
        return f"its grid {_grid(mine)} is not that of {name}, {_grid(theirs)}"
    return f"its voxels lie up to {apart_mm(mine, theirs):.4g} mm from those of {name}, as many and as large"


def _grid(geometry: Geometry) -> str:
    size = " x ".join(map(str, geometry.size))
    return f"({size} voxels of " + " x ".join(f"{mm:.4g}" for mm in geometry.spacing_mm) + " mm)"


def _described(case: Case, scans: list[Scan], merged: np.ndarray, voxels: np.ndarray, label_digest: str) -> Finding:
    oriented, _ = scans[0].volume.geometry.reoriented("LPS")
    inside = merged > 0
    step = _stride(merged.shape)
    percentiles = []
    for scan in scans:
        array = scan.volume.array[0]
        both = np.percentile(array.ravel()[::step], PERCENTILES), np.percentile(array[inside], PERCENTILES)
        percentiles.append(tuple(float(value) for value in np.concatenate(both)))
    return Finding(
        case.name,
        (),
        (*(scan.sha256 for scan in scans), label_digest),
        oriented.size,
        oriented.spacing_mm,
        tuple(percentiles),
        tuple(_hounsfield(scan.volume.array) for scan in scans),
        tuple(map(int, voxels)),
    )


def _hounsfield(array: np.ndarray) -> bool:
    return float(array.min()) <= CT_AIR and np.array_equal(array, np.rint(array))


def _stride(shape: tuple[int, ...]) -> int:
    """Of a sample of a (z, y, x) scan's voxels in their order; with a factor of a plane's it would see few columns."""
    step = max(math.prod(shape) // SAMPLED_VOXELS, 1)
    while math.gcd(step, shape[1] * shape[2]) > 1:
        step += 1
    return step


def survey(
    cases: Sequence[Case],
    table: LabelTable,
    cache: Path | None,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Finding]:
    """A finding per case. With ``cache`` files that have not changed since an earlier survey are not read again.

    ``progress`` counts those that are read: where all are known it is not called.
    """
    known = {case: finding for case in cases if (finding := _remembered(case, table, cache))}
    unread = [case for case in cases if case not in known]
    read = each(partial(_read, table=table, cache=cache), unread, workers, progress)
    known.update(zip(unread, read, strict=True))
    return [known[case] for case in cases]


def _remembered(case: Case, table: LabelTable, cache: Path | None) -> Finding | None:
    note = _note(case, table, cache)
    try:
        return None if note is None else _finding(json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError):
        return None  # a damaged note is written again


def _read(case: Case, table: LabelTable, cache: Path | None) -> Finding:
    note = _note(case, table, cache)  # of the files as they are before they are read
    finding = inspect_case(case, table)
    if note is not None and not finding.faults:
        with atomic_path(note) as temporary:
            temporary.write_text(json.dumps(asdict(finding)), encoding="utf-8")
    return finding


def _note(case: Case, table: LabelTable, cache: Path | None) -> Path | None:
    """Where a finding is kept; None without a cache, or where the case's files cannot be reached."""
    try:
        return None if cache is None else cache / f"{_key(case, table)}.json"
    except (OSError, RuntimeError, DropgenError):  # a loop of links is a RuntimeError
        return None


def _key(case: Case, table: LabelTable) -> str:
    """Of paths, sizes and times, because hashing the content would read what the note is to spare."""
    paths = [part for path in (*case.images, case.label) for part in files_of(path)]
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    note = [FORMAT, case.name, stats, table.sources, table.background]
    return hashlib.sha256(json.dumps(note).encode()).hexdigest()[:32]


def _finding(data: dict) -> Finding:
    return Finding(**{key: _frozen(value) for key, value in data.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def absent(findings: Sequence[Finding], table: LabelTable) -> list[str]:
    """Names of the labels that no case has; one whose label map could not be read has none."""
    return [
        label.name
        for place, label in enumerate(table.labels)
        if not any(finding.voxels[place] for finding in findings if finding.voxels)
    ]


def refuse_faults(folder: Path, naming: Sequence[str], findings: Sequence[Finding], table: LabelTable) -> None:
    """Raise FaultyDatasetError with every fault of a data set, those of its names first."""
    faults = [*naming, *(fault for finding in findings for fault in finding.faults)]
    if findings and not all(finding.faults and not finding.voxels for finding in findings):
        faults += [
            f"label {name!r}: in no case; remove it from dataset.json or add a case that has it"
            for name in absent(findings, table)
        ]
    if faults:
        shown = [f"  - {fault}" for fault in faults[:SHOWN_FAULTS]]
        more = [f"  and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
        head = f"{folder}: {len(faults)} fault{'s' * (len(faults) > 1)} found before the first step; correct them all:"
        raise FaultyDatasetError("\n".join([head, *shown, *more]))
