"""Crops of label maps: on a label, or anywhere as a sliding window lies; some like averages of heads."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  the name its users know

from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.dataset import read_dataset
from dropgen_rt.train.samples import SyntheticSampler, passes_of_an_average
from dropgen_rt.train.synthesis import RandomSource

DRAWS = 16
# A crop's edge in voxels, of a map of 96: a ball in the map's corner is out of most crops that may lie anywhere.
EDGE, MAP, CENTRE, RADIUS = 32, 96, 16, 10


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    """A data folder of label maps: a ball (value 2) near the first voxel of a larger grid."""
    squared = sum((axis - CENTRE) ** 2 for axis in np.indices((MAP, MAP, MAP)))
    ball = sitk.GetImageFromArray(np.where(squared <= RADIUS**2, 2, 0).astype(np.uint8))
    (tmp_path / "labelsTr").mkdir()
    for name in "abcdef":
        sitk.WriteImage(ball, str(tmp_path / "labelsTr" / f"{name}.nii.gz"))
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "ball": 2}}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    return tmp_path


def made(folder: Path, line: str) -> SyntheticSampler:
    """A sampler of the folder, one option given."""
    table = "[contrasts]\nt1 = 1.0\n[tissues]\nball = [2]\n[means.t1]\nball = 0.8\n"
    (folder / "synthesis.toml").write_text(f"severity = 0.0\n{line}{table}")
    dataset = read_dataset(folder)
    config = TrainConfig(window=(EDGE, EDGE, EDGE), spacing_mm=(1.0, 1.0, 1.0))
    return SyntheticSampler(dataset.training, dataset, config)


def shares(sampler: SyntheticSampler) -> float:
    """The share of crops that hold the ball."""
    return float(np.mean([bool(sampler.draw(RandomSource.seeded(1, step))[1].any()) for step in range(DRAWS)]))


@pytest.mark.parametrize(("anywhere", "fewest", "most"), [(None, 0.7, 1.0), (0.0, 0.7, 1.0), (1.0, 0.0, 0.4)])
def test_crops_lie_on_a_label_unless_they_may_lie_anywhere(
    heads: Path, anywhere: float | None, fewest: float, most: float
) -> None:
    assert fewest <= shares(made(heads, "" if anywhere is None else f"anywhere = {anywhere}\n")) <= most


def test_averages_are_as_many_as_asked_and_soft(heads: Path) -> None:
    rng = np.random.default_rng(0)
    passes = [passes_of_an_average(0.5, rng) for _ in range(DRAWS)]
    assert 2 <= sum(map(bool, passes)) <= DRAWS - 2
    assert all(2 <= count <= 8 for count in passes if count)
    sharp, soft = (np.mean([edges(made(heads, line), seed) for seed in range(DRAWS)])
                   for line in ("", "average = 1.0\n"))  # fmt: skip
    assert soft < 0.7 * sharp


def edges(sampler: SyntheticSampler, seed: int) -> float:
    """The steepest step of a crop's image."""
    image, _ = sampler.draw(RandomSource.seeded(3, seed))
    return float(max(image.diff(dim=axis).abs().max() for axis in (1, 2, 3)))
