"""The contract every engine keeps, and the one place that chooses one.

An engine owns its network, its threads and its memory; it knows nothing of scans, windows' places or
labels. Precision is obeyed or refused, never changed on the quiet.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.errors import ResourceError
from dropgen_rt.model import Model


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


def open_engine(model: Model, device: str = "auto", cache: Path | None = None) -> Engine:
    """Open ``model`` on ``device`` ("auto" or "cpu"). ``cache`` is a folder for compiled networks.

    Raises ResourceError for a device that this version has no engine for, ModelError for a graph that the
    engine cannot compile.
    """
    if device not in ("auto", "cpu"):
        raise ResourceError(f"device {device!r}: this version runs on the CPU only; use --device cpu")
    from dropgen_rt.engines.openvino_engine import OpenVinoEngine  # slow to import: only when opened

    return OpenVinoEngine(model, cache)
