"""``dropgen-rt bench``: this machine's time for one scan, beside other ways with the same network."""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from dropgen_rt.errors import UsageError
from dropgen_rt.windows import BLENDS, PLACEMENTS, Blend, Placement

FILE = click.Path(path_type=Path)
AGAINST = ("monai", "torch", "nnunet")


@click.command()
@click.option("--scan", type=FILE, required=True, help="The scan to segment.")
@click.option("--model", metavar="NAME|PATH", help="Model to run; by default the one that build-engine made default.")
@click.option("--checkpoint", type=FILE, help="The model's checkpoint, for --against.")
@click.option("--against", default="", metavar="LIST", help="Any of monai, torch and nnunet, with commas between.")
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1), help="Rounds; all ways in each.")
@click.option("--slow-runs", default=1, show_default=True, type=click.IntRange(1), help="Rounds with PyTorch in fp32.")
@click.option("--overlap", type=float, help="Ours: share of a window that its neighbour covers again.")
@click.option("--blend", type=click.Choice(BLENDS), help="Ours: how overlapping windows are weighed.")
@click.option("--placement", type=click.Choice(PLACEMENTS), help="Ours: where windows lie.")
@click.option("--window", metavar="SIZE", help="Ours: as for infer.")
@click.option("--precision", help="Ours: auto, fp32, bf16 or int8, past the installed engine and its gate.")
@click.option("-o", "--out", type=FILE, help="Write the figures as JSON.")
@click.option("--picture", type=FILE, help="Draw the times as bars, PNG.")
def bench(
    scan: Path, model: str | None, checkpoint: Path | None, against: str, runs: int, slow_runs: int,
    overlap: float | None, blend: Blend | None, placement: Placement | None, window: str | None, precision: str | None,
    out: Path | None, picture: Path | None,
) -> None:  # fmt: skip
    """Time one scan from file to file, stage by stage, and beside other ways with the same network.

    All ways run in turns. First with the published windows (overlap 0.5, constant blend), then ours as infer runs by
    default. Dice is against MONAI with the network in PyTorch, eager and in fp32.
    """
    from dropgen_rt import bench as bench_
    from dropgen_rt.atomic import atomic_path
    from dropgen_rt.settings import Settings
    from dropgen_rt.window_size import parse_window

    names = tuple(name for name in against.split(",") if name)
    if set(names) - set(AGAINST):
        raise UsageError(f"--against {against!r}: accepted are {', '.join(AGAINST)}, with commas between")
    if names and checkpoint is None:
        raise UsageError("--against runs the network in PyTorch; name its file with --checkpoint")
    size = None if window is None else parse_window(window)
    chosen = Settings(overlap=overlap, blend=blend, placement=placement, window=size)
    figures = measure(scan, model, checkpoint, names, (runs, slow_runs), chosen, precision)
    for line in bench_.table(figures):
        click.echo(line)
    if picture is not None:
        with atomic_path(picture) as temporary:
            bench_.draw(figures, temporary)
    if out is not None:
        with atomic_path(out) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    written = [str(path) for path in (picture, out) if path is not None]
    click.echo(f"wrote {' and '.join(written)}" if written else f"{runs} runs")


def measure(
    path: Path,
    model: str | None,
    checkpoint: Path | None,
    names: tuple[str, ...],
    runs: tuple[int, int],
    chosen: Any,
    precision: str | None = None,
) -> dict[str, Any]:
    """Figures of all ways and of our stages; ``runs`` is the number of rounds, and of those with PyTorch in fp32."""
    from dropgen_rt.bench import OURS, Way, provenance, stages
    from dropgen_rt.bench import measure as side_by_side
    from dropgen_rt.engines import open_engine
    from dropgen_rt.record import Record, Stopwatch
    from dropgen_rt.segment import segment
    from dropgen_rt.settings import Settings
    from dropgen_rt.store import open_named
    from dropgen_rt.volume import read_scan, write_labels

    opened = open_named(model)
    records: list[Record] = []
    with open_engine(opened, precision=precision) as engine, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "labels.nii.gz"

        def ours(settings: Settings, keep: bool) -> np.ndarray:
            watch = Stopwatch()
            with watch.stage("read"):
                scan = read_scan(path)
            result = segment(scan, opened, settings, engine=engine)
            with watch.stage("write"):
                write_labels(result.labels.array[0], scan.volume.geometry, file)
            if keep:
                records.append(result.record.with_timings(watch))
            return np.asarray(result.labels.array[0])

        same = Settings(overlap=0.5, blend="constant", placement="scan", skip_air=False, components="all")
        ways = [
            Way(
                OURS, partial(ours, chosen, True), runs[0], _told(opened.manifest, chosen), partial(ours, chosen, False)
            ),
            Way(f"{OURS}, published windows", partial(ours, same, False), runs[0], _told(opened.manifest, same)),
        ]
        if names and checkpoint is not None:
            ways += _others(path, file, opened.manifest, checkpoint, names, runs, chosen.resolved(opened.manifest))
        found = side_by_side(ways, opened.manifest.classes, lambda line: click.echo(line, err=True))
        described = {item: getattr(engine, item) for item in ("name", "version", "precision", "device")}
    last = records[-1]
    return provenance() | {
        "scan": path.name, "model": opened.manifest.name, "model_sha256": opened.sha256,
        "training": opened.manifest.training.get("dataset"), "engine": described, "window": last.model["window"],
        "windows": last.windows, "skipped_windows": last.skipped_windows,
        "stages": stages([record.timings_s for record in records]), **found,
    }  # fmt: skip


def _told(manifest: Any, settings: Any) -> str:
    overlap, blend = settings.resolved(manifest)
    window = settings.window or "trained"
    around = ", around the body" if settings.placed(manifest) == "body" else ""
    kept = ", largest component" if settings.kept(manifest) == "largest" else ""
    air = "" if settings.skips_air else ", every window"
    return f"overlap {overlap:g}, {blend}, window {window}{around}{kept}{air}"


def _others(
    path: Path, file: Path, manifest: Any, checkpoint: Path, names: tuple[str, ...], runs: tuple[int, int],
    best: tuple[float, str],
) -> list[Any]:  # fmt: skip
    """The other ways, each from scan file to label file; reading, working grid and writing are ours in all of them."""
    from dropgen_rt.bench import Way
    from dropgen_rt.preprocess import normalisation, to_working_grid
    from dropgen_rt.train.compare import Problem, published, ways
    from dropgen_rt.train.loop import load_network
    from dropgen_rt.volume import read_scan, write_labels

    network, _ = load_network(checkpoint)

    def run(way: Callable[[Problem], np.ndarray], overlap: float, blend: str) -> np.ndarray:
        volume = read_scan(path).volume
        oriented, change = volume.geometry.reoriented(manifest.orientation)
        working = to_working_grid(volume, manifest.orientation, manifest.spacing_mm)
        bounds = normalisation(working, manifest.intensity)
        spacings = manifest.spacing_mm, oriented.spacing_mm
        problem = Problem(working.array, bounds, oriented.shape, manifest.window, *spacings, overlap, blend)
        labels = np.ascontiguousarray(change.undo(way(problem)))
        write_labels(labels, volume.geometry, file)
        return labels

    found = []
    for other in ways(network, names, (1, len(manifest.channels), *manifest.window)):
        overlap, blend = best if other.best else published(other.name)
        count = runs[1] if other.slow else runs[0]
        found.append(
            Way(
                other.name,
                partial(run, other.run, overlap, blend),
                count,
                f"overlap {overlap:g}, {blend}",
                other.prepare,
            )
        )
    return found
