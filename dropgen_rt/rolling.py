"""Which planes of the sums must exist at the same time: the slab that rolls along z.

Windows come z slowest. Once the windows of one z are added, no later one touches a plane below the next z: those
planes are final, go to labels, and their memory serves the planes to come. So the sums are a ring of planes, one deeper
than a window, because labels between the last final plane and the next wait for that next one:

    window of 4, starts 0, 2, 4: ring of 5 planes, plane p in slot p % 5
    after start 0    planes 0 1 2 3      final 0 1, labels up to plane 1
    after start 2    planes 1 2 3 4 5    final up to 3, plane 0's slot now holds plane 5

The sums of a voxel are taken in the same order as in one whole volume, so the result is the same in every bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.kernels import AxisMap
from dropgen_rt.windows import WindowPlan


@dataclass(frozen=True, eq=False)
class Layer:
    """The windows of one z, and what is final once they are added.

    ``windows`` index the plan's starts. ``ring_starts`` are the z at which they begin in the ring: one, or two where
    the ring's end cuts them. ``planes`` are the output planes that can then be labelled, ``z`` their map into the ring,
    ``totals_z`` (depth,) the weight totals of the ring's planes. ``cleared`` are the slots to be zeroed afterwards.
    """

    windows: slice
    ring_starts: tuple[int, ...]
    planes: slice
    z: AxisMap
    totals_z: NDArray[np.float32]
    cleared: tuple[slice, ...]


def ring_depth(plan: WindowPlan) -> int:
    """How many planes of sums exist at the same time."""
    if len(plan.axis_starts[0]) == 1:
        return plan.shape[0]
    return min(plan.window[0] + 1, plan.shape[0])


def layers(plan: WindowPlan, z: AxisMap, totals_z: NDArray[np.float32]) -> Iterator[Layer]:
    """The layers of ``plan`` in order; ``z`` maps the output's planes, rising, to those of the plan.

    Raises ValueError for a map that does not rise or leaves out a plane between lower and upper.
    """
    if (np.diff(z.upper) < 0).any() or (z.upper - z.lower > 1).any() or (z.upper < z.lower).any():
        raise ValueError("the output's planes must rise along z, each between neighbouring planes")
    depth, starts = ring_depth(plan), plan.axis_starts[0]
    per_layer = len(plan) // len(starts)
    done, kept = 0, 0
    for index, start in enumerate(starts):
        last = index == len(starts) - 1
        final = plan.shape[0] if last else starts[index + 1]  # planes below this one are final
        end = len(z) if last else int(np.searchsorted(z.upper, final, side="left"))
        covered = np.arange(kept, min(start + plan.window[0], plan.shape[0]))
        totals = np.ones(depth, np.float32)
        totals[covered % depth] = totals_z[covered]
        own = AxisMap(z.lower[done:end] % depth, z.upper[done:end] % depth, z.fraction[done:end])
        next_kept = plan.shape[0] if last else max(final - 1, 0)
        windows = slice(index * per_layer, (index + 1) * per_layer)
        yield Layer(windows, _ring_starts(start, plan.window[0], depth), slice(done, end), own, totals,
                    _slots(kept, next_kept, depth))  # fmt: skip
        done, kept = end, next_kept


def _ring_starts(start: int, window: int, depth: int) -> tuple[int, ...]:
    # What sticks out is padding, not another plane: of a window deeper than the ring, and below plane 0.
    if window > depth or start < 0:
        return (start,)
    slot = start % depth
    return (slot, slot - depth) if slot + window > depth else (slot,)


def _slots(first: int, last: int, depth: int) -> tuple[slice, ...]:
    """The slots of planes ``first`` up to, not including, ``last``."""
    if last <= first:
        return ()
    if last - first >= depth:
        return (slice(0, depth),)
    begin, end = first % depth, last % depth
    return (
        (slice(begin, end),)
        if begin < end
        else tuple(s for s in (slice(begin, depth), slice(0, end)) if s.start < s.stop)
    )
