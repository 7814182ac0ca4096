"""One function over many items in processes of their own; results come in the order of the items."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

from dropgen_rt.errors import ResourceError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Below this many items per process its start costs more than it saves.
WORTH_A_PROCESS = 8


def cores() -> int:
    """Cores for this process: its share of the machine's, where torchrun started several on it."""
    return max(len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def workers_for(items: int, wanted: int | None = None) -> int:
    """Processes to use: ``wanted``, or one per core as far as the items are worth it."""
    return wanted or max(1, min(cores(), items // WORTH_A_PROCESS))


def each(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Result]:
    """``[function(item) for item in items]``; function, items and results must be picklable.

    Processes, not threads: reading a scan redirects the whole process's stderr. They are spawned, because a
    fork of a process that runs PyTorch's threads may hang. ``progress`` gets (done, total). Raises ResourceError if a
    process was ended from outside.
    """
    count = workers_for(len(items), workers)
    results: dict[int, Result] = {}
    if count == 1:
        for index, item in enumerate(items):
            results[index] = function(item)
            progress(len(results), len(items))
    else:
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            with _ctrl_c_held():
                waiting = {pool.submit(function, item): index for index, item in enumerate(items)}
            try:
                for future in as_completed(waiting):
                    results[waiting[future]] = future.result()
                    progress(len(results), len(items))
            except BrokenProcessPool as error:
                raise ResourceError(
                    "a process that reads cases was ended from outside, most often because memory ran out; "
                    "go on with the same command and fewer --workers"
                ) from error
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    return [results[index] for index in range(len(items))]


@contextmanager
def _ctrl_c_held() -> Iterator[None]:
    """Processes that start meanwhile never hear of Ctrl-C, which a terminal tells to all; the caller does afterwards.

    It ends the others, and alone has something to say.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# Results that each process of ``ahead`` may have ready before they are asked for.
READY_PER_PROCESS = 2


def ahead(function: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[Result]:
    """``map(function, items)``, in order, by processes that go on while the caller works with what they gave.

    Processes, not threads: MONAI's transforms of a small crop are mostly Python, which one thread runs at a time
    (benchmarks/drawing.py). ``function`` is sent to each process once, and runs there on one core. Raises ResourceError
    if a process was ended from outside.
    """
    spawn = get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=spawn, initializer=_take, initargs=(function,))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            with _ctrl_c_held():
                waiting.append(pool.submit(_call, item))
            if len(waiting) > processes * READY_PER_PROCESS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ResourceError(
            "a process that draws crops was ended from outside, most often because memory ran out; "
            "go on with --resume and fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_function: Callable[[Any], Any] | None = None


def _take(function: Callable[[Any], Any]) -> None:
    import torch  # here: processes that prepare cases do without

    global _function
    _function = function
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as in training itself


def _call(item: Any) -> Any:
    assert _function is not None  # given when the process started
    return _function(item)
