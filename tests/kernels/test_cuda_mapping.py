"""The CUDA files, run thread by thread on the CPU against the NumPy definitions: mapping and arithmetic."""

import numpy as np
import pytest
from cuda_on_host import CXX, HostDevice, build
from gpu_cases import CASES, accumulate_of

from dropgen_rt.kernels.architectures import ENTRY_POINTS

pytestmark = pytest.mark.skipif(CXX is None, reason="no g++ to run the CUDA files on the CPU")

# Small blocks, so that planes need several of them and the last one has idle warps.
THREADS = 64


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> HostDevice:
    return HostDevice(build(tmp_path_factory.mktemp("cuda_on_host")))


def test_every_entry_point_has_a_case():
    assert set(CASES) == {entry for entries in ENTRY_POINTS.values() for entry in entries}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(36))
def test_equals_the_definition(device, name, seed):
    CASES[name](device, np.random.default_rng(seed), THREADS)
    assert not device.held


def test_windows_beside_the_box_of_the_others_are_not_read(device):
    """They cover rows of the box, and end before it or begin after it along x: a GPU once read beyond the logits."""
    starts = np.array([(-11, -4, -16), (0, 0, -7), (-9, -1, 17)], np.int32)
    accumulate_of(device, np.random.default_rng(0), THREADS, 3, (2, 2, 17), (12, 5, 17), starts, "f32")
