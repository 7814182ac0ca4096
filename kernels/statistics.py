"""Count, bounding box and intensity moments of every label, added up plane by plane.

``statistics_definition`` says in NumPy what the operation is. ``statistics`` is the same in C++ (statistics.cpp), bit
for bit; statistics.cu is the same on a GPU. Intensities are rounded to 16 bits over a given range before they are
summed, so that every sum is exact and the same in any order.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.kernels import _host
from dropgen_rt.kernels.checks import require_array

Float32Array = NDArray[np.float32]
Table = NDArray[np.int64]

MOST_LEVEL = 65535
COLUMNS = 9


@dataclass(frozen=True)
class Levels:
    """Intensity to level: ``round((value - offset) * scale)``, kept within 0 to 65535."""

    offset: np.float32
    scale: np.float32

    @classmethod
    def over(cls, low: float, high: float) -> "Levels":
        """Levels 0 to 65535 over ``low`` to ``high``; all 0 if they are equal."""
        return cls(np.float32(low), np.float32(MOST_LEVEL / (high - low) if high > low else 0.0))


def empty_table(labels: int) -> Table:
    """(labels, 9) int64: count, sum and sum of squares of the levels, least z, y, x, greatest z, y, x."""
    table = np.zeros((labels, COLUMNS), np.int64)
    table[:, 3:6], table[:, 6:9] = np.iinfo(np.int64).max, -1
    return table


def statistics_definition(
    labels: NDArray[Any], intensities: Float32Array, levels: Levels, first_z: int, table: Table
) -> None:
    """The definition of ``statistics``, in NumPy."""
    scaled = (intensities - levels.offset) * levels.scale
    scaled = np.minimum(np.where(scaled > 0, scaled, np.float32(0)), np.float32(MOST_LEVEL))
    level = (scaled + np.float32(0.5)).astype(np.int64)
    for label in np.unique(labels):
        where = labels == label
        own = level[where]
        table[label, :3] += len(own), own.sum(), (own * own).sum()
        places = np.argwhere(where) + np.array((first_z, 0, 0))
        table[label, 3:6] = np.minimum(table[label, 3:6], places.min(axis=0))
        table[label, 6:9] = np.maximum(table[label, 6:9], places.max(axis=0))


def statistics(labels: NDArray[Any], intensities: Float32Array, levels: Levels, table: Table, first_z: int = 0) -> None:
    """Add the planes ``labels`` (nz, ny, nx), uint8 or uint16, to ``table``; they begin at plane ``first_z``.

    intensities: (nz, ny, nx) float32. table: from ``empty_table``, with a row for every value in ``labels``; changed
    in place. Raises TypeError for a wrong dtype, ValueError for a wrong shape or a label without a row. Releases the
    GIL.
    """
    if labels.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"labels must be uint8 or uint16, not {labels.dtype}")
    require_array("labels", labels, labels.dtype, ("nz", "ny", "nx"))
    require_array("intensities", intensities, np.float32, labels.shape)
    require_array("table", table, np.int64, ("labels", COLUMNS), writes=True)
    if not labels.size:
        return
    greatest = _host.statistics(labels, intensities, float(levels.offset), float(levels.scale), first_z, table)
    if greatest >= len(table):
        raise ValueError(f"label {greatest} has no row in a table of {len(table)}")


def moments(table: Table, levels: Levels) -> NDArray[np.float64]:
    """(labels, 2) float64: mean and standard deviation of each label's intensity; NaN where it is absent."""
    with np.errstate(invalid="ignore", divide="ignore"):
        count = table[:, 0].astype(np.float64)
        mean = table[:, 1] / count
        variance = np.maximum(table[:, 2] / count - mean * mean, 0)
    unit = 1 / float(levels.scale) if levels.scale else 0.0
    return np.where(
        count[:, None] > 0, np.stack([mean * unit + float(levels.offset), np.sqrt(variance) * unit], 1), np.nan
    )
