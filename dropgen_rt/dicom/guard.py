"""Work on bytes of unknown origin in a child process with limits on memory, processor time and silence.

The child is forked, so it starts in milliseconds and shares what is imported and mapped already; what a
file makes it do (unpack without end, recurse, crash in a decoder) ends with it and becomes one refusal.
"""

import faulthandler
import gc
import json
import multiprocessing
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dropgen_rt.errors import ResourceError


@dataclass(frozen=True)
class Limits:
    """``memory_bytes`` on top of what the parent holds, ``cpu_s`` in all, ``silence_s`` between two answers."""

    memory_bytes: int
    cpu_s: int
    silence_s: float = 60.0


#: Children at work at once: reading files is as much the disk's work as theirs.
MAX_CHILDREN = 4

#: Fewer items than this are not worth a second child.
SMALLEST_SHARE = 16


class GuardError(Exception):
    """The child ended, or was ended, before its work was done. ``done`` answers had come; the text says why."""

    def __init__(self, done: int, reason: str) -> None:
        super().__init__(reason)
        self.done = done


def guarded(work: Callable[[Any], Any], items: Sequence[Any], limits: Limits) -> Iterator[Any]:
    """``work(item)`` for each item, in a child process that starts at once; answers must be JSON.

    An exception in ``work`` is the child's end; what can be refused file by file is an answer. Raises
    ResourceError, and GuardError as the answers are taken.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, list(items), sender, limits), daemon=True)
    try:
        with warnings.catch_warnings():
            # Threads of an engine do not live in the child, and nothing there waits for them.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
    except OSError as error:
        raise ResourceError(f"cannot start a process to read DICOM: {error.strerror}; close other programs") from error
    sender.close()
    return _closing(receiver, process, limits)


def in_parallel(work: Callable[[Any], Any], items: Sequence[Any], limits: Limits) -> Iterator[Any]:
    """Like ``guarded``, the items dealt out to one child per processor; answers in the order of the items."""
    share = -(-len(items) // min(MAX_CHILDREN, len(os.sched_getaffinity(0))))
    share = max(share, SMALLEST_SHARE)
    starts = range(0, len(items), share)
    running = [guarded(work, items[start : start + share], limits) for start in starts]
    return _joined(running, starts)


def _joined(running: list[Iterator[Any]], starts: range) -> Iterator[Any]:
    with ThreadPoolExecutor(len(running)) as pool:  # a thread each, or a child whose pipe is full would wait
        for (answers, error), start in zip(pool.map(_collected, running), starts, strict=True):
            yield from answers
            if error is not None:
                raise GuardError(start + error.done, str(error)) from error


def _collected(answers: Iterator[Any]) -> tuple[list[Any], GuardError | None]:
    found: list[Any] = []
    try:
        found.extend(answers)
    except GuardError as error:
        return found, error
    return found, None


def _closing(receiver: Connection, process: Any, limits: Limits) -> Iterator[Any]:
    try:
        yield from _answers(receiver, process, limits)
    finally:
        process.kill()
        process.join()
        receiver.close()


def _answers(receiver: Connection, process: Any, limits: Limits) -> Iterator[Any]:
    done = 0
    while True:
        if not receiver.poll(limits.silence_s):
            raise GuardError(done, f"no progress in {limits.silence_s:g} s")
        try:
            answer = json.loads(receiver.recv_bytes())
        except EOFError:
            process.join()
            raise GuardError(done, _ending(process.exitcode, limits)) from None
        if answer is None:
            return
        yield answer
        done += 1


def _ending(code: int | None, limits: Limits) -> str:
    if code == _OUT_OF_MEMORY:
        return f"it needs more than {limits.memory_bytes / 2**30:.3g} GiB of memory"
    if code == -signal.SIGXCPU or code == -signal.SIGKILL:
        return f"it needs more than {limits.cpu_s} s of processor time, or more memory than there is"
    return "the DICOM library failed on it"


_OUT_OF_MEMORY = 71


def _child(work: Callable[[Any], Any], items: list[Any], sender: Connection, limits: Limits) -> None:
    """Never returns: neither the parent's exit handlers nor its traceback printing may run here."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        gc.freeze()  # what the parent holds is not this child's to collect
        _silence()
        _limit(limits)
        for item in items:
            sender.send_bytes(json.dumps(work(item)).encode())
        sender.send_bytes(b"null")
        code = 0
    except MemoryError:
        code = _OUT_OF_MEMORY
    except BaseException:  # noqa: S110  the parent says what happened; a traceback could quote the file
        pass
    finally:
        os._exit(code)


def _limit(limits: Limits) -> None:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, wanted in ((resource.RLIMIT_AS, held + limits.memory_bytes), (resource.RLIMIT_CPU, limits.cpu_s)):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _silence() -> None:
    """Decoders print what they think of a file, sometimes with its contents."""
    warnings.simplefilter("ignore")
    faulthandler.disable()
    nowhere = Path(os.devnull).open("w")  # noqa: SIM115  it stays open as long as the child lives
    sys.stdout = sys.stderr = nowhere
    os.dup2(nowhere.fileno(), 1)
    os.dup2(nowhere.fileno(), 2)
