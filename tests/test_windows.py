"""Where windows go: the drawn example, MONAI's own placement, and weights counted by brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import dense_patch_slices
from monai.inferers.utils import _get_scan_interval
from tolerances import WEIGHT_TOTAL

from dropgen_rt.errors import UsageError
from dropgen_rt.windows import BLENDS, SMALLEST_WEIGHT, WindowPlan, axis_totals, axis_weights

EDGES = st.tuples(*[st.integers(1, 14)] * 3)
OVERLAPS = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.625, 0.75, 0.9])
PLANS = st.builds(WindowPlan.cover, st.tuples(*[st.integers(1, 40)] * 3), EDGES, OVERLAPS)


@pytest.mark.parametrize(
    ("size", "edge", "overlap", "starts"),
    [
        (10, 4, 0.5, (0, 2, 4, 6)),  # the one drawn in windows.py
        (11, 4, 0.5, (0, 2, 4, 6, 7)),  # the last one is pulled back
        (10, 4, 0.0, (0, 4, 6)),
        (10, 5, 0.0, (0, 5)),
        (10, 4, 0.75, (0, 1, 2, 3, 4, 5, 6)),
        (10, 4, 0.99, (0, 1, 2, 3, 4, 5, 6)),  # at least one voxel at a time
        (4, 4, 0.5, (0,)),
        (3, 4, 0.5, (0,)),  # one voxel of padding: behind
        (2, 4, 0.5, (-1,)),
        (1, 4, 0.5, (-1,)),
        (1, 16, 0.5, (-7,)),
    ],
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_starts_along_one_axis(axis, size, edge, overlap, starts):
    shape, window = [1, 1, 1], [1, 1, 1]
    shape[axis], window[axis] = size, edge
    plan = WindowPlan.cover(tuple(shape), tuple(window), overlap)
    assert plan.axis_starts[axis] == starts
    assert [plan.axis_starts[other] for other in range(3) if other != axis] == [(0,), (0,)]


@pytest.mark.parametrize(
    ("size", "edge", "overlap", "body", "starts"),
    [
        (10, 4, 0.5, (4, 9), (0, 4, 5, 9)),  # the one drawn in windows.py
        (10, 4, 0.5, (0, 10), (0, 2, 4, 6)),  # all of the axis
        (12, 4, 0.25, (0, 12), (0, 2, 5, 8)),  # as evenly as whole voxels allow
        (10, 4, 0.5, (4, 6), (-1, 3, 7)),  # smaller than a window: in its middle
        (10, 4, 0.5, (0, 1), (0, 4, 8)),  # as far as the image allows
        (10, 4, 0.5, (9, 10), (-2, 2, 6)),
        (4, 4, 0.5, (1, 2), (0,)),  # an image no longer than the window
        (3, 5, 0.5, (1, 2), (-1,)),
    ],
)
def test_starts_around_a_body(size, edge, overlap, body, starts):
    plan = WindowPlan.cover((size, 1, 1), (edge, 1, 1), overlap).around((body, (0, 1), (0, 1)), overlap)
    assert plan.axis_starts == (starts, (0,), (0,))


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 60), st.integers(1, 14), OVERLAPS)
def test_only_windows_over_a_body_hold_any_of_it(data, size, edge, overlap):
    first = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(first + 1, size))
    scan = WindowPlan.cover((size,) * 3, (edge,) * 3, overlap)
    starts = np.array(scan.around(((first, last),) * 3, overlap).axis_starts[1])
    over = starts[(starts < last) & (starts + edge > first)]
    assert len(over) <= max(len(WindowPlan.cover((last - first,) * 3, (edge,) * 3, overlap).axis_starts[0]), 1)
    steps = np.diff(over)
    assert not len(steps) or (steps.max() <= max(edge * (1 - overlap), 1) and np.ptp(steps) <= 1)
    covered = (starts[:, None] <= np.arange(size)) & (np.arange(size) < starts[:, None] + edge)
    assert covered.any(axis=0).all() and (np.diff(starts) > 0).all()
    # What lies beside them touches neither the body nor them.
    beside = ~np.isin(starts, over)
    assert (covered[beside].sum(axis=0) + covered[~beside].any(axis=0) <= 1).all() or size <= edge


def test_windows_are_counted_with_z_slowest():
    plan = WindowPlan.cover((2, 1, 3), (1, 1, 2), 0.0)
    assert plan.starts.tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]
    assert plan.starts.dtype == np.int32
    assert len(plan) == 4


@settings(max_examples=150, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 3), EDGES, OVERLAPS)
def test_starts_are_those_of_monai(shape, window, overlap):
    padding = [max(edge - size, 0) for size, edge in zip(shape, window, strict=True)]
    padded = [size + pad for size, pad in zip(shape, padding, strict=True)]
    interval = _get_scan_interval(padded, window, 3, [overlap] * 3)
    slices = dense_patch_slices(padded, window, interval)
    expected = [[part.start - pad // 2 for part, pad in zip(some, padding, strict=True)] for some in slices]
    assert WindowPlan.cover(shape, window, overlap).starts.tolist() == expected


@settings(max_examples=60, deadline=None)
@given(PLANS, st.sampled_from(BLENDS))
def test_totals_are_the_weights_added_up_one_by_one(plan, blend):
    weights = tuple(axis_weights(edge, blend) for edge in plan.window)
    z, y, x = (table.astype(np.float64) for table in weights)
    patch = z[:, None, None] * y[:, None] * x
    # with a margin of a window on all sides, so that padding needs no thought
    volume = np.zeros([size + 2 * edge for size, edge in zip(plan.shape, plan.window, strict=True)])
    for start in plan.starts:
        place = tuple(slice(s + e, s + 2 * e) for s, e in zip(start, plan.window, strict=True))
        volume[place] += patch
    inside = volume[tuple(slice(e, e + n) for e, n in zip(plan.window, plan.shape, strict=True))]
    z, y, x = axis_totals(plan, weights)
    totals = z[:, None, None] * y[:, None] * x
    assert totals.shape == plan.shape and totals.dtype == np.float32
    assert (inside > 0).all()  # every voxel is covered
    if blend == "constant":
        assert np.array_equal(totals, inside)
    else:
        assert np.abs(totals / inside - 1).max() <= WEIGHT_TOTAL


@pytest.mark.parametrize("edge", [1, 2, 7, 48])
def test_a_gaussian_is_symmetric_peaked_and_nowhere_zero(edge):
    weights = axis_weights(edge, "gaussian")
    assert weights.dtype == np.float32 and weights.shape == (edge,)
    assert np.array_equal(weights, weights[::-1])
    assert (np.diff(weights[: (edge + 1) // 2]) >= 0).all()
    assert weights.min() >= np.float32(SMALLEST_WEIGHT)
    assert weights.max() <= 1


def test_a_gaussian_has_the_width_of_nnunet_and_monai():
    # one sigma, an eighth of the edge, from the middle of an odd edge
    assert axis_weights(81, "gaussian")[[40, 30]] == pytest.approx([1, np.exp(-0.5 * (10 / (81 / 8)) ** 2)])


def test_a_constant_is_one():
    assert axis_weights(5, "constant").tolist() == [1] * 5


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 1.5, float("nan")])
def test_an_overlap_out_of_range_is_refused(overlap):
    with pytest.raises(UsageError, match="accepted is a number from 0 up to"):
        WindowPlan.cover((10, 10, 10), (4, 4, 4), overlap)
