"""To the working grid: what resampling must keep, whichever way round the scan lies, and intensity bounds."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import RAMP_VOXELS, RESAMPLING

from dropgen_rt.errors import UnsuitableInputError
from dropgen_rt.geometry import Geometry
from dropgen_rt.manifest import Intensity
from dropgen_rt.preprocess import (
    EQUAL_SHARES,
    interpolation_weights,
    label_boxes,
    labels_to_working_grid,
    normalisation,
    to_working_grid,
)
from dropgen_rt.volume import Volume

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
CODES = [
    "".join(letters) for order in itertools.permutations(("LR", "PA", "SI")) for letters in itertools.product(*order)
]
# rotated about all three axes, far from any tie
OBLIQUE = (0.9363, -0.2896, 0.1987, 0.3130, 0.9447, -0.0978, -0.1593, 0.1538, 0.9752)


def oblique():
    """OBLIQUE made orthonormal to the last bit that float64 has."""
    u, _, v = np.linalg.svd(np.reshape(OBLIQUE, (3, 3)))
    return tuple((u @ v).ravel().tolist())


def grid(size=(7, 9, 11), spacing_mm=(1.0, 1.0, 1.0), direction=IDENTITY):
    return Geometry(size, spacing_mm, (12.0, -7.0, 30.0), direction)


def noise(geometry, channels=1):
    array = np.random.default_rng(0).normal(50, 20, (channels, *geometry.shape))
    return Volume(array.astype(np.float32), geometry)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.7, 2.5, 1.3), (3.0, 3.0, 3.0), (30.0, 30.0, 30.0)])
def test_a_constant_stays_constant(spacing_mm):
    volume = Volume(np.full((2, 11, 9, 7), 37.25, np.float32), grid(spacing_mm=(1.2, 0.9, 2.0)))
    working = to_working_grid(volume, "RAS", spacing_mm)
    assert np.abs(working.array / 37.25 - 1).max() <= RESAMPLING


def test_the_same_grid_keeps_every_bit():
    volume = noise(grid(), 2)
    working = to_working_grid(volume, "LPS", (1.0, 1.0, 1.0))
    assert working.geometry == volume.geometry
    assert working.array.tobytes() == volume.array.tobytes()
    assert interpolation_weights(volume.geometry, volume.geometry, 0) is None


def test_a_working_volume_is_contiguous_float32():
    volume = Volume(np.arange(7 * 9 * 11).reshape(1, 11, 9, 7), grid())  # int64
    working = to_working_grid(volume, "SAR", (1.0, 1.0, 1.0))
    assert working.array.dtype == np.float32 and working.array.flags.c_contiguous


def test_only_the_orientation_changes_where_the_spacing_is_the_same():
    volume = noise(grid())
    working = to_working_grid(volume, "RAI", (1.0, 1.0, 1.0))
    assert np.array_equal(working.array, volume.array[:, ::-1, ::-1, ::-1])
    assert working.geometry.orientation == "RAI"


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("spacing_mm", "target_mm", "limit"),
    [(1.0, 0.4, 1e-5), (2.5, 1.0, 1e-5), (1.0, 2.0, 1e-5), (1.0, 3.0, 1e-5),
     (1.0, 1.5, RAMP_VOXELS), (1.0, 1.21, RAMP_VOXELS), (0.5, 1.7, RAMP_VOXELS)],
)  # fmt: skip
def test_a_linear_ramp_keeps_its_place_inside(axis, spacing_mm, target_mm, limit):
    spacings, targets = [1.0] * 3, [1.0] * 3
    spacings[2 - axis], targets[2 - axis] = spacing_mm, target_mm
    geometry = grid((24, 24, 24), tuple(spacings))
    ramp = np.broadcast_to(np.arange(24.0).reshape([-1 if a == axis else 1 for a in range(3)]), (24, 24, 24))
    working = to_working_grid(Volume(ramp[None].astype(np.float32), geometry), "LPS", tuple(targets))
    line = np.moveaxis(working.array[0], axis, 0)[:, 3, 5]
    expected = geometry.axis_positions(working.geometry, 2 - axis)
    reach = max(target_mm / spacing_mm, 1)
    inside = (expected >= reach) & (expected <= 23 - reach)
    assert inside.sum() >= 3
    assert np.abs(line - expected)[inside].max() <= limit
    assert line.min() >= 0 and line.max() <= 23


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.floats(0.05, 20), st.floats(0.05, 20))
def test_every_row_of_weights_sums_to_one(size, spacing_mm, target_mm):
    source = grid((3, 4, size), (1.0, 1.0, spacing_mm))
    target = source.resampled((1.0, 1.0, target_mm))
    weights = interpolation_weights(source, target, 0)
    if weights is None:
        assert target.shape[0] == size
        return
    assert weights.shape == (target.shape[0], size) and weights.dtype == np.float32
    assert (weights >= 0).all()
    assert np.abs(weights.astype(np.float64).sum(axis=1) - 1).max() <= RESAMPLING
    assert (weights.max(axis=0) > 0).all() or target_mm < spacing_mm  # coarser: every source voxel counts


def test_a_spike_between_coarse_voxels_is_not_lost():
    array = np.zeros((1, 1, 1, 12), np.float32)
    array[..., 5] = 1  # not the nearest to any voxel of 4 mm
    working = to_working_grid(Volume(array, grid((12, 1, 1))), "LPS", (4.0, 1.0, 1.0))
    assert working.array.shape == (1, 1, 1, 3)
    assert working.array.max() > 0.1


@pytest.mark.parametrize("direction", [IDENTITY, oblique()], ids=["straight", "oblique"])
def test_the_working_grid_does_not_depend_on_how_the_scan_was_stored(direction):
    volume = noise(grid((9, 8, 6), (0.8, 1.5, 3.1), direction))
    expected = to_working_grid(volume, "LPS", (1.0, 1.2, 1.0))
    assert len(set(CODES)) == 48
    for code in CODES:
        geometry, change = volume.geometry.reoriented(code)
        stored = Volume(np.ascontiguousarray(change.apply(volume.array)), geometry)
        working = to_working_grid(stored, "LPS", (1.0, 1.2, 1.0))
        assert working.array.tobytes() == expected.array.tobytes(), code
        assert np.allclose(working.geometry.origin_mm, expected.geometry.origin_mm, atol=1e-9), code


def test_a_voxel_has_the_label_of_most_share_and_none_is_invented():
    geometry = grid((4, 1, 1), (2.0, 1.0, 1.0))
    labels = np.array([[[0, 3, 7, 7]]], np.uint8)
    fine = labels_to_working_grid(labels, geometry, "LPS", (1.0, 1.0, 1.0))
    assert fine.ravel().tolist() == [0, 0, 3, 3, 7, 7, 7, 7]
    assert fine.dtype == np.uint8 and fine.flags.c_contiguous
    mirrored = labels_to_working_grid(labels, geometry, "RPS", (1.0, 1.0, 1.0))
    assert mirrored.ravel().tolist() == [7, 7, 7, 7, 3, 3, 0, 0]
    coarse = labels_to_working_grid(labels, geometry, "LPS", (8.0, 1.0, 1.0))
    assert coarse.ravel().tolist() == [7]  # half of the line, whatever the voxel in its middle
    halves = labels_to_working_grid(labels, geometry, "LPS", (4.0, 1.0, 1.0))
    assert halves.ravel().tolist() == [0, 7]  # 0 and 3 have equal shares


@given(st.integers(0, 2**32 - 1), st.sampled_from(CODES), st.tuples(*[st.floats(0.4, 4)] * 3))
@settings(max_examples=60, deadline=None)
def test_labels_have_the_share_that_the_scan_of_each_has(seed, code, spacing_mm):
    rng = np.random.default_rng(seed)
    geometry = grid(tuple(int(n) for n in rng.integers(1, 9, 3)), (1.0, 1.5, 2.0), oblique())
    labels = rng.choice(np.array([0, 2, 300], np.uint16), geometry.shape)
    first = [int(rng.integers(n)) for n in geometry.shape]  # a label may fill a small box
    labels[first[0] :, : first[1] + 1, first[2] :][labels[first[0] :, : first[1] + 1, first[2] :] == 2] = 0
    shares = np.array(
        [
            to_working_grid(Volume((labels == value).astype(np.float32)[None], geometry), code, spacing_mm).array[0]
            for value in (0, 2, 300)
        ]
    )
    expected = np.array([0, 2, 300])[np.argmax(shares >= shares.max(0) - EQUAL_SHARES, axis=0)]
    assert np.array_equal(labels_to_working_grid(labels, geometry, code, spacing_mm), expected)


def test_the_box_of_each_label():
    labels = np.zeros((9, 8, 7), np.int16)
    labels[4, 0, 6], labels[2:4, 5, 1], labels[7, 5, 3] = 5, -2, -2
    assert list(label_boxes(labels).items()) == [
        (-2, (slice(2, 8), slice(5, 6), slice(1, 4))),
        (0, (slice(0, 9), slice(0, 8), slice(0, 7))),
        (5, (slice(4, 5), slice(0, 1), slice(6, 7))),
    ]


def test_labels_and_scan_reach_the_same_grid():
    geometry = grid((9, 8, 6), (0.8, 1.5, 3.1), oblique())
    labels = np.random.default_rng(1).integers(0, 5, geometry.shape, np.uint8)
    working = to_working_grid(noise(geometry), "ILA", (1.0, 1.2, 2.0))
    assert labels_to_working_grid(labels, geometry, "ILA", (1.0, 1.2, 2.0)).shape == working.geometry.shape


def test_percentile_bounds_are_taken_per_channel():
    volume = noise(grid(), 2)
    volume.array[1] *= 10
    bounds = normalisation(volume, (Intensity("percentile", 1.0, 99.0),))
    low, high = np.percentile(volume.array, [1, 99], axis=(1, 2, 3))
    assert bounds.lower == bounds.offset == pytest.approx(tuple(low))
    assert bounds.upper == pytest.approx(tuple(high))
    assert bounds.scale == pytest.approx(tuple(1 / (high - low)))


def test_a_small_object_in_much_air_is_bounded_by_its_extremes():
    array = np.zeros((1, 11, 9, 7), np.float32)
    array[0, 5, 5, 5] = 8
    bounds = normalisation(Volume(array, grid()), (Intensity("percentile", 0.5, 99.5),))
    assert (bounds.lower, bounds.upper, bounds.scale) == ((0.0,), (8.0,), (0.125,))


def test_range_bounds_are_the_intensities_themselves():
    bounds = normalisation(noise(grid()), (Intensity("range", -1000.0, 1000.0),))
    assert (bounds.lower, bounds.upper, bounds.offset, bounds.scale) == ((-1000.0,), (1000.0,), (-1000.0,), (1 / 2000,))


def test_each_channel_by_its_own_kind():
    volume = noise(grid(), 2)
    bounds = normalisation(volume, (Intensity("range", -1000.0, 1000.0), Intensity("percentile", 1.0, 99.0)))
    low, high = np.percentile(volume.array[1], [1, 99])
    assert bounds.lower == (-1000.0, pytest.approx(low))
    assert bounds.upper == (1000.0, pytest.approx(high))


def test_a_channel_without_contrast_is_refused():
    volume = noise(grid(), 2)
    volume.array[1] = 4
    with pytest.raises(UnsuitableInputError, match="channel 1 holds the single value 4 on the model's grid"):
        normalisation(volume, (Intensity(),))


def test_a_channel_of_too_little_contrast_for_float32_is_refused():
    volume = noise(grid())
    volume.array[:] = 0
    volume.array[0, 1, 1, 1] = 1e-42
    with pytest.raises(UnsuitableInputError, match=r"channel 0 goes from 0 to 1\.\d+e-42 only"):
        normalisation(volume, (Intensity(),))


def test_a_grid_too_large_for_memory_is_refused_before_it_is_made():
    # 1600 m of it, at 1 mm and 100 mm across
    geometry = grid((16384, 1, 1), (100.0, 100.0, 100.0))
    volume = Volume(np.arange(16384, dtype=np.float32).reshape(1, 1, 1, -1), geometry)
    with pytest.raises(UnsuitableInputError, match="16384 x 1 x 1 voxels of 100 x 100 x 100 mm"):
        to_working_grid(volume, "LPS", (1.0, 1.0, 1.0))
