"""Scan files in, result files out: what the command ``infer`` does for one scan or many."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from dropgen_rt import picture
from dropgen_rt.atomic import atomic_group, check_writable
from dropgen_rt.channels import FIRST, cases, channel_files, read_channels
from dropgen_rt.console import Console
from dropgen_rt.dicom.files import is_dicom
from dropgen_rt.engines import Engine, open_engine
from dropgen_rt.errors import DropgenError, OutputError, UsageError
from dropgen_rt.inspect_file import header_of
from dropgen_rt.manifest import Manifest
from dropgen_rt.memory import available_bytes
from dropgen_rt.model import Model
from dropgen_rt.outputs import DICOM_FORMATS, FORMATS, LABEL_FORMATS, chosen_formats
from dropgen_rt.pipeline import Stages, in_turn, overlapped
from dropgen_rt.record import Stopwatch
from dropgen_rt.report import NO_VIEWER, has_viewer, render
from dropgen_rt.segment import Segmentation, segment
from dropgen_rt.settings import Settings
from dropgen_rt.store import open_named
from dropgen_rt.volume import (
    FOLDER_WITHIN,
    Scan,
    find_scans,
    passed_over,
    read_scan,
    scan_suffix,
    stem,
    write_labels,
)

if TYPE_CHECKING:
    from dropgen_rt.dicom.catalogue import Candidate


@dataclass(frozen=True)
class Job:
    """One scan to segment: ``name`` is what its results are called; ``labels`` maps formats to their files.

    ``room()`` is how many bytes of memory reading it takes.
    """

    path: Path
    name: str
    read: Callable[[], Scan]
    labels: dict[str, Path]
    record: Path
    picture: Path
    report: Path | None = None
    room: Callable[[], int] = lambda: 0

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.labels.values(), self.record, self.picture, *([self.report] if self.report else []))


def infer_files(
    scans: Sequence[Path], out: Path | None, model: str | None, settings: Settings, device: str, quiet: bool,
    report: bool = False, formats: Sequence[str] = (), series: str | None = None,
) -> list[DropgenError]:  # fmt: skip
    """Segment every scan; one that is refused does not stop the others. Returns the refusals, in order.

    A single scan's refusal is raised. ``formats`` are those of outputs.FORMATS, ``series`` names the series of a
    DICOM input. Raises UsageError if two results would have one name, or one would replace a scan, and ModelError
    or ResourceError before the first scan is read.
    """
    paths = find_scans(scans)
    console = Console(quiet)
    failures: list[DropgenError] = []
    _check_folders(paths, out)
    _tell_passed_over(scans, paths, console)
    opened = open_named(model)
    paths = cases(paths, opened.manifest.channels)
    planned: list[Job | DropgenError] = []
    for path in paths:
        try:
            planned.append(plan(path, out, formats, series, opened.manifest, report))
        except UsageError:
            raise
        except DropgenError as error:
            if len(paths) == 1:
                raise
            planned.append(error)
    _check_names([job for job in planned if isinstance(job, Job)])
    if report and not has_viewer():
        console.line(f"warning: {NO_VIEWER}")
    console.line(f"model {opened.manifest.name}, {len(opened.manifest.labels)} labels")
    # Reference mode is the published method in fp32, whatever engine is installed.
    precision = "fp32" if settings.reference else None
    with open_engine(opened, device, precision=precision) as engine:
        console.line(f"engine {engine.name} {engine.version}, {engine.precision}, {engine.device}")
        run = Run(opened, settings, engine, console, planned)

        def done(job: Job | DropgenError, error: DropgenError | None) -> None:
            if error is None:
                run.tell(job)
            elif len(paths) == 1:
                raise error
            else:
                console.error(error)
                failures.append(error)

        stages = Stages(run.read, run.compute, run.write, done)
        (overlapped if run.ahead else in_turn)(planned, stages)
    return failures


def plan(
    path: Path, out: Path | None, formats: Sequence[str], series: str | None, manifest: Manifest, report: bool = False
) -> Job:
    """How one input will be read, and where its results go; of a DICOM input the headers are read here.

    Raises UsageError, InputError, OutputError or ResourceError.
    """
    dicom = not scan_suffix(path) and is_dicom(path)
    chosen = chosen_formats(formats, dicom, path)
    if dicom:
        from dropgen_rt.dicom.read import find_series, read_candidate, scan_name
        from dropgen_rt.dicom.write import check_source

        found, item = find_series(path, series, manifest.source)
        if set(chosen) & set(DICOM_FORMATS):
            check_source(path, item)
        name = scan_name(item)
        read: Callable[[], Scan] = partial(read_candidate, found, item, manifest.source)
        room: Callable[[], int] = partial(_room_of_stack, item)
    elif series is not None:
        raise UsageError(f"{path}: --series names a series of a DICOM folder, file or ZIP archive; leave it out")
    else:
        files = channel_files(path, manifest.channels) if len(manifest.channels) > 1 else [path]
        name = stem(path) if len(files) == 1 else stem(path).removesuffix(FIRST)
        read = partial(read_scan, path) if len(files) == 1 else partial(read_channels, files)
        room = partial(_room_of_files, files)
    base = _folder(path, out) / name
    labels = {kind: base.with_name(name + FORMATS[kind]) for kind in chosen}
    record, shown = base.with_name(f"{name}_seg.json"), base.with_name(f"{name}_seg.png")
    page = base.with_name(f"{name}_report.html") if report else None
    check_writable(record)
    return Job(path, name, read, labels, record, shown, page, room)


def _room_of_files(paths: Sequence[Path]) -> int:
    """Of all channels; at most twice that where they are put together."""
    return sum(map(_room_of_file, paths)) * min(len(paths), 2)


def _room_of_file(path: Path) -> int:
    """Bytes: the numbers as stored, in float64 where they are scaled, and in float32. 0 for what will be refused."""
    try:
        header = header_of(path)
    except DropgenError:
        return 0
    scaled = 8 if header.scaling != (1.0, 0.0) else 0
    return math.prod(header.size) * (header.payload.voxel.itemsize + scaled + 4)


def _room_of_stack(item: "Candidate") -> int:
    """Bytes: pixels as stored and in float32, twice where a tilted stack is straightened."""
    assert item.grid is not None
    return math.prod(item.grid.geometry.size) * (2 + 4 + (4 if item.grid.shift_px is not None else 0))


@dataclass(frozen=True)
class Opened:
    """A scan that was read, and the time that took."""

    scan: Scan
    watch: Stopwatch


@dataclass(frozen=True)
class Segmented:
    """A scan and its labels, not written yet."""

    opened: Opened
    result: Segmentation


class Run:
    """What is done with each job: read, segment, write; the stages of pipeline.py. An error planned is raised first.

    Scans are read ahead where several are given and no ``--memory`` is: a limit leaves the next scan no room.
    """

    def __init__(
        self, model: Model, settings: Settings, engine: Engine, console: Console, jobs: Sequence[Job | DropgenError]
    ) -> None:
        self.model, self.settings, self.engine, self.console = model, settings, engine, console
        self.ahead = len(jobs) > 1 and settings.memory_bytes is None
        self._next = {id(job): following for job, following in pairwise(jobs)}

    def read(self, job: Job | DropgenError) -> Opened:
        """Raises DropgenError."""
        if isinstance(job, DropgenError):
            raise job
        watch = Stopwatch()
        with watch.stage("read"):
            return Opened(job.read(), watch)

    def compute(self, job: Job | DropgenError, opened: Opened, start_next: Callable[[], None]) -> Segmented:
        """Raises DropgenError. The next scan is read once this one's memory is planned, with room left for it."""
        scan, console = opened.scan, self.console
        for warning in scan.warnings:
            console.line(f"warning: {scan.path.name}: {warning}")
        following = self._next.get(id(job))
        room = following.room() if self.ahead and isinstance(following, Job) else 0
        fits = room <= (available_bytes() or room) // 4  # else it is read when this one is done

        def announce(line: str) -> None:
            console.line(line)
            if fits:
                start_next()

        settings = replace(self.settings, reserved_bytes=room if fits else 0)
        with console.progress(scan.path.name) as progress:
            result = segment(
                scan, self.model, settings, engine=self.engine, progress=progress, announce=announce
            )  # fmt: skip
        for warning in result.record.warnings[len(scan.warnings) :]:
            console.line(f"warning: {scan.path.name}: {warning}")
        return Segmented(opened, result)

    def write(self, job: Job | DropgenError, made: Segmented) -> None:
        """Label maps, record, picture and any report appear together or not at all. Raises DropgenError."""
        assert isinstance(job, Job)
        scan, watch, result, model = made.opened.scan, made.opened.watch, made.result, self.model
        with atomic_group(job.files) as temporaries:
            label_files = temporaries[: len(job.labels)]
            record_file, picture_file, *report_files = temporaries[len(job.labels) :]
            with watch.stage("write_labels"):
                _write_labels(scan, result, model, dict(zip(job.labels, label_files, strict=True)))
            with watch.stage("write_picture"):
                shown = picture.draw(scan.volume, result.labels, model.manifest.labels, result.record.labels)
                picture_file.write_bytes(shown)
            for report_file in report_files:
                with watch.stage("write_report"):
                    record = result.record.with_timings(watch)
                    page = render(scan.path.name, scan.volume, result.labels, model.manifest, record, shown)
                    report_file.write_text(page, encoding="utf-8")
            record_file.write_text(result.record.with_timings(watch).to_json(), encoding="utf-8")

    def tell(self, job: Job | DropgenError) -> None:
        """Say what was written."""
        assert isinstance(job, Job)
        for file in filter(None, (job.report, *job.labels.values())):
            self.console.line(f"wrote {file}")


