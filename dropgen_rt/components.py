"""Connected components of a label map: what lies apart from the organ is often a mistake."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Components = Literal["all", "largest"]
COMPONENTS: tuple[Components, ...] = get_args(Components)

# Bytes per voxel while components are found: their numbers in 32 bits, and masks. Measured 4 for solid labels and 6.3
# with a hole in every hundredth voxel; pure noise, which no trained network gives, takes up to 18.
BYTES_PER_VOXEL = 8
# A share of the labelled voxels that is too much for specks.
DOUBTFUL_SHARE = 0.1


@dataclass(frozen=True)
class Apart:
    """What lay apart from the largest component: its share of all that was labelled, and labels found there alone."""

    share: float = 0.0
    lost: tuple[int, ...] = ()


NOTHING = Apart()


def keep_largest_component(labels: NDArray[np.unsignedinteger]) -> Apart:
    """Set to 0, in place, all of ``labels`` (z, y, x) but the largest connected component; what that was.

    All labels count as one foreground, so that no structure gets holes where another one's specks lay. Voxels that
    share a face, an edge or a corner are connected. Of components of one size the first stays, in the order of z, y, x.
    """
    # Here, because the command line reads COMPONENTS and should start at once.
    import SimpleITK as sitk  # noqa: N813  the name its users know

    box = _foreground_box(labels)
    if box is None:
        return NOTHING
    inside = labels[box]
    found = sitk.ConnectedComponent(sitk.GetImageFromArray((inside > 0).view(np.uint8)), True)
    numbers = sitk.GetArrayViewFromImage(found)  # lives as long as its image
    sizes = _counts(numbers, int(numbers.max()))
    largest = int(sizes[1:].argmax()) + 1
    before = _counts(inside, int(inside.max()))
    for plane, number in zip(inside, numbers, strict=True):
        plane[number != largest] = 0
    lost = np.flatnonzero((before > 0) & (_counts(inside, len(before) - 1) == 0))
    return Apart(float(1 - sizes[largest] / sizes[1:].sum()), tuple(int(value) for value in lost if value))


def _counts(array: NDArray[np.unsignedinteger], largest: int) -> NDArray[np.int64]:
    """(largest + 1,) voxels of each value, plane by plane: bincount makes 64-bit copies of what it counts."""
    counts = np.zeros(largest + 1, np.int64)
    for plane in array:
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    return counts


def _foreground_box(labels: NDArray[np.unsignedinteger]) -> tuple[slice, slice, slice] | None:
    """The smallest box that holds every label; None where there is none."""
    rows, columns = np.any(labels, axis=2), np.any(labels, axis=0)  # (z, y) and (y, x)
    z, y, x = (np.flatnonzero(line) for line in (rows.any(axis=1), rows.any(axis=0), columns.any(axis=0)))
    if not len(z):
        return None
    return slice(z[0], z[-1] + 1), slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1)


def doubt(apart: Apart, names: Sequence[str]) -> tuple[str, ...]:
    """A line where more than specks was left out, or all of a label; ``names`` are those of the labels 1, 2, 3 …"""
    lost = ", ".join(names[value - 1] for value in apart.lost)
    if apart.share <= DOUBTFUL_SHARE and not lost:
        return ()
    return (
        f"{apart.share:.0%} of what was labelled lay apart from its largest component and was left out"
        f"{', all of ' * bool(lost)}{lost}: --components all",
    )
