"""Crops of label maps: on a label, or anywhere as a sliding window lies; some like averages of heads."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  the name its users know
import torch

from dropgen_rt.errors import UnreadableInputError, UnsuitableInputError, UsageError
from dropgen_rt.train.config import AugmentConfig, TrainConfig
from dropgen_rt.train.dataset import read_dataset
from dropgen_rt.train.prepare import Prepared
from dropgen_rt.train.samples import ScanSampler, SyntheticSampler, passes_of_an_average
from dropgen_rt.train.synthesis import RandomSource, index_labels

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


@pytest.mark.parametrize(("line", "sides"), [("", {0}), ("mirror = true\n", {0, 1})])
def test_sides_are_kept_unless_maps_may_be_mirrored(heads: Path, line: str, sides: set[int]) -> None:
    """Label 1 lies beside label 2, at smaller x, in every map."""
    halves = np.zeros((MAP, MAP, MAP), np.uint8)
    halves[..., MAP // 2 - 8 : MAP // 2 - 2], halves[..., MAP // 2 + 2 : MAP // 2 + 8] = 1, 2
    for path in (heads / "labelsTr").iterdir():
        sitk.WriteImage(sitk.GetImageFromArray(halves), str(path))
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "one": 1, "two": 2}}
    (heads / "dataset.json").write_text(json.dumps(description))
    sampler, found = made(heads, line), set()
    for step in range(DRAWS):
        _, target = sampler.draw(RandomSource.seeded(1, step))
        one, two = (torch.nonzero(target == value)[:, 2].float() for value in (1, 2))
        if len(one) and len(two):
            found.add(int(one.mean() > two.mean()))
    assert found == sides


def test_a_small_label_is_found_between_the_lattice(heads: Path) -> None:
    small = np.zeros((MAP, MAP, MAP), np.uint8)
    small[5:8, 5:8, 5:8] = 2
    for path in (heads / "labelsTr").iterdir():
        sitk.WriteImage(sitk.GetImageFromArray(small), str(path))
    assert all(len(head.centres) == 1 for head in made(heads, "").heads)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": (16, 32, 32)}, "window 16 x 32 x 32: images are synthesised in cubes"),
        ({"window": (16, 16, 16), "spacing_mm": (1.0, 1.0, 4.0)}, "spacing 1 x 1 x 4 mm: images are synthesised"),
    ],
)
def test_what_is_no_cube_is_refused(heads: Path, options: dict, message: str) -> None:
    made(heads, "")
    dataset = read_dataset(heads)
    with pytest.raises(UsageError, match=message):
        SyntheticSampler(dataset.training, dataset, TrainConfig(**options))


def test_maps_of_unlike_voxels_and_empty_ones_are_refused(heads: Path) -> None:
    image = sitk.ReadImage(str(heads / "labelsTr" / "a.nii.gz"))
    image.SetSpacing((1.0, 1.0, 4.0))
    sitk.WriteImage(image, str(heads / "labelsTr" / "a.nii.gz"))
    with pytest.raises(UsageError, match=r"a\.nii\.gz: voxels of 1 x 1 x 4 mm: images are synthesised in cubes"):
        made(heads, "")
    empty = sitk.GetImageFromArray(np.zeros((MAP, MAP, MAP), np.uint8))
    sitk.WriteImage(empty, str(heads / "labelsTr" / "a.nii.gz"))
    with pytest.raises(UnsuitableInputError, match=r"a\.nii\.gz: no voxel of any label"):
        made(heads, "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("mirrored = true\n", "mirrored: no such field; accepted are tissues, means"),
        ("anywhere = 2\n", "anywhere 2: accepted is a share"),
        ('outside = ["bone"]\n', "'bone' is none of ball"),
        ("strip = -1\n", "strip -1: accepted is a share"),
        ("severity = 1\n", "Cannot overwrite a value"),
        ('mirror = "no"\n', "mirror: 'no' is not"),
        ("[means.t3]\nbone = 0.4\n", "means.t3: 'bone' is no tissue, such as ball"),
        ("[means.t3]\nball = 40\n", "means.t3.ball 40: accepted is an intensity from 0 to 1"),
        ('[means.t3]\nball = "x"\n', "means.t3.ball: 'x' is not a finite number"),
    ],
)
def test_a_synthesis_file_says_what_is_wrong(heads: Path, line: str, message: str) -> None:
    with pytest.raises(UnreadableInputError, match=message):
        made(heads, line)


def test_more_labels_than_a_byte_holds_stay_apart() -> None:
    labels = np.full((4, 4, 4), 300, np.uint16)
    case = Prepared("many", np.zeros((1, 4, 4, 4), np.float32), labels, np.zeros((0, 4), np.int32))
    plain = AugmentConfig(probability=0.0)
    config = TrainConfig(window=(16, 16, 16), augment=plain)
    _, target = ScanSampler([case], config).draw(RandomSource.seeded(0))
    assert target.max() == 300
    index, values = index_labels(np.arange(300).reshape(10, 10, 3))
    assert np.array_equal(values[index.numpy()], np.arange(300).reshape(10, 10, 3))


def edges(sampler: SyntheticSampler, seed: int) -> float:
    """The steepest step of a crop's image."""
    image, _ = sampler.draw(RandomSource.seeded(3, seed))
    return float(max(image.diff(dim=axis).abs().max() for axis in (1, 2, 3)))
