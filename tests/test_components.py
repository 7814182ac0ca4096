"""The largest connected component, against a flood fill, and what a person is told of the rest."""

import subprocess
import sys
from collections import deque
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropgen_rt.components import BYTES_PER_VOXEL, DOUBTFUL_SHARE, Apart, doubt, keep_largest_component

NEIGHBOURS = [step for step in product((-1, 0, 1), repeat=3) if any(step)]


def flooded(labels):
    """The components of a map (z, y, x), each a set of voxels, in the order of their first voxels."""
    left = dict.fromkeys(map(tuple, np.argwhere(labels).tolist()))
    while left:
        waiting = deque([next(iter(left))])
        del left[waiting[0]]
        component = set(waiting)
        while waiting:
            voxel = waiting.popleft()
            for step in NEIGHBOURS:
                other = tuple(a + b for a, b in zip(voxel, step, strict=True))
                if other in left:
                    del left[other]
                    component.add(other)
                    waiting.append(other)
        yield component


@settings(deadline=None)
@given(
    st.tuples(*[st.integers(1, 7)] * 3), st.floats(0, 0.6), st.integers(0, 2**32 - 1),
    st.sampled_from([np.uint8, np.uint16]), st.booleans(),
)  # fmt: skip
def test_against_a_flood_fill(shape, share, seed, dtype, turned):
    rng = np.random.default_rng(seed)
    labels = (rng.integers(1, 4, shape) * (rng.random(shape) < share)).astype(dtype)
    labels = labels.T if turned else labels  # rows that do not lie in memory one after another
    components = list(flooded(labels))
    expected = np.zeros_like(labels)
    for voxel in max(components, key=len, default=set()):  # of equal ones the first
        expected[voxel] = labels[voxel]
    voxels, before = np.count_nonzero(labels), set(labels.ravel().tolist())
    apart = keep_largest_component(labels)
    assert np.array_equal(labels, expected)
    assert apart.share == pytest.approx(1 - np.count_nonzero(expected) / voxels if voxels else 0)
    assert set(apart.lost) == before - set(expected.ravel().tolist())


def test_labels_that_touch_are_one_component():
    """Per label the two voxels of the first would be two components; as one foreground nothing is lost."""
    labels = np.array([[[1, 2, 1, 0, 3]]], np.uint8)
    assert keep_largest_component(labels) == Apart(0.25, (3,))
    assert labels.tolist() == [[[1, 2, 1, 0, 0]]]


NAMES = ["liver", "kidneys", "spleen"]


def test_more_is_said_than_specks_alone():
    said = "of what was labelled lay apart from its largest component and was left out"
    assert doubt(Apart(), NAMES) == doubt(Apart(DOUBTFUL_SHARE), NAMES) == ()
    assert doubt(Apart(0.454), NAMES) == (f"45% {said}: --components all",)
    assert doubt(Apart(0.018, (1, 3)), NAMES) == (f"2% {said}, all of liver, spleen: --components all",)


FIND = """
import numpy as np
from dropgen_rt.components import keep_largest_component
from dropgen_rt.memory import peak_resident_bytes, reset_peak, resident_bytes

keep_largest_component(np.ones((8, 8, 8), np.uint8))
labels = np.ones((200, 200, 200), np.uint8)
labels[np.random.default_rng(0).random(labels.shape) < 0.01] = 0
reset_peak()
before = resident_bytes()
keep_largest_component(labels)
print((peak_resident_bytes() - before) / labels.size)
"""


def test_memory_is_counted():
    """In a process of its own: what earlier tests left behind may go meanwhile, and hide what this takes."""
    done = subprocess.run([sys.executable, "-c", FIND], capture_output=True, text=True, check=True)
    assert BYTES_PER_VOXEL / 2 < float(done.stdout) < BYTES_PER_VOXEL
