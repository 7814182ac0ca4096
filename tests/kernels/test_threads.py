import multiprocessing
import os

import numpy as np
import pytest
from host_threads import using_threads

from dropgen_rt.kernels import Normalisation, gather, set_threads, threads


def test_set_threads():
    with using_threads(3):
        assert threads() == 3
    assert threads() >= 1


def test_refuses_a_negative_number():
    with pytest.raises(ValueError, match="threads must be 0 or more, not -1"):
        set_threads(-1)


def gather_once() -> None:
    volume = np.ones((1, 8, 8, 8), dtype=np.float32)
    gather(volume, np.zeros((1, 3), dtype=np.int32), (8, 8, 8), Normalisation.identity())


def gather_and_leave() -> None:
    gather_once()
    os._exit(0 if threads() == 1 else 1)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_call_a_kernel():
    # data loaders fork; OpenMP's threads do not survive that, and waiting for them would never end
    with using_threads(2):
        gather_once()
        child = multiprocessing.get_context("fork").Process(target=gather_and_leave)
        child.start()
        child.join(timeout=20)
        child.kill()
        child.join()
        assert child.exitcode == 0
