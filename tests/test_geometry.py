"""Geometry: conversions, the 48 orientations, resampling about the centre."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropgen_rt.errors import GeometryError
from dropgen_rt.geometry import AxisChange, Geometry

# Products of float64 numbers of a few hundred millimetres: rounding is some 1e-13 mm.
CLOSE_MM = 1e-9

CODES = [
    "".join(ends[axis][sign] for axis, sign in zip(order, signs, strict=True))
    for ends in [("LR", "PA", "SI")]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((0, 1), repeat=3)
]
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def rotation(x: float, y: float, z: float) -> np.ndarray:
    def turn(angle: float, axis: int) -> np.ndarray:
        i, j = [k for k in range(3) if k != axis]
        matrix = np.eye(3)
        matrix[i, i] = matrix[j, j] = math.cos(angle)
        matrix[i, j], matrix[j, i] = -math.sin(angle), math.sin(angle)
        return matrix

    return turn(x, 0) @ turn(y, 1) @ turn(z, 2)


lengths = st.floats(0.2, 9.0)
angles = st.floats(-math.pi, math.pi)
places = st.floats(-500, 500)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    matrix = rotation(draw(angles), draw(angles), draw(angles)) * [1, 1, draw(st.sampled_from([1, -1]))]
    size = draw(st.tuples(*[st.integers(1, 9)] * 3))
    return Geometry(
        size, draw(st.tuples(lengths, lengths, lengths)), draw(st.tuples(places, places, places)),
        tuple(matrix.ravel().tolist()),
    )  # fmt: skip


def assert_same(a: Geometry, b: Geometry) -> None:
    assert a.size == b.size
    np.testing.assert_array_equal(a.spacing_mm, b.spacing_mm)
    np.testing.assert_allclose(a.origin_mm, b.origin_mm, rtol=0, atol=CLOSE_MM)
    np.testing.assert_array_equal(a.direction, b.direction)


def world_of_every_voxel(geometry: Geometry) -> np.ndarray:
    """LPS millimetres (3, z, y, x)."""
    z, y, x = np.indices(geometry.shape)
    return np.moveaxis(geometry.to_world(np.stack([x, y, z], axis=-1)), -1, 0)


def test_there_are_48_orientations() -> None:
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("code", CODES)
@settings(max_examples=8, deadline=None)
@given(geometry=geometries())
def test_reoriented_voxels_stay_where_they_are(code: str, geometry: Geometry) -> None:
    turned, change = geometry.reoriented(code)
    assert turned.orientation == code
    before = world_of_every_voxel(geometry)
    np.testing.assert_allclose(world_of_every_voxel(turned), change.apply(before), rtol=0, atol=CLOSE_MM)
    np.testing.assert_array_equal(change.undo(change.apply(before)), before)
    assert change.apply(before).shape[1:] == turned.shape
    assert_same(turned.reoriented(geometry.orientation)[0], geometry)


@pytest.mark.parametrize("code", CODES)
@settings(max_examples=8, deadline=None)
@given(geometry=geometries(), spacing_mm=st.tuples(lengths, lengths, lengths))
def test_resampling_commutes_with_reorientation(
    code: str, geometry: Geometry, spacing_mm: tuple[float, float, float]
) -> None:
    turned, change = geometry.reoriented(code)
    moved = tuple(spacing_mm[axis] for axis in change.order)
    first = turned.resampled((moved[0], moved[1], moved[2]))
    assert_same(first, geometry.resampled(spacing_mm).reoriented(code)[0])
    fine = geometry.resampled(spacing_mm)
    for axis in range(3):
        old = geometry.axis_positions(fine, change.order[axis])
        mirrored = geometry.size[change.order[axis]] - 1 - old[::-1] if change.flips[axis] else old
        np.testing.assert_allclose(turned.axis_positions(first, axis), mirrored, rtol=0, atol=1e-12)


@settings(deadline=None)
@given(geometry=geometries(), point=st.tuples(places, places, places))
def test_to_voxel_inverts_to_world(geometry: Geometry, point: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(geometry.to_voxel(geometry.to_world(point)), point, rtol=0, atol=1e-7)


@settings(deadline=None)
@given(geometry=geometries(), spacing_mm=st.tuples(lengths, lengths, lengths))
def test_axis_positions_are_those_of_the_world(geometry: Geometry, spacing_mm: tuple[float, float, float]) -> None:
    fine = geometry.resampled(spacing_mm)
    for axis in range(3):
        index = np.zeros((fine.size[axis], 3))
        index[:, axis] = np.arange(fine.size[axis])
        # One axis of one direction does not depend on the others, so along the edge is everywhere.
        expected = geometry.to_voxel(fine.to_world(index))[:, axis]
        np.testing.assert_allclose(geometry.axis_positions(fine, axis), expected, rtol=0, atol=1e-6)


def test_by_hand() -> None:
    """Sagittal slices, 4 x 5 x 6 voxels: x runs to the back, y downward, z to the left."""
    geometry = Geometry((4, 5, 6), (1.0, 2.0, 3.0), (10.0, 20.0, 30.0), (0, 0, 1, 1, 0, 0, 0, -1, 0))
    assert geometry.orientation == "PIL"
    assert geometry.shape == (6, 5, 4)
    assert geometry.voxel_volume_ml == 0.006
    np.testing.assert_array_equal(geometry.to_world([1, 1, 1]), [13, 21, 28])
    turned, change = geometry.reoriented("LPS")
    assert change == AxisChange((2, 0, 1), (False, False, True))
    assert turned == Geometry((6, 4, 5), (3.0, 1.0, 2.0), (10.0, 20.0, 22.0), IDENTITY)
    assert change.apply(np.zeros((7, 6, 5, 4))).shape == (7, 5, 4, 6)


@pytest.mark.parametrize(
    ("size", "new", "expected", "first"),
    [
        (4, 0.5, 8, -0.25),  # 4 voxels of 1 mm: 8 of 0.5 mm, each pair about a centre
        (4, 2.0, 2, 0.5),
        (5, 2.0, 3, 0.0),  # 2.5 is rounded up; the field of view grows by half a millimetre at both ends
        (4, 3.0, 1, 1.5),
        (3, 2.0, 2, 0.0),
        (1, 9.0, 1, 0.0),  # never none
    ],
)
def test_resampled_sizes(size: int, new: float, expected: int, first: float) -> None:
    geometry = Geometry((size, 1, 1), (1.0, 1.0, 1.0), (7.0, 8.0, 9.0), IDENTITY)
    fine = geometry.resampled((new, 1.0, 1.0))
    assert fine.size == (expected, 1, 1)
    assert fine.origin_mm == (7.0 + first, 8.0, 9.0)
    positions = geometry.axis_positions(fine, 0)
    np.testing.assert_array_equal(positions, first + new * np.arange(expected))
    np.testing.assert_array_equal(positions, (size - 1 - positions)[::-1])


def test_resampled_to_its_own_spacing_is_itself() -> None:
    geometry = Geometry((4, 5, 6), (0.1, 0.7, 3.0), (0.1, 0.2, 0.3), IDENTITY)
    assert geometry.resampled((0.1, 0.7, 3.0)) is geometry


def test_oblique_orientation_names_every_axis_once() -> None:
    """Two axes lie nearest to the same body axis; the letters are still all different."""
    matrix = rotation(0.0, 0.0, math.radians(50)) @ rotation(math.radians(50), 0.0, 0.0)
    geometry = Geometry((2, 2, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(matrix.ravel().tolist()))
    assert sorted(geometry.orientation.translate(str.maketrans("RAI", "LPS"))) == ["L", "P", "S"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": (0, 5, 6)}, "size"),
        ({"size": (4, 5)}, "size"),
        ({"spacing_mm": (0.0, 1.0, 1.0)}, "spacing"),
        ({"spacing_mm": (-1.0, 1.0, 1.0)}, "spacing"),
        ({"spacing_mm": (math.nan, 1.0, 1.0)}, "spacing"),
        ({"spacing_mm": (math.inf, 1.0, 1.0)}, "spacing"),
        ({"origin_mm": (math.inf, 1.0, 1.0)}, "origin"),
        ({"direction": (1, 0, 0, 0, 1, 0, 0, 0)}, "direction"),
        ({"direction": (1, 0.01, 0, 0, 1, 0, 0, 0, 1)}, "direction"),
        ({"direction": (2, 0, 0, 0, 1, 0, 0, 0, 1)}, "direction"),
        ({"direction": (1, 0, 0, 1, 0, 0, 0, 0, 1)}, "direction"),
        ({"direction": (math.nan, 0, 0, 0, 1, 0, 0, 0, 1)}, "direction"),
    ],
)
def test_impossible_grids_are_refused(changed: dict, message: str) -> None:
    good = {
        "size": (4, 5, 6),
        "spacing_mm": (1.0, 1.0, 1.0),
        "origin_mm": (0.0, 0.0, 0.0),
        "direction": IDENTITY,
    }
    with pytest.raises(GeometryError, match=f"^{message} .*; accepted: "):
        Geometry(**{**good, **changed})


@pytest.mark.parametrize("code", ["", "LP", "LLS", "LRS", "XYZ", "LPSA"])
def test_impossible_codes_are_refused(code: str) -> None:
    with pytest.raises(GeometryError, match="accepted: one letter each"):
        Geometry((2, 2, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY).reoriented(code)


def test_small_codes_are_accepted_and_bad_requests_refused() -> None:
    geometry = Geometry((2, 2, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
    assert geometry.reoriented("ras")[0].orientation == "RAS"
    with pytest.raises(GeometryError, match="spacing 0"):
        geometry.resampled((0.0, 1.0, 1.0))
    with pytest.raises(GeometryError, match="accepted: equal ones"):
        geometry.axis_positions(geometry.reoriented("RAS")[0], 0)
