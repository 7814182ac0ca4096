"""One function over many items in processes of their own; results come in the order of the items."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Below this many items per process its start costs more than it saves.
WORTH_A_PROCESS = 8


def workers_for(items: int, wanted: int | None = None) -> int:
    """Processes to use: ``wanted``, or one per core as far as the items are worth it."""
    return wanted or max(1, min(len(os.sched_getaffinity(0)), items // WORTH_A_PROCESS))


def each(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Result]:
    """``[function(item) for item in items]``; function, items and results must be picklable.

    Processes, not threads: reading a scan redirects the whole process's stderr. They are spawned, because a
    fork of a process that runs PyTorch's threads may hang. ``progress`` gets (done, total).
    """
    count = workers_for(len(items), workers)
    results: dict[int, Result] = {}
    if count == 1:
        for index, item in enumerate(items):
            results[index] = function(item)
            progress(len(results), len(items))
    else:
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            waiting = {pool.submit(function, item): index for index, item in enumerate(items)}
            try:
                for future in as_completed(waiting):
                    results[waiting[future]] = future.result()
                    progress(len(results), len(items))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    return [results[index] for index in range(len(items))]
