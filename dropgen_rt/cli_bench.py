"""``dropgen-rt bench``: this machine's time for one scan, beside other ways with the same network."""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from dropgen_rt.errors import UsageError

FILE = click.Path(path_type=Path)
AGAINST = ("monai", "torch", "nnunet")


@click.command()
@click.option("--scan", type=FILE, required=True, help="The scan to segment.")
@click.option("--model", metavar="NAME|PATH", help="Model to run; by default the one that build-engine made default.")
@click.option("--checkpoint", type=FILE, help="The model's checkpoint, for --against.")
@click.option("--against", default="", metavar="LIST", help="Any of monai, torch and nnunet, with commas between.")
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1), help="Rounds; all ways in each.")
@click.option("-o", "--out", type=FILE, help="Write the figures as JSON.")
def bench(scan: Path, model: str | None, checkpoint: Path | None, against: str, runs: int, out: Path | None) -> None:
    """Time one scan, stage by stage, and beside other ways with the same network; medians of interleaved rounds."""
    names = tuple(name for name in against.split(",") if name)
    if set(names) - set(AGAINST):
        raise UsageError(f"--against {against!r}: accepted are {', '.join(AGAINST)}, with commas between")
    if names and checkpoint is None:
        raise UsageError("--against runs the network in PyTorch; name its file with --checkpoint")
    figures = measure(scan, model, checkpoint, names, runs)
    for line in table(figures):
        click.echo(line)
    if out is not None:
        from dropgen_rt.atomic import atomic_path

        with atomic_path(out) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    click.echo(f"{runs} runs" if out is None else f"wrote {out}")


def measure(
    scan: Path, model: str | None, checkpoint: Path | None, names: tuple[str, ...], runs: int
) -> dict[str, Any]:
    """Seconds of every way in every round, our stages, and Dice against the fp32 reference where there is one."""
    from dropgen_rt.engines import open_engine
    from dropgen_rt.segment import segment
    from dropgen_rt.store import open_named
    from dropgen_rt.volume import read_scan

    opened, source = open_named(model), read_scan(scan)
    seconds: dict[str, list[float]] = {}
    labels: dict[str, np.ndarray] = {}
    stages: list[dict[str, float]] = []
    with open_engine(opened) as engine:

        def ours() -> np.ndarray:
            result = segment(source, opened, engine=engine)
            stages.append(result.record.timings_s)
            return np.asarray(result.labels.array[0])

        work: dict[str, Callable[[], np.ndarray]] = {"ours": ours}
        work |= _others(source.volume, opened.manifest, checkpoint, names)
        for run in range(runs + 1):
            for name, way in work.items():
                start = time.perf_counter()
                labels[name] = way()
                if run:  # the first warms up
                    seconds.setdefault(name, []).append(time.perf_counter() - start)
        described = {item: getattr(engine, item) for item in ("name", "version", "precision", "device")}
    counted = {name: round(statistics.median(run[name] for run in stages[1:]), 4) for name in stages[0]}
    return {
        "scan": scan.name, "model": opened.manifest.name, "engine": described, "seconds": seconds,
        "stages_median_s": counted, "dice": _dice(labels, opened.manifest.classes),
    }  # fmt: skip


def _others(
    volume: Any, manifest: Any, checkpoint: Path | None, names: tuple[str, ...]
) -> dict[str, Callable[[], np.ndarray]]:
    """The other ways, each from the scan in memory to labels on its own grid."""
    if checkpoint is None or not names:
        return {}
    from dropgen_rt.preprocess import normalisation, to_working_grid
    from dropgen_rt.train.compare import Problem, ways
    from dropgen_rt.train.loop import load_network

    network, _ = load_network(checkpoint)
    oriented, change = volume.geometry.reoriented(manifest.orientation)

    def run(way: Callable[[Problem], np.ndarray]) -> np.ndarray:
        working = to_working_grid(volume, manifest.orientation, manifest.spacing_mm)
        bounds = normalisation(working, manifest.intensity)
        spacings = manifest.spacing_mm, oriented.spacing_mm
        problem = Problem(
            working.array, bounds, oriented.shape, manifest.window, *spacings, manifest.overlap, manifest.blend
        )
        return np.ascontiguousarray(change.undo(way(problem)))

    return {name: partial(run, way) for name, way in ways(network, names).items()}


def _dice(labels: dict[str, np.ndarray], classes: int) -> dict[str, float]:
    """Mean Dice over the labels that the fp32 reference has, of every other way."""
    if "monai fp32" not in labels:
        return {}
    reference = labels["monai fp32"]
    present = [value for value in range(1, classes) if (reference == value).any()]

    def one(found: np.ndarray) -> float:
        both = [
            2 * ((found == v) & (reference == v)).sum() / ((found == v).sum() + (reference == v).sum()) for v in present
        ]
        return float(np.mean(both)) if both else 1.0

    return {name: round(one(found), 5) for name, found in labels.items() if name != "monai fp32"}


def table(figures: dict[str, Any]) -> list[str]:
    """Lines for a person."""
    ours = figures["seconds"]["ours"]
    lines = [f"engine {' '.join(figures['engine'].values())}"]
    lines += [f"  {name:18} {spent:8.3f} s" for name, spent in figures["stages_median_s"].items()]
    for name, spent in figures["seconds"].items():
        ratio = statistics.median(theirs / own for theirs, own in zip(spent, ours, strict=True))
        dice = f", Dice {figures['dice'][name]:.4f}" if name in figures["dice"] else ""
        lines.append(f"{name:26} {statistics.median(spent):8.3f} s, {ratio:5.2f} of ours{dice}")
    return lines
