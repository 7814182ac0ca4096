"""The geometry gate, case by case: what is accepted, to the millimetre, and what is refused, in which words."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from dicom_series import AXIAL, COLUMNS, ORIGIN_MM, ROWS, SPACING_MM, positions

from dropgen_rt.dicom.gate import Grid, Plane, Refused, gate

COUNT = 24
Places = np.ndarray


def planes(places: Places, orientation: tuple[float, ...] = AXIAL, spacing: tuple[float, ...] = (2.0, 1.5)) -> list:
    return [Plane(tuple(place), orientation, spacing) for place in places]


def grid(places: Places, orientation: tuple[float, ...] = AXIAL) -> Grid:
    return gate(planes(places, orientation), ROWS, COLUMNS)


def axis_pairs() -> list[tuple[float, ...]]:
    """All 24 pairs of signed body axes for rows and columns; either order of slices makes the 48."""
    axes = [sign * np.eye(3)[axis] for axis in range(3) for sign in (1, -1)]
    return [tuple(np.concatenate(pair)) for pair in itertools.permutations(axes, 2) if not pair[0] @ pair[1]]


def turned(degrees: float) -> tuple[float, ...]:
    """AXIAL turned about the x and the z axis."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return tuple(np.concatenate([turn @ [1, 0, 0], turn @ [0, 1, 0]]).tolist())


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("orientation", [*axis_pairs(), turned(11), turned(40)])
def test_every_slice_lies_where_its_header_says(orientation: tuple[float, ...], reverse: bool) -> None:
    places = positions(COUNT, orientation)[:: -1 if reverse else 1]
    found = grid(places, orientation)
    assert found.shift_px is None and found.warnings == ()
    assert found.geometry.size == (COLUMNS, ROWS, COUNT)
    assert found.geometry.spacing_mm == pytest.approx(SPACING_MM, abs=1e-12)
    for k, index in enumerate(found.order):
        assert found.geometry.to_world([0, 0, k]) == pytest.approx(places[index], abs=1e-9)
        corner = places[index] + 5 * 1.5 * np.array(orientation[:3]) + 7 * 2.0 * np.array(orientation[3:])
        assert found.geometry.to_world([5, 7, k]) == pytest.approx(corner, abs=1e-9)


def test_slices_out_of_order_are_ordered() -> None:
    places = positions(COUNT)
    shuffled = np.random.default_rng(0).permutation(COUNT)
    assert [shuffled[index] for index in grid(places[shuffled]).order] == list(range(COUNT))


def test_jitter_within_the_tolerance_is_named() -> None:
    places = positions(COUNT)
    places[7, 2] += 0.08
    found = grid(places)
    assert found.warnings == ("slices lie up to 0.075 mm from an even grid; the grid is used",)
    assert found.geometry.to_world([0, 0, 0]) == pytest.approx(ORIGIN_MM, abs=0.02)


def test_rounded_header_texts_are_no_jitter() -> None:
    assert grid(positions(COUNT, turned(11)).round(2), turned(11)).warnings == ()


@pytest.mark.parametrize("degrees", [1.0, 14.0, -20.0, 30.0])
def test_a_tilted_gantry(degrees: float) -> None:
    places = positions(COUNT, sideways_mm=(0.0, SPACING_MM[2] * math.tan(math.radians(degrees))))
    found = grid(places)
    assert found.shift_px is not None
    assert found.warnings[0].startswith(f"gantry tilt of {abs(degrees):.1f} degrees")
    assert found.geometry.spacing_mm == pytest.approx(SPACING_MM)
    for k, index in enumerate(found.order):
        x, y = found.shift_px[k]
        assert found.geometry.to_world([x, y, k]) == pytest.approx(places[index], abs=1e-9)
        assert -1e-9 <= y <= found.geometry.size[1] - ROWS + 1e-9


def changed(index: int, by: tuple[float, float, float]) -> Callable[[Places], Places]:
    def change(places: Places) -> Places:
        places[index] += by
        return places

    return change


def without(*gone: int) -> Callable[[Places], Places]:
    return lambda places: np.delete(places, gone, axis=0)


