"""The contract every engine keeps.

An engine owns its network, its threads and its memory; it knows nothing of scans, windows' places or
labels. Precision is obeyed or refused, never changed on the quiet.
"""

from collections.abc import Callable
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

Kind = Literal["openvino", "onnxruntime", "tensorrt", "rtx"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class Engine(Protocol):
    """An opened network; use it in a ``with`` block."""

    name: str
    version: str
    precision: str
    device: str

    def infer(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(b, channels, z, y, x) float32 windows -> (b, classes, z, y, x) float32 logits, valid until the next call."""
        ...

    def close(self) -> None:
        """Release the network; the engine cannot be used afterwards."""
        ...

    def __enter__(self) -> "Engine": ...

    def __exit__(self, *exception: object) -> None: ...


class DeviceEngine(Engine, Protocol):
    """An engine that also takes and gives memory of its own GPU, so that windows need not pass through the host."""

    def infer_device(self, windows: int, logits: int, batch: int, stream: int) -> None:
        """Enqueue one batch on a CUDA stream and return at once.

        ``windows`` and ``logits`` are device addresses of C-contiguous float32 (batch, channels, z, y, x) and
        (batch, classes, z, y, x), both multiples of 256; logits are half or bfloat16 where the engine's ``logit_type``
        says "f16" or "bf16". ``stream`` is a CUDA stream handle. Both must live until the stream is there.

        An engine whose ``own_stream`` is true (those without it: false) does not enqueue: what was given to ``stream``
        must be done before the call, and the logits are there when it returns. No CUDA graph can hold it. Windows are
        of the manifest's size; where ``any_window`` is true, ``infer`` takes others.
        """
        ...


def in_batches(
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]], windows: NDArray[np.float32], largest: int
) -> NDArray[np.float32]:
    """``run`` on at most ``largest`` windows at a time (0: on all at once), for graphs whose batch is fixed."""
    if not largest or len(windows) <= largest:
        return run(windows)
    parts = range(0, len(windows), largest)
    return np.concatenate([run(windows[first : first + largest]).copy() for first in parts])
