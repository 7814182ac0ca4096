"""What a data set looks like, and what is chosen for it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropgen_rt.manifest import Intensity
from dropgen_rt.train.dataset import read_dataset
from dropgen_rt.train.fingerprint import CT_RANGE, GROWTH, Fingerprint
from dropgen_rt.train.survey import Finding, survey

FINDING = Finding(
    "a", (), ("x", "y"), (100, 120, 20), (1.0, 1.0, 5.0), ((0.0, 50.0, 200.0, 40.0, 90.0, 180.0),), (False,), (10, 30)
)

# Spacings are rounded up to three digits.
ROUNDED = 1.01


def test_of_real_files(balls: Path, tmp_path: Path) -> None:
    dataset = read_dataset(balls)
    found = Fingerprint.of(survey(dataset.training, dataset.table, None), dataset.channels)
    assert (found.cases, found.modalities, found.size) == (5, ("MR",), (24, 22, 20))
    assert found.spacing_mm == (1.0, 1.0, 1.0)
    whole, inside = found.intensities[0][:3], found.intensities[0][3:]
    assert whole[1] == pytest.approx(10, abs=2)  # most is background at a tenth of the brightest
    assert 50 < inside[1] < 110
    assert sum(found.label_voxels) == pytest.approx(1, abs=1e-4)
    found.save(tmp_path / "fingerprint.json")
    assert json.loads((tmp_path / "fingerprint.json").read_text())["size"] == [24, 22, 20]
    assert found.lines()[0] == "5 training cases, MR, channels MRI"


@pytest.mark.parametrize(
    ("channels", "hounsfield", "modalities", "shown"),
    [
        (("CT",), (False,), ("CT",), "CT"),
        (("MRI",), (True,), ("MR",), "MR"),
        (("image",), (True,), ("CT",), "CT"),
        (("image",), (False,), ("MR",), "MR"),
        (("T1", "phase"), (False, True), ("MR", "MR"), "MR"),
        (("PET", "image"), (False, True), ("other", "CT"), "other and CT"),
        (("CT", "PET"), (True, False), ("CT", "other"), "CT and other"),
        (("MRI", "ct"), (False, False), ("MR", "CT"), "MR and CT"),
        (("T1", "T2"), (False, False), ("MR", "MR"), "MR"),
        (("pet",), (True,), ("other",), "other"),
    ],
)
def test_modality_and_intensity(
    channels: tuple[str, ...], hounsfield: tuple[bool, ...], modalities: tuple[str, ...], shown: str
) -> None:
    percentiles = FINDING.percentiles * len(channels)
    found = Fingerprint.of([replace(FINDING, hounsfield=hounsfield, percentiles=percentiles)], channels)
    assert found.modalities == modalities
    each = tuple(CT_RANGE if modality == "CT" else Intensity() for modality in modalities)
    assert found.intensity() == (each if len(set(each)) > 1 else each[:1])
    assert found.lines()[0] == f"1 training cases, {shown}, channels {', '.join(channels)}"


def test_most_scans_tell_what_an_unnamed_channel_is() -> None:
    looks = [replace(FINDING, hounsfield=(hounsfield,)) for hounsfield in (True, True, False)]
    assert Fingerprint.of(looks, ("image",)).modalities == ("CT",)
    assert Fingerprint.of(looks[1:], ("image",)).modalities == ("MR",)


def test_each_channel_is_doubted_by_its_own_range() -> None:
    """Bone windows hold what the labels hold, the second channel's 0 to 200 does not."""
    row = (-1000.0, 0.0, 400.0, -50.0, 300.0, 380.0)
    found = Fingerprint.of([replace(FINDING, percentiles=(row, row), hounsfield=(True, True))], ("CT", "CT low"))
    assert found.doubts((CT_RANGE,)) == []
    [line] = found.doubts((CT_RANGE, Intensity("range", 0.0, 200.0)))
    assert line.startswith("warning: CT low: of intensities from -1000 to 400, in the labels about 300")
    kept = '{kind = "range", lower = -1024.0, upper = 1024.0}'
    assert line.endswith(f"if they are no Hounsfield units, give --set 'intensity=[{kept}, {{}}]'")


def test_median_spacing_unless_one_axis_is_coarse() -> None:
    near = [replace(FINDING, spacing_mm=(1.0, 1.0, z)) for z in (2.0, 2.5, 2.8)]
    assert Fingerprint.of(near, ("MRI",)).target_spacing_mm == (1.0, 1.0, 2.5)
    coarse = [replace(FINDING, spacing_mm=(1.0, 1.0, z)) for z in (3.0, 5.0, 5.0, 5.0, 6.0)]
    assert Fingerprint.of(coarse, ("MRI",)).target_spacing_mm == (1.0, 1.0, 3.8)  # their tenth percentile


@pytest.mark.parametrize(
    ("voxels", "stride", "smallest", "window"),
    [
        (10**7, 16, 16, (32, 128, 112)),  # everything fits: the scan, rounded up
        (10**7, 16, 32, (32, 128, 112)),
        (48**3, 16, 32, (32, 64, 48)),
        (1, 16, 32, (32, 32, 32)),
    ],
)
def test_window_holds_the_median_scan_where_it_fits(
    voxels: int, stride: int, smallest: int, window: tuple[int, int, int]
) -> None:
    found = Fingerprint.of([FINDING], ("MRI",))  # 100 x 120 x 20 voxels
    assert found.window(voxels, stride, smallest, (1.0, 1.0, 5.0)) == window


