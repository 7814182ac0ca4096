"""The sliding window: gather, infer, accumulate, batch by batch."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.kernels import AxisMap, Normalisation, accumulate, finalise, gather
from dropgen_rt.windows import Blend, WindowPlan, axis_totals, axis_weights

Infer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def slide(
    image: NDArray[np.float32],
    plan: WindowPlan,
    normalisation: Normalisation,
    infer: Infer,
    classes: int,
    *,
    blend: Blend = "constant",
    batch: int = 1,
    progress: Callable[[int], None] = lambda windows: None,
) -> tuple[NDArray[np.float32], tuple[NDArray[np.float32], ...]]:
    """Weighted logit sums (classes, z, y, x) float32 and the three per-axis weight totals that normalise them.

    ``image`` is (channels, z, y, x) float32 on the working grid, ``infer`` maps windows
    (b, channels, z, y, x) to logits (b, classes, z, y, x), both float32. ``progress`` gets the number of
    windows done after each batch.
    """
    sums = np.zeros((classes, *plan.shape), np.float32)
    weights = tuple(axis_weights(edge, blend) for edge in plan.window)
    starts = plan.starts
    for first in range(0, len(starts), batch):
        some = starts[first : first + batch]
        windows = gather(image, some, plan.window, normalisation)
        accumulate(sums, infer(windows), some, weights)
        progress(len(some))
    return sums, axis_totals(plan, weights)


def argmax_labels(sums: NDArray[np.float32], totals: tuple[NDArray[np.float32], ...]) -> NDArray[np.unsignedinteger]:
    """(z, y, x) labels on the working grid itself."""
    identity = tuple(AxisMap.identity(size) for size in sums.shape[1:])
    return finalise(sums, totals, identity)[0]
