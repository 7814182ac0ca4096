"""Volumes, stages and the JSON of a record."""

import json

import numpy as np
import pytest

from dropgen_rt.geometry import Geometry
from dropgen_rt.manifest import Label
from dropgen_rt.record import LabelVolume, Record, Stopwatch, label_volumes

GRID = Geometry((4, 3, 2), (2.0, 5.0, 10.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
NAMES = tuple(Label(value, name, (value, 0, 0)) for value, name in enumerate(("a", "b", "c"), 1))


def test_volumes_by_hand():
    labels = np.zeros((2, 3, 4), np.uint8)
    labels[0, 0, :3], labels[1, 2, 3] = 1, 3
    # a voxel is 2 x 5 x 10 mm = 0.1 mL
    assert label_volumes(labels, GRID, NAMES) == (
        LabelVolume(1, "a", 3, pytest.approx(0.3)),
        LabelVolume(2, "b", 0, 0.0),  # absent, and listed
        LabelVolume(3, "c", 1, pytest.approx(0.1)),
    )


def test_volumes_of_many_labels():
    names = tuple(Label(value, str(value), (0, 0, 0)) for value in range(1, 301))
    labels = np.full((2, 3, 4), 300, np.uint16)
    assert [row.voxels for row in label_volumes(labels, GRID, names)] == [0] * 299 + [24]


def test_the_record_is_plain_json():
    labels = label_volumes(np.ones((2, 3, 4), np.uint8), GRID, NAMES)
    record = Record(
        input={"file": "größe.nii", "size": (4, 3, 2)}, model={}, engine={}, settings={}, windows=1, labels=labels,
        timings_s={"read": 0.5}, versions={"numpy": "2"}, warnings=("one", "two"),
    )  # fmt: skip
    text = record.to_json()
    assert text.endswith("}\n")
    known = json.loads(text, parse_constant=pytest.fail)
    assert known["labels"][0] == {"value": 1, "name": "a", "voxels": 24, "volume_ml": pytest.approx(2.4)}
    assert known["input"] == {"file": "größe.nii", "size": [4, 3, 2]}
    assert known["warnings"] == ["one", "two"]
    assert known["schema"] == "1.0"


def test_a_stopwatch_adds_up_and_keeps_the_order():
    watch = Stopwatch()
    for name in ("read", "network", "read"):
        with watch.stage(name):
            pass
    once = dict(watch.seconds)
    with pytest.raises(ValueError, match="stop"), watch.stage("read"):
        raise ValueError("stop")
    assert list(watch.seconds) == ["read", "network"]
    assert watch.seconds["read"] > once["read"] > 0
    assert watch.seconds["network"] == once["network"]
