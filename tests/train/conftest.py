"""A data set small enough to train on in seconds: bright balls in noise, two labels."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  the name its users know
import torch
from torch import Tensor

from dropgen_rt.store import HOME_VARIABLE
from dropgen_rt.train import checkpoint
from dropgen_rt.train.layers import Conv3d
from dropgen_rt.train.network import UNet, UNetConfig


def write_image(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


def ball_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (20, 22, 24) float32 and labels uint8: a ball whose left half is label 1, right half label 2."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices((20, 22, 24))
    centre = rng.uniform(8, 12, 3)
    inside = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < 36
    labels = np.where(inside, np.where(x < centre[2], 1, 2), 0).astype(np.uint8)
    image = 100 * np.array([0.1, 0.6, 1.0])[labels] + rng.normal(0, 5, labels.shape)
    return image.astype(np.float32), labels


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared cases go to the test's folder, not the user's."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))


@pytest.fixture
def balls(tmp_path: Path) -> Path:
    """A data folder in the nnU-Net layout with six cases."""
    folder = tmp_path / "balls"
    for case in range(6):
        image, labels = ball_case(case)
        write_image(image, folder / "imagesTr" / f"case{case}_0000.nii.gz")
        write_image(labels, folder / "labelsTr" / f"case{case}.nii.gz")
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "dim": 1, "bright": 2}}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """An encoder file with random weights, the same whatever ran before."""
    return write_encoder(tmp_path / "encoder.pt", 0)


def write_encoder(path: Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(UNetConfig(out_channels=4, width=4, levels=2, padding_mode="zeros"))
    checkpoint.save_encoder(path, network, {})
    return path


@pytest.fixture
def other_encoder(tmp_path: Path) -> Path:
    """Another one of the same layout."""
    return write_encoder(tmp_path / "other.pt", 1)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes (z, y, x) of the volumes that decoders then compute before they upsample."""
    shapes: list[tuple[int, ...]] = []
    whole = Conv3d.over_upsampled

    def counted(self: Conv3d, skip: Tensor, coarse: Tensor) -> Tensor:
        shapes.append(tuple(skip.shape[2:]))
        return whole(self, skip, coarse)

    monkeypatch.setattr(Conv3d, "over_upsampled", counted)
    return shapes
