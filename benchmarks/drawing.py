"""How fast crops are drawn for a GPU: one after another, by threads, and by the processes that training uses.

    python benchmarks/drawing.py --out benchmarks/results/drawing.json

Random values stand in for a case: what augmentation costs does not depend on them. Rounds are interleaved, medians
told; threads and processes are as many as there are cores, each on one core, and are timed once all have started.
"""

import argparse
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from recording import write

from dropgen_rt.train.batches import Drawing
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.parallel import READY_PER_PROCESS, ahead
from dropgen_rt.train.prepare import Prepared, places_of
from dropgen_rt.train.samples import ScanSampler

WINDOWS = ((48, 64, 48), (96, 96, 96))
ROUNDS = 3
WARM_UP_SECONDS, TIMED_SECONDS = 12, 8
STEPS = range(100_000)  # more than are drawn


def drawing(window: Sequence[int]) -> Drawing:
    """Draws one crop a step from a case a little larger than the window."""
    rng, shape = np.random.default_rng(0), tuple(edge + 16 for edge in window)
    label = rng.integers(0, 3, shape, np.uint8)
    case = Prepared("random", rng.random((1, *shape), dtype=np.float32), label, places_of(label, 2))
    return Drawing(ScanSampler([case], TrainConfig(window=tuple(window))), 0, (0,))


def by_threads(draw: Drawing, count: int) -> Iterator[object]:
    """As ``ahead`` does it, with threads."""
    waiting: deque[Future[object]] = deque()
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for step in STEPS:
                waiting.append(pool.submit(draw.arrays, step))
                if len(waiting) > count * READY_PER_PROCESS:
                    yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def per_second(results: Iterator[object]) -> float:
    """Crops per second, once it has gone on for a while."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < WARM_UP_SECONDS:
        next(results)
    start, crops = time.perf_counter(), 0
    while time.perf_counter() - start < TIMED_SECONDS:
        next(results)
        crops += 1
    rate = crops / (time.perf_counter() - start)
    if isinstance(results, Generator):
        results.close()
    return rate


def timed(window: Sequence[int], cores: int) -> dict[str, object]:
    draw = drawing(window)
    ways: dict[str, Callable[[], Iterator[object]]] = {
        "one after another": lambda: map(draw.arrays, STEPS),
        "threads": lambda: by_threads(draw, cores),
        "processes": lambda: ahead(draw.arrays, STEPS, cores),
    }
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            rounds[name].append(per_second(way()))
    crops = {name: statistics.median(rates) for name, rates in rounds.items()}
    print(window, ", ".join(f"{name} {rate:.1f}/s" for name, rate in crops.items()), flush=True)
    alone = crops["one after another"]
    ratios = {name: crops[name] / alone for name in ("threads", "processes")}
    return {"window": window, "crops_per_second": crops, "over_one_after_another": ratios, "rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    write(arguments.out, {"threads_or_processes": cores, "rows": [timed(window, cores) for window in WINDOWS]})


if __name__ == "__main__":
    main()
