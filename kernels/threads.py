"""How many threads the host kernels use."""

import os

from dropgen_rt.kernels import _host


def threads() -> int:
    """The number of threads the host kernels use: what ``set_threads`` said, else OpenMP's choice."""
    return _host.threads()


def set_threads(count: int) -> None:
    """Let the host kernels use ``count`` threads, or OpenMP's choice if 0; results do not depend on it.

    Raises ValueError if ``count`` is negative.
    """
    if count < 0:
        raise ValueError(f"threads must be 0 or more, not {count}")
    _host.set_threads(count)


# A forked child inherits OpenMP's list of threads but not the threads: it would wait for them for ever.
os.register_at_fork(after_in_child=lambda: set_threads(1))
