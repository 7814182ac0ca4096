"""What a data set looks like, and the spacing, window and intensities that follow from it."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dropgen_rt.atomic import atomic_path
from dropgen_rt.manifest import Intensity, each_channel
from dropgen_rt.train.config_text import to_toml_value
from dropgen_rt.train.survey import PERCENTILES, Finding
from dropgen_rt.words import by

Modality = Literal["CT", "MR", "other"]
# Beginnings of channels' names that tell what they are.
NAMES: dict[str, Modality] = {
    **dict.fromkeys(("MR", "T1", "T2", "FLAIR", "PD", "ADC"), "MR"),
    **dict.fromkeys(("PT", "PET", "NM", "SPECT", "US"), "other"),
}
# Hounsfield units that the paper clips CT to.
CT_RANGE = Intensity("range", -1024.0, 1024.0)
# Of a fixed range the scans fill at least this share, or are not what it is for: of HU it is 41.
LEAST_KEPT = 0.02
# An axis this many times coarser than the others keeps finer scans fine, as nnU-Net does.
ANISOTROPIC, FINE_PERCENTILE = 3.0, 10
# By how much voxels grow at a time, until a window covers enough of a scan.
GROWTH = 1.02
# In units of the last digit: what is above a rounded number by less is that number.
ROUNDING_NOISE = 1e-6


@dataclass(frozen=True)
class Fingerprint:
    """Medians and spreads over the training cases. Sizes and spacings are (x, y, z), LPS.

    ``intensities`` holds per channel the median over cases of the percentiles 0.5, 50 and 99.5 of whole scans
    and, after them, of labelled voxels, ``modalities`` what it is; ``label_voxels`` the share of each label among
    labelled voxels.
    """

    cases: int
    channels: tuple[str, ...]
    modalities: tuple[Modality, ...]
    spacing_mm: tuple[float, float, float]
    spacing_range_mm: tuple[tuple[float, float], ...]
    target_spacing_mm: tuple[float, float, float]
    size: tuple[int, int, int]
    extent_mm: tuple[float, float, float]
    intensities: tuple[tuple[float, ...], ...]
    label_voxels: tuple[float, ...]

    @staticmethod
    def of(findings: Sequence[Finding], channels: tuple[str, ...]) -> "Fingerprint":
        """The fingerprint of sound findings; at least one."""
        spacings = np.array([finding.spacing_mm for finding in findings])
        sizes = np.array([finding.size for finding in findings])
        voxels = np.array([finding.voxels for finding in findings], float)
        medians = np.median(spacings, 0)
        return Fingerprint(
            cases=len(findings),
            channels=channels,
            modalities=_modalities(findings, channels),
            spacing_mm=_rounded(medians),
            spacing_range_mm=tuple(
                (round(float(low), 4), round(float(high), 4))
                for low, high in zip(spacings.min(0), spacings.max(0), strict=True)
            ),
            target_spacing_mm=_target(spacings, medians),
            size=_whole(np.median(sizes, 0)),
            extent_mm=_rounded(np.median(sizes * spacings, 0), 6),  # divided by a spacing it tells whole voxels
            intensities=tuple(
                tuple(float(f"{value:.5g}") for value in row)
                for row in np.median(np.array([finding.percentiles for finding in findings]), 0)
            ),
            label_voxels=tuple(round(float(share), 5) for share in voxels.sum(0) / max(voxels.sum(), 1)),
        )

    def intensity(self) -> tuple[Intensity, ...]:
        """CT: the paper's fixed range; else percentiles of each scan. One for all channels, or one for each."""
        each = tuple(CT_RANGE if modality == "CT" else Intensity() for modality in self.modalities)
        return each[:1] if len(set(each)) == 1 else each

    def doubts(self, intensity: Sequence[Intensity]) -> list[str]:
        """A warning per channel of whose values a fixed range keeps next to nothing, or not what labels hold."""
        lines, each = [], each_channel(intensity, len(self.channels))
        for place, (name, row, own) in enumerate(zip(self.channels, self.intensities, each, strict=True)):
            low, high = (min(max(row[place], own.lower), own.upper) for place in (0, len(PERCENTILES) - 1))
            kept, labelled = (high - low) / (own.upper - own.lower), row[len(PERCENTILES) + 1]
            if own.kind == "range" and (kept < LEAST_KEPT or not own.lower < labelled < own.upper):
                lines.append(
                    f"warning: {name}: of intensities from {row[0]:g} to {row[len(PERCENTILES) - 1]:g}, in the labels "
                    f"about {labelled:g}, the range of {own.lower:g} to {own.upper:g} keeps too little; if "
                    f"they are no Hounsfield units, give {_percentiles_for(place, each)}"
                )
        return lines

    def spacing(
        self, voxels: int, stride: int, smallest: int, coverage: float, given: tuple[int, int, int] | None = None
    ) -> tuple[float, float, float]:
        """(x, y, z) mm: the data's own, but for what would waste a window or make it too small.

        The window is the one ``given``, or that of ``window`` with the other arguments. The axis of the thickest
        slices gets thinner ones where its own would not fill a window's edge: the rest would be padding. Then voxels
        grow, the finest axes first and each as far as it still fills an edge, until a window covers the share
        ``coverage`` of the median scan. (nnU-Net adds a model of low resolution below a quarter.)
        """
        exact, extent = np.array(self.target_spacing_mm), np.array(self.extent_mm)
        filling = extent / (np.array(given[::-1]) if given else smallest)
        thick = int(np.argmax(exact))
        exact[thick] = max(min(exact[thick], filling[thick]), np.delete(exact, thick).max())
        most = np.maximum(exact, filling)
        while True:
            spacing, grows = _rounded_up(exact), exact < most
            window = given or self.window(voxels, stride, smallest, spacing)
            if self._covered(window, spacing) >= coverage or not grows.any():
                return spacing
            exact = np.where(grows, np.clip(exact, GROWTH * exact[grows].min(), most), exact)

    def _covered(self, window: Sequence[int], spacing_mm: Sequence[float]) -> float:
        """The share of the median scan that a window (z, y, x) covers."""
        extents = zip(window[::-1], spacing_mm, self.extent_mm, strict=True)
        return math.prod(min(edge * mm / extent, 1.0) for edge, mm, extent in extents)

    def window(self, voxels: int, stride: int, smallest: int, spacing_mm: Sequence[float]) -> tuple[int, int, int]:
        """(z, y, x): the median scan where ``voxels`` allows, else its longest edges cut; multiples of ``stride``."""
        # Whole voxels, as the working grid has them: of a hundredth more another stride would be padding.
        wanted = [round(extent / mm) for extent, mm in zip(self.extent_mm[::-1], tuple(spacing_mm)[::-1], strict=True)]
        edges = [max(math.ceil(edge / stride) * stride, smallest) for edge in wanted]
        while math.prod(edges) > voxels and max(edges) > smallest:
            # The edge that covers its axis best gives way first.
            cover = [edge / want if edge > smallest else 0.0 for edge, want in zip(edges, wanted, strict=True)]
            edges[int(np.argmax(cover))] -= stride
        return edges[0], edges[1], edges[2]

    def lines(self) -> list[str]:
        """For a person."""
        rows = [
            f"{self.cases} training cases, {self._modalities_shown()}, channels {', '.join(self.channels)}",
            f"median size {by(self.size)} voxels of {by(self.spacing_mm)} mm (x, y, z)",
        ]
        for name, row in zip(self.channels, self.intensities, strict=True):
            whole, inside = row[: len(PERCENTILES)], row[len(PERCENTILES) :]
            rows.append(
                f"{name}: percentiles {', '.join(f'{p:g}' for p in PERCENTILES)} are "
                f"{', '.join(f'{v:g}' for v in whole)} in the scan, {', '.join(f'{v:g}' for v in inside)} in the labels"
            )
        return rows

    def _modalities_shown(self) -> str:
        """One word where all channels are of one."""
        return self.modalities[0] if len(set(self.modalities)) == 1 else " and ".join(self.modalities)

    def save(self, path: Path) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def _percentiles_for(place: int, each: Sequence[Intensity]) -> str:
    """The option by which one channel goes by percentiles, and the others by what they have."""
    if len(each) == 1:
        return "--set intensity.kind=percentile"
    tables = [to_toml_value(asdict(own)) if other != place else "{}" for other, own in enumerate(each)]
    return f"--set 'intensity=[{', '.join(tables)}]'"


