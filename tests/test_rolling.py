"""The rolling slab against the whole volume: the same bits, in fewer planes."""

from functools import partial

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dropgen_rt.air import AIR_LEVEL, AirLogits, air_windows, body_box, greatest_of
from dropgen_rt.kernels import AxisMap, Normalisation, finalise
from dropgen_rt.rolling import layers, ring_depth
from dropgen_rt.slide import batches, roll, slide
from dropgen_rt.windows import WindowPlan, axis_totals, axis_weights


def network(classes):
    """Anything that depends on every voxel of its window."""
    mix = np.random.default_rng(0).standard_normal((classes, 2)).astype(np.float32)

    def infer(windows):
        mean = windows.mean(axis=(1, 2, 3, 4), keepdims=True)
        return np.concatenate([a * windows[:, :1] + b * np.cumsum(windows[:, :1], 4) + a * mean for a, b in mix], 1)

    return infer


def rising_map(extent, count):
    positions = np.clip((np.arange(count) + 0.5) * extent / count - 0.5, 0, extent - 1)
    lower = np.floor(positions).astype(np.int32)
    return AxisMap(lower, np.minimum(lower + 1, extent - 1).astype(np.int32), (positions - lower).astype(np.float32))


# Two planes under a window of three: the window's padding once went round the ring.
@example(4830, "constant", 0.0, 1)
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["constant", "gaussian"]),
    st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    st.integers(1, 3),
)
def test_equals_the_whole_volume_in_every_bit(seed, blend, overlap, batch):
    rng = np.random.default_rng(seed)
    shape, window = tuple(map(int, rng.integers(1, 26, 3))), tuple(map(int, rng.integers(2, 9, 3)))
    image = rng.standard_normal((1, *shape)).astype(np.float32)
    plan, bounds, classes = WindowPlan.cover(shape, window, overlap), Normalisation((-1,), (2,), (0,), (1,)), 4
    if rng.random() < 0.5:
        ends = [sorted(map(int, rng.choice(size + 1, 2, replace=False))) for size in shape]
        plan = plan.around(tuple(map(tuple, ends)), overlap)
    z = AxisMap.identity(shape[0]) if rng.random() < 0.3 else rising_map(shape[0], int(rng.integers(1, 60)))
    maps = (z, rising_map(shape[1], 9), AxisMap.identity(shape[2]))
    sums, totals = slide(image, plan, bounds, network(classes), classes, blend=blend, batch=batch)
    expected, probability, _ = finalise(sums, totals, maps, probability=True)
    counted = []
    rolled = roll(
        image, plan, bounds, network(classes), classes, maps, blend=blend, batch=batch, probability=True,
        progress=counted.append,
    )  # fmt: skip
    assert rolled.labels.tobytes() == expected.tobytes()
    assert rolled.probability.tobytes() == probability.tobytes()
    assert sum(counted) == len(plan) and rolled.skipped == 0


def test_the_ring_is_one_plane_deeper_than_a_window():
    assert ring_depth(WindowPlan.cover((400, 20, 20), (16, 16, 16), 0.5)) == 17
    assert ring_depth(WindowPlan.cover((12, 20, 20), (16, 16, 16), 0.5)) == 12
    assert ring_depth(WindowPlan.cover((16, 20, 20), (16, 16, 16), 0.5)) == 16


def test_every_output_plane_belongs_to_one_layer():
    plan, z = WindowPlan.cover((40, 4, 4), (8, 4, 4), 0.5), rising_map(40, 97)
    total = axis_totals(plan, tuple(axis_weights(edge, "gaussian") for edge in plan.window))[0]
    planes = [plane for layer in layers(plan, z, total) for plane in range(layer.planes.start, layer.planes.stop)]
    assert planes == list(range(97))


@pytest.mark.parametrize(
    "ends", [([1, 0], [1, 0]), ([0, 1], [2, 2]), ([1, 1], [0, 1])], ids=["falls", "jumps", "turned"]
)
def test_a_map_that_does_not_rise_is_refused(ends):
    z = AxisMap(*(np.array(end, np.int32) for end in ends), np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="must rise along z"):
        list(layers(WindowPlan.cover((3, 3, 3), (2, 2, 2), 0.5), z, np.ones(3, np.float32)))


