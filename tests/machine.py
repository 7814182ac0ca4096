"""What a machine may lack: tests that need it say so and are left out, except where CI asks for everything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

REQUIRED = os.environ.get("DROPGEN_RT_PEERS") == "1"


def require(present: object, what: str) -> None:
    """Leave the test out, saying ``what`` to install; with DROPGEN_RT_PEERS=1, which CI sets, fail it."""
    if not present:
        (pytest.fail if REQUIRED else pytest.skip)(what)


@contextmanager
def without_rights_of_root() -> Iterator[None]:
    """What is closed to everybody is closed to a test, though it runs as root."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(mine)