def _modalities(findings: Sequence[Finding], channels: tuple[str, ...]) -> tuple[Modality, ...]:
    """By the channels' names; one that tells nothing is CT where most scans look like it, but beside MR it is MR, too.

    Maps of phase and field that come with MR reach as low.
    """
    named = [_named(name.strip().upper()) for name in channels]
    looks = np.mean([finding.hounsfield for finding in findings], axis=0) > 0.5
    guesses: list[Modality] = ["CT" if like_ct and "MR" not in named else "MR" for like_ct in looks]
    return tuple(name or guess for name, guess in zip(named, guesses, strict=True))


def _named(channel: str) -> Modality | None:
    if channel == "CT":
        return "CT"
    return next((modality for start, modality in NAMES.items() if channel.startswith(start)), None)


def _target(spacings: np.ndarray, medians: np.ndarray) -> tuple[float, float, float]:
    target = medians.copy()
    axis = int(np.argmax(medians))
    others = np.delete(medians, axis)
    if medians[axis] > ANISOTROPIC * others.max():
        target[axis] = max(np.percentile(spacings[:, axis], FINE_PERCENTILE), others.max())
    return _rounded(target)


def _rounded(values: np.ndarray, digits: int = 3) -> tuple[float, float, float]:
    """So many significant digits; of spacings three: 0.7199997 is a header's rounding of 0.72."""
    x, y, z = (float(f"{value:.{digits}g}") for value in values)
    return x, y, z


def _rounded_up(values: np.ndarray) -> tuple[float, float, float]:
    """Three significant digits, none below what is given: so many voxels fit, or fewer."""
    scales = 10.0 ** (2 - np.floor(np.log10(values)))
    x, y, z = (np.ceil(values * scales - ROUNDING_NOISE) / scales).tolist()
    return x, y, z


def _whole(values: np.ndarray) -> tuple[int, int, int]:
    x, y, z = (round(float(value)) for value in values)
    return x, y, z
