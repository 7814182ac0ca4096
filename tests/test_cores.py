"""Which cores each of the processes that share out the tests keeps to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cores import share_of


@pytest.mark.parametrize(
    ("worker", "workers", "cores", "own"),
    [
        ("gw0", 2, [0, 1], [0]),
        ("gw1", 2, [0, 1], [1]),
        ("gw1", 2, [4, 5, 6, 7, 9], [5, 7]),
        ("gw0", 1, [0, 1], [0, 1]),
        ("gw2", 3, [3, 8], [3]),
    ],
)
def test_cores_are_shared_out(worker, workers, cores, own):
    assert share_of(worker, workers, cores) == own


def test_a_worker_takes_its_share_when_it_imports_this():
    own = sorted(os.sched_getaffinity(0))
    told = {"PYTEST_XDIST_WORKER": "gw0", "PYTEST_XDIST_WORKER_COUNT": str(len(own) + 1)}
    line = "import cores, os; print(sorted(os.sched_getaffinity(0)))"
    run = subprocess.run(
        [sys.executable, "-c", line], env=os.environ | told, cwd=Path(__file__).parent, capture_output=True, check=True
    )
    assert run.stdout.decode().strip() == str(own[:1])
