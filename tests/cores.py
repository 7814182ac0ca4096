"""When several processes share out the tests, each keeps to cores of its own.

Engines and training take every core they see, and two of them on the same cores are many times slower than one after
the other. Imported before anything that counts cores when it loads.
"""

import os


def share_of(worker: str, workers: int, cores: list[int]) -> list[int]:
    """The cores of pytest-xdist's ``worker``, "gw0" to "gwN": those that no other has, or one, if there are too few."""
    place = int(worker.removeprefix("gw"))
    return cores[place::workers] or [cores[place % len(cores)]]


if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    count, cores = int(os.environ["PYTEST_XDIST_WORKER_COUNT"]), sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, share_of(worker, count, cores))
