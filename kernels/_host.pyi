"""Types of the compiled module; the arguments are explained in gather.py, accumulate.py and finalise.py."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def threads() -> int: ...
def set_threads(count: int) -> None: ...
def gather(
    volume: NDArray[np.float32],
    starts: NDArray[np.int32],
    normalisation: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None: ...
def accumulate(
    sums: NDArray[np.float32],
    logits: NDArray[np.float32],
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
) -> None: ...