def _write_labels(scan: Scan, result: Segmentation, model: Model, files: dict[str, Path]) -> None:
    for kind, file in files.items():
        if kind in LABEL_FORMATS:
            write_labels(result.labels.array[0], result.labels.geometry, file)
    objects = {kind: file for kind, file in files.items() if kind in DICOM_FORMATS}
    if objects:
        from dropgen_rt.dicom.read import DicomScan
        from dropgen_rt.dicom.write import write_objects

        assert isinstance(scan, DicomScan)
        write_objects(scan, result, model, objects)


def _folder(path: Path, out: Path | None) -> Path:
    if out is not None:
        return out
    return path.resolve().parent if path.is_dir() else path.parent


def _check_folders(paths: Sequence[Path], out: Path | None) -> None:
    for folder in dict.fromkeys(_folder(path, out) for path in paths):
        if not folder.is_dir():
            raise OutputError(f"{folder}: no such output folder; make it first, or name another with -o")


def _tell_passed_over(given: Sequence[Path], found: Sequence[Path], console: Console) -> None:
    """Folders within folders of scans: DICOM may lie there, and would go unseen."""
    for folder in given:
        within = passed_over(folder, found)[FOLDER_WITHIN] if folder.is_dir() and folder not in found else 0
        if within:
            console.line(f"{folder}: left out: {within} x {FOLDER_WITHIN}; name it too, if it is meant")


def _check_names(jobs: Sequence[Job]) -> None:
    written: dict[Path, Path] = {}
    for job in jobs:
        for file in job.files:
            other = written.setdefault(file.resolve(), job.path)
            if other is not job.path:
                raise UsageError(
                    f"{other} and {job.path} would both write {file.name}; give them different names or folders"
                )
    for job in jobs:
        if job.path.resolve() in written:
            raise UsageError(
                f"{job.path}: the result of another of these scans would replace it; leave it out or use -o"
            )
