"""Which cores each of the processes that share out the tests keeps to."""

import os

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


def test_this_process_keeps_to_its_share():
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:
        workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        assert len(os.sched_getaffinity(0)) <= -(-len(range(os.cpu_count() or 1)) // workers)
