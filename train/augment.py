"""Augmentation by MONAI: the reference's kinds, each with its probability; flips only where declared."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from monai import transforms
from numpy.typing import NDArray
from torch import Tensor

from dropgen_rt.train.config import AXES, AugmentConfig

# Gaussian sharpening's strength; the reference leaves it at MONAI's own, far stronger than any scanner.
SHARPEN_ALPHA = (1.0, 5.0)
# A coarse voxel is the mean of the fine ones that it covers. MONAI's default, and so the reference's, is the first of
# them: the image moves along each axis, by 1.5 fine voxels where four become one, and the labels stay.
DOWNSAMPLE_MODE = "area"
# Corners of a random intensity curve, fewest and most.
CURVE_POINTS = 3, 5


def augmentation(config: AugmentConfig, window: Sequence[int], spacing_mm: Sequence[float]) -> transforms.Compose:
    """For dictionaries of ``image`` (c, z, y, x) in [0, 1] and ``label`` (1, z, y, x); the image ends in [0, 1].

    ``window`` is the crop's (z, y, x) voxels, ``spacing_mm`` their (x, y, z): rotations and shears are those of a body,
    not of its voxels, and flat crops are tilted less.
    """
    return transforms.Compose([*_spatial(config, window, spacing_mm), *_intensity(config), _clipped()])


class _GridInMillimetres(transforms.RandAffineGrid):
    """MONAI's, for voxels that need not be cubes: 45 degrees are 45 degrees, where slices are thick as well."""

    edges: Tensor  # (4, 1, 1, 1): z, y, x of a voxel by its smallest edge, and 1

    def __call__(
        self,
        spatial_size: Sequence[int] | None = None,
        grid: NDArray | Tensor | None = None,
        randomize: bool = True,
        lazy: bool | None = None,
    ) -> Tensor:
        assert isinstance(grid, Tensor)  # RandAffined made it: voxels (z, y, x, 1) from the crop's centre
        return super().__call__(grid=grid * self.edges, randomize=randomize, lazy=lazy) / self.edges


def rotations(most_degrees: float, edges_mm: Sequence[float]) -> tuple[float, ...]:
    """The largest rotations of a crop of ``edges_mm`` (z, y, x) about its axes z, y and x, in radians.

    ``most_degrees`` where the plane that turns is square, less where it is flat, as its diagonal's angle is to 45
    degrees: what is flat soon turns out of itself and leaves the crop to zeros.
    """
    z, y, x = edges_mm
    planes = (y, x), (z, x), (z, y)
    return tuple(math.radians(most_degrees) * math.atan(min(plane) / max(plane)) / (math.pi / 4) for plane in planes)


def _affine_grid(config: AugmentConfig, window: Sequence[int], spacing_mm: Sequence[float]) -> _GridInMillimetres:
    voxel_mm = spacing_mm[::-1]
    angles = rotations(config.rotation_degrees, [edge * mm for edge, mm in zip(window, voxel_mm, strict=True)])
    grid = _GridInMillimetres(angles, (config.shear,) * 3, scale_range=(config.scale,) * 3)
    grid.edges = torch.tensor([*(mm / min(voxel_mm) for mm in voxel_mm), 1.0]).reshape(4, 1, 1, 1)
    return grid


class RandIntensityCurved(transforms.RandomizableTransform):
    """A contrast that no scanner may have: intensities go through a polyline that rises and falls at random.

    The idea is that of Models Genesis' non-linear transformation (Zhou et al., arXiv 1908.06912). The polyline has
    CURVE_POINTS corners, evenly spaced from 0 to 1, the highest at 1. The first is at 0: air is dark in any contrast,
    and beyond a scan there is nothing. Where it may be bright, what is learnt carries over to no T2 (measured).
    """

    def __call__(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        self.randomize(None)
        if not self._do_transform:
            return data
        return {**data, "image": torch.stack([self._curved(channel) for channel in data["image"]])}

    def _curved(self, channel: Tensor) -> Tensor:
        corners = self.R.uniform(size=self.R.randint(CURVE_POINTS[0], CURVE_POINTS[1] + 1))
        corners[0] = 0
        values = np.interp(channel.numpy(), np.linspace(0, 1, len(corners)), corners / corners.max())
        return torch.from_numpy(values.astype(np.float32))


def _spatial(config: AugmentConfig, window: Sequence[int], spacing_mm: Sequence[float]) -> list[transforms.Transform]:
    p, both = config.probability, ["image", "label"]
    steps: list[transforms.Transform] = []
    if config.rotation_degrees or config.shear or config.scale:
        affine = transforms.RandAffined(both, prob=p, mode=("bilinear", "nearest"), padding_mode="zeros")
        affine.rand_affine.rand_affine_grid = _affine_grid(config, window, spacing_mm)
        steps.append(affine)
    # Arrays are (z, y, x): x is the last of the three.
    steps += [transforms.RandFlipd(both, prob=0.5, spatial_axis=2 - AXES.index(axis)) for axis in config.flip_axes]
    if config.quarter_turns:
        steps.append(transforms.RandRotate90d(both, prob=0.5, max_k=3, spatial_axes=(1, 2)))
    return steps


def _intensity(config: AugmentConfig) -> list[transforms.Transform]:
    p, image, sigma = config.probability, ["image"], config.smooth_voxels
    steps: list[transforms.Transform] = []
    if config.intensity_curve:
        steps.append(RandIntensityCurved(config.intensity_curve))
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