REFUSED: dict[str, tuple[Callable[[Places], Places], str]] = {
    "one slice missing": (without(9), "a gap of 6 mm after slice 9, where slices lie 3 mm apart: 1 missing"),
    "two missing together": (without(9, 10), "a gap of 9 mm after slice 9, where slices lie 3 mm apart: 2 missing"),
    "missing in two places": (without(4, 15), "a gap of 6 mm after slice 4, where slices lie 3 mm apart: 2 missing"),
    "second slice missing": (without(1), "a gap of 6 mm after slice 1, where slices lie 3 mm apart: 1 missing"),
    "a slice twice": (lambda p: np.vstack([p, p[5:6]]), "1 places with 2 slices"),
    "all in one place": (lambda p: np.repeat(p[:1], 4, 0), "4 different slices in one place"),
    "uneven": (lambda p: p * [1, 1, 1] + [[0, 0, (k % 2) * 0.5] for k in range(COUNT)], "slices 2.5 to 3.5 mm apart"),
    "spacing that grows": (lambda p: p + [[0, 0, 0.02 * k * k] for k in range(COUNT)], "mm apart"),
    "one slice displaced": (changed(11, (0.0, 0.4, 0.0)), "slices shifted sideways by up to 0.4 mm, not in a line"),
    "one slice too deep": (changed(11, (0.0, 0.0, 0.4)), "slices 2.6 to 3.4 mm apart"),
    "one slice only": (lambda p: p[:1], "a single image"),
    "not finite": (changed(3, (math.nan, 0.0, 0.0)), "1 of 24 slices without a valid image position"),
    "a light year away": (changed(0, (0.0, 9e7, 0.0)), "image position 9e+07 mm"),
    "beside one another": (lambda p: positions(COUNT, sideways_mm=(60, 0)), "slices displaced at 87.1 degrees"),
    "kilometres apart": (lambda p: p * [1, 1, 100], "slices 300 mm apart"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_stacks(case: str) -> None:
    change, words = REFUSED[case]
    with pytest.raises(Refused) as refused:
        grid(change(positions(COUNT)))
    assert words in refused.value.given
    assert refused.value.accepted and refused.value.step


@pytest.mark.parametrize("spacing_mm", [0.1, 0.3])
def test_a_missing_slice_never_passes_for_jitter(spacing_mm: float) -> None:
    with pytest.raises(Refused, match="a gap of"):
        grid(np.delete(positions(COUNT, step_mm=spacing_mm), 9, axis=0))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"position": None}, "1 of 24 slices without a valid image position"),
        ({"position": (1.0, 2.0)}, "1 of 24 slices without a valid image position"),
        ({"orientation": None}, "1 of 24 slices without a valid image orientation"),
        ({"spacing_mm": None}, "1 of 24 slices without a valid pixel spacing"),
    ],
)
def test_a_silent_header(what: dict, words: str) -> None:
    stack = planes(positions(COUNT))
    stack[4] = Plane(**{**vars(stack[4]), **what})
    with pytest.raises(Refused, match=words):
        gate(stack, ROWS, COLUMNS)


@pytest.mark.parametrize("spacing", [(0.0, 1.5), (-1.0, 1.5), (1.5, 5000.0)])
def test_pixel_spacing_that_no_scan_has(spacing: tuple[float, float]) -> None:
    with pytest.raises(Refused, match="pixel spacing"):
        gate(planes(positions(COUNT), spacing=spacing), ROWS, COLUMNS)


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 0.1, 1, 0), (1, 0, 0, 1, 0, 0), (0, 0, 0, 0, 0, 0), (2, 0, 0, 0, 2, 0)]
)
def test_axes_that_are_not_perpendicular_units(orientation: tuple[float, ...]) -> None:
    with pytest.raises(Refused, match="two perpendicular unit vectors"):
        gate(planes(positions(COUNT), orientation), ROWS, COLUMNS)


@pytest.mark.parametrize(("rows", "columns"), [(65535, 65535), (16000, 16000)])
def test_giant_images_are_refused_before_they_are_read(rows: int, columns: int) -> None:
    with pytest.raises(Refused, match="voxels"):
        gate(planes(positions(COUNT)), rows, columns)
