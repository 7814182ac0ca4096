"""Where windows go and how they are weighed: integers first, then three one-dimensional tables.

Placement is MONAI's ``sliding_window_inference``: an image smaller than the window is centred in it, windows
advance by ``int(edge * (1 - overlap))`` voxels, and the last one is pulled back to the border. One axis of
10 voxels, edge 4, overlap 0.5 (step 2):

    voxel     0 1 2 3 4 5 6 7 8 9
    window    [-----]
                  [-----]
                      [-----]
                          [-----]        starts 0, 2, 4, 6

Placed around a body they cover what is not air as evenly as their number allows, and windows of air alone, which are
background unasked (air.py), cover the rest. The same axis with a body in voxels 4 to 8:

    voxel     0 1 2 3 4 5 6 7 8 9
    body              * * * * *
    window    [ air ] [-----]
                        [-----]
                                [ air    starts 0, 4, 5, 9
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.errors import UsageError

Blend = Literal["constant", "gaussian"]
BLENDS: tuple[Blend, ...] = ("constant", "gaussian")
Placement = Literal["scan", "body"]
PLACEMENTS: tuple[Placement, ...] = ("scan", "body")

#: Of each axis z, y, x the first voxel and the one after the last.
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

# Width of the Gaussian relative to the window's edge, as nnU-Net and MONAI use it.
GAUSSIAN_SIGMA = 0.125
# Below this a corner's weight would lose bits against a neighbour's centre; only the window's rim is that low.
SMALLEST_WEIGHT = 1e-3


@dataclass(frozen=True)
class WindowPlan:
    """Starts along each axis of one image; all three axes (z, y, x). Starts may be negative: that is padding."""

    shape: tuple[int, int, int]
    window: tuple[int, int, int]
    axis_starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    @staticmethod
    def cover(shape: tuple[int, ...], window: tuple[int, ...], overlap: float) -> "WindowPlan":
        """The plan for an image of ``shape`` (z, y, x). Raises UsageError unless 0 <= overlap < 1."""
        if not 0 <= overlap < 1:
            raise UsageError(f"overlap {overlap}: accepted is a number from 0 up to, not including, 1")
        z, y, x = (_axis_starts(size, edge, overlap) for size, edge in zip(shape, window, strict=True))
        return WindowPlan((shape[0], shape[1], shape[2]), (window[0], window[1], window[2]), (z, y, x))

    def around(self, body: Box, overlap: float) -> "WindowPlan":
        """The same windows placed around ``body``, a box inside the image; the whole image stays covered.

        An axis no longer than the window keeps its one start.
        """
        z, y, x = (
            starts if size <= edge else _body_starts(size, edge, overlap, *ends)
            for size, edge, starts, ends in zip(self.shape, self.window, self.axis_starts, body, strict=True)
        )
        return WindowPlan(self.shape, self.window, (z, y, x))

    @property
    def starts(self) -> NDArray[np.int32]:
        """(windows, 3) int32, (z, y, x) voxels, z slowest: the order in which windows are added up."""
        return np.array(list(product(*self.axis_starts)), np.int32)

    def __len__(self) -> int:
        return int(np.prod([len(starts) for starts in self.axis_starts]))


def _axis_starts(size: int, edge: int, overlap: float) -> tuple[int, ...]:
    if size <= edge:
        return (-((edge - size) // 2),)
    starts = [*range(0, size - edge, _step(edge, overlap)), size - edge]
    return tuple(starts)


def _step(edge: int, overlap: float) -> int:
    return max(int(edge * (1 - overlap)), 1)


def _body_starts(size: int, edge: int, overlap: float, first: int, last: int) -> tuple[int, ...]:
    """Evenly over the voxels from ``first`` up to ``last``, then outwards, side by side, to both ends of the axis."""
    spare = last - first - edge
    if spare <= 0:  # one window, the body in its middle as far as the image allows
        over = [min(max(first + spare // 2, 0), size - edge)]
    else:
        steps = -(-spare // _step(edge, overlap))
        over = [first + spare * index // steps for index in range(steps + 1)]
    before = range(over[0] - edge, -edge, -edge)
    return (*reversed(before), *over, *range(over[-1] + edge, size, edge))


def axis_weights(edge: int, blend: Blend) -> NDArray[np.float32]:
    """(edge,) float32 weights along one axis; a window's weight is the product of its three axes' tables."""
    if blend == "constant":
        return np.ones(edge, np.float32)
    offset = np.arange(edge) - (edge - 1) / 2
    weights = np.exp(-0.5 * (offset / (GAUSSIAN_SIGMA * edge)) ** 2)
    return np.maximum(weights, SMALLEST_WEIGHT).astype(np.float32)


def axis_totals(plan: WindowPlan, weights: tuple[NDArray[np.float32], ...]) -> tuple[NDArray[np.float32], ...]:
    """Per axis the (size,) float32 sum of window weights; their product is a voxel's total weight.

    Exact, because the plan is a tensor product of the axes and so is the weight.
    """
    totals = []
    for size, edge, starts, table in zip(plan.shape, plan.window, plan.axis_starts, weights, strict=True):
        total = np.zeros(size, np.float32)
        for start in starts:
            first, last = max(start, 0), min(start + edge, size)
            total[first:last] += table[first - start : last - start]
        totals.append(total)
    return tuple(totals)
