"""Images synthesised from label maps: a new head, in a new contrast, on every call.

The idea is SynthSeg's (Billot et al., arXiv 2107.09559): deform a label map, draw one intensity
distribution per label, corrupt the result. Contrasts here are a mixture of named ones (T1-like, T2-like,
each a mean per tissue) and fully random ones, so that a model meets its most likely scans most often.

Label maps are kept at their own fine grid; an image is drawn on that grid and averaged down to the
training spacing, which gives borders the partial volume that real scans have. Everything is drawn on the
device that trains, where an image costs milliseconds.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dropgen_rt.errors import UnreadableInputError, UsageError
from dropgen_rt.typed_fields import read_fields
from dropgen_rt.volume import MAX_LABEL

# Fine samples per training voxel and axis: two give eight intensities to average, enough for soft borders.
SUBSAMPLES = 2
# A mean of 0 says that a tissue was stripped; the darkest that is shown has this one.
DARKEST = 1e-3
# Rows of an intensity table.
MEAN, DEVIATION, TEXTURE = range(3)


@dataclass(frozen=True)
class RandomSource:
    """Chance for one sample: ``numbers`` for single values, ``fields`` for noise, on the device that paints."""

    numbers: np.random.Generator
    fields: torch.Generator

    @staticmethod
    def seeded(*seed: int, device: str | torch.device = "cpu") -> "RandomSource":
        """The same sample for the same seed, on one kind of device."""
        numbers = np.random.default_rng(seed)
        return RandomSource(numbers, torch.Generator(device).manual_seed(int(numbers.integers(2**62))))

    @property
    def device(self) -> torch.device:
        return self.fields.device

    def place(self, array: NDArray) -> Tensor:
        """A small array on the device; a GPU gets it without waiting."""
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def normal(self, *shape: int) -> Tensor:
        """Standard normal float32 of a shape."""
        return torch.randn(shape, generator=self.fields, device=self.device)

    def smooth(self, knots: int, edge: int, channels: int = 1) -> Tensor:
        """(1, channels, n, n, n): standard normal values at ``knots`` per axis, interpolated linearly to ``edge``."""
        coarse = self.normal(1, channels, knots, knots, knots)
        return F.interpolate(coarse, size=(edge,) * 3, mode="trilinear", align_corners=True)


@dataclass(frozen=True)
class SynthesisConfig:
    """How images are drawn; read from the data set's ``synthesis.toml``.

    ``tissues`` maps a tissue's name to its source label values, ``means`` a contrast's name to the mean
    intensity in [0, 1] of each tissue, ``contrasts`` the probability of each contrast ("random" is free).
    ``outside`` names tissues that a skull-stripped scan lacks; ``fluid`` one that it may lack. A source
    value that no tissue lists, and a tissue that a contrast gives no mean, gets a random intensity.
    Means vary by ``mean_jitter`` from image to image, those of ``outside`` by ``outside_jitter``, because fat,
    skin and bone differ most between sequences. ``severity`` scales deformation and corruption: 0 is none, 1 the
    full range. ``anywhere`` is the share of crops that lie anywhere in the label map, as a sliding window does,
    instead of on a label: a network that never saw a window of little but air may find anything in one. ``average`` is
    the share that looks like an average of many heads, as templates are: image and labels blurred, what is thin gone.
    ``mirror`` turns half of the maps left to right: right only where no label is of one side.
    """

    tissues: dict[str, tuple[int, ...]]
    means: dict[str, dict[str, float]]
    contrasts: dict[str, float]
    outside: tuple[str, ...] = ()
    fluid: str | None = None
    strip: float = 0.5
    mean_jitter: float = 0.05
    outside_jitter: float = 0.2
    severity: float = 1.0
    anywhere: float = 0.0
    average: float = 0.0
    mirror: bool = False

    def __post_init__(self) -> None:
        self._check_tissues()
        unknown = {*self.outside, *([self.fluid] if self.fluid else [])} - set(self.tissues)
        if unknown:
            raise UsageError(
                f"outside and fluid name tissues: {sorted(unknown)[0]!r} is none of {', '.join(self.tissues)}"
            )
        for name, share in (("strip", self.strip), ("anywhere", self.anywhere), ("average", self.average)):
            if not 0 <= share <= 1:
                raise UsageError(f"{name} {share:g}: accepted is a share from 0 to 1")
        sizes = ("severity", self.severity), ("mean_jitter", self.mean_jitter), ("outside_jitter", self.outside_jitter)
        for name, size in sizes:
            if not 0 <= size < float("inf"):
                raise UsageError(f"{name} {size:g}: accepted is a number from 0 up")
        without = sorted(set(self.contrasts) - set(self.means) - {"random"})
        if without:
            raise UsageError(f"contrasts: {without[0]!r} has no table [means.{without[0]}]; add it, or name it random")
        if not sum(self.contrasts.values()) > 0 or min(self.contrasts.values()) < 0:
            raise UsageError("contrasts: accepted are probabilities from 0, one of them above 0")

    def _check_tissues(self) -> None:
        seen: dict[int, str] = {}
        for tissue, values in self.tissues.items():
            if not values or min(values) < 0 or max(values) > MAX_LABEL:
                raise UsageError(f"tissues: {tissue} {list(values)}: accepted are label values, 0 to {MAX_LABEL}")
            for value in values:
                if value in seen:
                    raise UsageError(f"tissues: value {value} stands in both {seen[value]} and {tissue}; list it once")
                seen[value] = tissue
        for contrast, means in self.means.items():
            for tissue, mean in means.items():
                if tissue not in self.tissues:
                    raise UsageError(f"means.{contrast}: {tissue!r} is no tissue, such as {', '.join(self.tissues)}")
                if not 0 <= mean <= 1:
                    raise UsageError(f"means.{contrast}.{tissue} {mean:g}: accepted is an intensity from 0 to 1")

    @staticmethod
    def read(path: Path) -> "SynthesisConfig":
        """The file's choices. Raises UnreadableInputError, naming what is wrong."""
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
            return read_fields(SynthesisConfig, {"means": {}} | data, unknown="refuse")
        except (OSError, ValueError, UsageError) as error:  # a field's error is a ValueError, too
            raise UnreadableInputError(f"{path}: {error}; examples/brain9 in the sources has a whole one") from error


