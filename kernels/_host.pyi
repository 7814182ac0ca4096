"""Types of the compiled module; the arguments are explained in the stem's own .py file."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def threads() -> int: ...
def set_threads(count: int) -> None: ...
def lanes() -> int: ...
def set_most_lanes(most: int) -> None: ...
def set_cache_bytes(bytes: int) -> None: ...
def gather(
    volume: NDArray[np.float32],
    starts: NDArray[np.int32],
    normalisation: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None: ...
def accumulate_f32(
    sums: NDArray[np.float32],
    logits: NDArray[np.float32],
    starts: NDArray[np.int32],
    weights_z: NDArray[np.float32],
    weights_y: NDArray[np.float32],
    weights_x: NDArray[np.float32],
    first_z: int,
    last_z: int,
) -> None: ...
def accumulate_f16(
    sums: NDArray[np.float32],
    logits: NDArray[np.uint16],
    starts: NDArray[np.int32],
    weights_z: NDArray[np.float32],
    weights_y: NDArray[np.float32],
    weights_x: NDArray[np.float32],
    first_z: int,
    last_z: int,
) -> None: ...
def accumulate_bf16(
    sums: NDArray[np.float32],
    logits: NDArray[np.uint16],
    starts: NDArray[np.int32],
    weights_z: NDArray[np.float32],
    weights_y: NDArray[np.float32],
    weights_x: NDArray[np.float32],
    first_z: int,
    last_z: int,
) -> None: ...
def finalise(
    sums: NDArray[np.float32],
    totals: Sequence[NDArray[np.float32]],
    lower: Sequence[NDArray[np.int32]],
    upper: Sequence[NDArray[np.int32]],
    fraction: Sequence[NDArray[np.float32]],
    x_is_identity: bool,
    labels: NDArray[np.uint8] | NDArray[np.uint16],
    probability: NDArray[np.float32] | None,
    margin: NDArray[np.float32] | None,
) -> None: ...
def resample(
    volume: NDArray[Any],
    first: Sequence[NDArray[np.int32]],
    count: Sequence[NDArray[np.int32]],
    weight: Sequence[NDArray[np.float32]],
    normalisation: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None: ...
def extremes(
    volume: NDArray[np.float32],
    starts: NDArray[np.int32],
    window_z: int,
    window_y: int,
    window_x: int,
    out: NDArray[np.float32],
) -> None: ...
def histogram(values: NDArray[np.float32], shift: int, bits: int, prefix: int, out: NDArray[np.int64]) -> None: ...
def statistics(
    labels: NDArray[Any],
    intensities: NDArray[np.float32],
    offset: float,
    scale: float,
    first_z: int,
    table: NDArray[np.int64],
) -> int: ...
