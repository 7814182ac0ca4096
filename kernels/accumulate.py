"""Add the logits of a batch of windows, each weighted by its place in the window, to the sums over a volume.

``accumulate_definition`` says in NumPy what the operation is. ``accumulate`` is the same in C++
(accumulate.cpp), bit for bit; accumulate.cu is the same on a GPU. Both take their
arithmetic from accumulate.h.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.kernels import _host
from dropgen_rt.kernels.checks import require_array, require_separate, require_three

Float32Array = NDArray[np.float32]
Int32Array = NDArray[np.int32]

_ENTRIES: dict[Any, Callable[..., None]] = {
    np.dtype(np.float32): _host.accumulate_f32,
    np.dtype(np.float16): _host.accumulate_f16,
    np.dtype(np.uint16): _host.accumulate_bf16,
}


def widened(logits: NDArray[Any]) -> Float32Array:
    """Logits in float32: float16 widened, uint16 read as the bits of bfloat16, which NumPy does not have."""
    if logits.dtype == np.uint16:
        return (logits.astype(np.uint32) << 16).view(np.float32)
    return logits.astype(np.float32, copy=False)


def accumulate_definition(
    sums: Float32Array, logits: NDArray[Any], starts: Int32Array, weights: Sequence[Float32Array]
) -> None:
    """The definition of ``accumulate``, in NumPy."""
    weights_z, weights_y, weights_x = weights
    weight = (weights_z[:, None, None] * weights_y[:, None]) * weights_x
    window = np.array(weight.shape)
    for window_logits, start in zip(widened(logits), starts.astype(np.int64), strict=True):
        first = np.maximum(start, 0)
        last = np.minimum(start + window, sums.shape[1:])
        if (first >= last).any():  # the window misses the volume
            continue
        to = np.s_[:, first[0] : last[0], first[1] : last[1], first[2] : last[2]]
        first, last = first - start, last - start
        inside = np.s_[:, first[0] : last[0], first[1] : last[1], first[2] : last[2]]
        sums[to] += (weight[None] * window_logits)[inside]


def bounding_box(
    starts: Int32Array, window: Sequence[int], extent: Sequence[int]
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The smallest box of voxels that holds every part of the windows inside a volume.

    starts: (B, 3) int32 as (z, y, x), B at least 1. window and extent: sizes (z, y, x) in voxels.

    Returns the box's first voxel and its size, both (z, y, x); size 0 says that no window meets the volume.
    """
    # Plain numbers: for the few windows of a batch NumPy's calls take longer.
    meeting = [
        row
        for row in starts.tolist()
        if all(-edge < at < size for at, edge, size in zip(row, window, extent, strict=True))
    ]
    if not meeting:
        return (0, 0, 0), (0, 0, 0)
    columns = list(zip(*meeting, strict=True))
    z, y, x = (max(min(column), 0) for column in columns)
    ends = (min(max(column) + edge, size) for column, edge, size in zip(columns, window, extent, strict=True))
    end_z, end_y, end_x = map(int, ends)
    return (z, y, x), (end_z - z, end_y - y, end_x - x)


def accumulate(sums: Float32Array, logits: NDArray[Any], starts: Int32Array, weights: Sequence[Float32Array]) -> None:
    """Add weighted windows to ``sums``, in place.

        sums[k, start + p] += ((wz[pz] * wy[py]) * wx[px]) * logits[b, k, p]

    sums: (K, Z, Y, X) float32, changed in place. logits: (B, K, wz, wy, wx) float32, float16, or
    uint16 that holds the bits of bfloat16.
    starts: (B, 3) int32, the first voxel of each window as (z, y, x).
    weights: three float32 tables of lengths wz, wy, wx.

    Parts of a window outside the volume are dropped. Windows are added in the order given, whatever the
    number of threads: the same input gives the same bits, and the bits of ``accumulate_definition``.
    Raises TypeError for a wrong dtype, ValueError for a wrong shape or layout. Releases the GIL.
    """
    require_array("sums", sums, np.float32, ("K", "Z", "Y", "X"), writes=True)
    require_array("starts", starts, np.int32, ("B", 3))
    require_three("weights", weights)
    dtype = getattr(logits, "dtype", np.float32)
    require_array(
        "logits", logits, dtype if dtype in _ENTRIES else np.float32, (len(starts), len(sums), "wz", "wy", "wx")
    )
    for name, table, length in zip("zyx", weights, logits.shape[2:], strict=True):
        require_array(f"weights for {name}", table, np.float32, (length,))
    require_separate("sums", sums, "logits", logits)
    if not (sums.size and logits.size):
        return
    (first_z, _, _), (size_z, _, _) = bounding_box(starts, logits.shape[2:], sums.shape[1:])
    if size_z:
        weights_z, weights_y, weights_x = weights
        last_z = first_z + size_z
        stored = logits.view(np.uint16) if logits.dtype == np.float16 else logits
        _ENTRIES[logits.dtype](sums, stored, starts, weights_z, weights_y, weights_x, first_z, last_z)
