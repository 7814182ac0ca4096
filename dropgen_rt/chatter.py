"""What the C++ libraries below SimpleITK print to standard error, kept from it; and a way to speak meanwhile."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class _Silence:
    """Standard error of the whole process led away while any thread is inside; the last one out brings it back."""

    def __init__(self) -> None:
        self.changed, self.inside, self.kept = threading.Condition(), 0, -1

    def enter(self) -> None:
        with self.changed:
            self.inside += 1
            if self.inside > 1:
                return
            try:
                sys.stderr.flush()
                self.kept = os.dup(2)
            except (OSError, AttributeError):  # a service may run without stderr
                self.kept = -1
                return
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), 2)

    def leave(self) -> None:
        with self.changed:
            self.inside -= 1
            if not self.inside:
                if self.kept >= 0:
                    os.dup2(self.kept, 2)
                    os.close(self.kept)
                self.changed.notify_all()


_SILENCE = _Silence()


@contextmanager
def without_chatter() -> Iterator[None]:
    """The C++ libraries below SimpleITK print to stderr whatever it is told; the exception says enough."""
    _SILENCE.enter()
    try:
        yield
    finally:
        _SILENCE.leave()


@contextmanager
def heard() -> Iterator[None]:
    """Waits until no thread is inside ``without_chatter``, and keeps them out: what is said now reaches stderr."""
    with _SILENCE.changed:
        _SILENCE.changed.wait_for(lambda: not _SILENCE.inside)
        yield
