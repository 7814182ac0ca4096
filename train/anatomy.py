"""What an encoder is pretrained on: ensembles of shapes and whole heads, each painted in two contrasts."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dropgen_rt.errors import MissingInputError, UnsuitableInputError
from dropgen_rt.inspect_file import scans_in
from dropgen_rt.train.shapes import cut_templates, shape_ensemble
from dropgen_rt.train.synthesis import (
    SUBSAMPLES,
    RandomSource,
    SynthesisConfig,
    deformed_coordinates,
    index_labels,
    look_up,
    paint,
)
from dropgen_rt.volume import read_label_map
from dropgen_rt.words import by

SHAPES_SHARE = 0.5
# A voxel's edge in crops of heads, so that the encoder meets fine and coarse scans; label maps are at 1 mm.
SPACING_MM = (0.9, 2.5)
# What label maps have, and how far headers may be off.
MAP_SPACING_MM, MAP_SPACING_TOLERANCE = 1.0, 0.1
# Stronger than what a segmentor trains under: features must outlast what they will meet.
SEVERITY = 1.2
MOST_VALUES = 256  # each value of a label map is one byte here


@dataclass(frozen=True)
class Anatomy:
    """What ensembles are drawn from, on the device that trains: whole label maps and the structures cut from them."""

    maps: tuple[Tensor, ...]
    templates: Tensor
    digest: str  # of the maps' voxels, left and right merged or not

    @staticmethod
    def read(folder: Path, device: torch.device, tissues: Path | None = None) -> "Anatomy":
        """Every label map of a folder. Raises as ``read_indexed_maps``.

        ``tissues`` is a synthesis.toml: source values of one tissue become one label, left and right for example.
        """
        maps = read_indexed_maps(folder, SynthesisConfig.read(tissues).tissues if tissues is not None else {})
        digest = hashlib.sha256()
        for some in maps:
            digest.update(repr(tuple(some.shape)).encode())
            digest.update(some.numpy().tobytes())
        placed = tuple(some.to(device) for some in maps)
        return Anatomy(placed, torch.cat([cut_templates(some) for some in placed]), digest.hexdigest())


def read_indexed_maps(folder: Path, tissues: dict[str, tuple[int, ...]]) -> list[Tensor]:
    """Every label map of a folder, turned to LPS, as (z, y, x) uint8 indices into its sorted values.

    Values of one tissue become the first of them before that. Raises MissingInputError, or UnsuitableInputError for
    voxels of another size than MAP_SPACING_MM, of too many values or of none.
    """
    paths = scans_in(folder) if folder.is_dir() else []
    if not paths:
        raise MissingInputError(f"{folder}: no label maps in it; name a folder that has some")

    def read(path: Path) -> Tensor:
        raw, geometry = read_label_map(path)
        merged = np.arange(int(raw.max()) + 1)
        for values in tissues.values():
            merged[[value for value in values if value < len(merged)]] = values[0]
        if any(abs(mm / MAP_SPACING_MM - 1) > MAP_SPACING_TOLERANCE for mm in geometry.spacing_mm):
            raise UnsuitableInputError(
                f"{path}: voxels of {by(geometry.spacing_mm)} mm, accepted are {MAP_SPACING_MM:g} mm; resample it"
            )
        _, change = geometry.reoriented("LPS")
        index, found = index_labels(merged[change.apply(raw)])
        if len(found) > MOST_VALUES:
            raise UnsuitableInputError(
                f"{path}: {len(found)} different values, accepted are {MOST_VALUES}; merge some by --tissues"
            )
        if len(found) < 2:
            raise UnsuitableInputError(
                f"{path}: holds nothing but background, of which nothing is learnt; remove it, or name another folder"
            )
        return index

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, paths))


def two_views(anatomy: Anatomy, edge: int, source: RandomSource) -> tuple[Tensor, Tensor]:
    """Images (2, 1, n, n, n) float32 of one ensemble in two contrasts, and its labels (n, n, n) uint8."""
    rng = source.numbers
    if rng.random() < SHAPES_SHARE:
        fine = shape_ensemble(edge, anatomy.templates, source)
    else:
        chosen = anatomy.maps[rng.integers(len(anatomy.maps))]
        centre = [rng.uniform(0.3, 0.7) * size for size in chosen.shape]
        step = rng.uniform(*SPACING_MM) / SUBSAMPLES
        fine = look_up(chosen, deformed_coordinates(centre, edge, step, source))
    views = torch.stack([paint(fine, random_table(256, rng), source, SEVERITY) for _ in range(2)])
    return views, fine[::SUBSAMPLES, ::SUBSAMPLES, ::SUBSAMPLES]


def random_table(labels: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(3, labels): independent means in [0.02, 1], deviations and textures; label 0 is black half the time."""
    rows = rng.uniform(0.02, 1.0, labels), rng.uniform(0.01, 0.08, labels), rng.uniform(0, 0.12, labels)
    table = np.stack(rows).astype(np.float32)
    if rng.random() < 0.5:
        table[:, 0] = 0
    return table
