"""Augmentation by MONAI: the reference's kinds, each with its probability; flips only where declared."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from monai import transforms
from torch import Tensor

from dropgen_rt.train.config import AXES, AugmentConfig

# Gaussian sharpening's strength; the reference leaves it at MONAI's own, far stronger than any scanner.
SHARPEN_ALPHA = (1.0, 5.0)
# A coarse voxel is the mean of the fine ones that it covers. MONAI's default, and so the reference's, is the first of
# them: the image moves along each axis, by 1.5 fine voxels where four become one, and the labels stay.
DOWNSAMPLE_MODE = "area"


def augmentation(config: AugmentConfig) -> transforms.Compose:
    """For dictionaries of ``image`` (c, z, y, x) in [0, 1] and ``label`` (1, z, y, x); the image ends in [0, 1].

    Flips and intensities; what turns a crop is ``random_places``.
    """
    return transforms.Compose([*_flips(config), *_intensity(config), _clipped()])


def random_places(
    config: AugmentConfig, window: Sequence[int], spacing_mm: Sequence[float], rng: np.random.Generator
) -> Tensor | None:
    """Where the voxels of a crop that is turned, sheared and scaled about its centre come from; None if it stays.

    (3, z, y, x) float32, in voxels along z, y and x from the crop's centre, for a crop of ``window`` (z, y, x) voxels
    of ``spacing_mm`` (x, y, z). Turns and shears are those of a body, not of its voxels; flat crops are tilted less.
    """
    moves = config.rotation_degrees or config.shear or config.scale
    if not moves or rng.random() >= config.probability:
        return None
    edges_mm = spacing_mm[::-1]
    angles = rotations(config.rotation_degrees, [edge * mm for edge, mm in zip(window, edges_mm, strict=True)])
    affine = transforms.RandAffineGrid(angles, (config.shear,) * 3, scale_range=(config.scale,) * 3)
    affine.set_random_state(seed=int(rng.integers(2**31)))
    axes = [torch.arange(edge, dtype=torch.float32) - (edge - 1) / 2 for edge in window]
    places = torch.stack([*torch.meshgrid(*axes, indexing="ij"), torch.ones(tuple(window))])
    # 45 degrees are 45 degrees, where slices are thick as well; the fourth coordinate is an affine map's 1.
    edges = torch.tensor([*(mm / min(edges_mm) for mm in edges_mm), 1.0]).reshape(4, 1, 1, 1)
    return (affine(grid=places * edges) / edges)[:3].float()


def rotations(most_degrees: float, edges_mm: Sequence[float]) -> tuple[float, ...]:
    """The largest rotations of a crop of ``edges_mm`` (z, y, x) about its axes z, y and x, in radians.

    ``most_degrees`` where the plane that turns is square, less where it is flat, as its diagonal's angle is to 45
    degrees: what is flat soon turns out of itself and leaves the crop to zeros.
    """
    z, y, x = edges_mm
    planes = (y, x), (z, x), (z, y)
    return tuple(math.radians(most_degrees) * math.atan(min(plane) / max(plane)) / (math.pi / 4) for plane in planes)


def _flips(config: AugmentConfig) -> list[transforms.Transform]:
    both = ["image", "label"]
    # Arrays are (z, y, x): x is the last of the three.
    steps: list[transforms.Transform] = [
        transforms.RandFlipd(both, prob=0.5, spatial_axis=2 - AXES.index(axis)) for axis in config.flip_axes
    ]
    if config.quarter_turns:
        steps.append(transforms.RandRotate90d(both, prob=0.5, max_k=3, spatial_axes=(1, 2)))
    return steps


def _intensity(config: AugmentConfig) -> list[transforms.Transform]:
    p, image, sigma = config.probability, ["image"], config.smooth_voxels
    steps: list[transforms.Transform] = []
    if config.zoom[0] < 1:
        steps.append(transforms.RandSimulateLowResolutiond(
            image, prob=p, zoom_range=config.zoom, downsample_mode=DOWNSAMPLE_MODE,
        ))  # fmt: skip
    if config.noise:
        steps.append(transforms.RandGaussianNoised(image, prob=p, std=config.noise))
    if config.bias_field[1]:
        steps.append(transforms.RandBiasFieldd(image, prob=p, coeff_range=config.bias_field))
    if config.gibbs[1]:
        steps.append(transforms.RandGibbsNoised(image, prob=p, alpha=config.gibbs))
    if config.gamma != (1.0, 1.0):
        steps.append(transforms.RandAdjustContrastd(image, prob=p, gamma=config.gamma))
    if sigma[1]:
        steps.append(transforms.RandGaussianSmoothd(image, prob=p, sigma_x=sigma, sigma_y=sigma, sigma_z=sigma))
    if config.sharpen:
        steps.append(transforms.RandGaussianSharpend(image, prob=p, alpha=SHARPEN_ALPHA))
    return steps


def _clipped() -> transforms.Transform:
    """Back into [0, 1], not to the crop's own extremes: at inference a window keeps the scale of its whole scan."""
    return transforms.Lambdad(["image"], func=_clip)


def _clip(image: Tensor) -> Tensor:
    return image.clamp(0, 1)
