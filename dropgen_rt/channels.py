"""Scans of several channels: a file for each, numbered as in the data sets that models are trained on."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dropgen_rt.errors import MissingInputError, UnsuitableInputError
from dropgen_rt.evaluate import same_grid
from dropgen_rt.scan_header import refusal
from dropgen_rt.volume import Scan, Volume, read_scan, scan_suffix, stem

FIRST = "_0000"
# Scans of one grid may lie so far apart, in voxels: headers keep few digits, and scanners write each its own.
SAME_GRID = 0.1


def cases(paths: Sequence[Path], channels: Sequence[str]) -> list[Path]:
    """The first file of every case: of several channels the others, ``CASE_0001`` and on, are left out."""
    if len(channels) == 1:
        return list(paths)
    others = {file for path in paths if is_case(path) for file in _files(path, len(channels))[1:]}
    return [path for path in paths if path not in others]


def is_case(path: Path) -> bool:
    """Whether a file's name is that of the first of several channels."""
    return bool(scan_suffix(path)) and stem(path).endswith(FIRST)


def channel_files(path: Path, channels: Sequence[str]) -> list[Path]:
    """``CASE_0000.nii.gz`` and its further channels. Raises UnsuitableInputError or MissingInputError."""
    if not is_case(path):
        wanted = f"{len(channels)} channels ({', '.join(channels)})"
        step = "name a file CASE_0000 with CASE_0001 and so on beside it"
        raise refusal(UnsuitableInputError, path, "a scan of one channel", wanted, step)
    files = _files(path, len(channels))
    for name, file in zip(channels, files, strict=True):
        if not file.exists():
            step = f"put the scan of channel {name} there"
            raise refusal(MissingInputError, path, f"no {file.name} beside it", "a file for each channel", step)
    return files


def read_channels(paths: Sequence[str | Path]) -> Scan:
    """One scan of files of one grid, in the order of the model's channels: array (channels, z, y, x) float32.

    Its digest is that of the files' digests. Raises InputError as ``read_scan`` does, and UnsuitableInputError for
    unlike grids.
    """
    scans = [read_scan(path) for path in paths]
    first = scans[0]
    tolerance = SAME_GRID * min(first.volume.geometry.spacing_mm)
    for other in scans[1:]:
        if not same_grid(first.volume.geometry, other.volume.geometry, tolerance):
            step = "resample one to the other"
            given = f"its grid is not that of {other.path.name}"
            raise refusal(UnsuitableInputError, first.path, given, "channels of one grid", step)
    return Scan(
        volume=Volume(np.concatenate([scan.volume.array for scan in scans]), first.volume.geometry),
        path=first.path,
        sha256=hashlib.sha256("".join(scan.sha256 for scan in scans).encode()).hexdigest(),
        voxel_type=first.voxel_type,
        warnings=tuple(f"{scan.path.name}: {warning}" for scan in scans for warning in scan.warnings),
    )


def _files(path: Path, count: int) -> list[Path]:
    name = stem(path)
    case, suffix = name.removesuffix(FIRST), path.name[len(name) :]
    return [path.with_name(f"{case}_{channel:04d}{suffix}") for channel in range(count)]
