"""Images synthesised from label maps: a new head, in a new contrast, on every call.

The idea is SynthSeg's (Billot et al., arXiv 2107.09559): deform a label map, draw one intensity
distribution per label, corrupt the result. Contrasts here are a mixture of named ones (T1-like, T2-like,
each a mean per tissue) and fully random ones, so that a model meets its most likely scans most often.

Label maps are kept at their own fine grid; an image is drawn on that grid and averaged down to the
training spacing, which gives borders the partial volume that real scans have.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# Fine samples per training voxel and axis: two give eight intensities to average, enough for soft borders.
SUBSAMPLES = 2


@dataclass(frozen=True)
class SynthesisConfig:
    """How images are drawn; read from the data set's ``synthesis.toml``.

    ``tissues`` maps a tissue's name to its source label values, ``means`` a contrast's name to the mean
    intensity in [0, 1] of each tissue, ``contrasts`` the probability of each contrast ("random" is free).
    ``outside`` names tissues that a skull-stripped scan lacks; ``fluid`` one that it may lack. A source
    ``severity`` scales deformation and corruption: 0 is none, 1 the full range. A source
    value that no tissue lists, and a tissue that a contrast gives no mean, gets a random intensity.
    """

    tissues: dict[str, tuple[int, ...]]
    means: dict[str, dict[str, float]]
    contrasts: dict[str, float]
    outside: tuple[str, ...] = ()
    fluid: str | None = None
    strip: float = 0.5
    mean_jitter: float = 0.05
    severity: float = 1.0

    @staticmethod
    def read(path: Path) -> "SynthesisConfig":
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        return SynthesisConfig(
            tissues={name: tuple(values) for name, values in data["tissues"].items()},
            means=data["means"],
            contrasts=data["contrasts"],
            outside=tuple(data.get("outside", ())),
            fluid=data.get("fluid"),
            strip=data.get("strip", 0.5),
            mean_jitter=data.get("mean_jitter", 0.05),
            severity=data.get("severity", 1.0),
        )


def draw_intensities(config: SynthesisConfig, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(2, len(values)) float32: mean and standard deviation for each source label value, background first."""
    names = list(config.contrasts)
    odds = np.array([config.contrasts[name] for name in names])
    contrast = names[rng.choice(len(names), p=odds / odds.sum())]
    stripped = rng.random() < config.strip
    dry = stripped and rng.random() < 0.5
    table = np.zeros((2, len(values)), np.float32)
    index = {int(value): i for i, value in enumerate(values)}
    for tissue, members in config.tissues.items():
        if contrast == "random":
            mean = rng.uniform(0.05, 1.0)
        else:
            mean = config.means[contrast].get(tissue, rng.uniform(0.05, 1.0))
            mean += rng.normal(0, config.mean_jitter)
        for value in members:
            if value not in index:
                continue
            own = rng.normal(0, 0.02)  # neighbours of one tissue still differ a little
            table[:, index[value]] = max(mean + own, 0.0), rng.uniform(0.01, 0.07)
        if (stripped and tissue in config.outside) or (dry and tissue == config.fluid):
            table[:, [index[value] for value in members if value in index]] = 0.0
    listed = {value for members in config.tissues.values() for value in members}
    for value in set(index) - listed - {0}:
        table[:, index[value]] = rng.uniform(0.05, 1.0), rng.uniform(0.01, 0.07)
    background = 0.0 if stripped else rng.uniform(0, 0.05)
    table[:, 0] = background, background * 0.5
    return table


def deformed_coordinates(
    centre: np.ndarray, edge: int, step: float, rng: np.random.Generator, severity: float = 1.0
) -> Tensor:
    """(3, n, n, n) float32: where the ``n = edge * SUBSAMPLES`` fine samples of a crop lie in the map, in its voxels.

    ``centre`` is (z, y, x) in voxels, ``step`` the map's voxels between two fine samples. A random affine
    (left-right flip, rotation to 20 degrees, scale and shear) is followed by a smooth random displacement.
    """
    n = edge * SUBSAMPLES
    line = (torch.arange(n, dtype=torch.float32) - (n - 1) / 2) * step
    matrix = torch.from_numpy(_random_affine(rng, severity).astype(np.float32))
    axes = [line.view(-1, 1, 1), line.view(1, -1, 1), line.view(1, 1, -1)]
    knots = torch.from_numpy(rng.normal(0, rng.uniform(0, 4.0 * severity), (1, 3, 6, 6, 6)).astype(np.float32))
    shift = F.interpolate(knots, size=(n, n, n), mode="trilinear", align_corners=True)[0]
    for i in range(3):
        shift[i] += matrix[i, 0] * axes[0]
        shift[i] += matrix[i, 1] * axes[1]
        shift[i] += matrix[i, 2] * axes[2] + float(centre[i])
    return shift


