"""Augmentation: the reference's kinds and probabilities, labels moved with images, flips only where declared."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import center_of_mass
from tolerances import MOVED_VOXELS, TURNED_LENGTH

from dropgen_rt.train.augment import CURVE_POINTS, augmentation, rotations
from dropgen_rt.train.config import AugmentConfig
from dropgen_rt.train.samples import plain

STILL = AugmentConfig(
    rotation_degrees=0, shear=0, scale=0, zoom=(1, 1), noise=0, bias_field=(0, 0), gibbs=(0, 0), gamma=(1, 1),
    smooth_voxels=(0, 0), sharpen=False,
)  # fmt: skip

# A window and a spacing that leave every rotation as it is.
CUBE = (16, 16, 16), (1.0, 1.0, 1.0)
# The standard deviation of a blob that is turned: wide enough for slices of 4 mm.
BLOB_MM = 3.0


def crop() -> dict[str, torch.Tensor]:
    """A ramp along x with its right half labelled: a flip shows in both."""
    image = torch.linspace(0, 1, 12).expand(1, 8, 10, 12).clone()
    return {"image": image, "label": (image > 0.5).to(torch.uint8)}


def drawn(config: AugmentConfig, seed: int) -> dict[str, torch.Tensor]:
    out = augmentation(config, *CUBE).set_random_state(seed=seed)(crop())
    return {key: plain(value) for key, value in out.items()}


def test_the_references_list_and_probabilities() -> None:
    steps = augmentation(AugmentConfig(), *CUBE).transforms
    names = {type(step).__name__ for step in steps}
    assert names == {
        "RandAffined", "RandSimulateLowResolutiond", "RandGaussianNoised", "RandBiasFieldd", "RandGibbsNoised",
        "RandAdjustContrastd", "RandGaussianSmoothd", "RandGaussianSharpend", "Lambdad",
    }  # fmt: skip
    assert {step.prob for step in steps if hasattr(step, "prob")} == {0.33}


def test_what_is_switched_off_changes_nothing() -> None:
    out = drawn(STILL, 0)
    assert torch.equal(out["image"], crop()["image"]) and torch.equal(out["label"], crop()["label"])


@pytest.mark.parametrize(("axis", "dimension"), [("x", 3), ("y", 2), ("z", 1)])
def test_a_declared_axis_is_flipped_half_the_time_labels_too(axis: str, dimension: int) -> None:
    config = AugmentConfig(**{**vars(STILL), "flip_axes": (axis,)})
    image = torch.arange(8 * 10 * 12, dtype=torch.float32).reshape(1, 8, 10, 12) / 960
    flips = 0
    for seed in range(40):
        out = augmentation(config, *CUBE).set_random_state(seed=seed)({"image": image, "label": image})
        flipped = torch.equal(plain(out["image"]), image.flip(dimension))
        assert flipped or torch.equal(plain(out["image"]), image)
        assert torch.equal(plain(out["label"]), plain(out["image"]))
        flips += flipped
    assert 8 < flips < 32


def test_undeclared_flips_never_happen() -> None:
    """Turned by up to 45 degrees or sheared, the labelled half still lies to the right."""
    for seed in range(30):
        label = drawn(AugmentConfig(rotation_degrees=45), seed)["label"][0].numpy()
        if label.any():
            assert np.argwhere(label)[:, 2].mean() > 5.5


@pytest.mark.parametrize("seed", range(12))
def test_images_stay_in_range_and_labels_stay_labels(seed: int) -> None:
    out = drawn(AugmentConfig(probability=1.0), seed)
    assert torch.isfinite(out["image"]).all() and out["image"].min() >= 0 and out["image"].max() <= 1
    assert set(out["label"].unique().tolist()) <= {0, 1}


ALONE = {
    "affine": {"rotation_degrees": 45, "shear": 0.2, "scale": 0.2},
    "low resolution": {"zoom": (0.25, 1.0)},
    "ringing": {"gibbs": (0.0, 0.33)},
    "smooth": {"smooth_voxels": (0.25, 1.0)},
    "sharp": {"sharpen": True},
}


@pytest.mark.parametrize("changes", ALONE.values(), ids=ALONE)
def test_an_image_stays_on_its_labels(changes: dict[str, Any]) -> None:
    """A ball's centre of mass, image against label, over draws: a blur that moves the image teaches a wrong border."""
    ball = np.linalg.norm(np.indices((32, 40, 32)) - np.reshape((14, 22, 15), (3, 1, 1, 1)), axis=0) < 7
    moved = []
    for seed in range(30):
        augment = augmentation(replace(STILL, probability=1.0, **changes), *CUBE).set_random_state(seed=seed)
        out = augment(
            {
                "image": torch.from_numpy(0.6 * ball[None].astype(np.float32)),
                "label": torch.from_numpy(ball[None].astype(np.uint8)),
            }
        )
        centres = [np.array(center_of_mass(plain(out[key])[0].numpy())) for key in ("image", "label")]
        moved.append(centres[0] - centres[1])
    assert np.abs(np.mean(moved, axis=0)).max() < MOVED_VOXELS


