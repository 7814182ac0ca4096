"""How many threads the host kernels use, while a test asks for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dropgen_rt.kernels import set_threads


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    set_threads(count)
    try:
        yield
    finally:
        set_threads(0)


def assert_same_bits(work: Callable[[], bytes]) -> None:
    """What ``work`` makes with one thread and with two."""
    with using_threads(1):
        one = work()
    with using_threads(2):
        assert work() == one
