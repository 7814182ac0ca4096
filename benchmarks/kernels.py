"""How fast each host kernel moves bytes, as a share of a large copy's rate in the same run, on all cores.

    python benchmarks/kernels.py --out benchmarks/results/kernels.json

Bytes are what the operation must move: every input once, every output once. The copy is NumPy's, one thread per core,
into memory that exists already; it runs between the kernels, so that the ratio holds on a machine that others use too.
Before each there is a rest: OpenMP's threads wait for their next work in a loop, which holds up a copy right after a
kernel. The threads of both are bound to a core each: two that wake up after a rest often find themselves on one core,
and stay there for milliseconds, as long as a kernel takes. What is timed begins when they are awake.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from threading import Barrier

import numpy as np
from recording import write

from dropgen_rt.kernels import (
    AxisMap,
    Normalisation,
    Taps,
    accumulate,
    extremes,
    finalise,
    gather,
    histogram,
    resample,
    threads,
)
from dropgen_rt.kernels import (
    statistics as label_statistics,
)
from dropgen_rt.kernels.statistics import Levels, empty_table

ROUNDS, RUNS = 9, 7
REST_SECONDS = 0.02
RNG = np.random.default_rng(0)
Case = tuple[str, str, int, Callable[[], object]]


def noise(*shape: int) -> np.ndarray:
    return RNG.random(shape, dtype=np.float32)


def timed(work: Callable[[], object], wake: Callable[[], object]) -> float:
    time.sleep(REST_SECONDS)
    wake()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bind(work: Callable[[], object], cores: list[int]) -> None:
    """The threads that ``work`` starts and waits with, this one first, each to one of ``cores``."""
    tasks = Path("/proc/self/task")
    before = set(tasks.iterdir())
    work()
    started = sorted(int(task.name) for task in set(tasks.iterdir()) - before)
    for thread, core in zip([0, *started], cores, strict=True):
        os.sched_setaffinity(thread, {core})


def copier(cores: list[int], size: int = 2**28) -> tuple[Callable[[], object], Callable[[], object]]:
    """What copies ``size`` bytes, a piece per core, and what wakes its threads."""
    source, to = RNG.integers(0, 255, size, np.uint8), np.zeros(size, np.uint8)
    pieces = [slice(size * i // len(cores), size * (i + 1) // len(cores)) for i in range(len(cores))]
    free, everyone = iter(cores), Barrier(len(cores))
    pool = ThreadPoolExecutor(len(cores), initializer=lambda: os.sched_setaffinity(0, {next(free)}))

    def copy(piece: slice) -> None:
        np.copyto(to[piece], source[piece])

    return lambda: list(pool.map(copy, pieces)), lambda: list(pool.map(lambda _: everyone.wait(), cores))


def stretched(extent: int, count: int) -> AxisMap:
    places = np.clip((np.arange(count) + 0.5) * extent / count - 0.5, 0, extent - 1)
    lower = np.floor(places).astype(np.int32)
    return AxisMap(lower, np.minimum(lower + 1, extent - 1).astype(np.int32), (places - lower).astype(np.float32))


def triangle(extent: int, count: int) -> Taps:
    places = np.clip((np.arange(count) + 0.5) * extent / count - 0.5, 0, extent - 1)[:, None]
    weights = np.maximum(0, 1 - np.abs(np.arange(extent) - places) / max(extent / count, 1))
    return Taps.of_matrix(weights / weights.sum(axis=1, keepdims=True))


def ball_of_shells(extent: int, labels: int) -> np.ndarray:
    """(z, y, x) uint8: labels one inside the other, as organs and their parts lie; outside of all of them 0."""
    places = np.linspace(-1, 1, extent, dtype=np.float32)
    radius = np.sqrt(places[:, None, None] ** 2 + places[:, None] ** 2 + places**2)
    return np.maximum(labels * (0.9 - radius), 0).astype(np.uint8)


def cases() -> list[Case]:
    """(kernel, what, bytes, work)."""
    volume, image = noise(1, 256, 256, 256), noise(1, 192, 192, 192)
    starts = np.array([(z, y, x) for z in (0, 96) for y in (0, 96) for x in (0, 96)], np.int32)
    window, windows = (96, 96, 96), np.empty((8, 1, 96, 96, 96), np.float32)
    sums, logits = noise(14, 97, 192, 192), noise(1, 14, 96, 96, 96)
    weights = [noise(96) for _ in range(3)]
    totals = [noise(n) + 0.5 for n in (97, 192, 192)]
    own = [AxisMap.identity(n) for n in (97, 192, 192)]
    fine = [stretched(n, m) for n, m in zip((97, 192, 192), (97, 256, 256), strict=True)]
    runs = np.repeat(RNG.integers(0, 14, (256, 256, 16), np.uint8), 16, axis=2)
    shells = ball_of_shells(256, 14)
    short = (volume * 1000).astype(np.int16)
    half = logits.astype(np.float16)
    bounds, place, table = Normalisation((0.1,), (0.9,), (0.1,), (1.25,)), starts[:1], empty_table(14)
    same, coarse = [Taps.identity(256)] * 3, [triangle(256, 171)] * 3
    as_it_is, coarser = np.empty((1, 256, 256, 256), np.float32), np.empty((1, 171, 171, 171), np.float32)
    return [
        ("gather", "8 windows of 96^3", 2 * windows.nbytes, lambda: gather(image, starts, window, bounds, windows)),
        ("accumulate", "14 classes, 96^3", 3 * logits.nbytes, lambda: accumulate(sums, logits, place, weights)),
        ("accumulate", "14 classes, 96^3, half", 5 * half.nbytes, lambda: accumulate(sums, half, place, weights)),
        ("finalise", "14 classes, 97 x 192 x 192", sums.nbytes + sums[0].size, lambda: finalise(sums, totals, own)),
        ("finalise", "14 classes, to 97 x 256 x 256", sums.nbytes + 97 * 256 * 256,
         lambda: finalise(sums, totals, fine)),
        ("resample", "int16 256^3 as it is", short.nbytes + volume.nbytes, lambda: resample(short, same, out=as_it_is)),
        ("resample", "int16 256^3 to 171^3", short.nbytes + 4 * 171**3, lambda: resample(short, coarse, out=coarser)),
        ("extremes", "8 windows of 128^3", volume.nbytes,
         lambda: extremes(volume, starts // 96 * 128, (128, 128, 128))),
        ("histogram", "256^3, 11 bits", volume.nbytes, lambda: histogram(volume, 21, 11, 0)),
        ("statistics", "256^3, 14 labels, shells of a ball", 5 * volume.size,
         lambda: label_statistics(shells, volume[0], Levels.over(0, 1), table)),
        ("statistics", "256^3, 14 labels, runs of 16", 5 * volume.size,
         lambda: label_statistics(runs, volume[0], Levels.over(0, 1), table)),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    cores, work = sorted(os.sched_getaffinity(0)), cases()
    copy, wake_copy = copier(cores)
    little = noise(len(cores), 64, 1024)

    def wake() -> None:
        histogram(little, 21, 11, 0)

    if threads() != len(cores):
        raise SystemExit(f"{threads()} threads on {len(cores)} cores: leave OMP_NUM_THREADS out, or use taskset")
    bind(wake, cores)
    pairs: list[list[tuple[float, float]]] = [[] for _ in work]
    # Rounds over all kernels: what else a machine does comes and goes by the minute.
    for _, (found, case) in product(range(ROUNDS), zip(pairs, work, strict=True)):
        timed(case[3], wake), timed(copy, wake_copy)
        found += [(timed(copy, wake_copy), timed(case[3], wake)) for _ in range(RUNS)]
    os.sched_setaffinity(0, cores)
    rows = []
    for found, (kernel, what, moved, _) in zip(pairs, work, strict=True):
        shares = [moved / ours / (2 * 2**28 / theirs) for theirs, ours in found]
        seconds, copying = (statistics.median(column) for column in zip(*((b, a) for a, b in found), strict=True))
        rows.append({"kernel": kernel, "what": what, "bytes": moved, "seconds": seconds, "copy_seconds": copying,
                     "share_of_copy_rate": round(statistics.median(shares), 3)})  # fmt: skip
        print(
            f"{kernel:12} {what:34} {moved / 1e6:7.0f} MB {seconds * 1e3:8.1f} ms {rows[-1]['share_of_copy_rate']:5.2f}"
        )
    write(arguments.out, {"rounds": ROUNDS, "runs": RUNS, "rows": rows})


if __name__ == "__main__":
    main()
