"""Windows that hold nothing but padding or air need no network: it says the same about all of them.

A window counts as air if, after normalisation, none of its voxels exceeds AIR_LEVEL; padding is 0 there. By the rule
"ask" the network is then run once, on a window of zeros, and its logits stand in for those of every such window:
skipped voxels get the label that the network gives to air, and the weights stay as they are. By the rule "background"
such windows are background unasked: around a body many are air as a whole, and a network that never saw one in training
may find anything there. By the rule "run" they are windows like others.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.errors import ModelError
from dropgen_rt.kernels import Normalisation, extremes
from dropgen_rt.windows import Box

Infer = Callable[[NDArray[np.float32]], NDArray[np.float32]]
AirRule = Literal["run", "ask", "background"]
#: greatest(starts (N, 3), window): (N, C) greatest raw intensity of each window and channel.
Greatest = Callable[[NDArray[np.int32], Sequence[int]], NDArray[np.float32]]

#: The greatest normalised intensity that still is air: noise around a head after percentile bounds lies below, lung in
#: CT between -1024 and 1024 HU above.
AIR_LEVEL = 0.03
#: The body's box is found in slabs of so many voxels: rows long enough to be read, and a little air around the body.
SLAB = 8


def greatest_levels(greatest: NDArray[np.float32], normalisation: Normalisation) -> NDArray[np.float32]:
    """(N, C) normalised intensities of (N, C) raw ones; -inf, of a window outside the volume, becomes padding, 0."""
    lower, upper, offset, scale = normalisation.table()
    with np.errstate(invalid="ignore"):
        levels = (np.clip(greatest, lower, upper) - offset) * scale
    return np.where(np.isneginf(greatest), np.float32(0), levels)


def air_windows(
    image: NDArray[np.float32], starts: NDArray[np.int32], window: Sequence[int], normalisation: Normalisation
) -> NDArray[np.bool_]:
    """(N,) bool: which windows of ``image`` (C, z, y, x) hold only padding or air."""
    return are_air(partial(greatest_of, image), starts, window, normalisation)


def greatest_of(image: NDArray[np.float32], starts: NDArray[np.int32], window: Sequence[int]) -> NDArray[np.float32]:
    """``Greatest`` of an image (C, z, y, x) on the CPU."""
    return extremes(image, starts, window)[..., 1]


def are_air(
    greatest: Greatest, starts: NDArray[np.int32], window: Sequence[int], normalisation: Normalisation
) -> NDArray[np.bool_]:
    """(N,) bool, as ``air_windows``, of an image wherever it is."""
    if min(normalisation.scale) <= 0:  # brighter is not more
        return np.zeros(len(starts), np.bool_)
    return np.asarray((greatest_levels(greatest(starts, window), normalisation) <= AIR_LEVEL).all(axis=1))


def body_box(greatest: Greatest, shape: Sequence[int], normalisation: Normalisation) -> Box:
    """The smallest box of whole slabs outside of which everything is air; all of (z, y, x) ``shape`` if nothing is."""
    z, y, x = (_body_ends(greatest, tuple(shape), axis, normalisation) for axis in range(3))
    return z, y, x


def _body_ends(greatest: Greatest, shape: tuple[int, ...], axis: int, normalisation: Normalisation) -> tuple[int, int]:
    starts = np.zeros((-(-shape[axis] // SLAB), 3), np.int32)
    starts[:, axis] = SLAB * np.arange(len(starts))
    slab = tuple(SLAB if index == axis else size for index, size in enumerate(shape))
    (held,) = np.nonzero(~are_air(greatest, starts, slab, normalisation))
    if not len(held):
        return 0, shape[axis]
    return SLAB * int(held[0]), min(SLAB * (int(held[-1]) + 1), shape[axis])


def background_logits(classes: int, window: Sequence[int]) -> NDArray[np.float32]:
    """(1, classes, wz, wy, wx) float32: one for class 0, zero for the others."""
    logits = np.zeros((1, classes, *window), np.float32)
    logits[:, 0] = 1
    return logits


class AirLogits:
    """The network's answer to a window of zeros, asked for once, when first needed."""

    def __init__(self, infer: Infer, channels: int, window: Sequence[int]) -> None:
        self._infer, self._shape = infer, (1, channels, *window)
        self._known: NDArray[np.float32] | None = None

    def logits(self) -> NDArray[np.float32]:
        """(1, K, wz, wy, wx) float32. Raises ModelError if the network fails on zeros."""
        if self._known is None:
            try:
                self._known = self._infer(np.zeros(self._shape, np.float32)).copy()
            except (RuntimeError, ModelError) as error:
                raise ModelError("the network fails on a window of zeros; run it with --every-window") from error
        return self._known
