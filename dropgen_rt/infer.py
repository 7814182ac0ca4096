"""Scan files in, result files out: what the command ``infer`` does for one scan or many."""

from collections.abc import Sequence
from pathlib import Path

from dropgen_rt import picture
from dropgen_rt.atomic import atomic_group
from dropgen_rt.console import Console
from dropgen_rt.engines import Engine, open_engine
from dropgen_rt.errors import DropgenError, OutputError, UsageError
from dropgen_rt.model import Model
from dropgen_rt.record import Stopwatch
from dropgen_rt.report import NO_VIEWER, has_viewer, render
from dropgen_rt.segment import Segmentation, Settings, segment
from dropgen_rt.store import cache_folder, open_named
from dropgen_rt.volume import find_scans, read_scan, stem, write_labels


def infer_files(
    scans: Sequence[Path], out: Path | None, model: str | None, settings: Settings, device: str, quiet: bool,
    report: bool = False,
) -> list[DropgenError]:  # fmt: skip
    """Segment every scan; one that is refused does not stop the others. Returns the refusals, in order.

    A single scan's refusal is raised. Raises UsageError if two results would have one name, or one would replace
    a scan, and ModelError or ResourceError before the first scan is read.
    """
    paths = find_scans(scans)
    targets = [_targets(path, out, report) for path in paths]
    written = {file.resolve() for files in targets for file in files}
    if len(written) < sum(map(len, targets)):
        raise UsageError("two of these scans would write the same result file; give them different names or folders")
    for path in paths:
        if path.resolve() in written:
            raise UsageError(f"{path}: the result of another of these scans would replace it; leave it out or use -o")
    opened = open_named(model)
    failures: list[DropgenError] = []
    console = Console(quiet)
    if report and not has_viewer():
        console.line(f"warning: {NO_VIEWER}")
    console.line(f"model {opened.manifest.name}, {len(opened.manifest.labels)} labels")
    with open_engine(opened, device, cache_folder()) as engine:
        console.line(f"engine {engine.name} {engine.version}, {engine.precision}, {engine.device}")
        for path, files in zip(paths, targets, strict=True):
            try:
                infer_file(path, files, opened, settings, engine, console)
            except DropgenError as error:
                if len(paths) == 1:
                    raise
                console.error(error)
                failures.append(error)
    return failures


def infer_file(
    path: Path, files: tuple[Path, ...], model: Model, settings: Settings, engine: Engine, console: Console
) -> Segmentation:
    """Read, segment and write one scan: label map, record, picture and any report appear together or not at all."""
    watch = Stopwatch()
    with watch.stage("read"):
        scan = read_scan(path)
    for warning in scan.warnings:
        console.line(f"warning: {path.name}: {warning}")
    with console.progress(path.name) as progress:
        result = segment(scan, model, settings, engine=engine, progress=progress)
    with atomic_group(files) as (label_file, record_file, picture_file, *report_files):
        with watch.stage("write_labels"):
            write_labels(result.labels.array[0], result.labels.geometry, label_file)
        with watch.stage("write_picture"):
            shown = picture.draw(scan.volume, result.labels, model.manifest.labels, result.record.labels)
            picture_file.write_bytes(shown)
        for report_file in report_files:
            with watch.stage("write_report"):
                record = result.record.with_timings(watch)
                page = render(path.name, scan.volume, result.labels, model.manifest, record, shown)
                report_file.write_text(page, encoding="utf-8")
        record_file.write_text(result.record.with_timings(watch).to_json(), encoding="utf-8")
    console.line(f"wrote {files[0]}")
    return result


def _targets(path: Path, out: Path | None, report: bool) -> tuple[Path, ...]:
    folder = path.parent if out is None else out
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such output folder; make it first, or name another with -o")
    name = stem(path)
    endings = ["_seg.nii.gz", "_seg.json", "_seg.png", *(["_report.html"] if report else [])]
    return tuple(folder / (name + ending) for ending in endings)
