"""What a data set looks like, and what is chosen for it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dropgen_rt.train.dataset import read_dataset
from dropgen_rt.train.fingerprint import CT_RANGE, Fingerprint
from dropgen_rt.train.survey import Finding, survey

FINDING = Finding(
    "a", (), ("x", "y"), (100, 120, 20), (1.0, 1.0, 5.0), ((0.0, 50.0, 200.0, 40.0, 90.0, 180.0),), 0.0, True, (10, 30)
)


def test_of_real_files(balls: Path, tmp_path: Path) -> None:
    dataset = read_dataset(balls)
    found = Fingerprint.of(survey(dataset.training, dataset.table, None), dataset.channels)
    assert (found.cases, found.modality, found.size, found.spacing_mm) == (5, "MR", (24, 22, 20), (1.0, 1.0, 1.0))
    whole, inside = found.intensities[0][:3], found.intensities[0][3:]
    assert whole[1] == pytest.approx(10, abs=2)  # most is background at a tenth of the brightest
    assert 50 < inside[1] < 110
    assert sum(found.label_voxels) == pytest.approx(1, abs=1e-4)
    found.save(tmp_path / "fingerprint.json")
    assert json.loads((tmp_path / "fingerprint.json").read_text())["size"] == [24, 22, 20]
    assert found.lines()[0] == "5 training cases, MR, channels MRI"


@pytest.mark.parametrize(
    ("channels", "changes", "modality"),
    [
        (("CT",), {}, "CT"),
        (("MRI",), {"lowest": -1000.0}, "MR"),
        (("image",), {"lowest": -1000.0}, "CT"),
        (("image",), {"lowest": -1000.0, "integers": False}, "MR"),
        (("image",), {}, "MR"),
    ],
)
def test_modality_and_intensity(channels: tuple[str, ...], changes: dict, modality: str) -> None:
    found = Fingerprint.of([replace(FINDING, **changes)], channels)
    assert found.modality == modality
    assert (found.intensity() == CT_RANGE) == (modality == "CT")


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