def of_extent(size: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Fingerprint:
    return Fingerprint.of([replace(FINDING, size=size, spacing_mm=spacing_mm)], ("MRI",))


SMALLEST = 32


@pytest.mark.parametrize(
    ("size", "own", "chosen"),
    [
        ((100, 120, 100), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
        ((100, 120, 40), (1.0, 1.0, 4.0), (1.0, 1.0, 4.0)),  # thick, but enough of them to fill a window
        ((216, 256, 10), (1.5, 1.5, 8.0), (1.5, 1.5, 2.5)),  # 80 mm in 32 slices
        ((216, 256, 5), (1.5, 1.5, 8.0), (1.5, 1.5, 1.5)),  # never finer than the other axes
        ((10, 256, 216), (8.0, 1.5, 1.5), (2.5, 1.5, 1.5)),
        ((20, 20, 20), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),  # small, not thick
    ],
)
def test_thick_slices_are_made_thinner_where_they_would_not_fill_a_window(
    size: tuple[int, int, int], own: tuple[float, float, float], chosen: tuple[float, float, float]
) -> None:
    assert of_extent(size, own).spacing(96**3, 16, SMALLEST, 0.0) == chosen


@given(
    st.tuples(*[st.integers(8, 600)] * 3), st.tuples(*[st.floats(0.3, 9)] * 3), st.integers(SMALLEST, 128),
    st.sampled_from([0.05, 0.25, 0.9, 1.0]), st.sampled_from([None, (16, 96, 32)]),
)  # fmt: skip
@settings(deadline=None)
def test_a_window_covers_what_is_asked(
    size: tuple[int, int, int], own: tuple[float, float, float], edge: int, coverage: float,
    fixed: tuple[int, int, int] | None,
) -> None:  # fmt: skip
    found = of_extent(size, own)
    fine = found.spacing(edge**3, 16, SMALLEST, 0.0, fixed)
    spacing = found.spacing(edge**3, 16, SMALLEST, coverage, fixed)
    window = fixed or found.window(edge**3, 16, SMALLEST, spacing)
    covered = [min(1, e * mm / extent) for e, mm, extent in zip(window[::-1], spacing, found.extent_mm, strict=True)]
    assert math.prod(covered) >= coverage
    edges = fixed[::-1] if fixed else (SMALLEST,) * 3
    for mm, least, extent, e in zip(spacing, fine, found.extent_mm, edges, strict=True):
        assert mm >= least
        if mm > least:  # grown no further than it fills an edge
            assert mm <= ROUNDED * max(extent / e, least)


@pytest.mark.parametrize(
    ("size", "own", "chosen"),
    [
        ((216, 256, 10), (1.5, 1.5, 8.0), (3.19, 3.19, 2.5)),  # z fills its edge already
        ((500, 500, 40), (1.0, 1.0, 1.0), (4.53, 4.53, 1.25)),
        ((512, 512, 200), (0.8, 0.8, 2.5), (5.76, 5.76, 5.76)),
        ((48, 48, 48), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    ],
)
def test_voxels_grow_until_a_window_covers_a_quarter(
    size: tuple[int, int, int], own: tuple[float, float, float], chosen: tuple[float, float, float]
) -> None:
    found = of_extent(size, own)
    spacing = found.spacing(48**3, 16, SMALLEST, 0.25)
    assert spacing == pytest.approx(chosen, rel=GROWTH - 1)
    window = found.window(48**3, 16, SMALLEST, spacing)
    covered = [min(1, e * mm / extent) for e, mm, extent in zip(window[::-1], spacing, found.extent_mm, strict=True)]
    assert math.prod(covered) < 0.25 * GROWTH**3 * ROUNDED**3 or spacing == own


def test_a_thinner_slice_is_rounded_so_that_no_further_edge_is_needed() -> None:
    found = of_extent((90, 90, 9), (1.5, 1.5, 74 / 9))  # 74 mm in 32 slices are of 2.3125 mm
    spacing = found.spacing(96**3, 16, SMALLEST, 0.0)
    assert spacing == (1.5, 1.5, 2.32)
    assert found.window(96**3, 16, SMALLEST, spacing) == (32, 96, 96)


@pytest.mark.parametrize("edge", [32, 48, 64, 80, 112])
@pytest.mark.parametrize("mm", [0.5469, 0.7031, 0.7422, 0.8594, 0.9375, 1.0938, 1.7188])
def test_a_window_of_a_scan_of_whole_strides_is_the_scan(edge: int, mm: float) -> None:
    """Rounded for a person, size and spacing are up to a hundredth off: none of that is another stride of padding."""
    found = of_extent((edge,) * 3, (mm,) * 3)
    assert found.window(128**3, 16, SMALLEST, found.spacing(128**3, 16, SMALLEST, 0.0)) == (edge,) * 3
