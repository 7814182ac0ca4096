"""Training crops: cut from prepared scans and augmented, or synthesised from label maps.

A sample is a pure function of (seed, step, place in the batch), so a resumed run draws what an unbroken
one would have drawn, whatever thread draws it.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from monai import transforms
from numpy.typing import NDArray
from torch import Tensor

from dropgen_rt.manifest import Intensity
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.dataset import Case, Dataset, read_case
from dropgen_rt.train.synthesis import (
    MEAN,
    SUBSAMPLES,
    RandomSource,
    SynthesisConfig,
    deformed_coordinates,
    draw_intensities,
    index_labels,
    look_up,
    paint,
)
from dropgen_rt.volume import read_label_map

# This share of crops is centred on a voxel of a label drawn uniformly, so that small structures are seen.
FOREGROUND_SHARE = 0.5
AUGMENTATION_PROBABILITY = 0.33
SIGMA = (0.25, 1.0)  # of the Gaussian smoothing, in voxels


class Sampler(Protocol):
    """Draws one crop: image (1, z, y, x) float32 in about [0, 1] and target (z, y, x) uint8."""

    def draw(self, source: RandomSource) -> tuple[Tensor, Tensor]: ...


class ScanSampler:
    """Crops of real scans, all held in memory on the working grid."""

    def __init__(self, cases: tuple[Case, ...], dataset: Dataset, config: TrainConfig, intensity: Intensity) -> None:
        self.window = config.window
        self.items = [_padded(*read_case(case, dataset, config, intensity), config.window) for case in cases]
        self.augment = augmentation()

    def draw(self, source: RandomSource) -> tuple[Tensor, Tensor]:
        rng = source.numbers
        image, labels = self.items[rng.integers(len(self.items))]
        corner = self._corner(labels, rng)
        cut = tuple(slice(start, start + edge) for start, edge in zip(corner, self.window, strict=True))
        # MONAI's transforms carry their own generator; seeding it from ours keeps the sample reproducible.
        self.augment.set_random_state(seed=int(rng.integers(2**31)))
        crop = {"image": torch.from_numpy(image[(slice(None), *cut)]), "label": torch.from_numpy(labels[cut][None])}
        out = self.augment(crop)
        return out["image"].as_tensor().float(), out["label"].as_tensor()[0].to(torch.uint8)

    def _corner(self, labels: NDArray, rng: np.random.Generator) -> list[int]:
        room = [size - edge for size, edge in zip(labels.shape, self.window, strict=True)]
        if rng.random() < FOREGROUND_SHARE and labels.any():
            wanted = rng.choice(np.unique(labels[labels > 0]))
            places = np.argwhere(labels == wanted)
            centre = places[rng.integers(len(places))]
            return [int(np.clip(c - edge // 2, 0, r)) for c, edge, r in zip(centre, self.window, room, strict=True)]
        return [int(rng.integers(r + 1)) for r in room]


def _padded(image: NDArray, labels: NDArray, window: tuple[int, int, int]) -> tuple[NDArray, NDArray]:
    """Centre a scan smaller than the window in zeros, as the sliding window does at inference."""
    sides = [
        (max(w - s, 0) // 2, max(w - s, 0) - max(w - s, 0) // 2) for s, w in zip(labels.shape, window, strict=True)
    ]
    return np.pad(image, [(0, 0), *sides]), np.pad(labels, sides)


def augmentation() -> transforms.Compose:
    """The reference's kinds of augmentation by MONAI, each with probability 0.33 (flips are left out: laterality)."""
    p = AUGMENTATION_PROBABILITY
    return transforms.Compose([
        transforms.RandAffined(
            ["image", "label"], prob=p, rotate_range=(0.5,) * 3, shear_range=(0.2,) * 3, scale_range=(0.2,) * 3,
            mode=("bilinear", "nearest"), padding_mode="zeros",
        ),
        transforms.RandSimulateLowResolutiond(["image"], prob=p, zoom_range=(0.4, 1.0)),
        transforms.RandBiasFieldd(["image"], prob=p, coeff_range=(0.0, 0.1)),
        transforms.RandAdjustContrastd(["image"], prob=p, gamma=(0.5, 2.0)),
        transforms.RandGaussianSmoothd(["image"], prob=p, sigma_x=SIGMA, sigma_y=SIGMA, sigma_z=SIGMA),
        transforms.RandGaussianNoised(["image"], prob=p, std=0.05),
        transforms.ScaleIntensityd(["image"], minv=0.0, maxv=1.0),
    ])  # fmt: skip


@dataclass(frozen=True)
class _Head:
    """A label map on the device: indices into ``values``, the label of each, its voxels between two fine samples."""

    index: Tensor
    values: NDArray[np.intp]
    target: Tensor
    step: float
    centres: tuple[NDArray, ...]  # per label: voxels of it, on a coarse lattice

    @staticmethod
    def read(case: Case, dataset: Dataset, config: TrainConfig, device: torch.device | str) -> "_Head":
        raw, geometry = read_label_map(case.label)
        oriented, change = geometry.reoriented(config.orientation)
        index, values = index_labels(change.apply(raw))
        merged = dataset.merge(values)
        coarse = merged[index.numpy()[::4, ::4, ::4]]
        places = [np.argwhere(coarse == label.value) * 4 for label in dataset.labels]
        step = config.spacing_mm[0] / SUBSAMPLES / oriented.spacing_mm[0]
        centres = tuple(voxels for voxels in places if len(voxels))
        return _Head(index.to(device), values, torch.from_numpy(merged).to(device), step, centres)


class SyntheticSampler:
    """Crops of heads that never were: a label map deformed, painted in a drawn contrast, corrupted."""

    def __init__(
        self, cases: tuple[Case, ...], dataset: Dataset, config: TrainConfig, device: torch.device | str = "cpu"
    ) -> None:
        assert dataset.synthesis is not None  # the caller chose this sampler because there is one
        self.synthesis: SynthesisConfig = dataset.synthesis
        self.edge = config.window[0]
        with ThreadPoolExecutor() as pool:
            self.heads = list(pool.map(lambda case: _Head.read(case, dataset, config, device), cases))

    def draw(self, source: RandomSource) -> tuple[Tensor, Tensor]:
        rng = source.numbers
        head = self.heads[rng.integers(len(self.heads))]
        centres = head.centres
        # Balanced, or a label by its size without gathering all voxels: the largest ones take most draws.
        sizes = np.array([len(voxels) for voxels in centres])
        odds = np.full(len(sizes), 1 / len(sizes)) if rng.random() < FOREGROUND_SHARE else sizes / sizes.sum()
        voxels = centres[rng.choice(len(centres), p=odds)]
        # Shifted, so that crops also meet the head's rim and the air beyond it.
        centre = voxels[rng.integers(len(voxels))] + rng.normal(0, 12, 3)
        coordinates = deformed_coordinates(centre, self.edge, head.step, source, self.synthesis.severity)
        fine = look_up(head.index, coordinates)
        table = draw_intensities(self.synthesis, head.values, rng)
        image = paint(fine, table, source, self.synthesis.severity)
        middle = F.avg_pool3d(coordinates[None], SUBSAMPLES)[0]
        # What was stripped from the image is background in the target too.
        shown = source.place(table[MEAN] > 0)
        return image, (head.target * shown)[look_up(head.index, middle).to(torch.int64)]