def draw_intensities(config: SynthesisConfig, values: np.ndarray, rng: np.random.Generator) -> NDArray[np.float32]:
    """(3, len(values)): mean, deviation from voxel to voxel and over centimetres, per label value, background first."""
    names = list(config.contrasts)
    odds = np.array([config.contrasts[name] for name in names])
    contrast = names[rng.choice(len(names), p=odds / odds.sum())]
    stripped = rng.random() < config.strip
    dry = stripped and rng.random() < 0.5
    table = np.zeros((3, len(values)), np.float32)
    index = {int(value): i for i, value in enumerate(values)}
    for tissue, members in config.tissues.items():
        present = [index[value] for value in members if value in index]
        outside = tissue in config.outside
        if not present or (stripped and outside) or (dry and tissue == config.fluid):
            continue
        mean = rng.uniform(0.05, 1.0)
        if contrast != "random" and tissue in config.means[contrast]:
            jitter = config.outside_jitter if outside else config.mean_jitter
            mean = config.means[contrast][tissue] + rng.normal(0, jitter)
        for place in present:
            own = rng.normal(0, 0.02)  # neighbours of one tissue still differ a little
            shown = max(mean + own, DARKEST)
            table[:, place] = shown, rng.uniform(0.01, 0.07), rng.uniform(0, 0.25 if outside else 0.05)
    listed = {value for members in config.tissues.values() for value in members}
    for value in set(index) - listed - {0}:
        table[:, index[value]] = rng.uniform(0.05, 1.0), rng.uniform(0.01, 0.07), rng.uniform(0, 0.1)
    background = 0.0 if stripped else rng.uniform(0, 0.05)
    table[:, 0] = background, background * 0.5, 0
    return table


