"""Distances between the surfaces of two label masks: HD95 and the normalised surface Dice.

Surface voxels are those of a mask with a face neighbour outside it; beyond the array is outside. Distances are exact
Euclidean ones between voxel centres, in mm, by SimpleITK's Maurer transform. MONAI's metrics define them so too.
"""

import numpy as np
import SimpleITK as sitk  # noqa: N813  the name its users know
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

# The transform's distances are float32: one of 1.1 mm comes out 4e-7 above it, and is within a tolerance of 1.1 mm.
DISTANCE_ROUNDING = 1e-5


def surface(mask: Mask) -> Mask:
    """The surface voxels of a (z, y, x) mask."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(3):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return mask & ~inner


def surface_distances(
    prediction: Mask, reference: Mask, spacing_mm: tuple[float, float, float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """From every surface voxel of ``prediction`` to the reference's surface, and back; mm.

    Masks are (z, y, x), ``spacing_mm`` is (x, y, z). Both masks hold at least one voxel.
    """
    both = prediction | reference
    box = tuple(slice(int(places.min()), int(places.max()) + 1) for places in np.nonzero(both))
    ours, theirs = surface(prediction[box]), surface(reference[box])
    return _distance_to(theirs, spacing_mm)[ours], _distance_to(ours, spacing_mm)[theirs]


def _distance_to(voxels: Mask, spacing_mm: tuple[float, float, float]) -> NDArray[np.float32]:
    # A margin of one: the transform wants an object that does not fill its image.
    image = sitk.GetImageFromArray(np.pad(voxels, 1).astype(np.uint8))
    image.SetSpacing(spacing_mm)
    distance = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    return np.abs(sitk.GetArrayFromImage(distance))[1:-1, 1:-1, 1:-1]


def hd95_and_surface_dice(
    prediction: Mask, reference: Mask, spacing_mm: tuple[float, float, float], tolerance_mm: float
) -> tuple[float, float]:
    """The larger of the two directed 95th percentiles, mm, and the share of both surfaces within the tolerance.

    Where neither mask has a voxel both are NaN; where one has none they are infinite and 0.
    """
    if not prediction.any() or not reference.any():
        neither = not prediction.any() and not reference.any()
        return (float("nan"), float("nan")) if neither else (float("inf"), 0.0)
    there, back = surface_distances(prediction, reference, spacing_mm)
    hd95 = max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))
    limit = tolerance_mm * (1 + DISTANCE_ROUNDING)
    near = np.sum(there <= limit) + np.sum(back <= limit)
    return hd95, float(near / (there.size + back.size))
