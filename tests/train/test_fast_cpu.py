"""What is asked of a process that trains, and what of it stays."""

import os
import resource
import subprocess
import sys

import pytest
import torch

from dropgen_rt.train.fast_cpu import fast_cpu
from dropgen_rt.train.parallel import cores

# A volume of 2 x 16 x 66^3 fp32 values.
VALUES = 2 * 16 * 66**3


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, 8), ({"OMP_NUM_THREADS": "3"}, 3), ({"OMP_NUM_THREADS": ""}, 8), ({"OMP_NUM_THREADS": "0"}, 8),
        ({"OMP_NUM_THREADS": " 2,1"}, 2), ({"OMP_NUM_THREADS": "9" * 14}, 8), ({"OMP_NUM_THREADS": "1"}, 1),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, 4), ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "3"}, 3),
        ({"LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}, 1), ({"LOCAL_WORLD_SIZE": "16"}, 1),
    ],
)  # fmt: skip
def test_threads(environment: dict[str, str], wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of eight cores stands in for this machine's; the threads that PyTorch then takes are real."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = torch.get_num_threads()
    with fast_cpu():
        assert torch.get_num_threads() == wanted
        assert cores() == max(8 // int(environment.get("LOCAL_WORLD_SIZE", "1")), 1)  # processes that draw crops
    assert torch.get_num_threads() == before


MEASURE = """
import resource
from pathlib import Path
import torch
from dropgen_rt.train.fast_cpu import fast_cpu

def pages_cleared():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros({values}).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    return int(Path("/proc/self/statm").read_text().split()[1])

print(pages_cleared(), held())
with fast_cpu():
    pages_cleared()
    with fast_cpu():
        pass
    pages_cleared()
    print(pages_cleared(), held())
print(0, held())
"""


def test_memory_is_kept_and_given_back() -> None:
    """In a process of its own, where no other test has left memory: ten volumes that come and go one at a time."""
    usual_malloc = {name: value for name, value in os.environ.items() if "MALLOC" not in name and "GLIBC" not in name}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(values=VALUES)],
        capture_output=True,
        text=True,
        check=True,
        env=usual_malloc,
    )
    (usual, before), (kept, within), (_, after) = (map(int, line.split()) for line in done.stdout.splitlines())
    pages = VALUES * 4 // resource.getpagesize()
    assert kept <= usual / 5
    assert within >= before + pages // 2 >= after