def deformed_coordinates(
    centre: Sequence[float] | np.ndarray, edge: int, step: float, source: RandomSource, severity: float = 1.0,
    mirror: bool = True,
) -> Tensor:  # fmt: skip
    """(3, n, n, n) float32: where the ``n = edge * SUBSAMPLES`` fine samples of a crop lie in the map, in its voxels.

    ``centre`` is (z, y, x) in voxels, ``step`` the map's voxels between two fine samples. A random affine (rotation to
    20 degrees, scale, shear, and with ``mirror`` a left-right flip) is followed by a smooth random displacement.
    """
    n = edge * SUBSAMPLES
    line = (torch.arange(n, dtype=torch.float32, device=source.device) - (n - 1) / 2) * step
    matrix = _random_affine(source.numbers, severity, mirror)
    axes = [line.view(-1, 1, 1), line.view(1, -1, 1), line.view(1, 1, -1)]
    places = source.smooth(6, n, channels=3)[0] * source.numbers.uniform(0, 4.0 * severity)
    for i in range(3):
        places[i] += float(matrix[i, 0]) * axes[0]
        places[i] += float(matrix[i, 1]) * axes[1]
        places[i] += float(matrix[i, 2]) * axes[2] + float(centre[i])
    return places


def _random_affine(rng: np.random.Generator, severity: float, mirror: bool) -> np.ndarray:
    scale = 1 + severity * rng.uniform(-0.18, 0.2, 3)
    shear = severity * rng.uniform(-0.08, 0.08, (3, 3)) * (1 - np.eye(3))
    matrix = np.diag(scale) @ (np.eye(3) + shear)
    for axis in range(3):
        angle = np.deg2rad(severity * rng.uniform(-20, 20))
        i, j = [(1, 2), (0, 2), (0, 1)][axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    if rng.random() < 0.5 and mirror:  # drawn all the same: recorded trainings keep their crops
        matrix[:, 2] *= -1
    return matrix


def index_labels(raw: NDArray[np.integer]) -> tuple[Tensor, NDArray[np.intp]]:
    """A (z, y, x) label map as indices into its sorted values, 0 first, and those values.

    The indices are uint8, past 256 values int32.
    """
    counts = np.bincount(raw.ravel())
    counts[0] = max(counts[0], 1)  # what lies outside a map is background, whether the map has some or not
    values = np.flatnonzero(counts)
    table = np.zeros(values[-1] + 1, np.uint8 if len(values) <= 256 else np.int32)
    table[values] = np.arange(len(values))
    return torch.from_numpy(table[raw]), values


def look_up(label_map: Tensor, coordinates: Tensor) -> Tensor:
    """Nearest label of a (z, y, x) map at (3, …) voxel coordinates; outside is 0. Shape (…), of the map's type."""
    index = torch.zeros(coordinates.shape[1:], dtype=torch.int64, device=coordinates.device)
    inside = torch.ones(coordinates.shape[1:], dtype=torch.bool, device=coordinates.device)
    for axis, size in enumerate(label_map.shape):
        nearest = coordinates[axis].round().to(torch.int64)
        inside &= (nearest >= 0) & (nearest < size)
        index.mul_(size).add_(nearest.clamp_(0, size - 1))
    return label_map.reshape(-1)[index].mul_(inside)


def paint(
    labels: Tensor, table: NDArray[np.float32], source: RandomSource, severity: float = 1.0, passes: int = 0
) -> Tensor:
    """A (1, n, n, n) float32 image from a fine (2n, 2n, 2n) crop of label indices; corrupted, in [0, 1].

    ``passes`` of the blur that makes it an average of heads come before what a scanner does.
    """
    rows = source.place(table)
    index = labels.to(torch.int64)
    image = rows[DEVIATION][index].mul_(source.normal(*labels.shape))
    texture = source.smooth(int(source.numbers.integers(6, 17)), labels.shape[0])[0, 0]
    image.addcmul_(rows[TEXTURE][index], texture).add_(rows[MEAN][index])
    image = averaged(F.avg_pool3d(image[None, None].clamp_min_(0), SUBSAMPLES), passes)
    return corrupt(image, source, severity)[0]


def averaged(volumes: Tensor, passes: int) -> Tensor:
    """(b, 1, n, n, n) as an average over heads that differ: Gaussian, its variance 0.55 voxels squared a pass."""
    for _ in range(passes):
        volumes = blur(volumes, 1.0)
    return volumes


def averaged_labels(labels: Tensor, classes: int, passes: int) -> Tensor:
    """The most frequent of ``classes`` labels in such an average, (n, n, n) of the given type."""
    if not passes:
        return labels
    found, most = torch.zeros_like(labels), torch.zeros(labels.shape, device=labels.device)
    for label in range(classes):
        share = averaged((labels == label).float()[None, None], passes)[0, 0]
        found[share > most] = label
        most = torch.maximum(most, share)
    return found


def corrupt(image: Tensor, source: RandomSource, severity: float = 1.0) -> Tensor:
    """What scanners do to a (1, 1, n, n, n) image: bias field, thick slices, blur, ringing, gamma, noise, gain."""
    rng, edge = source.numbers, image.shape[-1]
    if rng.random() < 0.7:
        image = image * (source.smooth(4, edge) * rng.uniform(0, 0.25 * severity)).exp()
    if rng.random() < 0.2 * severity:
        sizes = [edge] * 3
        sizes[rng.integers(3)] = int(edge / rng.uniform(1.3, 3.0))
        thick = F.interpolate(image, size=sizes, mode="area")
        image = F.interpolate(thick, size=(edge,) * 3, mode="trilinear", align_corners=False)
    if rng.random() < 0.5:
        image = blur(image, rng.uniform(0.2, 0.4 + 0.6 * severity))
    if rng.random() < 0.15 * severity:
        image = truncate_spectrum(image, rng.uniform(0.55, 0.95))
    upper = torch.quantile(image.reshape(-1)[::7], 0.995)
    image = (image / upper.clamp_min(1e-3)).clamp_min(0) ** float(np.exp(rng.normal(0, 0.2 * severity)))
    image = image + source.normal(*image.shape) * rng.uniform(0, 0.05 * severity)
    # A whole-scan percentile sets the scale at inference; scalp fat can be brighter than any crop's brain.
    return (image * float(1 + severity * rng.uniform(-0.4, 0.1))).clamp_(0, 1)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur of (b, 1, n, n, n) images; ``sigma`` in voxels, three taps, edges repeated."""
    side = float(np.exp(-0.5 / sigma**2))
    centre, side = 1 / (1 + 2 * side), side / (1 + 2 * side)
    for axis in (2, 3, 4):
        # Shifted sums: PyTorch's convolution of a single channel is slow on a CPU.
        last = images.shape[axis] - 1
        blurred = images * centre
        for to, of, count in ((1, 0, last), (0, 1, last), (0, 0, 1), (last, last, 1)):
            blurred.narrow(axis, to, count).add_(images.narrow(axis, of, count), alpha=side)
        images = blurred
    return images


def truncate_spectrum(image: Tensor, share: float) -> Tensor:
    """Gibbs ringing: only the central ``share`` of the frequencies of each axis of a (1, 1, n, n, n) image stays."""
    spectrum = torch.fft.rfftn(image, dim=(2, 3, 4))
    edge = image.shape[-1]
    frequency = torch.fft.fftfreq(edge, device=image.device).abs()
    for axis, line in ((2, frequency), (3, frequency), (4, torch.fft.rfftfreq(edge, device=image.device))):
        shape = [1, 1, 1, 1, 1]
        shape[axis] = len(line)
        spectrum = spectrum * (line <= share / 2).reshape(shape)
    return torch.fft.irfftn(spectrum, s=image.shape[2:], dim=(2, 3, 4))
