"""What a machine may lack: tests that need it say so and are left out, except where CI asks for everything."""

import os

import pytest

REQUIRED = os.environ.get("DROPGEN_RT_PEERS") == "1"


def require(present: object, what: str) -> None:
    """Leave the test out, saying ``what`` to install; with DROPGEN_RT_PEERS=1, which CI sets, fail it."""
    if not present:
        (pytest.fail if REQUIRED else pytest.skip)(what)
