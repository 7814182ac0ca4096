"""Augmentation by MONAI: the reference's kinds, each with its probability; flips only where declared."""

import numpy as np
from monai import transforms
from torch import Tensor

from dropgen_rt.train.config import AXES, AugmentConfig

# Gaussian sharpening's strength; the reference leaves it at MONAI's own, far stronger than any scanner.
SHARPEN_ALPHA = (1.0, 5.0)
# A coarse voxel is the mean of the fine ones that it covers. MONAI's default, and so the reference's, is the first of
# them: the image moves along each axis, by 1.5 fine voxels where four become one, and the labels stay.
DOWNSAMPLE_MODE = "area"


def augmentation(config: AugmentConfig) -> transforms.Compose:
    """For dictionaries of ``image`` (c, z, y, x) in [0, 1] and ``label`` (1, z, y, x); the image ends in [0, 1]."""
    return transforms.Compose([*_spatial(config), *_intensity(config), _clipped()])


def _spatial(config: AugmentConfig) -> list[transforms.Transform]:
    p, both = config.probability, ["image", "label"]
    steps: list[transforms.Transform] = []
    if config.rotation_degrees or config.shear or config.scale:
        angle = float(np.deg2rad(config.rotation_degrees))
        steps.append(transforms.RandAffined(
            both, prob=p, rotate_range=(angle,) * 3, shear_range=(config.shear,) * 3,
            scale_range=(config.scale,) * 3, mode=("bilinear", "nearest"), padding_mode="zeros",
        ))  # fmt: skip
    # Arrays are (z, y, x): x is the last of the three.
    steps += [transforms.RandFlipd(both, prob=0.5, spatial_axis=2 - AXES.index(axis)) for axis in config.flip_axes]
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
