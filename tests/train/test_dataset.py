"""Data folders: both label styles, merged labels, the split, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  the name its users know

from dropgen_rt.errors import GeometryError, InputError
from dropgen_rt.manifest import Intensity
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.dataset import read_case, read_dataset


def describe(folder: Path, **changes: object) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_split_and_labels(balls: Path) -> None:
    dataset = read_dataset(balls)
    assert [label.name for label in dataset.labels] == ["dim", "bright"]
    assert [case.name for case in dataset.validation] == ["case4"]
    assert len(dataset.training) == 5
    assert dataset.channels == ("MRI",)


def test_decathlon_style_labels_mean_the_same(balls: Path) -> None:
    describe(balls, labels={"0": "background", "1": "dim", "2": "bright"})
    assert [(label.value, label.name) for label in read_dataset(balls).labels] == [(1, "dim"), (2, "bright")]


def test_codes_and_the_dicom_rule(balls: Path) -> None:
    code = ["10200004", "SCT", "Liver"]
    describe(balls, codes={"dim": code}, dicom={"modality": ["CT"], "pick": "thickest"})
    dataset = read_dataset(balls)
    assert [label.code for label in dataset.labels] == [tuple(code), None]
    assert (dataset.source.modality, dataset.source.pick) == (("CT",), "thickest")


@pytest.mark.parametrize("wrong", [{"codes": {"dim": ["1"]}}, {"dicom": {"pick": "any"}}, {"dicom": {"body": "x"}}])
def test_wrong_codes_and_rules_are_named(balls: Path, wrong: dict) -> None:
    describe(balls, **wrong)
    with pytest.raises(InputError, match=next(iter(wrong))):
        read_dataset(balls)


def test_lists_merge_source_values(balls: Path) -> None:
    describe(balls, labels={"background": 0, "ball": [1, 2]})
    merged = read_dataset(balls).merge(np.array([0, 1, 2, 3]))
    assert merged.tolist() == [0, 1, 1, 0]


def test_a_case_comes_on_the_working_grid(balls: Path) -> None:
    dataset = read_dataset(balls)
    config = TrainConfig(window=(16, 16, 16), spacing_mm=(2.0, 1.0, 1.0))
    image, labels = read_case(dataset.training[0], dataset, config, Intensity())
    assert image.shape == (1, 20, 22, 12)
    assert labels.shape == (20, 22, 12)
    assert image.min() == 0
    assert image.max() == pytest.approx(1)
    assert image[0][labels == 2].mean() > image[0][labels == 1].mean() > image[0][labels == 0].mean()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "dataset.json").unlink(), "dataset.json: no such file"),
        (lambda folder: (folder / "dataset.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "dataset.json").write_text("{}"), 'no "labels" table'),
        (lambda folder: describe(folder, labels={"background": 0}), "at least one label"),
        (lambda folder: describe(folder, labels={"ball": "x", "y": "z"}), '"labels" are not'),
        (lambda folder: shutil.rmtree(folder / "labelsTr"), "no .nii.gz label maps"),
        (lambda folder: (folder / "imagesTr" / "case2_0000.nii.gz").unlink(), "no image for 1 labels: case2"),
    ],
)
def test_faults_are_named(balls: Path, damage: object, message: str) -> None:
    damage(balls)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        read_dataset(balls)


def test_unlike_grids_are_refused(balls: Path) -> None:
    dataset = read_dataset(balls)
    case = dataset.training[0]
    config = TrainConfig(window=(16, 16, 16))
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((5, 5, 5), np.uint8)), str(case.label))
    with pytest.raises(GeometryError, match=r"shape \(5, 5, 5\), its image has \(20, 22, 24\)"):
        read_case(case, dataset, config, Intensity())