def test_batches_are_of_air_or_of_none_and_keep_the_order():
    starts = np.arange(21, dtype=np.int32).reshape(7, 3)
    air = np.array([0, 0, 0, 1, 1, 0, 0], bool)
    found = list(batches(starts, air, 2))
    assert [(len(some), is_air) for some, is_air in found] == [
        (2, False), (1, False), (1, True), (1, True), (2, False),
    ]  # fmt: skip
    assert np.concatenate([some for some, _ in found]).tolist() == starts.tolist()


def head_in_air(shape=(20, 20, 40)):
    image = np.full((1, *shape), 1e-3, np.float32)
    image[0, 8:12, 8:12, 30:34] = 1
    return image


def test_windows_of_air_get_the_networks_answer_to_zeros():
    image, bounds = head_in_air(), Normalisation((0,), (1,), (0,), (1,))
    plan, asked = WindowPlan.cover(image.shape[1:], (8, 8, 8), 0.5), []

    def infer(windows):
        asked.append(float(windows.max()))
        return network(3)(windows)

    maps = tuple(AxisMap.identity(size) for size in plan.shape)
    rolled = roll(image, plan, bounds, infer, 3, maps, air="ask")
    assert 0 < rolled.skipped < len(plan)
    # once for zeros, and once for every window with the head in it
    assert len(asked) == 1 + len(plan) - rolled.skipped
    assert asked.count(0.0) == 1 and min(level for level in asked if level) > AIR_LEVEL
    flat = np.where(image > AIR_LEVEL, image, 0)
    whole = roll(flat, plan, bounds, network(3), 3, maps)
    far = np.s_[:, :, :16]  # only skipped windows reach here
    np.testing.assert_array_equal(rolled.labels[far], whole.labels[far])


def test_a_window_with_one_bright_voxel_is_not_air():
    image, bounds = np.zeros((2, 8, 8, 8), np.float32), Normalisation((0, 0), (1, 1), (0, 0), (1, 1))
    image[1, 3, 3, 3] = 2 * AIR_LEVEL
    starts = np.array([[0, 0, 0], [4, 4, 4], [-2, 0, 0], [50, 0, 0]], np.int32)
    assert air_windows(image, starts, (4, 4, 4), bounds).tolist() == [False, True, True, True]
    turned = Normalisation((0, 0), (1, 1), (1, 1), (-1, -1))
    assert not air_windows(image, starts, (4, 4, 4), turned).any()


def test_around_a_body_only_its_windows_are_run():
    image, bounds = head_in_air((20, 20, 90)), Normalisation((0,), (1,), (0,), (1,))
    box = body_box(partial(greatest_of, image), image.shape[1:], bounds)
    # Slabs of 8 voxels; the head's voxels along z, y, x are 8 to 11, 8 to 11 and 30 to 33.
    assert box == ((8, 16), (8, 16), (24, 40))
    scan = WindowPlan.cover(image.shape[1:], (10, 10, 10), 0.5)
    plan, asked = scan.around(box, 0.5), []

    def infer(windows):
        asked.append(float(windows.max()))
        return network(3)(windows)

    maps = tuple(AxisMap.identity(size) for size in plan.shape)
    rolled = roll(image, plan, bounds, infer, 3, maps, air="background")
    over = 1 * 1 * 3  # along x from 24, 27 and 30
    assert rolled.windows == len(plan) and rolled.windows - rolled.skipped == over
    assert 0.0 not in asked and len(asked) == over
    assert (rolled.labels[:, :, :24] == 0).all() and (rolled.labels[:, :, 40:] == 0).all()


def test_the_body_of_nothing_but_air_is_everything():
    bounds = Normalisation((0, 0), (1, 1), (0, 0), (1, 1))
    for shape in ((40, 7, 20), (1, 1, 1)):
        box = body_box(partial(greatest_of, np.zeros((2, *shape), np.float32)), shape, bounds)
        assert box == tuple((0, size) for size in shape)


def test_the_body_of_an_image_without_known_air_is_everything():
    turned = Normalisation((0,), (1,), (1,), (-1,))  # brighter is not more
    box = body_box(partial(greatest_of, head_in_air()), (20, 20, 40), turned)
    assert box == ((0, 20), (0, 20), (0, 40))


def test_air_is_asked_about_once_and_only_when_needed():
    asked = []
    of_air = AirLogits(lambda windows: asked.append(windows.shape) or windows + 1, 2, (3, 4, 5))
    assert asked == []
    assert of_air.logits() is of_air.logits()
    assert asked == [(1, 2, 3, 4, 5)]
