import numpy as np
import pytest

from dropgen_rt.errors import DeviceMemoryError
from dropgen_rt.gpu.buffers import PinnedArrays


class Pins:
    """Stands in for a GPU's driver: plain memory that is counted, and no more than ``most`` blocks of it."""

    def __init__(self, most=10):
        self.blocks, self.most = [], most

    def pinned(self, shape, dtype):
        if len(self.blocks) == self.most:
            raise DeviceMemoryError("no more")
        self.blocks.append(np.zeros(shape, dtype))
        return self.blocks[-1]

    def holds(self, array):
        return any(np.shares_memory(array, block) for block in self.blocks)


@pytest.fixture
def device():
    return Pins()


def test_memory_comes_back_with_the_last_view(device):
    arrays = PinnedArrays(device)
    first = arrays.empty((4, 3, 2), np.uint16)
    assert first.shape == (4, 3, 2) and first.dtype == np.uint16 and first.flags.writeable and device.holds(first)
    view = first[1:].reshape(-1)
    del first
    second = arrays.empty((4, 3, 2), np.uint16)
    assert not np.shares_memory(view, second) and len(device.blocks) == 2
    del view, second
    third, fourth = arrays.empty((2,), np.float32), arrays.empty((12,), np.float32)
    assert len(device.blocks) == 2 and not np.shares_memory(third, fourth)


def test_a_larger_array_takes_new_memory(device):
    arrays = PinnedArrays(device)
    arrays.empty((10,), np.uint8)
    assert device.holds(arrays.empty((16,), np.uint8)) and [block.size for block in device.blocks] == [16]
    assert device.holds(arrays.empty((17,), np.uint8)) and [block.size for block in device.blocks] == [16, 32]


def test_beyond_the_limit_memory_is_plain(device):
    arrays = PinnedArrays(device, most_bytes=100)
    held = [arrays.empty((size,), np.uint8) for size in (60, 60, 30)]
    assert [device.holds(array) for array in held] == [True, False, True]


def test_where_the_machine_pins_no_more_memory_is_plain():
    device = Pins(most=1)
    arrays = PinnedArrays(device)
    held = [arrays.empty((3, 2), np.float32), arrays.empty((3, 2), np.float32)]
    assert [device.holds(array) for array in held] == [True, False]
    held.clear()
    assert device.holds(arrays.empty((3, 2), np.float32))


def test_an_empty_array(device):
    assert PinnedArrays(device).empty((0, 3), np.float32).shape == (0, 3)
