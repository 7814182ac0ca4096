import json
import subprocess
import sys

import pytest

from dropgen_rt.components import BYTES_PER_VOXEL, COMPONENTS
from dropgen_rt.errors import MemoryLimitError, UsageError
from dropgen_rt.memory import (
    MemoryPlan,
    available_bytes,
    in_option,
    parse_bytes,
    peak_resident_bytes,
    plan_memory,
    resident_bytes,
)
from dropgen_rt.windows import WindowPlan


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4G", 4 * 2**30), ("1.5 GiB", 3 * 2**29), ("800mb", 800 * 2**20), ("123", 123), ("2k", 2048)],
)
def test_sizes(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "-4G", "4 gallons", "0", "G"])
def test_sizes_that_are_none(text):
    with pytest.raises(UsageError, match="accepted is a number with K, M, G or T, such as 4G"):
        parse_bytes(text)


def test_a_limit_below_the_peak_is_refused_with_the_number_needed():
    plan = MemoryPlan(2**30, {"sums": 2**31})
    plan.require(3 * 2**30, 2**31)
    with pytest.raises(
        MemoryLimitError, match=r"needs 3.00 GB of memory, --memory allows 2.99 GB; give --memory 3072M"
    ):
        plan.require(3 * 2**30 - 2**23)
    with pytest.raises(MemoryLimitError, match=r"only 1.00 GB more are free; close other programs"):
        plan.require(None, 2**30)
    assert MemoryLimitError.exit_code == 6
    assert parse_bytes(in_option(plan.peak)) == plan.peak
    assert plan.line() == "memory: 3.00 GB at most, of which 1.00 GB now (sums 2.00 GB)"


def test_the_machine_says_what_it_has():
    assert 2**20 < resident_bytes() <= peak_resident_bytes() + 2**20
    assert available_bytes() > 0


ROLL = """
import json
import numpy as np
from dropgen_rt.kernels import AxisMap, Normalisation
from dropgen_rt.memory import peak_resident_bytes, plan_memory, reset_peak, resident_bytes
from dropgen_rt.slide import roll
from dropgen_rt.windows import WindowPlan

shape, window, classes = (200, 100, 100), (16, 32, 32), 104
logits = np.random.default_rng(0).random((1, classes, *window), dtype=np.float32)
image = np.random.default_rng(1).random((1, *shape), dtype=np.float32)
plan, maps = WindowPlan.cover(shape, window, 0.5), tuple(AxisMap.identity(size) for size in shape)
reset_peak()
predicted = plan_memory(
    plan, shape, channels=1, classes=classes, batch=1, probabilities=False, resident=resident_bytes()
)
roll(image, plan, Normalisation.identity(), lambda windows: logits, classes, maps)
print(json.dumps({"taken": peak_resident_bytes() - predicted.resident, "parts": predicted.parts}))
"""


def test_the_peak_of_the_slab_is_predicted():
    """104 classes over 200 planes: the whole volume's sums would be twelve times the slab's.

    Random logits stand in for a network's. In a process of its own: what earlier tests left behind may go while the
    road runs, and hide what it takes.
    """
    done = subprocess.run([sys.executable, "-c", ROLL], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    # The image is there already, and nothing is turned afterwards: count what the road makes.
    parts = sum(found["parts"][name] for name in ("sums", "windows", "labels"))
    assert found["taken"] == pytest.approx(parts, rel=0.15)
    assert found["parts"]["sums"] == 4 * 104 * 17 * 100 * 100


@pytest.mark.parametrize("probabilities", [False, True])
def test_labels_are_turned_in_the_place_of_what_rolled(probabilities):
    """Of a native grid far larger than the model's, turning is the peak; of a like one it needs nothing more."""
    plan = WindowPlan.cover((40, 40, 40), (32, 32, 32), 0.5)
    like, large = (
        plan_memory(
            plan, shape, channels=1, classes=3, batch=1, probabilities=probabilities, resident=0, skips_air=False
        )
        for shape in ((40, 40, 40), (400, 400, 400))
    )
    found = (1 + 4 * probabilities) * 400**3
    assert large.peak == 2 * found
    assert like.parts["labels turned to the scan's axes"] == 0


def test_components_are_found_in_the_place_of_what_rolled():
    plan = WindowPlan.cover((40, 40, 40), (32, 32, 32), 0.5)
    known = {"channels": 1, "classes": 3, "batch": 1, "probabilities": False, "resident": 0}
    peaks = [plan_memory(plan, (400,) * 3, components=components, **known).peak for components in COMPONENTS]
    assert peaks == [2 * 400**3, (1 + BYTES_PER_VOXEL) * 400**3]
