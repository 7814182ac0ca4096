"""Timing several ways through one scan side by side: rounds, medians, Dice against a reference, a table, a picture.

A way is any function from nothing to labels (z, y, x). All ways of a round run one after the other, so that what else
the machine does falls on all alike; ratios are taken within a round.
"""

import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.errors import DropgenError, UsageError
from dropgen_rt.evaluate import dice_per_label
from dropgen_rt.survey import cores, cpu_name

Labels = NDArray[np.unsignedinteger]
#: The way that the others' speed is told against, and the one whose labels they are held to.
OURS, REFERENCE = "ours", "monai fp32"


@dataclass(frozen=True)
class Way:
    """``run`` gives labels (z, y, x); ``rounds`` is in how many rounds; ``settings`` says what it runs with.

    ``prepare`` runs once before the first round, untimed: it compiles, or takes workspace.
    """

    name: str
    run: Callable[[], Labels]
    rounds: int
    settings: str = ""
    prepare: Callable[[], object] = lambda: None


def measure(ways: Sequence[Way], classes: int, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Seconds of every way in each of its rounds, and mean Dice of each against REFERENCE, if that is among them.

    A way that fails is left out, with the reason under "failed"; ours may not.
    """
    seconds: dict[str, list[float]] = {}
    labels: dict[str, Labels] = {}
    failed: dict[str, str] = {}
    for way in ways:
        tell(f"preparing {way.name}")
        _tried(way, way.prepare, failed)
    for number in range(max(way.rounds for way in ways)):
        for way in ways:
            if number >= way.rounds or way.name in failed:
                continue
            start = time.perf_counter()
            found = _tried(way, way.run, failed)
            spent = time.perf_counter() - start
            if found is None:
                continue
            labels[way.name] = found
            seconds.setdefault(way.name, []).append(spent)
            tell(f"round {number + 1}: {way.name}, {seconds[way.name][-1]:.1f} s")
    return {
        "settings": {way.name: way.settings for way in ways},
        "seconds": {name: [round(value, 3) for value in spent] for name, spent in seconds.items()},
        "median_s": {name: round(statistics.median(spent), 3) for name, spent in seconds.items()},
        "spread_s": {name: [round(min(spent), 3), round(max(spent), 3)] for name, spent in seconds.items()},
        "times_ours": {name: ratio(spent, seconds[OURS]) for name, spent in seconds.items()},
        "dice": dice(labels, classes),
        "failed": failed,
    }


def _tried(way: Way, work: Callable[[], Any], failed: dict[str, str]) -> Any:
    """What ``work`` gives; None, with the reason in ``failed``, where another way than ours fails."""
    try:
        return work()
    except DropgenError:
        raise
    except Exception as error:  # whatever a compiler or another library meets
        if way.name.startswith(OURS):
            raise
        failed[way.name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        return None


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """The median over the rounds that both ran of how many times longer theirs took."""
    return round(statistics.median(a / b for a, b in zip(theirs, ours, strict=False)), 3)


def dice(labels: dict[str, Labels], classes: int) -> dict[str, dict[str, Any]]:
    """Of every way but REFERENCE: Dice against it per label (None where neither has the label), and their mean."""
    if REFERENCE not in labels:
        return {}
    rows = {}
    for name, found in labels.items():
        if name != REFERENCE:
            scores = dice_per_label(found, labels[REFERENCE], classes - 1)
            told = [None if np.isnan(score) else round(float(score), 5) for score in scores]
            rows[name] = {"mean": round(float(np.nanmean(scores)), 5), "per_label": told}
    return rows


def stages(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Median seconds per stage, and the share of the whole that is not the network's."""
    medians = {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}
    whole = sum(medians.values())
    opened = sum(medians.get(name, 0.0) for name in ("open_model", "open_engine", "warm_up"))
    rest = whole - medians["network"] - opened
    return {"median_s": medians, "all_but_network_share": round(rest / (whole - opened), 4)}


def provenance() -> dict[str, Any]:
    """The command, the day, versions and the machine."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "version": version("dropgen-rt"),
        "machine": {"cpu": cpu_name(), "cores": cores(), "load_before": round(os.getloadavg()[0], 2)},
    }


def table(figures: dict[str, Any]) -> list[str]:
    """Lines for a person."""
    count = figures["windows"]
    lines = [f"engine {' '.join(figures['engine'].values())}, {count} window{'' if count == 1 else 's'}"]
    lines += [f"  {name:18} {spent:8.3f} s" for name, spent in figures["stages"]["median_s"].items()]
    lines.append(f"  all but the network: {100 * figures['stages']['all_but_network_share']:.1f} %")
    for name, spent in figures["median_s"].items():
        low, high = figures["spread_s"][name]
        told = f", Dice {figures['dice'][name]['mean']:.4f}" if name in figures["dice"] else ""
        lines.append(
            f"{name:26} {spent:8.1f} s ({low:.1f} to {high:.1f}), {figures['times_ours'][name]:6.2f} x ours{told}"
        )
    return [*lines, *(f"{name:26} failed: {reason}" for name, reason in figures["failed"].items())]


def draw(figures: dict[str, Any], path: Path) -> None:
    """A bar per way, seconds, as PNG. Raises UsageError where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("--picture needs matplotlib; install it with: pip install 'dropgen-rt[train]'") from error
    names = list(figures["median_s"])
    medians = [figures["median_s"][name] for name in names]
    spread = [[abs(figures["spread_s"][name][end] - middle) for name, middle in zip(names, medians, strict=True)]
              for end in (0, 1)]  # fmt: skip
    figure = Figure(figsize=(9, 1.2 + 0.5 * len(names)), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    bars = axes.barh(
        names, medians, xerr=spread, color=["tab:orange" if name.startswith(OURS) else "tab:grey" for name in names]
    )
    told = [
        f"{middle:.1f} s" + (f", Dice {figures['dice'][name]['mean']:.4f}" if name in figures["dice"] else "")
        for name, middle in zip(names, medians, strict=True)
    ]
    axes.bar_label(bars, told, padding=6)
    axes.set_xlim(0, 1.35 * max(medians))
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds, {figures['scan']}, {figures['machine']['cpu']}, {figures['machine']['cores']} cores")
    FigureCanvasAgg(figure).print_png(str(path))
