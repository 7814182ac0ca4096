"""Which window a scan is cut into: the model's own, another one that the user names, or the one that computes least.

Overlapping voxels are computed more than once. A window twice the size of half a scan costs less than five small ones
side by side, as long as its workspace fits in memory.
"""

from collections.abc import Callable
from itertools import product
from typing import Literal

from dropgen_rt.errors import UsageError
from dropgen_rt.manifest import Manifest
from dropgen_rt.windows import WindowPlan
from dropgen_rt.words import by

Edges = tuple[int, int, int]
Wish = Literal["auto"] | Edges


def parse_window(text: str) -> Wish:
    """``auto``, ``128`` or ``128,160,128`` (z,y,x). Raises UsageError."""
    if text == "auto":
        return "auto"
    parts = text.replace("x", ",").split(",")
    if len(parts) not in (1, 3) or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"window {text!r}: accepted are auto, one edge such as 128, or three (z,y,x) with commas")
    z, y, x = (int(part) for part in (parts * 3 if len(parts) == 1 else parts))
    return z, y, x


def require_possible(wish: Wish | None, manifest: Manifest) -> None:
    """Raise UsageError for a window that the model's graph cannot take."""
    if wish is None or wish == manifest.window:
        return
    if not manifest.dynamic_window:
        raise UsageError(
            f"window {_by(wish)}: the graph of {manifest.name!r} takes {_by(manifest.window)} only; leave --window "
            "out, or export the model with --dynamic"
        )
    if wish != "auto" and any(edge % manifest.stride for edge in wish):
        raise UsageError(f"window {_by(wish)}: edges of {manifest.name!r} are multiples of {manifest.stride}")


def cheapest_window(
    shape: Edges, manifest: Manifest, overlap: float, fits: Callable[[WindowPlan], bool]
) -> Edges:  # fmt: skip
    """The window, no smaller than the trained one, whose plan over ``shape`` computes the fewest voxels and fits.

    ``fits`` says whether a plan's memory is there. Among equals the smallest window wins; where none fits it is the
    trained one.
    """
    choices = product(
        *(
            _edges(size, edge, manifest.stride, overlap)
            for size, edge in zip(shape, manifest.window, strict=True)
        )
    )  # fmt: skip
    plans = [WindowPlan.cover(shape, window, overlap) for window in choices]
    plans.sort(key=lambda plan: (len(plan) * _voxels(plan.window), _voxels(plan.window), plan.window))
    return next((plan.window for plan in plans if fits(plan)), manifest.window)


def _edges(size: int, trained: int, stride: int, overlap: float) -> list[int]:
    """For every possible number of windows along an axis the smallest edge that makes do with it."""
    whole = max(-(-size // stride) * stride, trained)
    found: dict[int, int] = {}
    for edge in range(trained, whole + 1, stride):
        windows = len(WindowPlan.cover((size,) * 3, (edge,) * 3, overlap).axis_starts[0])
        found.setdefault(windows, edge)
    return list(found.values())


def _voxels(window: Edges) -> int:
    return window[0] * window[1] * window[2]


def _by(window: Wish) -> str:
    return window if window == "auto" else by(window)
