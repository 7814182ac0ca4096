"""Whether a scan is one for the model: what is refused before anything is computed, and what makes labels doubtful."""

import math

import numpy as np

from dropgen_rt.errors import UnsuitableInputError
from dropgen_rt.manifest import Manifest
from dropgen_rt.preprocess import working_grid
from dropgen_rt.volume import Scan, Volume

# The label maps of the data sets that this was tried on have up to 53 values, their scans 109 or more.
LABEL_MAP_VALUES = 64
# So many voxels of a scan tell its values; a smaller one may have few because it is small.
SAMPLED_VOXELS, SMALLEST_SAMPLE = 200_000, 4096


def refuse_unsuitable(scan: Scan, manifest: Manifest) -> None:
    """Raise UnsuitableInputError for other channels than the model's, numbers that are none, or too few voxels."""
    channels, voxels = scan.volume.array.shape[0], int(np.prod(scan.volume.geometry.size))
    if channels != len(manifest.channels):
        raise UnsuitableInputError(
            f"{scan.path}: {channels} channel(s), the model {manifest.name!r} takes {len(manifest.channels)} "
            f"({', '.join(manifest.channels)}); name CASE_0000 with CASE_0001 and so on beside it"
        )
    wrong = int(np.prod(scan.volume.array.shape)) - int(np.count_nonzero(np.isfinite(scan.volume.array)))
    if wrong:
        raise UnsuitableInputError(
            f"{scan.path}: {wrong} voxels are NaN or infinite; accepted: finite numbers; replace them, for example by "
            "the value of air"
        )
    if voxels < len(manifest.labels):
        raise UnsuitableInputError(
            f"{scan.path}: {voxels} voxel(s), fewer than the {len(manifest.labels)} labels of {manifest.name!r}; "
            "give a whole scan"
        )


def doubts(volume: Volume, manifest: Manifest) -> tuple[str, ...]:
    """What of a scan makes its labels doubtful, a line each; it is segmented all the same."""
    return (*_thin(volume, manifest), *_like_labels(volume))


def _thin(volume: Volume, manifest: Manifest) -> tuple[str, ...]:
    shape = working_grid(volume.geometry, manifest.orientation, manifest.spacing_mm).shape
    thin = [axis for axis, size, edge in zip("zyx", shape, manifest.window, strict=True) if 2 * size < edge]
    if not thin:
        return ()
    return (
        f"along {', '.join(thin)} it covers less than half of a window that the model was trained on "
        f"({shape} of {manifest.window} voxels, z, y, x): labels may be far off",
    )


def _like_labels(volume: Volume) -> tuple[str, ...]:
    for channel in volume.array:
        step = channel.size // SAMPLED_VOXELS + 1
        while math.gcd(step, channel.shape[-1]) > 1:  # it meets every column of a row
            step += 1
        values = np.unique(channel.reshape(-1)[::step])
        whole = values[0] >= 0 and np.array_equal(values, np.rint(values))
        if whole and len(values) <= LABEL_MAP_VALUES and channel.size >= SMALLEST_SAMPLE:
            return ("it has few values, all whole, as label maps do: check that the right file was given",)
    return ()
