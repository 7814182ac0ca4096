"""Training crops: cut from prepared scans and augmented, or synthesised from label maps.

A sample is a pure function of (seed, step, place in the batch), so a resumed run draws what an unbroken
one would have drawn, whatever thread draws it.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from dropgen_rt.errors import UnsuitableInputError, UsageError
from dropgen_rt.train.augment import augmentation
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.dataset import Case, Dataset
from dropgen_rt.train.prepare import Prepared
from dropgen_rt.train.synthesis import (
    MEAN,
    SUBSAMPLES,
    RandomSource,
    SynthesisConfig,
    averaged_labels,
    deformed_coordinates,
    draw_intensities,
    index_labels,
    look_up,
    paint,
)
from dropgen_rt.volume import read_label_map
from dropgen_rt.words import by

# This share of crops is centred on a voxel of a label drawn uniformly, so that small structures are seen.
FOREGROUND_SHARE = 0.5
# Edges of voxels that differ by less are equal: headers are rounded.
UNLIKE_EDGES = 0.01


class Sampler(Protocol):
    """Draws one crop: image (1, z, y, x) float32 in about [0, 1] and target (z, y, x) uint8; int32 past 255 labels."""

    def draw(self, source: RandomSource) -> tuple[Tensor, Tensor]: ...


class ScanSampler:
    """Crops of prepared scans, read from memory or from the cache's files, and augmented."""

    def __init__(self, cases: Sequence[Prepared], config: TrainConfig) -> None:
        self.window, self.spacing_mm = config.window, config.spacing_mm
        self.cases = tuple(cases)
        self.augment = config.augment

    def draw(self, source: RandomSource) -> tuple[Tensor, Tensor]:
        rng = source.numbers
        case = self.cases[rng.integers(len(self.cases))]
        image, labels = cut(case, self._corner(case, rng), self.window)
        # MONAI's transforms carry their own generator: seeded from ours the sample is reproducible, and made anew
        # they can be drawn from in several threads.
        augment = augmentation(self.augment, self.window, self.spacing_mm)
        augment.set_random_state(seed=int(rng.integers(2**31)))
        out = augment({"image": torch.from_numpy(image), "label": torch.from_numpy(labels[None])})
        kind = torch.uint8 if labels.dtype == np.uint8 else torch.int32
        return plain(out["image"]).float(), plain(out["label"])[0].to(kind)

    def _corner(self, case: Prepared, rng: np.random.Generator) -> list[int]:
        """(z, y, x) of the crop's first voxel; negative where the scan is smaller and is centred, as in inference."""
        room = [size - edge for size, edge in zip(case.label.shape, self.window, strict=True)]
        if rng.random() < FOREGROUND_SHARE and len(case.places):
            wanted = rng.choice(np.unique(case.places[:, 0]))
            places = case.places[case.places[:, 0] == wanted, 1:]
            centre = places[rng.integers(len(places))]
            corner = [
                int(np.clip(c - edge // 2, 0, max(r, 0))) for c, edge, r in zip(centre, self.window, room, strict=True)
            ]
        else:
            corner = [int(rng.integers(max(r, 0) + 1)) for r in room]
        return [-((-r) // 2) if r < 0 else c for c, r in zip(corner, room, strict=True)]


def plain(value: Tensor) -> Tensor:
    """Without the metadata that some of MONAI's transforms add."""
    return value.as_tensor() if isinstance(value, MetaTensor) else value


def cut(case: Prepared, corner: Sequence[int], window: tuple[int, int, int]) -> tuple[NDArray, NDArray]:
    """Image (channels, *window) and labels window, from voxel ``corner`` (z, y, x); zeros outside the scan."""
    shape = case.label.shape
    inside = tuple(slice(max(c, 0), min(c + e, s)) for c, e, s in zip(corner, window, shape, strict=True))
    to = tuple(slice(i.start - c, i.stop - c) for i, c in zip(inside, corner, strict=True))
    image = np.zeros((len(case.image), *window), np.float32)
    labels = np.zeros(window, case.label.dtype)
    image[(slice(None), *to)] = case.image[(slice(None), *inside)]
    labels[to] = case.label[inside]
    return image, labels


@dataclass(frozen=True)
class _Head:
    """A label map on the device: indices into ``values``, the label of each, its voxels between two fine samples."""

    index: Tensor
    values: NDArray[np.intp]
    target: Tensor
    step: float
    centres: tuple[NDArray, ...]  # per label: voxels of it, on a coarse lattice
    labels: frozenset[int]  # those that it has

    @staticmethod
    def read(case: Case, dataset: Dataset, config: TrainConfig, device: torch.device | str) -> "_Head":
        raw, geometry = read_label_map(case.label)
        oriented, change = geometry.reoriented(config.orientation)
        index, values = index_labels(change.apply(raw))
        require_cubes(f"{case.label}: voxels of {by(oriented.spacing_mm)} mm", oriented.spacing_mm)
        merged = dataset.merge(values)
        target = merged[index.numpy()]
        places = [_lattice(target == label.value) for label in dataset.labels]
        step = config.spacing_mm[0] / SUBSAMPLES / oriented.spacing_mm[0]
        centres = tuple(voxels for voxels in places if len(voxels))
        has = frozenset(label.value for label, voxels in zip(dataset.labels, places, strict=True) if len(voxels))
        if not centres:
            raise UnsuitableInputError(f"{case.label}: no voxel of any label; remove the map or label it")
        table = merged if merged.dtype == np.uint8 else merged.astype(np.int32)
        return _Head(index.to(device), values, torch.from_numpy(table).to(device), step, centres, has)


def _lattice(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Every fourth voxel of a label along each axis, or all where a small one lies between them."""
    places = np.argwhere(mask[::4, ::4, ::4]) * 4
    return places if len(places) else np.argwhere(mask)


def require_cubes(given: str, edges: Sequence[float]) -> None:
    """Images are painted in cubes of cubic voxels. Raises UsageError for unlike ``edges``."""
    if max(edges) > min(edges) * (1 + UNLIKE_EDGES):
        raise UsageError(f"{given}: images are synthesised in cubes of cubic voxels; give three equal edges")


class SyntheticSampler:
    """Crops of heads that never were: a label map deformed, painted in a drawn contrast, corrupted."""

    def __init__(
        self, cases: tuple[Case, ...], dataset: Dataset, config: TrainConfig, device: torch.device | str = "cpu"
    ) -> None:
        assert dataset.synthesis is not None  # the caller chose this sampler because there is one
        require_cubes(f"window {by(config.window)}", config.window)
        require_cubes(f"spacing {by(config.spacing_mm)} mm", config.spacing_mm)
        if len(dataset.channels) > 1:
            raise UsageError(
                f"{len(dataset.channels)} channels: images are synthesised in one contrast; list one in dataset.json"
            )
        self.synthesis: SynthesisConfig = dataset.synthesis
        self.edge, self.classes = config.window[0], 1 + len(dataset.labels)
        with ThreadPoolExecutor() as pool:
            self.heads = list(pool.map(lambda case: _Head.read(case, dataset, config, device), cases))
        self.labels = frozenset[int]().union(*(head.labels for head in self.heads))

    def draw(self, source: RandomSource) -> tuple[Tensor, Tensor]:
        rng = source.numbers
        head = self.heads[rng.integers(len(self.heads))]
        # Without the option no number is drawn: recorded trainings keep their crops.
        anywhere = self.synthesis.anywhere > 0 and rng.random() < self.synthesis.anywhere
        centre = rng.uniform(0, head.index.shape) if anywhere else _on_a_label(head.centres, rng)
        severity, mirror = self.synthesis.severity, self.synthesis.mirror
        coordinates = deformed_coordinates(centre, self.edge, head.step, source, severity, mirror)
        fine = look_up(head.index, coordinates)
        table = draw_intensities(self.synthesis, head.values, rng)
        passes = passes_of_an_average(self.synthesis.average, rng)
        image = paint(fine, table, source, self.synthesis.severity, passes)
        middle = F.avg_pool3d(coordinates[None], SUBSAMPLES)[0]
        # What was stripped from the image is background in the target too.
        shown = source.place(table[MEAN] > 0)
        target = (head.target * shown)[look_up(head.index, middle).to(torch.int64)]
        return image, averaged_labels(target, self.classes, passes)


def passes_of_an_average(share: float, rng: np.random.Generator) -> int:
    """By how many passes a crop is blurred that shall look like an average of heads; 0 for the other crops."""
    # Without the option no number is drawn, as of ``anywhere``. Two to eight are deviations of one to two voxels.
    return int(rng.integers(2, 9)) if share > 0 and rng.random() < share else 0


def _on_a_label(centres: Sequence[NDArray], rng: np.random.Generator) -> NDArray[np.float64]:
    """A crop's centre (z, y, x), near a voxel of one of the labels."""
    # Balanced, or a label by its size without gathering all voxels: the largest ones take most draws.
    sizes = np.array([len(voxels) for voxels in centres])
    odds = np.full(len(sizes), 1 / len(sizes)) if rng.random() < FOREGROUND_SHARE else sizes / sizes.sum()
    voxels = centres[rng.choice(len(centres), p=odds)]
    # Shifted, so that crops also meet the head's rim and the air beyond it.
    shifted: NDArray[np.float64] = voxels[rng.integers(len(voxels))] + rng.normal(0, 12, 3)
    return shifted
