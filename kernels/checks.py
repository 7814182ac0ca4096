"""What every kernel asks of its arrays: dtype, shape, layout. A refusal here is a programmer's error."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def require_array(name: str, array: Any, dtype: DTypeLike, shape: Sequence[int | str], *, writes: bool = False) -> None:
    """Refuse ``array`` unless it is C-contiguous with this dtype and shape.

    ``shape`` holds a number for a size that must match and a letter for one that is free, for example
    ``("C", "Z", "Y", "X")`` or ``("B", 3)``; it is quoted in the message as it stands.

    Raises TypeError for the wrong kind or dtype, ValueError for the wrong shape or layout.
    """
    wanted = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''}) {np.dtype(dtype)}"
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array {wanted}, not {type(array).__name__}")
    given = f"{array.shape} {array.dtype}"
    if array.dtype != dtype:
        raise TypeError(f"{name} must be {wanted}, not {given}")
    sizes = zip(array.shape, shape, strict=False)
    if array.ndim != len(shape) or any(isinstance(want, int) and size != want for size, want in sizes):
        raise ValueError(f"{name} must be {wanted}, not {given}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} {given} must be C-contiguous; its strides are {array.strides}")
    if writes and not array.flags.writeable:
        raise ValueError(f"{name} {given} is written to, but it is read-only")


def require_three(name: str, values: Sequence[Any]) -> None:
    """Refuse anything but one value per spatial axis. Raises ValueError."""
    if len(values) != 3:
        raise ValueError(f"{name} must hold three values, for z, y and x, not {len(values)}")


def require_separate(name: str, array: NDArray[Any], other_name: str, other: NDArray[Any]) -> None:
    """Refuse an output that overlaps an input: threads would read what others wrote. Raises ValueError."""
    if np.may_share_memory(array, other):
        raise ValueError(f"{name} must not share memory with {other_name}")
