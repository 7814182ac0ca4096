"""The sliding window: gather, infer, accumulate, batch by batch.

``slide`` keeps the sums of the whole volume; ``roll`` keeps a slab of them, and gives labels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.air import AirLogits, AirRule, air_windows, background_logits
from dropgen_rt.components import NOTHING, Apart
from dropgen_rt.kernels import AxisMap, Normalisation, accumulate, finalise, gather
from dropgen_rt.record import Stopwatch
from dropgen_rt.rolling import layers, ring_depth
from dropgen_rt.windows import Blend, WindowPlan, axis_totals, axis_weights

Infer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def slide(
    image: NDArray[np.float32],
    plan: WindowPlan,
    normalisation: Normalisation,
    infer: Infer,
    classes: int,
    *,
    blend: Blend = "constant",
    batch: int = 1,
    progress: Callable[[int], None] = lambda windows: None,
) -> tuple[NDArray[np.float32], tuple[NDArray[np.float32], ...]]:
    """Weighted logit sums (classes, z, y, x) float32 and the three per-axis weight totals that normalise them.

    ``image`` is (channels, z, y, x) float32 on the working grid, ``infer`` maps windows
    (b, channels, z, y, x) to logits (b, classes, z, y, x), both float32. ``progress`` gets the number of
    windows done after each batch.
    """
    sums = np.zeros((classes, *plan.shape), np.float32)
    weights = tuple(axis_weights(edge, blend) for edge in plan.window)
    starts = plan.starts
    for first in range(0, len(starts), batch):
        some = starts[first : first + batch]
        windows = gather(image, some, plan.window, normalisation)
        accumulate(sums, infer(windows), some, weights)
        progress(len(some))
    return sums, axis_totals(plan, weights)


def argmax_labels(sums: NDArray[np.float32], totals: tuple[NDArray[np.float32], ...]) -> NDArray[np.unsignedinteger]:
    """(z, y, x) labels on the working grid itself."""
    identity = tuple(AxisMap.identity(size) for size in sums.shape[1:])
    return finalise(sums, totals, identity)[0]


@dataclass(frozen=True)
class Rolled:
    """Labels (nz, ny, nx) uint8 or uint16, their probability or None, how many windows there were, and how many of
    them held only air; ``apart`` is what components.py left out afterwards."""

    labels: NDArray[np.unsignedinteger]
    probability: NDArray[np.float32] | None
    windows: int
    skipped: int
    apart: Apart = NOTHING


def roll(
    image: NDArray[np.float32],
    plan: WindowPlan,
    normalisation: Normalisation,
    infer: Infer,
    classes: int,
    maps: Sequence[AxisMap],
    *,
    blend: Blend = "constant",
    batch: int = 1,
    probability: bool = False,
    air: AirRule = "run",
    progress: Callable[[int], None] = lambda windows: None,
    watch: Stopwatch | None = None,
) -> Rolled:
    """What ``finalise`` over the sums of ``slide`` gives, in every bit, with sums for a slab of planes only.

    Arguments as for ``slide``; ``maps`` are the AxisMaps of the output's z, y and x, z rising. ``air`` says what
    is done with windows of nothing but air or padding (air.py).
    """
    watch = watch or Stopwatch()
    weights = tuple(axis_weights(edge, blend) for edge in plan.window)
    totals = axis_totals(plan, weights)
    starts = plan.starts
    with watch.stage("find_air"):
        skipped = np.zeros(len(starts), np.bool_)
        if air != "run":
            skipped = air_windows(image, starts, plan.window, normalisation)
    ring = np.zeros((classes, ring_depth(plan), *plan.shape[1:]), np.float32)
    labels = np.empty(tuple(map(len, maps)), np.uint8 if classes <= 256 else np.uint16)
    best = np.empty(labels.shape, np.float32) if probability else None
    ask = infer if air == "ask" else lambda zeros: background_logits(classes, plan.window)
    of_air = AirLogits(ask, len(image), plan.window)
    for layer in layers(plan, maps[0], totals[0]):
        for some, is_air in batches(starts[layer.windows], skipped[layer.windows], batch):
            if is_air:
                with watch.stage("network"):
                    logits = of_air.logits()
            else:
                with watch.stage("gather"):
                    windows = gather(image, some, plan.window, normalisation)
                with watch.stage("network"):
                    logits = infer(windows)
            with watch.stage("accumulate"):
                for start in layer.ring_starts:
                    accumulate(ring, logits, at_z(some, start), weights)
            progress(len(some))
        with watch.stage("finalise"):
            ends = (layer.z, *maps[1:])
            out = labels[layer.planes]
            _, chance, _ = finalise(ring, (layer.totals_z, *totals[1:]), ends, probability=probability, out=out)
            if best is not None:
                best[layer.planes] = chance
            for slots in layer.cleared:
                ring[:, slots] = 0
    return Rolled(labels, best, len(plan), int(skipped.sum()))


def at_z(starts: NDArray[np.int32], z: int) -> NDArray[np.int32]:
    """The starts (b, 3), all of one z, moved to another."""
    moved = starts.copy()
    moved[:, 0] = z
    return moved


def batches(starts: NDArray[np.int32], air: NDArray[np.bool_], batch: int) -> Iterator[tuple[NDArray[np.int32], bool]]:
    """Runs of at most ``batch`` windows in order, each of air only or of none; air comes one by one."""
    first = 0
    while first < len(starts):
        last = first + 1
        while not air[first] and last < len(starts) and last - first < batch and not air[last]:
            last += 1
        yield starts[first:last], bool(air[first])
        first = last