def curved(image: torch.Tensor, seed: int, probability: float = 1.0) -> torch.Tensor:
    config = replace(STILL, probability=0.0, intensity_curve=probability)
    given = {"image": image, "label": (image[:1] > 0.5).to(torch.uint8)}
    out = augmentation(config, *CUBE).set_random_state(seed=seed)(given)
    assert torch.equal(plain(out["label"]), given["label"])
    assert torch.equal(image, given["image"])  # as it came: prepared scans are drawn from again
    return plain(out["image"])


def test_a_contrast_is_a_polyline_that_begins_dark() -> None:
    image = torch.linspace(0, 1, 1201).reshape(1, 1, 1, -1)  # the corners of all curves are among these
    found = [curved(image, seed)[0, 0, 0].numpy() for seed in range(60)]
    assert all(out[0] == 0 and out.dtype == np.float32 for out in found)
    assert [out.max() for out in found] == pytest.approx([1.0] * 60)
    corners = [2 + np.count_nonzero(np.abs(np.diff(out, 2)) > 1e-5) for out in found]
    assert set(corners) == set(range(CURVE_POINTS[0], CURVE_POINTS[1] + 1))
    assert 15 < sum(out[-1] < 1 for out in found) < 60  # the brightest is often not the brightest any more


def test_each_channel_has_a_contrast_of_its_own_in_its_share_of_crops() -> None:
    image = torch.linspace(0, 1, 1200).expand(2, 1, 1, -1).clone()
    found = [curved(image, seed, 0.3) for seed in range(100)]
    changed = [out for out in found if not torch.equal(out, image)]
    assert 15 < len(changed) < 45
    assert np.mean([torch.equal(out[0], out[1]) for out in changed]) < 0.1


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.5, 1.5, 4.0), (3.0, 1.0, 1.0)])
def test_a_turn_keeps_lengths_in_millimetres(spacing_mm: tuple[float, float, float]) -> None:
    """Two blobs, turned by up to 45 degrees about each axis, stay as far apart, where voxels are no cubes as well."""
    edges = np.reshape(spacing_mm[::-1], (3, 1, 1, 1))
    places = (np.indices([int(48 / edge) for edge in edges.ravel()]) + 0.5) * edges
    centres = (18.0, 20.0, 22.0), (28.0, 30.0, 26.0)
    blobs = [np.exp(-(((places - np.reshape(c, (3, 1, 1, 1))) / BLOB_MM) ** 2).sum(0) / 2) for c in centres]
    image = torch.from_numpy(np.array(blobs, np.float32))

    def apart(blobs: np.ndarray) -> float:
        first, second = (np.array(center_of_mass(blob)) for blob in blobs)
        return float(np.linalg.norm((first - second) * spacing_mm[::-1]))

    config = replace(STILL, probability=1.0, rotation_degrees=45)
    for seed in range(10):
        out = augmentation(config, image.shape[1:], spacing_mm).set_random_state(seed=seed)(
            {"image": image, "label": image[:1]}
        )
        assert apart(plain(out["image"]).numpy()) == pytest.approx(apart(image.numpy()), rel=TURNED_LENGTH)


@pytest.mark.parametrize(
    ("edges_mm", "degrees"),
    [((48, 48, 48), (45, 45, 45)), ((80, 178, 178), (45, 24.2, 24.2)), ((64, 64, 32), (26.6, 26.6, 45))],
)
def test_flat_crops_are_tilted_less(edges_mm: tuple[float, ...], degrees: tuple[float, ...]) -> None:
    assert np.rad2deg(rotations(45, edges_mm)) == pytest.approx(degrees, abs=0.05)
    assert rotations(180, edges_mm) == pytest.approx(4 * np.array(rotations(45, edges_mm)))
