"""Scans one after another, where the next is read and the last one written while one is computed.

    read       0  1  2
    compute       0  1  2
    write            0  1  2

At most one scan is read ahead and at most one is being written. Results, and the order in which they are told, are
those of doing everything in turn.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from dropgen_rt.errors import DropgenError

Job = TypeVar("Job")
Read = TypeVar("Read")
Made = TypeVar("Made")


class Stages(Generic[Job, Read, Made]):
    """What is done with a job. ``read`` and ``write`` may run in threads of their own, ``compute`` and ``done`` do not.

    ``compute(job, read, start_next)`` calls ``start_next`` when reading the next scan may begin; it begins afterwards
    at the latest. ``done(job, error)`` comes in the order of the jobs, with what refused the job or None.
    """

    def __init__(
        self,
        read: Callable[[Job], Read],
        compute: Callable[[Job, Read, Callable[[], None]], Made],
        write: Callable[[Job, Made], None],
        done: Callable[[Job, DropgenError | None], None],
    ) -> None:
        self.read, self.compute, self.write, self.done = read, compute, write, done


def in_turn(jobs: Sequence[Job], stages: Stages[Job, Read, Made]) -> None:
    """One scan wholly after another. Another exception than a DropgenError ends it."""
    for job in jobs:
        error = None
        try:
            stages.write(job, stages.compute(job, stages.read(job), lambda: None))
        except DropgenError as failure:
            error = failure
        stages.done(job, error)


def overlapped(jobs: Sequence[Job], stages: Stages[Job, Read, Made]) -> None:
    """The same with reading ahead and writing behind."""
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        reads = _Ahead(jobs, stages.read, reader)
        writing: tuple[Job, Future[None]] | None = None
        for job in jobs:
            error = None
            try:
                made = stages.compute(job, reads.take(), reads.start)
            except DropgenError as failure:
                error = failure
            reads.start()
            _finish(writing, stages.done)
            writing = None
            if error is not None:
                stages.done(job, error)
            else:
                writing = (job, writer.submit(stages.write, job, made))
                del made  # it goes when it is written, not when the next one is computed
        _finish(writing, stages.done)


class _Ahead(Generic[Job, Read]):
    """Reads jobs in order, each once, at most one ahead of those that were taken."""

    def __init__(self, jobs: Sequence[Job], read: Callable[[Job], Read], pool: ThreadPoolExecutor) -> None:
        self._left, self._read, self._pool = iter(jobs), read, pool
        self._reading: Future[Read] | None = None
        self.start()

    def start(self) -> None:
        """Begin with the next job, unless one is waiting to be taken or none is left."""
        if self._reading is None:
            for job in self._left:
                self._reading = self._pool.submit(self._read, job)
                break

    def take(self) -> Read:
        """What the next job's reading gave. Raises what it raised."""
        assert self._reading is not None
        reading, self._reading = self._reading, None
        return reading.result()


def _finish(writing: tuple[Job, Future[None]] | None, done: Callable[[Job, DropgenError | None], None]) -> None:
    if writing is None:
        return
    job, future = writing
    error = future.exception()
    if error is not None and not isinstance(error, DropgenError):
        raise error
    done(job, error)
