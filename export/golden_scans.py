"""Golden windows cut out of real scans: the model's own preprocessing, then the windows with most in them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.channels import channel_files, read_channels
from dropgen_rt.golden import MAX_TEXT, WINDOWS, as_windows, coarse_grid, synthetic_windows
from dropgen_rt.kernels import gather
from dropgen_rt.manifest import Manifest
from dropgen_rt.preprocess import normalisation, to_working_grid
from dropgen_rt.windows import WindowPlan


def golden_windows(manifest: Manifest, scans: Sequence[Path]) -> tuple[NDArray[np.float32], str]:
    """(n, C, z, y, x) float32 windows, and where they are from. Raises InputError for a scan that cannot be read.

    Of a model of several channels each scan is named by its first file, ``CASE_0000``, as for ``infer``.
    """
    if not scans:
        return synthetic_windows(manifest), "synthetic"
    found: list[tuple[float, NDArray[np.float32]]] = []
    for path in scans:
        found += _of_scan(path, manifest)
    found.sort(key=lambda item: -item[0])
    coarse = np.stack([_coarse(window, coarse_grid(manifest.window)) for _, window in found[:WINDOWS]])
    return as_windows(coarse, manifest.window), _named(scans)


def _named(scans: Sequence[Path]) -> str:
    """The scans' names as one line, as the model file takes it: what does not print is replaced, a long list cut."""
    names = "".join(c if c.isprintable() else "?" for c in ", ".join(path.name for path in scans))
    return names if len(names) <= MAX_TEXT else f"{names[: MAX_TEXT - 1]}…"


def _of_scan(path: Path, manifest: Manifest) -> list[tuple[float, NDArray[np.float32]]]:
    """A few windows of one scan, each with its standard deviation, which is small where there is little but air."""
    files = [path] if len(manifest.channels) == 1 else channel_files(path, manifest.channels)
    working = to_working_grid(read_channels(files).volume, manifest.orientation, manifest.spacing_mm)
    bounds = normalisation(working, manifest.intensity)
    starts = WindowPlan.cover(working.geometry.shape, manifest.window, 0.25).starts
    windows = [gather(working.array, start[None], manifest.window, bounds)[0] for start in starts]
    ranked = sorted(((float(window.std()), place) for place, window in enumerate(windows)), reverse=True)
    return [(spread, windows[place]) for spread, place in ranked[:WINDOWS]]


def _coarse(window: NDArray[np.float32], grid: tuple[int, ...]) -> NDArray[np.float32]:
    """Every n-th voxel where a window is larger than its golden grid."""
    z, y, x = (edge // wanted for edge, wanted in zip(window.shape[1:], grid, strict=True))
    return window[:, ::z, ::y, ::x]