def _random_affine(rng: np.random.Generator, severity: float) -> np.ndarray:
    scale = 1 + severity * rng.uniform(-0.18, 0.2, 3)
    shear = severity * rng.uniform(-0.08, 0.08, (3, 3)) * (1 - np.eye(3))
    matrix = np.diag(scale) @ (np.eye(3) + shear)
    for axis in range(3):
        angle = np.deg2rad(severity * rng.uniform(-20, 20))
        i, j = [(1, 2), (0, 2), (0, 1)][axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    if rng.random() < 0.5:
        matrix[:, 2] *= -1  # left and right carry one label
    return matrix


def index_labels(raw: NDArray[np.integer]) -> tuple[Tensor, NDArray[np.intp]]:
    """A (z, y, x) label map as uint8 indices into its sorted values, and those values."""
    values = np.flatnonzero(np.bincount(raw.ravel()))
    table = np.zeros(values[-1] + 1, np.uint8)
    table[values] = np.arange(len(values))
    return torch.from_numpy(table[raw]), values


def look_up(label_map: Tensor, coordinates: Tensor) -> Tensor:
    """Nearest label of a (z, y, x) uint8 map at (3, …) voxel coordinates; outside is 0. Shape (…), uint8."""
    index = torch.zeros(coordinates.shape[1:], dtype=torch.int64)
    inside = torch.ones(coordinates.shape[1:], dtype=torch.bool)
    for axis, size in enumerate(label_map.shape):
        nearest = coordinates[axis].round().to(torch.int64)
        inside &= (nearest >= 0) & (nearest < size)
        index.mul_(size).add_(nearest.clamp_(0, size - 1))
    return torch.where(inside, label_map.reshape(-1)[index], torch.zeros((), dtype=label_map.dtype))


def paint(labels: Tensor, table: np.ndarray, rng: np.random.Generator, severity: float = 1.0) -> Tensor:
    """A (1, n, n, n) float32 image from a fine (2n, 2n, 2n) crop of label indices; corrupted, in about [0, 1]."""
    noise = torch.from_numpy(rng.standard_normal(labels.shape, dtype=np.float32))
    index = labels.to(torch.int64)
    image = torch.from_numpy(table[0])[index] + torch.from_numpy(table[1])[index] * noise
    image = F.avg_pool3d(image[None, None].clamp_min_(0), SUBSAMPLES)
    return corrupt(image, rng, severity)[0]


def corrupt(image: Tensor, rng: np.random.Generator, severity: float = 1.0) -> Tensor:
    """What scanners do to a (1, 1, n, n, n) image: bias field, thick slices, blur, noise, gamma, gain."""
    edge = image.shape[-1]
    if rng.random() < 0.7:
        knots = torch.from_numpy(rng.normal(0, rng.uniform(0, 0.25 * severity), (1, 1, 4, 4, 4)).astype(np.float32))
        image = image * F.interpolate(knots, size=(edge,) * 3, mode="trilinear", align_corners=True).exp()
    if rng.random() < 0.2 * severity:
        sizes = [edge] * 3
        sizes[rng.integers(3)] = int(edge / rng.uniform(1.3, 3.0))
        thick = F.interpolate(image, size=sizes, mode="area")
        image = F.interpolate(thick, size=(edge,) * 3, mode="trilinear", align_corners=False)
    if rng.random() < 0.5:
        image = blur(image, rng.uniform(0.2, 0.8))
    upper = float(torch.quantile(image.reshape(-1)[::7], 0.995))
    image = image / max(upper, 1e-3)
    image = image.clamp_min(0) ** float(np.exp(rng.normal(0, 0.2 * severity)))
    noise = torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32))
    image = image + noise * float(rng.uniform(0, 0.05 * severity))
    # A whole-scan percentile sets the scale at inference; scalp fat can be brighter than any crop's brain.
    return (image * float(1 + severity * rng.uniform(-0.4, 0.1))).clamp_(0, 1)


def blur(image: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur of a (1, 1, n, n, n) image; ``sigma`` in voxels, three taps."""
    side = float(np.exp(-0.5 / sigma**2))
    taps = torch.tensor([side, 1.0, side]) / (1 + 2 * side)
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = 3
        padding = [0, 0, 0]
        padding[axis] = 1
        image = F.conv3d(image, taps.reshape(shape), padding=tuple(padding))
    return image


def shape_ensemble(edge: int, rng: np.random.Generator) -> Tensor:
    """A fine (2n, 2n, 2n) uint8 crop of random smooth regions: the arg-max of smooth noise fields."""
    n = edge * SUBSAMPLES
    regions, knots = int(rng.integers(6, 20)), int(rng.integers(4, 11))
    coarse = torch.from_numpy(rng.standard_normal((1, regions, knots, knots, knots), dtype=np.float32))
    half = F.interpolate(coarse, size=(n // 2,) * 3, mode="trilinear", align_corners=True).argmax(1, keepdim=True)
    return F.interpolate(half.to(torch.uint8), size=(n,) * 3, mode="nearest")[0, 0]
