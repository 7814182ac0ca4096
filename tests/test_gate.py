"""The gate: what it measures, worked out by hand, and what it lets pass."""

import re

import numpy as np
import pytest

from dropgen_rt.gate import JUDGED_VOXELS, LIMITS, judge
from dropgen_rt.golden import Golden


class Fixed:
    """An engine that answers with given logits, one window after the other."""

    name, version, device = "fixed", "1", "cpu"

    def __init__(self, logits, precision):
        self.logits, self.precision = list(logits), precision

    def infer(self, windows):
        assert len(windows) == 1
        return self.logits.pop(0)[None]


def one_hot(labels):
    """Logits (n, 3, …) of 0 and 1 whose arg-max is ``labels``."""
    return np.ascontiguousarray(np.moveaxis(np.eye(3, dtype=np.float32)[labels], -1, 1))


@pytest.fixture
def labels():
    """Two windows of 16^3: background, label 1 in a third of each, label 2 in 8 voxels of the first."""
    array = np.zeros((2, 16, 16, 16), np.uint8)
    array[:, :5] = 1
    array[0, 10:12, 10:12, 10:12] = 2
    return array


def golden_of(labels, step=1):
    logits = one_hot(labels)[:, :, ::step, ::step, ::step]
    return Golden(np.zeros((len(labels), 1, 16, 16, 16), np.float32), labels, logits, step, "made", "hand")


def test_the_same_logits_pass(labels, tiny):
    report = judge(Fixed(one_hot(labels), "fp32"), golden_of(labels), tiny.manifest())
    assert report.passed
    assert (report.largest_error, report.rms_error, report.agreement, report.dice) == (0, 0, 1, (1, 1))


def test_figures_by_hand(labels, tiny):
    flipped = labels.copy()
    flipped[1, 0, 0, :4] = 2  # four voxels of label 1 become label 2
    report = judge(Fixed(one_hot(flipped), "fp32"), golden_of(labels), tiny.manifest())
    ones = int((labels == 1).sum())
    assert report.agreement == 1 - 4 / labels.size
    assert report.dice == (2 * (ones - 4) / (2 * ones - 4), 2 * 8 / (8 + 12))
    assert report.largest_error == 1
    # each flipped voxel has two logits off by 1, of 3 * 4096 in that window; the other window has none
    assert report.rms_error == pytest.approx(np.sqrt(8 / (3 * 4096) / 2))


def test_an_offset_is_an_error_over_the_range(labels, tiny):
    report = judge(Fixed(one_hot(labels) + np.float32(0.25), "bf16"), golden_of(labels, step=3), tiny.manifest())
    assert report.passed
    assert report.largest_error == report.rms_error == 0.25


@pytest.mark.parametrize("precision", LIMITS)
def test_each_precision_has_its_own_limit_on_agreement(labels, tiny, precision):
    allowed = int((1 - LIMITS[precision].agreement) * labels.size)
    for flips, passed in ((allowed, True), (allowed + 1, False)):
        wrong = labels.copy()
        wrong.reshape(-1)[-flips:] = 2 if flips else wrong.reshape(-1)[-flips:]
        report = judge(Fixed(one_hot(wrong), precision), golden_of(labels), tiny.manifest())
        assert report.passed == passed, report.failures
    assert "label agreement" in report.failures[0]


def test_dice_is_judged_of_labels_large_enough(tiny):
    for size, passed in ((JUDGED_VOXELS - 1, True), (JUDGED_VOXELS, False)):
        labels = np.zeros((4, 32, 32, 32), np.uint8)
        labels.reshape(-1)[:size] = 1
        wrong = labels.copy()
        wrong.reshape(-1)[:30] = 0  # Dice about 0.96, agreement 0.9998
        report = judge(Fixed(one_hot(wrong), "fp16"), golden_of(labels), tiny.manifest())
        assert report.passed == passed
    assert report.failures[0].startswith("Dice of medium 0.9")
    assert report.dice[1] is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_fail(labels, tiny, value):
    logits = one_hot(labels)
    logits[1, 0, 3, 3, 3] = value
    report = judge(Fixed(logits, "fp16"), golden_of(labels), tiny.manifest())
    assert report.failures == ("logits are not finite",)
    assert report.lines(tiny.manifest())[-1] == "gate: FAILED: logits are not finite"


def test_the_table_that_is_printed(labels, tiny):
    lines = judge(Fixed(one_hot(labels), "bf16"), golden_of(labels), tiny.manifest()).lines(tiny.manifest())
    assert lines[0] == "gate: fixed bf16 against hand, 2 golden windows"
    assert lines[2] == "  label agreement  1.000000  (accepted from 0.998)"
    assert re.fullmatch(r"  time             \d+\.\d\d s a window", lines[3])
    assert lines[4:6] == ["  Dice 1.000000  medium", "  Dice 1.000000  bright"]
    assert lines[6].startswith(f"  not judged: bright, with fewer than {JUDGED_VOXELS} voxels in the golden windows; ")
    assert lines[7:] == ["gate: passed"]


def test_a_gate_that_could_judge_no_label_says_so(labels, tiny):
    labels[:] = 0
    *_, last = judge(Fixed(one_hot(labels), "bf16"), golden_of(labels), tiny.manifest()).lines(tiny.manifest())
    assert last.startswith("gate: passed by label agreement alone: the golden windows hold next to nothing")


def test_labels_that_the_golden_windows_hardly_show_are_named(labels, tiny):
    assert judge(Fixed(one_hot(labels), "bf16"), golden_of(labels), tiny.manifest()).unjudged == ("bright",)
    labels[:, 8:12] = 2
    assert judge(Fixed(one_hot(labels), "bf16"), golden_of(labels), tiny.manifest()).unjudged == ()
