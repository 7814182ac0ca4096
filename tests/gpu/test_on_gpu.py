"""Every kernel on a real GPU against its definition; the same cases run on the CPU in tests/kernels."""

import shutil

import numpy as np
import pytest
from gpu_cases import CASES

from dropgen_rt.gpu import open_device
from dropgen_rt.gpu.images import load_kernels
from dropgen_rt.kernels.architectures import THREADS_PER_BLOCK

pytestmark = pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA driver on this machine")


@pytest.fixture(scope="module")
def device():
    device = open_device(0)
    load_kernels(device)
    yield device
    device.close()


@pytest.mark.parametrize("name", CASES)
def test_equals_the_definition(device, name):
    for seed in range(20):
        CASES[name](device, np.random.default_rng(seed), THREADS_PER_BLOCK)
