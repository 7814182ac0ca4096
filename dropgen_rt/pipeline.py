"""Several scans one after another: the next is read while one is computed and the last is written.

One process, two helping threads, bounded queues: at most one scan read ahead, at most one result being written. Order
in, order out. A refusal belongs to its item; the others go on.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from dropgen_rt.errors import DropgenError

Item = TypeVar("Item")
Read = TypeVar("Read")
Computed = TypeVar("Computed")
Written = TypeVar("Written")


@dataclass(frozen=True)
class Outcome(Generic[Item, Written]):
    """What became of one item: what ``write`` returned, or the refusal."""

    item: Item
    written: Written | None
    refusal: DropgenError | None = None


def overlapped(
    items: Sequence[Item],
    read: Callable[[Item], Read],
    compute: Callable[[Item, Read], Computed],
    write: Callable[[Item, Computed], Written],
) -> Iterator[Outcome[Item, Written]]:
    """Outcomes in the order of ``items``; ``compute`` runs in the calling thread, one at a time.

    An outcome comes when its result is written, so after the next item's computation where there is one. While the
    caller has an outcome in hand, nothing is read: reading silences standard error for the whole process. Exceptions
    that are no DropgenError end everything, after what is being written is finished.
    """
    with ThreadPoolExecutor(1, "reading") as reader, ThreadPoolExecutor(1, "writing") as writer:
        ahead: Future[Read] | None = None
        behind: tuple[Item, Future[Written] | DropgenError] | None = None
        for index, item in enumerate(items):
            own = ahead or reader.submit(read, item)
            ahead = None
            now: Future[Written] | DropgenError
            try:
                scan = own.result()
                ahead = reader.submit(read, items[index + 1]) if index + 1 < len(items) else None
                now = writer.submit(write, item, compute(item, scan))
                del scan
            except DropgenError as error:
                now = error
            if behind is not None:
                yield _settled(behind, ahead)
            behind = item, now
        if behind is not None:
            yield _settled(behind, None)


def _settled(
    behind: tuple[Item, "Future[Written] | DropgenError"], ahead: "Future[Read] | None"
) -> Outcome[Item, Written]:
    item, result = behind
    if ahead is not None:
        ahead.exception()  # waits
    if isinstance(result, DropgenError):
        return Outcome(item, None, result)
    try:
        return Outcome(item, result.result())
    except DropgenError as error:
        return Outcome(item, None, error)
